package erofs

import (
	"fmt"
	"path"
	"slices"
)

// LZ4 finds again what lies within 64 KiB, and in the same physical cluster. So
// contents that are like each other are packed side by side: those of files that
// have one name in several directories, as in the releases of one program. All
// others stay in the order of the tree, in which what is used together is
// together. To sort all of them by name or kind makes images of initramfs trees
// larger, because there directories hold what is alike.

const (
	// sketchSize is how many hashes stand for a content: the least of those of its
	// windows, so that two contents share as many as they share windows.
	sketchSize   = 32
	sketchWindow = 64 // bytes, those that count in a rolling hash of 64 bits
	// minLike is how many of their hashes contents share that are alike.
	minLike = 6
	// maxLike is the size of the largest contents, in bytes, whose likes are not
	// too far away to matter.
	maxLike = 256 << 10
	// maxRows bounds what one content is compared with.
	maxRows = 16
)

// sketch are the least hashes of a content, in order.
type sketch []uint64

func newSketch(p []byte) sketch {
	s := make(sketch, 0, sketchSize+1)
	var h uint64
	for i, c := range p {
		h = h<<1 + gear[c]
		if i < sketchWindow-1 || len(s) == sketchSize && h >= s[sketchSize-1] {
			continue
		}
		if k, ok := slices.BinarySearch(s, h); !ok {
			s = slices.Insert(s, k, h)
			s = s[:min(len(s), sketchSize)]
		}
	}
	return s
}

// like reports whether two sketches are those of contents that are alike.
func (s sketch) like(t sketch) bool {
	both := 0
	for i, k, n := 0, 0, 0; i < len(s) && k < len(t) && n < sketchSize; n++ {
		switch {
		case s[i] < t[k]:
			i++
		case s[i] > t[k]:
			k++
		default:
			i, k, both = i+1, k+1, both+1
		}
	}
	return both >= minLike
}

// row is a row of contents each of which is like the one before.
type row struct {
	contents []*planData
	last     sketch
}

// bySimilarity gives contents in another order, in which those that are alike
// are neighbours.
func bySimilarity(contents []*planData) ([]*planData, error) {
	names := make(map[string]int)
	for _, d := range contents {
		names[path.Base(d.path)]++
	}
	var rows []*row
	known := make(map[string][]*row)
	buf := make([]byte, maxLike)
	for _, d := range contents {
		name := path.Base(d.path)
		if names[name] == 1 || d.size > maxLike {
			rows = append(rows, &row{contents: []*planData{d}})
			continue
		}
		if err := readAt(d.source, buf[:d.size], 0); err != nil {
			return nil, fmt.Errorf("read spooled content of %s: %w", d.path, err)
		}
		s := newSketch(buf[:d.size])
		r := findRow(known[name], s)
		if r == nil {
			r = &row{}
			rows = append(rows, r)
			known[name] = append(known[name], r)
		}
		r.contents = append(r.contents, d)
		r.last = s
	}
	ordered := make([]*planData, 0, len(contents))
	for _, r := range rows {
		ordered = append(ordered, r.contents...)
	}
	return ordered, nil
}

// findRow finds one of the latest rows whose end is like a sketch.
func findRow(rows []*row, s sketch) *row {
	for i := len(rows) - 1; i >= max(0, len(rows)-maxRows); i-- {
		if rows[i].last.like(s) {
			return rows[i]
		}
	}
	return nil
}
