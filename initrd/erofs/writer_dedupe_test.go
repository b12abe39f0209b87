package erofs_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// dedupeLayouts are options with deduplication.
var dedupeLayouts = map[string]erofs.Options{
	"4k":        {Compress: true, Level: lz4hc.Fast, PclusterBytes: 4 << 10, Dedupe: true},
	"16k tail":  {Compress: true, Level: lz4hc.Fast, PclusterBytes: 16 << 10, Ztailpacking: true, Dedupe: true},
	"64k pack":  {Compress: true, Level: lz4hc.Default, PclusterBytes: 64 << 10, Ztailpacking: true, PackBytes: 64 << 10, Dedupe: true},
	"256k pack": {Compress: true, Level: lz4hc.Fast, PclusterBytes: 256 << 10, PackBytes: 1 << 40, Dedupe: true},
}

// join makes a content of parts.
func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// copiesTrees have parts of files in common. stored is how many of their bytes
// differ, none of which LZ4 makes smaller than to 3/5.
var copiesTrees = map[string]func() (tr *testTree, stored int){
	"prefixes": func() (*testTree, int) {
		tr := newTestTree()
		common, stored := text(1, 300_000), 300_000
		for i := range 6 {
			own := text(uint64(i+2), 10_000*i+3)
			tr.file(fmt.Sprintf("%d", i), join(common[:300_000-i*7001], own))
			stored += len(own)
		}
		return tr, stored
	},
	"suffixes": func() (*testTree, int) {
		tr := newTestTree()
		common, stored := text(1, 300_000), 300_000
		for i := range 6 {
			own := text(uint64(i+2), 10_000*i+3)
			tr.file(fmt.Sprintf("%d", i), join(own, common[i*7001:]))
			stored += len(own)
		}
		return tr, stored
	},
	"shifted": func() (*testTree, int) {
		tr := newTestTree()
		common, stored := text(1, 1_000_000), 1_000_000
		for i, n := range []int{0, 1, 255, 4095, 4096, 4097, 8191, 8192, 12_345} {
			tr.file(fmt.Sprintf("%d", i), join(random(uint64(n), n), common, text(uint64(n), 100)))
			stored += n
		}
		return tr, stored
	},
	"plain": func() (*testTree, int) {
		tr := newTestTree()
		common, stored := random(1, 500_000), 500_000
		for i, n := range []int{0, 1, 4096, 5000, 8191, 12_287, 16_385} {
			tr.file(fmt.Sprintf("%d", i), join(random(uint64(n+2), n), common[n/3:], text(uint64(n), i*1000)))
			stored += n + i*1000
		}
		return tr, stored
	},
	"mixed": func() (*testTree, int) {
		tr := newTestTree()
		var common []byte
		for i := range 40 {
			common = append(common, text(uint64(i), 1000+i*777)...)
			common = append(common, random(uint64(i), 500+i*999)...)
		}
		for i, n := range []int{0, 3, 40_000, 300_000, 600_000} {
			tr.file(fmt.Sprintf("%d", i), join(common[:n], random(uint64(i), 300), common[n:]))
		}
		return tr, len(common) + 1500
	},
	"itself": func() (*testTree, int) {
		tr := newTestTree()
		part := text(1, 200_000)
		tr.file("repeated", join(part, part, part, part[:100_001]))
		tr.file("with rests", join(part[:100_000], text(2, 50_000), part, random(3, 10_000), part[50_000:]))
		return tr, 200_000 + 60_000
	},
	"near duplicates": func() (*testTree, int) {
		tr := newTestTree()
		data := text(1, 2_000_000)
		tr.file("0", data)
		for i := 1; i < 5; i++ {
			data = bytes.Clone(data)
			for at := i * 1009; at < len(data); at += 300_000 {
				data[at] ^= 0x55
			}
			tr.file(fmt.Sprintf("%d", i), data)
		}
		return tr, 2_000_000 + 4*7*32_000
	},
	"packed": func() (*testTree, int) {
		tr := newTestTree()
		stored := 0
		for i := range 8 {
			data := text(uint64(i), 60_000)
			stored += len(data)
			for k := range 4 {
				tr.file(fmt.Sprintf("%d/%d", k, i), join(text(uint64(100*k+i), 2000), data))
				stored += 2000
			}
		}
		return tr, stored
	},
	"pieces": func() (*testTree, int) {
		tr := newTestTree()
		data := join(text(1, pieceSize+5000), random(2, pieceSize), text(3, 1_000_000))
		tr.file("a", data)
		tr.file("b", join(random(4, 1), data))
		tr.file("c", data[pieceSize/2:])
		tr.file("d", join(text(5, pieceSize-100), data[100_000:300_000], text(6, pieceSize-7)))
		return tr, len(data) + 2*pieceSize
	},
	"zeros": func() (*testTree, int) {
		tr := newTestTree()
		tr.file("a", make([]byte, 3*pieceSize))
		tr.file("b", join(random(1, 100), make([]byte, pieceSize)))
		tr.file("c", bytes.Repeat([]byte("0123456789abcdef"), 200_000))
		return tr, 100_000
	},
}

func TestWriterDedupe(t *testing.T) {
	for name, tree := range copiesTrees {
		for layout, o := range dedupeLayouts {
			t.Run(name+"/"+layout, func(t *testing.T) {
				t.Parallel()
				tr, stored := tree()
				image := tr.write(t, o)
				if most := stored*11/10 + 400_000; len(image) > most {
					t.Errorf("%d bytes, more than %d", len(image), most)
				}
				o.Workers = 1
				for ; o.Workers <= 4; o.Workers++ {
					if !bytes.Equal(tr.write(t, o), image) {
						t.Errorf("with %d workers the image differs", o.Workers)
					}
				}
				want := tr.infos()
				checkReader(t, image, want)
				for _, u := range allUtils(t) {
					if u.version >= "1.9" {
						t.Run("fsck "+u.version, func(t *testing.T) { checkFsck(t, u, image, want) })
					}
				}
				t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want) })
			})
		}
	}
}

// Contents that are alike are packed side by side, but only where their names
// say so.
func TestWriterSimilar(t *testing.T) {
	size := func(name func(release, file int) string) int {
		tr := newTestTree()
		for i := range 40 {
			data := text(uint64(i), 20_000)
			for release := range 3 {
				data = bytes.Clone(data)
				data[release*5000] ^= 0xff
				tr.file(name(release, i), data)
			}
		}
		image := tr.write(t, erofs.Options{Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10, PackBytes: 64 << 10})
		checkReader(t, image, tr.infos())
		return len(image)
	}
	equal := size(func(release, file int) string { return fmt.Sprintf("%d/%d", release, file) })
	other := size(func(release, file int) string { return fmt.Sprintf("%d/%d-%d", release, release, file) })
	if equal > other*6/10 {
		t.Errorf("with equal names %d bytes, else %d", equal, other)
	}
}
