package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"sort"
)

// maxChunkBits is that of chunks of 1 GiB, which 32-bit kernels also count.
const maxChunkBits = 30

// span is a part of a content, from one multiple of the block size to another or
// to the content's end.
type span struct{ start, end int64 }

// addSpan appends a span that may go on where the last one ends.
func addSpan(list []span, s span) []span {
	if k := len(list) - 1; k >= 0 && list[k].end == s.start {
		list[k].end = s.end
		return list
	}
	return append(list, s)
}

// eachRun gives the stretches of p, which lies at the offset at of a content, of
// which all blocks are zeros or none is.
func eachRun(p []byte, at int64, run func(p []byte, s span, zeros bool) error) error {
	for len(p) > 0 {
		zeros := isZeroBlock(p)
		n := 0
		for n < len(p) && isZeroBlock(p[n:]) == zeros {
			n += min(blockSize, len(p)-n)
		}
		if err := run(p[:n], span{at, at + int64(n)}, zeros); err != nil {
			return err
		}
		at += int64(n)
		p = p[n:]
	}
	return nil
}

var zeroBlock [blockSize]byte

func isZeroBlock(p []byte) bool {
	n := min(len(p), blockSize)
	return bytes.Equal(p[:n], zeroBlock[:n])
}

// blockMap is what chunks are made by: where a content is not zeros, and the
// sums of its blocks, the last one filled up with zeros.
type blockMap struct {
	data []span
	sums []uint64 // only where chunks are shared
}

func (m *blockMap) add(p []byte, at int64, o Options, seed maphash.Seed) {
	_ = eachRun(p, at, func(_ []byte, s span, zeros bool) error {
		if !zeros {
			m.data = addSpan(m.data, s)
		}
		return nil
	})
	if o.ChunkBytes == 0 {
		return
	}
	for ; len(p) >= blockSize; p = p[blockSize:] {
		m.sums = append(m.sums, maphash.Bytes(seed, p[:blockSize]))
	}
	if len(p) > 0 {
		var last [blockSize]byte
		copy(last[:], p)
		m.sums = append(m.sums, maphash.Bytes(seed, last[:]))
	}
}

// join appends the map of what follows.
func (m *blockMap) join(next *blockMap) {
	for _, s := range next.data {
		m.data = addSpan(m.data, s)
	}
	m.sums = append(m.sums, next.sums...)
}

// spooled is a content of which only a part lies in the spool; the rest is
// blocks of zeros.
type spooled struct {
	spool io.ReaderAt
	size  int64 // bytes
	runs  []spoolRun
}

type spoolRun struct {
	span
	spool int64 // offset
}

// keep puts the bytes of a content from at on into the spool, less blocks of
// zeros. at is a multiple of the block size.
func (w *Writer) keep(s *spooled, p []byte, at int64) error {
	return eachRun(p, at, func(p []byte, part span, zeros bool) error {
		if zeros {
			return nil
		}
		if _, err := w.spool.WriteAt(p, w.end); err != nil {
			return err
		}
		if k := len(s.runs) - 1; k >= 0 && s.runs[k].end == part.start {
			s.runs[k].end = part.end
		} else {
			s.runs = append(s.runs, spoolRun{part, w.end})
		}
		w.end += int64(len(p))
		return nil
	})
}

func (s *spooled) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= s.size {
		return 0, io.EOF
	}
	if rest := s.size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].end > off })
	for n < len(p) {
		at, part := off+int64(n), p[n:]
		switch {
		case i == len(s.runs):
			clear(part)
		case at < s.runs[i].start:
			part = part[:min(int64(len(part)), s.runs[i].start-at)]
			clear(part)
		default:
			run := s.runs[i]
			part = part[:min(int64(len(part)), run.end-at)]
			if err := readAt(s.spool, part, run.spool+at-run.start); err != nil {
				return n, err
			}
			i++
		}
		n += len(part)
	}
	return n, err
}

// chunkPlan is how a content is cut into chunks.
type chunkPlan struct {
	*content
	bits   uint // of the size of a chunk; 0: there are none
	sparse bool // it has chunks also if none of them is shared
	ids    []chunkID
}

// chunkRange is the part of the content that chunk i has.
func (c *chunkPlan) chunkRange(i int) (start, end int64) {
	start = int64(i) << c.bits
	return start, min(start+1<<c.bits, c.size)
}

// holes reports whether contents may have holes.
func (o *Options) holes() bool { return o.Holes || o.ChunkBytes > 0 }

// planChunks decides whether a content is to have chunks, and how large.
func (w *Writer) planChunks(c *content) chunkPlan {
	plan := chunkPlan{content: c}
	if w.options.holes() {
		plan.bits, plan.sparse = c.sparse(w.options)
	}
	for n := w.options.ChunkBytes; !plan.sparse && n > 1; n >>= 1 {
		plan.bits++
	}
	return plan
}

// sparse says which size of chunks suits the holes of a content best, and
// whether it is smaller in such chunks than in another form. What the latter
// takes is estimated: compressed, a quarter of what is not zero, a 255th of what
// is, and 2 bytes for each logical cluster. With DAX a content that is mapped
// with large pages is worth twice its size.
func (c *content) sparse(o Options) (bits uint, ok bool) {
	stored := int64(0)
	for _, r := range c.data {
		stored += r.end - r.start
	}
	if stored == c.size || c.size < blockSize {
		return 0, false
	}
	other := c.size
	switch {
	case o.DAX:
		other /= 2
	case o.Compress:
		other = stored/4 + c.size>>(blockBits-1)
		if !o.Dedupe {
			other += (c.size - stored) / 255
		}
	}
	best := other
	for b := uint(blockBits); b <= maxChunkBits; b++ {
		cost := c.chunkCost(b)
		if cost < best {
			best, bits = cost, b
		}
		if c.size <= 1<<b {
			break
		}
	}
	return bits, bits > 0
}

// chunkCost is how many bytes a content takes in chunks of this size.
func (c *content) chunkCost(bits uint) int64 {
	count := (c.size-1)>>bits + 1
	full, next := int64(0), int64(0) // chunks with data; the first that is not counted yet
	for _, r := range c.data {
		first, end := max(next, r.start>>bits), (r.end-1)>>bits+1
		full += max(0, end-first)
		next = max(next, end)
	}
	cost := count*blockMapEntrySize + full<<bits
	if next == count {
		cost -= count<<bits - alignUp(c.size, blockSize)
	}
	return cost
}

// chunkID says what a chunk is: from 0 on, the number of a newChunk; below
// holeChunk, a block of a blob, that of number blobChunk-id.
type chunkID int32

const (
	holeChunk chunkID = -1
	blobChunk chunkID = -2
)

// newChunk is a chunk that is stored with this image, unless its content
// becomes flat.
type newChunk struct {
	data  *planData
	index int32
	uses  int32   // by other contents
	next  chunkID // with the same first block; holeChunk for none
	block uint32
}

// maxCandidates bounds how many chunks are looked at for one that is equal, where
// many begin with the same block.
const maxCandidates = 64

// chunker finds equal chunks.
type chunker struct {
	blobs  *blobs // may be nil
	chunks []newChunk
	first  map[uint64]chunkID // by the sum of the first block
	bufs   [2][]byte
}

// writeChunked writes what is stored in chunks, and leaves contents that are
// better off without.
//
// Chunks are compared by the sums of their blocks and then byte by byte; a chunk
// may also be the beginning of another one. Earlier contents are those of the
// tree's order.
func (im *image) writeChunked(ctx context.Context, p *plan) error {
	k := &chunker{blobs: im.blobs, first: make(map[uint64]chunkID), bufs: [2][]byte{make([]byte, 64<<10), make([]byte, 1<<20)}}
	var chunked []*planData
	for _, d := range p.chunked {
		if !d.chunks.sparse && !im.options.DAX && d.size <= int64(min(d.room, maxInlineTail)) {
			p.contents = append(p.contents, d) // behind the inode, it takes no block
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := k.cut(d); err != nil {
			return err
		}
		chunked = append(chunked, d)
	}
	if im.blobs == nil {
		flat := k.dissolve(chunked, im.options)
		p.contents = append(p.contents, flat...)
	} else if err := im.blobs.use(chunked); err != nil {
		return err
	}
	for _, d := range chunked {
		if d.chunks.ids == nil {
			continue
		}
		if err := im.writeChunks(ctx, k, d); err != nil {
			return fmt.Errorf("%s: %w", d.path, err)
		}
	}
	return nil
}

// cut finds what the chunks of a content are.
func (k *chunker) cut(d *planData) error {
	c := &d.chunks
	c.ids = make([]chunkID, (c.size-1)>>c.bits+1)
	runs := c.data
	for i := range c.ids {
		start, end := c.chunkRange(i)
		for len(runs) > 0 && runs[0].end <= start {
			runs = runs[1:]
		}
		if len(runs) == 0 || runs[0].start >= end {
			c.ids[i] = holeChunk
			continue
		}
		var err error
		if c.ids[i], err = k.find(d, i); err != nil {
			return err
		}
	}
	return nil
}

// sumsOf are the sums of the blocks of a chunk.
func (c *chunkPlan) sumsOf(i int) []uint64 {
	start, end := c.chunkRange(i)
	return c.sums[start>>blockBits : (end+blockSize-1)>>blockBits]
}

// find gives an equal chunk, or a new one.
func (k *chunker) find(d *planData, i int) (chunkID, error) {
	id := chunkID(len(k.chunks))
	added := newChunk{data: d, index: int32(i), next: holeChunk}
	if d.chunks.sums == nil {
		k.chunks = append(k.chunks, added)
		return id, nil
	}
	sums := d.chunks.sumsOf(i)
	start, _ := d.chunks.chunkRange(i)
	if k.blobs != nil {
		for n := range k.blobs.candidates(sums) {
			same, err := k.equal(d, start, k.blobs.reader(n), 0, len(sums))
			if err != nil {
				return 0, err
			}
			if same {
				return blobChunk - chunkID(n), nil
			}
		}
	}
	head, ok := k.first[sums[0]]
	if !ok {
		head = holeChunk
	}
	last := holeChunk // of those that begin with the same block
	other := head
	for n := 0; other != holeChunk && n < maxCandidates; n++ {
		o := &k.chunks[other]
		if theirs := o.data.chunks.sumsOf(int(o.index)); len(theirs) >= len(sums) && slices.Equal(sums, theirs[:len(sums)]) {
			from, _ := o.data.chunks.chunkRange(int(o.index))
			same, err := k.equal(d, start, o.data.source, from, len(sums))
			if err != nil {
				return 0, err
			}
			if same {
				if o.data != d {
					o.uses++
				}
				return other, nil
			}
		}
		last, other = other, o.next
	}
	if head == holeChunk {
		k.first[sums[0]] = id
	} else if other == holeChunk {
		k.chunks[last].next = id
	}
	k.chunks = append(k.chunks, added)
	return id, nil
}

// equal compares blocks of a content with others. Behind the end of a source are
// zeros.
func (k *chunker) equal(d *planData, at int64, other io.ReaderAt, otherAt int64, blocks int) (bool, error) {
	for rest := blocks << blockBits; rest > 0; {
		n := min(rest, len(k.bufs[0]))
		a, b := k.bufs[0][:n], k.bufs[1][:n]
		if err := readPadded(d.source, a, at); err != nil {
			return false, fmt.Errorf("read spooled content of %s: %w", d.path, err)
		}
		if err := readPadded(other, b, otherAt); err != nil {
			return false, fmt.Errorf("read what %s is compared with: %w", d.path, err)
		}
		if !bytes.Equal(a, b) {
			return false, nil
		}
		at, otherAt, rest = at+int64(n), otherAt+int64(n), rest-n
	}
	return true, nil
}

// readPadded fills p with what r has there, and with zeros behind its end.
func readPadded(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	clear(p[n:])
	return err
}

// dissolve gives the contents that are smaller without chunks and of which no
// other one has a chunk. The last come first: then they no longer need theirs
// from earlier ones.
func (k *chunker) dissolve(contents []*planData, o Options) (flat []*planData) {
	for i := len(contents) - 1; i >= 0; i-- {
		d := contents[i]
		if d.chunks.sparse {
			continue
		}
		used, own := false, int64(0)
		for n, id := range d.chunks.ids {
			if k.brings(d, n) {
				start, end := d.chunks.chunkRange(n)
				own += alignUp(end-start, blockSize)
				used = used || k.chunks[id].uses > 0
			}
		}
		size := alignUp(d.size, blockSize)
		if tail := d.size % blockSize; !o.DAX && tail > 0 && tail <= int64(d.room) {
			size += tail - blockSize
		}
		if used || own+int64(len(d.chunks.ids))*blockMapEntrySize < size {
			continue
		}
		for _, id := range d.chunks.ids {
			if id >= 0 && k.chunks[id].data != d {
				k.chunks[id].uses--
			}
		}
		d.chunks.ids = nil
		flat = append(flat, d)
	}
	slices.Reverse(flat)
	return flat
}

// brings reports whether the content has a new chunk there, and is the one to
// store it.
func (k *chunker) brings(d *planData, i int) bool {
	id := d.chunks.ids[i]
	return id >= 0 && k.chunks[id].data == d && int(k.chunks[id].index) == i
}

// writeChunks writes the chunks that a content brings, and makes its table.
func (im *image) writeChunks(ctx context.Context, k *chunker, d *planData) error {
	c := &d.chunks
	device := uint16(0)
	if im.blobs != nil {
		device = im.blobs.newDevice
	}
	refs := make([]chunkRef, len(c.ids))
	for i := 0; i < len(refs); i++ {
		switch id := c.ids[i]; {
		case id == holeChunk:
			refs[i].block = nullAddr32
		case id < holeChunk:
			refs[i] = im.blobs.ref(int(blobChunk - id))
		case !k.brings(d, i):
			refs[i] = chunkRef{device, k.chunks[id].block}
		default:
			first := i
			for i+1 < len(refs) && k.brings(d, i+1) {
				i++
			}
			start, _ := c.chunkRange(first)
			_, end := c.chunkRange(i)
			block, err := im.writeRange(ctx, d.source, k.bufs[1], start, end)
			if err != nil {
				return err
			}
			for n := first; n <= i; n++ {
				refs[n] = chunkRef{device, uint32(block + uint64(n-first)<<(c.bits-blockBits))}
				k.chunks[c.ids[n]].block = refs[n].block
			}
		}
	}
	c.ids = nil
	d.layout = LayoutChunkBased
	d.table = makeChunkTable(refs, c.bits)
	return nil
}

// writeRange writes a part of a content where new data goes, and gives its first
// block there.
func (im *image) writeRange(ctx context.Context, source io.ReaderAt, buf []byte, start, end int64) (block uint64, err error) {
	block = im.end
	if im.blobs != nil {
		block = im.blobs.newBlocks
	}
	for start < end {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(end-start, int64(len(buf)))
		p := buf[:alignUp(n, blockSize)]
		clear(p[n:])
		if err := readAt(source, p[:n], start); err != nil {
			return 0, fmt.Errorf("read spooled content: %w", err)
		}
		if im.blobs != nil {
			err = im.blobs.append(p)
		} else {
			err = im.append(p)
		}
		if err != nil {
			return 0, err
		}
		start += n
	}
	return block, nil
}

// chunkRef is where a chunk lies.
type chunkRef struct {
	device uint16 // 0: the image itself
	block  uint32 // nullAddr32: it is a hole
}

// chunkTable is what a chunk-based inode has behind its attributes.
type chunkTable struct {
	format uint16
	refs   []chunkRef
}

// makeChunkTable makes chunks twice as large as long as each pair is a hole or
// lies together. bits is the size of a chunk.
func makeChunkTable(refs []chunkRef, bits uint) chunkTable {
	for ; len(refs) > 1 && bits < maxChunkBits; bits++ {
		blocks := uint32(1) << (bits - blockBits)
		for i := 0; i+1 < len(refs); i += 2 {
			want := refs[i]
			if want.block != nullAddr32 {
				want.block += blocks
			}
			if refs[i+1] != want {
				return newChunkTable(refs, bits)
			}
		}
		for i := 0; i < len(refs); i += 2 {
			refs[i/2] = refs[i]
		}
		refs = refs[:(len(refs)+1)/2]
	}
	return newChunkTable(refs, bits)
}

func newChunkTable(refs []chunkRef, bits uint) chunkTable {
	t := chunkTable{format: uint16(bits - blockBits), refs: slices.Clip(refs)}
	if slices.ContainsFunc(refs, func(r chunkRef) bool { return r.device != 0 }) {
		t.format |= chunkIndexes
	}
	return t
}

func (t *chunkTable) unit() int64 {
	if t.format&chunkIndexes != 0 {
		return chunkIndexSize
	}
	return blockMapEntrySize
}

// size is how many bytes append appends.
func (t *chunkTable) size(head int) int {
	return int(alignUp(int64(head), t.unit())) - head + len(t.refs)*int(t.unit())
}

// append appends the table behind an inode that has head bytes with its
// attributes; erofs_map_blocks in fs/erofs/data.c.
func (t *chunkTable) append(b []byte, head int) []byte {
	b = append(b, make([]byte, alignUp(int64(head), t.unit())-int64(head))...)
	for _, r := range t.refs {
		if t.format&chunkIndexes != 0 {
			b = encode(b, &diskChunkIndex{DeviceID: r.device, BlkAddr: r.block})
		} else {
			b = binary.LittleEndian.AppendUint32(b, r.block)
		}
	}
	return b
}
