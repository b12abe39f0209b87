package erofs

import (
	"encoding/binary"
	"fmt"
)

// What lies in an image; the facts are those of fs/erofs/erofs_fs.h. The structs
// whose names begin with disk mirror the ones there field by field, have no
// padding, and are read and written with encoding/binary in little-endian order.

// Sizes in bytes.
const (
	superExtSlotSize    = 16 // a superblock is superSize and this much times SBExtSlots
	deviceSlotSize      = 128
	inodeSlotSize       = 1 << inodeSlotBits
	inodeCompactSize    = 32
	inodeExtendedSize   = 64
	direntSize          = 12
	xattrHeaderSize     = 12
	xattrEntrySize      = 4
	blockMapEntrySize   = 4
	chunkIndexSize      = 8
	mapHeaderSize       = 8
	lclusterIndexSize   = 8
	maxNameLen          = 255
	maxSymlinkLen       = 4095
	maxPclusterSize     = 1 << 20  // Z_EROFS_PCLUSTER_MAX_SIZE
	maxPclusterDecoded  = 12 << 20 // Z_EROFS_PCLUSTER_MAX_DSIZE
	fullIndexGap        = 8        // unused bytes between a map header and full indexes
	compact2BPackSize   = 32       // bytes of a pack of compact indexes
	compact2BPackCount  = 16       // indexes in it
	compact2BSize       = 2        // bytes that each takes on average
	compact4BPackSize   = 8
	compact4BPackCount  = 2
	compact4BSize       = 4
	xattrSharedUnit     = 4 // a shared xattr's id counts these from the block XattrBlkAddr
	xattrAlign          = 4
	metaRecordAlign     = 4 // records of variable length behind the superblock
	lz4MaxDistance      = 65535
	nullAddr32          = 1<<32 - 1 // a hole, where block addresses have 32 bits
	nullAddr48          = 1<<48 - 1
	nidMetaboxBit       = 1 << 63
	fragmentInodeBit    = 1 << 63 // of the map header as one number: the file lies in the packed inode
	pclusterFormatShift = 28      // of diskExtent.Plen
	pclusterPartialBit  = 1 << 27
	pclusterLenMask     = maxPclusterSize<<1 - 1
)

// Compatible features that change how the rest is read.
const (
	featureCompatXattrFilter        = 0x04
	featureCompatSharedEAInMetabox  = 0x08
	featureCompatPlainXattrPrefixes = 0x10
)

// Layout says how an inode's content is stored; EROFS_INODE_*.
type Layout uint8

// Layouts of inodes.
const (
	LayoutFlatPlain         Layout = 0 // consecutive blocks
	LayoutCompressedFull    Layout = 1 // physical clusters, 8-byte indexes
	LayoutFlatInline        Layout = 2 // consecutive blocks, the tail behind the inode
	LayoutCompressedCompact Layout = 3 // physical clusters, 2- and 4-byte indexes
	LayoutChunkBased        Layout = 4 // a table of chunks

	layoutCount = 5
)

// String names the layout.
func (l Layout) String() string {
	names := [layoutCount]string{"flat-plain", "compressed-full", "flat-inline", "compressed-compact", "chunk-based"}
	if int(l) < len(names) {
		return names[l]
	}
	return fmt.Sprintf("layout-%d", uint8(l))
}

// Compressed reports whether the content is stored in physical clusters.
func (l Layout) Compressed() bool {
	return l == LayoutCompressedFull || l == LayoutCompressedCompact
}

// Bits of an inode's Format.
const (
	formatExtended    = 0x01 // diskInodeExtended
	formatLayoutShift = 1
	formatLayoutMask  = 0x07
	formatNlink1      = 0x10 // compact, no directory: one link, and NB is the high part of an address
	formatDotOmitted  = 0x10 // directory: there is no entry "."
	formatAll         = 0x1f
)

// Bits of the format of a chunk-based inode, the low half of its U.
const (
	chunkBlkBitsMask = 0x1f // chunk size is 1 << (block bits + these) bytes
	chunkIndexes     = 0x20 // 8-byte indexes rather than 4-byte block addresses
	chunk48Bit       = 0x40
	chunkAll         = 0x7f
)

// Types of files as directory entries give them.
const (
	ftUnknown = iota
	ftReg
	ftDir
	ftChr
	ftBlk
	ftFifo
	ftSock
	ftSymlink
	ftCount
)

// Type bits of a mode, as in Linux's stat.h.
const (
	modeType = 0o170000
	modeFifo = 0o010000
	modeChr  = 0o020000
	modeDir  = 0o040000
	modeBlk  = 0o060000
	modeReg  = 0o100000
	modeLnk  = 0o120000
	modeSock = 0o140000
)

// fileType is the type that a directory gives for an inode of this mode.
func fileType(mode uint32) uint8 {
	switch mode & modeType {
	case modeReg:
		return ftReg
	case modeDir:
		return ftDir
	case modeChr:
		return ftChr
	case modeBlk:
		return ftBlk
	case modeFifo:
		return ftFifo
	case modeSock:
		return ftSock
	case modeLnk:
		return ftSymlink
	}
	return ftUnknown
}

// xattrPrefixes are what a name index stands for; EROFS_XATTR_INDEX_*. Neither
// the kernel nor erofs-utils know names by the one of Lustre, 5.
var xattrPrefixes = [...]string{
	1: "user.",
	2: "system.posix_acl_access",
	3: "system.posix_acl_default",
	4: "trusted.",
	6: "security.",
}

// xattrLongPrefix in a name index: the rest of it is the number of a long prefix.
const xattrLongPrefix = 0x80

// Compression algorithms, as in diskMapHeader and as bits of diskSuper.ComprAlgs.
const (
	algLZ4 = iota
	algLZMA
	algDeflate
	algZstd
	algCount
)

// Bits of diskMapHeader.Advise; Z_EROFS_ADVISE_*.
const (
	adviseCompacted2B  = 0x01 // compact indexes
	adviseExtents      = 0x01 // full indexes: a list of extents instead
	adviseBigPcluster1 = 0x02
	adviseBigPcluster2 = 0x04
	adviseInline       = 0x08 // the last pcluster lies behind the indexes
	adviseInterlaced   = 0x10 // uncompressed data keeps its offset in the block
	adviseFragment     = 0x20 // the last extent lies in the packed inode

	adviseExtRecShift = 1 // with adviseExtents, 4 << these two bits is a record's size
	adviseExtRecMask  = 0x3
)

// Types of logical clusters, the low bits of diskLcluster.Advise.
const (
	lclusterPlain   = 0 // begins an uncompressed pcluster
	lclusterHead1   = 1 // begins a compressed pcluster
	lclusterNonhead = 2
	lclusterHead2   = 3

	lclusterTypeMask   = 0x3
	lclusterPartialRef = 1 << 15 // full indexes: only the pcluster's beginning is meant
	lclusterCblkcnt    = 1 << 11 // of the first delta: the rest of it is the pcluster's number of blocks
)

// diskSuper is struct erofs_super_block without its extension slots.
type diskSuper struct {
	Magic            uint32
	Checksum         uint32
	FeatureCompat    uint32
	BlkSzBits        uint8
	SBExtSlots       uint8
	RootNid          uint16 // or the high part of Blocks, with the feature 48bit
	Inos             uint64
	Epoch            uint64 // seconds; base of the times of compact inodes
	FixedNsec        uint32
	Blocks           uint32
	MetaBlkAddr      uint32
	XattrBlkAddr     uint32
	UUID             [16]byte
	VolumeName       [16]byte
	FeatureIncompat  uint32
	ComprAlgs        uint16 // or the LZ4 distance, without the feature big_pcluster
	ExtraDevices     uint16
	DevtSlotOff      uint16 // in units of deviceSlotSize
	DirBlkBits       uint8
	XattrPrefixCount uint8
	XattrPrefixStart uint32 // in units of 4 bytes
	PackedNid        uint64
	XattrFilter      uint8
	IshareXattr      uint8
	_                [2]byte
	BuildTime        uint32 // seconds since Epoch
	RootNid8B        uint64 // with the feature 48bit, where it is not zero
	_                [8]byte
}

// diskSuperExt is the first extension slot.
type diskSuperExt struct {
	MetaboxNid uint64
	_          [8]byte
}

// diskLZ4Config is struct z_erofs_lz4_cfgs. Two bytes that count its bytes go
// before it.
type diskLZ4Config struct {
	MaxDistance     uint16
	MaxPclusterBlks uint16
	_               [10]byte
}

// diskDeviceSlot is struct erofs_deviceslot.
type diskDeviceSlot struct {
	Tag       [64]byte
	Blocks    uint32
	UniAddr   uint32 // first block in the address space that all devices share
	BlocksHi  uint16
	UniAddrHi uint16
	_         [52]byte
}

// diskInodeCompact is struct erofs_inode_compact.
type diskInodeCompact struct {
	Format      uint16
	XattrIcount uint16
	Mode        uint16
	NB          uint16 // number of links, or the high part of an address
	Size        uint32
	Mtime       uint32 // seconds since diskSuper.Epoch
	U           uint32 // block address, number of blocks, device, or chunk format
	Ino         uint32
	UID         uint16
	GID         uint16
	_           [4]byte
}

// diskInodeExtended is struct erofs_inode_extended.
type diskInodeExtended struct {
	Format      uint16
	XattrIcount uint16
	Mode        uint16
	NB          uint16 // the high part of an address
	Size        uint64
	U           uint32
	Ino         uint32
	UID         uint32
	GID         uint32
	Mtime       uint64
	MtimeNsec   uint32
	Nlink       uint32
	_           [16]byte
}

// diskDirent is struct erofs_dirent.
type diskDirent struct {
	Nid      uint64
	NameOff  uint16 // in its directory block
	FileType uint8
	_        uint8
}

// diskXattrHeader is struct erofs_xattr_ibody_header; the ids of shared xattrs
// follow, then the inline ones.
type diskXattrHeader struct {
	NameFilter  uint32
	SharedCount uint8
	_           [7]byte
}

// diskXattrEntry is struct erofs_xattr_entry; name and value follow.
type diskXattrEntry struct {
	NameLen   uint8
	NameIndex uint8
	ValueSize uint16
}

// diskChunkIndex is struct erofs_inode_chunk_index.
type diskChunkIndex struct {
	BlkAddrHi uint16
	DeviceID  uint16
	BlkAddr   uint32
}

// diskMapHeader is struct z_erofs_map_header.
type diskMapHeader struct {
	FragmentOff uint32 // or the size of inline data in the high half, or the number of extents
	Advise      uint16
	Algorithms  uint8 // of HEAD1 in the low half, of HEAD2 in the high half
	ClusterBits uint8 // of logical clusters, less the block bits
}

// diskLcluster is struct z_erofs_lcluster_index.
type diskLcluster struct {
	Advise     uint16
	ClusterOfs uint16
	BlkAddr    uint32 // or the distances back to this head and on to the next one, 16 bits each
}

// diskExtent is struct z_erofs_extent without what is reserved. Records may end
// after any of its fields but PstartHi.
type diskExtent struct {
	Plen     uint32
	PstartLo uint32
	PstartHi uint32
	LstartLo uint32
	LstartHi uint32
}

// xattrBodySize is the size in bytes of what an inode with this XattrIcount has
// between itself and its data; erofs_xattr_ibody_size.
func xattrBodySize(icount uint16) int64 {
	if icount == 0 {
		return 0
	}
	return xattrHeaderSize + xattrEntrySize*int64(icount-1)
}

// encodeRdev packs a device number as new_encode_dev of the kernel does.
func encodeRdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// decodeRdev is the reverse of encodeRdev.
func decodeRdev(dev uint32) (major, minor uint32) {
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}

// alignUp rounds up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// decode fills v, a pointer to one of the structs above, from the beginning of b.
// It panics when b is shorter: the caller knows what it has read.
func decode(b []byte, v any) {
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

// encode appends v, one of the structs above, to b.
func encode(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return b
}
