package bootconf

import (
	"errors"
	"strconv"
	"strings"
)

// Granularities of memory that becomes RAM again, in bytes.
const (
	// MemoryBlock is what a 64-bit x86 machine of up to 64 GiB adds to its RAM
	// at once. Larger ones can have larger blocks.
	MemoryBlock = 128 << 20
	// RegionHead is what the kernel's bookkeeping takes at the begin of a region.
	RegionHead = 2 << 20
)

// ManifestRegion is the memory that an image needs to be given back whole as RAM:
// a region of Size that begins Below a multiple of Align. All are in bytes.
type ManifestRegion struct {
	Size  int64 `json:"size"`
	Align int64 `json:"align"`
	Below int64 `json:"below"`
	// Memmap is the word for the kernel's command line, for the lowest such
	// region at or above 256 MiB; any other address that suits will do.
	Memmap string `json:"memmap"`
}

// lowestRegion is above what a kernel and its initramfs take at their start.
const lowestRegion = 2 * MemoryBlock

// RegionFor gives the region for an image of a size in bytes.
func RegionFor(imageSize int64) ManifestRegion {
	r := ManifestRegion{Align: MemoryBlock, Below: RegionHead}
	r.Size = max(1, (imageSize-RegionHead+MemoryBlock-1)/MemoryBlock)*MemoryBlock + RegionHead
	r.Memmap = Region{lowestRegion + MemoryBlock - RegionHead, r.Size}.Word()
	return r
}

// Region is a piece of physical memory, in bytes.
type Region struct{ Start, Size int64 }

// Word is the kernel's word that sets the region aside as persistent memory.
func (r Region) Word() string {
	return "memmap=" + mebibytes(r.Size) + "!" + mebibytes(r.Start)
}

func mebibytes(n int64) string {
	if n%(1<<20) == 0 {
		return strconv.FormatInt(n>>20, 10) + "M"
	}
	return strconv.FormatInt(n, 10)
}

// Returnable gives the part of the region that can become RAM, whole blocks of
// memory behind the bookkeeping, and whether there is any.
func (r Region) Returnable(block int64) (part Region, ok bool) {
	// What comes first is 8 KiB, and then what is missing to a multiple of
	// RegionHead: nd_pfn_init, drivers/nvdimm/pfn_devs.c.
	const superblocks = 8 << 10
	start := (r.Start + superblocks + RegionHead - 1) / RegionHead * RegionHead
	start = (start + block - 1) / block * block
	end := (r.Start + r.Size) / block * block
	return Region{start, end - start}, end > start
}

// MemmapRegions gives the regions that a kernel command line sets aside as
// persistent memory, memmap=SIZE!START. Other forms of the word are passed over.
func MemmapRegions(cmdline string) []Region {
	var list []Region
	for word := range Words(cmdline) {
		value, ok := strings.CutPrefix(word, "memmap=")
		if !ok {
			continue
		}
		for item := range strings.SplitSeq(value, ",") {
			size, start, ok := strings.Cut(item, "!")
			if !ok {
				continue
			}
			s, err := parseMemory(size)
			if err != nil {
				continue
			}
			at, err := parseMemory(start)
			if err == nil && s > 0 {
				list = append(list, Region{at, s})
			}
		}
	}
	return list
}

// parseMemory reads a number as the kernel's memparse does.
func parseMemory(s string) (int64, error) {
	shift := 0
	if s != "" {
		switch s[len(s)-1] {
		case 'K', 'k':
			shift = 10
		case 'M', 'm':
			shift = 20
		case 'G', 'g':
			shift = 30
		case 'T', 't':
			shift = 40
		}
	}
	if shift > 0 {
		s = s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0, errors.New("bad size " + strconv.Quote(s))
	}
	return n << shift, nil
}
