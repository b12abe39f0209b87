package lz4hc

// Encoder splits one input into blocks. It may be used again and again, but by
// one goroutine at a time.
type Encoder struct {
	src    []byte
	finder finder

	// Of the prefixes of the block:
	cost []int32 // size, less the token after it
	run  []int32 // begin of the literals it ends with
	from []int32 // begin of the cheapest match that ends here, -1 if there is none
	// Of the positions in the block:
	length []int32
	offset []uint16

	matches   frontier
	sequences []sequence
}

type sequence struct{ literals, length, offset int32 }

// NewEncoder makes an encoder.
func NewEncoder(level Level) *Encoder {
	e := &Encoder{}
	switch level {
	case Fast:
		e.finder.depth, e.finder.pace = 4, 4
	case Default:
		e.finder.depth, e.finder.pace = 24, 16
	default:
		e.finder.depth, e.finder.pace = 1000, 64
	}
	return e
}

// Reset begins a new input.
func (e *Encoder) Reset(src []byte) { e.src = src }

func (e *Encoder) grow(n int) {
	if n <= len(e.cost) {
		return
	}
	n = min(MaxInput+1, n+n/2)
	e.cost = append(e.cost, make([]int32, n-len(e.cost))...)
	e.run = append(e.run, make([]int32, n-len(e.run))...)
	e.from = append(e.from, make([]int32, n-len(e.from))...)
	e.length = append(e.length, make([]int32, n-len(e.length))...)
	e.offset = append(e.offset, make([]uint16, n-len(e.offset))...)
}

// Encode writes one block for the input from position start on into dst.
func (e *Encoder) Encode(dst []byte, start int) (in, out int) {
	block := e.src[start:]
	block = block[:min(len(block), MaxInput)]
	capacity := int32(min(len(dst), 2*MaxInput))
	last := e.parse(block, capacity)
	end, lit := e.end(last, capacity)
	if end == 0 {
		return 0, 0
	}
	return int(end), e.write(dst, block, end, lit)
}

// parse finds the cheapest way to every prefix of the block and returns the last
// it got to.
func (e *Encoder) parse(block []byte, capacity int32) int32 {
	e.finder.reset(block)
	e.matches.reset()
	n := int32(len(block))
	lit, litRank := int32(0), int32(0)
	for i := int32(0); ; i++ {
		if int(i) >= len(e.cost) {
			e.grow(int(i) + 1)
		}
		if i >= minMatch {
			if a := i - minMatch; e.length[a] > 0 {
				e.matches.add(candidate{rank(e.cost[a], a), a, a + e.length[a]})
			}
		}
		a := e.matches.best(i)
		e.from[i] = a
		if a >= 0 {
			c := e.cost[a] + matchPrice(i-a)
			if r := rank(c-i, i); r <= litRank {
				lit, litRank = i, r
			}
		}
		cost := literalPrice(i - lit)
		if lit > 0 {
			cost += e.cost[lit-0]
		}
		if lit == i && i > 0 {
			cost = e.cost[a] + matchPrice(i-a)
		}
		e.cost[i], e.run[i] = cost, lit
		// A longer prefix may be cheaper, but by one byte at most.
		if i == n || cost > capacity {
			return i
		}
		length, at := e.finder.longest(int(i))
		if i+matchLimit > n {
			length = 0
		}
		length = min(length, int(n-i-lastLiterals))
		if length < minMatch {
			length = 0
		}
		e.length[i], e.offset[i] = int32(length), uint16(int(i)-at)
	}
}

// end gives the longest prefix, of at most last bytes, that is a block, and the
// begin of its last literals.
func (e *Encoder) end(last, capacity int32) (end, lit int32) {
	for p := last; p > 0; p-- {
		lit, cost := int32(0), literalPrice(p)
		try := func(j int32, c int32) {
			if c += literalPrice(p - j); c < cost {
				lit, cost = j, c
			}
		}
		if p >= matchLimit {
			j := e.run[p-lastLiterals-3]
			try(j, e.cost[j])
			for j := p - lastLiterals - 2; j <= p-lastLiterals; j++ {
				if a := e.from[j]; a >= 0 && a <= p-matchLimit {
					try(j, e.cost[a]+matchPrice(j-a))
				}
			}
		}
		if 1+cost <= capacity {
			return p, lit
		}
	}
	return 0, 0
}

// write encodes the prefix that ends at end with literals from lit on.
func (e *Encoder) write(dst, block []byte, end, lit int32) int {
	list := append(e.sequences[:0], sequence{literals: end - lit})
	for at := lit; at > 0; {
		a := e.from[at]
		at = e.run[a]
		list = append(list, sequence{a - at, lit - a, int32(e.offset[a])})
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
