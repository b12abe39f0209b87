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

// xattrPlace is where an xattr lies.
type xattrPlace struct {
	space     *space
	pos, size int64 // bytes
	shared    bool
}

// readXattrs calls visit, where it is not nil, for each xattr; its name is empty
// where its prefix is unknown.
func (i *Inode) readXattrs(visit func(name string, at xattrPlace) error) (map[string][]byte, error) {
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
	add := func(raw []byte, at xattrPlace) (int, error) {
		name, n, err := i.fs.addXattr(xattrs, raw)
		if err == nil && visit != nil {
			at.size = int64(n)
			err = visit(name, at)
		}
		if err != nil {
			return 0, fmt.Errorf("offset %d of the %s: %w", at.pos, at.space.name, err)
		}
		return n, nil
	}
	for at := inline; at < len(body); {
		n, err := add(body[at:], xattrPlace{space: i.space, pos: pos + int64(at)})
		if err != nil {
			return nil, err
		}
		at += int(alignUp(int64(n), xattrAlign))
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
		if _, err := add(raw, xattrPlace{space: s, pos: at, shared: true}); err != nil {
			return nil, fmt.Errorf("shared xattr %d: %w", id, err)
		}
	}
	return xattrs, nil
}

// xattrSize is the size of the entry at the beginning of raw, without padding.
func xattrSize(raw []byte) int {
	return xattrEntrySize + int(raw[0]) + int(binary.LittleEndian.Uint16(raw[2:]))
}

// addXattr reads the entry at the beginning of raw and gives its name and its
// size. Of two with one name the first counts, as for the kernel.
func (f *FS) addXattr(xattrs map[string][]byte, raw []byte) (name string, size int, err error) {
	if len(raw) < xattrEntrySize {
		return "", 0, corruptf("xattr of %d bytes", len(raw))
	}
	nameLen, index := int(raw[0]), int(raw[1])
	if size = xattrSize(raw); size > len(raw) {
		return "", 0, corruptf("xattr of %d bytes in %d", size, len(raw))
	}
	prefix := ""
	if index&xattrLongPrefix != 0 {
		if n := index &^ xattrLongPrefix; n < len(f.prefixes) {
			prefix = f.prefixes[n]
		}
	} else if index < len(xattrPrefixes) {
		prefix = xattrPrefixes[index]
	}
	if prefix == "" {
		return "", size, nil
	}
	name = prefix + string(raw[xattrEntrySize:xattrEntrySize+nameLen])
	if _, ok := xattrs[name]; !ok {
		xattrs[name] = append([]byte{}, raw[xattrEntrySize+nameLen:size]...)
	}
	return name, size, nil
}
