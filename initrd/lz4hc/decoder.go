package lz4hc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var (
	errZeroOffset = errors.New("match with offset 0")
	errFarOffset  = errors.New("match begins before the block's content")
)

const word = 8

// Decode decodes the block src into dst and returns the number of bytes
// written. It stops when dst is full, even inside the block and without looking
// at the rest of it, as LZ4_decompress_safe_partial of lib/lz4/lz4_decompress.c
// does. An error names the offset in src of the sequence it is in; a block that
// breaks off is io.ErrUnexpectedEOF. The end-of-block rules are not checked:
// they only serve decoders that write ahead.
func Decode(dst, src []byte) (n int, err error) {
	o, i := 0, 0
	for o < len(dst) {
		begin := i
		if i >= len(src) {
			return o, fail(begin, io.ErrUnexpectedEOF)
		}
		token := int(src[i])
		i++

		literals := token >> 4
		if literals == lengthEscape {
			if literals, i = getLength(src, i); i < 0 {
				return o, fail(begin, io.ErrUnexpectedEOF)
			}
		}
		if literals <= 2*word && len(src)-i >= 2*word && len(dst)-o >= 2*word {
			s, d := src[i:i+2*word], dst[o:o+2*word]
			binary.LittleEndian.PutUint64(d, load64(s, 0))
			binary.LittleEndian.PutUint64(d[word:], load64(s, word))
		} else {
			copied := copy(dst[o:], src[i:i+min(literals, len(src)-i)])
			if copied < literals {
				o += copied
				if o == len(dst) {
					break
				}
				return o, fail(begin, io.ErrUnexpectedEOF)
			}
		}
		o += literals
		i += literals
		if i == len(src) || o == len(dst) {
			break
		}

		if len(src)-i < offsetSize {
			return o, fail(begin, io.ErrUnexpectedEOF)
		}
		offset := int(binary.LittleEndian.Uint16(src[i:]))
		i += offsetSize
		length := token & lengthEscape
		if length == lengthEscape {
			if length, i = getLength(src, i); i < 0 {
				return o, fail(begin, io.ErrUnexpectedEOF)
			}
		}
		length += minMatch
		switch {
		case offset == 0:
			return o, fail(begin, errZeroOffset)
		case offset > o:
			return o, fail(begin, errFarOffset)
		}
		if offset >= word && length <= 3*word && len(dst)-o >= 3*word {
			// Words may overlap what was just written, but not themselves.
			s, d := dst[o-offset:], dst[o:o+3*word]
			binary.LittleEndian.PutUint64(d, load64(s, 0))
			binary.LittleEndian.PutUint64(d[word:], load64(s, word))
			binary.LittleEndian.PutUint64(d[2*word:], load64(s, 2*word))
			o += length
			continue
		}
		from, end := o-offset, o+min(length, len(dst)-o)
		for o < end { // what is there to be copied doubles each time
			o += copy(dst[o:end], dst[from:o])
		}
	}
	return o, nil
}

func fail(offset int, err error) error {
	return fmt.Errorf("decode lz4: sequence at offset %d: %w", offset, err)
}

// getLength reads the rest of a length field and gives it with the offset of
// what follows, which is -1 if src ends.
func getLength(src []byte, i int) (length, next int) {
	length = lengthEscape
	for ; i < len(src); i++ {
		length += int(src[i])
		if src[i] != lengthByte {
			return length, i + 1
		}
	}
	return 0, -1
}
