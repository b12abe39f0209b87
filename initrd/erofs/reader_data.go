package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"initoverlayfs/initrd/lz4hc"
)

// extentKind says how an extent's bytes are stored.
type extentKind uint8

const (
	extentHole       extentKind = iota // zeros
	extentRaw                          // as they are
	extentPlain                        // as they are, from the beginning of a pcluster
	extentInterlaced                   // the same, but rotated so that offsets in the block are kept
	extentLZ4
	extentFragment // in the packed inode, at pos
)

// fileExtent is a part of a file's content that is stored in one way.
type fileExtent struct {
	off    int64 // in the file
	length int64 // bytes of the file, at least 1
	kind   extentKind
	space  *space // not for holes and fragments
	pos    int64  // in space
	size   int64  // bytes in space
	// partial says that a pcluster decodes to more than length, and that the rest
	// belongs to others (deduplication).
	partial bool
	inline  bool // among the metadata
}

func (e *fileExtent) end() int64 { return e.off + e.length }

// extentAt gives the extent that has the file's byte at off, which must be less
// than the size.
func (i *Inode) extentAt(off int64) (fileExtent, error) {
	var e fileExtent
	var err error
	switch {
	case i.Layout.Compressed():
		var m *clusterMap
		if m, err = i.clusters(); err == nil {
			e, err = m.extentAt(off)
		}
	case i.Layout == LayoutChunkBased:
		e, err = i.chunkAt(off)
	default:
		e, err = i.flatAt(off)
	}
	if err == nil && (e.off > off || e.length <= 0 || e.length > i.Size-e.off || e.end() <= off) {
		err = corruptf("extent of %d bytes from %d on", e.length, e.off)
	}
	if err != nil {
		return fileExtent{}, fmt.Errorf("EROFS inode %d, byte %d of %d: %w", i.NID, off, i.Size, err)
	}
	return e, nil
}

// flatAt is extentAt of consecutive blocks; erofs_map_blocks_flatmode in
// fs/erofs/data.c.
func (i *Inode) flatAt(off int64) (fileExtent, error) {
	if i.Layout == LayoutFlatPlain && i.addr == nullAddr48 {
		return fileExtent{length: i.Size, kind: extentHole}, nil
	}
	bs := i.fs.blockSize()
	body := i.Size // what lies in blocks
	if i.Layout == LayoutFlatInline {
		body = (i.Size - 1) / bs * bs
	}
	if off >= body {
		e := fileExtent{off: body, length: i.Size - body, kind: extentRaw, space: i.space, pos: i.bodyEnd(), inline: true}
		e.size = e.length
		if e.pos%bs+e.size > bs {
			return fileExtent{}, corruptf("%d inline bytes at offset %d cross the end of a block", e.size, e.pos)
		}
		return e, nil
	}
	pos, err := i.blockPos(i.addr)
	if err != nil {
		return fileExtent{}, err
	}
	e := fileExtent{length: body, size: body, kind: extentRaw}
	e.space, e.pos, err = i.fs.dataAt(0, pos)
	return e, err
}

// blockPos is where a block begins, in bytes.
func (i *Inode) blockPos(block uint64) (int64, error) {
	if block > math.MaxInt64>>i.fs.Super.BlkSzBits {
		return 0, corruptf("block %d", block)
	}
	return int64(block << i.fs.Super.BlkSzBits), nil
}

// chunkBits is the binary logarithm of the chunk size in bytes.
func (i *Inode) chunkBits() uint {
	return uint(i.fs.Super.BlkSzBits) + uint(i.chunkFormat&chunkBlkBitsMask)
}

// chunkAt is extentAt of a chunk-based file; erofs_map_blocks in
// fs/erofs/data.c.
func (i *Inode) chunkAt(off int64) (fileExtent, error) {
	bits := i.chunkBits() // at most 16 + 31
	n := off >> bits
	e := fileExtent{off: n << bits, kind: extentRaw}
	e.length = min(int64(1)<<bits, i.Size-e.off)
	e.size = e.length

	unit := int64(blockMapEntrySize)
	if i.chunkFormat&chunkIndexes != 0 {
		unit = chunkIndexSize
	}
	table := alignUp(i.bodyEnd(), unit)
	if n > (math.MaxInt64-table)/unit {
		return fileExtent{}, corruptf("chunk %d", n)
	}
	raw, err := i.space.read(table+n*unit, int(unit))
	if err != nil {
		return fileExtent{}, fmt.Errorf("read the index of chunk %d: %w", n, err)
	}
	var block uint64
	var deviceID uint16
	mask := uint64(nullAddr32)
	if i.chunkFormat&chunkIndexes != 0 {
		index := diskChunkIndex{
			BlkAddrHi: binary.LittleEndian.Uint16(raw),
			DeviceID:  binary.LittleEndian.Uint16(raw[2:]),
			BlkAddr:   binary.LittleEndian.Uint32(raw[4:]),
		}
		block = uint64(index.BlkAddr)
		if i.chunkFormat&chunk48Bit != 0 {
			block |= uint64(index.BlkAddrHi) << 32
			mask = nullAddr48
		}
		deviceID = index.DeviceID & i.fs.deviceIDs
	} else {
		block = uint64(binary.LittleEndian.Uint32(raw))
	}
	if block == mask {
		e.kind, e.size = extentHole, 0
		return e, nil
	}
	pos, err := i.blockPos(block)
	if err != nil {
		return fileExtent{}, err
	}
	e.space, e.pos, err = i.fs.dataAt(deviceID, pos)
	if err != nil {
		return fileExtent{}, fmt.Errorf("chunk %d: %w", n, err)
	}
	return e, nil
}

// ReadAt reads the content of a file, a directory, or a symbolic link.
func (i *Inode) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read EROFS inode %d: negative offset %d", i.NID, off)
	}
	if !i.hasData() || off >= i.Size {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && off < i.Size {
		e, err := i.extentAt(off)
		if err != nil {
			return n, err
		}
		part := p[n:min(int64(len(p)), int64(n)+e.end()-off)]
		if err := i.fs.readExtent(i, &e, part, off-e.off); err != nil {
			return n, fmt.Errorf("EROFS inode %d, byte %d of %d: %w", i.NID, off, i.Size, err)
		}
		n += len(part)
		off += int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NextData finds the next part of a file from off on that is no hole, as
// lseek does with SEEK_DATA and SEEK_HOLE. It returns io.EOF when there is none.
// The part may be followed by another one at once.
func (i *Inode) NextData(off int64) (start, end int64, err error) {
	for off >= 0 && off < i.Size && i.hasData() {
		e, err := i.extentAt(off)
		if err != nil {
			return 0, 0, err
		}
		if e.kind != extentHole {
			return off, e.end(), nil
		}
		off = e.end()
	}
	return 0, 0, io.EOF
}

// readExtent fills p from the extent's byte skip on.
func (f *FS) readExtent(i *Inode, e *fileExtent, p []byte, skip int64) error {
	switch e.kind {
	case extentHole:
		clear(p)
		return nil
	case extentRaw, extentPlain:
		if e.space != nil && skip+int64(len(p)) > e.size {
			return corruptf("%d bytes in a pcluster of %d", e.length, e.size)
		}
		return e.space.readAt(p, e.pos+skip)
	case extentInterlaced:
		return f.readInterlaced(e, p, skip)
	case extentFragment:
		packed, err := f.packed()
		if err != nil {
			return err
		}
		if i.NID == packed.NID {
			return corruptf("the packed inode refers to itself")
		}
		if e.pos < 0 || e.pos > packed.Size || e.length > packed.Size-e.pos {
			return corruptf("fragment of %d bytes at %d of the packed inode, which has %d", e.length, e.pos, packed.Size)
		}
		if _, err := packed.ReadAt(p, e.pos+skip); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read a fragment: %w", err)
		}
		return nil
	}
	data, err := f.decodeExtent(e)
	if err != nil {
		return err
	}
	copy(p, data[skip:])
	return nil
}

// readInterlaced reads an uncompressed pcluster of one block whose bytes are
// rotated: the byte at off of the file lies at off modulo the block size.
func (f *FS) readInterlaced(e *fileExtent, p []byte, skip int64) error {
	bs := f.blockSize()
	if e.size > bs || e.length > e.size {
		return corruptf("%d uncompressed bytes in a pcluster of %d at offset %d", e.length, e.size, e.pos)
	}
	start := (e.off + skip) % bs
	right := min(bs-start, int64(len(p)))
	for _, piece := range []struct {
		p   []byte
		pos int64
	}{{p[:right], start}, {p[right:], 0}} {
		if piece.pos+int64(len(piece.p)) > e.size {
			return corruptf("%d uncompressed bytes in a pcluster of %d at offset %d", e.length, e.size, e.pos)
		}
		if err := e.space.readAt(piece.p, e.pos+piece.pos); err != nil {
			return err
		}
	}
	return nil
}

// lz4MaxRatio is more than LZ4 can expand its input: a byte of it stands for at
// most 255 bytes.
const lz4MaxRatio = 256

// decodeExtent gives what an LZ4 pcluster decodes to.
func (f *FS) decodeExtent(e *fileExtent) ([]byte, error) {
	key := decodedKey{e.space, e.pos, e.size, e.length, e.partial}
	if data, ok := f.decoded.get(key); ok {
		return data, nil
	}
	src, err := f.pcluster(e)
	if err != nil {
		return nil, err
	}
	// One byte more tells a block that decodes to more than its extent.
	dst := make([]byte, e.length, e.length+1)
	if f.wholeBlock(e) {
		dst = dst[:e.length+1]
	}
	n, err := lz4hc.Decode(dst, src)
	if err != nil {
		return nil, fmt.Errorf("%w: pcluster of %d bytes at offset %d: %w", ErrCorrupt, e.size, e.pos, err)
	}
	if int64(n) != e.length {
		what := fmt.Sprintf("%d", n)
		if int64(n) > e.length {
			what = "more"
		}
		return nil, corruptf("pcluster of %d bytes at offset %d decodes to %s bytes, not %d", e.size, e.pos, what, e.length)
	}
	dst = dst[:n]
	f.decoded.put(key, dst)
	return dst, nil
}

// wholeBlock reports whether an extent is all that its LZ4 block decodes to, and
// the block all that is in the pcluster.
func (f *FS) wholeBlock(e *fileExtent) bool { return f.has(FeatureIncompatZeroPadding) && !e.partial }

// pcluster reads the LZ4 block of an extent.
func (f *FS) pcluster(e *fileExtent) ([]byte, error) {
	if e.size > maxPclusterSize || e.length > maxPclusterDecoded || e.length > e.size*lz4MaxRatio {
		return nil, corruptf("pcluster of %d bytes at offset %d for %d bytes", e.size, e.pos, e.length)
	}
	if err := e.space.check(e.pos, e.size); err != nil {
		return nil, err
	}
	src := make([]byte, e.size)
	if err := e.space.readAt(src, e.pos); err != nil {
		return nil, err
	}
	if !f.has(FeatureIncompatZeroPadding) {
		return src, nil
	}
	// The block ends with the pcluster and no LZ4 block begins with a zero. There
	// is less padding than a block of the image; z_erofs_fixup_insize in
	// fs/erofs/decompressor.c.
	bs := f.blockSize()
	for n, b := range src[:min(e.size, bs-e.pos%bs)] {
		if b != 0 {
			return src[n:], nil
		}
	}
	return nil, corruptf("pcluster of %d bytes at offset %d begins with zeros only", e.size, e.pos)
}

// decodedCache keeps what was decoded last, so that small reads do not decode a
// pcluster again and again.
type decodedCache struct {
	mu      sync.Mutex
	entries []decodedEntry // the one used last is the last
	bytes   int64
}

type decodedEntry struct {
	key  decodedKey
	data []byte // never written once it is here
}

type decodedKey struct {
	space             *space
	pos, size, length int64
	partial           bool
}

const (
	decodedMaxEntries = 8
	decodedMaxBytes   = maxPclusterDecoded
)

func (c *decodedCache) get(key decodedKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range c.entries {
		if e.key == key {
			copy(c.entries[i:], c.entries[i+1:])
			c.entries[len(c.entries)-1] = e
			return e.data, true
		}
	}
	return nil, false
}

func (c *decodedCache) put(key decodedKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = append(c.entries, decodedEntry{key, data})
	c.bytes += int64(len(data))
	drop := 0
	for len(c.entries)-drop > decodedMaxEntries || c.bytes > decodedMaxBytes && len(c.entries)-drop > 1 {
		c.bytes -= int64(len(c.entries[drop].data))
		drop++
	}
	n := copy(c.entries, c.entries[drop:])
	clear(c.entries[n:])
	c.entries = c.entries[:n]
}
