package builder

import (
	"fmt"
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
		t := unix.Timespec{Sec: n.MTime, Nsec: int64(n.MTimeNsec)}
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
