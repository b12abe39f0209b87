package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"

	"github.com/anchore/go-lzo"
)

// The container of lzop, as lib/decompress_unlzo.c reads it. All numbers are
// big-endian.
const (
	lzopMagic      = "\x89LZO\x00\r\n\x1a\n"
	lzopBlockBytes = 256 << 10 // the kernel's bound

	lzopUnpackedAdler = 0x00000001
	lzopPackedAdler   = 0x00000002
	lzopExtraField    = 0x00000040
	lzopUnpackedCRC   = 0x00000100
	lzopPackedCRC     = 0x00000200
	lzopMultipart     = 0x00000400
	lzopFilter        = 0x00000800
	lzopHeaderCRC     = 0x00001000
)

type lzoReader struct {
	src         source
	flags       uint32
	packed      bytes.Buffer
	block       []byte
	blockOutput // out is the unread part of block
}

func newLZOReader(s source) (*lzoReader, error) {
	r := &lzoReader{src: s}
	return r, r.header()
}

// header reads up to the first block: magic, versions, method, flags, mode,
// times and name, then the checksum over all but the magic.
func (r *lzoReader) header() error {
	var magic [len(lzopMagic)]byte
	if _, err := io.ReadFull(r.src, magic[:]); err != nil {
		return unexpected(err)
	}
	if string(magic[:]) != lzopMagic {
		return fmt.Errorf("bad magic %x", magic)
	}
	var h bytes.Buffer
	take := func(n int64) ([]byte, error) {
		_, err := io.CopyN(&h, r.src, n)
		return h.Bytes()[max(0, h.Len()-int(n)):], unexpected(err)
	}
	b, err := take(8) // version, library version, version needed, method, level
	if err != nil {
		return err
	}
	if version := binary.BigEndian.Uint16(b); version < 0x0940 {
		return fmt.Errorf("lzop version %#x is too old", version)
	}
	if method := b[6]; method < 1 || method > 3 {
		return fmt.Errorf("unknown method %d", method)
	}
	if b, err = take(4); err != nil {
		return err
	}
	r.flags = binary.BigEndian.Uint32(b)
	if r.flags&(lzopFilter|lzopMultipart) != 0 {
		return fmt.Errorf("unsupported flags %#x", r.flags)
	}
	if b, err = take(4 + 4 + 4 + 1); err != nil { // mode, time twice, name
		return err
	}
	if _, err = take(int64(b[12])); err != nil {
		return err
	}
	if err := r.checksum(h.Bytes(), lzopHeaderCRC); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if r.flags&lzopExtraField != 0 {
		return errors.New("extra field is not supported")
	}
	return nil
}

// checksum reads a checksum and compares it: a CRC-32 if the flag is set,
// Adler-32 otherwise.
func (r *lzoReader) checksum(data []byte, crcFlag uint32) error {
	want, err := r.word()
	if err != nil {
		return err
	}
	got := adler32.Checksum(data)
	if r.flags&crcFlag != 0 {
		got = crc32.ChecksumIEEE(data)
	}
	if got != want {
		return errors.New("checksum mismatch")
	}
	return nil
}

func (r *lzoReader) word() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r.src, b[:])
	return binary.BigEndian.Uint32(b[:]), unexpected(err)
}

func (r *lzoReader) Read(p []byte) (int, error) { return r.read(p, r.next) }

// next unpacks one block: unpacked size, packed size, checksums, data. An
// unpacked size of 0 ends the segment; equal sizes mean stored data, which has
// no second checksum.
func (r *lzoReader) next() error {
	size, err := r.word()
	if err != nil {
		return err
	}
	if size == 0 {
		return io.EOF
	}
	if size > lzopBlockBytes {
		return fmt.Errorf("block of %d bytes is larger than %d", size, lzopBlockBytes)
	}
	packed, err := r.word()
	if err != nil {
		return err
	}
	if packed == 0 || packed > size {
		return fmt.Errorf("bad packed size %d of a block of %d bytes", packed, size)
	}
	sums := make(map[uint32]uint32) // by flag
	flags := []uint32{lzopUnpackedAdler, lzopUnpackedCRC}
	if packed < size {
		flags = append(flags, lzopPackedAdler, lzopPackedCRC)
	}
	for _, flag := range flags {
		if r.flags&flag == 0 {
			continue
		}
		if sums[flag], err = r.word(); err != nil {
			return err
		}
	}
	r.packed.Reset()
	if _, err := io.CopyN(&r.packed, r.src, int64(packed)); err != nil {
		return unexpected(err)
	}
	data := r.packed.Bytes()
	if packed < size {
		if r.block == nil {
			r.block = make([]byte, lzopBlockBytes)
		}
		n, err := lzo.Decompress(data, r.block[:size])
		if err != nil {
			return err
		}
		if n != int(size) {
			return fmt.Errorf("block has %d bytes, want %d", n, size)
		}
		data = r.block[:size]
	}
	for flag, want := range sums {
		var got uint32
		switch flag {
		case lzopUnpackedAdler:
			got = adler32.Checksum(data)
		case lzopUnpackedCRC:
			got = crc32.ChecksumIEEE(data)
		case lzopPackedAdler:
			got = adler32.Checksum(r.packed.Bytes())
		case lzopPackedCRC:
			got = crc32.ChecksumIEEE(r.packed.Bytes())
		}
		if got != want {
			return errors.New("block checksum mismatch")
		}
	}
	r.out = data
	return nil
}
