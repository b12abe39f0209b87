package bootconf

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mebibyte = 1 << 20

func TestRegionFor(t *testing.T) {
	for _, test := range []struct {
		size, want int64
		memmap     string
	}{
		{1, 130 * mebibyte, "memmap=130M!382M"},
		{130 * mebibyte, 130 * mebibyte, "memmap=130M!382M"},
		{130*mebibyte + 1, 258 * mebibyte, "memmap=258M!382M"},
		{400 * mebibyte, 514 * mebibyte, "memmap=514M!382M"},
	} {
		r := RegionFor(test.size)
		if want := (ManifestRegion{test.want, MemoryBlock, RegionHead, test.memmap}); r != want {
			t.Errorf("RegionFor(%d) = %+v, want %+v", test.size, r, want)
		}
		regions := MemmapRegions(r.Memmap)
		if len(regions) != 1 || regions[0].Size != r.Size || regions[0].Size < test.size {
			t.Fatalf("%s reserves %+v", r.Memmap, regions)
		}
		// What the word reserves comes back, but for its begin.
		if part, ok := regions[0].Returnable(MemoryBlock); !ok || part.Size != r.Size-RegionHead {
			t.Errorf("of %s comes back %+v", r.Memmap, part)
		}
	}
}

func TestReturnable(t *testing.T) {
	for _, test := range []struct{ start, size, block, wantStart, wantSize int64 }{
		{510, 130, 128, 512, 128},
		{510, 129, 128, 0, 0},
		{511, 130, 128, 512, 128},
		{512, 128, 128, 0, 0},
		{512, 256, 128, 640, 128},
		{500, 400, 128, 512, 384},
		{2046, 2050, 2048, 2048, 2048},
		{510, 130, 2048, 0, 0},
	} {
		part, ok := Region{test.start * mebibyte, test.size * mebibyte}.Returnable(test.block * mebibyte)
		if ok != (test.wantSize > 0) || ok && part != (Region{test.wantStart * mebibyte, test.wantSize * mebibyte}) {
			t.Errorf("%d MiB at %d MiB: %+v, %v; want %d MiB at %d MiB", test.size, test.start, part, ok, test.wantSize, test.wantStart)
		}
	}
}

func TestMemmapRegions(t *testing.T) {
	for cmdline, want := range map[string][]Region{
		"":                            nil,
		"quiet memmap=130M!510M ro":   {{510 * mebibyte, 130 * mebibyte}},
		"memmap=1G!4g,64K!0x40000000": {{4 << 30, 1 << 30}, {1 << 30, 64 << 10}},
		"memmap=4096!8192":            {{8192, 4096}},
		// Memory of other kinds, and what the kernel does not take.
		"memmap=64M$512M memmap=64M#512M memmap=64M@512M memmap=exactmap": nil,
		"memmap=64M%512M-1+2 memmap= memmap memmap=!512M memmap=64M!":     nil,
		"memmap=xM!512M memmap=64M!x memmap=-1M!512M memmap=0!512M":       nil,
		"memmap=9223372036854775807K!0":                                   nil,
	} {
		if diff := cmp.Diff(want, MemmapRegions(cmdline)); diff != "" {
			t.Errorf("MemmapRegions(%q) (-want +got):\n%s", cmdline, diff)
		}
	}
}
