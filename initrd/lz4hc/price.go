package lz4hc

import "slices"

// extra gives the bytes beyond the token of a length field that holds n:
// none below 15, then one and one more for each 255.
func extra(n int32) int32 { return int32(uint32(n+lengthByte-lengthEscape) / lengthByte) }

// matchPrice is the size of a match and of the token before it.
func matchPrice(length int32) int32 { return 1 + offsetSize + extra(length-minMatch) }

// literalPrice is the size of a run of literals without the token.
func literalPrice(n int32) int32 { return n + extra(n) }

// rank orders the places where a length may begin whose field costs
// extra(position-at): for every later position, the place of the lower rank is
// at least as cheap. cost is what leads to the place, less what grows evenly
// with the position.
//
// With at = 255*q + r, cost + extra(position-at) is cost - q plus a number that
// depends on the position, less 1 at some positions, which are the more the
// larger r is. Hence the lower cost - q wins or ties, and of equals the larger r.
func rank(cost, at int32) int32 { return lengthByte*cost - at }

// candidate is a match that prefixes of the block may end with: any length from
// minMatch on up to its end.
type candidate struct {
	rank       int32
	start, end int32
}

// frontier holds the matches that can be the cheapest at some later position: in
// the order of their ranks and, as a match with higher rank is of use only beyond
// those before it, also in the order of their ends.
type frontier struct {
	list  []candidate
	first int
}

func (f *frontier) reset() { f.list, f.first = f.list[:0], 0 }

func (f *frontier) add(c candidate) {
	// What is not cheaper and reaches no farther gives way to c.
	k := len(f.list)
	for ; k > f.first; k-- {
		last := f.list[k-1]
		if last.rank < c.rank {
			if last.end >= c.end {
				return // a cheaper one reaches as far
			}
			break
		}
		if last.end > c.end {
			f.insert(c)
			return
		}
	}
	f.list = append(f.list[:k], c)
}

// insert adds a candidate that one of higher rank outreaches.
func (f *frontier) insert(c candidate) {
	k := len(f.list)
	for ; k > f.first && f.list[k-1].rank >= c.rank; k-- {
	}
	if k > f.first && f.list[k-1].end >= c.end {
		return // a cheaper one reaches as far
	}
	// c takes the place of those that are dearer and reach no farther.
	m := k
	for m < len(f.list) && f.list[m].end <= c.end {
		m++
	}
	f.list = slices.Replace(f.list, k, m, c)
}

// best gives the start of the match with which the prefix up to position is
// cheapest, or -1. Positions do not fall.
func (f *frontier) best(position int32) int32 {
	for f.first < len(f.list) {
		if c := f.list[f.first]; c.end >= position {
			return c.start
		}
		f.first++
		if f.first > len(f.list)/2 && f.first > 64 {
			f.list = append(f.list[:0], f.list[f.first:]...)
			f.first = 0
		}
	}
	f.reset()
	return -1
}
