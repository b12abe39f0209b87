package erofs

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"sync"
)

// Parts of contents that are stored already are found by a rolling hash, and
// refer to the physical clusters that hold them. All copies are known before
// anything is encoded: so a cluster is made to begin where a copied part begins,
// and what is encoded does not depend on what is referred to.

const (
	// minCopy is the least that is worth a reference: a new cluster begins at its
	// source, and another one behind the copy, each of which leaves half a block.
	minCopy = 32 << 10
	// copyCost is what these take in the image, and copyRatio what a byte of
	// content takes, in eighths.
	copyCost  = 6 << 10
	copyRatio = 3
	// minStretch is the least that is encoded on its own. An extent that another
	// one follows must have an index behind its head's, which has the size of the
	// physical cluster, wherever in a logical cluster it begins.
	minStretch = 2 * blockSize

	// One of 1<<anchorBits places is an anchor, fewer in a tree for which there
	// would be more than maxAnchors of them on average. There are never more than
	// twice as many, of 16 bytes each, and a table of 16 bytes for each.
	anchorBits   = 10
	maxAnchors   = 1 << 19
	anchorWindow = 64 // bytes that decide it
	anchorRun    = 3  // anchors that must agree before bytes are compared
	anchorChunk  = 1 << 20
)

// copied is a part of a content that another one, or an earlier part of the
// same, has too.
type copied struct {
	offset, length int64
	from           *planData
	fromOffset     int64
}

func (c *copied) end() int64 { return c.offset + c.length }

// shift takes away the first n bytes.
func (c *copied) shift(n int64) {
	c.offset += n
	c.fromOffset += n
	c.length -= n
}

// anchor is a place whose window has a certain hash.
type anchor struct {
	hash uint64
	pos  int64 // behind the window, counted through all contents
}

// gear are the hashes of bytes; the hash of a window is their sum, each shifted
// by its distance from the end.
var gear = func() (t [256]uint64) {
	s := uint64(1)
	for i := range t {
		// splitmix64
		s += 0x9e3779b97f4a7c15
		z := s
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()

// copyFinder finds copies in contents.
type copyFinder struct {
	contents []*planData
	starts   []int64 // of each content, and the end of the last
	anchors  []anchor
	table    []uint32 // numbers of anchors by hash, plus 1
	bufs     [2][]byte
}

// findCopies fills in cuts and copies of contents.
func findCopies(ctx context.Context, contents []*planData, workers int) error {
	f := &copyFinder{contents: contents, starts: []int64{0}}
	total := int64(0)
	for _, d := range contents {
		total += d.size
		f.starts = append(f.starts, total)
	}
	if err := f.findAnchors(ctx, total, workers); err != nil {
		return err
	}
	f.table = make([]uint32, 1<<bits.Len(uint(2*len(f.anchors))))
	for i := range f.bufs {
		f.bufs[i] = make([]byte, 64<<10)
	}
	next := 0
	for i, d := range contents {
		end := next + sort.Search(len(f.anchors)-next, func(k int) bool { return f.anchors[next+k].pos > f.starts[i+1] })
		if err := f.find(d, f.starts[i], next, end); err != nil {
			return err
		}
		next = end
	}
	return nil
}

// findAnchors looks at all contents.
func (f *copyFinder) findAnchors(ctx context.Context, total int64, workers int) error {
	shift := uint(anchorBits)
	for total>>shift > maxAnchors {
		shift++
	}
	type chunk struct {
		data       *planData
		offset, at int64 // in the content, and through all contents
		size       int64
	}
	var chunks []chunk
	for i, d := range f.contents {
		for offset := int64(0); offset < d.size && d.size >= minCopy; offset += anchorChunk {
			chunks = append(chunks, chunk{d, offset, f.starts[i] + offset, min(anchorChunk, d.size-offset)})
		}
	}
	found := make([][]anchor, len(chunks))
	var mu sync.Mutex
	var first error
	next := 0
	take := func(err error) int {
		mu.Lock()
		defer mu.Unlock()
		if err = cmp.Or(err, ctx.Err()); err != nil && first == nil {
			first = err
		}
		if first != nil || next == len(chunks) {
			return -1
		}
		next++
		return next - 1
	}
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			buf := make([]byte, anchorWindow+anchorChunk)
			var err error
			for i := take(nil); i >= 0; i = take(err) {
				c := chunks[i]
				before := min(c.offset, anchorWindow)
				b := buf[:before+c.size]
				if err = readAt(c.data.source, b, c.offset-before); err != nil {
					err = fmt.Errorf("read spooled content of %s: %w", c.data.path, err)
					continue
				}
				found[i] = findAnchors(b, int(before), c.at, shift)
			}
		})
	}
	running.Wait()
	f.anchors = slices.Concat(found...)
	return first
}

// findAnchors gives the anchors of b from its byte skip on, which is at pos. Of
// those that are close together all but the first are left out, and so are those
// in rows of one byte, which cost next to nothing as they are.
func findAnchors(b []byte, skip int, pos int64, shift uint) (list []anchor) {
	var h uint64
	for _, c := range b[:skip] {
		h = h<<1 + gear[c]
	}
	last := -1 << shift
	for i, c := range b[skip:] {
		h = h<<1 + gear[c]
		if h>>(64-shift) != 0 || i-last < 1<<(shift-1) {
			continue
		}
		end := skip + i + 1
		if window := b[max(0, end-anchorWindow):end]; len(window) < anchorWindow || bytes.Equal(window[1:], window[:anchorWindow-1]) {
			continue
		}
		last = i
		list = append(list, anchor{h, pos + int64(i) + 1})
	}
	return list
}

// slot is where an anchor with this hash is in the table, or could be.
func (f *copyFinder) slot(hash uint64) *uint32 {
	mask := len(f.table) - 1
	// The low bits of a hash depend on few bytes of its window.
	for i := int(hash * 0x9e3779b97f4a7c15 >> 32); ; i++ {
		if p := &f.table[i&mask]; *p == 0 || f.anchors[*p-1].hash == hash {
			return p
		}
	}
}

// agree reports whether the anchors from a and b on are at the same distances.
func (f *copyFinder) agree(a, b int) bool {
	if max(a, b)+anchorRun > len(f.anchors) {
		return false
	}
	delta := f.anchors[b].pos - f.anchors[a].pos
	for i := range anchorRun {
		if p, q := f.anchors[a+i], f.anchors[b+i]; p.hash != q.hash || q.pos-p.pos != delta {
			return false
		}
	}
	return true
}

// find finds the copies in a content, which begins at start and has the anchors
// from first to end.
func (f *copyFinder) find(d *planData, start int64, first, end int) error {
	var gain int64
	for i := first; i < end; i++ {
		a := f.anchors[i]
		done := int64(0)
		if n := len(d.copies); n > 0 {
			done = d.copies[n-1].end()
		}
		if a.pos-start-anchorWindow < done {
			continue
		}
		p := f.slot(a.hash)
		if *p == 0 {
			*p = uint32(i + 1)
			continue
		}
		k := int(*p - 1)
		if !f.agree(k, i) {
			continue
		}
		n := sort.Search(len(f.contents), func(n int) bool { return f.starts[n+1] >= f.anchors[k].pos })
		c := copied{offset: a.pos - start, from: f.contents[n], fromOffset: f.anchors[k].pos - f.starts[n]}
		if err := f.extend(d, &c, done); err != nil {
			return err
		}
		if c.length >= minCopy {
			d.copies = append(d.copies, c)
			gain += c.length/8*copyRatio - copyCost
		}
	}
	// All of the content's indexes grow.
	if clusters := (d.size + blockSize - 1) >> blockBits; gain > clusters*(lclusterIndexSize-compact2BSize) {
		settle(d)
		return nil
	}
	d.copies = nil
	for i := first; i < end; i++ {
		if p := f.slot(f.anchors[i].hash); *p == 0 {
			*p = uint32(i + 1)
		}
	}
	return nil
}

// extend finds out how far a copy reaches in both directions: not into what is
// before the offset done, not into other copies, not into itself.
func (f *copyFinder) extend(d *planData, c *copied, done int64) error {
	low, high := c.from.fresh(c.fromOffset)
	back, err := f.equal(d, c.from, c.offset, c.fromOffset, -min(c.fromOffset-low, c.offset-done))
	if err != nil {
		return err
	}
	c.shift(-back)
	room := min(high-c.fromOffset, d.size-c.offset)
	if c.from == d {
		room = min(room, c.offset-c.fromOffset)
	}
	c.length = back
	if back < room {
		ahead, err := f.equal(d, c.from, c.offset+back, c.fromOffset+back, room-back)
		if err != nil {
			return err
		}
		c.length += ahead
	}
	c.length = min(c.length, max(room, 0))
	return nil
}

// fresh gives the part of a content around offset that is no copy.
func (d *planData) fresh(offset int64) (low, high int64) {
	i := sort.Search(len(d.copies), func(i int) bool { return d.copies[i].end() > offset })
	high = d.size
	if i < len(d.copies) {
		high = d.copies[i].offset
		if high <= offset {
			return offset, offset
		}
	}
	if i > 0 {
		low = d.copies[i-1].end()
	}
	return low, high
}

// equal counts the bytes from two offsets on that are equal, n at most; back from
// the offsets if n is negative.
func (f *copyFinder) equal(a, b *planData, offset, other, n int64) (int64, error) {
	for done := int64(0); ; {
		size := min(max(n, -n)-done, int64(len(f.bufs[0])))
		if size <= 0 {
			return done, nil
		}
		at := done
		if n < 0 {
			at = -done - size
		}
		x, y := f.bufs[0][:size], f.bufs[1][:size]
		if err := readAt(a.source, x, offset+at); err != nil {
			return 0, fmt.Errorf("read spooled content of %s: %w", a.path, err)
		}
		if err := readAt(b.source, y, other+at); err != nil {
			return 0, fmt.Errorf("read spooled content of %s: %w", b.path, err)
		}
		if !bytes.Equal(x, y) {
			if n < 0 {
				slices.Reverse(x)
				slices.Reverse(y)
			}
			for i := range x {
				if x[i] != y[i] {
					return done + int64(i), nil
				}
			}
		}
		done += size
	}
}

// settle puts the cuts for a content's copies into their sources, and makes the
// copies shorter so that all that lies between cuts can be encoded on its own.
func settle(d *planData) {
	list := d.copies
	d.copies = nil
	for _, c := range list {
		before := int64(0)
		if n := len(d.copies); n > 0 {
			before = d.copies[n-1].end()
		}
		if end := c.end(); end < d.size {
			// A last extent that is short ends in another logical cluster for sure.
			c.length -= end % blockSize
		}
		for c.length > 0 {
			n := c.from.cutDistance(c.fromOffset)
			if n == 0 {
				n = d.stretchDistance(before, c.offset)
			}
			if n == 0 {
				break
			}
			c.shift(n)
		}
		if c.length < minCopy/2 {
			continue
		}
		c.from.cut(c.fromOffset)
		c.from.lent = max(c.from.lent, c.fromOffset+c.length)
		d.copies = append(d.copies, c)
	}
}

// cutDistance says how far behind offset the next place for a cut is.
func (d *planData) cutDistance(offset int64) int64 {
	low, _ := d.fresh(offset)
	i, ok := slices.BinarySearch(d.cuts, offset)
	if ok || offset == low {
		return 0
	}
	if i > 0 {
		low = max(low, d.cuts[i-1])
	}
	if n := low + minStretch - offset; n > 0 {
		return n
	}
	if i < len(d.cuts) && d.cuts[i]-offset < minStretch {
		return d.cuts[i] - offset
	}
	return 0
}

// stretchDistance says how far behind offset a copy may begin, where before is
// the end of the copy before.
func (d *planData) stretchDistance(before, offset int64) int64 {
	if i, _ := slices.BinarySearch(d.cuts, offset+1); i > 0 {
		before = max(before, d.cuts[i-1])
	}
	if before == offset {
		return 0
	}
	return max(0, before+minStretch-offset)
}

func (d *planData) cut(offset int64) {
	if i, ok := slices.BinarySearch(d.cuts, offset); !ok {
		d.cuts = slices.Insert(d.cuts, i, offset)
	}
}

// stretchEnd gives the next cut behind offset, which is in no copy, or the begin of
// the next copy, or the content's end.
func (d *planData) stretchEnd(offset int64) int64 {
	_, end := d.fresh(offset)
	if i, _ := slices.BinarySearch(d.cuts, offset+1); i < len(d.cuts) {
		end = min(end, d.cuts[i])
	}
	return end
}

// copyAt gives the copy that begins at offset.
func (d *planData) copyAt(offset int64) *copied {
	i, ok := slices.BinarySearchFunc(d.copies, offset, func(c copied, offset int64) int { return cmp.Compare(c.offset, offset) })
	if !ok {
		return nil
	}
	return &d.copies[i]
}

// refer adds the extents of a copy. Its source is in the image.
func (im *image) refer(d *planData, c *copied) error {
	i, ok := slices.BinarySearchFunc(c.from.begins, c.fromOffset, func(b begin, offset int64) int { return cmp.Compare(b.offset, offset) })
	if !ok {
		return fmt.Errorf("no physical cluster begins at byte %d of %s", c.fromOffset, c.from.path)
	}
	from := c.from.extents[c.from.begins[i].extent:]
	for at, end := c.offset, c.end(); at < end; from = from[1:] {
		e := from[0]
		if rest := end - at; int64(e.length) > rest {
			e.length, e.partial = uint32(rest), true
			if e.plain {
				e.blocks = uint16((rest + blockSize - 1) >> blockBits)
			}
		}
		if !d.holds(at, &e) {
			return im.plainEnd(d, at, end)
		}
		d.extents = append(d.extents, e)
		at += int64(e.length)
	}
	return nil
}

// holds reports whether the indexes can have an extent from at on: the end of a
// copy may be too short for its physical cluster.
func (d *planData) holds(at int64, e *run) bool {
	end := at + int64(e.length)
	clusters := end>>blockBits - at>>blockBits
	if e.plain || e.blocks == 1 {
		return clusters >= 1 || end == d.size
	}
	return clusters >= 2
}

// plainEnd adds the end of a copy, less than two blocks, as plain blocks.
func (im *image) plainEnd(d *planData, at, end int64) error {
	b := make([]byte, end-at)
	if err := readAt(d.source, b, at); err != nil {
		return fmt.Errorf("read spooled content of %s: %w", d.path, err)
	}
	block := im.end
	if err := im.append(b); err != nil {
		return err
	}
	d.extents = append(d.extents, run{length: uint32(len(b)), block: uint32(block), blocks: uint16(im.end - block), plain: true})
	return nil
}
