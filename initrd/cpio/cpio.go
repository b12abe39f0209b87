// Package cpio reads and writes initramfs archives in the newc format, with
// all that the Linux kernel accepts around it: see its
// Documentation/driver-api/early-userspace/buffer-format.rst and
// init/initramfs.c.
package cpio

import (
	"fmt"

	"initoverlayfs/initrd/compress"
)

// Header describes one entry of an archive. The zero values of Segment and
// Offset are ignored when writing.
type Header struct {
	Name     string // relative and clean: no leading "/" or "./"; "." is the root
	Ino      uint32
	Mode     uint32 // with the S_IFMT bits of Linux
	UID      uint32
	GID      uint32
	NLink    uint32
	MTime    int64 // seconds since 1970, 32 bits without a sign
	Size     int64 // of the body, bytes; a symlink's target is its body
	DevMajor uint32
	DevMinor uint32

	RDevMajor uint32 // of a device node
	RDevMinor uint32

	Segment int   // counts from 0
	Offset  int64 // of the header, in the unpacked bytes of its segment
}

// The file types in Header.Mode and Node.Mode.
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFIFO    = 0o010000
)

const (
	magicNewc = "070701"
	magicCRC  = "070702"
	magicODC  = "070707"
	trailer   = "TRAILER!!!"

	headerBytes = 110
	pathMax     = 4096 // of the kernel, with the closing NUL
	nameMax     = 255  // of one component
)

// Error tells where in an initramfs an error lies.
type Error struct {
	Segment int             // counts from 0
	Format  compress.Format // of the segment, empty when not known
	Offset  int64           // in the unpacked bytes of the segment
	Err     error
}

func (e *Error) Error() string {
	format := e.Format
	if format == "" {
		format = "unknown"
	}
	return fmt.Sprintf("initramfs segment %d (%s), offset %d: %v", e.Segment, format, e.Offset, e.Err)
}

// Unwrap gives the error without its place.
func (e *Error) Unwrap() error { return e.Err }
