package bootentry

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	machine = "7a1f6c0e2b9d4e3f8c5a0b1d2e3f4a5b"
	other   = "ffffffffffffffffffffffffffffffff"
)

// The golden files are entries as the distributions' own programs wrote them.
func TestWriteBLS(t *testing.T) {
	files, err := filepath.Glob("testdata/bls/*.txtar")
	if err != nil || len(files) < 4 {
		t.Fatalf("golden files: %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			s := readScenario(t, file)
			before := s.folder("before")
			dir, tokens := boot(t, before), strings.Fields(s.say("tokens"))
			plain, err := PlainEntries(dir, s.say("version"), tokens...)
			if err != nil || len(plain) != 1 {
				t.Fatalf("PlainEntries = %d entries, %v; want 1", len(plain), err)
			}
			plan := Plan{
				Boot: dir, Version: s.say("version"), Plain: plain[0], Tokens: tokens,
				Initrd: s.say("initrd"), Previous: s.say("previous"),
			}
			written, err := WriteBLS(plan)
			if err != nil || !written.Changed || !written.First {
				t.Fatalf("WriteBLS = %+v, %v", written, err)
			}
			got := contents(t, dir)
			for name, text := range before {
				if got[name] != text {
					t.Errorf("the distribution's %s is now\n%s", name, got[name])
				}
				delete(got, name)
			}
			if *update {
				s.set(t, "after", written.Names, got)
			} else if diff := cmp.Diff(s.folder("after"), got); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(slices.Sorted(slices.Values(written.Names)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("names that were said and are there (-said +there):\n%s", diff)
			}

			// The same again touches nothing.
			stat := func() (times []os.FileInfo) {
				for name := range got {
					info, err := os.Stat(filepath.Join(entriesDir(dir), name))
					if err != nil {
						t.Fatal(err)
					}
					times = append(times, info)
				}
				return times
			}
			old := stat()
			again, err := WriteBLS(plan)
			if err != nil || again.Changed || again.First || !slices.Equal(again.Names, written.Names) {
				t.Errorf("the second WriteBLS = %+v, %v; want no change of %q", again, err, written.Names)
			}
			for _, info := range stat() {
				if !slices.ContainsFunc(old, func(o os.FileInfo) bool { return os.SameFile(o, info) }) {
					t.Errorf("%s is another file", info.Name())
				}
			}

			// Ours are never taken for the distribution's.
			if plain, err := PlainEntries(dir, s.say("version"), tokens...); err != nil || len(plain) != 1 {
				t.Errorf("with ours there PlainEntries = %d entries, %v; want 1", len(plain), err)
			}

			removed, err := RemoveBLS(dir, s.say("version"), tokens...)
			if err != nil || len(removed) != len(got) {
				t.Errorf("RemoveBLS = %q, %v; want %d names", removed, err, len(got))
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("after RemoveBLS (-want +got):\n%s", diff)
			}
			if removed, err := RemoveBLS(dir, s.say("version")); err != nil || len(removed) != 0 {
				t.Errorf("the second RemoveBLS = %q, %v", removed, err)
			}
		})
	}
}

const plainText = "title Debian\nversion 6.1.0-1-amd64\nsort-key debian\noptions ro\nlinux /linux\ninitrd /initrd\n"

// id is what the names of its entries begin with.
const id = machine + "-6.1.0-1-amd64"

func plan(t testing.TB, dir, initrd, previous string) Plan {
	t.Helper()
	plain, err := PlainEntries(dir, "6.1.0-1-amd64", machine)
	if err != nil || len(plain) == 0 {
		t.Fatalf("PlainEntries: %d, %v", len(plain), err)
	}
	return Plan{Boot: dir, Version: "6.1.0-1-amd64", Plain: plain[0], Initrd: initrd, Previous: previous}
}

func mustWrite(t testing.TB, p Plan) *Written {
	t.Helper()
	w, err := WriteBLS(p)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func names(t testing.TB, dir string) []string {
	return slices.Sorted(maps.Keys(contents(t, dir)))
}

func TestWriteBLSCounters(t *testing.T) {
	const initoverlayfs = id + ".initoverlayfs"
	rename := func(t *testing.T, dir, from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(entriesDir(dir), from), filepath.Join(entriesDir(dir), to)); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("a new kernel's", func(t *testing.T) {
		dir := boot(t, map[string]string{id + "+2-1.conf": plainText})
		w := mustWrite(t, plan(t, dir, "/a", "/old"))
		// Ours was not tried yet; the previous pair has proved itself.
		want := []string{id + "+2-1.conf", id + ".backup.initoverlayfs.conf", initoverlayfs + "+3.conf"}
		if got := names(t, dir); !slices.Equal(got, want) {
			t.Errorf("entries %q; want %q", got, want)
		}
		if w.Current != initoverlayfs {
			t.Errorf("ID %q; want %q", w.Current, initoverlayfs)
		}
	})

	t.Run("unchanged", func(t *testing.T) {
		for _, counter := range []string{"", "+2-1", "+0-3"} {
			dir := boot(t, map[string]string{id + "+3.conf": plainText})
			mustWrite(t, plan(t, dir, "/a", ""))
			rename(t, dir, initoverlayfs+"+3.conf", initoverlayfs+counter+".conf")
			if w := mustWrite(t, plan(t, dir, "/a", "")); w.Changed {
				t.Errorf("counter %q: written anew as %q", counter, w.Names)
			}
			if want := []string{id + "+3.conf", initoverlayfs + counter + ".conf"}; !slices.Equal(names(t, dir), want) {
				t.Errorf("counter %q: entries %q; want %q", counter, names(t, dir), want)
			}
		}
	})

	t.Run("new content", func(t *testing.T) {
		for _, counter := range []string{"", "+2-1", "+0-3"} {
			dir := boot(t, map[string]string{id + "+3.conf": plainText})
			mustWrite(t, plan(t, dir, "/a", ""))
			rename(t, dir, initoverlayfs+"+3.conf", initoverlayfs+counter+".conf")
			mustWrite(t, plan(t, dir, "/b", ""))
			if want := []string{id + "+3.conf", initoverlayfs + "+3.conf"}; !slices.Equal(names(t, dir), want) {
				t.Errorf("counter %q: entries %q; want %q", counter, names(t, dir), want)
			}
		}
	})

	t.Run("a plain entry that has proved itself", func(t *testing.T) {
		dir := boot(t, map[string]string{id + ".conf": plainText})
		p := plan(t, dir, "/a", "")
		mustWrite(t, p)
		if want := []string{id + ".conf", initoverlayfs + ".conf"}; !slices.Equal(names(t, dir), want) {
			t.Errorf("entries %q; want %q", names(t, dir), want)
		}
		// The machine counts, so new content of ours is on trial all the same.
		p.Initrd, p.Tries = "/b", 5
		mustWrite(t, p)
		if want := []string{id + ".conf", initoverlayfs + "+5.conf"}; !slices.Equal(names(t, dir), want) {
			t.Errorf("entries %q; want %q", names(t, dir), want)
		}
		if removed, err := RemoveBLS(dir, p.Version); err != nil || len(removed) != 1 {
			t.Errorf("RemoveBLS = %q, %v", removed, err)
		}
	})
}

// What the plan has no more goes, and what others made stays.
func TestWriteBLSRemoves(t *testing.T) {
	foreign := strings.ReplaceAll(plainText, "6.1.0-1", "6.1.0-2")
	dir := boot(t, map[string]string{id + ".conf": plainText, machine + "-6.1.0-2-amd64.conf": foreign, "notes.txt": "x"})
	mustWrite(t, plan(t, dir, "/a", "/old"))
	second := plan(t, dir, "/a", "/old")
	second.Version = "6.1.0-2-amd64"
	plain, err := PlainEntries(dir, second.Version, machine)
	if err != nil || len(plain) != 1 {
		t.Fatal(plain, err)
	}
	second.Plain = plain[0]
	mustWrite(t, second)
	all := names(t, dir)

	if w := mustWrite(t, plan(t, dir, "/a", "")); !w.Changed {
		t.Error("nothing was said to have changed")
	}
	want := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == id+".backup.initoverlayfs.conf" })
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("without a previous pair there are %q; want %q", got, want)
	}
	// They are not another system's.
	if removed, err := RemoveBLS(dir, "6.1.0-1-amd64", other); err != nil || len(removed) != 0 {
		t.Errorf("RemoveBLS of another system = %q, %v", removed, err)
	}
	if _, err := RemoveBLS(dir, "6.1.0-1-amd64", machine); err != nil {
		t.Error(err)
	}
	want = slices.DeleteFunc(want, func(n string) bool { return n == id+".initoverlayfs.conf" })
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("RemoveBLS left %q; want %q", got, want)
	}
}

func TestWriteBLSRefuses(t *testing.T) {
	dir := boot(t, map[string]string{id + ".conf": plainText})
	good := plan(t, dir, "/a", "/old")
	noLinux := ParseBLS("x.conf", []byte("title x\n"))
	for name, tt := range map[string]struct {
		change func(*Plan)
		there  string // a file
		err    string
	}{
		"a foreign entry":          {func(*Plan) {}, id + ".initoverlayfs.conf", "was not made by initoverlayfs"},
		"one with a counter":       {func(*Plan) {}, id + ".backup.initoverlayfs+3.conf", "was not made by initoverlayfs"},
		"one in other letters":     {func(*Plan) {}, strings.ToUpper(id) + ".INITOVERLAYFS.CONF", "was not made by initoverlayfs"},
		"no plain entry":           {func(p *Plan) { p.Plain = nil }, "", "a plain entry with a kernel is needed"},
		"one without a kernel":     {func(p *Plan) { p.Plain = noLinux }, "", "a plain entry with a kernel is needed"},
		"no version":               {func(p *Plan) { p.Version = "" }, "", `"" is no kernel version`},
		"a version of two lines":   {func(p *Plan) { p.Version = "6\n7" }, "", `"6\n7" is no kernel version`},
		"a relative path":          {func(p *Plan) { p.Initrd = "a" }, "", `"a" is no path`},
		"a path of script":         {func(p *Plan) { p.Initrd = "/a;reboot" }, "", `"/a;reboot" is no path`},
		"a path with a blank":      {func(p *Plan) { p.Previous = "/a b" }, "", `"/a b" is no path`},
		"a name in another folder": {func(p *Plan) { p.Plain = ParseBLS("../x.conf", []byte(plainText)) }, "", "is no name of an entry"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := boot(t, map[string]string{id + ".conf": plainText})
			if tt.there != "" {
				write(t, filepath.Join(entriesDir(dir), tt.there), plainText)
			}
			before := contents(t, dir)
			p := good
			p.Boot = dir
			tt.change(&p)
			if w, err := WriteBLS(p); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("WriteBLS = %+v, %v; want an error with %q", w, err, tt.err)
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("entries (-before +after):\n%s", diff)
			}
		})
	}
}

func TestPlainEntries(t *testing.T) {
	entry := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	const v = "6.1.0-1-amd64"
	for name, tt := range map[string]struct {
		entries map[string]string
		version string
		tokens  []string
		want    []string
	}{
		"by name and version": {map[string]string{id + ".conf": plainText}, v, []string{machine}, []string{id + ".conf"}},
		"by name":             {map[string]string{id + ".conf": entry("linux /l")}, v, []string{machine}, []string{id + ".conf"}},
		"by version":          {map[string]string{"arch.conf": plainText}, v, []string{machine}, []string{"arch.conf"}},
		"by another's name":   {map[string]string{"debian-" + v + ".conf": entry("linux /l")}, v, nil, []string{"debian-" + v + ".conf"}},
		"with counters, which an older kernel-install leaves beside the old one": {
			map[string]string{id + ".conf": plainText, id + "+3.conf": plainText, "x.conf": plainText},
			v, []string{machine}, []string{id + "+3.conf", id + ".conf", "x.conf"},
		},
		"counting": {map[string]string{id + "+0-3.conf": plainText}, v, []string{machine}, []string{id + "+0-3.conf"}},
		"a version with plus signs": {
			map[string]string{"t-6.12+bpo+.conf": entry("linux /l"), "t-6.12+bpo.conf": entry("linux /l")},
			"6.12+bpo+", []string{"t"}, []string{"t-6.12+bpo+.conf"},
		},
		"a version that ends in a counter": {map[string]string{"t-6.8+3.conf": entry("linux /l")}, "6.8+3", []string{"t"}, []string{"t-6.8+3.conf"}},
		"another kernel":                   {map[string]string{id + ".conf": plainText}, "6.1.0-10-amd64", []string{machine}, nil},
		"a longer version":                 {map[string]string{machine + "-1-" + v + ".conf": entry("version 1-"+v, "linux /l")}, v, []string{machine}, nil},
		"a shorter version":                {map[string]string{id + ".conf": plainText}, "amd64", []string{machine}, nil},
		"no version":                       {map[string]string{"x.conf": entry("linux /l"), "t-.conf": entry("linux /l")}, "", []string{"t"}, nil},
		"Fedora's debug entry": {
			map[string]string{id + ".conf": plainText, id + "~debug.conf": entry("version "+v, "linux /l"), other + "-" + v + "~debug.conf": entry("version "+v, "linux /l")},
			v, []string{machine}, []string{id + ".conf"},
		},
		"another machine, by name": {map[string]string{other + "-" + v + ".conf": entry("version "+v, "linux /l")}, v, []string{machine}, nil},
		"another machine, by key":  {map[string]string{"x.conf": entry("version "+v, "machine-id "+other, "linux /l")}, v, []string{machine}, nil},
		"every machine":            {map[string]string{other + "-" + v + ".conf": entry("version "+v, "linux /l")}, v, nil, []string{other + "-" + v + ".conf"}},
		"a unified image":          {map[string]string{id + ".conf": entry("version "+v, "efi /x.efi")}, v, []string{machine}, nil},
		"no entry for a loader":    {map[string]string{"." + id + ".conf": plainText, id + ".conf.bak": plainText, ".conf": plainText}, v, []string{machine}, nil},
		"too large":                {map[string]string{id + ".conf": plainText + strings.Repeat("#", maxEntryBytes)}, v, []string{machine}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := boot(t, tt.entries)
			if err := os.Mkdir(filepath.Join(entriesDir(dir), "folder-"+v+".conf"), 0o755); err != nil {
				t.Fatal(err)
			}
			entries, err := PlainEntries(dir, tt.version, tt.tokens...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range entries {
				got = append(got, e.Name)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("PlainEntries = %q; want %q", got, tt.want)
			}
		})
	}
	if entries, err := PlainEntries(t.TempDir(), v); err != nil || entries != nil {
		t.Errorf("without loader/entries: %v, %v", entries, err)
	}
}

// Where the distribution made no entry, ours come with a plain one, until the
// distribution makes one.
func TestNewEntry(t *testing.T) {
	template := Template{
		Token: machine, MachineID: machine, Version: "6.1.0-1-amd64", Title: "Debian", SortKey: "debian",
		Options: "root=LABEL=x  ro\n", Linux: "/vmlinuz-6.1.0-1-amd64", Initrds: []string{"/initrd.img-6.1.0-1-amd64"},
	}
	dir := t.TempDir()
	p := Plan{Boot: dir, Version: template.Version, Plain: NewEntry(template), Initrd: "/a"}
	mustWrite(t, p)
	want := map[string]string{
		id + ".conf": "# initoverlayfs: plain 6.1.0-1-amd64 (generated, changes are lost)\n" +
			"title      Debian\nversion    6.1.0-1-amd64\nmachine-id " + machine + "\nsort-key   debian\n" +
			"options    root=LABEL=x ro\nlinux      /vmlinuz-6.1.0-1-amd64\ninitrd     /initrd.img-6.1.0-1-amd64\n",
		id + ".initoverlayfs.conf": "# initoverlayfs: current 6.1.0-1-amd64 (generated, changes are lost)\n" +
			"title      Debian (initoverlayfs)\nversion    6.1.0-1-amd64.initoverlayfs\nmachine-id " + machine + "\nsort-key   debian\n" +
			"options    root=LABEL=x ro\nlinux      /vmlinuz-6.1.0-1-amd64\ninitrd     /a\n",
	}
	if diff := cmp.Diff(want, contents(t, dir)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if plain, err := PlainEntries(dir, template.Version, machine); err != nil || len(plain) != 0 {
		t.Errorf("PlainEntries = %v, %v; the plain entry is ours", plain, err)
	}
	if w := mustWrite(t, p); w.Changed {
		t.Error("written anew")
	}

	t.Run("replaced", func(t *testing.T) {
		write(t, filepath.Join(entriesDir(dir), id+".conf"), plainText)
		mustWrite(t, plan(t, dir, "/a", ""))
		if _, err := RemoveBLS(dir, template.Version); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{id + ".conf": plainText}, contents(t, dir)); diff != "" {
			t.Errorf("the distribution's entry (-want +got):\n%s", diff)
		}
	})
	t.Run("beside one with a counter", func(t *testing.T) {
		dir := t.TempDir()
		p.Boot = dir
		mustWrite(t, p)
		write(t, filepath.Join(entriesDir(dir), id+"+3.conf"), plainText)
		mustWrite(t, plan(t, dir, "/a", ""))
		if got, want := names(t, dir), []string{id + "+3.conf", id + ".initoverlayfs+3.conf"}; !slices.Equal(got, want) {
			t.Errorf("entries %q; want %q", got, want)
		}
	})
}

// A write that fails leaves the entries as they were, and no file beside them.
func TestWriteBLSFails(t *testing.T) {
	dir := boot(t, map[string]string{id + ".conf": plainText})
	mustWrite(t, plan(t, dir, "/a", ""))
	before := contents(t, dir)
	folder := filepath.Join(entriesDir(dir), id+".backup.initoverlayfs.conf")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if w, err := WriteBLS(plan(t, dir, "/b", "/a")); err == nil {
		t.Errorf("WriteBLS over a folder = %+v", w)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("entries (-before +after):\n%s", diff)
	}
	// What a killed writer left is used up by the next, or removed.
	for name, clean := range map[string]func() error{
		"WriteBLS": func() error { _, err := WriteBLS(plan(t, dir, "/c", "")); return err },
		"RemoveBLS": func() error {
			_, err := RemoveBLS(dir, "6.1.0-1-amd64")
			return err
		},
	} {
		left := []string{numbered(temporaryPattern, 0), numbered(temporaryPattern, 7), numbered(keptPattern, 0)}
		for _, file := range left {
			write(t, filepath.Join(entriesDir(dir), file), strings.Repeat("half", 1000))
		}
		if err := clean(); err != nil {
			t.Fatal(err)
		}
		for _, file := range left {
			if _, there := contents(t, dir)[file]; there {
				t.Errorf("%s left %s", name, file)
			}
		}
	}
}

// New entries are flushed before they get their names, and the old ones are there
// until the new names are flushed.
func TestWriteBLSFlush(t *testing.T) {
	dir := boot(t, map[string]string{id + ".conf": plainText})
	mustWrite(t, plan(t, dir, "/b", "/a"))
	before := contents(t, dir)
	current, previous := id+".initoverlayfs.conf", id+".backup.initoverlayfs.conf"
	var seen []map[string]string
	p := plan(t, dir, "/c", "/b")
	p.Flush = func() error {
		seen = append(seen, contents(t, dir))
		return nil
	}
	mustWrite(t, p)
	after := contents(t, dir)
	if len(seen) != 2 {
		t.Fatalf("%d flushes, want 2", len(seen))
	}
	for i, names := range []map[string]string{before, after} {
		for name, text := range names {
			if seen[i][name] != text {
				t.Errorf("flush %d: %s is %q, want %q", i, name, seen[i][name], text)
			}
		}
		kept := []string{seen[i][numbered(keptPattern, 0)], seen[i][numbered(keptPattern, 1)]}
		if want := []string{before[previous], before[current]}; !slices.Equal(kept, want) {
			t.Errorf("flush %d: kept is %q, want %q", i, kept, want)
		}
	}
	written := []string{seen[0][numbered(temporaryPattern, 0)], seen[0][numbered(temporaryPattern, 1)]}
	if want := []string{after[previous], after[current]}; !slices.Equal(written, want) {
		t.Errorf("before they have names the new entries are %q, want %q", written, want)
	}
	if len(after) != 3 {
		t.Errorf("there is %q", slices.Sorted(maps.Keys(after)))
	}

	// Without the first flush nothing changes.
	p = plan(t, dir, "/d", "/c")
	p.Flush = func() error { return errors.New("the disk is gone") }
	if w, err := WriteBLS(p); err == nil || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("WriteBLS = %+v, %v", w, err)
	}
	if diff := cmp.Diff(after, contents(t, dir)); diff != "" {
		t.Errorf("entries (-before +after):\n%s", diff)
	}
}

func FuzzParseBLS(f *testing.F) {
	files, err := filepath.Glob("testdata/bls/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		for name, text := range readScenario(f, file).folder("before") {
			f.Add(name, []byte(text))
		}
	}
	f.Add("a+1-.conf", []byte("\x00\r# \n\t\"\nx\n"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		e := ParseBLS(name, data)
		text := e.Format()
		if again := ParseBLS(name, text).Format(); string(again) != string(text) {
			t.Errorf("formatted %q, parsed and formatted again %q", text, again)
		}
		for _, role := range []Role{Current, Previous} {
			d := e.derive(role, "6.1", "/mini")
			r, version, ours := d.Ours()
			if r != role || version != "6.1" || !ours {
				t.Errorf("Ours = %q, %q, %t", r, version, ours)
			}
			read := ParseBLS(d.Name, d.Format())
			if initrds := read.All("initrd"); len(initrds) == 0 || initrds[len(initrds)-1] != "/mini" {
				t.Errorf("initrds %q", initrds)
			}
			// GRUB reads nothing behind a line without a value.
			for line := range strings.Lines(string(d.Format())) {
				if !strings.HasPrefix(line, "#") && len(strings.Fields(line)) < 2 && !strings.ContainsAny(line, "\v\f\u0085\u00a0") {
					t.Errorf("a line is %q", line)
				}
			}
		}
	})
}

func TestVerify(t *testing.T) {
	dir := boot(t, map[string]string{id + "+3.conf": plainText})
	p := plan(t, dir, "/a", "/old")
	mustWrite(t, p)
	current, previous := id+".initoverlayfs+3.conf", id+".backup.initoverlayfs.conf"
	check := func(what string, want map[string]bool) {
		t.Helper()
		result, err := Verify(p)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for name, wrong := range result {
			got[name] = wrong == nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: entries that are right (-want +got):\n%s", what, diff)
		}
	}
	check("as written", map[string]bool{current: true, previous: true})
	counted := id + ".initoverlayfs+2-1.conf"
	if err := os.Rename(filepath.Join(entriesDir(dir), current), filepath.Join(entriesDir(dir), counted)); err != nil {
		t.Fatal(err)
	}
	check("booted once", map[string]bool{counted: true, previous: true})
	text := []byte(contents(t, dir)[counted])
	for i := range text {
		text[i] ^= 1
		write(t, filepath.Join(entriesDir(dir), counted), string(text))
		check("a flipped bit", map[string]bool{counted: false, previous: true})
		text[i] ^= 1
	}
	if err := os.Remove(filepath.Join(entriesDir(dir), counted)); err != nil {
		t.Fatal(err)
	}
	check("removed", map[string]bool{current: false, previous: true})
	p.Boot = t.TempDir()
	check("no folder", map[string]bool{current: false, previous: false})
	p.Plain = nil
	if result, err := Verify(p); err == nil {
		t.Errorf("Verify without a plain entry = %v", result)
	}
}

func TestEntryPaths(t *testing.T) {
	dir := boot(t, nil)
	write(t, filepath.Join(dir, "vmlinuz-1"), "kernel")
	if err := os.MkdirAll(filepath.Join(dir, "token/1"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "token/1/linux"), "kernel")
	for linux, want := range map[string]string{
		"/vmlinuz-1":           "",
		"/token/1/linux":       "",
		"/boot/vmlinuz-1":      "/boot",
		"/root/boot/vmlinuz-1": "/root/boot",
		"/boot/token/1/linux":  "/boot",
		"/@/boot//vmlinuz-1":   "/@/boot",
		"/boot/vmlinuz-2":      "",
		"/boot/token/1":        "", // a folder
		"vmlinuz-1":            "",
		"":                     "",
		"/":                    "",
		"/boot/":               "",
		"(hd0,gpt2)/vmlinuz-1": "",
	} {
		e := ParseBLS("x.conf", []byte("linux "+linux+"\n"))
		if got := e.Prefix(dir); got != want {
			t.Errorf("Prefix of %q = %q; want %q", linux, got, want)
		}
	}
	e := ParseBLS("x.conf", []byte("initrd /ucode /b.img $tuned_initrd\ninitrd\t/c.img\ninitrd\noptions /d\n"))
	if got, want := e.Initrds(), []string{"/ucode", "/b.img", "/c.img"}; !slices.Equal(got, want) {
		t.Errorf("Initrds = %q; want %q", got, want)
	}
}
