package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// The legacy frame, as lib/decompress_unlz4.c reads it: a magic word, then
// blocks of up to 8 MiB, each behind a word with its packed size.
const (
	lz4Magic      = 0x184c2102
	lz4BlockBytes = 8 << 20
)

var lz4MaxPacked = uint32(lz4.CompressBlockBound(lz4BlockBytes))

type lz4Reader struct {
	src         source
	packed      bytes.Buffer
	block       []byte // lz4BlockBytes long once there is a block
	blockOutput        // out is the unread part of block
}

func newLZ4Reader(s source) (*lz4Reader, error) {
	var b [4]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return nil, unexpected(err)
	}
	if magic := binary.LittleEndian.Uint32(b[:]); magic != lz4Magic {
		return nil, fmt.Errorf("bad magic %#x", magic)
	}
	return &lz4Reader{src: s}, nil
}

func (r *lz4Reader) Read(p []byte) (int, error) { return r.read(p, r.next) }

// next unpacks one block, or passes a repeated magic. The format has no end
// mark: the segment is over at the end of the input, at a zero word, and at a
// word that no block of 8 MiB can have as its size, which then begins the next
// segment. Fewer than four bytes that are left can only be padding.
func (r *lz4Reader) next() error {
	head, err := r.src.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(head) < 4 {
		if len(bytes.Trim(head, "\x00")) > 0 {
			return io.ErrUnexpectedEOF
		}
		return io.EOF
	}
	size := binary.LittleEndian.Uint32(head)
	if size == 0 || size > lz4MaxPacked && size != lz4Magic {
		return io.EOF
	}
	if _, err := io.CopyN(io.Discard, r.src, 4); err != nil || size == lz4Magic {
		return err
	}
	r.packed.Reset()
	if _, err := io.CopyN(&r.packed, r.src, int64(size)); err != nil {
		return unexpected(err)
	}
	if r.block == nil {
		r.block = make([]byte, lz4BlockBytes)
	}
	n, err := lz4.UncompressBlock(r.packed.Bytes(), r.block)
	if err != nil {
		return err
	}
	r.out = r.block[:n]
	return nil
}

type lz4Writer struct {
	w      io.Writer
	packer lz4.CompressorHC
	block  []byte
	begun  bool
}

func newLZ4Writer(w io.Writer) *lz4Writer {
	return &lz4Writer{w: w, packer: lz4.CompressorHC{Level: lz4.Level9}}
}

func (w *lz4Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), lz4BlockBytes-len(w.block))
		w.block = append(w.block, p[:k]...)
		p = p[k:]
		n += k
		if len(w.block) == lz4BlockBytes {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (w *lz4Writer) flush() error {
	out := make([]byte, 8+lz4MaxPacked)
	binary.LittleEndian.PutUint32(out, lz4Magic)
	size, err := w.packer.CompressBlock(w.block, out[8:])
	if err != nil {
		return fmt.Errorf("write lz4: %w", err)
	}
	binary.LittleEndian.PutUint32(out[4:], uint32(size))
	out = out[:8+size]
	if w.begun {
		out = out[4:]
	}
	w.begun, w.block = true, w.block[:0]
	_, err = w.w.Write(out)
	return err
}

// Close writes what is left.
func (w *lz4Writer) Close() error {
	switch {
	case len(w.block) > 0:
		return w.flush()
	case !w.begun:
		w.begun = true
		_, err := w.w.Write(binary.LittleEndian.AppendUint32(nil, lz4Magic))
		return err
	}
	return nil
}
