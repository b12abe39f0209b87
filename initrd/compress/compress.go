// Package compress reads and writes the compressions of an initramfs: those
// that lib/decompress.c of the Linux kernel knows.
//
// An initramfs is a chain of segments, each compressed in its own way, so a
// reader must stop exactly behind the last byte of its segment. NewReader does.
package compress

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Format is a compression.
type Format string

// The formats. LZ4 is the legacy frame (magic 0x184C2102), the only one the
// kernel reads; LZMA is the "alone" format, LZO the container of lzop.
const (
	None  Format = "none"
	Zstd  Format = "zstd"
	XZ    Format = "xz"
	Gzip  Format = "gzip"
	LZ4   Format = "lz4"
	LZMA  Format = "lzma"
	Bzip2 Format = "bzip2"
	LZO   Format = "lzo"
)

// Writable lists the formats that NewWriter knows.
var Writable = []Format{Zstd, LZ4, Gzip, XZ, None}

// MaxWindow bounds the bytes of history that a segment may ask its decoder to
// keep. It is the kernel's own bound for zstd; xz -9 and lzma -9 ask for half.
const MaxWindow = 128 << 20

// ParseFormat reads the name of a writable format.
func ParseFormat(s string) (Format, error) {
	var names []string
	for _, f := range Writable {
		if s == string(f) {
			return f, nil
		}
		names = append(names, string(f))
	}
	return "", fmt.Errorf("unknown compression %q; known: %s", s, strings.Join(names, " "))
}

// magics are the two bytes by which lib/decompress.c tells the formats.
var magics = map[string]Format{
	"\x1f\x8b": Gzip,
	"\x1f\x9e": Gzip,
	"BZ":       Bzip2,
	"\x5d\x00": LZMA,
	"\xfd7":    XZ,
	"\x89L":    LZO,
	"\x02\x21": LZ4,
	"\x28\xb5": Zstd,
}

// Detect tells the format of the segment that begins with head, at least two
// bytes of it, by the kernel's table. The magic of a cpio record is None.
func Detect(head []byte) (Format, bool) {
	if len(head) < 2 {
		return "", false
	}
	if f, ok := magics[string(head[:2])]; ok {
		return f, true
	}
	if strings.HasPrefix(string(head), "0707") {
		return None, true
	}
	return "", false
}

// source is what the decoders read from. Peek lets a reader see that its
// segment is over without taking the bytes of the next one.
type source interface {
	io.Reader
	io.ByteReader
	Peek(n int) ([]byte, error)
}

// NewReader unpacks the one segment in format f that begins at r. When r is a
// *bufio.Reader (or has its Peek), exactly the bytes of the segment are taken
// from it, and r goes on behind them once Read has returned io.EOF.
//
// A segment that is cut short gives an error that is io.ErrUnexpectedEOF; an
// lz4 segment cut between two blocks is the exception, because only the data
// could tell. Checksums are verified where the format has them. Memory is
// bounded by MaxWindow and a constant for each format. None reads r to its end.
func NewReader(f Format, r io.Reader) (io.ReadCloser, error) {
	if f == None {
		return io.NopCloser(r), nil
	}
	s, ok := r.(source)
	if !ok {
		s = bufio.NewReader(r)
	}
	in := &input{source: s}
	d, err := newDecoder(f, in)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f, in.cause(err))
	}
	return &reader{f, in, d}, nil
}

func newDecoder(f Format, s *input) (io.Reader, error) {
	switch f {
	case Zstd:
		return zstd.NewReader(newZstdFrame(s),
			zstd.WithDecoderConcurrency(1), // no goroutine reads ahead
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(MaxWindow))
	case XZ:
		return xz.ReaderConfig{SingleStream: true}.NewReader(newXZStream(s))
	case Gzip:
		d, err := gzip.NewReader(s)
		if err != nil {
			return nil, err
		}
		d.Multistream(false)
		return d, nil
	case LZMA:
		return lzma.ReaderConfig{DictCap: MaxWindow}.NewReader(s)
	case Bzip2:
		return bzip2.NewReader(&bzip2Stream{source: s}), nil
	case LZ4:
		return newLZ4Reader(s)
	case LZO:
		return newLZOReader(s)
	}
	return nil, fmt.Errorf("unknown compression %q", f)
}

// input turns the end of the source into io.ErrUnexpectedEOF, because a decoder
// asks only for bytes that its segment must have, and keeps the first error:
// decoders may report something else after it.
type input struct {
	source
	err error
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.source.Read(p)
	return n, in.keep(err)
}

func (in *input) ReadByte() (byte, error) {
	b, err := in.source.ReadByte()
	return b, in.keep(err)
}

func (in *input) keep(err error) error {
	err = unexpected(err)
	if in.err == nil {
		in.err = err
	}
	return err
}

// cause gives the error of the input, if there was one, else err.
func (in *input) cause(err error) error {
	if in.err != nil {
		return in.err
	}
	return err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// reader names the format in the errors of its decoder.
type reader struct {
	format  Format
	in      *input
	decoder io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.decoder.Read(p)
	if err != nil {
		err = r.in.cause(err)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read %s: %w", r.format, err)
	}
	return n, err
}

func (r *reader) Close() error {
	if d, ok := r.decoder.(*zstd.Decoder); ok {
		d.Close()
	}
	return nil
}

// relay hands the bytes of one segment to a decoder that would read on behind
// it, and ends where the segment ends. It knows the headers of the format and
// passes everything else unseen.
type relay struct {
	src  *input
	head []byte       // parsed, not yet handed over
	body int64        // bytes to hand over unseen, behind head
	next func() error // parses on, into head and body; io.EOF at the end
	err  error
}

func (r *relay) Read(p []byte) (int, error) {
	for len(r.head) == 0 && r.body == 0 && r.err == nil {
		if r.err = r.next(); r.err != nil {
			r.head = nil
			if !errors.Is(r.err, io.EOF) && r.src.err == nil {
				r.src.err = r.err
			}
		}
	}
	if n := copy(p, r.head); n > 0 {
		r.head = r.head[n:]
		return n, nil
	}
	if r.body == 0 {
		return 0, r.err
	}
	n, err := r.src.Read(p[:min(int64(len(p)), r.body)])
	r.body -= int64(n)
	return n, err
}

// take parses n bytes more of the header in head.
func (r *relay) take(n int) ([]byte, error) {
	at := len(r.head)
	r.head = append(r.head, make([]byte, n)...)
	_, err := io.ReadFull(r.src, r.head[at:])
	return r.head[at:], unexpected(err)
}

// NewWriter packs into one segment of format f, at the format's strongest
// sensible level. The same input gives the same bytes. Close ends the segment
// and leaves w open.
func NewWriter(f Format, w io.Writer) (io.WriteCloser, error) {
	switch f {
	case None:
		return nopCloser{w}, nil
	case Zstd:
		return zstd.NewWriter(w,
			zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(8<<20))
	case XZ:
		// The kernel knows no CRC64, the default of the format.
		return xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(w)
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.BestCompression)
	case LZ4:
		return newLZ4Writer(w), nil
	}
	return nil, fmt.Errorf("cannot write compression %q", f)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
