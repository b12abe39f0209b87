package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/compress"
)

// memory is a Store that refuses what ReadTree must not do.
type memory struct {
	bodies map[int64]string
	next   int64
}

func (m *memory) Put(body io.Reader, size int64) (int64, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return 0, err
	}
	if int64(len(b)) != size || size == 0 {
		return 0, fmt.Errorf("body has %d bytes, announced were %d", len(b), size)
	}
	m.next++
	m.bodies[m.next] = string(b)
	return m.next, nil
}

func (m *memory) Delete(ref int64) error {
	if _, ok := m.bodies[ref]; !ok {
		return fmt.Errorf("no content %d", ref)
	}
	delete(m.bodies, ref)
	return nil
}

// buildTree reads a tree and proves what holds for every tree: the store has
// the content of its files and nothing else, link counts are the numbers of
// names, names are clean and sorted, Lookup finds each.
func buildTree(t testing.TB, data []byte) (*Tree, *memory, error) {
	t.Helper()
	store := &memory{bodies: make(map[int64]string)}
	tree, err := readTree(NewReaderLimit(bytes.NewReader(data), 64<<20), store, 16<<20)
	if err != nil {
		return nil, store, err
	}
	used := make(map[int64]bool)
	links := make(map[*Node]int)
	last := []string{}
	err = tree.Walk(func(name string, n *Node) error {
		if name != "." && (path.Clean(name) != name || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "..")) {
			t.Errorf("name %q is not clean", name)
		}
		if parts := strings.Split(name, "/"); name != "." {
			if slices.Compare(last, parts) >= 0 {
				t.Errorf("%q comes after %q", parts, last)
			}
			last = parts
		}
		if tree.Lookup(name) != n {
			t.Errorf("Lookup(%q) is another node", name)
		}
		links[n]++
		if n.IsDir() {
			links[n] = 2
			for _, child := range n.Children {
				if child.IsDir() {
					links[n]++
				}
			}
		}
		if (n.Children != nil) != n.IsDir() || (n.Target != "") != (n.Type() == TypeSymlink) {
			t.Errorf("%s: bad node %+v", name, n)
		}
		if n.Size > 0 {
			used[n.Ref] = true
			if n.Type() != TypeRegular || int64(len(store.bodies[n.Ref])) != n.Size {
				t.Errorf("%s: size %d, content of %d bytes", name, n.Size, len(store.bodies[n.Ref]))
			}
		}
		tree.Resolve(name)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for n, want := range links {
		if n.NLink != want {
			t.Errorf("link count %d of %+v, want %d", n.NLink, n, want)
		}
	}
	if len(used) != len(store.bodies) {
		t.Errorf("store keeps %d contents, the tree uses %d", len(store.bodies), len(used))
	}
	return tree, store, nil
}

func mustTree(t testing.TB, data []byte) (*Tree, *memory) {
	t.Helper()
	tree, store, err := buildTree(t, data)
	if err != nil {
		t.Fatal(err)
	}
	return tree, store
}

// dump gives a line for each name: type and mode, owner, time, link count,
// name, content.
func dump(tree *Tree, store *memory) (lines []string) {
	err := tree.Walk(func(name string, n *Node) error {
		line := fmt.Sprintf("%c%04o %d:%d @%d n%d %s", "?pc?d?b?-?l?s"[n.Mode>>12], n.Mode&0o7777, n.UID, n.GID, n.MTime, n.NLink, name)
		switch n.Type() {
		case TypeRegular:
			line += fmt.Sprintf(" %q", store.bodies[n.Ref])
		case TypeSymlink:
			line += " -> " + n.Target
		case TypeBlock, TypeChar:
			line += fmt.Sprintf(" %d,%d", n.RDevMajor, n.RDevMinor)
		}
		if name != "." {
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		return append(lines, err.Error())
	}
	return lines
}

func owned(e entry, mode, uid uint32, mtime int64) entry {
	e.Mode = e.Mode&TypeMask | mode
	e.UID, e.GID, e.MTime = uid, uid, mtime
	return e
}

// TestTree is the table of the kernel's rules. Each element of archives is an
// archive of its own. Linux 6.1 left the same when it was given the table, each
// case below a directory, but for the empty symlink target, which it made, and
// the last case, which has no meaning there.
func TestTree(t *testing.T) {
	type archives [][]entry
	for _, tt := range []struct {
		name     string
		archives archives
		want     []string
		dropped  []string
	}{
		{"every type", archives{sample()}, []string{
			"d0755 0:0 @2 n2 dev",
			"c0600 0:0 @100 n1 dev/console 5,1",
			"b0600 0:0 @100 n1 dev/sda 8,1048575",
			`-0644 0:0 @100 n1 empty ""`,
			"p0600 0:0 @100 n1 fifo",
			"l0777 0:0 @100 n1 link -> odd",
			`-0644 0:0 @100 n1 odd "12345"`,
			`-0644 0:0 @100 n2 one "shared"`,
			"s0600 0:0 @100 n1 socket",
			`-4755 1000:0 @4294967295 n1 suid "x"`,
			`-0644 0:0 @100 n2 two "shared"`,
		}, nil},
		{"data on the first link", archives{{link("a", 1, "data"), link("b", 1, "")}},
			[]string{`-0644 0:0 @100 n2 a "data"`, `-0644 0:0 @100 n2 b "data"`}, nil},
		{"data on the middle link, attributes of the last", archives{{
			link("a", 1, ""), link("b", 1, "data"), owned(link("c", 1, ""), 0o600, 5, 300)}},
			[]string{`-0600 5:5 @300 n3 a "data"`, `-0600 5:5 @300 n3 b "data"`, `-0600 5:5 @300 n3 c "data"`}, nil},
		{"data on every link", archives{{link("a", 1, "first"), link("b", 1, "last")}},
			[]string{`-0644 0:0 @100 n2 a "last"`, `-0644 0:0 @100 n2 b "last"`}, nil},
		{"link count 1: no link", archives{{
			{Header{Name: "a", Mode: TypeRegular, Ino: 1, NLink: 1}, "a"}, {Header{Name: "b", Mode: TypeRegular, Ino: 1, NLink: 1}, "b"}}},
			[]string{`-0000 0:0 @0 n1 a "a"`, `-0000 0:0 @0 n1 b "b"`}, nil},
		{"inodes count in one archive only", archives{{link("a", 1, "a")}, {link("b", 1, "b")}},
			[]string{`-0644 0:0 @100 n1 a "a"`, `-0644 0:0 @100 n1 b "b"`}, nil},
		{"inodes count with their device", archives{{
			link("a", 1, "a"), {Header{Name: "b", Mode: TypeRegular, Ino: 1, NLink: 2, DevMinor: 1}, "b"}}},
			[]string{`-0644 0:0 @100 n1 a "a"`, `-0000 0:0 @0 n1 b "b"`}, nil},
		{"inodes count with their type", archives{{
			link("a", 1, "a"), {Header{Name: "p", Mode: TypeFIFO, Ino: 1, NLink: 2}, ""}, {Header{Name: "q", Mode: TypeFIFO, Ino: 1, NLink: 2}, ""}}},
			[]string{`-0644 0:0 @100 n1 a "a"`, "p0000 0:0 @0 n2 p", "p0000 0:0 @0 n2 q"}, nil},
		{"a link replaces what has its name", archives{{file("b", "old"), link("a", 1, "new"), link("b", 1, "")}},
			[]string{`-0644 0:0 @100 n2 a "new"`, `-0644 0:0 @100 n2 b "new"`}, nil},
		{"a link does not replace a full directory", archives{{dir("b", 1), file("b/x", ""), link("a", 1, "new"), link("b", 1, "")}},
			[]string{`-0644 0:0 @100 n1 a "new"`, "d0755 0:0 @1 n2 b", `-0644 0:0 @100 n1 b/x ""`},
			[]string{"b: a directory of this name is not empty"}},
		{"the same link twice is gone", archives{{link("a", 1, "data"), link("a", 1, "")}}, nil,
			[]string{"a: hard link to a file that is gone"}},
		{"link to a dropped name", archives{{link("no/a", 1, ""), link("b", 1, "data")}}, nil,
			[]string{"no/a: no such directory on its path", "b: hard link to a file that is gone"}},

		{"a later file overrides", archives{{file("a", "old")}, {owned(file("a", "new"), 0o755, 3, 200)}},
			[]string{`-0755 3:3 @200 n1 a "new"`}, nil},
		{"a later empty file truncates", archives{{file("a", "old")}, {file("a", "")}}, []string{`-0644 0:0 @100 n1 a ""`}, nil},
		{"overriding rewrites all names of a file", archives{{link("a", 1, "old"), link("b", 1, "")}, {file("a", "new")}},
			[]string{`-0644 0:0 @100 n2 a "new"`, `-0644 0:0 @100 n2 b "new"`}, nil},
		{"a link is cut before another name goes on", archives{{link("a", 1, "old"), link("b", 1, "")}, {symlink("a", "b")}},
			[]string{"l0777 0:0 @100 n1 a -> b", `-0644 0:0 @100 n1 b "old"`}, nil},
		{"file over symlink, not through it", archives{{file("a", "kept"), symlink("l", "a")}, {file("l", "new")}},
			[]string{`-0644 0:0 @100 n1 a "kept"`, `-0644 0:0 @100 n1 l "new"`}, nil},
		{"symlink over file", archives{{file("a", "old")}, {symlink("a", "x")}}, []string{"l0777 0:0 @100 n1 a -> x"}, nil},
		{"symlink over symlink", archives{{symlink("a", "x")}, {symlink("a", "y")}}, []string{"l0777 0:0 @100 n1 a -> y"}, nil},
		{"symlink over an empty directory", archives{{dir("a", 1)}, {symlink("a", "x")}}, []string{"l0777 0:0 @1 n1 a -> x"}, nil},
		{"symlink over a full directory", archives{{dir("a", 1), file("a/x", "")}, {owned(symlink("a", "x"), 0o777, 9, 7)}},
			[]string{"d0755 9:9 @1 n2 a", `-0644 0:0 @100 n1 a/x ""`}, []string{"a: a directory of this name is not empty"}},
		{"file over a full directory", archives{{dir("a", 1), file("a/x", "")}, {file("a", "no")}},
			[]string{"d0755 0:0 @1 n2 a", `-0644 0:0 @100 n1 a/x ""`}, []string{"a: a directory of this name is not empty"}},
		{"file over an empty directory", archives{{dir("a", 1)}, {file("a", "yes")}}, []string{`-0644 0:0 @1 n1 a "yes"`}, nil},
		{"directory over file", archives{{file("a", "old")}, {dir("a", 5)}}, []string{"d0755 0:0 @5 n2 a"}, nil},
		{"directory over directory: new mode and owner, first time, files stay", archives{
			{dir("a", 5), file("a/x", "")}, {owned(dir("a", 0), 0o700, 4, 9)}},
			[]string{"d0700 4:4 @5 n2 a", `-0644 0:0 @100 n1 a/x ""`}, nil},
		{"device over device of its type keeps the number", archives{
			{device("n", TypeChar, 1, 3)}, {owned(device("n", TypeChar, 5, 1), 0o666, 6, 8)}},
			[]string{"c0666 6:6 @8 n1 n 1,3"}, nil},
		{"device over device of another type", archives{{device("n", TypeChar, 1, 3)}, {device("n", TypeBlock, 8, 1)}},
			[]string{"b0600 0:0 @100 n1 n 8,1"}, nil},
		{"device over a full directory", archives{{dir("a", 1), file("a/x", "")}, {owned(device("a", TypeFIFO, 0, 0), 0o1711, 3, 9)}},
			[]string{"d1711 3:3 @1 n2 a", `-0644 0:0 @100 n1 a/x ""`}, []string{"a: a directory of this name is not empty"}},

		{"missing directory", archives{{file("no/a", "x"), symlink("no/l", "x"), dir("no/d", 1), device("no/n", TypeChar, 1, 1)}}, nil, []string{
			"no/a: no such directory on its path", "no/l: no such directory on its path",
			"no/d: no such directory on its path", "no/n: no such directory on its path"}},
		{"directory comes late", archives{{file("d/a", "x"), dir("d", 1), file("d/b", "y")}},
			[]string{"d0755 0:0 @1 n2 d", `-0644 0:0 @100 n1 d/b "y"`}, []string{"d/a: no such directory on its path"}},
		{"file on the path", archives{{file("f", ""), file("f/a", "x")}}, []string{`-0644 0:0 @100 n1 f ""`},
			[]string{"f/a: not a directory on its path"}},
		{"built-in directories", archives{{device("dev/null", TypeChar, 1, 3), file("root/x", "")}},
			[]string{"d0755 0:0 @0 n2 dev", "c0600 0:0 @100 n1 dev/null 1,3", "d0700 0:0 @0 n2 root", `-0644 0:0 @100 n1 root/x ""`}, nil},
		{"through symlinks", archives{{
			dir("usr", 1), dir("usr/lib", 2), symlink("lib", "usr/lib"), symlink("abs", "/lib/../lib"), file("lib/a", "1"), file("abs/b", "2")}},
			[]string{"l0777 0:0 @100 n1 abs -> /lib/../lib", "l0777 0:0 @100 n1 lib -> usr/lib", "d0755 0:0 @1 n3 usr", "d0755 0:0 @2 n2 usr/lib",
				`-0644 0:0 @100 n1 usr/lib/a "1"`, `-0644 0:0 @100 n1 usr/lib/b "2"`}, nil},
		{"symlinks stay in the tree", archives{{symlink("up", "../../.."), dir("d", 1), symlink("d/up", "../.."), file("up/a", "1"), file("d/up/b", "2")}},
			[]string{`-0644 0:0 @100 n1 a "1"`, `-0644 0:0 @100 n1 b "2"`, "d0755 0:0 @1 n2 d", "l0777 0:0 @100 n1 d/up -> ../..", "l0777 0:0 @100 n1 up -> ../../.."}, nil},
		{"symlink loop", archives{{symlink("x", "y"), symlink("y", "x"), file("x/a", "1")}},
			[]string{"l0777 0:0 @100 n1 x -> y", "l0777 0:0 @100 n1 y -> x"}, []string{"x/a: too many symlinks on its path"}},
		{"time of a directory that became a file", archives{{dir("a", 5)}, {file("a", "x")}}, []string{`-0644 0:0 @5 n1 a "x"`}, nil},
		{"long names", archives{{file(strings.Repeat("n", 255), ""), file(strings.Repeat("n", 256), "")}},
			[]string{`-0644 0:0 @100 n1 ` + strings.Repeat("n", 255) + ` ""`}, []string{strings.Repeat("n", 256) + ": name is too long"}},
		{"body of a directory", archives{{{Header{Name: "d", Mode: TypeDir}, "body"}, file("a", "x")}},
			[]string{`-0644 0:0 @100 n1 a "x"`}, []string{"d: has a body and is not a regular file"}},
		{"owner -1 is no change", archives{{owned(file("a", "x"), 0o644, 7, 1)}, {owned(file("a", "x"), 0o644, math.MaxUint32, 1)}},
			[]string{`-0644 7:7 @1 n1 a "x"`}, nil},
		{"no type", archives{{file("a", "x"), {Header{Name: "a", Mode: 0o644}, ""}}}, nil, []string{"a: unknown file type"}},
		{"symlink targets", archives{{symlink("a", ""), symlink("b", "x\x00y"), symlink("c", strings.Repeat("t", 4095)), symlink("d", strings.Repeat("t", 4096))}},
			[]string{"l0777 0:0 @100 n1 b -> x", "l0777 0:0 @100 n1 c -> " + strings.Repeat("t", 4095)},
			[]string{"a: bad symlink target", "d: bad symlink target"}},
		{"file as the root", archives{{file(".", "x"), symlink("/", "y")}}, nil,
			[]string{".: a directory of this name is not empty", ".: a directory of this name is not empty"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var data []byte
			for _, entries := range tt.archives {
				data = append(data, newc(t, entries...)...)
			}
			// The segments' borders must not matter.
			for _, data := range [][]byte{data, pack(t, compress.Gzip, data)} {
				tree, store := mustTree(t, data)
				if d := cmp.Diff(tt.want, dump(tree, store)); d != "" {
					t.Errorf("tree (-want +got):\n%s", d)
				}
				if d := cmp.Diff(tt.dropped, tree.Dropped); d != "" {
					t.Errorf("dropped (-want +got):\n%s", d)
				}
			}
		})
	}
}

func TestRoot(t *testing.T) {
	for _, tt := range []struct {
		entries []entry
		want    Node
	}{
		{nil, Node{Mode: TypeDir | 0o755, NLink: 2}},
		{[]entry{owned(dir(".", 0), 0o711, 3, 9), dir("a", 1)}, Node{Mode: TypeDir | 0o711, UID: 3, GID: 3, MTime: 9, NLink: 3}},
	} {
		tree, _ := mustTree(t, newc(t, tt.entries...))
		got := *tree.Root()
		got.Children = nil
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("root (-want +got):\n%s", d)
		}
	}
}

func TestResolve(t *testing.T) {
	tree, _ := mustTree(t, newc(t, dir("usr", 1), dir("usr/bin", 1), file("usr/bin/sh", "x"),
		symlink("bin", "usr/bin"), symlink("init", "/bin/../bin/./sh"), symlink("x", "x"), symlink("gone", "no")))
	sh := tree.Lookup("usr/bin/sh")
	for path, want := range map[string]*Node{
		"init": sh, "/init": sh, "bin/sh": sh, "./bin//sh": sh, "../../init": sh, "usr/bin": tree.Lookup("usr/bin"),
		"bin": tree.Lookup("usr/bin"), "bin/..": tree.Lookup("usr"), "": tree.Root(), ".": tree.Root(),
		"x": nil, "gone": nil, "no": nil, "init/x": nil,
	} {
		if got := tree.Resolve(path); got != want {
			t.Errorf("Resolve(%q) = %+v, want %+v", path, got, want)
		}
	}
	for _, path := range []string{"bin/sh", "init/x", "no"} {
		if got := tree.Lookup(path); got != nil {
			t.Errorf("Lookup(%q) = %+v, want nil", path, got)
		}
	}
	if got := tree.Lookup("bin"); got == nil || got.Target != "usr/bin" {
		t.Errorf("Lookup(bin) = %+v, want the symlink", got)
	}
}

// TestTreeLimits grows a tree in each way until it is refused.
func TestTreeLimits(t *testing.T) {
	many := func(n int, e func(i int) entry) []entry {
		var entries []entry
		for i := range n {
			entries = append(entries, e(i))
		}
		return entries
	}
	long := strings.Repeat("t", 4000)
	for name, entries := range map[string][]entry{
		"entries":  many(20, func(i int) entry { return file(fmt.Sprint(i), "") }),
		"one name": many(20, func(int) entry { return file("a", "") }),
		"targets":  many(3, func(i int) entry { return symlink(fmt.Sprint(i), long) }),
		"dropped":  many(3, func(i int) entry { return file("no/"+long, "") }),
	} {
		data := pack(t, compress.Zstd, newc(t, entries...))
		_, err := readTree(NewReader(bytes.NewReader(data)), &memory{bodies: make(map[int64]string)}, 10000)
		placed := checkPlace(t, err, "limit on memory")
		if placed != nil && placed.Offset == 0 {
			t.Errorf("%s: refused at once", name)
		}
		mustTree(t, data) // the usual limit lets it pass
	}
}

// TestDepth goes deeper than any path can name, by symlinks.
func TestDepth(t *testing.T) {
	var entries []entry
	at := ""
	for i := range 5 {
		for range 500 {
			at += "d/"
			entries = append(entries, dir(strings.TrimSuffix(at, "/"), 1))
		}
		name := fmt.Sprint("l", i)
		entries = append(entries, symlink(name, at))
		at = name + "/"
	}
	tree, _ := mustTree(t, newc(t, entries...))
	deepest := 0
	if err := tree.Walk(func(name string, _ *Node) error {
		deepest = max(deepest, strings.Count(name, "/")+1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if deepest >= maxDepth || deepest < maxDepth-2 {
		t.Errorf("deepest name has %d components, bound is %d", deepest, maxDepth)
	}
}

// failing is a Store that fails.
type failing struct{ err error }

func (f failing) Put(io.Reader, int64) (int64, error) { return 0, f.err }
func (f failing) Delete(int64) error                  { return nil }

func TestStoreError(t *testing.T) {
	want := errors.New("disk full")
	data := newc(t, dir("d", 1), file("d/a", "x"))
	_, err := ReadTree(NewReader(bytes.NewReader(data)), failing{want})
	checkPlace(t, err, "segment 0 (none), offset 112: d/a: disk full")
	if !errors.Is(err, want) {
		t.Errorf("%v does not wrap the store's error", err)
	}
}

func TestWalkStops(t *testing.T) {
	tree, _ := mustTree(t, newc(t, file("a", ""), file("b", "")))
	want := errors.New("stop")
	var seen []string
	err := tree.Walk(func(name string, _ *Node) error {
		seen = append(seen, name)
		if name == "a" {
			return want
		}
		return nil
	})
	if !errors.Is(err, want) || !slices.Equal(seen, []string{".", "a"}) {
		t.Errorf("Walk = %v after %q", err, seen)
	}
}
