package erofs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// nid is the inode's number, that of its slot in the metadata.
func (in *planInode) nid() uint64 { return uint64(in.offset) >> inodeSlotBits }

// metaSpace finds places for inodes. What is left of a block is kept for smaller
// ones.
type metaSpace struct {
	end  int64
	gaps [blockSize/inodeSlotSize + 1][]int64 // by slots
}

func (s *metaSpace) addGap(from, to int64) {
	if n := (to - from) >> inodeSlotBits; n > 0 {
		s.gaps[n] = append(s.gaps[n], from)
	}
}

// place finds room for size bytes. What fits into a block lies in one; of what
// is larger, the inode and the last inline bytes each do.
func (s *metaSpace) place(size, inline int64) int64 {
	slots := alignUp(size, inodeSlotSize) >> inodeSlotBits
	if size <= blockSize {
		for n := slots; n < int64(len(s.gaps)); n++ {
			if list := s.gaps[n]; len(list) > 0 {
				s.gaps[n] = list[1:]
				s.addGap(list[0]+slots<<inodeSlotBits, list[0]+n<<inodeSlotBits)
				return list[0]
			}
		}
	}
	at := s.end
	room := blockSize - at%blockSize
	switch {
	case size <= blockSize && size > room, size > blockSize && room < inodeExtendedSize:
		at += room
	}
	if from := at + size - inline; size > blockSize && inline > 0 && from%blockSize+inline > blockSize {
		at += alignUp(blockSize-from%blockSize, inodeSlotSize)
		if at%blockSize > blockSize-inodeExtendedSize {
			at += inodeSlotSize // the tail has room for that: maxInlineTail
		}
	}
	s.addGap(s.end, min(at, alignUp(s.end, blockSize)))
	s.end = at + slots<<inodeSlotBits
	return at
}

// writeMetadata writes inodes, directories and shared attributes.
func (im *image) writeMetadata(p *plan) error {
	space := metaSpace{end: inodeSlotSize} // number 0 is no number for a directory entry
	dirBlocks := uint64(0)
	for _, in := range p.inodes {
		im.layOut(in)
		in.offset = space.place(int64(in.headSize()+in.indexSize+in.inline), int64(in.inline))
		dirBlocks += in.ownBlocks()
	}
	im.metaBlock = im.end
	im.end += uint64(space.end+blockSize-1) >> blockBits
	for _, in := range p.inodes {
		if n := in.ownBlocks(); n > 0 {
			in.u = uint32(im.end)
			if err := im.writeOwnBlocks(in, n); err != nil {
				return err
			}
		}
	}
	if len(p.xattrs.bytes) > 0 {
		im.xattrBlock = im.end
		if err := im.append(p.xattrs.bytes); err != nil {
			return err
		}
	}

	slices.SortFunc(p.inodes, func(a, b *planInode) int { return cmp.Compare(a.offset, b.offset) })
	buf := make([]byte, 0, metaBuffer)
	start := int64(0) // of buf, in the metadata
	for _, in := range p.inodes {
		if in.offset-start > metaBuffer {
			n := len(buf) &^ (blockSize - 1)
			if err := im.write(buf[:n], im.metaBlock+uint64(start)>>blockBits); err != nil {
				return err
			}
			buf = append(buf[:0], buf[n:]...)
			start += int64(n)
		}
		buf = append(buf, make([]byte, in.offset-start-int64(len(buf)))...)
		var err error
		if buf, err = im.encodeInode(buf, in); err != nil {
			return fmt.Errorf("%s: %w", in.path, err)
		}
	}
	return im.write(buf, im.metaBlock+uint64(start)>>blockBits)
}

// metaBuffer is how much metadata is written at once.
const metaBuffer = 1 << 20

// layOut decides where an inode's content lies, and how much of it behind the
// inode.
func (im *image) layOut(in *planInode) {
	in.u = nullAddr32
	switch in.node.Mode & modeType {
	case modeChr, modeBlk:
		in.u = encodeRdev(in.node.RDevMajor, in.node.RDevMinor)
	case modeFifo, modeSock:
		in.u = 0
	case modeDir, modeLnk:
		if tail := int(in.size % blockSize); tail > 0 && tail <= in.room() {
			in.layout, in.inline = LayoutFlatInline, tail
		}
	case modeReg:
		d := in.data
		if d == nil {
			break
		}
		in.layout = d.layout
		switch {
		case d.layout == LayoutFlatInline:
			in.inline = int(in.size % blockSize)
		case d.fragment:
			in.indexSize = fragmentIndexSize(in.headSize())
			in.u = 0
			return
		case d.layout.Compressed():
			in.indexSize = compactIndexSize(in.size, in.headSize())
			if d.layout == LayoutCompressedFull {
				in.indexSize = fullIndexSize(in.size, in.headSize())
			}
			in.inline = len(d.tail)
			in.u = uint32(d.blocks)
			return
		case d.layout == LayoutChunkBased:
			in.indexSize = d.table.size(in.headSize())
			in.u = uint32(d.table.format)
			return
		}
		if d.blocks > 0 {
			in.u = uint32(d.start)
		}
	}
}

// ownBlocks is how many blocks a directory or symlink has besides its inode.
func (in *planInode) ownBlocks() uint64 {
	switch in.node.Mode & modeType {
	case modeDir, modeLnk:
		return uint64(in.size-int64(in.inline)+blockSize-1) >> blockBits
	}
	return 0
}

// writeOwnBlocks writes the first n blocks of a directory, or a symlink's only
// one.
func (im *image) writeOwnBlocks(in *planInode, n uint64) error {
	if in.entries == nil {
		return im.append([]byte(in.node.Target))
	}
	b := make([]byte, 0, n<<blockBits)
	for _, block := range dirBlocks(in.entries)[:n] {
		b = encodeDirBlock(b, block)
		b = append(b, make([]byte, alignUp(int64(len(b)), blockSize)-int64(len(b)))...)
	}
	return im.append(b)
}

// encodeInode appends an inode with all that lies behind it.
func (im *image) encodeInode(b []byte, in *planInode) ([]byte, error) {
	n := in.node
	format := uint16(in.layout) << formatLayoutShift
	// For 32-bit programs, whose inode numbers are not wide enough.
	ino := uint32(in.nid())
	if in.extended {
		b = encode(b, &diskInodeExtended{
			Format: format | formatExtended, XattrIcount: xattrIcount(in.xattrs), Mode: uint16(n.Mode), Size: uint64(in.size),
			U: in.u, Ino: ino, UID: n.UID, GID: n.GID, Mtime: uint64(n.MTime), MtimeNsec: n.MTimeNsec, Nlink: in.nlink,
		})
	} else {
		b = encode(b, &diskInodeCompact{
			Format: format, XattrIcount: xattrIcount(in.xattrs), Mode: uint16(n.Mode), NB: uint16(in.nlink),
			Size: uint32(in.size), U: in.u, Ino: ino, UID: uint16(n.UID), GID: uint16(n.GID),
		})
	}
	b = append(b, in.xattrs...)
	switch {
	case in.data != nil && in.data.fragment:
		return fragmentIndex(b, in.data.start, in.headSize()), nil
	case in.layout.Compressed():
		list, err := indexEntries(&in.data.stored, in.size)
		if err != nil {
			return b, err
		}
		// The kernel wants compact indexes to say it of both heads. Plain blocks
		// are not interlaced: that only spares the kernel to move the bytes, and how
		// they lie would depend on where in a logical cluster the extent begins, so
		// that no other content could refer to the block.
		advise := uint16(adviseBigPcluster1 | adviseBigPcluster2)
		if in.inline > 0 {
			advise |= adviseInline
		}
		if in.layout == LayoutCompressedFull {
			b = fullIndex(b, list, in.headSize(), advise, in.inline)
		} else {
			b = compactIndex(b, list, in.headSize(), advise, in.inline)
		}
		return append(b, in.data.tail...), nil
	case in.layout == LayoutChunkBased:
		return in.data.table.append(b, in.headSize()), nil
	case in.inline == 0:
		return b, nil
	case in.entries != nil:
		blocks := dirBlocks(in.entries)
		return encodeDirBlock(b, blocks[len(blocks)-1]), nil
	case n.Mode&modeType == modeLnk:
		return append(b, n.Target...), nil
	}
	tail := len(b)
	b = append(b, make([]byte, in.inline)...)
	return b, readAt(in.data.source, b[tail:], in.size-int64(in.inline))
}

// writeSuperblock writes block 0, behind everything else.
func (im *image) writeSuperblock(p *plan) error {
	s := diskSuper{
		Magic:         SuperMagic,
		FeatureCompat: FeatureCompatSBChksum | FeatureCompatMtime,
		BlkSzBits:     blockBits,
		RootNid:       uint16(p.root.nid()),
		Inos:          uint64(len(p.inodes)),
		Epoch:         uint64(im.id.BuildTime),
		FixedNsec:     im.id.BuildTimeNsec,
		Blocks:        uint32(im.end),
		MetaBlkAddr:   uint32(im.metaBlock),
		XattrBlkAddr:  uint32(im.xattrBlock),
		UUID:          im.id.UUID,
	}
	copy(s.VolumeName[:], im.id.Label)
	if im.options.Compress {
		s.FeatureIncompat |= FeatureIncompatZeroPadding | FeatureIncompatBigPcluster
		s.ComprAlgs = 1 << algLZ4
	}
	if im.options.Ztailpacking {
		s.FeatureIncompat |= FeatureIncompatZtailpacking
	}
	if p.packed != nil {
		s.FeatureIncompat |= FeatureIncompatFragments
		s.PackedNid = p.packed.nid()
	}
	if p.shared {
		s.FeatureIncompat |= FeatureIncompatFragments // which stands for both
	}
	for _, in := range p.inodes {
		if in.layout == LayoutChunkBased {
			s.FeatureIncompat |= FeatureIncompatChunkedFile
		}
	}
	var devices []byte
	if im.blobs != nil {
		devices = im.blobs.table()
	}
	if len(devices) > 0 {
		s.FeatureIncompat |= FeatureIncompatDeviceTable
		s.ExtraDevices = uint16(len(devices) / deviceSlotSize)
		s.DevtSlotOff = deviceTableAt / deviceSlotSize
	}
	b := encode(make([]byte, SuperOffset), &s)
	b = append(b, devices...) // compressed images have none
	if im.options.Compress {
		blocks := im.options.PclusterBytes >> blockBits
		if im.options.Dedupe {
			blocks = max(blocks, maxStretchBlocks)
		}
		config := encode(nil, &diskLZ4Config{MaxDistance: lz4MaxDistance, MaxPclusterBlks: uint16(blocks)})
		b = encode(b, uint16(len(config)))
		b = append(b, config...)
	}
	b = append(b, make([]byte, blockSize-len(b))...)
	binary.LittleEndian.PutUint32(b[SuperOffset+4:], superblockChecksum(b[SuperOffset:]))
	return im.write(b, 0)
}
