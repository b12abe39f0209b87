package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Dirent is an entry of a directory.
type Dirent struct {
	Name string
	NID  uint64
	Type fs.FileMode // type bits
}

type rawDirent struct {
	name     []byte
	nid      uint64
	fileType uint8
}

// dirBlock reads the entries of a directory's block: the entries, then the names
// without anything between them; fs/erofs/dir.c.
func (i *Inode) dirBlock(number int64, buf []byte) ([]rawDirent, error) {
	bs := i.fs.blockSize()
	off := number * bs
	buf = buf[:min(bs, i.Size-off)]
	if _, err := i.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(buf) < direntSize {
		return nil, i.corruptDir(off, "only %d bytes", len(buf))
	}
	le := binary.LittleEndian
	names := int(le.Uint16(buf[8:]))
	if names == 0 || names%direntSize != 0 || names >= len(buf) {
		return nil, i.corruptDir(off, "names begin at %d", names)
	}
	entries := make([]rawDirent, names/direntSize)
	next := names
	for n := range entries {
		raw := buf[n*direntSize:]
		start, end := int(le.Uint16(raw[8:])), len(buf)
		if n+1 < len(entries) {
			end = int(le.Uint16(raw[direntSize+8:]))
		} else if start < end {
			if zero := bytes.IndexByte(buf[start:], 0); zero >= 0 {
				end = start + zero
			}
		}
		at := off + int64(n)*direntSize
		if start != next || end <= start || end > len(buf) || end-start > maxNameLen {
			return nil, i.corruptDir(at, "a name from %d to %d, expected from %d", start, end, next)
		}
		next = end
		e := rawDirent{name: buf[start:end], nid: le.Uint64(raw), fileType: raw[10]}
		if bytes.IndexByte(e.name, '/') >= 0 || bytes.IndexByte(e.name, 0) >= 0 {
			return nil, i.corruptDir(at, "bad name %q", e.name)
		}
		if e.fileType >= ftCount {
			return nil, i.corruptDir(at, "%q has type %d", e.name, e.fileType)
		}
		if n > 0 && bytes.Compare(entries[n-1].name, e.name) >= 0 {
			return nil, i.corruptDir(at, "%q comes after %q", e.name, entries[n-1].name)
		}
		entries[n] = e
	}
	return entries, nil
}

func (i *Inode) corruptDir(off int64, format string, args ...any) error {
	return fmt.Errorf("EROFS directory %d, byte %d of %d: %w", i.NID, off, i.Size, corruptf(format, args...))
}

func (i *Inode) dirBlocks() int64 {
	bs := i.fs.blockSize()
	return i.Size/bs + min(i.Size%bs, 1)
}

// eachDirent calls fn for the entries in their order, "." and ".." among them,
// until it returns false. Names are unique because each is greater than the one
// before, which is also what looking them up relies on. off is the offset of the
// entry in the directory.
func (i *Inode) eachDirent(fn func(e rawDirent, off int64) bool) error {
	if !i.IsDir() {
		return fmt.Errorf("EROFS inode %d is no directory", i.NID)
	}
	buf := make([]byte, i.fs.blockSize())
	var last []byte
	for number := range i.dirBlocks() {
		entries, err := i.dirBlock(number, buf)
		if err != nil {
			return err
		}
		off := number * i.fs.blockSize()
		if last != nil && bytes.Compare(last, entries[0].name) >= 0 {
			return i.corruptDir(off, "%q comes after %q", entries[0].name, last)
		}
		for n, e := range entries {
			if !fn(e, off+int64(n)*direntSize) {
				return nil
			}
		}
		last = append(last[:0], entries[len(entries)-1].name...)
	}
	return nil
}

func isDotOrDotDot(name []byte) bool { return string(name) == "." || string(name) == ".." }

// ReadDir reads the entries of a directory in the order of their names, without
// "." and "..".
func (i *Inode) ReadDir() ([]Dirent, error) {
	var all []Dirent
	err := i.eachDirent(func(e rawDirent, _ int64) bool {
		if !isDotOrDotDot(e.name) {
			all = append(all, Dirent{string(e.name), e.nid, direntMode(e.fileType)})
		}
		return true
	})
	return all, err
}

func direntMode(fileType uint8) fs.FileMode {
	modes := [ftCount]fs.FileMode{
		ftUnknown: fs.ModeIrregular,
		ftDir:     fs.ModeDir,
		ftChr:     fs.ModeDevice | fs.ModeCharDevice,
		ftBlk:     fs.ModeDevice,
		ftFifo:    fs.ModeNamedPipe,
		ftSock:    fs.ModeSocket,
		ftSymlink: fs.ModeSymlink,
	}
	return modes[fileType]
}

// lookup finds an entry of a directory: first the block by bisection, then the
// entry in it; fs/erofs/namei.c.
func (i *Inode) lookup(name string) (nid uint64, err error) {
	if !i.IsDir() {
		return 0, errNotDir
	}
	buf := make([]byte, i.fs.blockSize())
	low, high := int64(0), i.dirBlocks()
	for low < high {
		middle := low + (high-low)/2
		entries, err := i.dirBlock(middle, buf)
		if err != nil {
			return 0, err
		}
		if strings.Compare(string(entries[0].name), name) > 0 {
			high = middle
			continue
		}
		if strings.Compare(string(entries[len(entries)-1].name), name) < 0 {
			low = middle + 1
			continue
		}
		for _, e := range entries {
			if string(e.name) == name {
				return e.nid, nil
			}
		}
		break
	}
	return 0, fs.ErrNotExist
}
