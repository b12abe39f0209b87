package erofs

import (
	"context"
	"fmt"
	"sync"

	"initoverlayfs/initrd/lz4hc"
)

// pieceSize is how much of a content is encoded at once. No cluster reaches over
// its end, which costs half a block for each piece.
const pieceSize = 4 << 20

// minGain is the part of a piece that encoding must save: reading from plain
// blocks is cheaper.
const minGain = 256

// maxInlineTail leaves room for aligning a tail in its block, and for moving it
// with its inode by one slot more.
const maxInlineTail = blockSize - 2*inodeSlotSize

// stored is how a content lies in the image.
type stored struct {
	layout   Layout
	start    uint64  // block, or the offset in the hidden file
	blocks   uint64  // that only this content has
	extents  []run   // of compressed contents
	begins   []begin // of stretches that others refer to
	tail     []byte  // the last extent, if it lies behind the inode
	partial  bool    // an extent of it is
	fragment bool    // a part of the hidden file
	table    chunkTable
}

// run is a stretch of a content in consecutive physical clusters: one that is
// compressed, or any number of plain ones, each a block.
type run struct {
	length  uint32 // bytes of the content
	block   uint32 // the first
	blocks  uint16 // 0: in the metadata
	plain   bool
	partial bool // the last physical cluster holds more, or may
}

// begin says which extent begins at an offset of a content.
type begin struct {
	offset int64
	extent int
}

// job is a piece of a content on its way through a worker.
type job struct {
	data   *planData
	offset int64 // in the content
	size   int
	in     []byte
	last   bool    // piece of its content
	inline bool    // the last extent may lie in the metadata
	copy   *copied // instead of all else
	done   chan struct{}
	err    error

	extents []run
	out     []byte // encoded blocks; nothing if all is plain
	tail    []byte // last extent, for the metadata
}

func (j *job) plain() bool {
	for _, e := range j.extents {
		if !e.plain || e.blocks == 0 {
			return false
		}
	}
	return true
}

// writeContents writes the contents in their order.
func (im *image) writeContents(ctx context.Context, contents []*planData) error {
	ctx, cancel := context.WithCancel(ctx)
	workers := im.options.Workers
	// What is under way is bounded by its bytes, so that many small contents
	// can go on while a large one, before them in order, takes its time.
	tokens := make(chan struct{}, (workers+2)*pieceTokens)
	todo := make(chan *job)
	ordered := make(chan *job, cap(tokens))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	running.Go(func() {
		defer close(ordered)
		defer close(todo)
		for _, d := range contents {
			for offset := int64(0); offset < d.size; {
				j := im.job(d, offset)
				offset += int64(j.size)
				for range j.tokens() {
					select {
					case tokens <- struct{}{}:
					case <-ctx.Done():
						return
					}
				}
				if j.copy != nil {
					offset = j.copy.end()
					close(j.done)
				} else {
					select {
					case todo <- j:
					case <-ctx.Done():
						return
					}
				}
				ordered <- j // never full: each job has a token
			}
		}
	})
	for range workers {
		running.Go(func() {
			e := newPieceEncoder(im.options)
			for j := range todo {
				j.in = getBuffer(j.size)[:j.size]
				if j.err = readAt(j.data.source, j.in, j.offset); j.err == nil && im.options.Compress && !j.data.boot {
					j.out = getBuffer(j.size + blockSize)
					e.encode(j)
				}
				close(j.done)
			}
		})
	}
	for j := range ordered {
		<-j.done
		if j.err != nil {
			return fmt.Errorf("read spooled content of %s: %w", j.data.path, j.err)
		}
		if err := im.writePiece(j); err != nil {
			return fmt.Errorf("%s: %w", j.data.path, err)
		}
		putBuffer(j.in)
		putBuffer(j.out)
		for range j.tokens() {
			<-tokens
		}
	}
	return ctx.Err()
}

// job gives the job for a content from offset on.
func (im *image) job(d *planData, offset int64) *job {
	j := &job{data: d, offset: offset, done: make(chan struct{})}
	if j.copy = d.copyAt(offset); j.copy != nil {
		return j
	}
	rest := d.stretchEnd(offset) - offset
	n := min(rest, pieceSize)
	if rest > n && rest-n < minStretch && offset+rest < d.size {
		n -= minStretch
	}
	j.size, j.last = int(n), offset+n == d.size
	j.inline = j.last && im.options.Ztailpacking && !d.packed && d.lent <= offset
	return j
}

// pieceTokens is how many tokens the largest job takes.
const pieceTokens = pieceSize >> 16

func (j *job) tokens() int { return max(1, j.size>>16) }

// largeBuffers are those that are worth keeping.
var largeBuffers sync.Pool

const largeBuffer = pieceSize + blockSize

// getBuffer gives an empty buffer for at least n bytes.
func getBuffer(n int) []byte {
	if n < pieceSize/4 {
		return make([]byte, 0, n)
	}
	if b, ok := largeBuffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, largeBuffer)
}

func putBuffer(b []byte) {
	if cap(b) >= largeBuffer {
		largeBuffers.Put(&b)
	}
}

// writePiece writes what a worker made.
func (im *image) writePiece(j *job) error {
	d := j.data
	if j.offset == 0 {
		if im.options.DAX && d.size >= hugeSize {
			im.end = uint64(alignUp(int64(im.end), hugeSize>>blockBits))
		}
		d.start = im.end
	}
	if j.copy != nil {
		d.layout = LayoutCompressedFull
		return im.refer(d, j.copy)
	}
	shared := len(d.cuts)+len(d.copies) > 0
	compressed := shared || len(d.extents) > 0 || !j.plain()
	if j.last && j.offset == 0 && compressed && !shared {
		compressed = im.pays(j)
	}
	if compressed && j.offset > 0 && len(d.extents) == 0 {
		// The pieces before were plain, as they are in the image already.
		d.extents = append(d.extents, plainExtents(j.offset, d.start)...)
	}
	out := j.out
	switch {
	case compressed:
		if len(d.cuts) > 0 {
			d.begins = append(d.begins, begin{j.offset, len(d.extents)})
		}
		block := im.end
		for _, e := range j.extents {
			e.block = uint32(block)
			block += uint64(e.blocks)
			d.extents = append(d.extents, e)
			d.partial = d.partial || e.partial
		}
		d.layout = LayoutCompressedCompact
		if len(d.copies) > 0 || d.partial {
			d.layout = LayoutCompressedFull // whose heads have a block each, and a flag
		}
		if len(j.tail) > 0 {
			d.tail = append([]byte(nil), j.tail...)
		} else if len(out) == 0 {
			out = j.in
		}
	case im.options.DAX || !j.last || len(j.in)%blockSize == 0 || len(j.in)%blockSize > d.room:
		d.layout, out = LayoutFlatPlain, j.in
	default:
		d.layout = LayoutFlatInline
		out = j.in[:len(j.in)&^(blockSize-1)]
	}
	begin := im.end
	if err := im.append(out); err != nil {
		return err
	}
	d.blocks += im.end - begin
	return nil
}

// pays reports whether the compressed form of a content of one piece is smaller
// than its flat form, indexes and all.
func (im *image) pays(j *job) bool {
	n := len(j.in)
	flat := n &^ (blockSize - 1)
	if tail := n - flat; tail > j.data.room {
		flat += blockSize
	} else {
		flat += tail
	}
	lclusters := (n + blockSize - 1) >> blockBits
	return len(j.out)+len(j.tail)+mapHeaderSize+compact2BSize*lclusters < flat
}

// plainExtents covers size bytes, a multiple of pieceSize, from a block on.
func plainExtents(size int64, block uint64) (list []run) {
	for ; size > 0; size -= pieceSize {
		list = append(list, run{length: pieceSize, block: uint32(block), blocks: pieceSize >> blockBits, plain: true})
		block += pieceSize >> blockBits
	}
	return list
}

// pieceEncoder cuts pieces into extents.
type pieceEncoder struct {
	options Options
	lz4     *lz4hc.Encoder
	block   []byte
	spare   []byte // for another form of the same block
}

func newPieceEncoder(o Options) *pieceEncoder {
	e := &pieceEncoder{options: o}
	if o.Compress {
		e.lz4 = lz4hc.NewEncoder(o.Level)
		e.block = make([]byte, o.PclusterBytes)
		e.spare = make([]byte, o.PclusterBytes)
	}
	return e
}

// encode encodes a piece. Where a cluster does not save a block, blocks are
// plain. Every extent but a content's last ends in another logical cluster than
// it begins in, because an index names one head for each. Where others may refer
// to it, this holds wherever in a logical cluster the extent begins.
func (e *pieceEncoder) encode(j *job) {
	e.lz4.Reset(j.in)
	exact := e.options.Dedupe && !j.last
	limit := len(j.in) // of what the encoder sees
	for pos := 0; pos < len(j.in); {
		rest := len(j.in) - pos
		if rest <= blockSize && !j.inline {
			j.addPlain(pos, rest)
			break
		}
		n, size := e.lz4.Encode(e.block, pos)
		blocks := (size + blockSize - 1) >> blockBits
		if j.inline && n == rest {
			if blocks == 1 && size < min(n, maxInlineTail) {
				j.tail = append(j.tail, e.block[:size]...)
				j.extents = append(j.extents, run{length: uint32(n)})
				break
			}
			// Full clusters, and what remains is inlined.
			if k := size >> blockBits; k > 0 && k < blocks {
				if m, s := e.lz4.Shorter(e.spare[:k<<blockBits], pos); m > k<<blockBits {
					n, size, blocks = m, s, k
					e.block, e.spare = e.spare, e.block
				}
			}
		}
		pays := n > blocks<<blockBits
		if left := rest - n; pays && exact && left > 0 && left != blockSize && left < minStretch {
			// What is left for the last extent is too short.
			if rest < 2*minStretch {
				e.addStretch(j, pos)
				break
			}
			limit = pos + rest - minStretch
			if left < blockSize {
				limit += blockSize
			}
			e.lz4.Reset(j.in[:limit])
			continue
		}
		if !pays {
			if j.inline && rest <= maxInlineTail {
				j.tail = append(j.tail, j.in[pos:]...)
				j.extents = append(j.extents, run{length: uint32(rest), plain: true})
				break
			}
			// Nothing at all means that nothing in the next block repeats.
			n = max(n, min(rest, blockSize))
			if full := n &^ (blockSize - 1); full > 0 && (n < rest || j.inline) {
				n = full
			}
			if exact && rest%blockSize != 0 {
				if n = min(n, (rest-minStretch)&^(blockSize-1)); n == 0 {
					e.addStretch(j, pos)
					break
				}
			}
			j.addPlain(pos, n)
		} else {
			j.addBlock(e.block[:size], n)
		}
		pos += n
		if pos >= limit && limit < len(j.in) {
			limit = len(j.in)
			e.lz4.Reset(j.in)
		}
	}
	if len(j.out)+len(j.tail)+len(j.in)/minGain > len(j.in) && (!exact || len(j.in)%blockSize == 0) {
		j.out, j.tail = j.out[:0], j.tail[:0]
		j.extents = j.extents[:0]
	}
	if len(j.extents) == 0 {
		j.extents = append(j.extents, run{length: uint32(len(j.in)), blocks: uint16((len(j.in) + blockSize - 1) >> blockBits), plain: true})
	}
}

// maxStretchBlocks is what a physical cluster of up to 2*minStretch bytes takes
// that is not plain.
const maxStretchBlocks = 2*minStretch>>blockBits + 1

// addStretch adds all that is left, at least minStretch and less than
// 2*minStretch bytes, as one LZ4 block, compressed or not: plain blocks cannot
// hold all of it with each of their extents as long as it must be.
func (e *pieceEncoder) addStretch(j *job, pos int) {
	part := j.in[pos:]
	e.lz4.Reset(part)
	b := make([]byte, maxStretchBlocks<<blockBits)
	n, size := e.lz4.Encode(b, 0)
	if n < len(part) {
		b = literalBlock(b[:0], part)
		size = len(b)
	}
	j.addBlock(b[:size], len(part))
}

// literalBlock appends an LZ4 block that holds p as it is, 15 bytes at least.
func literalBlock(b, p []byte) []byte {
	b = append(b, 0xf0)
	n := len(p) - 15
	for ; n >= 255; n -= 255 {
		b = append(b, 255)
	}
	return append(append(b, byte(n)), p...)
}

// addBlock adds an LZ4 block with n bytes of the content.
func (j *job) addBlock(block []byte, n int) {
	blocks := (len(block) + blockSize - 1) >> blockBits
	j.out = append(j.out, make([]byte, blocks<<blockBits-len(block))...)
	j.out = append(j.out, block...)
	// What is larger than its extent has to be called a part; see indexEntries.
	j.extents = append(j.extents, run{length: uint32(n), blocks: uint16(blocks), partial: n < blocks<<blockBits})
}

// addPlain adds n bytes as plain blocks; the last may be filled up with zeros.
func (j *job) addPlain(pos, n int) {
	blocks := (n + blockSize - 1) >> blockBits
	j.out = append(j.out, j.in[pos:pos+n]...)
	j.out = append(j.out, make([]byte, blocks<<blockBits-n)...)
	if k := len(j.extents) - 1; k >= 0 && j.extents[k].plain && j.extents[k].length%blockSize == 0 {
		j.extents[k].length += uint32(n)
		j.extents[k].blocks += uint16(blocks)
		return
	}
	j.extents = append(j.extents, run{length: uint32(n), blocks: uint16(blocks), plain: true})
}
