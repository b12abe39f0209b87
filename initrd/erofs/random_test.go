package erofs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/erofs"
)

// parameter is a number from the environment.
func parameter(t testing.TB, name string, normal int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return normal
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWriterRandom writes random trees with random options, and asks every
// oracle. The environment variable EROFS_RANDOM_TREES says how many, and
// EROFS_SEED which one is the first; a failing test's name has its seed.
func TestWriterRandom(t *testing.T) {
	all := combinations()
	first := parameter(t, "EROFS_SEED", 1)
	for seed := first; seed < first+parameter(t, "EROFS_RANDOM_TREES", 12); seed++ {
		r := newRand(uint64(seed))
		c := all[r.IntN(len(all))]
		t.Run(fmt.Sprintf("seed %d, %s", seed, c.name), func(t *testing.T) {
			t.Parallel()
			tr := randomTree(r)
			checkImage(t, tr.write(t, c.options), tr)
		})
	}
}

// The random trees have all that a tree can have.
func TestRandomTree(t *testing.T) {
	types := map[uint32]int{}
	var links, xattrs, bytes, depth int
	for seed := range uint64(20) {
		tr := randomTree(newRand(seed))
		for path, info := range tr.infos() {
			types[info.Mode&unix.S_IFMT]++
			if info.Mode&unix.S_IFMT != unix.S_IFDIR && info.NLink > 1 {
				links++
			}
			xattrs += len(info.Xattrs)
			bytes += int(info.Size)
			depth = max(depth, strings.Count(path, "/"))
		}
	}
	if len(types) != 7 || links < 50 || xattrs < 500 || bytes < 1<<20 || depth < 3 {
		t.Errorf("%d types, %d links, %d xattrs, %d bytes, %d levels", len(types), links, xattrs, bytes, depth)
	}
}

// treeMaker makes a random tree.
type treeMaker struct {
	*rand.Rand
	tree   *testTree
	dirs   []*erofs.Node
	files  []*erofs.Node // whatever may have links
	data   [][]byte      // contents that may come again
	xattrs []string
	times  []int64
}

func randomTree(r *rand.Rand) *testTree {
	m := &treeMaker{Rand: r, tree: newTestTree(), times: []int64{testTime, testTime, testTime - 1}}
	m.attributes(m.tree.root)
	m.dirs = append(m.dirs, m.tree.root)
	for range 1 + m.IntN(1<<m.IntN(10)) {
		m.node()
	}
	return m.tree
}

// pick takes one of the last few, so that some come near to each other.
func pick[T any](r *rand.Rand, list []T) T {
	if r.IntN(2) == 0 {
		list = list[max(0, len(list)-3):]
	}
	return list[r.IntN(len(list))]
}

func (m *treeMaker) node() {
	dir := pick(m.Rand, m.dirs)
	name := m.name()
	if dir.Children[name] != nil {
		return
	}
	if len(m.files) > 0 && m.IntN(8) == 0 {
		dir.Children[name] = pick(m.Rand, m.files)
		return
	}
	n := &erofs.Node{}
	perm := []uint32{0o644, 0o755, uint32(m.IntN(0o10000))}[m.IntN(3)]
	switch kind := m.IntN(20); {
	case kind < 4:
		n.Mode, n.Children = unix.S_IFDIR|perm, map[string]*erofs.Node{}
		m.dirs = append(m.dirs, n)
	case kind < 6:
		n.Mode = unix.S_IFLNK | 0o777
		n.Target = strings.Repeat("../t", 1+m.IntN(1<<m.IntN(10)))
	case kind < 7:
		n.Mode = []uint32{unix.S_IFCHR, unix.S_IFBLK}[m.IntN(2)] | perm
		n.RDevMajor, n.RDevMinor = uint32(m.IntN(1<<m.IntN(13))), uint32(m.IntN(1<<m.IntN(21)))
	case kind < 8:
		n.Mode = []uint32{unix.S_IFIFO, unix.S_IFSOCK}[m.IntN(2)] | perm
	default:
		n.Mode = unix.S_IFREG | perm
		data := m.content()
		n.Size = int64(len(data))
		m.tree.contents[n] = data
	}
	m.attributes(n)
	if n.Children == nil {
		m.files = append(m.files, n)
	}
	dir.Children[name] = n
}

func (m *treeMaker) name() string {
	n := 1 + m.IntN([]int{3, 20, 255}[m.IntN(3)])
	if m.IntN(3) > 0 {
		return strings.Repeat(string(rune('a'+m.IntN(4))), n/2) + strconv.Itoa(m.IntN(1000))
	}
	b := make([]byte, n)
	for i := range b {
		for b[i] == 0 || b[i] == '/' {
			b[i] = byte(m.Uint32())
		}
	}
	if s := string(b); s != "." && s != ".." {
		return s
	}
	return "..."
}

// content is new, or made of what was there before.
func (m *treeMaker) content() []byte {
	size := m.IntN(1 << m.IntN(20))
	if unit := 4096 << m.IntN(6); m.IntN(3) == 0 {
		size = max(0, unit*m.IntN(4)+m.IntN(3)-1)
	}
	var data []byte
	switch m.IntN(8) {
	case 0:
	case 1:
		data = make([]byte, size)
	case 2:
		data = random(m.Uint64(), size)
	case 3:
		data = text(m.Uint64N(50), size)
	case 4, 5:
		for len(m.data) > 0 && len(data) < size {
			old := pick(m.Rand, m.data)
			from := m.IntN(len(old))
			if m.IntN(2) == 0 {
				from = 0
			}
			data = append(data, old[from:]...)
			if m.IntN(2) == 0 {
				data = append(data, random(m.Uint64(), m.IntN(5000))...)
			}
		}
		data = data[:min(len(data), 4*size)]
	default:
		data = mixture(m.Uint64(), size)
	}
	if len(data) > 0 {
		m.data = append(m.data, data)
	}
	return slices.Clip(data)
}

func (m *treeMaker) attributes(n *erofs.Node) {
	switch m.IntN(4) {
	case 0:
		m.times = append(m.times, int64(m.Uint64N(1<<34))-1<<31)
		n.MTimeNsec = uint32(m.IntN(1_000_000_000))
	case 1:
		n.UID, n.GID = uint32(m.IntN(1<<m.IntN(31))), uint32(m.IntN(1<<m.IntN(31)))
	}
	n.MTime = pick(m.Rand, m.times)
	if m.IntN(3) > 0 {
		return
	}
	n.Xattrs = map[string][]byte{}
	for range m.IntN(1 << m.IntN(6)) {
		if len(m.xattrs) == 0 || m.IntN(3) == 0 {
			m.xattrs = append(m.xattrs, fmt.Sprintf("%s.%d", strings.Repeat("x", 1+m.IntN(100)), m.IntN(100)))
		}
		// The kernel allows links and devices no user xattrs.
		class := "trusted."
		if n.Mode&unix.S_IFMT == unix.S_IFREG || n.Children != nil {
			class = []string{"user.", "trusted."}[m.IntN(2)]
		}
		value := bytes.Repeat([]byte{byte('a' + m.IntN(3))}, 1+m.IntN(1<<m.IntN(10)))
		n.Xattrs[class+pick(m.Rand, m.xattrs)] = value
	}
}
