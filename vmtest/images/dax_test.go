package images

import (
	"testing"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// TestDAXMapsHugePages maps files of an image in persistent memory: one of 2 MiB
// and more is aligned in the image, so the kernel maps each whole 2 MiB of it by
// one fault. Of smaller files, and of the rest of a large one, it maps pages of
// 4 KiB.
func TestDAXMapsHugePages(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	const page, huge = 4096, 2 << 20
	tree := newTree()
	// Something before the large ones, so that they do not lie at the begin.
	tree.file("a", tree.random(3*page+1))
	tree.file("large", tree.random(3*huge))
	tree.file("rest", tree.random(huge+5*page))
	tree.file("small", tree.random(huge-page))
	image, _ := tree.write(t, t.TempDir(), "dax", variant{Options: erofs.Options{DAX: true}})

	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			t.Parallel()
			m := vmtest.Machine{Pmem: []vmtest.Pmem{{Path: image, AddrMiB: 256}}}
			r := run(t, kernel, m, nil, "dax_faults:/dev/pmem0")
			var found map[string]struct {
				Pages   int
				Faults  int
				Results map[string]int
			}
			if err := r.Done.Check("dax_faults", &found); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]struct{ pages, faults, huge int }{
				"a":     {4, 4, 0},
				"large": {3 * huge / page, 3, 3},
				"rest":  {huge/page + 5, 1 + 5, 1},
				"small": {huge/page - 1, huge/page - 1, 0},
			} {
				got := found[name]
				t.Logf("%s: %+v", name, got)
				if got.Pages != want.pages || got.Faults != want.faults || got.Results["NOPAGE"] != want.huge {
					t.Errorf("%s: %+v, want %+v", name, got, want)
				}
			}
		})
	}
}
