package builder

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
)

// pathInfo is one path with all that a conversion must keep.
type pathInfo struct {
	Mode     uint32
	UID, GID uint32
	NLink    int
	MTime    int64
	Size     int64
	RDev     string
	Target   string
	SHA256   string
	Inode    string // first path with the same inode
}

// entriesOfTree lists a tree whose contents are in a store.
func entriesOfTree(t *testing.T, tree *cpio.Tree, open func(ref int64) (io.ReadCloser, error)) map[string]pathInfo {
	t.Helper()
	all := make(map[string]pathInfo)
	first := make(map[*cpio.Node]string)
	err := tree.Walk(func(path string, n *cpio.Node) error {
		if _, ok := first[n]; !ok {
			first[n] = path
		}
		e := pathInfo{Mode: n.Mode, UID: n.UID, GID: n.GID, NLink: n.NLink, MTime: n.MTime, Target: n.Target, Inode: first[n]}
		switch n.Type() {
		case cpio.TypeRegular:
			e.Size, e.SHA256 = n.Size, digestOf(nil)
			if n.Size > 0 {
				r, err := open(n.Ref)
				if err != nil {
					return err
				}
				defer r.Close()
				data, err := io.ReadAll(r)
				if err != nil {
					return err
				}
				e.SHA256 = digestOf(data)
			}
		case cpio.TypeSymlink:
			e.Size = int64(len(n.Target))
		case cpio.TypeChar, cpio.TypeBlock:
			e.RDev = fmt.Sprintf("%d:%d", n.RDevMajor, n.RDevMinor)
		}
		all[path] = e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// entriesOfImage lists an image: the attributes from its inodes, the contents
// as fsck.erofs extracts them.
func entriesOfImage(t *testing.T, path string) map[string]pathInfo {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := inodeReader{
		image: data,
		meta:  int(binary.LittleEndian.Uint32(data[1024+40:])) << data[1024+12],
		all:   make(map[string]pathInfo),
		first: make(map[uint64]string),
	}
	r.read(".", uint64(binary.LittleEndian.Uint16(data[1024+14:])))

	out := filepath.Join(t.TempDir(), "extracted")
	// Under fakeroot the extraction may make device nodes.
	cmd := exec.Command(needTool(t, "fakeroot"), needTool(t, "fsck.erofs"), "--extract="+out, "--no-preserve", path)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, text)
	}
	for name, e := range r.all {
		on := filepath.Join(out, name)
		switch e.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(on)
			if err != nil {
				t.Fatal(err)
			}
			e.SHA256 = digestOf(content)
		case unix.S_IFLNK:
			if e.Target, err = os.Readlink(on); err != nil {
				t.Fatal(err)
			}
		}
		r.all[name] = e
	}
	return r.all
}

func digestOf(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// needTool finds a program that a test cannot do without.
func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// inodeReader reads inodes and directories of an image of 4096-byte blocks,
// struct erofs_inode_compact and _extended in fs/erofs/erofs_fs.h. A bad image
// makes it panic.
type inodeReader struct {
	image []byte
	meta  int // offset of nid 0
	all   map[string]pathInfo
	first map[uint64]string
}

func (r *inodeReader) read(path string, nid uint64) {
	le := binary.LittleEndian
	const block = 4096
	start := r.meta + int(nid)*32
	raw := r.image[start:]
	format := le.Uint16(raw)
	if xattrs := le.Uint16(raw[2:]); xattrs != 0 {
		panic(path + " has extended attributes")
	}
	if _, ok := r.first[nid]; !ok {
		r.first[nid] = path
	}
	e := pathInfo{Mode: uint32(le.Uint16(raw[4:])), Inode: r.first[nid]}
	header := 32
	union := le.Uint32(raw[16:])
	if format&1 == 0 {
		e.NLink = int(le.Uint16(raw[6:]))
		e.Size = int64(le.Uint32(raw[8:]))
		e.UID, e.GID = uint32(le.Uint16(raw[24:])), uint32(le.Uint16(raw[26:]))
		e.MTime = int64(le.Uint64(r.image[1024+24:])) // the build's
	} else {
		header = 64
		e.Size = int64(le.Uint64(raw[8:]))
		e.UID, e.GID = le.Uint32(raw[24:]), le.Uint32(raw[28:])
		e.MTime = int64(le.Uint64(raw[32:]))
		e.NLink = int(le.Uint32(raw[44:]))
	}
	size := int(e.Size)
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK: // as new_encode_dev in include/linux/kdev_t.h
		e.RDev = fmt.Sprintf("%d:%d", union>>8&0xfff, union&0xff|union>>12&0xfff00)
		e.Size = 0
	case unix.S_IFDIR:
		e.Size = 0
	}
	r.all[path] = e
	if e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	for at := 0; at < size; at += block {
		n := min(block, size-at)
		from := int(union)*block + at
		if layout := format >> 1 & 7; layout == 2 && size-at < block {
			from = start + header // the tail lies behind the inode
		} else if layout != 0 && layout != 2 {
			panic(fmt.Sprintf("%s: layout %d of a directory", path, layout))
		}
		r.dirents(path, r.image[from:from+n])
	}
}

func (r *inodeReader) dirents(path string, block []byte) {
	le := binary.LittleEndian
	count := int(le.Uint16(block[8:])) / 12
	for i := range count {
		d := block[12*i:]
		begin, end := int(le.Uint16(d[8:])), len(block)
		if i+1 < count {
			end = int(le.Uint16(d[12+8:]))
		}
		name := strings.TrimRight(string(block[begin:end]), "\x00")
		if name == "." || name == ".." {
			continue
		}
		if path != "." {
			name = path + "/" + name
		}
		r.read(name, le.Uint64(d))
	}
}
