package lz4hc

import "math/bits"

const (
	cellSize  = 4096
	probeBits = 13 // size of the table of the last places of samples
	// One of 16 strings of four bytes is a sample: if the upper half of its first
	// byte is 0. Runs of zeros are found, wherever they are.
	upperBits = 0x8080808080808080
	// A cell with fewer samples has few different strings: they may be
	// repetitive and none of them a sample.
	fewSamples = cellSize / 16 * 3 / 4
	// A string that is repeated saves a byte, so a cell of data that cannot be
	// compressed is one where the samples save less than its literals' lengths cost.
	fewRepeats = 1
)

// probe tells at a fraction of a match finder's cost where data is random or
// compressed already. Of all strings of four bytes it looks at those that
// begin with certain bytes, so that both places of a repetition are looked at or
// none.
type probe struct {
	origin int
	cells  []cell // of the input from origin on
	// The last places of samples from origin on: the lower half of the place below
	// half a hash, so that few of those before are looked at in vain.
	last [1 << probeBits]uint32
}

// cell is what is known of some bytes of input.
type cell struct {
	samples int32
	repeats int32 // samples that are repetitions or are repeated
}

func (c cell) random() bool { return c.samples >= fewSamples && c.repeats <= fewRepeats }

func (p *probe) reset(origin int) {
	p.origin, p.cells = origin, p.cells[:0]
	clear(p.last[:])
}

// hopeless says that no block of the size that begins at start pays: what it
// holds neither repeats nor is repeated by what follows. Of larger blocks only
// the first windowSize bytes count.
func (p *probe) hopeless(src []byte, start, size int) bool {
	if len(src)-start < cellSize+minMatch {
		return false // costs little to try
	}
	if start < p.origin || start > p.origin+len(p.cells)*cellSize {
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
		if k == len(p.cells) {
			p.look(src[p.origin:])
		}
		if !p.cells[k].random() {
			return false
		}
	}
	return true
}

// look goes on to the next cell of the input, which is whole and not the last
// bytes.
func (p *probe) look(src []byte) {
	n := len(p.cells)
	p.cells = append(p.cells, cell{})
	src = src[:(n+1)*cellSize+minMatch-1]
	samples, repeats := 0, int32(0)
	for at := n * cellSize; at < (n+1)*cellSize; at += word * word {
		// Bit 8*k+w tells of byte k in word w whether its upper half is not 0.
		set := uint64(0)
		for text := src[at : at+word*word]; len(text) >= word; text = text[word:] {
			x := load64(text, 0)
			x |= x << 1
			x |= x << 2
			set = set>>1 | x&upperBits
		}
		samples += word*word - bits.OnesCount64(set)
		for mark := ^set; mark != 0; mark &= mark - 1 {
			bit := uint(bits.TrailingZeros64(mark))
			i := at + int(bit%word*word+bit/word)
			v := load32(src, i)
			h := v * hashFactor
			slot, tag := &p.last[h>>(32-probeBits)], h<<probeBits>>16
			last := *slot
			*slot = tag<<16 | uint32(uint16(i))
			if last>>16 != tag {
				continue
			}
			before := i - int(uint16(uint32(i)-last))
			if before >= 0 && before < i && load32(src, before) == v {
				repeats++
				p.cells[before/cellSize].repeats++
			}
		}
	}
	p.cells[n].samples = int32(samples)
	p.cells[n].repeats += repeats
}
