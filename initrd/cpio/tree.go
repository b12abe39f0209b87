package cpio

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// Node is a file of a Tree. Hard links are one *Node under several names.
type Node struct {
	Mode      uint32 // with the S_IFMT bits of Linux
	UID, GID  uint32
	MTime     int64 // seconds since 1970
	RDevMajor uint32
	RDevMinor uint32
	Size      int64            // of a regular file, bytes
	Ref       int64            // of its content, valid while Size is not 0
	Target    string           // of a symlink
	NLink     int              // names; of a directory 2 and one for each subdirectory
	Children  map[string]*Node // of a directory

	// What no archive has; trees of other sources may.
	MTimeNsec uint32
	Xattrs    map[string][]byte // by full name, as "user.x"
}

// Type gives the S_IFMT bits of the mode.
func (n *Node) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Type() == TypeDir }

// Store keeps the content of regular files while ReadTree works. Put reads
// body to its end, size bytes and never 0, and names the content. Delete is
// called when content is replaced or removed by a later entry.
type Store interface {
	Put(body io.Reader, size int64) (ref int64, err error)
	Delete(ref int64) error
}

// Tree is the hierarchy that the kernel's unpacker leaves behind.
type Tree struct {
	// Dropped names the entries that the kernel passes over without an error,
	// each as "name: reason", in the archive's order.
	Dropped []string

	root *Node
}

const (
	maxLinks = 40   // symlinks followed in one path, as the kernel does
	maxDepth = 2048 // of directories; what PATH_MAX can name

	// treeLimit bounds the bytes of memory for a tree. A real initramfs has
	// a few thousand entries.
	treeLimit = 256 << 20
	// entryBytes is what an entry costs, besides its name and target.
	entryBytes = 512
)

// What makes the kernel drop an entry.
var (
	errMissing  = errors.New("no such directory on its path")
	errNotDir   = errors.New("not a directory on its path")
	errLoop     = errors.New("too many symlinks on its path")
	errLongName = errors.New("name is too long")
	errNotEmpty = errors.New("a directory of this name is not empty")
	errLink     = errors.New("hard link to a file that is gone")
	errBody     = errors.New("has a body and is not a regular file")
	errType     = errors.New("unknown file type")
	errTarget   = errors.New("bad symlink target")
)

// ReadTree reads an initramfs to its end and gives the tree that
// init/initramfs.c would unpack it to: later entries override earlier ones,
// an entry whose directory is missing is dropped, names are resolved through
// the symlinks that are there at that moment and never leave the tree. Hard
// links have their data on any of their names. The times of directories are
// set at the end; for one that comes twice, the first time stays.
//
// A symlink without a target is dropped too, because nothing but the kernel's
// unpacker could make one. A root that the archive does not describe has mode
// 0755 and time 0; the kernel's depends on what rootfs is.
//
// The tree holds what the archive holds, and /dev and /root, which the kernel's
// own built-in archive makes, where an entry lies below them.
//
// Memory grows with the number of entries up to a bound, beyond which an
// archive is refused. Errors are as those of Reader; errors of the store are
// wrapped and have the place of the entry.
func ReadTree(r *Reader, s Store) (*Tree, error) {
	return readTree(r, s, treeLimit)
}

func readTree(r *Reader, s Store, limit int) (*Tree, error) {
	u := &unpacker{
		tree:  &Tree{root: newDir(0o755)},
		r:     r,
		store: s,
		links: make(map[linkKey]string),
	}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if limit -= entryBytes + 2*len(h.Name); h.Mode&TypeMask == TypeSymlink {
			limit -= int(h.Size)
		}
		if limit < 0 {
			return nil, r.at(h, errors.New("more entries than the limit on memory allows"))
		}
		if err := u.unpack(h); err != nil {
			return nil, r.at(h, err)
		}
	}
	u.setDirTimes()
	return u.tree, nil
}

// at gives err the place of an entry unless it has one.
func (r *Reader) at(h *Header, err error) error {
	var placed *Error
	if errors.As(err, &placed) {
		return err
	}
	return &Error{Segment: h.Segment, Format: r.format, Offset: h.Offset, Err: fmt.Errorf("%s: %w", h.Name, err)}
}

// unpacker follows do_name and its helpers in init/initramfs.c.
type unpacker struct {
	tree     *Tree
	r        *Reader
	store    Store
	archive  int                // whose links are in links
	links    map[linkKey]string // the first name of each inode of an archive
	dirTimes []dirTime
}

type linkKey struct{ devMajor, devMinor, ino, kind uint32 }

type dirTime struct {
	name  string
	mtime int64
}

func newDir(perm uint32) *Node {
	return &Node{Mode: TypeDir | perm, NLink: 2, Children: make(map[string]*Node)}
}

// unpack adds an entry. Its error is final; an entry that the kernel drops is
// recorded.
func (u *unpacker) unpack(h *Header) error {
	if u.archive != u.r.archives {
		u.archive = u.r.archives
		clear(u.links)
	}
	u.builtin(h.Name)
	var drop, err error
	switch kind := h.Mode & TypeMask; {
	case kind == TypeSymlink:
		drop, err = u.symlink(h)
	case kind != TypeRegular && h.Size > 0:
		drop = errBody
	case kind == TypeRegular:
		drop, err = u.regular(h)
	case kind == TypeDir:
		drop, err = u.dir(h)
	case kind == TypeBlock, kind == TypeChar, kind == TypeFIFO, kind == TypeSocket:
		drop, err = u.special(h)
	default:
		if _, drop, err = u.clean(h.Name, h.Mode); drop == nil {
			drop = errType
		}
	}
	if drop != nil {
		u.tree.Dropped = append(u.tree.Dropped, h.Name+": "+drop.Error())
	}
	return err
}

// builtin makes the directories of usr/default_cpio_list where name needs one.
func (u *unpacker) builtin(name string) {
	for dir, perm := range map[string]uint32{"dev": 0o755, "root": 0o700} {
		if strings.HasPrefix(name, dir+"/") && u.tree.root.Children[dir] == nil {
			u.tree.root.put(dir, newDir(perm))
		}
	}
}

// spot is a place in the tree: a name in a directory. For the root, and for a
// path that ends in "..", there is only the node.
type spot struct {
	dir  *Node
	name string
	node *Node // nil if there is nothing of that name
}

// find walks path from the root, through symlinks on the way and, if follow is
// set, at its end. The error is one of those that drop an entry.
func (t *Tree) find(path string, follow bool) (spot, error) {
	dirs := []*Node{t.root}
	todo := components(path)
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if part == ".." {
			dirs = dirs[:max(1, len(dirs)-1)]
			continue
		}
		if len(part) > nameMax {
			return spot{}, errLongName
		}
		dir := dirs[len(dirs)-1]
		n := dir.Children[part]
		isLink := n != nil && n.Type() == TypeSymlink
		switch {
		case len(todo) == 0 && (!isLink || !follow):
			if len(dirs) >= maxDepth {
				return spot{}, errLongName
			}
			return spot{dir, part, n}, nil
		case n == nil:
			return spot{}, errMissing
		case isLink:
			if links++; links > maxLinks {
				return spot{}, errLoop
			}
			if strings.HasPrefix(n.Target, "/") {
				dirs = dirs[:1]
			}
			todo = append(components(n.Target), todo...)
		case n.IsDir():
			dirs = append(dirs, n)
		default:
			return spot{}, errNotDir
		}
	}
	return spot{node: dirs[len(dirs)-1]}, nil
}

func components(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// put gives a node one more name.
func (n *Node) put(name string, child *Node) {
	n.Children[name] = child
	if child.IsDir() {
		n.NLink++
	} else {
		child.NLink++
	}
}

// clean is clean_path: it removes what has the name and another type, unless
// it is a directory with something in it. It gives the spot as it is then.
func (u *unpacker) clean(name string, mode uint32) (s spot, drop, err error) {
	s, drop = u.tree.find(name, false)
	if drop != nil || s.node == nil || (s.node.Mode^mode)&TypeMask == 0 {
		return s, drop, nil
	}
	n := s.node
	if n.IsDir() {
		if s.dir != nil && len(n.Children) == 0 {
			s.dir.NLink--
			delete(s.dir.Children, s.name)
			s.node = nil
		}
		return s, nil, nil
	}
	delete(s.dir.Children, s.name)
	s.node = nil
	if n.NLink--; n.NLink == 0 {
		err = u.truncate(n)
	}
	return s, nil, err
}

// truncate gives up the content of n.
func (u *unpacker) truncate(n *Node) error {
	if n.Type() != TypeRegular || n.Size == 0 {
		return nil
	}
	ref := n.Ref
	n.Size, n.Ref = 0, 0
	return u.store.Delete(ref)
}

// link is maybe_link: it makes the second and further names of an inode.
func (u *unpacker) link(h *Header) (linked bool, drop, err error) {
	if h.NLink < 2 {
		return false, nil, nil
	}
	key := linkKey{h.DevMajor, h.DevMinor, h.Ino, h.Mode & TypeMask}
	first, known := u.links[key]
	if !known {
		u.links[key] = h.Name
		return false, nil, nil
	}
	to, drop, err := u.clean(h.Name, 0)
	if drop != nil || err != nil {
		return false, drop, err
	}
	from, drop := u.tree.find(first, false)
	switch {
	case drop != nil || from.node == nil || from.node.IsDir():
		return false, errLink, nil
	case to.node != nil || to.dir == nil:
		return false, errNotEmpty, nil
	}
	to.dir.put(to.name, from.node)
	return true, nil, nil
}

func (u *unpacker) regular(h *Header) (drop, err error) {
	if _, drop, err = u.clean(h.Name, h.Mode); err != nil {
		return drop, err
	}
	// Even a name that cannot be made is remembered as the inode's first.
	linked, linkDrop, err := u.link(h)
	if err != nil || linkDrop != nil {
		return linkDrop, err
	}
	s, drop := u.tree.find(h.Name, false)
	if drop != nil {
		return drop, nil
	}
	n := s.node
	switch {
	case n == nil:
		n = &Node{Mode: TypeRegular}
		s.dir.put(s.name, n)
	case n.IsDir():
		return errNotEmpty, nil
	case n.Type() != TypeRegular:
		return errLink, nil
	}
	// A file that is there is rewritten, under all its names. A further link
	// without a body leaves the content alone.
	if !linked || h.Size > 0 {
		if err := u.truncate(n); err != nil {
			return nil, err
		}
	}
	if h.Size > 0 {
		ref, err := u.store.Put(u.r, h.Size)
		if err != nil {
			return nil, err
		}
		n.Ref, n.Size = ref, h.Size
	}
	n.setOwner(h)
	n.setPerm(h)
	n.MTime = h.MTime
	return nil, nil
}

func (u *unpacker) dir(h *Header) (drop, err error) {
	u.dirTimes = append(u.dirTimes, dirTime{h.Name, h.MTime})
	s, drop, err := u.clean(h.Name, h.Mode)
	if drop != nil || err != nil {
		return drop, err
	}
	n := s.node
	if n == nil {
		n = newDir(0)
		s.dir.put(s.name, n)
	}
	n.setOwner(h)
	n.setPerm(h)
	return nil, nil
}

// special makes a device node, a FIFO or a socket. One of the same type that
// is there keeps its device number.
func (u *unpacker) special(h *Header) (drop, err error) {
	if _, drop, err = u.clean(h.Name, h.Mode); err != nil {
		return drop, err
	}
	linked, linkDrop, err := u.link(h)
	if linked || linkDrop != nil || err != nil {
		return linkDrop, err
	}
	s, drop := u.tree.find(h.Name, false)
	if drop != nil {
		return drop, nil
	}
	n := s.node
	switch {
	case n == nil:
		n = &Node{Mode: h.Mode & TypeMask}
		if n.Mode == TypeBlock || n.Mode == TypeChar {
			n.RDevMajor, n.RDevMinor = h.RDevMajor, h.RDevMinor
		}
		s.dir.put(s.name, n)
	case n.IsDir():
		drop = errNotEmpty // but it gets the attributes
	}
	n.setOwner(h)
	n.setPerm(h)
	n.MTime = h.MTime
	return drop, nil
}

func (u *unpacker) symlink(h *Header) (drop, err error) {
	target := make([]byte, h.Size)
	if _, err := io.ReadFull(u.r, target); err != nil {
		return nil, unexpected(err)
	}
	s, drop, err := u.clean(h.Name, 0)
	if drop != nil || err != nil {
		return drop, err
	}
	if s.node != nil { // a directory, which gets the attributes
		s.node.setOwner(h)
		s.node.MTime = h.MTime
		return errNotEmpty, nil
	}
	text, _, _ := strings.Cut(string(target), "\x00")
	if text == "" || len(text) >= pathMax {
		return errTarget, nil
	}
	n := &Node{Mode: TypeSymlink | 0o777, Target: text, MTime: h.MTime}
	n.setOwner(h)
	s.dir.put(s.name, n)
	return nil, nil
}

// setOwner is chown, for which the largest number means no change.
func (n *Node) setOwner(h *Header) {
	if h.UID != math.MaxUint32 {
		n.UID = h.UID
	}
	if h.GID != math.MaxUint32 {
		n.GID = h.GID
	}
}

func (n *Node) setPerm(h *Header) { n.Mode = n.Mode&TypeMask | h.Mode&^TypeMask }

// setDirTimes is dir_utime, which works from the last entry to the first and
// by name, whatever has the name by then.
func (u *unpacker) setDirTimes() {
	for _, d := range slices.Backward(u.dirTimes) {
		if s, drop := u.tree.find(d.name, false); drop == nil && s.node != nil {
			s.node.MTime = d.mtime
		}
	}
}

// NewTree makes a tree of nodes that were not read from an archive.
func NewTree(root *Node) *Tree { return &Tree{root: root} }

// Root gives the root directory.
func (t *Tree) Root() *Node { return t.root }

// Lookup gives the node at path, without following symlinks, or nil.
func (t *Tree) Lookup(path string) *Node {
	n := t.root
	for _, part := range components(path) {
		if n = n.Children[part]; n == nil {
			return nil
		}
	}
	return n
}

// Resolve gives the node at path, symlinks followed inside the tree, or nil.
func (t *Tree) Resolve(path string) *Node {
	s, err := t.find(path, true)
	if err != nil {
		return nil
	}
	return s.node
}

// Walk calls fn for every name in the tree, a directory before what it holds,
// names sorted. The root is ".", other paths have no leading slash. It stops
// at the first error.
func (t *Tree) Walk(fn func(path string, n *Node) error) error {
	return walk(".", t.root, fn)
}

func walk(path string, n *Node, fn func(string, *Node) error) error {
	if err := fn(path, n); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(n.Children)) {
		child := name
		if path != "." {
			child = path + "/" + name
		}
		if err := walk(child, n.Children[name], fn); err != nil {
			return err
		}
	}
	return nil
}
