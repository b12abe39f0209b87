package erofs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// choice is a value of one of the writer's options.
type choice struct {
	name string // empty for what is the default
	set  func(*erofs.Options)
}

// dimensions are the values that each of the writer's options has in the matrix.
// A choice that means nothing together with those before it changes nothing, or
// the writer refuses it.
var dimensions = [][]choice{
	{
		{"flat", func(*erofs.Options) {}},
		{"dax", func(o *erofs.Options) { o.DAX = true }},
		{"fast", func(o *erofs.Options) { o.Compress, o.Level = true, lz4hc.Fast }},
		{"default", func(o *erofs.Options) { o.Compress, o.Level = true, lz4hc.Default }},
		{"max", func(o *erofs.Options) { o.Compress, o.Level = true, lz4hc.Max }},
	},
	{pcluster(4 << 10), pcluster(16 << 10), pcluster(64 << 10), pcluster(256 << 10), pcluster(1 << 20)},
	{{"", func(*erofs.Options) {}}, {"tail", func(o *erofs.Options) { o.Ztailpacking = true }}},
	{
		{"", func(*erofs.Options) {}},
		{"pack small", func(o *erofs.Options) { o.PackBytes = 20_000 }},
		{"pack all", func(o *erofs.Options) { o.PackBytes = 1 << 40 }},
	},
	{{"", func(*erofs.Options) {}}, {"dedupe", func(o *erofs.Options) { o.Dedupe = true }}},
	{{"", func(*erofs.Options) {}}, {"holes", func(o *erofs.Options) { o.Holes = true }}},
	{{"", func(*erofs.Options) {}}, chunks(4 << 10), chunks(64 << 10), chunks(1 << 20), chunks(512 << 20)},
}

func chunks(size int) choice {
	return choice{fmt.Sprintf("chunks %dk", size>>10), func(o *erofs.Options) {
		if !o.Compress && !o.Holes { // which chunks imply
			o.ChunkBytes = size
		}
	}}
}

func pcluster(size int) choice {
	return choice{fmt.Sprintf("%dk", size>>10), func(o *erofs.Options) {
		if o.Compress {
			o.PclusterBytes = size
		}
	}}
}

// combination is one value for each of the writer's options.
type combination struct {
	name    string
	options erofs.Options
	indexes []int // of the choices
}

// combinations are all that the writer accepts and that differ.
func combinations() []combination {
	var all []combination
	seen := map[string]bool{}
	indexes := make([]int, len(dimensions))
	var add func(d int, names []string, o erofs.Options)
	add = func(d int, names []string, o erofs.Options) {
		if d == len(dimensions) {
			key := fmt.Sprintf("%+v", o)
			if _, err := erofs.NewWriter(&memory{}, o); err == nil && !seen[key] {
				seen[key] = true
				all = append(all, combination{strings.Join(names, " "), o, slices.Clone(indexes)})
			}
			return
		}
		for i, c := range dimensions[d] {
			indexes[d] = i
			with, changed := names, o
			c.set(&changed)
			if c.name != "" && (d == 0 || fmt.Sprint(changed) != fmt.Sprint(o)) {
				with = append(slices.Clone(names), c.name)
			}
			add(d+1, with, changed)
		}
	}
	add(0, nil, erofs.Options{})
	return all
}

// matrixCase is an image of the matrix.
type matrixCase struct {
	tree string
	combination
}

func (c *matrixCase) String() string { return c.tree + "/" + c.name }

// fullMatrix reports whether everything is to be tested, as `make vmtest` does.
func fullMatrix() bool { return os.Getenv("INITOVERLAYFS_VM") == "full" }

// matrix gives each tree with every combination, or so few of them that any two
// choices come together in an image, and each tree with the choices of the first
// dimension.
func matrix(trees []string, full bool) []matrixCase {
	var all []matrixCase
	for _, tree := range trees {
		for _, c := range combinations() {
			all = append(all, matrixCase{tree, c})
		}
	}
	if full {
		return all
	}
	type pair [4]int // dimension, choice, dimension, choice
	treeNumber := map[string]int{}
	pairs := make([][]pair, len(all))
	missing := map[pair]bool{}
	for n, c := range all {
		if _, ok := treeNumber[c.tree]; !ok {
			treeNumber[c.tree] = len(treeNumber)
		}
		values := append(slices.Clone(c.indexes), treeNumber[c.tree])
		for a := range values {
			for b := range a {
				if a == len(dimensions) && b > 0 {
					continue
				}
				p := pair{a, values[a], b, values[b]}
				pairs[n] = append(pairs[n], p)
				missing[p] = true
			}
		}
	}
	var chosen []matrixCase
	for len(missing) > 0 {
		best, most := 0, 0
		for n := range all {
			count := 0
			for _, p := range pairs[n] {
				if missing[p] {
					count++
				}
			}
			if count > most {
				best, most = n, count
			}
		}
		for _, p := range pairs[best] {
			delete(missing, p)
		}
		chosen = append(chosen, all[best])
	}
	return chosen
}

// TestWriterMatrix writes trees that stress one feature each with combinations of
// options. The reader, fsck.erofs and the kernel find what was written, and
// neither Check nor fsck.erofs finds anything else.
func TestWriterMatrix(t *testing.T) {
	tests := matrix(slices.Sorted(maps.Keys(trees)), fullMatrix())
	t.Logf("%d images of %d", len(tests), len(trees)*len(combinations()))
	for _, test := range tests {
		t.Run(test.String(), func(t *testing.T) {
			t.Parallel()
			tr := trees[test.tree]()
			image := tr.write(t, test.options)
			sb, err := erofs.ReadSuperblock(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sb.Size(), int64(len(image)); got != want {
				t.Errorf("superblock has %d bytes, want %d", got, want)
			}
			if sb.UUID != testIdentity.UUID || sb.VolumeName != testIdentity.Label || sb.BuildTime != testTime {
				t.Errorf("superblock has %s %q %d", sb.UUID, sb.VolumeName, sb.BuildTime)
			}
			checkImage(t, image, tr)
		})
	}
}

// TestWriterDeterministic: neither the number of workers or processors makes a
// difference nor the order in which contents were put, nor what was put and
// deleted again.
func TestWriterDeterministic(t *testing.T) {
	names := []string{"pieces", "parts", "mixed", "equal", "links"}
	if fullMatrix() {
		names = slices.Sorted(maps.Keys(trees))
	}
	tests := matrix(names, false)
	for n, test := range tests {
		if n%5 > 0 && !fullMatrix() {
			continue
		}
		tr := trees[test.tree]()
		o := test.options
		o.Workers = 1
		want := sha256.Sum256(tr.write(t, o))
		compare := func(what string, image []byte) {
			if sha256.Sum256(image) != want {
				t.Errorf("%s: with %s the image differs", &test, what)
			}
		}
		for workers := 2; workers <= 4; workers++ {
			if fullMatrix() || workers == 2+n%3 {
				o.Workers = workers
				compare(fmt.Sprintf("%d workers", workers), tr.write(t, o))
			}
		}
		o.Workers = 0
		before := runtime.GOMAXPROCS(1 + n%2)
		compare(fmt.Sprintf("GOMAXPROCS=%d and junk in the spool", 1+n%2), tr.writeAmongJunk(t, o))
		runtime.GOMAXPROCS(before)
	}
}

// writeAmongJunk is write with contents in between that are deleted again.
func (tr *testTree) writeAmongJunk(t testing.TB, o erofs.Options) []byte {
	t.Helper()
	w, err := erofs.NewWriter(&memory{}, o)
	if err != nil {
		t.Fatal(err)
	}
	put := func(data []byte) int64 {
		ref, err := w.Put(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	for n, data := range tr.contents {
		junk := []int64{put(data[:len(data)/2]), put(data)}
		if n.Size > 0 {
			n.Ref = put(data)
		}
		for _, ref := range junk {
			if err := w.Delete(ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	var out memory
	size, err := w.Write(context.Background(), &out, tr.root, testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	return append(out.b, make([]byte, size-int64(len(out.b)))...)
}

// Tails of nearly a block lie in one, whatever is before them.
func TestWriterTails(t *testing.T) {
	tr := trees["tails"]()
	for _, size := range []int{4 << 10, 64 << 10} {
		image := tr.write(t, erofs.Options{Compress: true, PclusterBytes: size, Ztailpacking: true})
		checkReader(t, image, tr.infos())
		checkFsckAccepts(t, image)
	}
}

// checkImage asks every oracle.
func checkImage(t *testing.T, image []byte, tr *testTree) {
	t.Helper()
	want := tr.infos()
	checkReader(t, image, want)
	sb, err := erofs.ReadSuperblock(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range allUtils(t) {
		if u.knows(sb.FeatureIncompat, want) {
			t.Run("fsck "+u.version, func(t *testing.T) {
				if u.version < "1.9" && sb.FeatureIncompat&erofs.FeatureIncompatChunkedFile != 0 && tr.zeroBlocks() {
					checkFsckOnly(t, u, image)
					return
				}
				checkFsck(t, u, image, want)
			})
		}
	}
	t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want) })
}

// zeroBlocks reports whether a file has a block of zeros. If that is a hole,
// fsck.erofs 1.5 extracts the file without it.
func (tr *testTree) zeroBlocks() bool {
	for _, data := range tr.contents {
		for block := range slices.Chunk(data, blockSize) {
			if len(bytes.Trim(block, "\x00")) == 0 {
				return true
			}
		}
	}
	return false
}

// knows reports whether this version can extract an image. 1.5 has no fragments,
// and takes names of 255 bytes for broken.
func (u utils) knows(incompat uint32, want map[string]nodeInfo) bool {
	if u.version >= "1.9" {
		return true
	}
	if incompat&^(erofs.FeatureIncompatFragments-1) != 0 {
		return false
	}
	for path := range want {
		if len(path)-strings.LastIndexByte(path, '/')-1 == 255 {
			return false
		}
	}
	return true
}

// Each pair of choices is in the selection, and it is a small part of the matrix.
func TestMatrix(t *testing.T) {
	names := slices.Sorted(maps.Keys(trees))
	all, chosen := matrix(names, true), matrix(names, false)
	if len(chosen) > len(all)/10 {
		t.Errorf("%d of %d images are chosen", len(chosen), len(all))
	}
	pairs := func(cases []matrixCase) map[string]bool {
		m := map[string]bool{}
		for _, c := range cases {
			for a, i := range c.indexes {
				if a == 0 {
					m[fmt.Sprint(c.tree, i)] = true
				}
				for b, j := range c.indexes[:a] {
					m[fmt.Sprint(a, i, b, j)] = true
				}
			}
		}
		return m
	}
	if got, want := pairs(chosen), pairs(all); !maps.Equal(got, want) {
		t.Errorf("%d pairs of %d are chosen", len(got), len(want))
	}
	if len(trees) < 15 || len(combinations()) < 100 {
		t.Errorf("%d trees, %d combinations", len(trees), len(combinations()))
	}
}

func init() {
	maps.Copy(trees, stressTrees)
	trees["shared"] = sharedTree
}

// stressTrees are trees besides those of the other tests.
var stressTrees = map[string]func() *testTree{
	"boundaries": func() *testTree {
		tr := newTestTree()
		sizes := map[int]bool{1: true}
		for _, unit := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
			for n := 1; n <= 3 && n*unit <= 1<<20; n++ {
				sizes[n*unit-1], sizes[n*unit], sizes[n*unit+1] = true, true, true
			}
		}
		for _, n := range slices.Sorted(maps.Keys(sizes)) {
			tr.file(fmt.Sprintf("text/%d", n), text(uint64(n%13), n))
			tr.file(fmt.Sprintf("zeros/%d", n), make([]byte, n))
			if n < 300_000 {
				tr.file(fmt.Sprintf("random/%d", n), random(uint64(n%13), n))
				// A whole block of it is compressed to about this size.
				tr.file(fmt.Sprintf("random to/%d", n), append(random(uint64(n), n), make([]byte, 40_000)...))
			}
		}
		return tr
	},
	"tails": func() *testTree {
		// Tails of about a block, behind inodes at every place in theirs.
		tr := newTestTree()
		for i := range 300 {
			data := append(make([]byte, 3000), random(uint64(i), 3900+i)...)
			tr.file(fmt.Sprint("compact ", i), data)
			n := tr.file(fmt.Sprint("extended ", i), append(data, data...))
			n.MTime += int64(i % 3)
			n.Xattrs = map[string][]byte{"user.x": make([]byte, 1+i*5%120)}
		}
		return tr
	},
	"repetitive": func() *testTree {
		tr := newTestTree()
		for _, period := range []int{1, 2, 3, 4, 5, 7, 8, 13, 255, 4095, 4096, 4097, 65534, 65535, 65536, 70_000} {
			tr.file(fmt.Sprint(period), bytes.Repeat(random(uint64(period), period), 1+600_000/period))
		}
		return tr
	},
	"mixed": func() *testTree {
		tr := newTestTree()
		for i := range 12 {
			tr.file(fmt.Sprint(i), mixture(uint64(i), 50_000<<(i%6)))
		}
		return tr
	},
	"parts": func() *testTree {
		// Equal parts at other places, and ends that are equal.
		tr := newTestTree()
		base := mixture(1, 400_000)
		for i, shift := range []int{0, 1, 100, 4095, 4096, 4097, 30_000, 131_072} {
			tr.file(fmt.Sprintf("before %d", i), append(text(uint64(i), shift), base...))
			tr.file(fmt.Sprintf("after %d", i), append(bytes.Clone(base[:len(base)-shift]), text(uint64(i), 5000)...))
			tr.file(fmt.Sprintf("end %d", i), append(random(uint64(i), 1000+shift), base[len(base)-9000:]...))
			tr.file(fmt.Sprintf("inside %d", i), bytes.Clone(base[shift:min(len(base), 3*shift+50)]))
		}
		return tr
	},
	"holes": func() *testTree {
		tr := newTestTree()
		tr.file("nothing", make([]byte, 3<<20))
		for i, at := range []int{0, 4095, 4096, 65_536, 1<<20 - 1} {
			sparse := make([]byte, 1<<20)
			copy(sparse[at:], text(uint64(i), 5000))
			tr.file(fmt.Sprintf("text at %d", at), sparse)
			sparse = make([]byte, at+1)
			sparse[at] = 1
			tr.file(fmt.Sprintf("one byte at %d", at), sparse)
		}
		checker := make([]byte, 400_000)
		for at := 0; at < len(checker); at += 8192 {
			copy(checker[at:], random(uint64(at), 4096))
		}
		tr.file("every other block", checker)
		return tr
	},
	"large xattrs": func() *testTree {
		tr := newTestTree()
		const long = "system.posix_acl_default, were it not for the prefix of user"
		many := func(n int, value string) map[string][]byte {
			m := map[string][]byte{}
			for i := range n {
				m[fmt.Sprintf("user.%s.%d", long[:10+i%40], i)] = []byte(value)
			}
			return m
		}
		for name, xattrs := range map[string]map[string][]byte{
			"255 shared":       many(255, "shared"),
			"255 shared too":   many(255, "shared"),
			"300 shared":       many(300, "shared"),
			"255 of its own":   many(255, "own"),
			"long names":       {"user." + strings.Repeat("n", 250): []byte("v"), "trusted." + strings.Repeat("n", 247): []byte("v")},
			"64 KiB":           {"user.v": bytes.Repeat([]byte("v"), 65535)},
			"4 of 60 KB":       {"user.a": random(1, 60_000), "user.b": random(2, 60_000), "user.c": random(3, 60_000), "trusted.d": random(4, 60_000)},
			"shared of 60 KB":  {"user.s": random(5, 60_000)},
			"shared of 60 KB2": {"user.s": random(5, 60_000)},
			"a block":          {"user.x": random(6, 4096-32-12-4-1)},
			"a block and more": {"user.x": random(7, 4096-32-12-4-1+1)},
			"two blocks":       {"user.x": random(8, 8192-64-12-4-1)},
		} {
			for kind, n := range map[string]*erofs.Node{
				"file":  tr.file(name+"/file", text(uint64(len(name)), 9000)),
				"small": tr.file(name+"/small", []byte(name)),
				"dir":   tr.add(name+"/dir", dirNode()),
				"link":  tr.add(name+"/link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: testTime, Target: "file"}),
			} {
				n.Xattrs = maps.Clone(xattrs)
				if kind == "link" {
					// The kernel allows a link no user xattrs.
					n.Xattrs = map[string][]byte{}
					for key, value := range xattrs {
						_, rest, _ := strings.Cut(key, ".")
						n.Xattrs["trusted."+rest[:min(len(rest), 247)]] = value
					}
				}
			}
		}
		return tr
	},
	"times": func() *testTree {
		tr := newTestTree()
		for _, s := range []int64{-1 << 31, -1_000_000_000, -1, 0, 1, testTime - 1, testTime, testTime + 1,
			1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 33, 15_000_000_000} {
			for _, nsec := range []uint32{0, 1, 999_999_999} {
				tr.add(fmt.Sprintf("%d.%d", s, nsec), &erofs.Node{Mode: unix.S_IFREG | 0o644, MTime: s, MTimeNsec: nsec})
			}
			dir := tr.add(fmt.Sprintf("dir %d", s), dirNode())
			dir.MTime, dir.MTimeNsec = s, 123_456_789
			tr.add(fmt.Sprintf("link %d", s), &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: s, MTimeNsec: 5, Target: "x"})
		}
		return tr
	},
	"owners": func() *testTree {
		tr := newTestTree()
		for _, id := range []uint32{0, 1, 65534, 65535, 65536, 1 << 31, 1<<32 - 2} {
			tr.add(fmt.Sprintf("user %d", id), &erofs.Node{Mode: unix.S_IFREG | 0o4711, UID: id, MTime: testTime})
			tr.add(fmt.Sprintf("group %d", id), &erofs.Node{Mode: unix.S_IFDIR | 0o2711, GID: id, MTime: testTime})
			tr.add(fmt.Sprintf("link %d", id), &erofs.Node{Mode: unix.S_IFLNK | 0o777, UID: id, GID: id, MTime: testTime, Target: "x"})
		}
		for perm := range uint32(8) {
			tr.add(fmt.Sprintf("special %d", perm), &erofs.Node{Mode: unix.S_IFREG | perm<<9 | 0o755, MTime: testTime})
		}
		for _, d := range [][2]uint32{{0, 0}, {1, 255}, {1, 256}, {255, 1}, {256, 1}, {0xfff, 0xfffff}} {
			tr.add(fmt.Sprintf("char %d", d), &erofs.Node{Mode: unix.S_IFCHR | 0o600, MTime: testTime, RDevMajor: d[0], RDevMinor: d[1]})
			tr.add(fmt.Sprintf("block %d", d), &erofs.Node{Mode: unix.S_IFBLK | 0o600, MTime: testTime, RDevMajor: d[0], RDevMinor: d[1]})
		}
		return tr
	},
	"many names": func() *testTree {
		tr := newTestTree()
		for i := range 500 {
			name := fmt.Sprintf("%0*d", 1+i*7%255, i)
			tr.file("dir/"+name, []byte(name))
			tr.file("long/"+strings.Repeat("\xc3\xa4", 126)+fmt.Sprintf("%03d", i), nil)
		}
		return tr
	},
}

// mixture is stretches of every kind of content.
func mixture(seed uint64, n int) []byte {
	b := make([]byte, 0, n+70_000)
	r := newRand(seed)
	for len(b) < n {
		length := 1 + r.IntN(1<<(4+r.IntN(13)))
		switch r.IntN(5) {
		case 0:
			b = append(b, random(r.Uint64(), length)...)
		case 1:
			b = append(b, make([]byte, length)...)
		case 2:
			period := 1 + r.IntN(300)
			b = append(b, bytes.Repeat(random(r.Uint64(), period), 1+length/period)...)
		default:
			b = append(b, text(r.Uint64N(20), length)...)
		}
	}
	return b[:n]
}
