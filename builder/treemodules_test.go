package builder

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

const (
	modulesKver = "6.1.0-9-amd64" // of oldKernel
	modulesDir  = "usr/lib/modules/" + modulesKver
)

// signedModule is the content of a module.
func signedModule(name string) []byte {
	m := kmodtest.ELF(kmodtest.Module{File: name})
	return kmodtest.Sign(append(m, bytes.Repeat([]byte(name), 5000)...))
}

// packedModuleTree has a tree of dracut by its paths, with modules of each
// format and what must stay as it is.
func packedModuleTree(t *testing.T) map[string][]byte {
	t.Helper()
	tree := map[string][]byte{
		"usr/lib/dracut/build-parameter.txt": []byte("-N"),
		"usr/lib/systemd/systemd":            []byte("ELF"),
		modulesDir + "/modules.dep":          []byte("kernel/a.ko.xz: kernel/b.ko.zst\n"),
		modulesDir + "/kernel/plain.ko":      signedModule("plain"),
		// By its name another format, and none: libkmod looks at the bytes.
		modulesDir + "/kernel/named.ko.xz":       kmodtest.Pack(t, "x.ko.zst", signedModule("named")),
		modulesDir + "/kernel/is-unpacked.ko.xz": signedModule("is-unpacked"),
		// Another kernel's, and no module.
		"usr/lib/modules/5.10.0/kernel/a.ko.xz": kmodtest.Pack(t, "a.ko.xz", signedModule("a")),
		"usr/lib/firmware/f.bin.xz":             kmodtest.Pack(t, "f.xz", []byte("firmware")),
		modulesDir + "/empty.ko.xz":             nil,
	}
	for _, name := range []string{"a.ko.xz", "b.ko.zst", "c.ko.gz"} {
		tree[modulesDir+"/kernel/"+name] = kmodtest.Pack(t, name, signedModule(name))
	}
	return tree
}

// onDisk writes a tree into a folder; every entry has one time.
func onDisk(t *testing.T, tree map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range tree {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"init": "usr/lib/systemd/systemd", "lib": "usr/lib"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	settleTimes(t, dir)
	return dir
}

func settleTimes(t *testing.T, dir string) {
	t.Helper()
	at := []unix.Timespec{{Sec: 1_600_000_000}, {Sec: 1_600_000_000}}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = unix.UtimesNanoAt(unix.AT_FDCWD, path, at, unix.AT_SYMLINK_NOFOLLOW)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// archiveOfDir makes the archive of a folder.
func archiveOfDir(t *testing.T, dir string) string {
	t.Helper()
	a := newArchive(t)
	written := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h := cpio.Header{Name: name, Ino: uint32(st.Ino), Mode: st.Mode, UID: st.Uid, GID: st.Gid, NLink: uint32(st.Nlink), MTime: st.Mtim.Sec}
		var body []byte
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			body = []byte(target)
		case st.Mode&unix.S_IFMT == unix.S_IFREG && !written[st.Ino]:
			written[st.Ino] = true
			if body, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		a.add(h, string(body))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.save()
}

// storedModules runs storeModules on a source, and gives every file's content,
// the changes and the warnings.
func storedModules(t *testing.T, src Source, p Producer, o modulesOptions) (contents map[string][]byte, tree *fullTree, changes []bootconf.Change, warnings []string) {
	t.Helper()
	image := testLayouts()["lz4"]
	image.TempDir = t.TempDir()
	tree, err := readTree(context.Background(), src, p, image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.close)
	o.temp, o.warn = t.TempDir(), func(s string) { warnings = append(warnings, s) }
	if changes, err = tree.storeModules(context.Background(), KindOf(tree.Tree), modulesKver, o); err != nil {
		t.Fatal(err)
	}
	if left := namesIn(t, o.temp); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	contents = map[string][]byte{}
	err = tree.Walk(func(path string, n *cpio.Node) error {
		if n.Type() != cpio.TypeRegular {
			return nil
		}
		contents[path] = nil
		if n.Size == 0 {
			return nil
		}
		r, err := tree.writer.Open(n.Ref)
		if err != nil {
			return err
		}
		defer r.Close()
		contents[path], err = io.ReadAll(r)
		if int64(len(contents[path])) != n.Size {
			t.Errorf("%s: size %d, but %d bytes", path, n.Size, len(contents[path]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return contents, tree, changes, warnings
}

func TestStoreModules(t *testing.T) {
	files := packedModuleTree(t)
	dir := onDisk(t, files)
	archive := archiveOfDir(t, dir)
	unpacked := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, name := range names {
			m[modulesDir+"/kernel/"+name] = reasonUnpacked
		}
		return m
	}
	all := []string{"a.ko.xz", "b.ko.zst", "c.ko.gz", "named.ko.xz"}
	stripped := unpacked(all...)
	for path := range stripped {
		stripped[path] = reasonUnpackedStripped
	}
	stripped[modulesDir+"/kernel/plain.ko"] = reasonStripped
	stripped[modulesDir+"/kernel/is-unpacked.ko.xz"] = reasonStripped
	tests := map[string]struct {
		options modulesOptions
		want    map[string]string
	}{
		"unpack": {modulesOptions{unpack: true}, unpacked(all...)},
		"strip":  {modulesOptions{unpack: true, strip: true}, stripped},
		"strip what is not packed": {modulesOptions{strip: true}, map[string]string{
			modulesDir + "/kernel/plain.ko": reasonStripped, modulesDir + "/kernel/is-unpacked.ko.xz": reasonStripped,
		}},
		"keep": {modulesOptions{}, map[string]string{}},
	}
	producers := map[string]Producer{"native": native{}}
	if _, err := lookTool("mkfs.erofs", ""); err == nil {
		if _, err := lookTool("fakeroot", ""); err == nil {
			producers["mkfs.erofs"] = mkfsErofs{}
		}
	}
	for name, test := range tests {
		for producer, p := range producers {
			for source, src := range map[string]Source{"archive": {Archive: archive}, "directory": {Dir: dir}} {
				t.Run(name+"/"+producer+"/"+source, func(t *testing.T) {
					contents, _, changes, warnings := storedModules(t, src, p, test.options)
					if len(warnings) > 0 {
						t.Errorf("warnings %q", warnings)
					}
					got := map[string]string{}
					for _, c := range changes {
						got[c.Path] = c.Reason
					}
					if diff := cmp.Diff(test.want, got); diff != "" || len(got) != len(changes) {
						t.Errorf("%d changes (-want +got):\n%s", len(changes), diff)
					}
					if !slices.IsSortedFunc(changes, func(a, b bootconf.Change) int { return strings.Compare(a.Path, b.Path) }) {
						t.Error("the changes are not sorted")
					}
					for path, content := range files {
						want := content
						if reason := test.want[path]; reason != "" {
							name := filepath.Base(path)
							want = signedModule(strings.TrimSuffix(strings.TrimSuffix(name, ".xz"), ".ko"))
							if slices.Contains(all[:3], name) {
								want = signedModule(name)
							}
							if reason != reasonUnpacked {
								// Sign appends 600 bytes of signature and 40 that tell of it.
								want = want[:len(want)-640]
							}
						}
						if !bytes.Equal(contents[path], want) {
							t.Errorf("%s has %d bytes, want %d", path, len(contents[path]), len(want))
						}
					}
				})
			}
		}
	}
}

// The names of a file are of one node, before and after.
func TestStoreModulesHardLinks(t *testing.T) {
	dir := onDisk(t, packedModuleTree(t))
	for from, to := range map[string]string{
		"kernel/a.ko.xz":  modulesDir + "/updates/a2.ko.xz", // a module under both names
		"kernel/b.ko.zst": "usr/lib/backup-of-b",            // somebody else may want it packed
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(to)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, modulesDir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	settleTimes(t, dir)
	for source, src := range map[string]Source{"archive": {Archive: archiveOfDir(t, dir)}, "directory": {Dir: dir}} {
		contents, tree, changes, _ := storedModules(t, src, native{}, modulesOptions{unpack: true})
		var paths []string
		for _, c := range changes {
			paths = append(paths, strings.TrimPrefix(c.Path, modulesDir+"/"))
		}
		want := []string{"kernel/a.ko.xz", "kernel/c.ko.gz", "kernel/named.ko.xz", "updates/a2.ko.xz"}
		if diff := cmp.Diff(want, paths); diff != "" {
			t.Errorf("%s: changes (-want +got):\n%s", source, diff)
		}
		for _, path := range []string{modulesDir + "/kernel/a.ko.xz", modulesDir + "/updates/a2.ko.xz"} {
			if !bytes.Equal(contents[path], signedModule("a.ko.xz")) {
				t.Errorf("%s: %s is not the module", source, path)
			}
		}
		if n := tree.Lookup(modulesDir + "/kernel/a.ko.xz"); n != tree.Lookup(modulesDir+"/updates/a2.ko.xz") || n.NLink != 2 {
			t.Errorf("%s: the names are not of one file any more", source)
		}
		if !bytes.Equal(contents["usr/lib/backup-of-b"], kmodtest.Pack(t, "b.ko.zst", signedModule("b.ko.zst"))) {
			t.Errorf("%s: a name outside of the modules has other bytes", source)
		}
	}
}

// What cannot be unpacked stays, with a warning that names it.
func TestStoreModulesDamaged(t *testing.T) {
	good := map[string][]byte{}
	for _, ext := range []string{"xz", "zst", "gz"} {
		good[ext] = kmodtest.Pack(t, "m.ko."+ext, signedModule("m"))
	}
	flipped := func(ext string) []byte {
		b := bytes.Clone(good[ext])
		b[len(b)/2] ^= 0x55
		return b
	}
	shortSignature := append([]byte("\x7fELF"), "~Module signature appended~\n"...)
	for name, damaged := range map[string]struct {
		file    string
		content []byte
		strip   bool
		want    string
	}{
		"xz cut":         {"m.ko.xz", good["xz"][:len(good["xz"])-9], false, "unexpected EOF"},
		"zst cut":        {"m.ko.zst", good["zst"][:len(good["zst"])-9], false, "unexpected EOF"},
		"gz cut":         {"m.ko.gz", good["gz"][:len(good["gz"])-9], false, "unexpected EOF"},
		"xz header only": {"m.ko.xz", good["xz"][:6], false, "near offset 6: read xz: unexpected EOF"},
		"xz flipped":     {"m.ko.xz", flipped("xz"), false, "read xz"},
		"zst flipped":    {"m.ko.zst", flipped("zst"), false, "read zstd"},
		"gz flipped":     {"m.ko.gz", flipped("gz"), false, "read gzip"},
		"bytes behind":   {"m.ko.xz", append(bytes.Clone(good["xz"]), 0, 0, 0, 0), false, "bytes behind the end of the xz data"},
		"no module":      {"m.ko.gz", kmodtest.Pack(t, "m.ko.gz", []byte("text")), false, "not an ELF file"},
		"signature":      {"m.ko.gz", kmodtest.Pack(t, "m.ko.gz", shortSignature), true, "signature: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			path := modulesDir + "/kernel/" + damaged.file
			files := packedModuleTree(t)
			files[path] = damaged.content
			contents, _, changes, warnings := storedModules(t, Source{Dir: onDisk(t, files)}, native{},
				modulesOptions{unpack: true, strip: damaged.strip})
			if !bytes.Equal(contents[path], damaged.content) {
				t.Error("the damaged module is not as it was")
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], path) || !strings.Contains(warnings[0], damaged.want) {
				t.Errorf("warnings %q, want one with %q", warnings, damaged.want)
			}
			// The others are unpacked all the same.
			if len(changes) < 4 || !bytes.HasPrefix(contents[modulesDir+"/kernel/named.ko.xz"], []byte("\x7fELF")) {
				t.Errorf("%d changes", len(changes))
			}
		})
	}
}

// A tree whose init may go by the names of modules keeps them packed, and so
// does a module whose content has a digest beside it.
func TestStoreModulesLeavesAlone(t *testing.T) {
	files := packedModuleTree(t)
	delete(files, "usr/lib/dracut/build-parameter.txt")
	if _, _, changes, _ := storedModules(t, Source{Dir: onDisk(t, files)}, native{}, modulesOptions{unpack: true}); len(changes) > 0 {
		t.Errorf("changes in a tree of unknown kind: %v", changes)
	}
	image := testLayouts()["lz4"]
	image.TempDir = t.TempDir()
	tree, err := readTree(context.Background(), Source{Dir: onDisk(t, packedModuleTree(t))}, native{}, image)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	tree.Lookup(modulesDir + "/kernel/a.ko.xz").Xattrs = map[string][]byte{"security.ima": {3}}
	tree.Lookup(modulesDir + "/kernel/b.ko.zst").Xattrs = map[string][]byte{"security.evm": {5}}
	changes, err := tree.storeModules(context.Background(), bootconf.KindDracut, modulesKver,
		modulesOptions{unpack: true, temp: t.TempDir(), warn: func(s string) { t.Error(s) }})
	if err != nil || len(changes) != 2 {
		t.Errorf("changes %v, %v; want those of the two other packed modules", changes, err)
	}
}

// What is not the module's fault ends the build.
func TestStoreModulesFails(t *testing.T) {
	files := packedModuleTree(t)
	for name, test := range map[string]struct {
		damage func(dir string, o *modulesOptions)
		want   string
	}{
		"source changed": {func(dir string, _ *modulesOptions) {
			if err := os.WriteFile(filepath.Join(dir, modulesDir, "kernel/a.ko.xz"), []byte("other"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, modulesDir + "/kernel/a.ko.xz: the file changed"},
		"no folder": {func(_ string, o *modulesOptions) { o.temp = "/nonexistent" }, "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := onDisk(t, files)
			image := testLayouts()["lz4"]
			image.TempDir = t.TempDir()
			tree, err := readTree(context.Background(), Source{Dir: dir}, native{}, image)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.close()
			o := modulesOptions{unpack: true, temp: t.TempDir(), warn: func(s string) { t.Error(s) }}
			test.damage(dir, &o)
			_, err = tree.storeModules(context.Background(), bootconf.KindDracut, modulesKver, o)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tree, err := readTree(context.Background(), Source{Dir: onDisk(t, files)}, native{}, testLayouts()["lz4"])
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	if _, err := tree.storeModules(ctx, bootconf.KindDracut, modulesKver, modulesOptions{unpack: true, temp: t.TempDir()}); err == nil {
		t.Error("a cancelled run goes on")
	}
}

// The image of a directory is that of its archive; modules that are kept, or lose
// their signatures, make another.
func TestBuildModules(t *testing.T) {
	dir := onDisk(t, packedModuleTree(t))
	archive := archiveOfDir(t, dir)
	build := func(src Source, edit func(o *Options)) (*bootconf.Manifest, []byte) {
		t.Helper()
		o := buildOptions(t, oldKernel(), "", "backend block")
		o.Source = src
		if edit != nil {
			edit(&o)
		}
		m, err := Build(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if left := namesIn(t, o.Image.TempDir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		return m, readOutput(t, o.OutputDir)[m.Image.File]
	}
	m, image := build(Source{Archive: archive}, nil)
	if len(m.Changes) != 4 {
		t.Errorf("changes %v, want 4", m.Changes)
	}
	other, same := build(Source{Dir: dir}, nil)
	if !bytes.Equal(image, same) || other.Image.UUID != m.Image.UUID {
		t.Errorf("the image of the directory (%s) is not that of the archive (%s)", other.Image.UUID, m.Image.UUID)
	}
	if diff := cmp.Diff(m.Changes, other.Changes); diff != "" {
		t.Errorf("changes (-archive +directory):\n%s", diff)
	}
	kept, _ := build(Source{Archive: archive}, func(o *Options) { o.KeepCompressedModules = true })
	if len(kept.Changes) != 0 || kept.Image.UUID == m.Image.UUID {
		t.Errorf("kept modules: changes %v, UUID %s", kept.Changes, kept.Image.UUID)
	}
	stripped, _ := build(Source{Archive: archive}, func(o *Options) { o.StripModuleSignature = true })
	if len(stripped.Changes) != 6 || stripped.Image.UUID == m.Image.UUID {
		t.Errorf("stripped modules: changes %v, UUID %s", stripped.Changes, stripped.Image.UUID)
	}
}
