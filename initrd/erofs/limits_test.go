package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// allocated is how many bytes f allocates, whether or not they are freed again.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// What an image claims takes no memory, only what it has.
func TestClaims(t *testing.T) {
	le := binary.LittleEndian
	tr := smallTree()
	plain := tr.write(t, erofs.Options{})
	compressed := tr.write(t, erofs.Options{Compress: true, Level: lz4hc.Fast, PclusterBytes: 16 << 10, PackBytes: 100})
	inode := func(image []byte, name string) []byte {
		f, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		ino, err := f.Inode(name)
		if err != nil {
			t.Fatal(err)
		}
		return image[f.Super.InodeOffset(ino.NID):]
	}
	super := func(image []byte) []byte { return image[erofs.SuperOffset:] }
	for _, test := range []struct {
		name  string
		image []byte
		claim func(b []byte)
	}{
		{"nothing", plain, func([]byte) {}},
		{"blocks", plain, func(b []byte) { le.PutUint32(super(b)[36:], 1<<32-1) }},
		{"inodes", plain, func(b []byte) { le.PutUint64(super(b)[16:], 1<<63) }},
		{"block size", plain, func(b []byte) { super(b)[12] = 16 }},
		{"extra devices", plain, func(b []byte) {
			super(b)[80] |= erofs.FeatureIncompatDeviceTable
			le.PutUint16(super(b)[86:], 65535)
		}},
		{"xattr prefixes", plain, func(b []byte) {
			super(b)[80] |= erofs.FeatureIncompatXattrPrefixes
			super(b)[91] = 255
		}},
		{"extension slots", compressed, func(b []byte) { super(b)[13] = 255 }},
		{"directory", plain, func(b []byte) { le.PutUint32(inode(b, "dir")[8:], 1<<32-1) }},
		{"xattrs", plain, func(b []byte) { le.PutUint16(inode(b, "small")[2:], 65535) }},
		{"symlink", plain, func(b []byte) { le.PutUint64(inode(b, "link")[8:], 1<<62) }},
		{"flat file", plain, func(b []byte) { le.PutUint32(inode(b, "text")[8:], 1<<32-1) }},
		{"compressed file", compressed, func(b []byte) { le.PutUint32(inode(b, "text")[8:], 1<<32-1) }},
		{"chunks", plain, func(b []byte) {
			i := inode(b, "text")
			super(b)[80] |= erofs.FeatureIncompatChunkedFile
			i[0] = i[0]&^0xe | byte(erofs.LayoutChunkBased)<<1
			le.PutUint32(i[8:], 1<<32-1)
			le.PutUint32(i[16:], 0)
		}},
		{"large chunks", plain, func(b []byte) {
			i := inode(b, "text")
			super(b)[80] |= erofs.FeatureIncompatChunkedFile
			i[0] = i[0]&^0xe | byte(erofs.LayoutChunkBased)<<1
			le.PutUint32(i[16:], 31)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(test.image)
			test.claim(b)
			seal(b)
			var report *erofs.Report
			// Check has a buffer of 1 MiB, and what is decoded is kept for a while.
			const limit = 16 << 20
			if n := allocated(func() { report = erofs.Check(bytes.NewReader(b), int64(len(b))) }); n > limit {
				t.Errorf("Check allocates %d bytes for an image of %d", n, len(b))
			}
			if test.name == "nothing" && report.Err() != nil {
				t.Error(report.Err())
			}
			if n := allocated(func() {
				if f, err := erofs.Open(bytes.NewReader(b), int64(len(b))); err == nil {
					if err := readAll(f); err != nil && !errors.Is(err, erofs.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Error(err)
					}
				}
			}); n > limit {
				t.Errorf("reading allocates %d bytes for an image of %d", n, len(b))
			}
		})
	}
}
