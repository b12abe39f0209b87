package main

import (
	"encoding/binary"
	"testing"

	"initoverlayfs/initrd/bootconf"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "4K": 4096, "512M": 512 << 20, "3G": 3 << 30,
		"": 0, "0": 0, "-1": 0, "M": 0, "1MM": 0, "1m": 0, "1T": 0, "1.5G": 0, "9223372036854775807G": 0,
	} {
		got, err := parseSize(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

// TestRegion places images of several sizes: the region suits to be given back,
// and nothing overlaps.
func TestRegion(t *testing.T) {
	const mib = 1 << 20
	arm64 := make([]byte, 64)
	binary.LittleEndian.PutUint64(arm64[16:], 40*mib)
	copy(arm64[56:], "ARM\x64")
	for _, test := range []struct {
		name          string
		arch          string
		head          []byte
		base          int64
		load          int64 // -1: chosen
		memoryMiB     int
		mini, image   int64
		wantMiB       int64 // address of the region
		wantRegionMiB int64
	}{
		{"small", "amd64", bzImage(), 0, -1, 512, 1 * mib, 1 * mib, 126, 2},
		{"usual", "amd64", bzImage(), 0, -1, 512, 1 * mib, 50 * mib, 126, 130},
		{"full", "amd64", bzImage(), 0, -1, 512, 1 * mib, 130 * mib, 126, 130},
		{"one more", "amd64", bzImage(), 0, -1, 512, 1 * mib, 130*mib + 1, 126, 258},
		{"large initramfs", "amd64", bzImage(), 0, -1, 1024, 100 * mib, 50 * mib, 254, 130},
		{"chosen", "amd64", bzImage(), 0, 510 * mib, 1024, 1 * mib, 50 * mib, 510, 130},
		{"chosen badly", "amd64", bzImage(), 0, 512 * mib, 1024, 1 * mib, 50 * mib, 512, 128},
		{"too little memory", "amd64", bzImage(), 0, -1, 319, 1 * mib, 50 * mib, 0, 0},
		{"just enough memory", "amd64", bzImage(), 0, -1, 320, 1 * mib, 50 * mib, 126, 130},
		{"over the kernel", "amd64", bzImage(), 0, 30 * mib, 512, 1 * mib, 50 * mib, 0, 0},
		{"not a kernel", "amd64", arm64, 0, -1, 512, 1 * mib, 50 * mib, 0, 0},
		{"arm64", "arm64", arm64, 1024 * mib, -1, 1024, 1 * mib, 50 * mib, 1024 + 382, 130},
		{"not an Image", "arm64", bzImage(), 1024 * mib, -1, 1024, 1 * mib, 50 * mib, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			doc := embeddedJSON{MemoryMiB: test.memoryMiB, Manifest: &bootconf.Manifest{
				Mini: bootconf.ManifestMini{Size: test.mini}, Image: bootconf.ManifestImage{Size: test.image},
			}}
			err := doc.place(boards[test.arch], test.head, 8*mib, test.base, test.load)
			if (err == nil) != (test.wantMiB > 0) {
				t.Fatalf("error = %v, want one: %t", err, test.wantMiB == 0)
			}
			if err != nil {
				return
			}
			if got := doc.Region.at / mib; got != test.wantMiB || doc.Region.at%mib != 0 {
				t.Errorf("the region begins at %s, want %d MiB", doc.Region.Address, test.wantMiB)
			}
			if got := doc.Region.Size / mib; got != test.wantRegionMiB {
				t.Errorf("the region has %d MiB, want %d", got, test.wantRegionMiB)
			}
			if doc.Image.at != doc.Region.at || doc.Image.end() > doc.Region.end() {
				t.Errorf("the image lies at %s, the region at %s", doc.Image.Address, doc.Region.Address)
			}
			if doc.Kernel.end() > doc.Initrd.at || doc.Initrd.end() > doc.Region.at {
				t.Errorf("overlap: kernel %+v, initramfs %+v, region %+v", doc.Kernel, doc.Initrd, doc.Region)
			}
		})
	}
}
