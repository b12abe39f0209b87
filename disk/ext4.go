package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Offsets in an ext4, from Documentation/filesystems/ext4 in the kernel.
const (
	ext4SuperblockAt = 1024

	sbFirstDataBlock  = 0x14
	sbLogBlockSize    = 0x18
	sbBlocksPerGroup  = 0x20
	sbInodesPerGroup  = 0x28
	sbMagic           = 0x38
	sbInodeSize       = 0x58
	sbFeatureIncompat = 0x60
	sbFeatureROCompat = 0x64
	sbUUID            = 0x68
	sbDescSize        = 0xfe
	sbBlocksCount     = 0x04
	sbChecksumSeed    = 0x270

	gdInodeTable   = 0x08
	gdFlags        = 0x12
	gdUnused       = 0x1c // inodes at the table's end that were never used
	gdInodeTableHi = 0x28
	gdUnusedHi     = 0x32

	inodeUID        = 0x02
	inodeATime      = 0x08
	inodeCTime      = 0x0c
	inodeMTime      = 0x10
	inodeGID        = 0x18
	inodeGeneration = 0x64
	inodeUIDHi      = 0x78
	inodeGIDHi      = 0x7a
	inodeChecksum   = 0x7c
	inodeExtraSize  = 0x80
	inodeChecksumHi = 0x82
	inodeCTimeExtra = 0x84
	inodeMTimeExtra = 0x88
	inodeATimeExtra = 0x8c
	inodeOldSize    = 128

	ext4Magic           = 0xef53
	incompatMetaBG      = 0x10
	incompat64Bit       = 0x80
	incompatSeed        = 0x2000
	roCompatChecksum    = 0x400
	groupInodesUnused   = 0x1
	ext4MostGroups      = 1 << 20
	ext4DescriptorSize  = 32
	ext4DescriptorSize4 = 64
)

// settleExt4 removes from a new ext4 what depends on the moment in which it was
// made: mke2fs copies the times of the last access and the last change of an
// inode from the tree, where nobody can choose them. They become the time of
// its content. With owned set, everything belongs to root.
func settleExt4(disk interface {
	io.ReaderAt
	io.WriterAt
}, offset int64, owned bool) error {
	le := binary.LittleEndian
	sb := make([]byte, 1024)
	if _, err := disk.ReadAt(sb, offset+ext4SuperblockAt); err != nil {
		return fmt.Errorf("ext4: superblock: %w", err)
	}
	incompat := le.Uint32(sb[sbFeatureIncompat:])
	logBlock, perGroup := le.Uint32(sb[sbLogBlockSize:]), int64(le.Uint32(sb[sbInodesPerGroup:]))
	inodeSize := int64(le.Uint16(sb[sbInodeSize:]))
	blocksPerGroup := int64(le.Uint32(sb[sbBlocksPerGroup:]))
	if le.Uint16(sb[sbMagic:]) != ext4Magic || logBlock > 6 || inodeSize < inodeOldSize || inodeSize > 4096 ||
		blocksPerGroup == 0 || incompat&incompatMetaBG != 0 {
		return errors.New("ext4: unexpected superblock")
	}
	block := int64(1024) << logBlock
	descSize := int64(ext4DescriptorSize)
	if incompat&incompat64Bit != 0 {
		descSize = int64(le.Uint16(sb[sbDescSize:]))
	}
	first := int64(le.Uint32(sb[sbFirstDataBlock:]))
	groups := (int64(le.Uint32(sb[sbBlocksCount:])) - first + blocksPerGroup - 1) / blocksPerGroup
	if groups < 1 || groups > ext4MostGroups || descSize < ext4DescriptorSize {
		return errors.New("ext4: unexpected superblock")
	}
	c := checksums{on: le.Uint32(sb[sbFeatureROCompat:])&roCompatChecksum != 0}
	if incompat&incompatSeed != 0 {
		c.seed = le.Uint32(sb[sbChecksumSeed:])
	} else {
		c.seed = crc32c(^uint32(0), sb[sbUUID:sbUUID+16])
	}

	descriptors := make([]byte, groups*descSize)
	if _, err := disk.ReadAt(descriptors, offset+(first+1)*block); err != nil {
		return fmt.Errorf("ext4: group descriptors: %w", err)
	}
	for g := range groups {
		d := descriptors[g*descSize:][:descSize]
		if le.Uint16(d[gdFlags:])&groupInodesUnused != 0 {
			continue
		}
		table, unused := int64(le.Uint32(d[gdInodeTable:])), int64(le.Uint16(d[gdUnused:]))
		if descSize >= ext4DescriptorSize4 {
			table |= int64(le.Uint32(d[gdInodeTableHi:])) << 32
			unused |= int64(le.Uint16(d[gdUnusedHi:])) << 16
		}
		used := perGroup - unused
		if used <= 0 {
			continue
		}
		inodes := make([]byte, used*inodeSize)
		at := offset + table*block
		if _, err := disk.ReadAt(inodes, at); err != nil {
			return fmt.Errorf("ext4: inodes of group %d: %w", g, err)
		}
		for i := range used {
			c.settle(inodes[i*inodeSize:][:inodeSize], uint32(g*perGroup+i+1), owned)
		}
		if _, err := disk.WriteAt(inodes, at); err != nil {
			return fmt.Errorf("ext4: inodes of group %d: %w", g, err)
		}
	}
	return nil
}

// checksums are those of metadata, which a filesystem may have.
type checksums struct {
	on   bool
	seed uint32
}

// settle changes one inode, if it is in use.
func (c *checksums) settle(inode []byte, number uint32, owned bool) {
	le := binary.LittleEndian
	if le.Uint16(inode) == 0 { // mode
		return
	}
	copy(inode[inodeATime:inodeATime+4], inode[inodeMTime:])
	copy(inode[inodeCTime:inodeCTime+4], inode[inodeMTime:])
	extra := 0
	if len(inode) > inodeOldSize {
		extra = inodeOldSize + int(le.Uint16(inode[inodeExtraSize:]))
	}
	if extra >= inodeATimeExtra+4 {
		copy(inode[inodeATimeExtra:inodeATimeExtra+4], inode[inodeMTimeExtra:])
		copy(inode[inodeCTimeExtra:inodeCTimeExtra+4], inode[inodeMTimeExtra:])
	}
	if owned {
		for _, field := range []int{inodeUID, inodeGID, inodeUIDHi, inodeGIDHi} {
			le.PutUint16(inode[field:], 0)
		}
	}
	if !c.on {
		return
	}
	high := extra >= inodeChecksumHi+2
	le.PutUint16(inode[inodeChecksum:], 0)
	if high {
		le.PutUint16(inode[inodeChecksumHi:], 0)
	}
	sum := crc32c(c.seed, le.AppendUint32(nil, number))
	sum = crc32c(crc32c(sum, inode[inodeGeneration:inodeGeneration+4]), inode)
	le.PutUint16(inode[inodeChecksum:], uint16(sum))
	if high {
		le.PutUint16(inode[inodeChecksumHi:], uint16(sum>>16))
	}
}

// crc32c continues a checksum as ext4 does, without the inversions.
func crc32c(sum uint32, data []byte) uint32 {
	return ^crc32.Update(^sum, castagnoli, data)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
