package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// readDir reads the hierarchy below dir as lstat shows it. Contents stay in
// their files and are added to w. What the user may not read is an error that
// names it; extended attributes that the system does not show him are left out.
func readDir(ctx context.Context, dir string, w ImageWriter) (*cpio.Tree, error) {
	r := dirReader{ctx: ctx, writer: w, seen: make(map[inode]*cpio.Node), xattrs: make(map[string]map[string][]byte)}
	root, err := r.node(dir, "")
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	return cpio.NewTree(root), nil
}

type inode struct{ dev, ino uint64 }

type dirReader struct {
	ctx    context.Context
	writer ImageWriter
	seen   map[inode]*cpio.Node // of what has several names
	// Most files of a tree have one of a few sets of attributes, as with
	// SELinux; equal ones are kept once.
	xattrs map[string]map[string][]byte
	buf    []byte
}

// node reads what has a name in a directory; no name is the directory itself.
func (r *dirReader) node(dir, name string) (*cpio.Node, error) {
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	id := inode{st.Dev, st.Ino}
	if n, ok := r.seen[id]; ok {
		n.NLink++
		return n, nil
	}
	n := &cpio.Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Sec, MTimeNsec: uint32(st.Mtim.Nsec), NLink: 1}
	var err error
	switch n.Type() {
	case cpio.TypeDir:
		n.NLink = 2
		err = r.children(path, n)
	case cpio.TypeSymlink:
		n.Target, err = os.Readlink(path)
	case cpio.TypeRegular:
		err = r.content(dir, name, n, &st)
	case cpio.TypeChar, cpio.TypeBlock:
		n.RDevMajor, n.RDevMinor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err == nil {
		n.Xattrs, err = r.attributes(path)
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
		child, err := r.node(path, e.Name())
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

func (r *dirReader) content(dir, name string, n *cpio.Node, st *unix.Stat_t) error {
	c := &fileContent{dir: dir, name: name, inode: inode{st.Dev, st.Ino}, size: st.Size, mtime: st.Mtim}
	if st.Size == 0 {
		_, err := c.ReadAt(nil, 0) // it can be read
		return err
	}
	var err error
	n.Size = st.Size
	n.Ref, err = r.writer.Add(c, st.Size)
	return err
}

// fileContent is the content of a file that is opened for each reading, so that
// any number of them can wait. If the file is no longer the one that was seen,
// reading fails.
type fileContent struct {
	dir, name string
	inode
	size  int64
	mtime unix.Timespec
}

func (c *fileContent) ReadAt(p []byte, off int64) (n int, err error) {
	path := filepath.Join(c.dir, c.name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for n < len(p) {
		got, err := unix.Pread(fd, p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return n, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n += got; got == 0 {
			break
		}
	}
	// Behind the reading, this also finds what changed during it.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return n, &fs.PathError{Op: "fstat", Path: path, Err: err}
	}
	if (inode{st.Dev, st.Ino}) != c.inode || st.Size != c.size || st.Mtim != c.mtime {
		return 0, fmt.Errorf("read %s: the file changed since the directory was read", path)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// attributes reads the extended attributes of a file, not of what a symlink
// points to.
func (r *dirReader) attributes(path string) (map[string][]byte, error) {
	list, err := r.grow(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	all := make(map[string][]byte)
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if !erofs.HasXattrClass(name) {
			continue
		}
		value, err := r.grow(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed a moment ago
		}
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr " + name + " of", Path: path, Err: err}
		}
		all[name] = slices.Clone(value)
	}
	if len(all) == 0 {
		return nil, nil
	}
	key := formatXattrs(all)
	if known, ok := r.xattrs[key]; ok {
		return known, nil
	}
	r.xattrs[key] = all
	return all, nil
}

// grow calls fn with a buffer that is large enough. What it gives is valid until
// the next call.
func (r *dirReader) grow(fn func(p []byte) (int, error)) ([]byte, error) {
	if r.buf == nil {
		r.buf = make([]byte, 1024)
	}
	for {
		n, err := fn(r.buf)
		if !errors.Is(err, unix.ERANGE) {
			return r.buf[:max(n, 0)], err
		}
		r.buf = make([]byte, 2*len(r.buf)) // the kernel bounds both lists and values to 64 KiB
	}
}

// formatXattrs gives attributes in a form that is the same for equal ones only.
func formatXattrs(xattrs map[string][]byte) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		fmt.Fprintf(&b, " %q=%q", name, xattrs[name])
	}
	return b.String()
}
