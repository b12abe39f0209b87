package cpio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/initrd/compress"
)

// seeds are valid initramfs archives. Uncompressed ones come first in number:
// there the fuzzer's changes reach the records.
func seeds(t testing.TB) [][]byte {
	one := newc(t, sample()...)
	crc := bytes.Clone(newc(t, file("a", "\x01")))
	copy(crc, magicCRC)
	copy(crc[102:], "00000001")
	return [][]byte{
		one,
		crc,
		slices.Concat(one, pad(16), newc(t, file("one", "new"), symlink("dev", "x"), dir("link", 3))),
		newc(t, dir("a", 1), dir("a/b", 2), symlink("l", "a/b/.."), file("l/b/f", "x"), link("x", 1, ""), link("l/y", 1, "data")),
		slices.Concat(newc(t, file("early", "x")), pad(8), pack(t, compress.Zstd, one)),
		pack(t, compress.Gzip, slices.Concat(one, pad(4), one)),
		pack(t, compress.LZ4, one),
		pack(t, compress.XZ, one),
	}
}

// checkReader asserts what must hold for any bytes, and gives the number of
// entries and the error that ended them.
func checkReader(t *testing.T, data []byte) (entries int, err error) {
	const limit = 16 << 20
	r := NewReaderLimit(bytes.NewReader(data), limit)
	segment, offset, total := -1, int64(-1), int64(0)
	for {
		h, err := r.Next()
		if err != nil {
			if again, second := r.Next(); again != nil || !errors.Is(second, err) {
				t.Errorf("Next after %v gives %v, %v", err, again, second)
			}
			var placed *Error
			if !errors.Is(err, io.EOF) && !errors.As(err, &placed) {
				t.Errorf("error without a place: %v", err)
			}
			return entries, err
		}
		entries++
		if h.Name == "" || path.Clean(h.Name) != h.Name || path.IsAbs(h.Name) || h.Name == ".." || strings.HasPrefix(h.Name, "../") {
			t.Errorf("name %q is not clean", h.Name)
		}
		if h.Segment < segment || h.Segment == segment && h.Offset <= offset || h.Offset&3 != 0 {
			t.Errorf("entry at segment %d offset %d after segment %d offset %d", h.Segment, h.Offset, segment, offset)
		}
		segment, offset = h.Segment, h.Offset
		if entries%2 == 0 {
			continue // leave the body to Next
		}
		n, err := io.Copy(io.Discard, r)
		if total += n; err == nil && n != h.Size || total > limit {
			t.Errorf("%s: body of %d bytes, want %d; %d in all", h.Name, n, h.Size, total)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) { _, _ = checkReader(t, data) })
}

func FuzzTree(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var placed *Error
		if _, _, err := buildTree(t, data); err != nil && !errors.As(err, &placed) {
			t.Errorf("error without a place: %v", err)
		}
	})
}

// TestFuzzSeeds proves that each seed passes all of what is asserted.
func TestFuzzSeeds(t *testing.T) {
	for i, seed := range seeds(t) {
		if n, err := checkReader(t, seed); n == 0 || !errors.Is(err, io.EOF) {
			t.Errorf("seed %d: %d entries, %v", i, n, err)
		}
		if tree, _, err := buildTree(t, seed); err != nil || len(tree.Root().Children) == 0 {
			t.Errorf("seed %d: no tree, %v", i, err)
		}
	}
}

// BenchmarkReadTree reads the initramfs that the environment names.
func BenchmarkReadTree(b *testing.B) {
	name := os.Getenv("INITRAMFS")
	if name == "" {
		b.Skip("INITRAMFS names no file")
	}
	for b.Loop() {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		s := &discard{}
		tree, err := ReadTree(NewReader(f), s)
		if err != nil || len(tree.Root().Children) == 0 {
			b.Fatal(err)
		}
		b.SetBytes(s.bytes)
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// discard is a Store that keeps nothing.
type discard struct{ bytes int64 }

func (d *discard) Put(body io.Reader, _ int64) (int64, error) {
	n, err := io.Copy(io.Discard, body)
	d.bytes += n
	return 0, err
}

func (d *discard) Delete(int64) error { return nil }
