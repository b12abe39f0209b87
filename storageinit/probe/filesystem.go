// Package probe recognises what a block device holds: the superblocks of the
// filesystems that a boot needs, and partition tables. It reads a few
// kilobytes at most and believes nothing it has not bounded.
package probe

import (
	"encoding/binary"
	"io"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// Filesystem is the identity of a filesystem. UUID is in the form in which
// blkid prints it: 8-4-4-4-12 digits, for FAT XXXX-XXXX.
type Filesystem struct {
	Type  string // ext4, xfs, btrfs, vfat, erofs; empty when unknown
	UUID  string
	Label string
}

// Offsets and magic numbers: kernel fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h,
// include/uapi/linux/btrfs_tree.h, include/uapi/linux/msdos_fs.h.
const (
	headSize        = 4096
	extSuperblock   = 1024
	btrfsSuperblock = 65536
)

// Identify reads the superblocks of r. What cannot be read is unknown.
func Identify(r io.ReaderAt) Filesystem {
	var head [headSize]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return Filesystem{}
	}
	if e, err := parseEROFS(head[erofsSuperblock:]); err == nil {
		return Filesystem{"erofs", e.UUID.String(), e.label}
	}
	if ext := head[extSuperblock:]; binary.LittleEndian.Uint16(ext[0x38:]) == 0xEF53 {
		// The ext4 driver mounts ext2 and ext3 too.
		return Filesystem{"ext4", uuidText(ext[0x68:]), text(ext[0x78:0x88])}
	}
	if string(head[:4]) == "XFSB" {
		return Filesystem{"xfs", uuidText(head[32:]), text(head[108:120])}
	}
	if fs := identifyFAT(r, head[:512]); fs.Type != "" {
		return fs
	}
	var super [1024]byte
	if _, err := r.ReadAt(super[:], btrfsSuperblock); err == nil && string(super[64:72]) == "_BHRfS_M" {
		return Filesystem{"btrfs", uuidText(super[32:]), text(super[299 : 299+256])}
	}
	return Filesystem{}
}

func uuidText(b []byte) string { return bootconf.UUID(b[:16]).String() }

// text reads a string that ends at the first NUL or at the field's end.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
