package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// The format of a log is that of the kernel's device-mapper target log-writes
// (Documentation/admin-guide/device-mapper/log-writes.rst), which QEMU's block
// driver blklogwrites writes as well. All numbers are little-endian. The first
// sector holds magic, version and number of entries (64 bits each) and the size
// of a sector in bytes (32 bits). Then come the entries, one sector each: first
// sector and number of sectors on the disk, flags, and the length of the text
// that follows in the same sector (64 bits each). What was written follows an
// entry in sectors of its own, but for a discard.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	superSize  = 28
	headerSize = 32

	maxSector = 1 << 20 // bytes; a disk's has at most 64 KiB
)

// Flags say what an entry is, besides a write of its data.
type Flags uint64

// The flags.
const (
	Flush    Flags = 1 << 0 // all that came before is on the medium
	FUA      Flags = 1 << 1 // the data itself is on the medium
	Discard  Flags = 1 << 2 // there is no data: the sectors may hold anything
	Mark     Flags = 1 << 3 // there is no data but a text
	Metadata Flags = 1 << 4 // the filesystem called it so

	knownFlags = Flush | FUA | Discard | Mark | Metadata
)

// Entry is one write, flush, discard or mark.
type Entry struct {
	Offset, Bytes int64 // on the disk
	Flags         Flags
	Text          string // of a mark

	data int64 // where the log has the data
}

// Log is what was written to a disk, in order.
type Log struct {
	Entries []Entry
	r       io.ReaderAt
}

// ReadLog reads the entries of a log that has so many bytes. Data stays where
// it is until it is asked for.
func ReadLog(r io.ReaderAt, size int64) (*Log, error) {
	super := make([]byte, superSize)
	if err := readAt(r, super, 0, size); err != nil {
		return nil, fmt.Errorf("log of writes: superblock: %w", err)
	}
	word := binary.LittleEndian.Uint64
	if magic := word(super); magic != logMagic {
		return nil, fmt.Errorf("log of writes: magic %#x at 0, want %#x", magic, uint64(logMagic))
	}
	if version := word(super[8:]); version != logVersion {
		return nil, fmt.Errorf("log of writes: version %d at 8, want %d", version, logVersion)
	}
	count, sector := word(super[16:]), int64(binary.LittleEndian.Uint32(super[24:]))
	if sector < 512 || sector > maxSector || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("log of writes: sectors of %d bytes at 24", sector)
	}
	// Each entry takes a sector, so a log cannot make this allocate much more
	// than it has itself.
	if count > uint64(size/sector) {
		return nil, fmt.Errorf("log of writes: %d entries in %d bytes: %w", count, size, io.ErrUnexpectedEOF)
	}
	l := &Log{Entries: make([]Entry, 0, count), r: r}
	at := sector
	for i := range count {
		e, next, err := readEntry(r, at, size, sector)
		if err != nil {
			return nil, fmt.Errorf("log of writes: entry %d at %d: %w", i, at, err)
		}
		l.Entries = append(l.Entries, e)
		at = next
	}
	return l, nil
}

func readEntry(r io.ReaderAt, at, size, sector int64) (e Entry, next int64, err error) {
	header := make([]byte, headerSize)
	if err := readAt(r, header, at, size); err != nil {
		return e, 0, err
	}
	word := binary.LittleEndian.Uint64
	first, count, text := word(header), word(header[8:]), word(header[24:])
	e.Flags = Flags(word(header[16:]))
	if unknown := e.Flags &^ knownFlags; unknown != 0 {
		return e, 0, fmt.Errorf("unknown flags %#x", uint64(unknown))
	}
	if most := uint64(math.MaxInt64 / sector); first > most || count > most-first {
		return e, 0, fmt.Errorf("%d sectors at sector %d are beyond the end of any disk", count, first)
	}
	e.Offset, e.Bytes, e.data = int64(first)*sector, int64(count)*sector, at+sector
	if text > uint64(sector-headerSize) {
		return e, 0, fmt.Errorf("a text of %d bytes in a sector of %d", text, sector)
	}
	if e.Flags&Mark != 0 {
		body := make([]byte, text)
		if err := readAt(r, body, at+headerSize, size); err != nil {
			return e, 0, err
		}
		e.Text = string(bytes.TrimRight(body, "\x00"))
	}
	next = at + sector
	if e.Flags&(Discard|Mark) == 0 {
		if e.Bytes > size-next {
			return e, 0, fmt.Errorf("%d bytes of data, %d are left: %w", e.Bytes, max(0, size-next), io.ErrUnexpectedEOF)
		}
		next += e.Bytes
	}
	return e, next, nil
}

// readAt fills p, or says that the log is too short.
func readAt(r io.ReaderAt, p []byte, at, size int64) error {
	if int64(len(p)) > size-at {
		return io.ErrUnexpectedEOF
	}
	n, err := r.ReadAt(p, at)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// IsWrite reports whether the entry changes the disk.
func (e *Entry) IsWrite() bool { return e.Flags&Mark == 0 && e.Bytes > 0 }

// Data gives what an entry writes. A discard writes zeros: it may leave
// anything, and that is the hardest to live with.
func (l *Log) Data(e Entry) ([]byte, error) {
	p := make([]byte, e.Bytes)
	if e.Flags&Discard != 0 || !e.IsWrite() {
		return p, nil
	}
	if n, err := l.r.ReadAt(p, e.data); n < len(p) {
		return nil, fmt.Errorf("log of writes: data at %d: %w", e.data, err)
	}
	return p, nil
}

// Epoch is the writes between two flushes. Of those, Entries[First:End], each
// may reach the medium before any other; with the flush that follows all have.
type Epoch struct{ First, End int }

// Epochs gives the epochs in order. The last is the one that no flush ended;
// it may be empty, as others. A disk that loses what it wrote with FUA but
// without a flush is worse than any, but simpler: QEMU logs a flush instead.
func (l *Log) Epochs() []Epoch {
	var epochs []Epoch
	first := 0
	for i, e := range l.Entries {
		if e.Flags&Flush == 0 {
			continue
		}
		epochs = append(epochs, Epoch{first, i})
		// What a flush itself writes comes after it.
		first = i
		if !e.IsWrite() {
			first++
		}
	}
	return append(epochs, Epoch{first, len(l.Entries)})
}
