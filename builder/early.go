package builder

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// earlyPrefixes are what the kernel looks for in front of the initramfs before
// it has a filesystem: Documentation/arch/x86/microcode.rst and
// Documentation/admin-guide/acpi/initrd_table_override.rst.
var earlyPrefixes = []string{microcodePrefix, "kernel/firmware/acpi/"}

const microcodePrefix = "kernel/x86/microcode/"

// maxEarlyBytes bounds what is kept in memory. The microcode of all processors
// of both makers has some 10 MB.
const maxEarlyBytes = 256 << 20

// EarlySegment reads an initramfs and returns what has to stay uncompressed in
// front of any archive that replaces it: a segment with the microcode and the
// ACPI tables of the uncompressed segments that the initramfs begins with, and
// with nothing else of them. It is nil if there are none. Times are set to
// epoch, in seconds.
func EarlySegment(initramfs io.Reader, epoch int64) ([]byte, error) {
	if epoch < 0 || epoch > math.MaxUint32 {
		return nil, fmt.Errorf("early segment: time %d does not fit 32 bits", epoch)
	}
	r := cpio.NewReader(initramfs)
	var segment []byte
	var count uint32
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("early segment: %w", err)
		}
		if r.Format() != compress.None {
			break
		}
		if h.Mode&cpio.TypeMask != cpio.TypeRegular || !IsEarly(h.Name) {
			continue
		}
		if int64(len(segment))+h.Size > maxEarlyBytes {
			return nil, fmt.Errorf("early segment: %s has %d bytes, which is too many", h.Name, h.Size)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("early segment: %s: %w", h.Name, err)
		}
		// There are no directories in the segment, so that the kernel, which
		// has used the files by then, does not unpack them a second time.
		count++
		segment = appendEarly(segment, h.Name, count, cpio.TypeRegular|0o644, epoch, body)
	}
	if count == 0 {
		return nil, nil
	}
	segment = appendEarly(segment, "TRAILER!!!", 0, 0, 0, nil)
	return append(segment, make([]byte, padding(int64(len(segment))))...), nil
}

// appendEarly appends one newc record to the segment, which begins at a
// multiple of 16 in memory. NULs behind a name of microcode let its body begin
// at a multiple of 16 too: processors take microcode from such addresses only,
// and the kernel hands them the bytes where they lie. cpio.Writer writes no such
// names; its readers, as the kernel, end a name at the first NUL.
func appendEarly(segment []byte, name string, ino, mode uint32, epoch int64, body []byte) []byte {
	const headerBytes, align = 110, 16
	name += "\x00"
	if strings.HasPrefix(name, microcodePrefix) {
		name += strings.Repeat("\x00", -(len(segment)+headerBytes+len(name))&(align-1))
	}
	segment = fmt.Appendf(segment, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s",
		ino, mode, 0, 0, 1, epoch, len(body), 0, 0, 0, 0, len(name), 0, name)
	segment = appendPadding(segment)
	return appendPadding(append(segment, body...))
}

// appendPadding fills the segment to a multiple of four, as newc has it.
func appendPadding(segment []byte) []byte {
	return append(segment, make([]byte, -len(segment)&3)...)
}

// IsEarly reports whether a path of an uncompressed segment is one of those.
func IsEarly(name string) bool {
	for _, prefix := range earlyPrefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// segmentAlign is the alignment of the segments in the file, that of cpio's own
// blocks. The kernel asks for a multiple of four.
const segmentAlign = 512

// padding is the number of NULs that follow a segment which ends at offset.
func padding(offset int64) int64 { return -offset & (segmentAlign - 1) }
