package lz4hc

import (
	"encoding/binary"
	"math"
	"math/bits"
)

const (
	hashBits   = 16
	windowSize = 1 << 16
	windowMask = windowSize - 1

	hashFactor = 2654435761 // 2**32 divided by the golden ratio, a prime
)

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
func big64(b []byte, i int) uint64  { return binary.BigEndian.Uint64(b[i:]) }

// common counts equal bytes from a and from b on, of which n are known and at
// most limit are of interest. a is less than b.
func common(s []byte, a, b, n, limit int) int {
	x, y := s[a:a+limit], s[b:b+limit]
	for ; n+8 <= len(x) && n+8 <= len(y); n += 8 {
		if d := load64(x, n) ^ load64(y, n); d != 0 {
			return n + bits.TrailingZeros64(d)>>3
		}
	}
	for n < len(x) && n < len(y) && x[n] == y[n] {
		n++
	}
	return n
}

// finder finds the longest match at each position of a block. It keeps the
// positions of the window in binary search trees, one for each hash of four
// bytes, ordered by the bytes that follow and, from the root down, by age.
type finder struct {
	block  []byte
	depth  int // most nodes to look at
	pace   int // nodes to look at for one position, on average
	spare  int // nodes not looked at so far
	enough int // strings that begin with so many equal bytes are taken for equal

	// Roots are kept with base added, which is beyond all of the blocks before.
	base, next int

	head [1 << hashBits]int32 // the roots
	sons [windowSize][2]int32 // smaller and larger son of a position

	// the match of the position before
	length, at int
}

func (f *finder) reset(block []byte) {
	f.base += f.next
	f.next = 0
	if f.base == 0 || f.base > math.MaxInt32-MaxInput {
		clear(f.head[:])
		f.base = 1 // what was never set is no root
	}
	f.block = block
	f.length, f.at = 0, 0
	f.spare = f.pace << 12
}

// longest enters position i, which is matchLimit bytes before the block's end at
// least, and gives the longest match that was found, of length 0 if there is
// none. It is called for each position in turn.
func (f *finder) longest(i int) (length, at int) {
	s := f.block
	root := &f.head[load32(s, i)*hashFactor>>(32-hashBits)]
	cur := int(*root) - f.base
	*root = int32(f.base + i)
	f.next = i + 1

	// The match before this position goes on, shorter by one byte.
	best, at := minMatch-1, -1
	if f.length > minMatch {
		best, at = f.length-1, f.at+1
	}

	known, knownAt := best, at
	limit := len(s) - i
	enough := min(f.enough, limit)
	low := max(0, i-maxOffset)
	f.spare = min(f.spare+f.pace, f.pace<<12)
	nodes := min(f.depth, f.spare)
	f.spare -= nodes
	node := &f.sons[i&windowMask]
	left, right := &node[0], &node[1]
	leftLen, rightLen := 0, 0
	for ; nodes > 0 && cur >= low; nodes-- {
		node := &f.sons[cur&windowMask]
		n := leftLen
		if n > rightLen {
			n = rightLen
		}
		if cur == knownAt {
			n = max(n, known)
		}
		var x, y uint64
		for n < enough {
			if n > limit-word {
				n = limit - word // some bytes are compared again
			}
			x, y = big64(s, cur+n), big64(s, i+n)
			if x != y {
				n += bits.LeadingZeros64(x^y) >> 3
				break
			}
			n += word
		}
		if n >= enough {
			if best < enough {
				best, at = common(s, cur, i, n, limit), cur
			}
			// This position takes the place of cur.
			*left, *right = node[0], node[1]
			goto done
		}
		if n > best {
			best, at = n, cur
		}
		if x < y {
			*left = int32(cur)
			left = &node[1]
			cur = int(*left)
			leftLen = n
		} else {
			*right = int32(cur)
			right = &node[0]
			cur = int(*right)
			rightLen = n
		}
	}
	*left, *right = -1, -1
done:
	f.spare += nodes
	if best < minMatch {
		best = 0
	}
	f.length, f.at = best, at
	return best, at
}
