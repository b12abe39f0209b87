package lz4hc

import "math"

// reachBack bounds the search for a match that may end a block: in bytes before
// the last one that may begin.
const reachBack = 512

// Encoder splits one input into blocks. It may be used again and again, but by
// one goroutine at a time.
type Encoder struct {
	src    []byte
	probe  probe
	finder finder
	plain  plain

	at   []place // by position in the block
	tail int32   // begin of the block's last match, which may be another one than at's

	matches   frontier
	sequences []sequence
}

// place is what is known of a position in a block: of the prefix that ends there
// and of the match that begins there.
type place struct {
	cost   int32 // the prefix's size, less the token after it
	run    int32 // begin of the literals it ends with
	from   int32 // begin of the cheapest match that ends here, -1 if there is none
	length int32 // of the match
	offset int32
}

// plain is input for which no block of at most size bytes has been found to pay.
type plain struct{ from, to, size int }

func (p plain) covers(start, size int) bool {
	return p.from <= start && start < p.to && size <= p.size
}

type sequence struct{ literals, length, offset int32 }

// NewEncoder makes an encoder. It takes 800 KiB, and 20 bytes for each byte of
// input in its largest block: 20 MiB at most, 5 MiB where no block holds more than
// 256 KiB. What is known of input that cannot be compressed takes 1/512 of its size.
func NewEncoder(level Level) *Encoder {
	e := &Encoder{}
	f := &e.finder
	switch level {
	case Fast:
		f.depth, f.pace, f.enough = 6, 4, 64
	case Default:
		f.depth, f.pace, f.enough = 28, 7, 48
	default:
		f.depth, f.pace, f.enough = 1000, 64, 256
	}
	return e
}

// Reset begins a new input. It is read until the next Reset and not changed; blocks
// refer to nothing but their own part of it.
func (e *Encoder) Reset(src []byte) {
	e.src, e.plain = src, plain{}
	e.probe.reset(0)
}

// grow makes room for one more place.
func (e *Encoder) grow() {
	t := make([]place, max(1<<16, min(2*len(e.at), MaxInput+1)))
	copy(t, e.at)
	e.at = t
}

// Encode writes one block for the input from position start on into dst and
// returns how much input it holds, of what fits the most, and the block's size.
// It returns 0, 0 if the block would not be smaller than the input in it: then
// the caller stores as much as it likes as it is and goes on behind it. Starts
// that rise cost least.
func (e *Encoder) Encode(dst []byte, start int) (in, out int) {
	if e.plain.covers(start, len(dst)) || e.probe.hopeless(e.src, start, len(dst)) {
		return 0, 0
	}
	block := e.src[start:]
	block = block[:min(len(block), MaxInput)]
	capacity := int32(min(len(dst), MaxInput))
	last := e.parse(block, capacity)
	end, lit, size := e.end(last, capacity)
	if end <= size {
		e.plain = plain{start, start + e.leastSaved(last), len(dst)}
		return 0, 0
	}
	return int(end), e.write(dst, block, end, lit)
}

// leastSaved gives the prefix that saves least. If all of the block does not
// pay, then its rest without this prefix may, and no more than that.
func (e *Encoder) leastSaved(last int32) int {
	least, at := int32(0), int32(0)
	for i := range last + 1 {
		if s := i - e.at[i].cost; s < least {
			least, at = s, i
		}
	}
	return int(at)
}

// parse finds the cheapest way to every prefix of the block and returns the last
// it got to.
func (e *Encoder) parse(block []byte, capacity int32) int32 {
	e.finder.reset(block)
	e.matches.reset()
	n := int32(len(block))
	lit, litCost, litRank := int32(0), int32(0), int32(0)
	for i := int32(0); ; i++ {
		if int(i) >= len(e.at) {
			e.grow()
		}
		at := e.at
		if a := i - minMatch; a >= 0 {
			if p := &at[a]; p.length > 0 {
				e.matches.add(candidate{rank(p.cost, a), a, a + p.length})
			}
		}
		cost := int32(0)
		from := e.matches.best(i)
		if from >= 0 {
			cost = at[from].cost + matchPrice(i-from)
			if r := rank(cost-i, i); r <= litRank {
				lit, litCost, litRank = i, cost, r
			}
		}
		if lit < i {
			cost = litCost + literalPrice(i-lit)
		}
		p := &at[i]
		p.cost, p.run, p.from = cost, lit, from
		// A longer prefix may be cheaper, but by one byte at most.
		if i == n || cost > capacity {
			return i
		}
		p.length = 0
		if i+matchLimit <= n {
			length, from := e.finder.longest(int(i))
			p.length = min(int32(length), n-i-lastLiterals)
			p.offset = i - int32(from)
		}
	}
}

// end gives the longest prefix, of at most last bytes, that is a block, the begin
// of its last literals, and its size.
func (e *Encoder) end(last, capacity int32) (end, lit, size int32) {
	for p := last; p > 0; p-- {
		if size, lit := e.close(p, capacity); size <= capacity {
			return p, lit, size
		}
	}
	return 0, 0, 0
}

// close gives the size of a block for the prefix p and the begin of its last
// literals, and sets tail.
func (e *Encoder) close(p, capacity int32) (size, lit int32) {
	size = 1 + literalPrice(p) // without any match
	if p < matchLimit {
		return size, 0
	}
	// Any match may end here or before.
	j := p - (matchLimit - minMatch)
	lit = e.at[j].run
	if lit > 0 {
		e.tail = e.at[lit].from
		size = e.at[lit].cost + 1 + literalPrice(p-lit)
	}
	// Only those that begin early enough may end later.
	for j++; j <= p-lastLiterals; j++ {
		base := 1 + literalPrice(p-j)
		a := e.at[j].from
		if a < 0 || e.at[a].cost+matchPrice(j-a)+base > capacity {
			continue // and others cost no less
		}
		if a > p-matchLimit {
			a = e.reach(j, p-matchLimit)
		}
		if a < 0 {
			continue
		}
		if s := e.at[a].cost + matchPrice(j-a) + base; s < size {
			size, lit, e.tail = s, j, a
		}
	}
	return size, lit
}

// reach gives the begin, at latest or a little before, of the cheapest match that
// reaches up to end, or -1.
func (e *Encoder) reach(end, latest int32) int32 {
	best, at := int32(math.MaxInt32), int32(-1)
	for a := latest; a >= max(0, latest-reachBack); a-- {
		if e.at[a].length < end-a {
			continue
		}
		if c := e.at[a].cost + matchPrice(end-a); c < best {
			best, at = c, a
		}
	}
	return at
}

// write encodes the prefix that ends at end with literals from lit on.
func (e *Encoder) write(dst, block []byte, end, lit int32) int {
	list := e.sequences[:0]
	list = append(list, sequence{literals: end - lit})
	for at, a := lit, e.tail; at > 0; a = e.at[at].from {
		at = e.at[a].run
		list = append(list, sequence{a - at, lit - a, e.at[a].offset})
		lit = at
	}
	e.sequences = list
	o := 0
	for k := len(list) - 1; k >= 0; k-- {
		q := list[k]
		token := &dst[o]
		*token = byte(min(q.literals, lengthEscape) << 4)
		o = putLength(dst, o+1, q.literals)
		o += copy(dst[o:], block[:q.literals])
		block = block[q.literals+q.length:]
		if q.length > 0 {
			*token |= byte(min(q.length-minMatch, lengthEscape))
			dst[o], dst[o+1] = byte(q.offset), byte(q.offset>>8)
			o = putLength(dst, o+offsetSize, q.length-minMatch)
		}
	}
	return o
}

// putLength writes what does not fit into the token.
func putLength(dst []byte, o int, n int32) int {
	if n < lengthEscape {
		return o
	}
	for n -= lengthEscape; n >= lengthByte; n -= lengthByte {
		dst[o] = lengthByte
		o++
	}
	dst[o] = byte(n)
	return o + 1
}
