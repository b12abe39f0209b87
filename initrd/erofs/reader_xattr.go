package erofs

import (
	"encoding/binary"
	"fmt"
)

// readXattrPrefixes reads the long prefixes of xattr names;
// erofs_xattr_prefixes_init in fs/erofs/xattr.c.
func (f *FS) readXattrPrefixes(sb *diskSuper) error {
	if !f.has(FeatureIncompatXattrPrefixes) || sb.XattrPrefixCount == 0 {
		return nil
	}
	s := f.image
	if f.Super.FeatureCompat&featureCompatPlainXattrPrefixes == 0 {
		switch {
		case f.metaboxNid != 0:
			var err error
			if s, err = f.metabox(); err != nil {
				return err
			}
		case f.packedNid != 0 && f.has(FeatureIncompatFragments):
			packed, err := f.packed()
			if err != nil {
				return err
			}
			s = &space{r: packed, size: packed.Size, name: "packed inode"}
		}
	}
	pos := int64(sb.XattrPrefixStart) * xattrSharedUnit
	for n := range int(sb.XattrPrefixCount) {
		record, next, err := readRecord(s, pos)
		if err != nil {
			return fmt.Errorf("read xattr prefix %d: %w", n, err)
		}
		base := int(record[0])
		if len(record) > maxNameLen+1 || base >= len(xattrPrefixes) || xattrPrefixes[base] == "" {
			return corruptf("xattr prefix %d at offset %d of the %s", n, pos, s.name)
		}
		f.prefixes = append(f.prefixes, xattrPrefixes[base]+string(record[1:]))
		pos = next
	}
	return nil
}

// Xattrs reads the extended attributes, those that the inode has for itself and
// those that it shares with others, by their full names; fs/erofs/xattr.c. An
// attribute whose prefix this package does not know is left out, as the kernel
// does it. It returns nil when there are none.
func (i *Inode) Xattrs() (map[string][]byte, error) {
	xattrs, err := i.readXattrs(nil)
	if err != nil {
		return nil, fmt.Errorf("read xattrs of EROFS inode %d at offset %d: %w", i.NID, i.off, err)
	}
	return xattrs, nil
}

// readXattrs calls shared, where it is not nil, for the range in the image that
// a shared one takes.
func (i *Inode) readXattrs(shared func(s *space, pos, size int64)) (map[string][]byte, error) {
	if i.xattrIcount == 0 {
		return nil, nil
	}
	if i.xattrIcount == 1 {
		return nil, unsupportedf("xattrs that are only a header")
	}
	pos := i.off + i.headSize
	body, err := i.space.read(pos, int(xattrBodySize(i.xattrIcount)))
	if err != nil {
		return nil, err
	}
	var header diskXattrHeader
	decode(body, &header)
	inline := xattrHeaderSize + int(header.SharedCount)*xattrEntrySize
	if inline > len(body) {
		return nil, corruptf("%d shared xattrs in %d bytes", header.SharedCount, len(body))
	}
	xattrs := map[string][]byte{}
	for at := inline; at < len(body); {
		n, err := i.fs.addXattr(xattrs, body[at:])
		if err != nil {
			return nil, fmt.Errorf("offset %d of the %s: %w", pos+int64(at), i.space.name, err)
		}
		at += n
	}
	s := i.fs.image
	if i.fs.Super.FeatureCompat&featureCompatSharedEAInMetabox != 0 {
		if s, err = i.fs.metabox(); err != nil {
			return nil, err
		}
	}
	for n := range int(header.SharedCount) {
		id := binary.LittleEndian.Uint32(body[xattrHeaderSize+n*xattrEntrySize:])
		at := int64(i.fs.xattrBlkAddr)<<i.fs.Super.BlkSzBits + int64(id)*xattrSharedUnit
		raw, err := s.read(at, xattrEntrySize)
		if err != nil {
			return nil, fmt.Errorf("shared xattr %d: %w", id, err)
		}
		size := xattrSize(raw)
		if raw, err = s.read(at, size); err != nil {
			return nil, fmt.Errorf("shared xattr %d: %w", id, err)
		}
		if _, err := i.fs.addXattr(xattrs, raw); err != nil {
			return nil, fmt.Errorf("shared xattr %d at offset %d of the %s: %w", id, at, s.name, err)
		}
		if shared != nil {
			shared(s, at, int64(size))
		}
	}
	return xattrs, nil
}

// xattrSize is the size of the entry at the beginning of raw, without padding.
func xattrSize(raw []byte) int {
	return xattrEntrySize + int(raw[0]) + int(binary.LittleEndian.Uint16(raw[2:]))
}

// addXattr reads the entry at the beginning of raw and gives its size with
// padding. Of two with one name the first counts, as for the kernel.
func (f *FS) addXattr(xattrs map[string][]byte, raw []byte) (int, error) {
	if len(raw) < xattrEntrySize {
		return 0, corruptf("xattr of %d bytes", len(raw))
	}
	nameLen, index := int(raw[0]), int(raw[1])
	size := xattrSize(raw)
	if size > len(raw) {
		return 0, corruptf("xattr of %d bytes in %d", size, len(raw))
	}
	prefix := ""
	if index&xattrLongPrefix != 0 {
		if n := index &^ xattrLongPrefix; n < len(f.prefixes) {
			prefix = f.prefixes[n]
		}
	} else if index < len(xattrPrefixes) {
		prefix = xattrPrefixes[index]
	}
	if prefix != "" {
		name := prefix + string(raw[xattrEntrySize:xattrEntrySize+nameLen])
		if _, ok := xattrs[name]; !ok {
			xattrs[name] = append([]byte{}, raw[xattrEntrySize+nameLen:size]...)
		}
	}
	return int(alignUp(int64(size), xattrAlign)), nil
}
