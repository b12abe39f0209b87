package bootentry

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"initoverlayfs/vmtest/fixtures"
)

// shapes are plain entries as distributions write them, without their names.
var shapes = map[string]struct {
	token, text string // V stands for the version
	grub        bool   // it has keys of GRUB
	versions    []string
}{
	"kernel-install, machine ID": {
		token: machine, text: "title Debian\nversion V\nmachine-id " + machine + "\nsort-key debian\noptions ro\nlinux /V/linux\ninitrd /V/initrd\n",
		versions: debianVersions,
	},
	"kernel-install, name": {
		token: "debian", text: "title Debian\nversion V\nsort-key debian\noptions ro\nlinux /V/linux\ninitrd /V/initrd\n",
		versions: debianVersions,
	},
	"Debian without sort-key": {
		token: machine, text: "title Debian\nversion V\nmachine-id " + machine + "\noptions ro\nlinux /V/linux\ninitrd /V/initrd\n",
		versions: debianVersions,
	},
	"without sort-key and version": {
		token: "arch", text: "title Arch\noptions ro\nlinux /V/linux\ninitrd /V/initrd\n",
		versions: debianVersions,
	},
	"Fedora": {
		token: machine, grub: true, versions: fedoraVersions,
		text: "title Fedora Linux (V) 40\nversion V\nlinux /vmlinuz-V\ninitrd /initramfs-V.img $tuned_initrd\noptions ro\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n",
	},
	"Fedora with sort-key": {
		token: machine, grub: true, versions: fedoraVersions,
		text: "title Fedora Linux\nversion V\nsort-key fedora\nlinux /vmlinuz-V\ninitrd /initramfs-V.img\noptions ro\ngrub_class fedora\n",
	},
}

var (
	debianVersions = []string{"6.12.9+bpo-amd64", "6.1.0-56-amd64", "6.1.0-9-amd64"}
	fedoraVersions = []string{"6.10.0-0.rc1.fc41.x86_64", "6.8.5-301.fc40.x86_64", "6.8.5-300.fc40.aarch64", "6.8.5-30.fc40.x86_64"}
)

// makeShape writes all entries of a shape and gives $BOOT, and what shall lie side
// by side in a menu: the names of ours, of the plain entry and of the previous
// pair, by the plain entry's.
func makeShape(t *testing.T, name, counter string) (dir string, groups map[string][]string) {
	t.Helper()
	shape := shapes[name]
	dir, groups = boot(t, nil), map[string][]string{}
	var all []string
	for _, v := range shape.versions {
		id := shape.token + "-" + v
		plain := id + counter + ".conf"
		write(t, filepath.Join(entriesDir(dir), plain), strings.ReplaceAll(shape.text, "V", v))
		entries, err := PlainEntries(dir, v, shape.token)
		if err != nil || len(entries) != 1 {
			t.Fatalf("PlainEntries of %s: %d, %v", v, len(entries), err)
		}
		mustWrite(t, Plan{Boot: dir, Version: v, Plain: entries[0], Initrd: "/i/mini", Previous: "/i/previous"})
		previous := id + ".backup.initoverlayfs.conf"
		if shape.grub {
			previous = id + "~initoverlayfs.conf"
		}
		ours := id + ".initoverlayfs.conf"
		if counter != "" { // with three tries, ours has not been tried
			ours = id + ".initoverlayfs+3.conf"
		}
		groups[plain] = []string{ours, plain, previous}
		all = append(all, groups[plain]...)
	}
	if got := names(t, dir); !slices.Equal(got, slices.Sorted(slices.Values(all))) {
		t.Fatalf("the entries are %q; want %q", got, all)
	}
	return dir, groups
}

// wanted is a menu in which a loader orders the kernels as it does without ours.
func wanted(sorted []string, groups map[string][]string) []string {
	var want []string
	for _, name := range sorted {
		want = append(want, groups[name]...)
	}
	return want
}

// menu sorts the entries of $BOOT newest first.
func menu(t *testing.T, dir string, compare func(a, b *Entry) int) []string {
	t.Helper()
	entries, err := Entries(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(entries, func(a, b *Entry) int { return -compare(a, b) })
	var got []string
	for _, e := range entries {
		got = append(got, e.Name)
	}
	return got
}

// systemdBoot compares as the specification says and systemd-boot does, newer is
// larger. counted says that the counter is part of the name, as in its versions
// 252 and 253.
func systemdBoot(counted bool) func(a, b *Entry) int {
	name := func(e *Entry) string {
		if counted {
			return strings.ToLower(e.Name)
		}
		return strings.ToLower(e.ID() + ".conf")
	}
	exhausted := func(e *Entry) int {
		if t := e.Tries(); t.Counted && t.Left == 0 {
			return -1
		}
		return 0
	}
	has := func(s string) int { return cmp.Compare(len(s), 0) }
	return func(a, b *Entry) int {
		keyA, keyB := a.Get("sort-key"), b.Get("sort-key")
		if c := cmp.Or(cmp.Compare(exhausted(a), exhausted(b)), cmp.Compare(has(keyA), has(keyB))); c != 0 {
			return c
		}
		if keyA != "" {
			c := cmp.Or(-strings.Compare(keyA, keyB), -strings.Compare(a.Get("machine-id"), b.Get("machine-id")),
				CompareVersions(a.Get("version"), b.Get("version")))
			if c != 0 {
				return c
			}
		}
		return CompareVersions(name(a), name(b))
	}
}

// fedoraGrub compares as blscfg of Fedora and RHEL: the name without .conf is
// taken for the NAME-VERSION-RELEASE of a package.
func fedoraGrub(a, b *Entry) int {
	split := func(e *Entry) (parts [3]string) {
		words := strings.Split(strings.TrimSuffix(e.Name, ".conf"), "-")
		for i := 2; i > 0 && len(words) > 1; i-- {
			parts[i] = words[len(words)-1]
			words = words[:len(words)-1]
		}
		parts[0] = strings.Join(words, "-")
		return parts
	}
	partsA, partsB := split(a), split(b)
	for i := range partsA {
		if c := rpmCompare(partsA[i], partsB[i]); c != 0 {
			return c
		}
	}
	return 0
}

// rpmCompare is rpm's comparison of versions, without the caret, which GRUB's copy
// does not know.
func rpmCompare(a, b string) int {
	separator := func(r rune) bool { return !digit(r) && !letter(r) && r != '~' }
	for {
		a, b = strings.TrimLeftFunc(a, separator), strings.TrimLeftFunc(b, separator)
		tildeA, tildeB := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~")
		switch {
		case tildeA && tildeB:
			a, b = a[1:], b[1:]
			continue
		case tildeA:
			return -1
		case tildeB:
			return 1
		case a == "" || b == "":
			return cmp.Compare(len(a), len(b))
		}
		kind := letter
		if digit(rune(a[0])) {
			kind = digit
		}
		x, y := leading(&a, kind), leading(&b, kind)
		if y == "" { // digits are newer than letters
			if kind(rune('0')) {
				return 1
			}
			return -1
		}
		if kind(rune('0')) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
}

// grub214 gives names as GRUB 2.14 shows their entries: it sorts by the function
// that sort -V is made of.
func grub214(t *testing.T, names []string) []string {
	t.Helper()
	cmd := exec.Command("sort", "-r", "-V")
	cmd.Stdin, cmd.Env = strings.NewReader(strings.Join(names, "\n")), append(os.Environ(), "LC_ALL=C")
	return strings.Fields(run(t, cmd))
}

// The order is: ours, the plain entry, the previous pair, then the next kernel's.
func TestOrder(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			for _, counter := range []string{"", "+2-1"} {
				dir, groups := makeShape(t, name, counter)
				onlyPlain := func(names []string) []string {
					return slices.DeleteFunc(names, func(n string) bool { return groups[n] == nil })
				}
				check := func(loader string, got []string, group ...int) {
					t.Helper()
					want := wanted(onlyPlain(slices.Clone(got)), groups)
					for i := range want { // in another order than 0, 1, 2
						if i%3 == 0 && group != nil {
							g := slices.Clone(want[i : i+3])
							want[i], want[i+1], want[i+2] = g[group[0]], g[group[1]], g[group[2]]
						}
					}
					if len(want) != 3*len(shape.versions) || !slices.Equal(got, want) {
						t.Errorf("%s, counter %q:\ngot\n  %s\nwant\n  %s", loader, counter, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
					}
				}
				check("systemd-boot", menu(t, dir, systemdBoot(false)))
				if counter == "" || strings.Contains(shape.text, "sort-key") {
					check("systemd-boot 252", menu(t, dir, systemdBoot(true)))
				} else if got := menu(t, dir, systemdBoot(true)); groups[got[0]] == nil {
					t.Errorf("systemd-boot 252 puts %s first; the package's documentation says that it is a plain entry", got[0])
				}
				switch {
				case counter != "": // GRUB knows no counters
				case shape.grub:
					check("GRUB 2.14", grub214(t, names(t, dir)))
					check("Fedora's GRUB", menu(t, dir, fedoraGrub))
				default: // the package's documentation says what is different
					check("GRUB 2.14", grub214(t, names(t, dir)))
					check("Fedora's GRUB", menu(t, dir, fedoraGrub), 0, 2, 1)
				}
			}
		})
	}
}

// Where the version of a kernel continues that of another one, their entries are
// not side by side, but one of ours is the first.
func TestOrderContinued(t *testing.T) {
	for _, sortKey := range []string{"", "sort-key x\n"} {
		dir := boot(t, nil)
		for _, v := range []string{"6.8.0", "6.8.0-custom", "6.8.0.1"} {
			plain := ParseBLS("t-"+v+".conf", []byte("version "+v+"\n"+sortKey+"linux /l\n"))
			write(t, filepath.Join(entriesDir(dir), plain.Name), string(plain.Format()))
			mustWrite(t, Plan{Boot: dir, Version: v, Plain: plain, Initrd: "/i", Previous: "/p"})
		}
		for loader, got := range map[string][]string{
			"systemd-boot": menu(t, dir, systemdBoot(false)), "GRUB 2.14": grub214(t, names(t, dir)), "Fedora's GRUB": menu(t, dir, fedoraGrub),
		} {
			if len(got) != 9 || !strings.HasSuffix(got[0], ".initoverlayfs.conf") || strings.Contains(got[0], "backup") {
				t.Errorf("%s begins with %q", loader, got)
			}
		}
	}
}

// An entry whose tries are used up is no default any more, in whatever shape.
func TestOrderExhausted(t *testing.T) {
	dir, groups := makeShape(t, "kernel-install, machine ID", "+3")
	want := menu(t, dir, systemdBoot(false))
	tired := strings.Replace(want[0], "+3", "+0-3", 1)
	if err := os.Rename(filepath.Join(entriesDir(dir), want[0]), filepath.Join(entriesDir(dir), tired)); err != nil {
		t.Fatal(err)
	}
	if want = append(want[1:], tired); groups[want[0]] == nil {
		t.Fatalf("%s comes after ours, which is not a plain entry", want[0])
	}
	if got := menu(t, dir, systemdBoot(false)); !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
	if got := bootctl(t, "bootctl-bookworm", dir); !slices.Equal(got, ids(want)) {
		t.Errorf("bootctl says %q; want %q", got, want)
	}
}

func ids(names []string) []string {
	var ids []string
	for _, n := range names {
		id, _ := splitName(n)
		ids = append(ids, id+".conf")
	}
	return ids
}

// bootctl gives the IDs that "bootctl list" shows, having checked that the first
// one is the default. It wants the root of a filesystem.
func bootctl(t *testing.T, fixture, dir string) []string {
	t.Helper()
	unshare := []string{"--mount", "--map-root-user", "--propagation", "private"}
	if err := exec.Command(program(t, "unshare"), append(unshare, "mount", "-t", "tmpfs", "none", t.TempDir())...).Run(); err != nil {
		notHere(t, fmt.Sprintf("unshare %q: %v", unshare, err))
	}
	esp := t.TempDir()
	cmd := exec.Command("unshare", append(unshare, "sh", "-euc",
		`mount -t tmpfs none "$2"; cp -r "$3/." "$2"; exec "$1" --esp-path="$2" --no-pager list`,
		"sh", filepath.Join(fixtures.Path(t, fixture), "bootctl"), esp, dir)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_RELAX_ESP_CHECKS=1", "LC_ALL=C", "SYSTEMD_LOG_LEVEL=warning")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bootctl list: %v\n%s", err, stderr.String())
	}
	for line := range strings.Lines(stderr.String()) {
		tilde := strings.Contains(line, "Invalid loader entry name: ") && strings.Contains(line, "~")
		if !tilde && !strings.Contains(line, "Unknown line 'grub_") {
			t.Errorf("bootctl list: %s", line)
		}
	}
	var got []string
	var isDefault []bool
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key {
		case "title":
			isDefault = append(isDefault, strings.Contains(value, "(default)"))
		case "id":
			got = append(got, value)
		}
	}
	if len(isDefault) != len(got) || slices.Index(isDefault, true) != 0 || slices.Contains(isDefault[1:], true) {
		t.Fatalf("the default is not the first:\n%s", out)
	}
	return got
}

// systemd's own program agrees. It passes over names with a tilde, which are made
// for GRUB, and says so.
func TestOrderAsBootctl(t *testing.T) {
	menus := map[string]string{} // $BOOT by what it has
	for name := range shapes {
		for _, counter := range []string{"", "+3"} {
			menus[name+", counter "+counter], _ = makeShape(t, name, counter)
		}
	}
	for _, fixture := range []string{"bootctl-bookworm", "bootctl-sid"} {
		t.Run(fixture, func(t *testing.T) {
			for name, dir := range menus {
				want := slices.DeleteFunc(menu(t, dir, systemdBoot(false)), func(n string) bool { return strings.Contains(n, "~") })
				if got := bootctl(t, fixture, dir); !slices.Equal(got, ids(want)) {
					t.Errorf("%s:\ngot\n  %s\nwant\n  %s", name, strings.Join(got, "\n  "), strings.Join(ids(want), "\n  "))
				}
			}
		})
	}
}

// rpm's own program agrees with the comparison that stands here for GRUB's. It
// wants versions without a minus, which is what GRUB compares, and no empty ones.
func TestRPMCompareAsRPM(t *testing.T) {
	versions := []string{"a", "1", "01", "1~", "a1b", "1.a", "1a", "1..a_"}
	for _, v := range append(debianVersions, fedoraVersions...) {
		last := v[strings.LastIndexByte(v, '-')+1:]
		versions = append(versions, last, last+".initoverlayfs", last+"~initoverlayfs", last+".backup.initoverlayfs")
	}
	script := fmt.Sprintf("local v={'%s'} for _,a in ipairs(v) do for _,b in ipairs(v) do print(rpm.vercmp(a,b)..' ') end end", strings.Join(versions, "','"))
	got := strings.Fields(run(t, exec.Command(program(t, "rpm"), "--eval", "%{lua:"+script+"}")))
	if len(got) != len(versions)*len(versions) {
		t.Fatalf("%d answers for %d versions", len(got), len(versions))
	}
	for i, a := range versions {
		for j, b := range versions {
			want, err := strconv.Atoi(got[i*len(versions)+j])
			if err != nil {
				t.Fatal(err)
			}
			if c := rpmCompare(a, b); sign(c) != want {
				t.Errorf("rpmCompare(%q, %q) = %d; rpm says %d", a, b, c, want)
			}
		}
	}
}
