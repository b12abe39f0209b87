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
	layout  Layout
	start   uint64 // block
	blocks  uint64 // from there on
	extents []run  // of compressed contents
	tail    []byte // the last extent, if it lies behind the inode
	table   chunkTable
}

// run is a stretch of a content in consecutive physical clusters: one that is
// compressed, or any number of plain ones, each a block.
type run struct {
	length uint32 // bytes of the content
	blocks uint16 // 0: in the metadata
	plain  bool
}

// job is a piece of a content on its way through a worker.
type job struct {
	data   *planData
	offset int64 // in the content
	size   int
	in     []byte
	last   bool // piece of its content
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
			for offset := int64(0); offset < d.size; offset += pieceSize {
				n := min(d.size-offset, pieceSize)
				j := &job{data: d, offset: offset, size: int(n), last: offset+n == d.size, done: make(chan struct{})}
				for range j.tokens() {
					select {
					case tokens <- struct{}{}:
					case <-ctx.Done():
						return
					}
				}
				select {
				case todo <- j:
				case <-ctx.Done():
					return
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
				if j.err = readAt(j.data.source, j.in, j.offset); j.err == nil && im.options.Compress {
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
	compressed := len(d.extents) > 0 || !j.plain()
	if j.last && j.offset == 0 && compressed {
		compressed = im.pays(j)
	}
	if compressed && j.offset > 0 && len(d.extents) == 0 {
		// The pieces before were plain, as they are in the image already.
		d.extents = append(d.extents, plainExtents(j.offset)...)
	}
	out := j.out
	switch {
	case compressed:
		d.layout = LayoutCompressedCompact
		d.extents = append(d.extents, j.extents...)
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
	if err := im.append(out); err != nil {
		return err
	}
	d.blocks = im.end - d.start
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
	return len(j.out)+len(j.tail)+mapHeaderSize+2*lclusters < flat
}

// plainExtents covers size bytes, a multiple of pieceSize.
func plainExtents(size int64) (list []run) {
	for ; size > 0; size -= pieceSize {
		list = append(list, run{length: pieceSize, blocks: pieceSize >> blockBits, plain: true})
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
// it begins in, because an index names one head for each.
func (e *pieceEncoder) encode(j *job) {
	e.lz4.Reset(j.in)
	for pos := 0; pos < len(j.in); {
		rest := len(j.in) - pos
		mayInline := j.last && e.options.Ztailpacking && !j.data.packed
		if rest <= blockSize && !mayInline {
			j.addPlain(pos, rest)
			break
		}
		n, size := e.lz4.Encode(e.block, pos)
		blocks := (size + blockSize - 1) >> blockBits
		if mayInline && n == rest {
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
		if n <= blocks<<blockBits {
			if mayInline && rest <= maxInlineTail {
				j.tail = append(j.tail, j.in[pos:]...)
				j.extents = append(j.extents, run{length: uint32(rest), plain: true})
				break
			}
			// Nothing at all means that nothing in the next block repeats.
			n = max(n, min(rest, blockSize))
			if full := n &^ (blockSize - 1); full > 0 && (n < rest || mayInline) {
				n = full
			}
			j.addPlain(pos, n)
		} else {
			j.out = append(j.out, make([]byte, blocks<<blockBits-size)...)
			j.out = append(j.out, e.block[:size]...)
			j.extents = append(j.extents, run{length: uint32(n), blocks: uint16(blocks)})
		}
		pos += n
	}
	if len(j.out)+len(j.tail)+len(j.in)/minGain > len(j.in) {
		j.out, j.tail = j.out[:0], j.tail[:0]
		j.extents = j.extents[:0]
	}
	if len(j.extents) == 0 {
		j.extents = append(j.extents, run{uint32(len(j.in)), uint16((len(j.in) + blockSize - 1) >> blockBits), true})
	}
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
	j.extents = append(j.extents, run{uint32(n), uint16(blocks), true})
}
