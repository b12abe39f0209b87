package erofs

import (
	"encoding/binary"
	"math"
	"sync"
)

// clusterMap says where the pclusters of a compressed file are. The file is cut
// into logical clusters of one size; the index of each says whether a pcluster's
// data begins in it, and where. fs/erofs/zmap.c.
type clusterMap struct {
	ino    *Inode
	header diskMapHeader
	bits   uint  // a logical cluster has 1 << bits bytes
	base   int64 // of the first index, in the inode's space
	count  int64 // logical clusters

	// Compact indexes begin with some of 4 bytes up to a 32-byte boundary, go on
	// with 2-byte ones in packs of 16, and end with 4-byte ones.
	first4B, mid2B int64

	tailHead    int64  // logical cluster in which the last extent begins; -1: it is as the others
	fragmentOff uint64 // of the last extent in the packed inode
	whole       bool   // the whole file is a fragment
	inlinePos   int64  // of the last pcluster
	inlineSize  int64

	extents *extentList // instead of all the above
}

// newClusterMap reads a map header; z_erofs_fill_inode in fs/erofs/zmap.c.
func newClusterMap(i *Inode) (*clusterMap, error) {
	m := &clusterMap{ino: i, tailHead: -1}
	pos := alignUp(i.bodyEnd(), mapHeaderSize)
	raw, err := i.space.read(pos, mapHeaderSize)
	if err != nil {
		return nil, err
	}
	decode(raw, &m.header)
	if v := binary.LittleEndian.Uint64(raw); v&fragmentInodeBit != 0 {
		m.whole, m.fragmentOff = true, v&^fragmentInodeBit
		return m, nil
	}
	m.bits = uint(i.fs.Super.BlkSzBits) + uint(m.header.ClusterBits&15)
	m.count = (i.Size-1)>>m.bits + 1
	m.base = pos + mapHeaderSize
	if i.Layout == LayoutCompressedFull && m.header.Advise&adviseExtents != 0 {
		m.extents = newExtentList(m, raw)
		return m, nil
	}
	switch i.Layout {
	case LayoutCompressedFull:
		m.base += fullIndexGap
	case LayoutCompressedCompact:
		if m.big(lclusterHead1) != m.big(lclusterHead2) {
			return nil, corruptf("map header at offset %d: compact indexes with big pclusters of one kind", pos)
		}
		if m.bits > 14 {
			return nil, unsupportedf("map header at offset %d: compact indexes of clusters of %d bytes", pos, 1<<m.bits)
		}
		// The kernel counts indexes in blocks here, and mkfs.erofs makes no others.
		total := (i.Size-1)/i.fs.blockSize() + 1
		m.count = total
		m.first4B = (compact2BPackSize - m.base%compact2BPackSize) / compact4BSize % (compact2BPackSize / compact4BSize)
		if m.header.Advise&adviseCompacted2B != 0 && m.first4B < total {
			m.mid2B = (total - m.first4B) / compact2BPackCount * compact2BPackCount
		}
	}
	if !i.fs.has(FeatureIncompatBigPcluster) && (m.big(lclusterHead1) || m.big(lclusterHead2)) {
		return nil, corruptf("map header at offset %d: big pclusters without the feature", pos)
	}
	return m, m.findTail()
}

// findTail finds out about an extent at the end that is no pcluster of its own.
func (m *clusterMap) findTail() error {
	switch {
	case m.header.Advise&adviseFragment != 0:
		m.fragmentOff = uint64(m.header.FragmentOff)
	case m.header.Advise&adviseInline != 0 && m.header.FragmentOff>>16 != 0:
		m.inlineSize = int64(m.header.FragmentOff >> 16)
	default:
		return nil
	}
	last := m.ino.Size - 1
	head, err := m.headOf(last)
	if err != nil {
		return err
	}
	m.tailHead = head.number
	if m.inlineSize == 0 {
		if m.ino.Layout == LayoutCompressedFull {
			m.fragmentOff |= uint64(head.block) << 32
		}
		m.whole = head.number == 0
		return nil
	}
	c, err := m.cluster(last >> m.bits)
	if err != nil {
		return err
	}
	m.inlinePos = c.indexEnd
	if bs := m.ino.fs.blockSize(); m.inlinePos%bs+m.inlineSize > bs {
		return corruptf("inline pcluster of %d bytes at offset %d crosses the end of a block", m.inlineSize, m.inlinePos)
	}
	return nil
}

// big reports whether pclusters of this type may have more than one block.
func (m *clusterMap) big(kind uint8) bool {
	if kind == lclusterHead1 {
		return m.header.Advise&adviseBigPcluster1 != 0
	}
	return m.header.Advise&adviseBigPcluster2 != 0
}

// clusterIndex is what an index says.
type clusterIndex struct {
	number   int64
	kind     uint8
	ofs      int64  // heads: where in the logical cluster the extent begins
	block    uint32 // heads: of the pcluster
	partial  bool
	back     int64 // others: distance to the head, or on the way to it
	ahead    int64 // others: distance to the next head, as far as the index knows
	blocks   int64 // the first one after a head: size of the pcluster, 0 when not given
	indexEnd int64 // where the index, or the pack that has it, ends
}

func (c *clusterIndex) isHead() bool { return c.kind != lclusterNonhead }

// cluster reads the index of a logical cluster.
func (m *clusterMap) cluster(number int64) (clusterIndex, error) {
	if number < 0 || number >= m.count {
		return clusterIndex{}, corruptf("logical cluster %d of %d", number, m.count)
	}
	var c clusterIndex
	var err error
	if m.ino.Layout == LayoutCompressedFull {
		c, err = m.fullIndex(number)
	} else {
		c, err = m.compactIndex(number)
	}
	if err != nil {
		return clusterIndex{}, err
	}
	c.number = number
	if c.blocks != 0 && !m.big(lclusterHead1) && !m.big(lclusterHead2) {
		return clusterIndex{}, corruptf("logical cluster %d has the size of a big pcluster in a file without", number)
	}
	if c.isHead() && c.ofs >= 1<<m.bits {
		return clusterIndex{}, corruptf("logical cluster %d begins at its byte %d", number, c.ofs)
	}
	return c, nil
}

func (m *clusterMap) fullIndex(number int64) (clusterIndex, error) {
	if number > (math.MaxInt64-m.base)/lclusterIndexSize {
		return clusterIndex{}, corruptf("logical cluster %d", number)
	}
	pos := m.base + number*lclusterIndexSize
	raw, err := m.ino.space.read(pos, lclusterIndexSize)
	if err != nil {
		return clusterIndex{}, err
	}
	d := diskLcluster{
		Advise:     binary.LittleEndian.Uint16(raw),
		ClusterOfs: binary.LittleEndian.Uint16(raw[2:]),
		BlkAddr:    binary.LittleEndian.Uint32(raw[4:]),
	}
	c := clusterIndex{kind: uint8(d.Advise & lclusterTypeMask), indexEnd: pos + lclusterIndexSize}
	if c.isHead() {
		c.partial = d.Advise&lclusterPartialRef != 0
		c.ofs, c.block = int64(d.ClusterOfs), d.BlkAddr
		return c, nil
	}
	c.back, c.ahead = int64(d.BlkAddr&0xffff), int64(d.BlkAddr>>16)
	if c.back&lclusterCblkcnt != 0 {
		c.blocks = c.back &^ lclusterCblkcnt
		c.back = 1
	}
	return c, nil
}

// compactIndex reads the pack that has the index. A pack is a row of equally
// long bit fields, each a type and a number, and then the address of a block:
// that of a head is this plus the blocks of the heads before it in the pack.
func (m *clusterMap) compactIndex(number int64) (clusterIndex, error) {
	pos, n := m.base, number
	packSize, packCount := int64(compact4BPackSize), int64(compact4BPackCount)
	switch {
	case n < m.first4B:
	case n < m.first4B+m.mid2B:
		n -= m.first4B
		pos += m.first4B * (compact4BPackSize / compact4BPackCount)
		packSize, packCount = compact2BPackSize, compact2BPackCount
	default:
		n -= m.first4B + m.mid2B
		pos += m.first4B*compact4BSize + m.mid2B*compact2BSize
	}
	if packCount == compact2BPackCount && m.bits > 12 {
		return clusterIndex{}, unsupportedf("2-byte indexes of clusters of %d bytes", 1<<m.bits)
	}
	if n > (math.MaxInt64-pos)/packSize {
		return clusterIndex{}, corruptf("logical cluster %d", number)
	}
	pos += n * (packSize / packCount)
	start := pos &^ (packSize - 1)
	at := int((pos - start) / (packSize / packCount))
	raw, err := m.ino.space.read(start, int(packSize))
	if err != nil {
		return clusterIndex{}, err
	}

	p := pack{bits: max(m.bits, 12), count: int(packCount)}
	p.stride = uint(packSize-4) * 8 / uint(packCount)
	copy(p.raw[:], raw)
	c := clusterIndex{indexEnd: start + packSize}
	var value int64
	c.kind, value = p.field(at)
	if c.isHead() {
		c.ofs = value
		before, err := p.blocksBefore(at, m.big(lclusterHead1))
		if err != nil {
			return clusterIndex{}, err
		}
		c.block = binary.LittleEndian.Uint32(raw[packSize-4:]) + before
		return c, nil
	}
	c.ahead = p.ahead(at)
	switch {
	case value&lclusterCblkcnt != 0:
		c.blocks = value &^ lclusterCblkcnt
		c.back = 1
	case at+1 < p.count:
		c.back = value
	default:
		// The last field has the distance to the next head; the one before knows
		// the distance back.
		kind, value := p.field(at - 1)
		switch {
		case kind != lclusterNonhead:
			c.back = 1
		case value&lclusterCblkcnt != 0:
			c.back = 2
		default:
			c.back = value + 1
		}
	}
	return c, nil
}

// pack is a pack of compact indexes.
type pack struct {
	raw    [compact2BPackSize + 4]byte // so that four bytes can be read anywhere in it
	bits   uint                        // of a field's number; two more are its type
	stride uint                        // bits from field to field
	count  int
}

func (p *pack) field(n int) (kind uint8, value int64) {
	at := uint(n) * p.stride
	v := binary.LittleEndian.Uint32(p.raw[at/8:]) >> (at % 8)
	return uint8(v >> p.bits & lclusterTypeMask), int64(v & (1<<p.bits - 1))
}

// ahead is the distance from a field that is no head to the next head.
func (p *pack) ahead(n int) int64 {
	distance := int64(0)
	for ; n < p.count; n++ {
		kind, value := p.field(n)
		if kind != lclusterNonhead {
			return distance
		}
		distance++
		if n+1 == p.count && value&lclusterCblkcnt == 0 {
			distance += value - 1
		}
	}
	return distance
}

// blocksBefore counts the blocks from the pack's address to a head's pcluster.
func (p *pack) blocksBefore(n int, big bool) (uint32, error) {
	if !big {
		blocks := uint32(1)
		for n > 0 {
			n--
			if kind, value := p.field(n); kind == lclusterNonhead {
				n -= int(value)
			}
			if n >= 0 {
				blocks++
			}
		}
		return blocks, nil
	}
	blocks := uint32(0)
	for n > 0 {
		n--
		kind, value := p.field(n)
		switch {
		case kind != lclusterNonhead:
			blocks++
		case value&lclusterCblkcnt != 0:
			blocks += uint32(value &^ lclusterCblkcnt)
			n--
		case value <= 1:
			return 0, corruptf("a logical cluster next to the head of a big pcluster lacks its size")
		default:
			n -= int(value) - 2
		}
	}
	return blocks, nil
}

// headOf finds the logical cluster in which the extent begins that has the
// file's byte at off.
func (m *clusterMap) headOf(off int64) (clusterIndex, error) {
	c, err := m.cluster(off >> m.bits)
	if err != nil {
		return clusterIndex{}, err
	}
	back := c.back
	if c.isHead() {
		if off&(1<<m.bits-1) >= c.ofs {
			return c, nil
		}
		back = 1
	}
	return m.headBefore(c.number, back)
}

// headBefore follows the distances back to a head.
func (m *clusterMap) headBefore(number, back int64) (clusterIndex, error) {
	for {
		if back <= 0 || back > number {
			return clusterIndex{}, corruptf("logical cluster %d begins %d clusters before", number, back)
		}
		c, err := m.cluster(number - back)
		if err != nil || c.isHead() {
			return c, err
		}
		number, back = c.number, c.back
	}
}

// start is where the extent of a head begins in the file.
func (m *clusterMap) start(head *clusterIndex) int64 { return head.number<<m.bits | head.ofs }

// endOf finds where the extent of a head ends in the file.
func (m *clusterMap) endOf(head *clusterIndex) (int64, error) {
	limit := m.start(head) + maxPclusterDecoded
	for number := head.number + 1; number<<m.bits < m.ino.Size; number++ {
		if number<<m.bits > limit {
			return 0, corruptf("the pcluster of logical cluster %d holds more than %d bytes", head.number, maxPclusterDecoded)
		}
		c, err := m.cluster(number)
		if err != nil {
			return 0, err
		}
		if c.isHead() {
			return min(m.start(&c), m.ino.Size), nil
		}
	}
	return m.ino.Size, nil
}

// physicalSize finds the size of a head's pcluster in bytes;
// z_erofs_get_extent_compressedlen in fs/erofs/zmap.c.
func (m *clusterMap) physicalSize(head *clusterIndex) (int64, error) {
	next := head.number + 1
	if !m.big(head.kind) || next<<m.bits >= m.ino.Size {
		return m.ino.fs.blockSize(), nil
	}
	c, err := m.cluster(next)
	switch {
	case err != nil:
		return 0, err
	case c.isHead():
		return m.ino.fs.blockSize(), nil
	case c.blocks == 0:
		return 0, corruptf("logical cluster %d lacks the size of the pcluster", next)
	}
	return c.blocks << m.ino.fs.Super.BlkSzBits, nil
}

// extentAt gives the extent that has the file's byte at off.
func (m *clusterMap) extentAt(off int64) (fileExtent, error) {
	if m.extents != nil {
		return m.extents.extentAt(off)
	}
	if m.whole {
		return m.fragment(0)
	}
	head, err := m.headOf(off)
	if err != nil {
		return fileExtent{}, err
	}
	if head.number == m.tailHead && m.inlineSize == 0 {
		return m.fragment(m.start(&head))
	}
	e := fileExtent{off: m.start(&head), partial: head.partial}
	end, err := m.endOf(&head)
	if err != nil {
		return fileExtent{}, err
	}
	e.length = end - e.off
	if head.number == m.tailHead {
		e.space, e.pos, e.size, e.inline = m.ino.space, m.inlinePos, m.inlineSize, true
	} else {
		if e.size, err = m.physicalSize(&head); err != nil {
			return fileExtent{}, err
		}
		if e.space, e.pos, err = m.ino.fs.dataAt(0, int64(head.block)<<m.ino.fs.Super.BlkSzBits); err != nil {
			return fileExtent{}, err
		}
	}
	algorithm := m.header.Algorithms & 15
	switch head.kind {
	case lclusterPlain:
		return e, m.plain(&e)
	case lclusterHead2:
		algorithm = m.header.Algorithms >> 4
	}
	return e, m.compressed(&e, algorithm)
}

// fragment is the extent from off to the file's end in the packed inode.
func (m *clusterMap) fragment(off int64) (fileExtent, error) {
	if m.fragmentOff > math.MaxInt64 {
		return fileExtent{}, corruptf("fragment at %d of the packed inode", m.fragmentOff)
	}
	return fileExtent{off: off, length: m.ino.Size - off, kind: extentFragment, pos: int64(m.fragmentOff)}, nil
}

// plain makes e an uncompressed pcluster.
func (m *clusterMap) plain(e *fileExtent) error {
	e.kind = extentPlain
	if m.header.Advise&adviseInterlaced != 0 {
		e.kind = extentInterlaced
	}
	if e.length > e.size || e.size > maxPclusterSize {
		return corruptf("%d uncompressed bytes in a pcluster of %d at offset %d", e.length, e.size, e.pos)
	}
	return nil
}

// compressed makes e a compressed pcluster; z_erofs_map_sanity_check in
// fs/erofs/zmap.c.
func (m *clusterMap) compressed(e *fileExtent, algorithm uint8) error {
	e.kind = extentLZ4
	if algorithm >= algCount {
		return unsupportedf("compression algorithm %d", algorithm)
	}
	if m.ino.fs.comprAlgs>>algorithm&1 == 0 {
		return corruptf("compression algorithm %d is not among those of the superblock, %#x", algorithm, m.ino.fs.comprAlgs)
	}
	if algorithm != algLZ4 {
		return unsupportedf("compression by %s", [algCount]string{"lz4", "lzma", "deflate", "zstd"}[algorithm])
	}
	if e.size > maxPclusterSize || e.length > maxPclusterDecoded {
		return corruptf("pcluster of %d bytes at offset %d for %d bytes", e.size, e.pos, e.length)
	}
	return nil
}

// extentList is the other form of full indexes, records of extents;
// z_erofs_map_blocks_ext in fs/erofs/zmap.c. Records of 4 and 8 bytes belong to
// logical clusters, those of 4 bytes lying one behind the other from one
// address on; longer records say where in the file they begin.
type extentList struct {
	m          *clusterMap
	base       int64 // of the first record
	recordSize int64
	records    int64 // of 16 and 32 bytes

	mu      sync.Mutex // for records of 4 bytes, the last one asked for and its pcluster
	lastN   int64
	lastPos int64
}

func newExtentList(m *clusterMap, header []byte) *extentList {
	l := &extentList{m: m, recordSize: 4 << (m.header.Advise >> adviseExtRecShift & adviseExtRecMask)}
	l.base = alignUp(m.base, l.recordSize)
	l.records = int64(binary.LittleEndian.Uint32(header)) | int64(binary.LittleEndian.Uint16(header[6:]))<<32
	return l
}

// record reads a record; the fields that it does not have are zero.
func (l *extentList) record(n int64) (diskExtent, error) {
	if n > (math.MaxInt64-l.base)/l.recordSize-1 {
		return diskExtent{}, corruptf("extent record %d", n)
	}
	pos := l.base + n*l.recordSize
	if l.recordSize == 4 {
		pos += 8 // the address of the first pcluster
	}
	raw, err := l.m.ino.space.read(pos, int(l.recordSize))
	if err != nil {
		return diskExtent{}, err
	}
	var full [20]byte
	copy(full[:], raw)
	var d diskExtent
	decode(full[:], &d)
	return d, nil
}

func (l *extentList) extentAt(off int64) (fileExtent, error) {
	size := l.m.ino.Size
	var d diskExtent
	var start, end, pos int64
	var err error
	if l.recordSize <= 8 {
		n := off >> l.m.bits
		start = n << l.m.bits
		end = min(start+1<<l.m.bits, size)
		if l.recordSize == 8 {
			d, err = l.record(n)
			pos = int64(d.PstartLo)
		} else {
			d, pos, err = l.packedRecord(n)
		}
		if err != nil {
			return fileExtent{}, err
		}
	} else {
		// The records are sorted; find the last one that does not begin behind off.
		low, high := int64(0), l.records
		start, end = -1, size
		for low < high {
			middle := low + (high-low)/2
			r, err := l.record(middle)
			if err != nil {
				return fileExtent{}, err
			}
			at := int64(r.LstartLo)
			if l.recordSize > 16 {
				if r.LstartHi > math.MaxInt32 {
					return fileExtent{}, corruptf("extent record %d", middle)
				}
				at |= int64(r.LstartHi) << 32
			}
			if at > off {
				if at > end {
					return fileExtent{}, corruptf("extent record %d begins at %d", middle, at)
				}
				high, end = middle, at
				continue
			}
			low = middle + 1
			start, d = at, r
		}
		if start < 0 {
			return fileExtent{}, corruptf("no extent record of %d begins before", l.records)
		}
		if d.PstartHi > math.MaxInt32 {
			return fileExtent{}, corruptf("extent at %d: address %#x", start, d.PstartHi)
		}
		pos = int64(d.PstartLo) | int64(d.PstartHi)<<32
	}
	if end == size && l.m.header.Advise&adviseFragment != 0 {
		at := uint64(d.Plen)
		if l.recordSize > 4 {
			at |= uint64(pos) << 32
		}
		if at > math.MaxInt64 {
			return fileExtent{}, corruptf("fragment at %d of the packed inode", at)
		}
		return fileExtent{off: start, length: end - start, kind: extentFragment, pos: int64(at)}, nil
	}
	e := fileExtent{off: start, length: end - start, size: int64(d.Plen & pclusterLenMask), partial: d.Plen&pclusterPartialBit != 0}
	if e.size == 0 {
		e.kind = extentHole
		return e, nil
	}
	if e.space, e.pos, err = l.m.ino.fs.dataAt(0, pos); err != nil {
		return fileExtent{}, err
	}
	if format := d.Plen >> pclusterFormatShift; format != 0 {
		return e, l.m.compressed(&e, uint8(format-1))
	}
	if err := l.m.plain(&e); err != nil {
		return fileExtent{}, err
	}
	if bs := l.m.ino.fs.blockSize(); (pos|e.size)%bs != 0 {
		e.kind = extentPlain
	}
	return e, nil
}

// packedRecord reads a record of 4 bytes. Where its pcluster lies is the sum of
// those before; reading goes mostly forward.
func (l *extentList) packedRecord(n int64) (diskExtent, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < l.lastN || l.lastPos == 0 {
		raw, err := l.m.ino.space.read(l.base, 8)
		if err != nil {
			return diskExtent{}, 0, err
		}
		l.lastN, l.lastPos = 0, int64(binary.LittleEndian.Uint64(raw))
	}
	for {
		d, err := l.record(l.lastN)
		if err != nil || l.lastN == n {
			return d, l.lastPos, err
		}
		length := int64(d.Plen & pclusterLenMask)
		if l.lastPos < 0 || l.lastPos > math.MaxInt64-length {
			return diskExtent{}, 0, corruptf("extent record %d at %d", l.lastN, l.lastPos)
		}
		l.lastPos += length
		l.lastN++
	}
}
