package systemd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	archives "github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// file is one path with all that a conversion must keep.
type file struct {
	Mode     uint32
	UID, GID uint32
	MTime    int64 // seconds
	Size     int64 // of regular files
	Device   string
	Target   string
	SHA256   string
	// Names are those of the same file, sorted, if there are several.
	Names []string
}

// files lists what lies on the disk below dir, as the kernel shows it.
func files(t *testing.T, dir string) map[string]file {
	t.Helper()
	all := make(map[string]file)
	type inode struct{ dev, ino uint64 }
	names := make(map[inode][]string)
	links := make(map[inode]uint64)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		f := file{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Sec}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			f.Size, f.SHA256 = st.Size, fmt.Sprintf("%x", sha256.Sum256(content))
		case unix.S_IFLNK:
			if f.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			f.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		all[name] = f
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			i := inode{st.Dev, st.Ino}
			names[i] = append(names[i], name) // in the order of the walk, which sorts
			links[i] = st.Nlink
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, same := range names {
		if links[i] != uint64(len(same)) {
			t.Errorf("%s: %d names for a file of link count %d: %v", dir, len(same), links[i], same)
		}
		for _, name := range same {
			if f := all[name]; len(same) > 1 {
				f.Names = slices.Clone(same)
				all[name] = f
			}
		}
	}
	return all
}

// without takes the changed paths out of a listing, and out of the names of
// what is left.
func without(all map[string]file, changes []bootconf.Change) map[string]file {
	changed := func(name string) bool {
		return slices.ContainsFunc(changes, func(c bootconf.Change) bool { return c.Path == name })
	}
	rest := make(map[string]file)
	for name, f := range all {
		if changed(name) {
			continue
		}
		f.Names = slices.DeleteFunc(slices.Clone(f.Names), changed)
		if len(f.Names) < 2 {
			f.Names = nil
		}
		rest[name] = f
	}
	return rest
}

// unpackWithCPIO unpacks an initramfs with GNU cpio.
func unpackWithCPIO(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	var times []archives.Header
	for _, segment := range segments(t, archive) {
		// Unconditionally: a later archive overrides an earlier one.
		cmd := exec.Command("cpio", "--extract", "--make-directories", "--preserve-modification-time", "--unconditional", "--quiet")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(segment)
		run(t, cmd)
		// It leaves directories with the time of their last entry, and links
		// with the time of now.
		for r := archives.NewReader(bytes.NewReader(segment)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Mode.IsDir() || h.Mode&archives.ModeType == archives.TypeSymlink {
				times = append(times, *h)
			}
		}
	}
	// As the kernel does it: of a directory that comes twice, the first one's.
	for _, h := range slices.Backward(times) {
		at := []unix.Timespec{{Sec: h.ModTime.Unix()}, {Sec: h.ModTime.Unix()}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, h.Name), at, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// segments gives the cpio archives of an initramfs, those that zstd has
// compressed as they were before.
func segments(t *testing.T, path string) (list [][]byte) {
	t.Helper()
	rest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for len(rest) > 0 {
		switch {
		case bytes.HasPrefix(rest, zstdMagic):
			cmd := exec.Command("zstd", "--decompress", "--stdout", "--quiet")
			cmd.Stdin = bytes.NewReader(rest)
			return append(list, run(t, cmd))
		case bytes.HasPrefix(rest, newcMagic):
			end := endOfArchive(rest)
			list, rest = append(list, rest[:end]), bytes.TrimLeft(rest[end:], "\x00")
		default:
			t.Fatalf("%s: begins neither cpio nor zstd after %d archives: %x", path, len(list), rest[:min(8, len(rest))])
		}
	}
	return list
}

var (
	newcMagic = []byte("070701")
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// endOfArchive finds the trailer that padding and another archive follow. A
// file in the archive may have the same text.
func endOfArchive(data []byte) int {
	trailer := []byte("TRAILER!!!\x00")
	for at := 0; ; {
		i := bytes.Index(data[at:], trailer)
		if i < 0 {
			return len(data)
		}
		at += i + len(trailer)
		next := bytes.TrimLeft(data[at:], "\x00")
		if len(next) == 0 || bytes.HasPrefix(next, newcMagic) || bytes.HasPrefix(next, zstdMagic) {
			return len(data) - len(next)
		}
	}
}

// The image of an initramfs has every path of it with its mode, owner, time,
// size, content, names and device number, except for what the manifest lists:
// our program in place of others, and modules that xz unpacks to what is there.
// Nothing of the project looks at either side: GNU cpio unpacks the archive, and
// the image is mounted by the machine's kernel and extracted by fsck.erofs.
func TestTreeIsTheSource(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can unpack owners and device nodes, and mount")
	}
	needTools(t, "cpio", "zstd", "xz", "mount")
	for _, test := range []struct {
		kernel, initramfs, kind string
		changes                 []string
		names                   int // of the file that has the most
		modules                 int // at least, that were packed
		all                     bool
	}{
		{"kernel-6.1", "dracut-6.1.img", bootconf.KindDracutSystemd, nil, 1, 0, false},
		// Half of the names are busybox.
		{"kernel-6.1", "initramfs-tools-6.1.img", bootconf.KindInitramfsTools, []string{"usr/sbin/run-init", "usr/sbin/switch_root"}, 250, 0, false},
		{"kernel-6.1", "dracut-nosystemd-6.1.img", bootconf.KindDracut, []string{"usr/sbin/switch_root"}, 1, 0, true},
		{"kernel-sid", "dracut-sid.img", bootconf.KindDracutSystemd, nil, 1, 500, true},
	} {
		t.Run(test.initramfs, func(t *testing.T) {
			if test.all {
				fixtures.RequireBoots(t, fixtures.All)
			}
			b := build(t, test.kernel, test.initramfs, "--backend", "block", "--image-compress", fastImage)
			if b.Source.Kind != test.kind {
				t.Errorf("kind %s, want %s", b.Source.Kind, test.kind)
			}
			var paths, modules []string
			for _, c := range b.Changes {
				if strings.HasSuffix(c.Path, ".ko.xz") {
					modules = append(modules, c.Path)
				} else {
					paths = append(paths, c.Path)
				}
			}
			if got := len(modules); got < test.modules || test.modules == 0 && got > 0 {
				t.Errorf("%d modules are unpacked, want %d or more", got, test.modules)
			}
			if diff := cmp.Diff(test.changes, paths); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			sourceDir := unpackWithCPIO(t, b.source)
			source := files(t, sourceDir)
			want := without(source, b.Changes)
			most := 0
			for _, f := range source {
				most = max(most, len(f.Names))
			}
			if len(want) < 200 || most < test.names {
				t.Errorf("%d paths, at most %d names of a file: this tree proves little", len(want), most)
			}
			t.Logf("%d paths, at most %d names of a file", len(source), most)

			t.Run("mount", func(t *testing.T) {
				image := files(t, mounted(t, b.image()))
				ours := fileDigest(t, filepath.Join(filepath.Dir(mustProgram(t)), "storage-init"))
				for _, path := range paths {
					if f, old := image[path], source[path]; f.SHA256 != ours || f.Mode != old.Mode || f.UID != 0 || f.GID != 0 {
						t.Errorf("%s is not our program: %+v", path, f)
					}
				}
				for _, path := range modules {
					unpacked := source[path]
					module := run(t, exec.Command("xz", "--decompress", "--stdout", filepath.Join(sourceDir, path)))
					unpacked.Size, unpacked.SHA256 = int64(len(module)), fmt.Sprintf("%x", sha256.Sum256(module))
					if diff := cmp.Diff(unpacked, image[path]); diff != "" {
						t.Errorf("%s (-unpacked source +image):\n%s", path, diff)
					}
				}
				if diff := cmp.Diff(want, without(image, b.Changes)); diff != "" {
					t.Errorf("image (-source +image):\n%s", diff)
				}
			})
			t.Run("fsck.erofs", func(t *testing.T) {
				// Version 1.5 does not know fragments.
				fsck := filepath.Join(fixtures.Path(t, "erofs-utils-1.9"), "fsck.erofs")
				dir := filepath.Join(t.TempDir(), "extracted")
				run(t, exec.Command(fsck, "--extract="+dir, "--preserve", b.image()))
				extracted := without(files(t, dir), b.Changes)
				if diff := cmp.Diff(want, extracted); diff != "" {
					t.Errorf("image (-source +extracted):\n%s", diff)
				}
			})
		})
	}
}

// The comparison sees each difference that there can be.
func TestTreeComparisonSees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make other owners and device nodes")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tree := func(change func(path func(name string) string)) map[string]file {
		dir := t.TempDir()
		path := func(name string) string { return filepath.Join(dir, name) }
		must(os.Mkdir(path("dir"), 0o755))
		must(os.WriteFile(path("dir/file"), []byte("content"), 0o644))
		must(os.WriteFile(path("one"), []byte("linked"), 0o644))
		must(os.Link(path("one"), path("two")))
		must(os.Symlink("one", path("symlink")))
		must(unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		at := []unix.Timespec{{Sec: 1_700_000_000}, {Sec: 1_700_000_000}}
		settle := func() {
			for _, name := range []string{"dir/file", "one", "symlink", "null", "dir", "."} {
				must(unix.UtimesNanoAt(unix.AT_FDCWD, path(name), at, unix.AT_SYMLINK_NOFOLLOW))
			}
		}
		settle()
		change(path)
		return files(t, dir)
	}
	keepTime := func(name string, change func(name string)) func(func(string) string) {
		return func(path func(string) string) {
			change(path(name))
			at := []unix.Timespec{{Sec: 1_700_000_000}, {Sec: 1_700_000_000}}
			for _, name := range []string{name, filepath.Dir(name), "."} {
				must(unix.UtimesNanoAt(unix.AT_FDCWD, path(name), at, unix.AT_SYMLINK_NOFOLLOW))
			}
		}
	}
	same := tree(func(func(string) string) {})
	if diff := cmp.Diff(same, tree(func(func(string) string) {})); diff != "" {
		t.Fatalf("two equal trees (-first +second):\n%s", diff)
	}
	for name, change := range map[string]func(path func(string) string){
		"mode of a file":      func(path func(string) string) { must(os.Chmod(path("dir/file"), 0o600)) },
		"mode of a directory": func(path func(string) string) { must(os.Chmod(path("dir"), 0o711)) },
		"owner":               func(path func(string) string) { must(os.Lchown(path("symlink"), 1, 0)) },
		"group":               func(path func(string) string) { must(os.Lchown(path("dir/file"), 0, 1)) },
		"time": func(path func(string) string) {
			at := []unix.Timespec{{Sec: 1_700_000_001}, {Sec: 1_700_000_001}}
			must(unix.UtimesNanoAt(unix.AT_FDCWD, path("symlink"), at, unix.AT_SYMLINK_NOFOLLOW))
		},
		"one byte": keepTime("dir/file", func(path string) { must(os.WriteFile(path, []byte("contenT"), 0o644)) }),
		"target": keepTime("symlink", func(path string) {
			must(os.Remove(path))
			must(os.Symlink("two", path))
		}),
		"device number": keepTime("null", func(path string) {
			must(os.Remove(path))
			must(unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
		}),
		"device type": keepTime("null", func(path string) {
			must(os.Remove(path))
			must(unix.Mknod(path, unix.S_IFBLK|0o666, int(unix.Mkdev(1, 3))))
		}),
		"copy in place of a link": keepTime("two", func(path string) {
			must(os.Remove(path))
			must(os.WriteFile(path, []byte("linked"), 0o644))
		}),
		"path too many": keepTime("dir/more", func(path string) { must(os.WriteFile(path, nil, 0o644)) }),
		"path missing":  func(path func(string) string) { must(os.Remove(path("null"))) },
	} {
		if diff := cmp.Diff(same, tree(change)); diff == "" {
			t.Errorf("%s: not seen", name)
		}
	}
}

// mounted mounts an image read-only and gives the folder.
func mounted(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	if text, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("this machine's kernel does not mount the image: %v: %s", err, text)
	}
	t.Cleanup(func() {
		if text, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, text)
		}
	})
	return dir
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

func mustProgram(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
