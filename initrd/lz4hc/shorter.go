package lz4hc

// Shorter gives the block that Encode(dst, start) would, at next to no cost. The
// call before was to Encode at the same start, with a dst that is not shorter,
// and gave a block.
func (e *Encoder) Shorter(dst []byte, start int) (in, out int) {
	block := e.src[start:]
	block = block[:min(len(block), MaxInput)]
	capacity := int32(min(len(dst), MaxInput))
	// The parse of a block does not depend on its size but for where it stops.
	last := int32(0)
	for int(last) < len(block) && e.at[last].cost <= capacity {
		last++
	}
	end, lit, size := e.end(last, capacity)
	if end <= size {
		return 0, 0
	}
	return int(end), e.write(dst, block, end, lit)
}
