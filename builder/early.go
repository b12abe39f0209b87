package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
	r := cpio.NewReader(initramfs)
	var segment bytes.Buffer
	w := cpio.NewWriter(&segment)
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
		if h.Mode&cpio.TypeMask != cpio.TypeRegular || !isEarly(h.Name) {
			continue
		}
		if int64(segment.Len())+h.Size > maxEarlyBytes {
			return nil, fmt.Errorf("early segment: %s has %d bytes, which is too many", h.Name, h.Size)
		}
		// There are no directories in the segment, so that the kernel, which
		// has used the files by then, does not unpack them a second time.
		count++
		name := h.Name
		if strings.HasPrefix(name, microcodePrefix) {
			name = alignedName(name, segment.Len())
		}
		err = w.WriteHeader(&cpio.Header{
			Name: name, Ino: count, Mode: cpio.TypeRegular | 0o644, NLink: 1,
			MTime: epoch, Size: h.Size,
		})
		if err == nil {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			return nil, fmt.Errorf("early segment: %s: %w", h.Name, err)
		}
	}
	if count == 0 {
		return nil, nil
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("early segment: %w", err)
	}
	segment.Write(make([]byte, padding(int64(segment.Len()))))
	return segment.Bytes(), nil
}

func isEarly(name string) bool {
	for _, prefix := range earlyPrefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// alignedName adds NULs to the name of an entry that begins at or up to three
// bytes behind offset, so that its body begins at a multiple of 16: processors
// take microcode from such addresses only, and the kernel hands them the bytes
// where they lie. A reader of cpio ends a name at its first NUL.
func alignedName(name string, offset int) string {
	const headerBytes, align = 110, 16
	start := (offset + 3) &^ 3
	end := start + headerBytes + len(name) + 1
	return name + strings.Repeat("\x00", -end&(align-1))
}

// segmentAlign is the alignment of the segments in the file, that of cpio's own
// blocks. The kernel asks for a multiple of four.
const segmentAlign = 512

// padding is the number of NULs that follow a segment which ends at offset.
func padding(offset int64) int64 { return -offset & (segmentAlign - 1) }
