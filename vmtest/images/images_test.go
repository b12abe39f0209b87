package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// variant is one way to lay out an image.
type variant struct {
	name string
	erofs.Options
	split bool // contents are in blobs
}

// some are the variants in which each part of the format is there once.
func some() []variant {
	lz4 := func(name string, o erofs.Options) variant {
		o.Compress = true
		return variant{name, o, false}
	}
	const kib = 1024
	return []variant{
		{"plain", erofs.Options{}, false},
		{"dax", erofs.Options{DAX: true}, false},
		{"chunks-4k", erofs.Options{ChunkBytes: 4 * kib}, false},
		{"chunks-64k", erofs.Options{ChunkBytes: 64 * kib}, false},
		{"dax-chunks", erofs.Options{DAX: true, ChunkBytes: 4 * kib}, false},
		{"blobs-4k", erofs.Options{ChunkBytes: 4 * kib}, true},
		lz4("4k", erofs.Options{PclusterBytes: 4 * kib}),
		lz4("4k-fast-ztail", erofs.Options{PclusterBytes: 4 * kib, Level: lz4hc.Fast, Ztailpacking: true}),
		lz4("4k-dedupe-pack", erofs.Options{PclusterBytes: 4 * kib, Dedupe: true, PackBytes: 4096}),
		lz4("16k-max-ztail", erofs.Options{PclusterBytes: 16 * kib, Level: lz4hc.Max, Ztailpacking: true}),
		lz4("64k", erofs.Options{PclusterBytes: 64 * kib}),
		lz4("64k-dedupe", erofs.Options{PclusterBytes: 64 * kib, Dedupe: true}),
		lz4("64k-pack", erofs.Options{PclusterBytes: 64 * kib, PackBytes: 64 * kib}),
		lz4("64k-everything", erofs.Options{PclusterBytes: 64 * kib, Ztailpacking: true, PackBytes: 64 * kib, Dedupe: true}),
		lz4("1m-everything", erofs.Options{PclusterBytes: 1024 * kib, Ztailpacking: true, PackBytes: 1024 * kib, Dedupe: true}),
	}
}

// all are all combinations.
func all() []variant {
	vs := []variant{{"plain", erofs.Options{}, false}, {"dax", erofs.Options{DAX: true}, false}}
	for bits := 12; bits <= 20; bits++ {
		for i := range 4 {
			o := erofs.Options{DAX: i&1 != 0, ChunkBytes: 1 << bits}
			split := i&2 != 0
			vs = append(vs, variant{fmt.Sprintf("chunks-%d-dax=%t-blobs=%t", o.ChunkBytes, o.DAX, split), o, split})
		}
	}
	for _, level := range []lz4hc.Level{lz4hc.Fast, lz4hc.Max} {
		for _, pcluster := range []int{4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
			for i := range 12 {
				o := erofs.Options{
					Compress: true, Level: level, PclusterBytes: pcluster, Ztailpacking: i&1 != 0, Dedupe: i&2 != 0,
					PackBytes: [...]int64{0, 5000, 64 << 10}[i>>2],
				}
				name := fmt.Sprintf("%dk-%d-ztail=%t-dedupe=%t-pack=%d", pcluster>>10, level, o.Ztailpacking, o.Dedupe, o.PackBytes)
				vs = append(vs, variant{name, o, false})
			}
		}
	}
	return vs
}

// sparse are the variants that write holes.
func sparse() []variant {
	return []variant{
		{"sparse-plain", erofs.Options{Holes: true}, false},
		{"sparse-dax", erofs.Options{DAX: true, Holes: true}, false},
		{"sparse-lz4", erofs.Options{Compress: true, PclusterBytes: 64 << 10, Holes: true}, false},
		{"sparse-chunks", erofs.Options{ChunkBytes: 4096}, false},
		{"sparse-blobs", erofs.Options{ChunkBytes: 1 << 20}, true},
	}
}

// TestKernelsRead mounts images of a tree that has everything, in each kernel.
func TestKernelsRead(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	dir := t.TempDir()
	readEverywhere(t, append(features().writeAll(t, dir, some()), sparseTree().writeAll(t, dir, sparse())...))
}

// TestKernelsReadAll mounts images of the tree in all variants.
func TestKernelsReadAll(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	readEverywhere(t, features().writeAll(t, t.TempDir(), all()))
}

// TestKernelsReadLarge mounts images with large files and directories.
func TestKernelsReadLarge(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	readEverywhere(t, large().writeAll(t, t.TempDir(), some()))
}

// writeAll writes an image in each of the variants.
func (t *tree) writeAll(tb testing.TB, dir string, variants []variant) (images []checked) {
	tb.Helper()
	want := t.seen()
	for i, v := range variants {
		// In every second image the contents are read from their end.
		image := checked{Image: vmtest.Image{Name: v.name, Backward: i%2 == 1}, want: want}
		image.path, image.blobs = t.write(tb, dir, v.name, v)
		images = append(images, image)
	}
	return images
}

// readEverywhere has the images read in each kernel.
func readEverywhere(t *testing.T, images []checked) {
	t.Helper()
	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			t.Parallel()
			seen := boot(t, kernel, images)
			for _, image := range images {
				s := seen[image.Name]
				if s.Mount != "" || s.Walk != "" {
					t.Errorf("%s: %s%s", image.Name, s.Mount, s.Walk)
				}
				if diff := cmp.Diff(image.want, s.Trees); diff != "" {
					t.Errorf("%s (-want +got):\n%s", image.Name, diff)
				}
			}
		})
	}
}

// TestKernelsSee mounts images that were changed: they are refused, or seen to be
// others.
func TestKernelsSee(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	tree := newTree()
	const content = "some content"
	tree.file("changed/file", []byte(content))
	tree.file("same/file", []byte("other content"))
	dir := t.TempDir()
	path, _ := tree.write(t, dir, "good", variant{})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const super, checksum, compat, incompat = 1024, 1024 + 4, 1024 + 8, 1024 + 80
	const unknown = 1 << 30
	set := func(image []byte, at int, bits uint32) {
		le := binary.LittleEndian
		le.PutUint32(image[at:], le.Uint32(image[at:])|bits)
		setChecksum(image)
	}
	tests := []struct {
		name    string
		change  func(image []byte)
		mounted bool
		same    bool
	}{
		{"no change", setChecksum, true, true},
		{"content", func(image []byte) { image[bytes.Index(image, []byte(content))]++ }, true, false},
		{"unknown compatible feature", func(image []byte) { set(image, compat, unknown) }, true, true},
		{"unknown incompatible feature", func(image []byte) { set(image, incompat, unknown) }, false, false},
		{"checksum", func(image []byte) { image[checksum]++ }, false, false},
		{"magic", func(image []byte) { image[super]++ }, false, false},
	}
	var images []checked
	for _, test := range tests {
		image := bytes.Clone(good)
		test.change(image)
		path := filepath.Join(dir, test.name)
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		images = append(images, checked{Image: vmtest.Image{Name: test.name}, path: path})
	}
	want := tree.seen()
	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			t.Parallel()
			seen := boot(t, kernel, images)
			for _, test := range tests {
				s := seen[test.name]
				t.Logf("%s: %s", test.name, s.Mount)
				if mounted := s.Mount == ""; mounted != test.mounted {
					t.Errorf("%s: mounted: %t", test.name, mounted)
				}
				if !test.mounted {
					continue
				}
				if s.Walk != "" || s.Trees["same"] != want["same"] {
					t.Errorf("%s: what was not changed is %+v, %s", test.name, s.Trees["same"], s.Walk)
				}
				if same := s.Trees["changed"] == want["changed"]; same != test.same {
					t.Errorf("%s: %+v, the same: %t", test.name, s.Trees["changed"], same)
				}
			}
		})
	}
}

// setChecksum sets the checksum of the superblock, which covers it and the rest
// of its block.
func setChecksum(image []byte) {
	const super, checksum, block = 1024, 1024 + 4, 4096
	le := binary.LittleEndian
	le.PutUint32(image[checksum:], 0)
	// The kernel's CRC begins with all ones and is not inverted at the end.
	sum := ^crc32.Checksum(image[super:block], crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(image[checksum:], sum)
}
