package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
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
	"initoverlayfs/initrd/lz4hc"
)

const testTime = 1_700_000_000

var testIdentity = Identity{
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
	root     *Node
	contents map[*Node][]byte
}

func newTestTree() *testTree {
	return &testTree{root: dirNode(), contents: make(map[*Node][]byte)}
}

func dirNode() *Node {
	return &Node{Mode: modeDir | 0o755, MTime: testTime, Children: make(map[string]*Node)}
}

// add puts a node at a path, with the directories that are missing.
func (tr *testTree) add(path string, n *Node) *Node {
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

func (tr *testTree) file(path string, data []byte) *Node {
	n := tr.add(path, &Node{Mode: modeReg | 0o644, MTime: testTime, Size: int64(len(data))})
	tr.contents[n] = data
	return n
}

// write writes the image. Contents are put in the order of a map, which must not
// matter.
func (tr *testTree) write(t *testing.T, o Options) []byte {
	t.Helper()
	w, err := NewWriter(&memory{}, o)
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
	first := make(map[*Node]string)
	links := make(map[*Node]uint32)
	var walk func(path string, n *Node)
	walk = func(path string, n *Node) {
		if first[n] == "" {
			first[n] = path
		}
		links[n]++
		for _, name := range sortedNames(n) {
			walk(filepath.Join(path, name), n.Children[name])
		}
	}
	walk(".", tr.root)
	walk = func(path string, n *Node) {
		info := nodeInfo{Mode: n.Mode, UID: n.UID, GID: n.GID, NLink: links[n], Size: n.Size, MTime: n.MTime,
			Nsec: n.MTimeNsec, Target: n.Target, Same: first[n]}
		switch n.Mode & modeType {
		case modeReg:
			info.Sum = sha256.Sum256(tr.contents[n])
		case modeLnk:
			info.Size = int64(len(n.Target))
		case modeChr, modeBlk:
			info.Rdev = unix.Mkdev(n.RDevMajor, n.RDevMinor)
		case modeDir:
			info.NLink = 2
			for _, c := range n.Children {
				if c.Mode&modeType == modeDir {
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

func sortedNames(n *Node) []string {
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
		switch st.Mode & modeType {
		case modeReg:
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
		case modeLnk:
			if info.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case modeChr, modeBlk:
			info.Rdev = st.Rdev
		case modeDir:
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

// checkKernel mounts the image and compares what is in it.
func checkKernel(t *testing.T, image []byte, want map[string]nodeInfo) {
	t.Helper()
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || os.Geteuid() != 0 || !strings.Contains(string(known), "\terofs\n") {
		withoutOracle(t, "root and a kernel with EROFS")
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if text, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, text)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if diff := cmp.Diff(want, infosOfDir(t, dir)); diff != "" {
		t.Errorf("mounted image, -want +got:\n%s", diff)
	}
}

// checkFsck extracts the image with fsck.erofs and compares. Its first versions
// know neither hard links nor extended attributes; it sets the owner behind the
// mode, which loses set-user-ID bits, and a directory's time before its entries.
func checkFsck(t *testing.T, image []byte, want map[string]nodeInfo) {
	t.Helper()
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil || os.Geteuid() != 0 {
		withoutOracle(t, "root and fsck.erofs")
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tree")
	if text, err := exec.Command(fsck, "--extract="+dir, path).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, text)
	}
	got := infosOfDir(t, dir)
	strip := func(infos map[string]nodeInfo) map[string]nodeInfo {
		stripped := make(map[string]nodeInfo)
		for path, info := range infos {
			info.NLink, info.Same, info.Xattrs = 0, "", nil
			info.Mode &^= 0o6000
			if info.Mode&modeType == modeDir {
				info.MTime, info.Nsec = 0, 0
			}
			stripped[path] = info
		}
		return stripped
	}
	if diff := cmp.Diff(strip(want), strip(got)); diff != "" {
		t.Errorf("extracted image, -want +got:\n%s", diff)
	}
}

func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// text compresses about as programs do.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
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

// layouts are the options that every tree is written with.
var layouts = map[string]Options{
	"plain":        {},
	"dax":          {DAX: true},
	"lz4 4k":       {Compress: true, Level: lz4hc.Fast, PclusterBytes: 4 << 10},
	"lz4 64k":      {Compress: true, Level: lz4hc.Default, PclusterBytes: 64 << 10},
	"lz4 1m":       {Compress: true, Level: lz4hc.Fast, PclusterBytes: 1 << 20},
	"lz4 16k tail": {Compress: true, Level: lz4hc.Default, PclusterBytes: 16 << 10, Ztailpacking: true},
}

// trees stress one feature each.
var trees = map[string]func() *testTree{
	"empty": newTestTree,
	"kinds": func() *testTree {
		tr := newTestTree()
		tr.file("empty", nil)
		tr.add("dev/null", &Node{Mode: modeChr | 0o666, MTime: testTime, RDevMajor: 1, RDevMinor: 3})
		tr.add("dev/large", &Node{Mode: modeBlk | 0o600, MTime: testTime, RDevMajor: 0xabc, RDevMinor: 0xfedcb})
		tr.add("fifo", &Node{Mode: modeFifo | 0o600, MTime: testTime})
		tr.add("socket", &Node{Mode: modeSock | 0o755, MTime: testTime})
		tr.add("link", &Node{Mode: modeLnk | 0o777, MTime: testTime, Target: "dev/null"})
		tr.add("long link", &Node{Mode: modeLnk | 0o777, MTime: testTime, Target: strings.Repeat("a/", 2000) + strings.Repeat("b", 95)})
		tr.add("setuid", &Node{Mode: modeReg | 0o4755, UID: 1, GID: 65535, MTime: testTime})
		tr.add("sticky", &Node{Mode: modeDir | 0o1777, MTime: testTime})
		tr.add("large ids", &Node{Mode: modeReg | 0o600, UID: 65536, GID: 4_000_000_000, MTime: testTime})
		tr.add("old", &Node{Mode: modeReg | 0o600, MTime: 1})
		tr.add("subsecond", &Node{Mode: modeReg | 0o600, MTime: testTime, MTimeNsec: 999_999_999})
		tr.add("future", &Node{Mode: modeReg | 0o600, MTime: 1 << 33})
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
		mixed := append(text(1, pieceSize-1000), random(2, pieceSize+3000)...)
		mixed = append(mixed, text(3, pieceSize+1)...)
		tr.file("mixed", mixed)
		tr.file("plain first", append(random(4, 2*pieceSize), text(5, 10_000)...))
		tr.file("plain last", append(text(6, pieceSize), random(7, 5000)...))
		tr.file("plain", random(8, pieceSize+100))
		tr.file("whole", text(9, pieceSize))
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
		null := tr.add("null", &Node{Mode: modeChr | 0o600, MTime: testTime, RDevMajor: 1, RDevMinor: 3})
		tr.add("b/null", null)
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

func TestWriter(t *testing.T) {
	for name, tree := range trees {
		for layout, o := range layouts {
			t.Run(name+"/"+layout, func(t *testing.T) {
				t.Parallel()
				tr := tree()
				image := tr.write(t, o)
				sb, err := ReadSuperblock(bytes.NewReader(image))
				if err != nil {
					t.Fatal(err)
				}
				if got, want := sb.Size(), int64(len(image)); got != want {
					t.Errorf("superblock has %d bytes, want %d", got, want)
				}
				if sb.UUID != testIdentity.UUID || sb.VolumeName != testIdentity.Label || sb.BuildTime != testTime {
					t.Errorf("superblock has %s %q %d", sb.UUID, sb.VolumeName, sb.BuildTime)
				}
				want := tr.infos()
				t.Run("fsck", func(t *testing.T) { checkFsck(t, image, want) })
				t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want) })
			})
		}
	}
}

// TestWriterDeterministic: neither the number of workers nor the order in which
// contents were put makes a difference; write takes them from a map.
func TestWriterDeterministic(t *testing.T) {
	tr := trees["pieces"]()
	for i := range 300 {
		tr.file(fmt.Sprintf("small/%d", i), text(uint64(i), i*50))
	}
	o := Options{Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10, Ztailpacking: true, Workers: 1}
	want := tr.write(t, o)
	for workers := 1; workers <= 4; workers++ {
		o.Workers = workers
		if !bytes.Equal(tr.write(t, o), want) {
			t.Errorf("with %d workers the image differs", workers)
		}
	}
}
