package erofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
)

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
)

var (
	errNotDir       = errors.New("not a directory")
	errTooManyLinks = errors.New("too many levels of symbolic links")
)

// maxLinks is how many symbolic links the kernel follows on a path.
const maxLinks = 40

// Root reads the inode of the root directory.
func (f *FS) Root() (*Inode, error) {
	root, err := f.InodeAt(f.Super.RootNid)
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("EROFS inode %d: %w", root.NID, corruptf("the root is no directory"))
	}
	return root, nil
}

// Inode finds the inode of a path as in package io/fs: "." is the root. Symbolic
// links on the way are followed, within the image; the last one is not.
func (f *FS) Inode(name string) (*Inode, error) { return f.find("inode", name, false) }

// find finds the inode of a path, whose names need not be UTF-8.
func (f *FS) find(op, name string, follow bool) (*Inode, error) {
	if !fs.ValidPath(strings.ToValidUTF8(name, "?")) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	ino, err := f.resolve(name, follow)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return ino, nil
}

func (f *FS) resolve(name string, follow bool) (*Inode, error) {
	root, err := f.Root()
	if err != nil {
		return nil, err
	}
	// dirs are the directories from the root on to where the walk is.
	dirs, rest, links := []*Inode{root}, strings.Split(name, "/"), 0
	for len(rest) > 0 {
		here := dirs[len(dirs)-1]
		element := rest[0]
		rest = rest[1:]
		switch element {
		case "", ".":
			continue
		case "..":
			dirs = dirs[:max(1, len(dirs)-1)]
			continue
		}
		nid, err := here.lookup(element)
		if err != nil {
			return nil, err
		}
		ino, err := f.InodeAt(nid)
		if err != nil {
			return nil, err
		}
		switch {
		case ino.IsSymlink() && (follow || len(rest) > 0):
			if links++; links > maxLinks {
				return nil, errTooManyLinks
			}
			target, err := ino.LinkTarget()
			if err != nil {
				return nil, err
			}
			if path.IsAbs(target) {
				dirs = dirs[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
		case ino.IsDir():
			dirs = append(dirs, ino)
		case len(rest) > 0:
			return nil, errNotDir
		default:
			return ino, nil
		}
	}
	return dirs[len(dirs)-1], nil
}

// Open opens a file or directory. Files implement io.ReaderAt and io.Seeker.
func (f *FS) Open(name string) (fs.File, error) {
	ino, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	if ino.IsDir() {
		return &openDir{ino: ino, name: name}, nil
	}
	return &openFile{SectionReader: io.NewSectionReader(ino, 0, ino.Size), ino: ino, name: name}, nil
}

// Stat describes a file; Sys of the result is its *Inode.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	ino, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), ino}, nil
}

// Lstat is Stat without following a last symbolic link.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	ino, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return fileInfo{path.Base(name), ino}, nil
}

// ReadLink reads the target of a symbolic link.
func (f *FS) ReadLink(name string) (string, error) {
	ino, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	target, err := ino.LinkTarget()
	if err != nil {
		if !ino.IsSymlink() {
			err = fs.ErrInvalid
		}
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// ReadDir reads a directory.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	ino, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !ino.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDir}
	}
	entries, err := dirEntries(ino)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return entries, nil
}

func dirEntries(dir *Inode) ([]fs.DirEntry, error) {
	all, err := dir.ReadDir()
	entries := make([]fs.DirEntry, len(all))
	for n, e := range all {
		entries[n] = dirEntry{e, dir.fs}
	}
	return entries, err
}

// Walk walks from the root directory as Inode.Walk does.
func (f *FS) Walk(fn func(path string, ino *Inode) error) error {
	root, err := f.Root()
	if err != nil {
		return err
	}
	return root.Walk(fn)
}

// Walk calls fn for the inode, whose path is ".", and everything below it,
// directories before what they hold, in the order of names. It does not follow
// symbolic links. fn may return fs.SkipDir or fs.SkipAll. A directory that is
// found twice is an error, which ends loops, and so is one too deep.
func (i *Inode) Walk(fn func(path string, ino *Inode) error) error {
	w := walk{fs: i.fs, fn: fn, seen: map[uint64]bool{}}
	if err := w.visit(i, 0); err != nil && !errors.Is(err, fs.SkipAll) && !errors.Is(err, fs.SkipDir) {
		return err
	}
	return nil
}

// maxDepth is how deep directories may be nested for Walk and Check, which take
// memory for each.
const maxDepth = 4096

type walk struct {
	fs   *FS
	fn   func(path string, ino *Inode) error
	seen map[uint64]bool // directories
	path []byte
}

func (w *walk) name() string {
	if len(w.path) == 0 {
		return "."
	}
	return string(w.path)
}

func (w *walk) visit(ino *Inode, depth int) error {
	if ino.IsDir() {
		if w.seen[ino.NID] {
			return fmt.Errorf("%s: %w", w.name(), corruptf("directory %d is found twice", ino.NID))
		}
		if depth > maxDepth {
			return fmt.Errorf("%s: %w", w.name(), corruptf("directories more than %d deep", maxDepth))
		}
		w.seen[ino.NID] = true
	}
	if err := w.fn(w.name(), ino); err != nil {
		if ino.IsDir() && errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	if !ino.IsDir() {
		return nil
	}
	entries, err := ino.ReadDir()
	if err != nil {
		return fmt.Errorf("%s: %w", w.name(), err)
	}
	length := len(w.path)
	for _, e := range entries {
		if length > 0 {
			w.path = append(w.path, '/')
		}
		w.path = append(w.path, e.Name...)
		child, err := w.fs.InodeAt(e.NID)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name(), err)
		}
		err = w.visit(child, depth+1)
		w.path = w.path[:length]
		if errors.Is(err, fs.SkipDir) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fileMode is the mode in the form of package io/fs.
func (i *Inode) fileMode() fs.FileMode {
	mode := fs.FileMode(i.Mode&0o777) | direntMode(fileType(i.Mode))
	if i.Mode&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if i.Mode&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if i.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// FileInfo describes the inode by a name that it has.
func (i *Inode) FileInfo(name string) fs.FileInfo { return fileInfo{name, i} }

type fileInfo struct {
	name string
	ino  *Inode
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.ino.Size }
func (i fileInfo) Mode() fs.FileMode  { return i.ino.fileMode() }
func (i fileInfo) ModTime() time.Time { return time.Unix(i.ino.MTime, int64(i.ino.MTimeNsec)) }
func (i fileInfo) IsDir() bool        { return i.ino.IsDir() }
func (i fileInfo) Sys() any           { return i.ino }

type dirEntry struct {
	entry Dirent
	fs    *FS
}

func (e dirEntry) Name() string      { return e.entry.Name }
func (e dirEntry) IsDir() bool       { return e.entry.Type.IsDir() }
func (e dirEntry) Type() fs.FileMode { return e.entry.Type }
func (e dirEntry) String() string    { return fs.FormatDirEntry(e) }

func (e dirEntry) Info() (fs.FileInfo, error) {
	ino, err := e.fs.InodeAt(e.entry.NID)
	if err != nil {
		return nil, err
	}
	return fileInfo{e.entry.Name, ino}, nil
}

type openFile struct {
	*io.SectionReader
	ino  *Inode
	name string
}

func (f *openFile) Stat() (fs.FileInfo, error) { return fileInfo{path.Base(f.name), f.ino}, nil }
func (f *openFile) Close() error               { return nil }

func (f *openFile) Read(p []byte) (int, error) {
	n, err := f.SectionReader.Read(p)
	return n, f.named("read", err)
}

func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.SectionReader.ReadAt(p, off)
	return n, f.named("read", err)
}

// named names the file in an error; io.EOF stays as it is.
func (f *openFile) named(op string, err error) error {
	if err == nil || err == io.EOF { //nolint:errorlint // readers return it bare
		return err
	}
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

type openDir struct {
	ino     *Inode
	name    string
	entries []fs.DirEntry
	read    bool
}

func (d *openDir) Stat() (fs.FileInfo, error) { return fileInfo{path.Base(d.name), d.ino}, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		entries, err := dirEntries(d.ino)
		if err != nil {
			return nil, &fs.PathError{Op: "readdir", Path: d.name, Err: err}
		}
		d.entries, d.read = entries, true
	}
	if n <= 0 {
		n = len(d.entries)
	} else if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	entries := d.entries[:n:n]
	d.entries = d.entries[n:]
	return entries, nil
}
