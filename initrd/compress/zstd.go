package compress

import (
	"encoding/binary"
	"fmt"
	"io"
)

const zstdMagic = 0xfd2fb528

// newZstdFrame relays the single zstd frame that begins at s (RFC 8878,
// section 3.1.1). Frames that follow are segments of their own, as they are
// for the kernel.
func newZstdFrame(s *input) *relay {
	r := &relay{src: s}
	checksum, last := false, false
	block := func() error {
		r.head = r.head[:0]
		if last {
			if checksum {
				checksum = false
				_, err := r.take(4)
				return err
			}
			return io.EOF
		}
		b, err := r.take(3)
		if err != nil {
			return err
		}
		header := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = header&1 != 0
		switch kind := header >> 1 & 3; kind {
		case 0, 2: // raw, compressed
			r.body = int64(header >> 3)
		case 1: // one byte repeated
			r.body = 1
		default:
			return fmt.Errorf("reserved block type %d", kind)
		}
		return nil
	}
	r.next = func() error {
		b, err := r.take(5)
		if err != nil {
			return err
		}
		if magic := binary.LittleEndian.Uint32(b); magic != zstdMagic {
			return fmt.Errorf("bad magic %#x", magic)
		}
		descriptor := b[4]
		checksum = descriptor&4 != 0
		single := descriptor>>5&1 != 0
		size := [4]int{0, 1, 2, 4}[descriptor&3] + [4]int{0, 2, 4, 8}[descriptor>>6]
		if !single {
			size++ // the window descriptor
		} else if descriptor>>6 == 0 {
			size++ // a content size of one byte
		}
		r.next = block
		_, err = r.take(size)
		return err
	}
	return r
}
