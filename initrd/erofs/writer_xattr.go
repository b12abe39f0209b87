package erofs

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// sharedXattrs are the attributes that several inodes have with the same value,
// stored once; fs/erofs/xattr.c.
type sharedXattrs struct {
	ids   map[string]uint32 // of encoded entries
	bytes []byte
}

// maxSharedXattrs is how many of them one inode can name.
const maxSharedXattrs = math.MaxUint8

// HasXattrClass reports whether an image can have an extended attribute of this
// name.
func HasXattrClass(name string) bool {
	index, _ := xattrClass(name)
	return index != 0
}

// xattrClass gives the index of a name's prefix, 0 if it has none that is known,
// and the rest of the name.
func xattrClass(name string) (index int, rest string) {
	for i, prefix := range xattrPrefixes {
		if suffix, ok := strings.CutPrefix(name, prefix); ok && prefix != "" {
			// The names of ACLs are whole prefixes.
			if isACL := !strings.HasSuffix(prefix, "."); isACL != (suffix == "") {
				continue
			}
			index, rest = i, suffix
		}
	}
	return index, rest
}

// encodeXattr gives an entry, filled up to its alignment.
func encodeXattr(name string, value []byte) ([]byte, error) {
	index, rest := xattrClass(name)
	switch {
	case index == 0:
		return nil, fmt.Errorf("EROFS has no place for extended attribute %q", name)
	case len(rest) > math.MaxUint8 || len(value) > math.MaxUint16:
		return nil, fmt.Errorf("extended attribute %q with a value of %d bytes is too long", name, len(value))
	}
	b := encode(nil, &diskXattrEntry{NameLen: uint8(len(rest)), NameIndex: uint8(index), ValueSize: uint16(len(value))})
	b = append(append(b, rest...), value...)
	return append(b, make([]byte, alignUp(int64(len(b)), xattrAlign)-int64(len(b)))...), nil
}

// shareXattrs finds what several inodes have. What cannot be encoded is left for
// body to report.
func shareXattrs(inodes []*planInode) sharedXattrs {
	s := sharedXattrs{ids: make(map[string]uint32)}
	count := make(map[string]int)
	for _, in := range inodes {
		for _, name := range slices.Sorted(maps.Keys(in.node.Xattrs)) {
			entry, err := encodeXattr(name, in.node.Xattrs[name])
			if err != nil {
				continue
			}
			key := string(entry)
			if count[key]++; count[key] == 2 {
				s.ids[key] = uint32(len(s.bytes) / xattrSharedUnit)
				s.bytes = append(s.bytes, entry...)
			}
		}
	}
	return s
}

// body gives what lies behind an inode with these attributes: nothing, or a
// header, the ids of shared ones and the others.
func (s *sharedXattrs) body(xattrs map[string][]byte) ([]byte, error) {
	if len(xattrs) == 0 {
		return nil, nil
	}
	var ids []uint32
	var inline []byte
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		entry, err := encodeXattr(name, xattrs[name])
		if err != nil {
			return nil, err
		}
		if id, ok := s.ids[string(entry)]; ok && len(ids) < maxSharedXattrs {
			ids = append(ids, id)
		} else {
			inline = append(inline, entry...)
		}
	}
	b := encode(nil, &diskXattrHeader{SharedCount: uint8(len(ids))})
	for _, id := range ids {
		b = encode(b, id)
	}
	b = append(b, inline...)
	if len(b) > xattrHeaderSize+(math.MaxUint16-1)*xattrEntrySize {
		return nil, fmt.Errorf("extended attributes of %d bytes are too many", len(b))
	}
	return b, nil
}

// xattrIcount is the reverse of xattrBodySize.
func xattrIcount(body []byte) uint16 {
	if len(body) == 0 {
		return 0
	}
	return uint16(1 + (len(body)-xattrHeaderSize)/xattrEntrySize)
}
