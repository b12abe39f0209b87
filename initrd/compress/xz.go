package compress

import (
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// xzStream walks the structure of one xz stream (the .xz file format, version
// 1.2.0): header, blocks of LZMA2 chunks, index, footer. It checks only what
// it needs to find the way; the decoder behind the relay verifies the rest.
type xzStream struct {
	relay
	checkBytes int64 // size of the check that ends each block
	blockBytes int64 // of the current block so far, without padding and check
}

const (
	xzHeaderBytes = 12
	xzFooterBytes = 12
	xzFilterLZMA2 = 0x21
)

func newXZStream(s *input) *relay {
	x := &xzStream{relay: relay{src: s}}
	x.next = x.header
	return &x.relay
}

// fresh begins a new piece of header and takes its first n bytes.
func (x *xzStream) fresh(n int) ([]byte, error) {
	x.head = x.head[:0]
	return x.take(n)
}

func (x *xzStream) header() error {
	b, err := x.fresh(xzHeaderBytes)
	if err != nil {
		return err
	}
	if string(b[:6]) != "\xfd7zXZ\x00" {
		return fmt.Errorf("bad magic %x", b[:6])
	}
	x.checkBytes = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[b[7]&15]
	x.next = x.block
	return nil
}

func (x *xzStream) block() error {
	b, err := x.fresh(1)
	if err != nil {
		return err
	}
	if b[0] == 0 {
		return x.index()
	}
	size := (int(b[0]) + 1) * 4
	if _, err = x.take(size - 1); err != nil {
		return err
	}
	x.blockBytes = int64(size)
	if err := checkXZFilter(x.head); err != nil {
		return err
	}
	x.next = x.chunk
	return nil
}

// checkXZFilter refuses a block whose filter the decoder does not know, or
// that asks for too large a dictionary, before the decoder allocates it.
func checkXZFilter(header []byte) error {
	flags, rest := header[1], header[2:]
	if flags&3 != 0 {
		return errors.New("filters other than LZMA2 are not supported")
	}
	for _, present := range []bool{flags&0x40 != 0, flags&0x80 != 0} {
		for present && len(rest) > 0 {
			present = rest[0]&0x80 != 0
			rest = rest[1:]
		}
	}
	if len(rest) < 3 || rest[0] != xzFilterLZMA2 || rest[1] != 1 {
		return errors.New("filters other than LZMA2 are not supported")
	}
	size, err := lzma.DecodeDictCap(rest[2])
	if err != nil {
		return err
	}
	if size > MaxWindow {
		return fmt.Errorf("dictionary of %d bytes is larger than %d", size, MaxWindow)
	}
	return nil
}

func (x *xzStream) chunk() error {
	b, err := x.fresh(1)
	if err != nil {
		return err
	}
	switch control := b[0]; {
	case control == 0:
		x.blockBytes++
		x.body = -x.blockBytes&3 + x.checkBytes
		x.next = x.block
		return nil
	case control >= 0x80: // compressed
		size := 4
		if control >= 0xc0 {
			size++ // new properties
		}
		if b, err = x.take(size); err != nil {
			return err
		}
		x.body = int64(b[2])<<8 + int64(b[3]) + 1
	case control <= 2: // stored
		if b, err = x.take(2); err != nil {
			return err
		}
		x.body = int64(b[0])<<8 + int64(b[1]) + 1
	default:
		return fmt.Errorf("bad LZMA2 control byte %#x", control)
	}
	x.blockBytes += int64(len(x.head)) + x.body
	return nil
}

// index passes the records, two numbers for each block, one at a time: there
// may be many.
func (x *xzStream) index() error {
	count, err := x.number()
	if err != nil {
		return err
	}
	size, numbers := int64(len(x.head)), 2*count
	if count > 1<<60 {
		return errors.New("bad number of index records")
	}
	x.next = func() error {
		x.head = x.head[:0]
		if numbers > 0 {
			numbers--
			_, err := x.number()
			size += int64(len(x.head))
			return err
		}
		x.body = -size&3 + 4 + xzFooterBytes
		x.next = func() error { return io.EOF }
		return nil
	}
	return nil
}

// number takes one variable-length integer.
func (x *xzStream) number() (n uint64, err error) {
	for shift := 0; shift < 63; shift += 7 {
		b, err := x.take(1)
		if err != nil {
			return 0, err
		}
		n |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return n, nil
		}
	}
	return 0, errors.New("integer of more than nine bytes")
}
