package cpio

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"initoverlayfs/initrd/compress"
)

// DefaultLimit bounds what an initramfs may unpack to, in bytes. An initramfs
// unpacks into memory, so real ones stay far below.
const DefaultLimit = 16 << 30

// Reader reads a whole initramfs: every archive of every segment, one entry
// after the other. Segments follow each other as init/initramfs.c takes them:
//
//   - an uncompressed archive at an offset divisible by four; each such archive
//     is a segment of its own;
//   - a compressed segment, which may hold several archives, with NUL bytes
//     between and behind them;
//   - any number of NUL bytes between segments.
//
// It is stricter than the kernel where the kernel's leniency could hide damage:
// an archive must end with a TRAILER!!! record, numbers must be hexadecimal,
// names must not hold ".." and must not exceed PATH_MAX, and each segment must
// hold an archive.
//
// Every error is an *Error with segment and offset, wraps io.ErrUnexpectedEOF
// if the input is cut short, and stays: later calls return it again.
type Reader struct {
	counter counter
	input   *bufio.Reader // the initramfs as it is
	limit   int64         // unpacked bytes that may still come

	segment  int // -1 before the first
	format   compress.Format
	packed   io.ReadCloser // nil in an uncompressed segment
	data     *bufio.Reader // unpacked bytes of the segment
	offset   int64         // in data
	archive  bool          // records were seen since the last trailer
	filled   bool          // the segment held a trailer
	archives int           // trailers so far

	entry    *Header // nil before the first
	body     int64   // unread bytes of the entry
	checked  bool    // the body has a checksum
	sum      uint32
	wantSum  uint32
	err      error
	unpacked *bufio.Reader // reused by compressed segments
}

// counter counts the bytes that the buffer took from the input.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// NewReader reads the initramfs that r holds up to its end.
func NewReader(r io.Reader) *Reader {
	return NewReaderLimit(r, DefaultLimit)
}

// NewReaderLimit is NewReader with another bound for the unpacked bytes of all
// segments together.
func NewReaderLimit(r io.Reader, limit int64) *Reader {
	cr := &Reader{counter: counter{r: r}, limit: limit, segment: -1}
	cr.input = bufio.NewReaderSize(&cr.counter, 64<<10)
	return cr
}

// Format gives the compression of the current segment.
func (r *Reader) Format() compress.Format { return r.format }

// Next moves on to the next entry and skips what was not read of the current
// one. It returns io.EOF at the end of the initramfs. Old binary and odc
// archives are refused.
func (r *Reader) Next() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.next()
	if err != nil {
		return nil, r.fail(err)
	}
	r.entry = h
	return h, nil
}

// fail keeps err, with its place.
func (r *Reader) fail(err error) error {
	var placed *Error
	if !errors.Is(err, io.EOF) && !errors.As(err, &placed) {
		err = &Error{Segment: max(r.segment, 0), Format: r.format, Offset: r.offset, Err: err}
	}
	r.err = err
	if r.packed != nil {
		r.packed.Close()
		r.packed = nil
	}
	return err
}

func (r *Reader) next() (*Header, error) {
	if r.entry != nil {
		if _, err := io.Copy(io.Discard, bodyReader{r}); err != nil {
			return nil, err
		}
		if err := r.align(); err != nil {
			return nil, err
		}
		r.entry = nil
	}
	for {
		more, err := r.seek()
		if err != nil {
			return nil, err
		}
		if !more {
			return nil, io.EOF
		}
		h, last, err := r.record()
		if err != nil {
			return nil, err
		}
		if !last {
			r.archive = true
			return h, nil
		}
		r.archive, r.filled = false, true
		r.archives++
		if _, err := io.Copy(io.Discard, bodyReader{r}); err != nil {
			return nil, err
		}
		if err := r.align(); err != nil {
			return nil, err
		}
		if r.packed == nil {
			r.data = nil // what follows is another segment
		}
	}
}

// seek finds the next record, in this segment or one that follows. It reports
// false at the end of the initramfs.
func (r *Reader) seek() (more bool, err error) {
	for {
		if r.data == nil {
			if more, err := r.openSegment(); !more || err != nil {
				return false, err
			}
		}
		b, err := r.skipNUL(r.data)
		switch {
		case errors.Is(err, io.EOF) && r.archive:
			return false, fmt.Errorf("archive without %s: %w", trailer, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF) && !r.filled:
			return false, fmt.Errorf("segment without an archive: %w", io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF): // of a compressed segment
			err := r.packed.Close()
			r.data, r.packed = nil, nil
			if err != nil {
				return false, err
			}
			continue
		case err != nil:
			return false, err
		case b != '0':
			return false, fmt.Errorf("no cpio record but byte %#02x", b)
		case r.offset&3 != 0:
			return false, errors.New("record at an offset that is not divisible by four")
		}
		return true, nil
	}
}

// skipNUL passes NUL bytes of the segment and returns the next byte, unread.
func (r *Reader) skipNUL(in *bufio.Reader) (byte, error) {
	for {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if b != 0 {
			return b, in.UnreadByte()
		}
		if err := r.advance(1); err != nil {
			return 0, err
		}
	}
}

// advance accounts for n unpacked bytes that were taken.
func (r *Reader) advance(n int) error {
	r.offset += int64(n)
	r.limit -= int64(n)
	if r.limit < 0 {
		return errors.New("initramfs unpacks to more bytes than the limit allows")
	}
	return nil
}

// openSegment begins the next segment. It reports false at the end.
func (r *Reader) openSegment() (more bool, err error) {
	first, plain := r.segment < 0, r.packed == nil && r.format == compress.None
	r.segment++
	r.format, r.offset, r.filled = "", 0, false
	if _, err := r.skipNUL(r.input); errors.Is(err, io.EOF) {
		if first {
			return false, fmt.Errorf("empty initramfs: %w", io.ErrUnexpectedEOF)
		}
		return false, nil
	} else if err != nil {
		return false, err
	}
	r.offset = 0
	at := r.counter.n - int64(r.input.Buffered())
	head, err := r.input.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	format, ok := compress.Detect(head)
	switch {
	case !ok && len(head) < 6 && (len(head) < 2 || strings.HasPrefix(magicNewc, string(head))):
		return false, fmt.Errorf("input byte %d: %w", at, io.ErrUnexpectedEOF)
	case !ok:
		return false, fmt.Errorf("input byte %d: junk: no archive and no known compression: %x", at, head)
	case at&3 != 0 && (plain || format == compress.None):
		// The kernel calls it broken padding, or junk.
		return false, fmt.Errorf("input byte %d: segment at an offset that is not divisible by four", at)
	}
	r.format = format
	if format == compress.None {
		r.data = r.input
		return true, nil
	}
	if r.packed, err = compress.NewReader(format, r.input); err != nil {
		return false, err
	}
	if r.unpacked == nil {
		r.unpacked = bufio.NewReaderSize(nil, 64<<10)
	}
	r.unpacked.Reset(r.packed)
	r.data = r.unpacked
	return true, nil
}

// record reads a header and its name. last tells a trailer.
func (r *Reader) record() (h *Header, last bool, err error) {
	h = &Header{Segment: r.segment, Offset: r.offset}
	fail := func(format string, args ...any) error {
		return &Error{Segment: h.Segment, Format: r.format, Offset: h.Offset, Err: fmt.Errorf(format, args...)}
	}
	var b [headerBytes]byte
	if err := r.full(b[:]); err != nil {
		return nil, false, err
	}
	switch magic := string(b[:6]); magic {
	case magicNewc, magicCRC:
		r.checked = magic == magicCRC
	case magicODC:
		return nil, false, fail("portable ASCII (odc) archive: only newc is supported")
	default:
		return nil, false, fail("bad cpio magic %q", magic)
	}
	var f [13]uint32
	for i := range f {
		digits := b[6+8*i : 14+8*i]
		var v [4]byte
		if _, err := hex.Decode(v[:], digits); err != nil {
			return nil, false, fail("bad number %q in a cpio header", digits)
		}
		f[i] = uint32(v[0])<<24 | uint32(v[1])<<16 | uint32(v[2])<<8 | uint32(v[3])
	}
	h.Ino, h.Mode, h.UID, h.GID, h.NLink = f[0], f[1], f[2], f[3], f[4]
	h.MTime, h.Size = int64(f[5]), int64(f[6])
	h.DevMajor, h.DevMinor, h.RDevMajor, h.RDevMinor = f[7], f[8], f[9], f[10]
	nameBytes := f[11]
	r.body, r.sum, r.wantSum = h.Size, 0, f[12]

	if nameBytes == 0 || nameBytes > pathMax {
		return nil, false, fail("bad name size %d: it is 1 to %d", nameBytes, pathMax)
	}
	name := make([]byte, nameBytes)
	if err := r.full(name); err != nil {
		return nil, false, err
	}
	if name[nameBytes-1] != 0 {
		return nil, false, fail("name is not closed by NUL")
	}
	// Some writers fill the name with NULs to align the body.
	text, _, _ := strings.Cut(string(name), "\x00")
	if h.Name, err = cleanName(text); err != nil {
		return nil, false, fail("%w", err)
	}
	switch kind := h.Mode & TypeMask; {
	case h.Mode > 0xffff:
		return nil, false, fail("%s: bad mode %#o", h.Name, h.Mode)
	case kind == TypeSymlink && h.Size > pathMax:
		return nil, false, fail("%s: symlink of %d bytes: the kernel takes up to %d", h.Name, h.Size, pathMax)
	case (kind == TypeBlock || kind == TypeChar) && (h.RDevMajor >= 1<<12 || h.RDevMinor >= 1<<20):
		return nil, false, fail("%s: bad device number %d:%d", h.Name, h.RDevMajor, h.RDevMinor)
	}
	return h, text == trailer, r.align()
}

// cleanName gives the relative name without empty and "." components. The
// kernel would follow "..", but no archive has a reason to hold it.
func cleanName(name string) (string, error) {
	if name == "" {
		return "", errors.New("empty name")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", fmt.Errorf("name %q leaves its directory", name)
		default:
			parts = append(parts, part)
		}
	}
	if parts == nil {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

// full reads all of p from the segment.
func (r *Reader) full(p []byte) error {
	n, err := io.ReadFull(r.data, p)
	if limit := r.advance(n); limit != nil {
		return limit
	}
	return unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// align passes the padding that follows names and bodies.
func (r *Reader) align() error {
	var pad [3]byte
	return r.full(pad[:-r.offset&3])
}

// Read reads from the body of the current entry and returns io.EOF at its end.
// The checksum of a crc (070702) record is verified there.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := bodyReader{r}.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.fail(err)
	}
	return n, err
}

// bodyReader reads the body of the current entry and leaves errors unplaced.
type bodyReader struct{ r *Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	r := b.r
	if r.body == 0 {
		// The sum covers regular files alone: writers leave it out elsewhere.
		if r.checked && r.entry != nil && r.entry.Mode&TypeMask == TypeRegular && r.sum != r.wantSum {
			return 0, fmt.Errorf("%s: checksum is %#x, want %#x", r.entry.Name, r.sum, r.wantSum)
		}
		return 0, io.EOF
	}
	n, err := r.data.Read(p[:min(int64(len(p)), r.body)])
	r.body -= int64(n)
	if limit := r.advance(n); limit != nil {
		return n, limit
	}
	if r.checked {
		for _, c := range p[:n] {
			r.sum += uint32(c)
		}
	}
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, unexpected(err)
}
