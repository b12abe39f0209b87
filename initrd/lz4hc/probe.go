package lz4hc

const (
	cellSize   = 4096
	sampleBits = 4  // one of 1<<sampleBits strings of four bytes is looked at
	probeBits  = 13 // size of the table of the last places of such strings
	// A cell with fewer samples has few different strings: they may be
	// repetitive and none of them a sample.
	fewSamples = cellSize >> sampleBits * 3 / 4
	// A string that is repeated saves a byte, so a cell of data that cannot be
	// compressed is one where the samples save less than its literals' lengths cost.
	fewRepeats = 1
)

// probe tells at a fraction of a match finder's cost where data is random or
// compressed already. Of all strings of four bytes it looks at those with
// certain hashes, so that both places of a repetition are looked at or none.
type probe struct {
	origin, next int // the input from origin to next has been looked at
	cells        []cell
	last         [1 << probeBits]int32 // place of a string from origin on, plus 1
}

// cell is what is known of some bytes of input.
type cell struct {
	samples int32
	repeats int32 // samples that are repetitions or are repeated
}

func (c cell) random() bool { return c.samples >= fewSamples && c.repeats <= fewRepeats }

func (p *probe) reset(origin int) {
	p.origin, p.next = origin, origin
	p.cells = p.cells[:0]
	clear(p.last[:])
}

// hopeless says that no block of the size that begins at start pays: what it
// holds neither repeats nor is repeated by what follows. Of larger blocks only
// the first windowSize bytes count.
func (p *probe) hopeless(src []byte, start, size int) bool {
	if len(src)-start < cellSize+minMatch {
		return false // costs little to try
	}
	if start < p.origin || start > p.next {
		p.reset(start)
	}
	size = min(max(size, cellSize), windowSize)
	first := (start - p.origin) / cellSize
	behind := (start - p.origin + size + cellSize - 1) / cellSize
	behind = min(behind, (len(src)-minMatch+1-p.origin)/cellSize) // whole cells
	if behind == first {
		return false
	}
	for k := first; k < behind; k++ {
		p.look(src, p.origin+(k+1)*cellSize)
		if !p.cells[k].random() {
			return false
		}
	}
	return true
}

// look goes on up to the position end or the last whole string.
func (p *probe) look(src []byte, end int) {
	end = min(end, len(src)-minMatch+1)
	if end <= p.next {
		return
	}
	for len(p.cells) <= (end-1-p.origin)/cellSize {
		p.cells = append(p.cells, cell{})
	}
	for i := p.next; i < end; i++ {
		v := load32(src, i)
		h := v * hashFactor
		if h>>(32-sampleBits) != 0 {
			continue
		}
		c := &p.cells[(i-p.origin)/cellSize]
		c.samples++
		slot := &p.last[h>>(32-sampleBits-probeBits)]
		before := p.origin + int(*slot) - 1
		*slot = int32(i - p.origin + 1)
		if before >= p.origin && i-before <= maxOffset && load32(src, before) == v {
			c.repeats++
			p.cells[(before-p.origin)/cellSize].repeats++
		}
	}
	p.next = end
}
