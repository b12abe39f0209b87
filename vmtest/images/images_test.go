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
}

// some are the variants in which each part of the format is there once.
func some() []variant {
	lz4 := func(name string, o erofs.Options) variant {
		o.Compress = true
		return variant{name, o}
	}
	const kib = 1024
	return []variant{
		{"plain", erofs.Options{}},
		{"dax", erofs.Options{DAX: true}},
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
	vs := []variant{{"plain", erofs.Options{}}, {"dax", erofs.Options{DAX: true}}}
	for _, level := range []lz4hc.Level{lz4hc.Fast, lz4hc.Max} {
		for _, pcluster := range []int{4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
			for i := range 12 {
				o := erofs.Options{
					Compress: true, Level: level, PclusterBytes: pcluster, Ztailpacking: i&1 != 0, Dedupe: i&2 != 0,
					PackBytes: [...]int64{0, 5000, 64 << 10}[i>>2],
				}
				name := fmt.Sprintf("%dk-%d-ztail=%t-dedupe=%t-pack=%d", pcluster>>10, level, o.Ztailpacking, o.Dedupe, o.PackBytes)
				vs = append(vs, variant{name, o})
			}
		}
	}
	return vs
}

// TestKernelsRead mounts images of a tree that has everything, in each kernel.
// Images that were changed are refused, or seen to be others.
func TestKernelsRead(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	wanted, err := fixtures.Wanted()
	if err != nil {
		t.Fatal(err)
	}
	variants := some()
	if wanted == fixtures.All {
		variants = all()
	}
	tree := features()
	var images []checked
	for i, v := range variants {
		// In every second image the contents are read from their end.
		image := vmtest.Image{Name: v.name, Backward: i%2 == 1}
		images = append(images, checked{image, tree.write(t, work, v.name, v.Options)})
	}
	good := len(images)

	change := func(name string, change func(image []byte)) {
		image, err := os.ReadFile(images[0].path)
		if err != nil {
			t.Fatal(err)
		}
		change(image)
		path := filepath.Join(work, name)
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		images = append(images, checked{vmtest.Image{Name: name}, path})
	}
	change("other content", func(image []byte) {
		at := bytes.Index(image, []byte("down here"))
		if at < 0 {
			t.Fatal("the content is not in the image")
		}
		image[at]++
	})
	le := binary.LittleEndian
	const super, checksum, compat, incompat = 1024, 1024 + 4, 1024 + 8, 1024 + 80
	const unknown = 1 << 30
	change("unknown compatible feature", func(image []byte) {
		le.PutUint32(image[compat:], le.Uint32(image[compat:])|unknown)
		setChecksum(image)
	})
	change("unknown incompatible feature", func(image []byte) {
		le.PutUint32(image[incompat:], le.Uint32(image[incompat:])|unknown)
		setChecksum(image)
	})
	change("bad checksum", func(image []byte) { image[checksum]++ })
	change("bad magic", func(image []byte) { image[super]++ })

	want := tree.seen()
	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			seen, _ := boot(t, kernel, images)
			for i, image := range images {
				s, ok := seen[image.Name]
				switch {
				case !ok:
					t.Errorf("%s: not looked at", image.Name)
				case i < good || image.Name == "unknown compatible feature":
					if s.Mount != "" || s.Walk != "" {
						t.Errorf("%s: %s%s", image.Name, s.Mount, s.Walk)
					}
					if diff := cmp.Diff(want, s.Trees); diff != "" {
						t.Errorf("%s (-want +got):\n%s", image.Name, diff)
					}
				case image.Name == "other content":
					if s.Mount != "" || s.Walk != "" {
						t.Errorf("%s: %s%s", image.Name, s.Mount, s.Walk)
					}
					for top := range want {
						if same := s.Trees[top] == want[top]; same != (top != "deep") {
							t.Errorf("%s: %s is the same: %t", image.Name, top, same)
						}
					}
				case s.Mount == "":
					t.Errorf("%s: it is mounted", image.Name)
				default:
					t.Logf("%s: %s", image.Name, s.Mount)
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
