package lz4hc

import (
	"encoding/binary"
	"math/bits"
)

const (
	hashBits   = 16
	windowSize = 1 << 16
	windowMask = windowSize - 1
	// so many bytes compared take the time of one more node
	compareUnit = 64

	hashFactor = 2654435761 // 2**32 divided by the golden ratio, a prime
)

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

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
	enough int // a match of this length is followed, without looking for longer ones

	head [1 << hashBits]int32  // the roots
	sons [2 * windowSize]int32 // smaller and larger son of a position

	// the match of the position before
	length, at int
}

func (f *finder) reset(block []byte) {
	f.block = block
	for i := range f.head {
		f.head[i] = -1
	}
	f.length, f.at = 0, 0
	f.spare = f.pace << 12
}

// longest enters position i and gives the longest match that was found, of
// length 0 if there is none. It is called for each position in turn.
func (f *finder) longest(i int) (length, at int) {
	s := f.block
	limit := len(s) - i
	if limit < minMatch {
		return 0, 0
	}
	// The match before this position goes on, shorter by one byte.
	knownAt, known := f.at+1, f.length-1
	if known >= f.enough {
		f.length, f.at = known, knownAt
		return known, knownAt
	}
	root := &f.head[load32(s, i)*hashFactor>>(32-hashBits)]
	cur := int(*root)
	*root = int32(i)
	left := &f.sons[2*(i&windowMask)]
	right := &f.sons[2*(i&windowMask)+1]
	var leftLen, rightLen int
	best, at := minMatch-1, 0
	f.spare = min(f.spare+f.pace, f.pace<<12)
	depth := min(f.depth, f.spare)
	used := 0
	for ; used < depth && cur >= 0 && i-cur <= maxOffset; used++ {
		pair := f.sons[2*(cur&windowMask):][:2]
		n := min(leftLen, rightLen)
		if cur == knownAt && known > n {
			n = known
		}
		used -= n / compareUnit
		n = common(s, cur, i, n, limit)
		used += n / compareUnit
		if n > best {
			best, at = n, cur
		}
		if n == limit {
			// This position takes the place of cur.
			*left, *right = pair[0], pair[1]
			goto done
		}
		if s[cur+n] < s[i+n] {
			*left = int32(cur)
			left = &pair[1]
			cur = int(*left)
			leftLen = n
		} else {
			*right = int32(cur)
			right = &pair[0]
			cur = int(*right)
			rightLen = n
		}
	}
	*left, *right = -1, -1
done:
	f.spare -= used
	if best < minMatch {
		best = 0
	}
	f.length, f.at = best, at
	return best, at
}
