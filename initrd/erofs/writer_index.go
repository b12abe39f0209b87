package erofs

import (
	"encoding/binary"
	"fmt"
)

// indexEntry is the index of a logical cluster; struct z_erofs_lcluster_index.
type indexEntry struct {
	kind  uint8
	value uint16 // of a head: where the extent begins; else: distance to the head, or lclusterCblkcnt and blocks
	next  uint16 // of others: distance to the next head
	block uint32 // of the extent

	partial bool // of a head: the extent is the beginning of what the cluster holds
}

// indexEntries gives the indexes of a compressed content of total bytes, one for
// each block of that. Where the content ends in a logical cluster that has no
// head, a head marks the end.
//
// Linux 7 refuses a physical cluster that is larger than its extent, if that is
// neither the last nor a part of it; z_erofs_map_sanity_check in fs/erofs/zmap.c.
func indexEntries(s *stored, total int64) ([]indexEntry, error) {
	list := make([]indexEntry, 0, (total+blockSize-1)>>blockBits)
	at := int64(0)
	add := func(length int64, e run, block uint32, partial bool) {
		kind := uint8(lclusterHead1)
		if e.plain {
			kind = lclusterPlain
		}
		first, end := at>>blockBits, (at+length)>>blockBits
		list = append(list, indexEntry{kind: kind, value: uint16(at % blockSize), block: block, partial: partial})
		for i := first + 1; i < end; i++ {
			value := uint16(i - first)
			if i == first+1 {
				value = lclusterCblkcnt | max(e.blocks, 1)
			}
			list = append(list, indexEntry{kind: lclusterNonhead, value: value, next: uint16(end - i), block: block})
		}
		at += length
		if at == total && at%blockSize != 0 && end > first {
			list = append(list, indexEntry{kind: lclusterPlain, value: uint16(at % blockSize)})
		}
	}
	for _, e := range s.extents {
		switch {
		case e.blocks == 0:
			add(int64(e.length), e, 0, false)
		case !e.plain:
			if size := int64(e.blocks) << blockBits; int64(e.length) < size && !e.partial && at+int64(e.length) < total {
				return nil, fmt.Errorf("a physical cluster of %d bytes holds only %d", size, e.length)
			}
			add(int64(e.length), e, e.block, e.partial)
		default:
			block := e.block
			for rest := int64(e.length); rest > 0; rest -= blockSize {
				add(min(rest, blockSize), e, block, e.partial && rest <= blockSize)
				block++
			}
		}
	}
	if at != total || len(list) != cap(list) {
		return nil, fmt.Errorf("extents cover %d bytes in %d clusters, not %d in %d", at, len(list), total, cap(list))
	}
	return list, nil
}

// fullIndexSize is how many bytes fullIndex appends.
func fullIndexSize(size int64, head int) int {
	return int(alignUp(int64(head), mapHeaderSize)) - head + mapHeaderSize + fullIndexGap +
		int((size+blockSize-1)>>blockBits)*lclusterIndexSize
}

// fullIndex appends a map header and full indexes behind an inode that has head
// bytes with its attributes; legacy_load_cluster_from_disk in fs/erofs/zmap.c.
func fullIndex(b []byte, list []indexEntry, head int, advise uint16, inlineSize int) []byte {
	b = append(b, make([]byte, alignUp(int64(head), mapHeaderSize)-int64(head))...)
	b = encode(b, &diskMapHeader{FragmentOff: uint32(inlineSize) << 16, Advise: advise, Algorithms: algLZ4})
	b = append(b, make([]byte, fullIndexGap)...)
	for _, c := range list {
		d := diskLcluster{Advise: uint16(c.kind), ClusterOfs: c.value, BlkAddr: c.block}
		switch {
		case c.kind == lclusterNonhead:
			d.ClusterOfs, d.BlkAddr = 0, uint32(c.value)|uint32(c.next)<<16
		case c.partial:
			d.Advise |= lclusterPartialRef
		}
		b = binary.LittleEndian.AppendUint16(b, d.Advise)
		b = binary.LittleEndian.AppendUint16(b, d.ClusterOfs)
		b = binary.LittleEndian.AppendUint32(b, d.BlkAddr)
	}
	return b
}

// compactPacks says how many indexes of a content are in packs of 4-byte indexes,
// in packs of 2-byte indexes, and in packs of 4-byte indexes again. The packs in
// the middle lie at multiples of 32 bytes; compacted_load_cluster_from_disk in
// fs/erofs/zmap.c.
func compactPacks(count, head int) (first, middle, last int) {
	begin := alignUp(int64(head), mapHeaderSize) + mapHeaderSize
	first = min(count, int(alignUp(begin, compact2BPackSize)-begin)/4)
	middle = (count - first) / compact2BPackCount * compact2BPackCount
	return first, middle, count - first - middle
}

// compactIndexSize is how many bytes compactIndex appends.
func compactIndexSize(size int64, head int) int {
	first, middle, last := compactPacks(int((size+blockSize-1)>>blockBits), head)
	packs := (first+1)/compact4BPackCount + (last+1)/compact4BPackCount
	return int(alignUp(int64(head), mapHeaderSize)) - head + mapHeaderSize +
		packs*compact4BPackSize + middle/compact2BPackCount*compact2BPackSize
}

// compactIndex appends a map header and compact indexes behind an inode that has
// head bytes with its attributes.
func compactIndex(b []byte, list []indexEntry, head int, advise uint16, inlineSize int) []byte {
	b = append(b, make([]byte, alignUp(int64(head), mapHeaderSize)-int64(head))...)
	b = encode(b, &diskMapHeader{FragmentOff: uint32(inlineSize) << 16, Advise: advise | adviseCompacted2B, Algorithms: algLZ4})
	first, middle, _ := compactPacks(len(list), head)
	for i := 0; i < len(list); {
		count, size := compact4BPackCount, compact4BPackSize
		if i >= first && i < first+middle {
			count, size = compact2BPackCount, compact2BPackSize
		}
		part := list[i:min(i+count, len(list))]
		b = packIndexes(b, part, count, size)
		i += len(part)
	}
	return b
}

// packIndexes appends a pack: so many values of equal width, then the block of
// its first physical cluster. That is the one whose head is the first in the
// pack, or whose number of blocks stands first.
func packIndexes(b []byte, part []indexEntry, count, size int) []byte {
	width := (size - 4) * 8 / count
	pack := make([]byte, size+4) // room for the last value's high bytes
	hasBase := false
	var base uint32
	for i, c := range part {
		v := c.value
		switch {
		case c.kind != lclusterNonhead:
			if !hasBase {
				base, hasBase = c.block, true
			}
		case v&lclusterCblkcnt != 0:
		case i+1 == count:
			v = min(c.next, lclusterCblkcnt-1)
		default:
			v = min(v, lclusterCblkcnt-1)
		}
		if i == 0 && c.kind == lclusterNonhead && v&lclusterCblkcnt != 0 {
			base, hasBase = c.block, true
		}
		bit := i * width
		word := binary.LittleEndian.Uint32(pack[bit/8:])
		word |= (uint32(c.kind)<<blockBits | uint32(v)) << (bit % 8)
		binary.LittleEndian.PutUint32(pack[bit/8:], word)
	}
	binary.LittleEndian.PutUint32(pack[size-4:], base)
	return append(b, pack[:size]...)
}

// fragmentIndexSize is how many bytes fragmentIndex appends.
func fragmentIndexSize(head int) int {
	return int(alignUp(int64(head), mapHeaderSize)) - head + mapHeaderSize
}

// fragmentIndex appends what a file has instead of indexes that lies at offset in
// the packed one; z_erofs_fill_inode_lazy in fs/erofs/zmap.c.
func fragmentIndex(b []byte, offset uint64, head int) []byte {
	b = append(b, make([]byte, alignUp(int64(head), mapHeaderSize)-int64(head))...)
	return binary.LittleEndian.AppendUint64(b, offset|fragmentInodeBit)
}
