package images

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
	"initoverlayfs/vmtest"
)

// buildTime is that of the images, and of the files that have no time of their
// own.
const buildTime = 1_700_000_000

// tree is what an image is made of.
type tree struct {
	root   *erofs.Node
	bodies map[*erofs.Node]body
	noise  *rand.ChaCha8
}

// body is a content: what is not zero of it, in rising order.
type body []extent

type extent struct {
	offset int64
	data   []byte
}

// ReadAt gives zeros also where the content has an end.
func (b body) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for _, e := range b {
		if at := e.offset - off; at >= 0 {
			copy(p[min(at, int64(len(p))):], e.data)
		} else {
			copy(p, e.data[min(-at, int64(len(e.data))):])
		}
	}
	return len(p), nil
}

// digest is what a guest says of it.
func (b body) digest(size int64) string {
	h := sha256.New()
	write := func(offset, length int64) {
		if _, err := io.Copy(h, io.NewSectionReader(b, offset, length)); err != nil {
			panic(err) // neither side has any
		}
	}
	if size < vmtest.SampledBytes {
		write(0, size)
	} else {
		for offset, length := range vmtest.Samples(size) {
			write(offset, length)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func newTree() *tree {
	return &tree{root: newNode(unix.S_IFDIR | 0o755), bodies: map[*erofs.Node]body{}, noise: rand.NewChaCha8([32]byte{})}
}

func newNode(mode uint32) *erofs.Node {
	n := &erofs.Node{Mode: mode, MTime: buildTime}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n.Children = map[string]*erofs.Node{}
	}
	return n
}

// add puts a node at a path, with the directories that are missing.
func (t *tree) add(name string, n *erofs.Node) *erofs.Node {
	parts := strings.Split(name, "/")
	dir := t.root
	for _, part := range parts[:len(parts)-1] {
		if dir.Children[part] == nil {
			dir.Children[part] = newNode(unix.S_IFDIR | 0o755)
		}
		dir = dir.Children[part]
	}
	dir.Children[parts[len(parts)-1]] = n
	return n
}

func (t *tree) file(name string, data []byte) *erofs.Node {
	return t.sparse(name, int64(len(data)), extent{0, data})
}

func (t *tree) sparse(name string, size int64, data ...extent) *erofs.Node {
	n := t.add(name, newNode(unix.S_IFREG|0o644))
	n.Size = size
	t.bodies[n] = data
	return n
}

func (t *tree) symlink(name, target string) {
	t.add(name, newNode(unix.S_IFLNK|0o777)).Target = target
}

func (t *tree) device(name string, mode, major, minor uint32) {
	n := t.add(name, newNode(mode))
	n.RDevMajor, n.RDevMinor = major, minor
}

// random gives bytes that do not compress.
func (t *tree) random(n int) []byte {
	b := make([]byte, n)
	t.noise.Read(b)
	return b
}

// text gives bytes that compress to a third.
func (t *tree) text(n int) []byte {
	words := strings.Fields("the of kernel reads a block from disk and finds inode that was never there while another page waits for its cluster 0x7f 4096 return if static")
	r := rand.New(t.noise)
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
		b = append(b, " \n\t("[r.IntN(4)], byte('0'+r.IntN(10)))
	}
	return b[:n]
}

// sizes are those around the boundaries of blocks and of clusters.
func sizes(boundaries ...int) (around []int) {
	for _, n := range boundaries {
		around = append(around, n-1, n, n+1)
	}
	return around
}

// features is a tree whose parts each try a part of the format. A guest reads
// its 5 MB in about a second.
func features() *tree {
	t := newTree()
	for _, n := range append(sizes(4<<10, 8<<10, 16<<10, 64<<10), 0, 1, 128<<10+1, 1<<20+1) {
		t.file(fmt.Sprintf("sizes/text-%d", n), t.text(n))
		t.file(fmt.Sprintf("sizes/random-%d", n), t.random(min(n, 128<<10+1)))
	}

	text := t.text(150_000)
	t.file("contents/zeros", make([]byte, 1_200_001))
	t.file("contents/period", bytes.Repeat([]byte("abc"), 100_000))
	t.file("contents/longperiod", bytes.Repeat(t.random(70_000), 3))
	var mixed, holes []byte
	for i := range 10 {
		mixed = append(mixed, t.text(9_000+i)...)
		mixed = append(mixed, t.random(7_000+13*i)...)
		holes = append(holes, t.text(4096*(i%3))...)
		holes = append(holes, make([]byte, 4096*(i%5))...)
	}
	t.file("contents/mixed", mixed)
	t.file("contents/holes", holes)
	t.file("contents/hole-first", append(make([]byte, 300_000), text[:100]...))
	t.file("contents/hole-last", append(bytes.Clone(text[:100]), make([]byte, 300_000)...))

	t.file("copies/text", text)
	t.file("copies/same", bytes.Clone(text))
	t.file("copies/shifted", append([]byte("shift"), text...))
	t.file("copies/shifted-block", append(t.random(4096), text...))
	t.file("copies/begin", bytes.Clone(text[:67_890]))
	t.file("copies/end", bytes.Clone(text[67_890:]))
	t.file("copies/twice", append(bytes.Clone(text), text...))
	t.file("copies/changed", slices.Concat(text[:100_000], []byte("!"), text[100_000:]))
	noise := t.random(100_000)
	t.file("copies/noise", noise)
	t.file("copies/noise-same", bytes.Clone(noise))
	t.file("copies/noise-shifted", append([]byte("shift"), noise...))

	for i := range 300 {
		t.file(fmt.Sprintf("small/%03d", i), t.text(i*i%5000))
	}

	linked := t.file("links/a/first", t.text(50_000))
	t.add("links/b/second", linked)
	t.add("links/a/third", linked)
	t.add("links/z", linked)
	fifo := t.add("links/fifo", newNode(unix.S_IFIFO|0o600))
	t.add("links/b/fifo", fifo)
	t.symlink("links/short", "a")
	t.symlink("links/long", strings.Repeat("long/", 818)+"end") // 4093 bytes
	t.symlink("links/inline", strings.Repeat("x", 2000))

	t.device("nodes/null", unix.S_IFCHR|0o666, 1, 3)
	t.device("nodes/disk", unix.S_IFBLK|0o660, 259, 0xfffff)
	t.device("nodes/most", unix.S_IFCHR, 0xfff, 0x12345)
	t.device("nodes/whiteout", unix.S_IFCHR, 0, 0)
	t.add("nodes/fifo", newNode(unix.S_IFIFO|0o644))
	t.add("nodes/socket", newNode(unix.S_IFSOCK|0o777))

	for _, name := range []string{
		strings.Repeat("n", 255), strings.Repeat("n", 254), "n", " ", "\n", "\\", "-", ".x", "..x", "...",
		"\xff\xfe not UTF-8", "ünïcödé", strings.Repeat("\xe2\x82\xac", 85), "\x02", "~",
	} {
		t.file("names/"+name, []byte(name))
		t.file("names/dir/"+name+"/"+name, []byte(name))
	}
	for i := range 1000 {
		t.file(fmt.Sprintf("many/%0*d", 1+i%200, i), nil)
	}
	t.file("deep/"+strings.Repeat("level/", 40)+"file", []byte("down here"))
	t.add("empty", newNode(unix.S_IFDIR|0o1777))

	for i, meta := range []struct {
		mode, uid, gid uint32
		mtime          int64
		nsec           uint32
	}{
		{0o4755, 0, 0, buildTime, 0},
		{0o2755, 1000, 100, buildTime, 0},
		{0, 65535, 65535, buildTime, 0},
		{0o777, 65536, 4_000_000_000, buildTime, 0},
		{0o600, 0, 0, 0, 0},
		{0o600, 0, 0, buildTime, 1},
		{0o600, 0, 0, buildTime - 1, 999_999_999},
		{0o600, 0, 0, 5_000_000_000, 5},
		{0o600, 0, 0, -86_400, 0},
	} {
		for _, size := range []int{0, 10, 5000} {
			n := t.file(fmt.Sprintf("metadata/%d-%d", i, size), t.text(size))
			n.Mode, n.UID, n.GID, n.MTime, n.MTimeNsec = unix.S_IFREG|meta.mode, meta.uid, meta.gid, meta.mtime, meta.nsec
		}
		n := t.add(fmt.Sprintf("metadata/dir%d", i), newNode(unix.S_IFDIR))
		n.Mode, n.UID, n.GID, n.MTime, n.MTimeNsec = unix.S_IFDIR|meta.mode, meta.uid, meta.gid, meta.mtime, meta.nsec
	}

	// Version 2, with the owner, a user, the group, the mask and the others.
	acl := []byte("\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")
	for i, attrs := range []map[string][]byte{
		{"user.one": []byte("value")},
		{"user.": []byte("no name"), "user.empty": {}, "user.binary": {0, 1, 2, 255}},
		{"trusted.overlay.opaque": []byte("y"), "trusted.t": t.random(3000)},
		{"security.capability": []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		{"security.selinux": []byte("system_u:object_r:bin_t:s0\x00")},
		{"system.posix_acl_access": acl},
		{"user." + strings.Repeat("n", 250): t.random(2000)},
		{"user.a": t.random(1), "user.b": t.random(2), "user.c": t.random(3), "user.d": t.random(4), "security.e": t.random(5)},
	} {
		if attrs["user."] != nil {
			delete(attrs, "user.") // the kernel has no attribute without a name
		}
		for _, size := range []int{0, 100, 4000, 70_000} {
			n := t.file(fmt.Sprintf("xattrs/%d-%d", i, size), t.text(size))
			n.Xattrs = maps.Clone(attrs)
			if size == 4000 { // these differ from all others
				n.Xattrs["user.own"] = fmt.Append(nil, i)
			}
		}
		dir := t.add(fmt.Sprintf("xattrs/dir%d", i), newNode(unix.S_IFDIR|0o755))
		dir.Xattrs = maps.Clone(attrs)
		if attrs["system.posix_acl_access"] != nil {
			dir.Xattrs["system.posix_acl_default"] = acl
		}
		if attrs["user.one"] == nil && attrs["user.a"] == nil && attrs["user.empty"] == nil && i != 6 {
			link := t.add(fmt.Sprintf("xattrs/link%d", i), newNode(unix.S_IFLNK|0o777))
			link.Target = "nowhere"
			if attrs["system.posix_acl_access"] == nil {
				link.Xattrs = maps.Clone(attrs)
			}
		}
	}
	return t
}

// large is a tree with more and larger contents, and a large directory.
func large() *tree {
	t := newTree()
	for _, n := range sizes(128<<10, 256<<10, 1<<20, 5<<20) {
		t.file(fmt.Sprintf("sizes/text-%d", n), t.text(n))
		t.file(fmt.Sprintf("sizes/random-%d", n), t.random(n))
	}
	t.file("contents/zeros", make([]byte, 20_000_001))
	t.file("contents/period", bytes.Repeat([]byte("abc"), 3_000_000))
	t.file("contents/longperiod", bytes.Repeat(t.random(400_000), 10))
	for i := range 100_000 {
		t.file(fmt.Sprintf("directory/%d", i*7), nil)
	}
	return t
}

// seen is what a guest must see of the tree.
func (t *tree) seen() map[string]vmtest.TreeSeen {
	links := map[*erofs.Node]uint64{}
	var count func(n *erofs.Node)
	count = func(n *erofs.Node) {
		if n.Children == nil {
			links[n]++
			return
		}
		links[n] = 2
		for _, c := range n.Children {
			count(c)
			if c.Children != nil {
				links[n]++
			}
		}
	}
	count(t.root)

	lines := map[string][]byte{}
	entries := map[string]int{}
	first := map[*erofs.Node]string{}
	var walk func(name string, n *erofs.Node)
	walk = func(name string, n *erofs.Node) {
		e := vmtest.Entry{
			Path: name, Mode: n.Mode, UID: n.UID, GID: n.GID, MTime: n.MTime, Nsec: int64(n.MTimeNsec), NLink: links[n],
			Xattrs: n.Xattrs, Target: n.Target,
		}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			e.Size, e.SHA256 = n.Size, t.bodies[n].digest(n.Size)
		case unix.S_IFLNK:
			e.Size = int64(len(n.Target))
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Major, e.Minor = n.RDevMajor, n.RDevMinor
		}
		if f, ok := first[n]; ok {
			e.First = f
		}
		first[n] = name
		if f := e.First; f != "" {
			first[n] = f
		}
		top, _, below := strings.Cut(name, "/")
		if !below && n.Children == nil {
			top = "."
		}
		lines[top] = e.Append(lines[top])
		entries[top]++
		for _, child := range slices.Sorted(maps.Keys(n.Children)) {
			walk(path.Join(name, child), n.Children[child])
		}
	}
	walk(".", t.root)
	seen := map[string]vmtest.TreeSeen{}
	for top := range lines {
		seen[top] = vmtest.TreeSeen{Entries: entries[top], SHA256: fmt.Sprintf("%x", sha256.Sum256(lines[top]))}
	}
	return seen
}

// sparseTree has files that are nearly all zeros.
func sparseTree() *tree {
	t := newTree()
	const gib, mib = 1 << 30, 1 << 20
	t.sparse("sparse/5gib", 5*gib+7,
		extent{0, t.text(9000)},
		extent{16*mib - 100, t.random(5000)},
		extent{4*gib - 4096, t.text(8192)},
		extent{4*gib + 64*mib + 1, t.random(3)},
		extent{5 * gib, []byte("the end")})
	t.sparse("sparse/zeros", 20*mib)
	t.sparse("sparse/zeros-odd", 3*mib+1)
	t.sparse("sparse/begin", 8*mib, extent{0, t.text(4096)})
	t.sparse("sparse/end", 8*mib, extent{8*mib - 1, []byte{1}})
	t.sparse("sparse/middle", 8*mib, extent{3*mib + 5, t.random(70_000)})
	var many []extent
	for i := range int64(50) {
		many = append(many, extent{i * 150_001, t.random(1 + int(i)*97)})
	}
	t.sparse("sparse/many", 8*mib, many...)
	return t
}

// write writes an image into a file and gives the path, and those of the blobs
// that it refers to.
func (t *tree) write(tb testing.TB, dir, name string, v variant) (path string, blobs []string) {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
	}
	spool, err := os.CreateTemp(dir, "spool-")
	must(err)
	defer spool.Close()
	must(os.Remove(spool.Name()))
	w, err := erofs.NewWriter(spool, v.Options)
	must(err)
	for n, body := range t.bodies {
		if n.Size > 0 {
			n.Ref, err = w.Put(io.NewSectionReader(body, 0, n.Size), n.Size)
			must(err)
		}
	}
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		must(err)
		tb.Cleanup(func() { f.Close() })
		return f
	}
	out := create(name + ".erofs")
	digest := sha256.Sum256([]byte(name))
	id := erofs.Identity{UUID: bootconf.UUID(digest[:16]), BuildTime: buildTime}
	if !v.split {
		size, err := w.Write(context.Background(), out, t.root, id)
		must(err)
		must(out.Truncate(size))
		return out.Name(), nil
	}
	// Half of the contents are in a blob already, a part of which is of another
	// tree.
	var data []byte
	for i, n := range slices.SortedFunc(maps.Keys(t.bodies), func(a, b *erofs.Node) int { return cmp.Compare(a.Ref, b.Ref) }) {
		if i%2 == 0 && n.Size < 16<<20 {
			b := make([]byte, (n.Size+4095)/4096*4096+4096)
			_, err := t.bodies[n].ReadAt(b[:n.Size], 0)
			must(err)
			data = append(data, b...)
		}
	}
	old, fresh := create(name+".old"), create(name+".new")
	_, err = old.Write(data)
	must(err)
	s, err := w.WriteSplit(context.Background(), out, fresh, []erofs.Blob{{SHA256: sha256.Sum256(data), Size: int64(len(data)), Data: old}}, t.root, id)
	must(err)
	must(out.Truncate(s.Size))
	if len(s.Devices) != 2 || !s.New {
		tb.Fatalf("%s: devices %v, new %t; want an old and a new blob", name, s.Devices, s.New)
	}
	return out.Name(), []string{old.Name(), fresh.Name()}
}
