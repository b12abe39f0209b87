package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/erofs"
)

// utils is a version of erofs-utils.
type utils struct {
	version    string // "1.5"
	mkfs, fsck string
}

var versionPattern = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

// allUtils finds the erofs-utils on the path, and those in the folders that the
// environment variable EROFS_UTILS lists; in CI one of them must be 1.9, which
// knows every feature. There are none without the former.
func allUtils(t testing.TB) []utils {
	t.Helper()
	var all []utils
	for _, dir := range append([]string{""}, filepath.SplitList(os.Getenv("EROFS_UTILS"))...) {
		mkfs, err := exec.LookPath(filepath.Join(dir, "mkfs.erofs"))
		if err != nil {
			if dir != "" || os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		fsck, err := exec.LookPath(filepath.Join(dir, "fsck.erofs"))
		if err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(fsck, "-V").CombinedOutput()
		version := versionPattern.FindString(string(out))
		if version == "" {
			t.Fatalf("%s -V says no version: %s", fsck, out)
		}
		all = append(all, utils{version, mkfs, fsck})
	}
	if os.Getenv("CI") == "true" && !slices.ContainsFunc(all, func(u utils) bool { return u.version >= "1.9" }) {
		t.Fatal("no erofs-utils 1.9: set EROFS_UTILS to the folder of the fixture erofs-utils-1.9")
	}
	return all
}

// option sets of mkfs.erofs, with the first version that knows them.
var mkfsOptions = []struct{ since, options string }{
	{"1.5", ""},
	{"1.5", "-Enoinline_data"},
	{"1.5", "-Eforce-inode-extended"},
	{"1.5", "-T1700000000"},
	{"1.5", "-x-1"},
	{"1.5", "-x1 -Eforce-inode-extended"},
	{"1.5", "--chunksize=4096"},
	{"1.5", "--chunksize=65536 -Eforce-chunk-indexes"},
	{"1.5", "-zlz4"},
	{"1.5", "-zlz4 -Elegacy-compress"},
	{"1.5", "-zlz4hc,9 -Elegacy-compress -Eforce-inode-extended"},
	{"1.5", "-zlz4hc,9"},
	{"1.5", "-zlz4hc,12 -C16384"},
	{"1.5", "-zlz4hc,9 -C65536 -T1700000000"},
	{"1.5", "-zlz4hc,9 -C1048576"},
	{"1.5", "-zlz4 -C65536 --max-extent-bytes=70000"},
	{"1.5", "-zlz4hc,9 -Eztailpacking"},
	{"1.5", "-zlz4hc,9 -C65536 -Eztailpacking -Eforce-inode-extended"},
	{"1.9", "-zlz4hc,9 -C65536 -Efragments"},
	{"1.9", "-zlz4hc,9 -C65536 -Eall-fragments"},
	{"1.9", "-zlz4hc,9 -C16384 -Eztailpacking,fragments"},
	{"1.9", "-zlz4hc,9 -Ededupe"},
	{"1.9", "-zlz4hc,12 -C65536 -Eall-fragments,dedupe"},
	{"1.9", "-zlz4hc,9 -C65536 -Elegacy-compress,fragments,dedupe"},
	{"1.9", "-zlz4hc,9 -C65536 -Ededupe,ztailpacking"},
	{"1.9", "-zlz4hc,9 -C65536 -E48bit"},
	{"1.9", "-zlz4hc,9 -C65536 -E48bit,fragments,dedupe"},
	{"1.9", "--chunksize=65536 -E48bit"},
	{"1.9", "-zlz4hc,9 -C65536 --zD=1"},
	{"1.9", "-zlz4hc,9 -C65536 -m4096"},
	{"1.9", "-zlz4hc,9 -C65536 -m4096 --MZ=i"},
	{"1.9", "-zlz4hc,9 -b512 -C512"},
	{"1.9", "-b1024"},
	{"1.9", "-Edot-omitted"},
	{"1.9", "-zlz4hc,9 --xattr-prefix=user.long. -Exattr-name-filter"},
	{"1.9", "-zlz4hc,9 -Efragments,^plain-xattr-prefixes --xattr-prefix=user.long."},
}

// TestReadMkfs reads what mkfs.erofs makes, with every set of options, and finds
// what was in the source; Check finds nothing, and fsck.erofs neither.
func TestReadMkfs(t *testing.T) {
	src := t.TempDir()
	makeTree(t, src)
	for _, u := range allUtils(t) {
		for _, set := range mkfsOptions {
			if set.since > u.version {
				continue
			}
			t.Run(u.version+" "+set.options, func(t *testing.T) {
				t.Parallel()
				img := filepath.Join(t.TempDir(), "img")
				u.make(t, img, src, strings.Fields(set.options)...)
				f := open(t, img)
				image, err := erofs.Open(f, fileSize(t, f))
				if err != nil {
					t.Fatal(err)
				}
				compareTree(t, image, src, compareOptions{
					xattrs: !strings.Contains(set.options, "-x-1"),
					mtimes: !strings.Contains(set.options, "-T"),
					nsec:   strings.Contains(set.options, "-extended"),
				})
				report := erofs.Check(f, fileSize(t, f))
				if err := report.Err(); err != nil {
					t.Errorf("Check: %v", err)
				}
				if report.Inodes < 100 || report.Bytes < 1<<20 {
					t.Errorf("Check saw %d inodes, %d bytes", report.Inodes, report.Bytes)
				}
				if compressed := strings.Contains(set.options, "-z"); compressed != (report.Pclusters > 0) {
					t.Errorf("Check decoded %d pclusters", report.Pclusters)
				}
			})
		}
	}
}

func (u utils) make(t testing.TB, img, src string, options ...string) {
	t.Helper()
	cmd := exec.Command(u.mkfs, append(append([]string{"-U", testUUID.String()}, options...), img, src)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openImage(t testing.TB, path string) *erofs.FS {
	t.Helper()
	f := open(t, path)
	image, err := erofs.Open(f, fileSize(t, f))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func fileSize(t testing.TB, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// makeTree makes a tree with something for each part of the format.
func makeTree(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	text := func(n int) []byte {
		words := strings.Fields("the kernel reads pages of a file from blocks where clusters of it are kept and inodes say which")
		var b bytes.Buffer
		for b.Len() < n {
			fmt.Fprintf(&b, "%s %d ", words[rng.IntN(len(words))], rng.IntN(1000))
		}
		return b.Bytes()[:n]
	}
	write := func(name string, content []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, content, 0o644))
	}
	for _, n := range []int{0, 1, 2, 100, 511, 512, 4000, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 65535, 65536, 65537, 200000, 1100000} {
		write(fmt.Sprintf("sizes/text-%d", n), text(n))
		write(fmt.Sprintf("sizes/random-%d", n), random(n))
	}
	write("zeros", make([]byte, 3<<20))
	write("mixed", bytes.Join([][]byte{text(90000), random(50000), text(5000), make([]byte, 300000), random(7), text(300000)}, nil))
	shared := text(400000)
	write("dup/a", shared)
	write("dup/b", shared)
	write("dup/c", append(text(1000), shared...))
	write("dup/d", append(bytes.Clone(shared[:250000]), text(1000)...))
	for i := range 700 {
		write(fmt.Sprintf("many/%s-%d", strings.Repeat("n", i%60), i), []byte(fmt.Sprint(i)))
	}
	write("names/"+strings.Repeat("x", 254), []byte("long"))
	write("names/\xff\x01 \n", []byte("odd"))
	write("names/-", nil)
	write("names/..a", nil)
	deep := "deep"
	for i := range 40 {
		deep += fmt.Sprintf("/%d", i)
	}
	write(deep+"/file", []byte("deep"))
	must(os.MkdirAll(filepath.Join(dir, "empty"), 0o1777))
	must(os.Chmod(filepath.Join(dir, "empty"), os.ModeSticky|0o777))
	must(os.Chmod(filepath.Join(dir, "sizes/text-100"), os.ModeSetuid|0o711))
	must(os.Symlink("sizes/text-100", filepath.Join(dir, "link")))
	must(os.Symlink("/"+strings.Repeat("long/", 800), filepath.Join(dir, "broken")))
	must(os.Symlink("../link", filepath.Join(dir, "many/up")))
	must(os.Symlink("/dup", filepath.Join(dir, "absolute")))
	must(os.Symlink("loop", filepath.Join(dir, "loop")))
	must(os.Link(filepath.Join(dir, "mixed"), filepath.Join(dir, "dup/hard")))
	must(os.Link(filepath.Join(dir, "mixed"), filepath.Join(dir, "many/hard")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if os.Getuid() == 0 {
		must(unix.Mknod(filepath.Join(dir, "chr"), unix.S_IFCHR|0o620, int(unix.Mkdev(260, 70000))))
		must(unix.Mknod(filepath.Join(dir, "blk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 1))))
		must(os.Lchown(filepath.Join(dir, "sizes/text-512"), 70000, 80000))
		must(os.Lchown(filepath.Join(dir, "link"), 12, 13))
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	_, err = sparse.WriteAt(text(10000), 1<<20)
	must(err)
	must(sparse.Truncate(2 << 20))
	must(sparse.Close())
	xattr := func(name, key, value string) {
		t.Helper()
		if err := unix.Lsetxattr(filepath.Join(dir, name), key, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		name := fmt.Sprintf("xattrs/%d", i)
		write(name, text(i*700))
		xattr(name, "user.shared", "the same for all")
		xattr(name, "user.own", strings.Repeat("v", i*20))
		xattr(name, "user.long.prefix", fmt.Sprint(i/4))
		if os.Getuid() == 0 {
			xattr(name, "trusted.t", "t")
			xattr(name, "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		}
	}
	xattr("xattrs", "user.directory", "d")
	xattr("zeros", "user.shared", "the same for all")
	when := time.Unix(1_600_000_000, 123456789)
	must(os.Chtimes(filepath.Join(dir, "mixed"), when, when))
}

// compareOptions say what the image can have of the source.
type compareOptions struct {
	xattrs bool
	mtimes bool
	nsec   bool
}

// entry is what compareTree compares of a file.
type entry struct {
	Mode, UID, GID, NLink, Major, Minor uint32
	Size                                int64
	MTime                               time.Time
	Target                              string
	Xattrs                              map[string][]byte
}

func compareTree(t *testing.T, image *erofs.FS, src string, o compareOptions) {
	t.Helper()
	got, want := map[string]entry{}, map[string]entry{}
	err := image.Walk(func(path string, ino *erofs.Inode) error {
		e := entry{
			Mode: ino.Mode, UID: ino.UID, GID: ino.GID, NLink: ino.NLink,
			Major: ino.RdevMajor, Minor: ino.RdevMinor,
			MTime: time.Unix(ino.MTime, int64(ino.MTimeNsec)),
		}
		var err error
		if ino.IsRegular() {
			e.Size = ino.Size
		}
		if ino.IsSymlink() {
			if e.Target, err = ino.LinkTarget(); err != nil {
				return err
			}
		}
		if e.Xattrs, err = ino.Xattrs(); err != nil {
			return err
		}
		got[path] = e
		return nil
	})
	if err != nil {
		t.Errorf("Walk: %v", err)
	}
	err = filepath.WalkDir(src, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		e, err := sourceEntry(path)
		want[name] = e
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []map[string]entry{got, want} {
		for name, e := range m {
			if !o.mtimes {
				e.MTime = time.Time{}
			}
			if !o.nsec {
				e.MTime = e.MTime.Truncate(time.Second)
			}
			if !o.xattrs || len(e.Xattrs) == 0 {
				e.Xattrs = nil
			}
			m[name] = e
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree (-source +image):\n%s", diff)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for name, e := range want {
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		want, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		ino, err := image.Inode(name)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := io.ReadAll(io.NewSectionReader(ino, 0, ino.Size))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the source's %d", name, len(got), len(want))
		}
		for range 5 {
			off, n := rng.IntN(len(want)+10), rng.IntN(min(100000, len(want)+10))
			p := make([]byte, n)
			n, err := ino.ReadAt(p, int64(off))
			end := min(len(want), off+len(p))
			if off > end {
				off = end
			}
			if (err != nil) != (n < len(p)) && len(p) > 0 || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want[off:end]) {
				t.Errorf("%s: ReadAt of %d bytes at %d of %d: %d, %v", name, len(p), off, len(want), n, err)
			}
		}
	}
}

func sourceEntry(path string) (entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return entry{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e := entry{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, NLink: uint32(st.Nlink), MTime: info.ModTime(),
		Xattrs: map[string][]byte{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFLNK:
		if e.Target, err = os.Readlink(path); err != nil {
			return entry{}, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) {
		return e, nil
	}
	if err != nil {
		return entry{}, err
	}
	for key := range strings.SplitSeq(strings.Trim(string(list[:n]), "\x00"), "\x00") {
		if key == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, key, value)
		if err != nil {
			return entry{}, err
		}
		e.Xattrs[key] = value[:n]
	}
	return e, nil
}

// The file system keeps the rules of package io/fs.
func TestFS(t *testing.T) {
	u := allUtils(t)[0]
	src, img := t.TempDir(), filepath.Join(t.TempDir(), "img")
	for _, name := range []string{"a", "dir/b", "dir/c", "dir/sub/d"} {
		path := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat(name, 5000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := func(links map[string]string) *erofs.FS {
		t.Helper()
		for name, target := range links {
			if err := os.Symlink(target, filepath.Join(src, name)); err != nil {
				t.Fatal(err)
			}
		}
		u.make(t, img, src, "-zlz4hc")
		return openImage(t, img)
	}
	image := links(map[string]string{
		"to-b": "dir/b", "to-dir": "dir", "dir/to-a": "/a", "dir/sub/up": "../../../../../a",
	})
	if err := fstest.TestFS(image, "a", "dir/b", "dir/sub/d", "to-b"); err != nil {
		t.Error(err)
	}
	image = links(map[string]string{"broken": "none", "loop": "loop/loop"})
	for name, want := range map[string]string{
		"a": "a", "to-b": "dir/b", "to-dir/c": "dir/c", "dir/to-a": "a", "dir/sub/up": "a", "to-dir/sub/up": "a",
	} {
		got, err := fs.ReadFile(image, name)
		if err != nil || string(got) != strings.Repeat(want, 5000) {
			t.Errorf("ReadFile(%s) = %d bytes, %v; want the content of %s", name, len(got), err, want)
		}
	}
	for _, test := range []struct {
		name string
		want error
	}{
		{"none", fs.ErrNotExist}, {"dir/none", fs.ErrNotExist}, {"broken", fs.ErrNotExist},
		{"../a", fs.ErrInvalid}, {"/a", fs.ErrInvalid}, {"", fs.ErrInvalid},
	} {
		if _, err := image.Stat(test.name); !errors.Is(err, test.want) {
			t.Errorf("Stat(%q) = %v, want %v", test.name, err, test.want)
		}
	}
	for name, want := range map[string]string{"a/b": "not a directory", "loop": "too many levels"} {
		if _, err := image.Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, want %s", name, err, want)
		}
	}
	if target, err := image.ReadLink("dir/to-a"); err != nil || target != "/a" {
		t.Errorf("ReadLink = %q, %v", target, err)
	}
	if _, err := image.ReadLink("a"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadLink of a file = %v", err)
	}
}

// Data in an extra device is read from there, and missed when it is not given.
func TestBlobs(t *testing.T) {
	src := t.TempDir()
	makeTree(t, src)
	for _, u := range allUtils(t) {
		t.Run(u.version, func(t *testing.T) {
			dir := t.TempDir()
			img, blob := filepath.Join(dir, "img"), filepath.Join(dir, "blob")
			if err := os.WriteFile(blob, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			u.make(t, img, src, "--chunksize=8192", "--blobdev="+blob)
			f, b := open(t, img), open(t, blob)
			if fileSize(t, b) < 1<<20 {
				t.Fatalf("the blob has %d bytes", fileSize(t, b))
			}
			image, err := erofs.Open(f, fileSize(t, f), b)
			if err != nil {
				t.Fatal(err)
			}
			compareTree(t, image, src, compareOptions{xattrs: true, mtimes: true})
			if err := erofs.Check(f, fileSize(t, f), b).Err(); err != nil {
				t.Error(err)
			}
			alone, err := erofs.Open(f, fileSize(t, f))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fs.ReadFile(alone, "mixed"); err == nil || !strings.Contains(err.Error(), "extra device 1, which was not given") {
				t.Errorf("without the blob: %v", err)
			}
			if _, err := erofs.Open(f, fileSize(t, f), b, b); err == nil {
				t.Error("two blobs were accepted, the image has one")
			}
			if err := erofs.Check(f, fileSize(t, f), bytes.NewReader(make([]byte, 4096))).Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("with a short blob: %v", err)
			}
		})
	}
}

// An FS may be used by several goroutines.
func TestConcurrent(t *testing.T) {
	for _, b := range fuzzSeeds(t) {
		image, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		ino, err := image.Inode("d/b")
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		for range 4 {
			go func() {
				_, err := io.Copy(io.Discard, io.NewSectionReader(ino, 0, ino.Size))
				results <- errors.Join(err, readAll(image))
			}()
		}
		for range 4 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	}
}
