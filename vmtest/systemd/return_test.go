package systemd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// pmemBoot is a boot from reserved memory.
type pmemBoot struct {
	done     *vmtest.Done
	returned []string // what storage-init said in the booted system of the memory
}

// bootPmem boots a build from a region of its own, besides other persistent
// memory, in a guest that can use 1024 MiB without any of it.
func bootPmem(t *testing.T, b built, backend bootconf.Backend, words string, regions ...vmtest.Pmem) pmemBoot {
	t.Helper()
	var boot pmemBoot
	reservedMiB := 0
	for _, p := range regions {
		reservedMiB += p.SizeMiB
	}
	m := vmtest.Machine{
		Kernel: b.kernel.Image, Initrd: filepath.Join(b.dir, b.Mini.File), MemoryMiB: 1024 + reservedMiB, Pmem: regions,
		Append:  append([]string{"root=/dev/vda", bootconf.CmdlinePrefix + "backend=" + string(backend)}, strings.Fields(words)...),
		Drives:  []vmtest.Drive{{Path: fixtures.Path(t, rootDisk), Snapshot: true}},
		Expect:  []vmtest.Milestone{vmtest.HandedOver, vmtest.MultiUser},
		Timeout: 10 * time.Minute,
		OnLine: func(l vmtest.Line) {
			for _, start := range []string{"returned ", "the image's memory stays "} {
				if _, text, ok := strings.Cut(l.Text, bootconf.LogPrefix+start); ok {
					boot.returned = append(boot.returned, start+strings.TrimSpace(text))
				}
			}
		},
	}
	r, err := vmtest.Run(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	boot.done = r.Done
	if len(r.Done.ErofsSysfs) > 0 || len(r.Done.FailedUnits) > 0 {
		t.Errorf("EROFS filesystems %q, failed units %q", r.Done.ErofsSysfs, r.Done.FailedUnits)
	}
	t.Logf("usable %d of %d kB: %q", r.Done.MemUsableKB, r.Done.MemTotalKB, boot.returned)
	return boot
}

// TestReturnMemory boots from reserved memory and looks for it in the booted
// system. The negative twins of a good boot keep it, and boot as well.
func TestReturnMemory(t *testing.T) {
	for _, test := range []struct {
		name, initramfs string
		least           fixtures.Boots
		backend         bootconf.Backend
		args            []string
	}{
		{"dracut", "dracut-6.1.img", fixtures.Some, bootconf.Pmem, []string{"--image-compress", fastImage}},
		{"dracut", "dracut-6.1.img", fixtures.All, bootconf.PmemDAX, []string{"--image-compress", "none"}},
		{"initramfs-tools", "initramfs-tools-6.1.img", fixtures.Some, bootconf.Pmem, []string{"--image-compress", fastImage}},
	} {
		t.Run(test.name+"/"+string(test.backend), func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			b := build(t, "kernel-6.1", test.initramfs, append([]string{"--backend", string(test.backend)}, test.args...)...)
			region := vmtest.Pmem{Path: b.image(), AddrMiB: 510, SizeMiB: int(b.Image.Region.Size >> 20)}

			kept := bootPmem(t, b, test.backend, "initoverlayfs.return_memory=no", region)
			want := []string{"the image's memory stays reserved: return_memory is no"}
			if !slices.Equal(kept.returned, want) {
				t.Errorf("with return_memory no it says %q, want %q", kept.returned, want)
			}
			back := bootPmem(t, b, test.backend, "", region)
			whole := (b.Image.Region.Size - bootconf.RegionHead) >> 10
			if got := back.done.MemTotalKB - kept.done.MemTotalKB; got != whole {
				t.Errorf("%d kB come back, want %d: %q", got, whole, back.returned)
			}
			if len(back.returned) != 1 || !strings.HasPrefix(back.returned[0], "returned ") {
				t.Errorf("it says %q", back.returned)
			}
			// Each page of what came back is described in 64 bytes.
			const describedKB, noiseKB = 64, 1024
			if got, least := back.done.MemUsableKB-kept.done.MemUsableKB, whole-whole/4*describedKB>>10-noiseKB; got < least {
				t.Errorf("%d kB more are usable, want at least %d", got, least)
			}
		})
	}
}

// TestReturnPartly boots from a region that does not begin where it should,
// besides a region that would come back whole, but holds something else.
func TestReturnPartly(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	b := build(t, "kernel-6.1", "dracut-6.1.img", "--backend", "pmem", "--image-compress", fastImage)
	other := filepath.Join(t.TempDir(), "other.img")
	if err := os.WriteFile(other, []byte(strings.Repeat("something else\n", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	left := vmtest.Pmem{Path: other, AddrMiB: 894, SizeMiB: 130}
	size := int(b.Image.Region.Size>>20) - bootconf.RegionHead>>20
	partly := bootPmem(t, b, bootconf.Pmem, "", vmtest.Pmem{Path: b.image(), AddrMiB: 512, SizeMiB: size + 128}, left)
	if len(partly.returned) != 1 || !strings.HasPrefix(partly.returned[0], "returned ") || !strings.HasSuffix(partly.returned[0], "below a multiple of 128 MiB") {
		t.Errorf("it says %q", partly.returned)
	}
	none := bootPmem(t, b, bootconf.Pmem, "", vmtest.Pmem{Path: b.image(), AddrMiB: 514, SizeMiB: size}, left)
	if len(none.returned) != 1 || !strings.Contains(none.returned[0], "stays reserved: region ") {
		t.Errorf("it says %q", none.returned)
	}
	// The kernel's own tables grow with the memory that it has to describe.
	got, want := partly.done.MemTotalKB-none.done.MemTotalKB, int64(size)<<10
	if got < want-4096 || got > want {
		t.Errorf("%d kB come back, want %d", got, want)
	}
}
