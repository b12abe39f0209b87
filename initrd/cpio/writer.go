package cpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Writer writes one newc archive. The bytes depend on the headers and bodies
// alone.
type Writer struct {
	w      io.Writer
	offset int64
	name   string // of the current entry
	left   int64  // of its body
	closed bool
}

// NewWriter returns a writer that writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteHeader ends the current entry, whose body must be complete, and begins
// the next. It refuses what does not fit the format.
func (w *Writer) WriteHeader(h *Header) error {
	if err := w.end(); err != nil {
		return err
	}
	switch {
	case h.Name == "" || h.Name == trailer || strings.ContainsRune(h.Name, 0):
		return fmt.Errorf("write cpio header: bad name %q", h.Name)
	case h.Size < 0 || h.Size > math.MaxUint32:
		return fmt.Errorf("write cpio header of %s: size %d does not fit 32 bits", h.Name, h.Size)
	case h.MTime < 0 || h.MTime > math.MaxUint32:
		return fmt.Errorf("write cpio header of %s: time %d does not fit 32 bits", h.Name, h.MTime)
	}
	return w.header(h)
}

func (w *Writer) header(h *Header) error {
	if len(h.Name) >= pathMax {
		return fmt.Errorf("write cpio header: name of %d bytes is too long", len(h.Name))
	}
	b := fmt.Appendf(nil, magicNewc+"%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		h.Ino, h.Mode, h.UID, h.GID, h.NLink, h.MTime, h.Size,
		h.DevMajor, h.DevMinor, h.RDevMajor, h.RDevMinor, len(h.Name)+1, 0, h.Name)
	w.name, w.left = h.Name, h.Size
	return w.write(b, true)
}

// write writes b and, if asked, the padding to a multiple of four.
func (w *Writer) write(b []byte, pad bool) error {
	if pad {
		b = append(b, make([]byte, -(w.offset+int64(len(b)))&3)...)
	}
	n, err := w.w.Write(b)
	w.offset += int64(n)
	if err != nil {
		return fmt.Errorf("write cpio entry %s: %w", w.name, err)
	}
	return nil
}

// end completes the current entry.
func (w *Writer) end() error {
	switch {
	case w.closed:
		return errors.New("write to a closed cpio archive")
	case w.left > 0:
		return fmt.Errorf("write cpio entry %s: %d bytes of its body are missing", w.name, w.left)
	}
	return w.write(nil, true)
}

// Write writes to the body of the current entry, not more than Header.Size.
func (w *Writer) Write(p []byte) (int, error) {
	switch {
	case w.closed:
		return 0, errors.New("write to a closed cpio archive")
	case int64(len(p)) > w.left:
		return 0, fmt.Errorf("write cpio entry %s: body is longer than its size", w.name)
	}
	before := w.offset
	err := w.write(p, false)
	n := w.offset - before
	w.left -= n
	return int(n), err
}

// Close ends the archive with its trailer and leaves the underlying writer
// open.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	if err := w.end(); err != nil {
		return err
	}
	if err := w.header(&Header{Name: trailer, NLink: 1}); err != nil {
		return err
	}
	w.closed = true
	return nil
}
