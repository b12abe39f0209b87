package erofs

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/initrd/lz4hc"
)

// testMemory is a spool and an image in memory.
type testMemory struct{ b []byte }

func (m *testMemory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *testMemory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(m.b) {
		m.b = slices.Grow(m.b, n-len(m.b))[:n]
	}
	return copy(m.b[off:], p), nil
}

// halfRandom is what LZ4 makes a little smaller.
func halfRandom(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	for i := range b {
		if i%64 < 16 {
			b[i] = 'x'
		}
	}
	return b
}

// An image whose last extents refer to beginnings of clusters, and what is
// noticed when an index does not say so.
func TestPartialReferences(t *testing.T) {
	w, err := NewWriter(&testMemory{}, Options{Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10, Dedupe: true})
	if err != nil {
		t.Fatal(err)
	}
	root := &Node{Mode: modeDir | 0o755, Children: map[string]*Node{}}
	data := halfRandom(1, 600_000)
	for name, content := range map[string][]byte{
		"a": data,
		"b": slices.Concat(data[:250_000], halfRandom(2, 30_000)),
		"c": slices.Concat(halfRandom(3, 20_000), data[100_000:300_000]),
	} {
		n := &Node{Mode: modeReg | 0o644, Size: int64(len(content))}
		if n.Ref, err = w.Put(bytes.NewReader(content), n.Size); err != nil {
			t.Fatal(err)
		}
		root.Children[name] = n
	}
	var out testMemory
	size, err := w.Write(context.Background(), &out, root, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	image := slices.Concat(out.b, make([]byte, size-int64(len(out.b))))
	if err := Check(bytes.NewReader(image), size).Err(); err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"b", "c"} {
		files, err := Open(bytes.NewReader(image), size)
		if err != nil {
			t.Fatal(err)
		}
		ino, err := files.Inode(name)
		if err != nil {
			t.Fatal(err)
		}
		if ino.Layout != LayoutCompressedFull {
			t.Fatalf("%s is %v", name, ino.Layout)
		}
		m, err := ino.clusters()
		if err != nil {
			t.Fatal(err)
		}
		var partial []int64
		for n := range m.count {
			c, err := m.cluster(n)
			if err != nil {
				t.Fatal(err)
			}
			if c.isHead() && c.partial {
				partial = append(partial, m.base+n*lclusterIndexSize)
			}
		}
		if len(partial) != 1 {
			t.Fatalf("%s has %d partial extents, want 1", name, len(partial))
		}
		broken := bytes.Clone(image)
		broken[partial[0]+1] &^= lclusterPartialRef >> 8
		err = Check(bytes.NewReader(broken), size).Err()
		if err == nil || !strings.Contains(err.Error(), "decodes to more bytes") {
			t.Errorf("%s without the flag: error %v", name, err)
		}
		files, err = Open(bytes.NewReader(broken), size)
		if err != nil {
			t.Fatal(err)
		}
		if ino, err = files.Inode(name); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, io.NewSectionReader(ino, 0, ino.Size)); err == nil {
			t.Errorf("%s without the flag is read", name)
		}
	}
}

// A copy that ends in the first block of a large cluster has an index for its
// size, or is plain.
func TestCopyEnds(t *testing.T) {
	for _, test := range []struct {
		at, length, size int64
		blocks           uint16
		plain, want      bool
	}{
		{at: 0, length: 4096, size: 1 << 20, blocks: 1, want: true},
		{at: 1, length: 4096, size: 1 << 20, blocks: 1, want: true},
		{at: 1, length: 4094, size: 1 << 20, blocks: 1},
		{at: 1, length: 4094, size: 4095, blocks: 1, want: true},
		{at: 0, length: 8191, size: 1 << 20, blocks: 2},
		{at: 0, length: 8191, size: 8191, blocks: 2},
		{at: 4095, length: 8192, size: 1 << 20, blocks: 16, want: true},
		{at: 4095, length: 4097, size: 1 << 20, blocks: 16, want: true},
		{at: 1, length: 9, size: 10, blocks: 1, plain: true, want: true},
		{at: 1, length: 4095, size: 1 << 20, blocks: 1, plain: true, want: true},
	} {
		d := &planData{size: test.size}
		if got := d.holds(test.at, &run{length: uint32(test.length), blocks: test.blocks, plain: test.plain}); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}
