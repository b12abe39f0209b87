package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
)

// unpacked is a tree on disk as an ordinary user can make it: names, links,
// contents and times are real, while owners, modes and device numbers are only
// in its fakeroot state.
type unpacked struct {
	dir   string
	paths map[*cpio.Node]string // first name of each node, below dir
	order []*cpio.Node          // parents first
}

// unpack makes the tree below the empty directory dir. Contents are moved out
// of s. Device nodes, fifos and sockets become empty regular files.
func unpack(dir string, tree *cpio.Tree, s *spool) (*unpacked, error) {
	u := &unpacked{dir: dir, paths: make(map[*cpio.Node]string)}
	if err := tree.Walk(func(path string, n *cpio.Node) error { return u.add(path, n, s) }); err != nil {
		return nil, err
	}
	// A directory's time changes with each entry, so it is set after them.
	for i := len(u.order) - 1; i >= 0; i-- {
		n := u.order[i]
		path := u.paths[n]
		t := unix.Timespec{Sec: n.MTime}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &fs.PathError{Op: "utimensat", Path: path, Err: err}
		}
	}
	return u, nil
}

func (u *unpacked) add(path string, n *cpio.Node, s *spool) error {
	if !filepath.IsLocal(path) {
		return fmt.Errorf("unpack: path %q leads out of the tree", path)
	}
	path = filepath.Join(u.dir, path)
	if first, ok := u.paths[n]; ok {
		return os.Link(first, path)
	}
	u.paths[n] = path
	u.order = append(u.order, n)
	switch n.Type() {
	case cpio.TypeDir:
		if path == filepath.Clean(u.dir) {
			return nil
		}
		return os.Mkdir(path, 0o700)
	case cpio.TypeSymlink:
		return os.Symlink(n.Target, path)
	case cpio.TypeRegular:
		if n.Size > 0 {
			return os.Rename(s.path(n.Ref), path)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
	if err != nil {
		return err
	}
	return f.Close()
}

// fakerootState gives the save file from which `fakeroot -i` knows the owner,
// mode and device number of each inode: the format of faked's save_database.
func (u *unpacked) fakerootState() (string, error) {
	var b strings.Builder
	for _, n := range u.order {
		var st unix.Stat_t
		if err := unix.Lstat(u.paths[n], &st); err != nil {
			return "", &fs.PathError{Op: "lstat", Path: u.paths[n], Err: err}
		}
		fmt.Fprintf(&b, "dev=%x,ino=%d,mode=%o,uid=%d,gid=%d,nlink=%d,rdev=%d\n",
			st.Dev, st.Ino, n.Mode, n.UID, n.GID, st.Nlink, unix.Mkdev(n.RDevMajor, n.RDevMinor))
	}
	return b.String(), nil
}

// readDir reads the hierarchy below dir as lstat shows it, contents into s.
// What the user may not read is an error that names it.
func readDir(dir string, s cpio.Store) (*cpio.Tree, error) {
	r := dirReader{store: s, seen: make(map[inode]*cpio.Node)}
	root, err := r.node(dir)
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	var empty bytes.Buffer
	if err := cpio.NewWriter(&empty).Close(); err != nil {
		return nil, err
	}
	tree, err := cpio.ReadTree(cpio.NewReader(&empty), s)
	if err != nil {
		return nil, err
	}
	*tree.Root() = *root
	return tree, nil
}

type inode struct{ dev, ino uint64 }

type dirReader struct {
	store cpio.Store
	seen  map[inode]*cpio.Node // of what has several names
}

func (r *dirReader) node(path string) (*cpio.Node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	id := inode{st.Dev, st.Ino}
	if n, ok := r.seen[id]; ok {
		n.NLink++
		return n, nil
	}
	n := &cpio.Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Sec, NLink: 1}
	var err error
	switch n.Type() {
	case cpio.TypeDir:
		n.NLink = 2
		err = r.children(path, n)
	case cpio.TypeSymlink:
		n.Target, err = os.Readlink(path)
	case cpio.TypeRegular:
		err = r.content(path, n, st.Size)
	case cpio.TypeChar, cpio.TypeBlock:
		n.RDevMajor, n.RDevMinor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err != nil {
		return nil, err
	}
	if st.Nlink > 1 && !n.IsDir() {
		r.seen[id] = n
	}
	return n, nil
}

func (r *dirReader) children(path string, n *cpio.Node) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	n.Children = make(map[string]*cpio.Node, len(entries))
	for _, e := range entries {
		child, err := r.node(filepath.Join(path, e.Name()))
		if err != nil {
			return err
		}
		n.Children[e.Name()] = child
		if child.IsDir() {
			n.NLink++
		}
	}
	return nil
}

func (r *dirReader) content(path string, n *cpio.Node, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if size == 0 {
		return nil // but it can be read
	}
	n.Size = size
	n.Ref, err = r.store.Put(io.LimitReader(f, size), size)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read %s: the file became shorter: %w", path, err)
	}
	return err
}
