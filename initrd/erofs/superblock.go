// Package erofs knows the EROFS on-disk format.
package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// Where the superblock lies and how it begins; fs/erofs/erofs_fs.h.
const (
	SuperOffset = 1024
	SuperMagic  = 0xE0F5E1E2

	superSize     = 128
	minBlkSzBits  = 9
	maxBlkSzBits  = 16 // the largest page size of a Linux kernel is 64 KiB
	inodeSlotBits = 5
)

// ErrNotEROFS is what ReadSuperblock wraps when the magic is another one.
var ErrNotEROFS = errors.New("not an EROFS image")

// Feature bits of the superblock; fs/erofs/erofs_fs.h.
const (
	FeatureCompatSBChksum = 0x1
	FeatureCompatMtime    = 0x2

	FeatureIncompatZeroPadding   = 0x1
	FeatureIncompatBigPcluster   = 0x2 // and compression configurations
	FeatureIncompatChunkedFile   = 0x4
	FeatureIncompatDeviceTable   = 0x8 // and a second compression head
	FeatureIncompatZtailpacking  = 0x10
	FeatureIncompatFragments     = 0x20 // and deduplication
	FeatureIncompatXattrPrefixes = 0x40
	FeatureIncompat48Bit         = 0x80
	FeatureIncompatMetabox       = 0x100
)

var (
	compatNames   = []string{"sb_chksum", "mtime", "xattr_filter", "shared_ea_in_metabox", "plain_xattr_prefixes"}
	incompatNames = []string{"zero_padding", "big_pcluster", "chunked_file", "device_table", "ztailpacking",
		"fragments", "xattr_prefixes", "48bit", "metabox"}
)

// Superblock is the part of struct erofs_super_block that identifies an image.
type Superblock struct {
	Checksum        uint32
	FeatureCompat   uint32
	FeatureIncompat uint32
	BlkSzBits       uint8  // block size is 1 << BlkSzBits bytes
	Blocks          uint64 // of BlockSize bytes, of the primary device
	Inos            uint64 // number of inodes
	RootNid         uint64
	MetaBlkAddr     uint32 // block in which the inode with nid 0 would lie
	BuildTime       int64  // seconds since 1970
	BuildTimeNsec   uint32 // nanoseconds
	UUID            bootconf.UUID
	VolumeName      string
	ExtraDevices    int // images that hold data besides this one
}

// BlockSize is the size of a block in bytes.
func (s *Superblock) BlockSize() int64 { return 1 << s.BlkSzBits }

// Size is the length in bytes that the superblock declares for the image.
func (s *Superblock) Size() int64 { return int64(s.Blocks) << s.BlkSzBits }

// Compressed reports whether the image is laid out for compressed files, which
// the kernel cannot map directly (DAX).
func (s *Superblock) Compressed() bool {
	return s.FeatureIncompat&(FeatureIncompatZeroPadding|FeatureIncompatBigPcluster|
		FeatureIncompatZtailpacking|FeatureIncompatFragments) != 0
}

// InodeOffset is where the inode lies in the image, in bytes; erofs_iloc in
// fs/erofs/internal.h.
func (s *Superblock) InodeOffset(nid uint64) int64 {
	return int64(s.MetaBlkAddr)<<s.BlkSzBits + int64(nid)<<inodeSlotBits
}

// ReadMode reads the mode of an inode, with its type bits. Both forms of inodes
// have it in the same place.
func (s *Superblock) ReadMode(r io.ReaderAt, nid uint64) (uint32, error) {
	var raw [2]byte
	if err := readAt(r, raw[:], s.InodeOffset(nid)+4); err != nil {
		return 0, fmt.Errorf("read EROFS inode %d at offset %d: %w", nid, s.InodeOffset(nid), err)
	}
	return uint32(binary.LittleEndian.Uint16(raw[:])), nil
}

// Features names the feature bits that are set, compatible ones first. A bit
// that has no name here is given as `compat-0x100` or `incompat-0x200`.
func (s *Superblock) Features() []string {
	names := bitNames(nil, s.FeatureCompat, compatNames, "compat")
	return bitNames(names, s.FeatureIncompat, incompatNames, "incompat")
}

func bitNames(names []string, bits uint32, known []string, kind string) []string {
	for i := range 32 {
		switch {
		case bits>>i&1 == 0:
		case i < len(known):
			names = append(names, known[i])
		default:
			names = append(names, fmt.Sprintf("%s-%#x", kind, uint32(1)<<i))
		}
	}
	return names
}

// ReadSuperblock reads and checks the superblock of the image r, whose first
// byte is the first byte of the device.
//
// It refuses a wrong magic (ErrNotEROFS), a block size that no kernel has, and,
// where the image has the feature sb_chksum, a wrong CRC-32C over the first
// block, as erofs_superblock_csum_verify in fs/erofs/super.c computes it.
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	var raw [superSize]byte
	if err := readAt(r, raw[:], SuperOffset); err != nil {
		return Superblock{}, fmt.Errorf("read EROFS superblock at offset %d: %w", SuperOffset, err)
	}
	le := binary.LittleEndian
	if magic := le.Uint32(raw[0:]); magic != SuperMagic {
		return Superblock{}, fmt.Errorf("magic %#08x at offset %d: %w", magic, SuperOffset, ErrNotEROFS)
	}
	s := Superblock{
		Checksum:        le.Uint32(raw[4:]),
		FeatureCompat:   le.Uint32(raw[8:]),
		BlkSzBits:       raw[12],
		RootNid:         uint64(le.Uint16(raw[14:])),
		Inos:            le.Uint64(raw[16:]),
		BuildTime:       int64(le.Uint64(raw[24:])),
		BuildTimeNsec:   le.Uint32(raw[32:]),
		Blocks:          uint64(le.Uint32(raw[36:])),
		MetaBlkAddr:     le.Uint32(raw[40:]),
		UUID:            bootconf.UUID(raw[48:64]),
		VolumeName:      paddedString(raw[64:80]),
		FeatureIncompat: le.Uint32(raw[80:]),
		ExtraDevices:    int(le.Uint16(raw[86:])),
	}
	if s.FeatureIncompat&FeatureIncompat48Bit != 0 {
		s.BuildTime += int64(le.Uint32(raw[108:]))
		// The long number of the root says that the place of the short one has
		// another use.
		if nid := le.Uint64(raw[112:]); nid != 0 {
			s.RootNid = nid
			s.Blocks |= uint64(le.Uint16(raw[14:])) << 32
		}
	}
	if s.BlkSzBits < minBlkSzBits || s.BlkSzBits > maxBlkSzBits {
		return Superblock{}, fmt.Errorf("EROFS superblock: blkszbits %d at offset %d is not between %d and %d",
			s.BlkSzBits, SuperOffset+12, minBlkSzBits, maxBlkSzBits)
	}
	if s.FeatureCompat&FeatureCompatSBChksum != 0 {
		if err := s.verifyChecksum(r); err != nil {
			return Superblock{}, err
		}
	}
	return s, nil
}

// verifyChecksum reads the rest of the first block, or one whole block behind
// SuperOffset when a block is not larger than that.
func (s *Superblock) verifyChecksum(r io.ReaderAt) error {
	n := s.BlockSize()
	if n > SuperOffset {
		n -= SuperOffset
	}
	block := make([]byte, n)
	if err := readAt(r, block, SuperOffset); err != nil {
		return fmt.Errorf("read first EROFS block, %d bytes at offset %d: %w", n, SuperOffset, err)
	}
	clear(block[4:8]) // the checksum itself counts as zero
	if got := superblockChecksum(block); got != s.Checksum {
		return fmt.Errorf("EROFS superblock: checksum %#08x at offset %d, but the first block has %#08x",
			s.Checksum, SuperOffset+4, got)
	}
	return nil
}

// superblockChecksum is that of the first block from SuperOffset on, in which
// the checksum itself counts as zero. The kernel's crc32c has no final inversion.
func superblockChecksum(block []byte) uint32 {
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}

// paddedString is a text that zeros may follow.
func paddedString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// readAt fills p; an input that ends before is io.ErrUnexpectedEOF.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
