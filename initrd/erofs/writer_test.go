package erofs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

const (
	testTime = 1_700_000_000

	// The writer's units.
	blockSize = 4096
	pieceSize = 4 << 20
)

var testIdentity = erofs.Identity{
	UUID:      bootconf.UUID{1, 2, 3, 4, 5, 6, 0x87, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
	Label:     "writer test",
	BuildTime: testTime,
}

// memory is a Spool and an image in memory.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// testTree is a tree with its contents.
type testTree struct {
	root     *erofs.Node
	contents map[*erofs.Node][]byte
}

func newTestTree() *testTree {
	return &testTree{root: dirNode(), contents: make(map[*erofs.Node][]byte)}
}

func dirNode() *erofs.Node {
	return &erofs.Node{Mode: unix.S_IFDIR | 0o755, MTime: testTime, Children: make(map[string]*erofs.Node)}
}

// add puts a node at a path, with the directories that are missing.
func (tr *testTree) add(path string, n *erofs.Node) *erofs.Node {
	dir := tr.root
	parts := strings.Split(path, "/")
	for _, part := range parts[:len(parts)-1] {
		if dir.Children[part] == nil {
			dir.Children[part] = dirNode()
		}
		dir = dir.Children[part]
	}
	dir.Children[parts[len(parts)-1]] = n
	return n
}

func (tr *testTree) file(path string, data []byte) *erofs.Node {
	n := tr.add(path, &erofs.Node{Mode: unix.S_IFREG | 0o644, MTime: testTime, Size: int64(len(data))})
	tr.contents[n] = data
	return n
}

// writer has the contents, put in the order of a map, which must not matter.
func (tr *testTree) writer(t testing.TB, o erofs.Options) *erofs.Writer {
	t.Helper()
	w, err := erofs.NewWriter(&memory{}, o)
	if err != nil {
		t.Fatal(err)
	}
	for n, data := range tr.contents {
		if n.Size == 0 {
			continue
		}
		if n.Ref, err = w.Put(bytes.NewReader(data), n.Size); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// write writes the image.
func (tr *testTree) write(t testing.TB, o erofs.Options) []byte {
	t.Helper()
	w := tr.writer(t, o)
	var out memory
	size, err := w.Write(context.Background(), &out, tr.root, testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	if size%blockSize != 0 || int64(len(out.b)) > size {
		t.Fatalf("size = %d, but %d bytes were written", size, len(out.b))
	}
	return append(out.b, make([]byte, size-int64(len(out.b)))...)
}

// nodeInfo is what an image must keep of a file.
type nodeInfo struct {
	Mode     uint32
	UID, GID uint32
	NLink    uint32
	Size     int64
	MTime    int64
	Nsec     uint32
	Rdev     uint64
	Target   string
	Sum      [32]byte
	Xattrs   map[string]string
	Same     string // first path of the inode
}

func (tr *testTree) infos() map[string]nodeInfo {
	infos := make(map[string]nodeInfo)
	first := make(map[*erofs.Node]string)
	links := make(map[*erofs.Node]uint32)
	var walk func(path string, n *erofs.Node)
	walk = func(path string, n *erofs.Node) {
		if first[n] == "" {
			first[n] = path
		}
		links[n]++
		for _, name := range sortedNames(n) {
			walk(filepath.Join(path, name), n.Children[name])
		}
	}
	walk(".", tr.root)
	walk = func(path string, n *erofs.Node) {
		info := nodeInfo{Mode: n.Mode, UID: n.UID, GID: n.GID, NLink: links[n], Size: n.Size, MTime: n.MTime,
			Nsec: n.MTimeNsec, Target: n.Target, Same: first[n]}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			info.Sum = sha256.Sum256(tr.contents[n])
		case unix.S_IFLNK:
			info.Size = int64(len(n.Target))
		case unix.S_IFCHR, unix.S_IFBLK:
			info.Rdev = unix.Mkdev(n.RDevMajor, n.RDevMinor)
		case unix.S_IFDIR:
			info.NLink = 2
			for _, c := range n.Children {
				if c.Mode&unix.S_IFMT == unix.S_IFDIR {
					info.NLink++
				}
			}
		}
		for name, value := range n.Xattrs {
			if info.Xattrs == nil {
				info.Xattrs = make(map[string]string)
			}
			info.Xattrs[name] = string(value)
		}
		infos[path] = info
		for _, name := range sortedNames(n) {
			walk(filepath.Join(path, name), n.Children[name])
		}
	}
	walk(".", tr.root)
	return infos
}

func sortedNames(n *erofs.Node) []string {
	names := make([]string, 0, len(n.Children))
	for name := range n.Children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// infosOfDir lists a directory as the kernel shows it.
func infosOfDir(t *testing.T, dir string) map[string]nodeInfo {
	t.Helper()
	infos := make(map[string]nodeInfo)
	first := make(map[uint64]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		if first[st.Ino] == "" {
			first[st.Ino] = rel
		}
		info := nodeInfo{Mode: st.Mode, UID: st.Uid, GID: st.Gid, NLink: uint32(st.Nlink), Size: st.Size, MTime: st.Mtim.Sec,
			Nsec: uint32(st.Mtim.Nsec), Same: first[st.Ino]}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			info.Sum = [32]byte(h.Sum(nil))
		case unix.S_IFLNK:
			if info.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			info.Rdev = st.Rdev
		case unix.S_IFDIR:
			info.Size = 0
		}
		info.Xattrs, err = xattrsOf(path)
		infos[rel] = info
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return infos
}

func xattrsOf(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return nil, err
	}
	xattrs := make(map[string]string)
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, path, err)
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}

// withoutOracle says what is missing: a failure where everything should be there.
func withoutOracle(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", what)
	}
	t.Skipf("%s is missing", what)
}

// checkKernel mounts the image with its extra devices and compares what is in it.
func checkKernel(t *testing.T, image []byte, want map[string]nodeInfo, blobs ...[]byte) {
	t.Helper()
	if diff := cmp.Diff(want, infosOfDir(t, mountImage(t, image, blobs...))); diff != "" {
		t.Errorf("mounted image, -want +got:\n%s", diff)
	}
}

// mountImage mounts the image until the test ends.
func mountImage(t *testing.T, image []byte, blobs ...[]byte) (dir string) {
	t.Helper()
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || os.Geteuid() != 0 || !strings.Contains(string(known), "\terofs\n") {
		withoutOracle(t, "root and a kernel with EROFS")
	}
	path := filepath.Join(scratch(t), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	options := "loop,ro"
	for _, name := range blobFiles(t, blobs) {
		loop, err := exec.Command("losetup", "--find", "--show", "--read-only", name).Output()
		if err != nil {
			t.Fatalf("losetup: %v", err)
		}
		device := strings.TrimSpace(string(loop))
		t.Cleanup(func() {
			if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
				t.Errorf("losetup --detach %s: %v", device, err)
			}
		})
		options += ",device=" + device
	}
	dir = t.TempDir()
	if text, err := exec.Command("mount", "-t", "erofs", "-o", options, path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, text)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// scratch is a folder in memory, if there is one: a disk takes its time for many
// small files.
func scratch(t testing.TB) string {
	t.Helper()
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Bavail*uint64(st.Bsize) < 1<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "erofs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// blobFiles writes the extra devices into files.
func blobFiles(t *testing.T, blobs [][]byte) (paths []string) {
	t.Helper()
	for _, blob := range blobs {
		paths = append(paths, filepath.Join(scratch(t), "blob"))
		if err := os.WriteFile(paths[len(paths)-1], blob, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// checkFsck extracts the image with fsck.erofs and compares.
//
// Setting the owner of a file loses security.capability. At an xattr without a
// value it leaves out the rest. 1.5 knows neither hard links nor xattrs; it sets
// the owner behind the mode, which loses set-user-ID bits, and a directory's time
// before its entries.
func checkFsck(t *testing.T, u utils, image []byte, want map[string]nodeInfo, blobs ...[]byte) {
	t.Helper()
	if os.Geteuid() != 0 {
		withoutOracle(t, "root")
	}
	scratch := scratch(t)
	path, dir := filepath.Join(scratch, "image"), filepath.Join(scratch, "tree")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	early := u.version < "1.9"
	args := []string{"--extract=" + dir, path}
	for _, name := range blobFiles(t, blobs) {
		args = append(args, "--device="+name)
	}
	if !early {
		args = append(args, "--xattrs")
	}
	if text, err := exec.Command(u.fsck, args...).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, text)
	}
	got := infosOfDir(t, dir)
	strip := func(infos map[string]nodeInfo) map[string]nodeInfo {
		stripped := make(map[string]nodeInfo)
		for path, info := range infos {
			info.Xattrs = maps.Clone(info.Xattrs)
			delete(info.Xattrs, "security.capability")
			for _, value := range want[path].Xattrs {
				if value == "" {
					info.Xattrs = nil
				}
			}
			if early {
				info.NLink, info.Same, info.Xattrs = 0, "", nil
				info.Mode &^= 0o6000
				if info.Mode&unix.S_IFMT == unix.S_IFDIR {
					info.MTime, info.Nsec = 0, 0
				}
			}
			if len(info.Xattrs) == 0 {
				info.Xattrs = nil
			}
			stripped[path] = info
		}
		return stripped
	}
	if diff := cmp.Diff(strip(want), strip(got)); diff != "" {
		t.Errorf("extracted image, -want +got:\n%s", diff)
	}
	if early {
		return
	}
	// It checks other things of xattrs when it does not extract them.
	checkFsckOnly(t, u, image, blobs...)
}

// checkReader compares what the reader finds.
func checkReader(t *testing.T, image []byte, want map[string]nodeInfo, blobs ...[]byte) {
	t.Helper()
	r := bytes.NewReader(image)
	var devices []io.ReaderAt
	for _, blob := range blobs {
		devices = append(devices, bytes.NewReader(blob))
	}
	report := erofs.Check(r, r.Size(), devices...)
	if err := report.Err(); err != nil {
		t.Errorf("Check: %v", err)
	}
	files, err := erofs.Open(r, r.Size(), devices...)
	if err != nil {
		t.Fatal(err)
	}
	if got := uint64(report.Inodes); got != files.Super.Inos {
		t.Errorf("superblock has %d inodes, want %d", files.Super.Inos, got)
	}
	got := make(map[string]nodeInfo)
	first := make(map[uint64]string)
	err = files.Walk(func(path string, in *erofs.Inode) error {
		if first[in.NID] == "" {
			first[in.NID] = path
		}
		info := nodeInfo{Mode: in.Mode, UID: in.UID, GID: in.GID, NLink: in.NLink, MTime: in.MTime, Nsec: in.MTimeNsec,
			Rdev: unix.Mkdev(in.RdevMajor, in.RdevMinor), Same: first[in.NID]}
		switch in.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			info.Size = in.Size
			h := sha256.New()
			if _, err := io.Copy(h, io.NewSectionReader(in, 0, in.Size)); err != nil {
				return err
			}
			info.Sum = [32]byte(h.Sum(nil))
		case unix.S_IFLNK:
			info.Size = in.Size
			var err error
			if info.Target, err = in.LinkTarget(); err != nil {
				return err
			}
		}
		xattrs, err := in.Xattrs()
		for name, value := range xattrs {
			if info.Xattrs == nil {
				info.Xattrs = make(map[string]string)
			}
			info.Xattrs[name] = string(value)
		}
		got[path] = info
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image as read, -want +got:\n%s", diff)
	}
}

func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// text compresses about as programs do.
func text(seed uint64, n int) []byte {
	r := newRand(seed)
	words := make([][]byte, 400)
	for i := range words {
		words[i] = random(seed+uint64(i), 2+r.IntN(12))
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[r.IntN(20+r.IntN(380))]...)
	}
	return b[:n]
}

// trees stress one feature each.
var trees = map[string]func() *testTree{
	"empty": newTestTree,
	"boot":  bootTree,
	"kinds": func() *testTree {
		tr := newTestTree()
		tr.file("empty", nil)
		tr.add("dev/null", &erofs.Node{Mode: unix.S_IFCHR | 0o666, MTime: testTime, RDevMajor: 1, RDevMinor: 3})
		tr.add("dev/large", &erofs.Node{Mode: unix.S_IFBLK | 0o600, MTime: testTime, RDevMajor: 0xabc, RDevMinor: 0xfedcb})
		tr.add("fifo", &erofs.Node{Mode: unix.S_IFIFO | 0o600, MTime: testTime})
		tr.add("socket", &erofs.Node{Mode: unix.S_IFSOCK | 0o755, MTime: testTime})
		tr.add("link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: testTime, Target: "dev/null"})
		tr.add("long link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: testTime, Target: strings.Repeat("a/", 2000) + strings.Repeat("b", 95)})
		tr.add("setuid", &erofs.Node{Mode: unix.S_IFREG | 0o4755, UID: 1, GID: 65535, MTime: testTime})
		tr.add("sticky", &erofs.Node{Mode: unix.S_IFDIR | 0o1777, MTime: testTime})
		tr.add("large ids", &erofs.Node{Mode: unix.S_IFREG | 0o600, UID: 65536, GID: 4_000_000_000, MTime: testTime})
		tr.add("old", &erofs.Node{Mode: unix.S_IFREG | 0o600, MTime: 1})
		tr.add("subsecond", &erofs.Node{Mode: unix.S_IFREG | 0o600, MTime: testTime, MTimeNsec: 999_999_999})
		tr.add("future", &erofs.Node{Mode: unix.S_IFREG | 0o600, MTime: 1 << 33})
		return tr
	},
	"sizes": func() *testTree {
		tr := newTestTree()
		for _, n := range []int{1, 31, 32, 33, 4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097, 8191, 8192, 8193,
			12287, 12288, 12289, 16384, 65535, 65536, 65537, 69632, 131072, 200_000} {
			tr.file(fmt.Sprintf("zeros/%d", n), make([]byte, n))
			tr.file(fmt.Sprintf("random/%d", n), random(uint64(n), n))
			tr.file(fmt.Sprintf("text/%d", n), text(uint64(n), n))
			tr.file(fmt.Sprintf("random, text/%d", n), append(random(uint64(n), n), text(uint64(n), 3*n)...))
			tr.file(fmt.Sprintf("text, random/%d", n), append(text(uint64(n), 3*n), random(uint64(n), n)...))
			tr.file(fmt.Sprintf("zeros, random/%d", n), append(make([]byte, n), random(uint64(n), 4097)...))
		}
		return tr
	},
	"pieces": func() *testTree {
		tr := newTestTree()
		mixed := append(text(1, pieceSize-1000), random(2, 3000)...)
		tr.file("mixed", append(mixed, text(3, 300_000)...))
		tr.file("plain first", append(random(4, pieceSize), text(5, 10_000)...))
		tr.file("plain last", append(text(6, pieceSize), random(7, 5000)...))
		tr.file("plain", random(8, pieceSize+100))
		tr.file("zeros", make([]byte, 2*pieceSize+5))
		tr.file("one more", append(text(10, pieceSize), 'x'))
		return tr
	},
	"links": func() *testTree {
		tr := newTestTree()
		n := tr.file("a/first", text(1, 5000))
		tr.add("a/second", n)
		tr.add("b/c/third", n)
		empty := tr.file("empty", nil)
		tr.add("b/empty too", empty)
		null := tr.add("null", &erofs.Node{Mode: unix.S_IFCHR | 0o600, MTime: testTime, RDevMajor: 1, RDevMinor: 3})
		tr.add("b/null", null)
		return tr
	},
	"equal": func() *testTree {
		tr := newTestTree()
		for i := range 3 {
			tr.file(fmt.Sprintf("small %d", i), text(1, 500))
			tr.file(fmt.Sprintf("tail %d", i), random(2, 9000)).MTime -= int64(i)
			tr.file(fmt.Sprintf("large %d", i), text(3, 300_000))
			tr.file(fmt.Sprintf("other %d", i), text(uint64(i), 300_000))
		}
		return tr
	},
	"xattrs": func() *testTree {
		tr := newTestTree()
		acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
			"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
		capability := "\x01\x00\x00\x02\x00\x04" + strings.Repeat("\x00", 14)
		for i := range 40 {
			n := tr.file(fmt.Sprintf("%d", i), text(uint64(i), i*200))
			n.Mode = unix.S_IFREG | 0o775 // as the ACL says
			n.Xattrs = map[string][]byte{
				"user.shared":             []byte("the same for all"),
				"user.few":                []byte(fmt.Sprint(i / 10)),
				"user.own":                bytes.Repeat([]byte{byte('a' + i%26)}, i*90),
				"trusted.t":               nil,
				"security.capability":     []byte(capability),
				"security.selinux":        []byte("system_u:object_r:bin_t:s0"),
				"system.posix_acl_access": []byte(acl),
			}
		}
		tr.root.Xattrs = map[string][]byte{"user.shared": []byte("the same for all")}
		tr.add("link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: testTime, Target: "0",
			Xattrs: map[string][]byte{"trusted.t": []byte("of a link")}})
		dir := tr.add("dir", dirNode())
		dir.Mode = unix.S_IFDIR | 0o775
		dir.Xattrs = map[string][]byte{"system.posix_acl_default": []byte(acl)}
		return tr
	},
	"names": func() *testTree {
		tr := newTestTree()
		for _, c := range "abcdefghijklmnopqrstuvwxyz" {
			tr.file("names/"+strings.Repeat(string(c), 255), []byte{byte(c)})
		}
		return tr
	},
	"deep": func() *testTree {
		tr := newTestTree()
		path := ""
		for i := range 40 {
			path += fmt.Sprintf("level %d/", i)
			tr.file(path+"file", []byte(path))
		}
		return tr
	},
	"directories": func() *testTree {
		tr := newTestTree()
		// Whole blocks, and one entry more or less. "." and ".." take 27 bytes.
		for _, n := range []int{1, 60, 61, 62, 121, 122, 123, 5000} {
			for i := range n {
				tr.file(fmt.Sprintf("%d/%055d", n, i), nil)
			}
		}
		tr.file("exact/"+strings.Repeat("x", 100), nil)
		for _, name := range []string{"!", "-", ".a", "...", "A", "z", "\x01", "\xff\xfe", "ü", " "} {
			tr.file("order/"+name, nil)
		}
		return tr
	},
}

// What identical contents and packing save.
func TestWriterSizes(t *testing.T) {
	size := func(tree string, o erofs.Options) int { return len(trees[tree]().write(t, o)) }
	o := erofs.Options{Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10}
	tail, pack, dedupe := o, o, o
	tail.Ztailpacking, pack.PackBytes, dedupe.Dedupe = true, 1<<30, true
	plain := size("sizes", o)
	if got := size("sizes", tail); got > plain-50*blockSize {
		t.Errorf("tails in the metadata make %d bytes of %d", got, plain)
	}
	if got := size("sizes", pack); got > plain-70*blockSize {
		t.Errorf("packing makes %d bytes of %d", got, plain)
	}
	if got, want := size("equal", dedupe), size("equal", o); got > want*7/10 {
		t.Errorf("of contents of which half are equal, %d bytes of %d are left", got, want)
	}
	if got, want := size("sizes", o), size("sizes", erofs.Options{}); got > want*6/10 {
		t.Errorf("compression makes %d bytes of %d", got, want)
	}
}

// A directory of 100,000 entries, with metadata beyond one write.
func TestWriterLargeDirectory(t *testing.T) {
	tr := newTestTree()
	for i := range 100_000 {
		n := &erofs.Node{Mode: unix.S_IFREG | 0o644, MTime: testTime + int64(i%2)}
		tr.root.Children[fmt.Sprintf("%x-%d", i*7919%100_003, i)] = n
	}
	image := tr.write(t, erofs.Options{})
	want := tr.infos()
	checkReader(t, image, want)
	checkFsckAccepts(t, image)
	t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want) })
}

// More links than a compact inode counts.
func TestWriterManyLinks(t *testing.T) {
	tr := newTestTree()
	n := tr.file("file", []byte("x"))
	for i := range 66_000 {
		tr.add(fmt.Sprintf("dir %d/%d", i%3, i), n)
	}
	image := tr.write(t, erofs.Options{})
	checkReader(t, image, tr.infos())
	checkFsckAccepts(t, image)
}

// checkFsckAccepts lets each fsck.erofs read the image without extracting it.
func checkFsckAccepts(t *testing.T, image []byte) {
	t.Helper()
	for _, u := range allUtils(t) {
		checkFsckOnly(t, u, image)
	}
}

func TestWriterRefuses(t *testing.T) {
	file := func(n erofs.Node) func(tr *testTree) {
		return func(tr *testTree) { tr.add("dir/file", &n) }
	}
	tests := []struct {
		name string
		edit func(tr *testTree)
		want string
	}{
		{"long name", func(tr *testTree) { tr.file(strings.Repeat("n", 256), nil) }, "longer than 255"},
		{"no name", func(tr *testTree) { tr.file("dir/", nil) }, "/dir/: not a name"},
		{"dot", func(tr *testTree) { tr.file("..", nil) }, "/..: not a name"},
		{"zero byte", func(tr *testTree) { tr.file("a\x00", nil) }, "zero byte"},
		{"two parents", func(tr *testTree) { tr.add("b", tr.add("a", dirNode())) }, "/b: directory is also /a"},
		{"own child", func(tr *testTree) { tr.add("a", tr.root) }, "/a: directory is also /"},
		{"no target", file(erofs.Node{Mode: unix.S_IFLNK}), "/dir/file: bad symlink target of 0 bytes"},
		{"long target", file(erofs.Node{Mode: unix.S_IFLNK, Target: strings.Repeat("t", 4096)}), "bad symlink target of 4096"},
		{"no type", file(erofs.Node{Mode: 0o644}), "mode 0644"},
		{"wide mode", file(erofs.Node{Mode: unix.S_IFREG | 1<<16}), "out of range"},
		{"nanoseconds", file(erofs.Node{Mode: unix.S_IFREG, MTimeNsec: 1e9}), "out of range"},
		{"major", file(erofs.Node{Mode: unix.S_IFCHR, RDevMajor: 4096}), "device 4096:0"},
		{"no content", file(erofs.Node{Mode: unix.S_IFREG, Size: 1, Ref: 7}), "/dir/file: there is no content 7"},
		{"xattr", file(erofs.Node{Mode: unix.S_IFREG, Xattrs: map[string][]byte{"other.x": nil}}), `"other.x"`},
		{"xattr of ACL", file(erofs.Node{Mode: unix.S_IFREG, Xattrs: map[string][]byte{"system.posix_acl_accessx": nil}}), "no place"},
		{"large xattr", file(erofs.Node{Mode: unix.S_IFREG, Xattrs: map[string][]byte{"user.x": make([]byte, 1<<16)}}), "too long"},
		{"root", func(tr *testTree) { tr.root.Mode = unix.S_IFREG }, "not a directory"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w, err := erofs.NewWriter(&memory{}, erofs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			tr := newTestTree()
			test.edit(tr)
			var out memory
			if _, err := w.Write(context.Background(), &out, tr.root, testIdentity); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if len(out.b) > 0 {
				t.Errorf("%d bytes were written", len(out.b))
			}
		})
	}
}

func TestWriterOptions(t *testing.T) {
	for _, o := range []erofs.Options{
		{Compress: true, PclusterBytes: 2048},
		{Compress: true, PclusterBytes: 2 << 20},
		{Compress: true, PclusterBytes: 12288},
		{Compress: true, PclusterBytes: 4096, DAX: true},
		{Ztailpacking: true},
		{PackBytes: 1},
		{Dedupe: true},
		{ChunkBytes: 2048},
		{ChunkBytes: 12288},
		{ChunkBytes: 2 << 30},
		{ChunkBytes: -4096},
		{ChunkBytes: 4096, Compress: true, PclusterBytes: 4096},
	} {
		if _, err := erofs.NewWriter(&memory{}, o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

// failingFile fails with an error at an offset.
type failingFile struct {
	memory
	from int64
	err  error
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.memory.ReadAt(p, off)
}

func (f *failingFile) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.memory.WriteAt(p, off)
}

// forgetful is a spool that cannot be read.
type forgetful struct {
	memory
	err error
}

func (f *forgetful) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestWriterContents(t *testing.T) {
	w, err := erofs.NewWriter(&memory{}, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Put(strings.NewReader("short"), 6); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short content: error %v", err)
	}
	first, err := w.Put(strings.NewReader("first and more"), 5)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.Put(strings.NewReader("second"), 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(first); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(first); err == nil {
		t.Error("a deleted content is opened")
	}
	if err := w.Delete(first); err == nil {
		t.Error("a content is deleted twice")
	}
	r, err := w.Open(second)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || string(data) != "second" {
		t.Errorf("content %q, %v", data, err)
	}
}

func TestWriterFails(t *testing.T) {
	failure := errors.New("no more")
	tr := newTestTree()
	data := text(1, 100_000)
	n := tr.file("dir/file", data)
	write := func(ctx context.Context, spool erofs.Spool, out io.WriterAt) error {
		w, err := erofs.NewWriter(spool, erofs.Options{Compress: true, PclusterBytes: 4096})
		if err != nil {
			t.Fatal(err)
		}
		if n.Ref, err = w.Put(bytes.NewReader(data), n.Size); err != nil {
			return err
		}
		_, err = w.Write(ctx, out, tr.root, testIdentity)
		return err
	}
	if err := write(context.Background(), &failingFile{from: 50_000, err: failure}, &memory{}); !errors.Is(err, failure) {
		t.Errorf("full spool: error %v", err)
	}
	if err := write(context.Background(), &forgetful{err: failure}, &memory{}); !errors.Is(err, failure) || !strings.Contains(err.Error(), "/dir/file") {
		t.Errorf("broken spool: error %v", err)
	}
	for from := int64(0); from < 60_000; from += 4096 {
		if err := write(context.Background(), &memory{}, &failingFile{from: from, err: failure}); !errors.Is(err, failure) {
			t.Errorf("output full at %d: error %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := write(ctx, &memory{}, &memory{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}
