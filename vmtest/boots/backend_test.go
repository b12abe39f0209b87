package boots

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest"
)

const onBootLabel = "bootfs LABEL=boot\n"

// backends are the builds of the single backends. Each mini-initramfs is packed
// in another way.
var backends = []struct {
	backend bootconf.Backend
	spec    spec
}{
	{bootconf.Block, spec{config: "backend block\n", compress: compress.XZ}},
	{bootconf.Loop, spec{config: "backend loop\n" + onBootLabel, compress: compress.Zstd}},
	{bootconf.File, spec{config: "backend file\n" + onBootLabel, kernel: "kernel-6.12"}},
	{bootconf.Pmem, spec{config: "backend pmem\n", compress: compress.LZ4}},
	{bootconf.PmemDAX, spec{config: "backend pmem-dax\n", dax: true}},
	{bootconf.Embedded, spec{config: "backend embedded\n", compress: compress.Gzip}},
	{bootconf.RAM, spec{config: "backend ram\n" + onBootLabel}},
}

// attach gives a machine the image as the backend needs it.
func (b *build) attach(tb testing.TB, m *vmtest.Machine, backend bootconf.Backend) {
	tb.Helper()
	switch {
	case backend == bootconf.Pmem || backend == bootconf.PmemDAX:
		m.Pmem = append(m.Pmem, pmem(b.image))
	case backend == bootconf.Block:
		m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(tb, b.imagePartition())))
	case backend.OnBootfs():
		m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(tb, b.filePartition("boot"))))
	}
}

// TestBackends boots through each backend, and looks at how the image's big
// file is read.
func TestBackends(t *testing.T) {
	t.Parallel()
	for _, test := range backends {
		t.Run(string(test.backend), func(t *testing.T) {
			t.Parallel()
			b := test.spec.build(t)
			m := b.machine(t)
			b.attach(t, &m, test.backend)
			checks := []string{growthOfBig, "loop_dio"}
			if test.backend == bootconf.PmemDAX || test.backend == bootconf.Pmem {
				checks = append(checks, "dax:"+bigFile)
			}
			r := b.boot(t, m, test.backend, checks...)

			if test.backend == bootconf.PmemDAX {
				if growth := cachedGrowth(t, r); growth >= 1024 {
					t.Errorf("the page cache grew by %d kB, want less than 1 MB", growth)
				}
				if !checked[bool](t, r, "dax") {
					t.Errorf("%s is not DAX", bigFile)
				}
			} else {
				wantCachedOnce(t, r)
			}
			if test.backend == bootconf.Pmem && checked[bool](t, r, "dax") {
				t.Errorf("%s is DAX without having been asked for", bigFile)
			}

			loops := checked[map[string]map[string]string](t, r, "loop_dio")
			uses := map[bootconf.Backend]bool{bootconf.Loop: true, bootconf.Embedded: true, bootconf.RAM: true}
			if want := uses[test.backend]; want != (len(loops) == 1) {
				t.Errorf("loop devices = %v, want one: %v", loops, want)
			}
			for name, device := range loops {
				// A file in memory has no direct I/O and needs none.
				if want := test.backend == bootconf.Loop; (device["dio"] == "1") != want {
					t.Errorf("%s: dio = %q, want 1: %v", name, device["dio"], want)
				}
				if device["autoclear"] != "1" {
					t.Errorf("%s: autoclear = %q, want 1", name, device["autoclear"])
				}
			}
		})
	}
}

// growthOfBig is the check of the guest that reads the big file.
const growthOfBig = "cached_growth:" + bigFile

// cachedGrowth is by how many kB the page cache grew when the guest read the big
// file.
func cachedGrowth(tb testing.TB, r *vmtest.Result) int64 {
	tb.Helper()
	growth := checked[struct {
		Bytes    int64 `json:"bytes"`
		GrowthKB int64 `json:"growth_kb"`
	}](tb, r, "cached_growth")
	if growth.Bytes != bigBytes {
		tb.Errorf("%s has %d bytes, want %d", bigFile, growth.Bytes, bigBytes)
	}
	return growth.GrowthKB
}

// wantCachedOnce fails where what EROFS reads is cached below it, too. EROFS itself
// keeps clusters that are used only in part: here half as much again.
func wantCachedOnce(tb testing.TB, r *vmtest.Result) {
	tb.Helper()
	if growth := cachedGrowth(tb, r); growth < bigBytes/1024*9/10 || growth > bigBytes/1024*17/10 {
		tb.Errorf("the page cache grew by %d kB, want the file's %d, and half as much again at most", growth, bigBytes/1024)
	}
}

// TestAuto boots where all backends of a list could serve, and where only the
// last one can: then the reasons of the others are in the record.
func TestAuto(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend auto:pmem-dax,pmem,block,loop\n" + onBootLabel, dax: true}.build(t)
	for _, test := range []struct {
		name    string
		present []bootconf.Backend
		want    []bootconf.Attempt
	}{
		{
			"all", []bootconf.Backend{bootconf.PmemDAX, bootconf.Loop},
			[]bootconf.Attempt{{Backend: bootconf.PmemDAX}},
		},
		{
			"last", []bootconf.Backend{bootconf.Loop},
			[]bootconf.Attempt{
				{Backend: bootconf.PmemDAX, Error: "pmem-dax: no pmem device with an EROFS image"},
				{Backend: bootconf.Pmem, Error: "pmem: no pmem device with an EROFS image"},
				{Backend: bootconf.Embedded, Error: "embedded: open /initoverlayfs.img: no such file or directory"},
				{Backend: bootconf.Block, Error: "block: /dev/vda1: not an EROFS image"},
				{Backend: bootconf.Loop},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// With the embedded backend the build itself would hold the image.
			m := b.machine(t, "initoverlayfs.backend=auto:pmem-dax,pmem,embedded,block,loop")
			for _, backend := range test.present {
				b.attach(t, &m, backend)
			}
			winner := test.want[len(test.want)-1].Backend
			record := b.checkRecord(t, b.boot(t, m, winner), winner)
			if diff := cmp.Diff(test.want, record.Attempts); diff != "" {
				t.Errorf("attempts (-want +got):\n%s", diff)
			}
		})
	}
}

// paddedImage is the image in a file whose size suits a device of persistent
// memory.
func (b *build) paddedImage(tb testing.TB) (path string, sizeMiB int) {
	tb.Helper()
	image, err := os.ReadFile(b.image)
	if err != nil {
		tb.Fatal(err)
	}
	sizeMiB = (len(image) + vmtest.PmemAlign - 1) / vmtest.PmemAlign * vmtest.PmemAlign >> 20
	path = filepath.Join(tb.TempDir(), "pmem.img")
	if err := os.WriteFile(path, append(image, make([]byte, sizeMiB<<20-len(image))...), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path, sizeMiB
}

// TestVirtioPmem boots with DAX from persistent memory that is no part of the
// guest's own.
func TestVirtioPmem(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend pmem-dax\n", storage: "virtio-pmem", dax: true}.build(t)
	path, _ := b.paddedImage(t)
	m := b.machine(t)
	m.Pmem = append(m.Pmem, vmtest.Pmem{Path: path, Virtio: true})
	if r := b.boot(t, m, bootconf.PmemDAX, "dax:"+bigFile); !checked[bool](t, r, "dax") {
		t.Errorf("%s is not DAX", bigFile)
	}
}

// TestNVDIMM has persistent memory without DAX: the namespace of an NVDIMM that
// has no labels is raw, the kernel has no page structures for it and mounts
// without DAX whatever was asked for.
func TestNVDIMM(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend auto:pmem-dax,pmem\n", storage: "nvdimm", dax: true}.build(t)
	path, sizeMiB := b.paddedImage(t)
	machine := func(words ...string) vmtest.Machine {
		m := b.machine(t, words...)
		m.Extra = []string{
			"-machine", "nvdimm=on", "-m", fmt.Sprintf("%d,slots=1,maxmem=2G", m.MemoryMiB),
			"-object", fmt.Sprintf("memory-backend-file,id=nvdimm,mem-path=%s,size=%dM,share=off", path, sizeMiB),
			"-device", "nvdimm,memdev=nvdimm",
		}
		return m
	}
	const noDAX = "/dev/pmem0: the device has no dax, the mount silently went without"
	t.Run("list", func(t *testing.T) {
		t.Parallel()
		record := b.checkRecord(t, b.boot(t, machine(), bootconf.Pmem), bootconf.Pmem)
		want := []bootconf.Attempt{{Backend: bootconf.PmemDAX, Error: "pmem-dax: " + noDAX}, {Backend: bootconf.Pmem}}
		if diff := cmp.Diff(want, record.Attempts); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		m := machine("initoverlayfs.backend=pmem-dax", "initoverlayfs.timeout=2")
		failure{words: []string{noDAX}, timeoutS: 2, policy: "reboot:10"}.boot(t, m)
	})
}

// TestDAXRefusesCompressedImage gives the DAX backend an image whose pages
// cannot be mapped: alone it fails, in a list the next one serves.
func TestDAXRefusesCompressedImage(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend auto:pmem-dax,pmem\n", dax: true}.build(t)
	compressed := spec{config: "backend pmem\n", compress: compress.LZ4}.build(t)
	identity := compressed.identity()
	t.Run("list", func(t *testing.T) {
		t.Parallel()
		m := b.machine(t, identity...)
		m.Pmem = append(m.Pmem, pmem(compressed.image))
		r := compressed.boot(t, m, bootconf.Pmem)
		record, err := r.Done.BootRecord()
		if err != nil {
			t.Fatal(err)
		}
		want := []bootconf.Attempt{
			{Backend: bootconf.PmemDAX, Error: "pmem-dax: /dev/pmem0: the image is compressed, dax needs an uncompressed one"},
			{Backend: bootconf.Pmem},
		}
		if diff := cmp.Diff(want, record.Attempts); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		m := b.machine(t, append(identity, "initoverlayfs.backend=pmem-dax", "initoverlayfs.timeout=2")...)
		m.Pmem = append(m.Pmem, pmem(compressed.image))
		failure{words: []string{"/dev/pmem0: the image is compressed"}, timeoutS: 2, policy: "reboot:10"}.boot(t, m)
	})
}

// identity has the command line words by which another build's storage-init
// takes this build's image.
func (b *build) identity() []string {
	return []string{"initoverlayfs.image_uuid=" + b.Image.UUID, "initoverlayfs.image_size=" + strconv.FormatInt(b.conf.ImageSize, 10)}
}

// TestTwoCPUs loads modules side by side, and the same ones as a single CPU
// does.
func TestTwoCPUs(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend loop\n" + onBootLabel, compress: compress.Zstd}.build(t)
	m := b.machine(t)
	m.CPUs = 2
	b.attach(t, &m, bootconf.Loop)
	record := b.checkRecord(t, b.boot(t, m, bootconf.Loop), bootconf.Loop)
	modules, err := bootconf.ParseModules(strings.Join(b.Mini.Modules, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		place := slices.Index(record.Modules, m.Name())
		if m.CPUFeature == "" && place < 0 {
			t.Errorf("module %s is not loaded: %v", m.Name(), record.Modules)
		}
		for _, name := range m.After {
			if place >= 0 && slices.Index(record.Modules, name) > place {
				t.Errorf("module %s is before %s, which it needs: %v", m.Name(), name, record.Modules)
			}
		}
	}
}
