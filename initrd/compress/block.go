package compress

// blockOutput hands out what a format unpacks block by block.
type blockOutput struct {
	out []byte // unread part of the block that was unpacked last
	err error  // why there is no next block
}

// read fills p from the block. next unpacks another one into out when there is
// nothing left; a block may be empty.
func (b *blockOutput) read(p []byte, next func() error) (int, error) {
	for len(b.out) == 0 && b.err == nil {
		b.err = next()
	}
	n := copy(p, b.out)
	b.out = b.out[n:]
	if n > 0 {
		return n, nil
	}
	return 0, b.err
}
