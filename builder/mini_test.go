package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// oldKernel is like Linux 6.1 of a distribution: all that may be a module is.
func oldKernel() kmodtest.Kernel {
	const crc32c = "cpu:type:x86,ven*fam*mod*:feature:*0094*"
	return kmodtest.Kernel{
		Version: "6.1.0-9-amd64",
		Modules: []kmodtest.Module{
			{File: "kernel/erofs.ko.xz", Deps: []string{"kernel/libcrc32c.ko.xz"}, Signed: true},
			{File: "kernel/libcrc32c.ko.xz", Pre: []string{"crc32c"}},
			{File: "kernel/crc32c_generic.ko.xz", Aliases: []string{"crypto-crc32c", "crc32c"}},
			{File: "kernel/crc32c-intel.ko.xz", Aliases: []string{"crypto-crc32c", "crc32c", crc32c}},
			{File: "kernel/overlay.ko.zst"},
			{File: "kernel/loop.ko"},
			{File: "kernel/ext4.ko", Deps: []string{"kernel/jbd2.ko"}, Pre: []string{"crypto-crc32c"}},
			{File: "kernel/jbd2.ko"},
			{File: "kernel/xfs.ko", Deps: []string{"kernel/libcrc32c.ko.xz"}},
			{File: "kernel/fat.ko"},
			{File: "kernel/vfat.ko", Deps: []string{"kernel/fat.ko"}},
			{File: "kernel/nls_cp437.ko"},
			{File: "kernel/nls_ascii.ko"},
			{File: "kernel/nls_iso8859-1.ko"},
			{File: "kernel/libnvdimm.ko"},
			{File: "kernel/nd_pmem.ko", Deps: []string{"kernel/libnvdimm.ko"}},
			{File: "kernel/dax_pmem.ko", Deps: []string{"kernel/libnvdimm.ko"}},
			{File: "kernel/kmem.ko"},
			{File: "kernel/nd_e820.ko", Deps: []string{"kernel/libnvdimm.ko"}},
			{File: "kernel/virtio_pmem.ko", Deps: []string{"kernel/libnvdimm.ko", "kernel/virtio.ko"}},
			{File: "kernel/virtio.ko"},
			{File: "kernel/virtio_pci.ko", Deps: []string{"kernel/virtio.ko"}, Aliases: []string{"pci:v00001AF4d*sv*sd*bc*sc*i*"}},
			{File: "kernel/virtio_blk.ko", Deps: []string{"kernel/virtio.ko"}, Aliases: []string{"virtio:d00000002v*"}},
			{
				File: "kernel/virtio_scsi.ko", Deps: []string{"kernel/virtio.ko", "kernel/scsi_mod.ko"},
				Aliases: []string{"virtio:d00000008v*"},
			},
			{File: "kernel/scsi_mod.ko"},
			{File: "kernel/sd_mod.ko", Deps: []string{"kernel/scsi_mod.ko", "kernel/crc-t10dif.ko"}, Aliases: []string{"scsi:t-0x00*"}},
			{File: "kernel/crc-t10dif.ko", Pre: []string{"crct10dif"}},
			{File: "kernel/crct10dif.ko"},
			{File: "kernel/hba.ko", Deps: []string{"kernel/scsi_mod.ko"}, Firmware: []string{"hba/one.bin", "hba/two.bin", "hba/none.bin"}},
			{File: "kernel/nvme.ko", Aliases: []string{"pci:v*d*sv*sd*bc01sc08i02*"}},
			{File: "kernel/shpchp.ko", Aliases: []string{"pci:v*d*sv*sd*bc06sc04i*"}},
		},
		Builtin: []string{"kernel/drivers/ata/ahci.ko", "kernel/drivers/usb/xhci-pci.ko"},
		Modinfo: []string{"ahci.alias=pci:v*d*sv*sd*bc01sc06i01*"},
	}
}

// newKernel is like Linux 6.12 for virtual machines.
func newKernel() kmodtest.Kernel {
	k := oldKernel()
	k.Version = "6.12.3-cloud"
	k.Builtin = append(k.Builtin, "kernel/drivers/virtio/virtio_pci.ko", "kernel/fs/ext4/ext4.ko", "kernel/crypto/crc32c_generic.ko")
	k.Modinfo = append(k.Modinfo, "crc32c_generic.alias=crc32c", "crc32c_generic.alias=crypto-crc32c")
	k.Modules = slices.DeleteFunc(k.Modules, func(m kmodtest.Module) bool {
		return slices.Contains([]string{"kernel/virtio_pci.ko", "kernel/ext4.ko", "kernel/jbd2.ko", "kernel/crc32c_generic.ko.xz"}, m.File)
	})
	return k
}

const configText = `# a kernel
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_ZSTD=y
# CONFIG_RD_XZ is not set
CONFIG_DEVTMPFS=y
CONFIG_TMPFS=y
CONFIG_EROFS_FS=m
CONFIG_EROFS_FS_ZIP=y
CONFIG_OVERLAY_FS=m
CONFIG_FS_DAX=y
CONFIG_FAT_DEFAULT_CODEPAGE=437
CONFIG_FAT_DEFAULT_IOCHARSET="ascii"
`

func index(t testing.TB, k kmodtest.Kernel) *kmod.Index {
	t.Helper()
	x, err := kmod.Open(kmodtest.Write(t, t.TempDir(), k), k.Version)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// config makes a configuration of "KEY VALUE" lines.
func config(t testing.TB, lines ...string) bootconf.Config {
	t.Helper()
	c := bootconf.Default()
	lines = append(lines, "image_uuid 6f1e0fb0-0b64-4b8a-9c3c-5b1d1a6d6c11", "image_size 4096")
	for _, line := range lines {
		key, value, _ := strings.Cut(line, " ")
		if err := c.Set(key, value); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return c
}

func moduleLines(modules []bootconf.Module) []string {
	var lines []string
	for _, m := range modules {
		m.After = nil // checkLoadable holds it
		lines = append(lines, strings.Replace(m.String(), "/lib/modules/", "", 1))
	}
	return lines
}

func TestPlanModules(t *testing.T) {
	// What every boot of the old kernel loads.
	base := []string{
		"- crc32c_generic.ko cpu=!0094", "- crc32c_intel.ko cpu=0094", "- overlay.ko",
		"- libcrc32c.ko", "- erofs.ko",
	}
	for _, test := range []struct {
		name    string
		kernel  kmodtest.Kernel
		config  []string
		storage string
		options func(*MiniOptions)
		want    []string // besides base
	}{
		{
			name: "block", kernel: oldKernel(), config: []string{"backend block"}, storage: "virtio",
			want: []string{"block virtio.ko", "block virtio_blk.ko", "block virtio_pci.ko"},
		},
		{
			name: "loop on ext4 by default", kernel: oldKernel(), config: []string{"backend loop"}, storage: "none",
			want: []string{"loop jbd2.ko", "loop loop.ko max_loop=0", "loop ext4.ko"},
		},
		{
			name: "ext3 is ext4", kernel: oldKernel(), config: []string{"backend loop", "bootfstype ext3"}, storage: "none",
			want: []string{"loop jbd2.ko", "loop loop.ko max_loop=0", "loop ext4.ko"},
		},
		{
			name: "vfat with its tables", kernel: oldKernel(), config: []string{"backend ram", "bootfstype vfat"}, storage: "none",
			want: []string{"ram fat.ko", "ram loop.ko max_loop=0", "ram nls_ascii.ko", "ram nls_cp437.ko", "ram vfat.ko"},
		},
		{
			name: "vfat with the usual tables", kernel: oldKernel(), config: []string{"backend ram", "bootfstype vfat"}, storage: "none",
			options: func(o *MiniOptions) { o.KernelConfig = nil },
			want: []string{
				"ram fat.ko", "ram loop.ko max_loop=0", "ram nls_ascii.ko", "ram nls_cp437.ko", "ram nls_iso8859_1.ko",
				"ram vfat.ko",
			},
		},
		{
			name: "embedded needs no disk", kernel: oldKernel(), config: []string{"backend embedded"},
			want: []string{"embedded loop.ko max_loop=0"},
		},
		{
			name: "pmem by memmap", kernel: oldKernel(), config: []string{"backend pmem"}, storage: "virtio",
			want: []string{"pmem libnvdimm.ko", "pmem nd_e820.ko", "pmem nd_pmem.ko"},
		},
		{
			name: "pmem by virtio instead", kernel: oldKernel(), config: []string{"backend pmem-dax"}, storage: "virtio-pmem",
			want: []string{
				"pmem-dax libnvdimm.ko", "pmem-dax virtio.ko", "pmem-dax nd_pmem.ko",
				"pmem-dax virtio_pci.ko", "pmem-dax virtio_pmem.ko",
			},
		},
		{
			name: "several backends", kernel: oldKernel(), config: []string{"backend auto:pmem,block,loop", "bootfstype xfs"}, storage: "virtio",
			want: []string{
				"loop loop.ko max_loop=0", "pmem libnvdimm.ko", "block,loop virtio.ko", "pmem nd_e820.ko", "pmem nd_pmem.ko",
				"block,loop virtio_blk.ko", "block,loop virtio_pci.ko", "loop xfs.ko",
			},
		},
		{
			name: "SCSI without its self-test", kernel: oldKernel(), config: []string{"backend block", "scsi.addr 0:0:1:0"}, storage: "virtio-scsi",
			want: []string{
				"block crc_t10dif.ko", "block scsi_mod.ko scan=manual", "block virtio.ko",
				"block sd_mod.ko", "block virtio_pci.ko", "block virtio_scsi.ko",
			},
		},
		{
			name: "storage all takes what there is, for what the machine has", kernel: oldKernel(), config: []string{"backend block"}, storage: "all",
			want: []string{
				"block crc_t10dif.ko for=sd_mod", "block nvme.ko for=nvme", "block scsi_mod.ko for=sd_mod,virtio_scsi",
				"block virtio.ko for=virtio_blk,virtio_pci,virtio_scsi", "block sd_mod.ko for=sd_mod",
				"block virtio_blk.ko for=virtio_blk", "block virtio_pci.ko for=virtio_pci", "block virtio_scsi.ko for=virtio_scsi",
			},
		},
		{
			name: "built-in driver, modular disk", kernel: oldKernel(), config: []string{"backend block"}, storage: "ahci",
			want: []string{"block crc_t10dif.ko", "block scsi_mod.ko", "block sd_mod.ko"},
		},
		{
			name: "extra", kernel: oldKernel(), config: []string{"backend block"}, storage: "none",
			options: func(o *MiniOptions) { o.ExtraModules = []string{"jbd2", "virtio:d00000002v00001AF4", "xhci-pci"} },
			want:    []string{"- jbd2.ko", "- virtio.ko", "- virtio_blk.ko"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := MiniOptions{
				Modules: index(t, test.kernel), KernelConfig: []byte(configText), Compress: compress.Zstd, ImageCompressed: true,
				Config: config(t, test.config...), Storage: strings.Fields(test.storage),
			}
			if test.options != nil {
				test.options(&o)
			}
			modules, err := planModules(&o)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(slices.Concat(base, test.want)))
			if diff := cmp.Diff(want, slices.Sorted(slices.Values(moduleLines(modules)))); diff != "" {
				t.Errorf("modules (-want +got):\n%s", diff)
			}
			checkOrder(t, modules)
		})
	}
}

// checkOrder checks that each module comes behind all that it needs.
func checkOrder(t *testing.T, modules []bootconf.Module) {
	t.Helper()
	seen := map[string]bool{}
	for _, m := range modules {
		for _, name := range m.After {
			if !seen[name] {
				t.Errorf("%s comes before %s, which it needs: %v", m.Path, name, moduleLines(modules))
			}
		}
		seen[m.Name()] = true
	}
}

// What is built in vanishes, and with a built-in generic checksum only the
// accelerated one is left to load.
// The modules that give the image's memory back are not loaded by the boot.
func TestReturnModules(t *testing.T) {
	without := func(name string) kmodtest.Kernel {
		k := oldKernel()
		k.Modules = slices.DeleteFunc(k.Modules, func(m kmodtest.Module) bool { return m.File == "kernel/"+name+".ko" })
		return k
	}
	builtin := without("nd_e820")
	builtin.Builtin = append(builtin.Builtin, "kernel/nd_e820.ko")
	builtinKmem := without("kmem")
	builtinKmem.Builtin = append(builtinKmem.Builtin, "kernel/kmem.ko")
	for _, test := range []struct {
		name    string
		kernel  kmodtest.Kernel
		config  []string
		storage string
		want    []string
	}{
		{"memmap", oldKernel(), []string{"backend pmem"}, "virtio", []string{"kmem", "dax_pmem"}},
		{"memmap and dax", oldKernel(), []string{"backend pmem-dax"}, "virtio", []string{"kmem", "dax_pmem"}},
		{"among others", oldKernel(), []string{"backend auto:block,pmem"}, "virtio", []string{"kmem", "dax_pmem"}},
		{"virtio-pmem", oldKernel(), []string{"backend pmem"}, "virtio-pmem", nil},
		{"no persistent memory", oldKernel(), []string{"backend block"}, "virtio", nil},
		{"not wanted", oldKernel(), []string{"backend pmem", "return_memory no"}, "virtio", nil},
		{"no hotplug", without("kmem"), []string{"backend pmem"}, "virtio", nil},
		{"region's driver built in", builtin, []string{"backend pmem"}, "none", []string{"kmem", "dax_pmem"}},
		{"one built in", builtinKmem, []string{"backend pmem"}, "virtio", []string{"dax_pmem"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := MiniOptions{
				Modules: index(t, test.kernel), KernelConfig: []byte(configText), Config: config(t, test.config...),
				ImageCompressed: !strings.Contains(test.config[0], "dax"), Storage: []string{test.storage}, Compress: compress.Zstd,
				StorageInit: "mini_test.go",
			}
			modules, err := planModules(&o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := o.returnModules(modules)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("modules (-want +got):\n%s", diff)
			}
			for _, m := range modules {
				if slices.Contains(got, m.Name()) {
					t.Errorf("%s is loaded by the boot", m.Name())
				}
			}
			files, err := o.files(modules)
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for i, name := range test.want {
				paths = append(paths, fmt.Sprintf("lib/return-memory/%02d-%s.ko", i, name))
			}
			for path := range files {
				if strings.HasPrefix(path, "lib/return-memory/") && !slices.Contains(paths, path) {
					t.Errorf("%s is in the archive", path)
				}
			}
			for i, path := range paths {
				if want, err := o.Modules.Read(test.want[i]); err != nil || string(files[path].data) != string(want) {
					t.Errorf("%s is %q, want %q, %v", path, files[path].data, want, err)
				}
			}
		})
	}
}

func TestPlanModulesBuiltin(t *testing.T) {
	o := MiniOptions{
		Modules: index(t, newKernel()), Compress: compress.Zstd,
		Config: config(t, "backend file"), Storage: []string{"virtio"},
	}
	modules, err := planModules(&o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"file virtio.ko", "file virtio_blk.ko", "- crc32c_intel.ko cpu=0094", "ram loop.ko max_loop=0", "- overlay.ko", "- libcrc32c.ko", "- erofs.ko",
	}
	if diff := cmp.Diff(want, moduleLines(modules)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

func TestPlanModulesErrors(t *testing.T) {
	without := func(files ...string) kmodtest.Kernel {
		k := oldKernel()
		k.Modules = slices.DeleteFunc(k.Modules, func(m kmodtest.Module) bool {
			return slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(m.File, "kernel/"+f+".ko") })
		})
		return k
	}
	for _, test := range []struct {
		name    string
		kernel  kmodtest.Kernel
		config  []string
		storage string
		options func(*MiniOptions)
		want    []string
	}{
		{
			name: "file on 6.1", kernel: oldKernel(), config: []string{"backend file"}, storage: "virtio",
			want: []string{"kernel 6.1.0-9-amd64 lacks", "CONFIG_EROFS_FS_BACKED_BY_FILE", "Linux 6.12", "backend file"},
		},
		{
			name: "file on 6.1 of unknown configuration", kernel: oldKernel(), config: []string{"backend file"}, storage: "virtio",
			options: func(o *MiniOptions) { o.KernelConfig = nil },
			want:    []string{"kernel 6.1.0-9-amd64 lacks", "CONFIG_EROFS_FS_BACKED_BY_FILE", "Linux 6.12"},
		},
		{
			name: "file configured out", kernel: newKernel(), config: []string{"backend auto:loop,file"}, storage: "virtio",
			want: []string{"kernel 6.12.3-cloud lacks CONFIG_EROFS_FS_BACKED_BY_FILE"},
		},
		{
			name: "no DAX", kernel: oldKernel(), config: []string{"backend pmem-dax"},
			options: func(o *MiniOptions) {
				o.KernelConfig = []byte(strings.Replace(configText, "CONFIG_FS_DAX=y", "# CONFIG_FS_DAX is not set", 1))
			},
			want: []string{"lacks CONFIG_FS_DAX for backend pmem-dax"},
		},
		{
			name: "no compression", kernel: oldKernel(), config: []string{"backend block"}, storage: "virtio",
			options: func(o *MiniOptions) {
				o.Compress = compress.XZ
				o.KernelConfig = []byte(strings.Replace(configText, "CONFIG_EROFS_FS_ZIP=y", "", 1))
			},
			want: []string{"CONFIG_RD_XZ", "CONFIG_EROFS_FS_ZIP"},
		},
		{
			name: "several at once", kernel: without("overlay", "loop", "virtio_blk"), config: []string{"backend loop"}, storage: "virtio",
			options: func(o *MiniOptions) {
				o.KernelConfig = []byte(strings.Replace(configText, "CONFIG_DEVTMPFS=y", "", 1))
			},
			want: []string{
				"module overlay (CONFIG_OVERLAY_FS)", "module loop (CONFIG_BLK_DEV_LOOP) for backend loop", "CONFIG_DEVTMPFS",
				"module virtio_blk for storage virtio",
			},
		},
		{
			name: "no charset", kernel: without("nls_ascii"), config: []string{"backend loop", "bootfstype vfat"}, storage: "none",
			want: []string{"module nls_ascii for a boot filesystem of type vfat"},
		},
		{
			name: "no pmem driver", kernel: without("nd_e820"), config: []string{"backend pmem"},
			want: []string{"nd_e820 of_pmem for storage memmap"},
		},
		{
			name: "no host controller", kernel: oldKernel(), config: []string{"backend block"}, storage: "mmc",
			want: []string{"module mmc_block for storage mmc", "sdhci_pci"},
		},
		{
			name: "extra", kernel: oldKernel(), config: []string{"backend embedded"},
			options: func(o *MiniOptions) { o.ExtraModules = []string{"florb"} },
			want:    []string{"kernel 6.1.0-9-amd64 lacks module florb"},
		},
		{
			name: "unknown storage", kernel: oldKernel(), config: []string{"backend block"}, storage: "floppy",
			want: []string{`unknown storage "floppy"`, "virtio", "nvme", "all"},
		},
		{
			name: "unknown bootfs type", kernel: oldKernel(), config: []string{"backend loop", "bootfstype ntfs"}, storage: "virtio",
			want: []string{`unknown bootfs type "ntfs"`, "ext4", "btrfs"},
		},
		{
			name: "no storage", kernel: oldKernel(), config: []string{"backend auto:pmem,block,loop"},
			want: []string{"no storage drivers are chosen for backend block,loop"},
		},
		{
			name: "dependency is missing", kernel: without("jbd2"), config: []string{"backend loop"}, storage: "none",
			want: []string{"kernel 6.1.0-9-amd64", "ext4", "jbd2"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := MiniOptions{
				Modules: index(t, test.kernel), KernelConfig: []byte(configText), Compress: compress.Zstd, ImageCompressed: true,
				Config: config(t, test.config...), Storage: strings.Fields(test.storage),
			}
			if test.options != nil {
				test.options(&o)
			}
			modules, err := planModules(&o)
			if err == nil {
				t.Fatalf("no error; modules: %v", moduleLines(modules))
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not have %q", err, want)
				}
			}
		})
	}
}

func TestCheckBackend(t *testing.T) {
	x, y := index(t, oldKernel()), index(t, newKernel())
	for _, test := range []struct {
		backend bootconf.Backend
		x       *kmod.Index
		config  string
		ok      bool
	}{
		{bootconf.File, x, "", false},
		{bootconf.File, y, "", true},
		{bootconf.File, y, configText, false},
		{bootconf.File, y, configText + "CONFIG_EROFS_FS_BACKED_BY_FILE=y\n", true},
		{bootconf.Block, x, configText, true},
		{bootconf.PmemDAX, x, configText, true},
		{bootconf.Loop, x, "", true},
	} {
		if err := CheckBackend(test.backend, test.x, []byte(test.config)); (err == nil) != test.ok {
			t.Errorf("CheckBackend(%s, %s) = %v; want ok %t", test.backend, test.x.KernelVersion(), err, test.ok)
		}
	}
}

func TestOlderThan(t *testing.T) {
	for kver, want := range map[string]bool{
		"6.1.0-56-amd64": true, "6.11.99": true, "6.12": false, "6.12-rc1": false, "6.12.107+deb13": false, "7.0.1": false,
		"5.15.0-generic": true, "custom": false, "": false,
	} {
		if got := olderThan(kver, erofs.KernelVersion{Major: 6, Minor: 12}); got != want {
			t.Errorf("olderThan(%q, 6.12) = %t; want %t", kver, got, want)
		}
	}
}

func TestFindKernelConfig(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"lib/modules/1-a/x": "", "boot/config-1-a": "one",
		"usr/lib/modules/2-b/config": "two", "boot/config-2-b": "other",
		"usr/lib/modules/3-c/x": "", "boot/config-3-c": "three",
		"lib/modules/4-d/x": "", "elsewhere/5-e/x": "",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]string{
		"lib/modules/1-a": "one", "usr/lib/modules/2-b": "two", "usr/lib/modules/3-c": "three", "lib/modules/4-d": "", "elsewhere/5-e": "",
	} {
		got, err := FindKernelConfig(filepath.Join(root, dir), filepath.Base(dir))
		if err != nil || string(got) != want {
			t.Errorf("FindKernelConfig(%s) = %q, %v; want %q", dir, got, err, want)
		}
	}
}

// entry is one record of an archive, for comparison.
type entry struct {
	segment                   int
	format                    compress.Format
	name                      string
	mode, nlink, major, minor uint32
	body                      string
}

func readEntries(t testing.TB, archive []byte, epoch int64) []entry {
	t.Helper()
	var list []entry
	inodes := map[string]bool{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.UID != 0 || h.GID != 0 || h.MTime != epoch || h.DevMajor != 0 || h.DevMinor != 0 {
			t.Errorf("%s: owner %d:%d, time %d, device %d:%d; want nothing but the time %d",
				h.Name, h.UID, h.GID, h.MTime, h.DevMajor, h.DevMinor, epoch)
		}
		if key := fmt.Sprint(h.Segment, h.Ino); inodes[key] {
			t.Errorf("%s: inode %d is not its own", h.Name, h.Ino)
		} else {
			inodes[key] = true
		}
		list = append(list, entry{h.Segment, r.Format(), h.Name, h.Mode, h.NLink, h.RDevMajor, h.RDevMinor, string(body)})
	}
}

const epoch = 1700000000

// miniOptions are options for a mini-initramfs with one of everything.
func allOptions(t testing.TB) MiniOptions {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "storage-init")
	firmware := filepath.Join(dir, "firmware")
	var packed bytes.Buffer
	z, err := compress.NewWriter(compress.XZ, &packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(z, "second"); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(firmware, "hba"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		program: []byte("program"), filepath.Join(firmware, "hba/one.bin"): []byte("first"),
		filepath.Join(firmware, "hba/two.bin.xz"): packed.Bytes(),
	} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	early, err := EarlySegment(bytes.NewReader(sourceInitramfs(t)), epoch)
	if err != nil {
		t.Fatal(err)
	}
	return MiniOptions{
		Modules: index(t, oldKernel()), KernelConfig: []byte(configText), Config: config(t, "backend embedded"),
		ExtraModules: []string{"hba"}, FirmwareDirs: []string{filepath.Join(dir, "none"), firmware},
		StorageInit: program, Early: early, Image: io.NewSectionReader(strings.NewReader("the image"), 0, 9),
		Compress: compress.Zstd, Epoch: epoch,
	}
}

func moduleFile(t testing.TB, k kmodtest.Kernel, name string) string {
	t.Helper()
	for _, m := range k.Modules {
		if strings.HasPrefix(filepath.Base(m.File), name+".ko") {
			return string(kmodtest.ELF(m))
		}
	}
	t.Fatalf("no module %s", name)
	return ""
}

func TestWriteMini(t *testing.T) {
	o := allOptions(t)
	var b bytes.Buffer
	modules, err := WriteMini(&b, o)
	if err != nil {
		t.Fatal(err)
	}
	const dir, file = cpio.TypeDir | 0o755, cpio.TypeRegular | 0o644
	k := oldKernel()
	want := []entry{
		{0, compress.None, "kernel/x86/microcode/GenuineIntel.bin", file, 1, 0, 0, "intel"},
		{0, compress.None, "kernel/firmware/acpi/dsdt.aml", file, 1, 0, 0, "dsdt"},
		{0, compress.None, "kernel/x86/microcode/AuthenticAMD.bin", file, 1, 0, 0, "amd"},
		{1, compress.None, "initoverlayfs.img", cpio.TypeRegular | 0o444, 1, 0, 0, "the image"},
		{2, compress.Zstd, "dev", dir, 2, 0, 0, ""},
		{2, compress.Zstd, "dev/console", cpio.TypeChar | 0o600, 1, 5, 1, ""},
		{2, compress.Zstd, "dev/kmsg", cpio.TypeChar | 0o644, 1, 1, 11, ""},
		{2, compress.Zstd, "etc", dir, 2, 0, 0, ""},
		{2, compress.Zstd, "etc/initoverlayfs.aliases", file, 1, 0, 0, ""},
		{2, compress.Zstd, "etc/initoverlayfs.conf", file, 1, 0, 0, o.Config.Format()},
		{2, compress.Zstd, "etc/initoverlayfs.modules", file, 1, 0, 0, `- /lib/modules/crc32c_generic.ko cpu=!0094
- /lib/modules/crc32c_intel.ko cpu=0094
embedded /lib/modules/loop.ko max_loop=0
- /lib/modules/overlay.ko
- /lib/modules/scsi_mod.ko
- /lib/modules/hba.ko after=scsi_mod
- /lib/modules/libcrc32c.ko after=crc32c_generic,crc32c_intel
- /lib/modules/erofs.ko after=libcrc32c
`},
		{2, compress.Zstd, "init", cpio.TypeRegular | 0o755, 1, 0, 0, "program"},
		{2, compress.Zstd, "lib", dir, 2, 0, 0, ""},
		{2, compress.Zstd, "lib/firmware", dir, 2, 0, 0, ""},
		{2, compress.Zstd, "lib/firmware/hba", dir, 2, 0, 0, ""},
		{2, compress.Zstd, "lib/firmware/hba/one.bin", file, 1, 0, 0, "first"},
		{2, compress.Zstd, "lib/firmware/hba/two.bin", file, 1, 0, 0, "second"},
		{2, compress.Zstd, "lib/modules", dir, 2, 0, 0, ""},
	}
	for _, name := range []string{"crc32c_generic", "crc32c_intel", "erofs", "hba", "libcrc32c", "loop", "overlay", "scsi_mod"} {
		source := name
		if name == "crc32c_intel" {
			source = "crc32c-intel"
		}
		want = append(want, entry{2, compress.Zstd, "lib/modules/" + name + ".ko", file, 1, 0, 0, moduleFile(t, k, source)})
	}
	for _, name := range []string{"proc", "run", "sys"} {
		want = append(want, entry{2, compress.Zstd, name, dir, 2, 0, 0, ""})
	}
	got := readEntries(t, b.Bytes(), epoch)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}

	// What storage-init reads is what is returned.
	i := slices.IndexFunc(got, func(e entry) bool { return "/"+e.name == bootconf.ModulesPath })
	parsed, err := bootconf.ParseModules(got[i].body)
	if diff := cmp.Diff(modules, parsed); err != nil || diff != "" {
		t.Errorf("%s: %v (-returned +written):\n%s", bootconf.ModulesPath, err, diff)
	}

	var again bytes.Buffer
	if _, err := WriteMini(&again, o); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("a second WriteMini: %v, %d bytes; want the same %d bytes", err, again.Len(), b.Len())
	}
}

func TestWriteMiniFormats(t *testing.T) {
	o := allOptions(t)
	o.KernelConfig = nil
	for _, format := range compress.Writable {
		o.Compress = format
		var b bytes.Buffer
		if _, err := WriteMini(&b, o); err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		list := readEntries(t, b.Bytes(), epoch)
		if last := list[len(list)-1]; last.name != "sys" || last.format != format {
			t.Errorf("%s: the last entry is %s in a segment of %s", format, last.name, last.format)
		}
	}
}

func TestQuickestFormat(t *testing.T) {
	x := index(t, oldKernel())
	for _, test := range []struct {
		config string
		want   compress.Format
	}{
		{"", compress.LZ4}, // not known; each kernel has it unless somebody took it out
		{"CONFIG_RD_XZ=y\nCONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\nCONFIG_RD_LZ4=y\n", compress.LZ4},
		{"CONFIG_RD_XZ=y\nCONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n# CONFIG_RD_LZ4 is not set\n", compress.Zstd},
		{"CONFIG_RD_XZ=y\nCONFIG_RD_GZIP=y\n", compress.Gzip},
		{"CONFIG_RD_XZ=y\n", compress.XZ},
		{"CONFIG_EROFS_FS=y\n", compress.None},
	} {
		if got := quickestFormat(parseKernelConfig([]byte(test.config)), x); got != test.want {
			t.Errorf("%q: %s, want %s", test.config, got, test.want)
		}
	}
	if f, err := ParseFormat("auto"); f != "" || err != nil {
		t.Errorf("ParseFormat(auto) = %q, %v", f, err)
	}
	if _, err := ParseFormat("lzip"); err == nil || !strings.Contains(err.Error(), "lzip") {
		t.Errorf("ParseFormat(lzip): %v", err)
	}
}

func TestWriteMiniStripSignatures(t *testing.T) {
	for _, strip := range []bool{false, true} {
		o := allOptions(t)
		o.StripSignatures = strip
		var b bytes.Buffer
		if _, err := WriteMini(&b, o); err != nil {
			t.Fatal(err)
		}
		if signed := strings.Contains(archiveBody(t, b.Bytes(), "lib/modules/erofs.ko"), "~Module signature appended~"); signed == strip {
			t.Errorf("StripSignatures %t: erofs.ko is signed: %t", strip, signed)
		}
	}
}

func archiveBody(t testing.TB, archive []byte, name string) string {
	t.Helper()
	for _, e := range readEntries(t, archive, epoch) {
		if e.name == name {
			return e.body
		}
	}
	t.Fatalf("the archive has no %s", name)
	return ""
}

// GNU cpio and zstd must read what is written as we do.
func TestWriteMiniLikeGNU(t *testing.T) {
	for _, tool := range []string{"cpio", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	o := allOptions(t)
	o.Early, o.Image, o.Config = nil, nil, config(t, "backend pmem")
	var b bytes.Buffer
	if _, err := WriteMini(&b, o); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "zstd -dc | cpio -t --quiet")
	cmd.Stdin = &b
	var want []string
	for _, e := range readEntries(t, bytes.Clone(b.Bytes()), epoch) {
		want = append(want, e.name)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.Fields(string(out))); len(want) == 0 || diff != "" {
		t.Errorf("names (-ours +cpio's):\n%s", diff)
	}
}

func TestWriteMiniErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*MiniOptions)
		want   string
	}{
		{"no image", func(o *MiniOptions) { o.Image = nil }, "embedded"},
		{"image for nothing", func(o *MiniOptions) { o.Config.Backends = []bootconf.Backend{bootconf.Pmem} }, "embedded"},
		{"no UUID", func(o *MiniOptions) { o.Config.ImageUUID = bootconf.UUID{} }, "image_uuid"},
		{"no program", func(o *MiniOptions) { o.StorageInit += "-missing" }, "storage-init-missing"},
		{"no module", func(o *MiniOptions) { o.ExtraModules = []string{"florb"} }, "florb"},
		{"unwritable format", func(o *MiniOptions) { o.Compress = compress.LZO }, "lzo"},
	} {
		o := allOptions(t)
		test.change(&o)
		if _, err := WriteMini(io.Discard, o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error = %v; want %q in it", test.name, err, test.want)
		}
	}
	full := errors.New("disk full")
	for _, limit := range []int{0, 1000, 2000} {
		if _, err := WriteMini(&failingWriter{left: limit, err: full}, allOptions(t)); !errors.Is(err, full) {
			t.Errorf("writer that fails after %d bytes: error = %v", limit, err)
		}
	}
}

type failingWriter struct {
	left int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

// sourceInitramfs is like an initramfs of a distribution: two uncompressed
// segments in front, one of them with files that have no business there.
func sourceInitramfs(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	segment := func(w io.Writer, files ...string) {
		c := cpio.NewWriter(w)
		for i, f := range files {
			name, body, _ := strings.Cut(f, "=")
			h := &cpio.Header{Name: name, Ino: uint32(i), UID: 1000, Mode: cpio.TypeRegular | 0o600, NLink: 1, MTime: 99, Size: int64(len(body))}
			if strings.HasSuffix(name, "/") {
				h.Name, h.Mode = strings.TrimSuffix(name, "/"), cpio.TypeDir|0o700
			}
			if err := c.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, body); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	segment(&b, "early_cpio=1", "kernel/", "kernel/x86/", "kernel/x86/microcode/", "usr/big.bin=no", "kernel/x86/microcode/GenuineIntel.bin=intel",
		"kernel/firmware/acpi/dsdt.aml=dsdt", "kernel/firmware/other=no")
	b.Write(make([]byte, padding(int64(b.Len()))))
	segment(&b, "kernel/x86/microcode/AuthenticAMD.bin=amd")
	b.Write(make([]byte, padding(int64(b.Len()))))
	z, err := compress.NewWriter(compress.Gzip, &b)
	if err != nil {
		t.Fatal(err)
	}
	segment(z, "init=x", "kernel/x86/microcode/GenuineIntel.bin=late")
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The kernel finds the microcode by its name at the start of an entry's name,
// and gives it to the processor where it lies.
func TestEarlySegmentAlignment(t *testing.T) {
	segment, err := EarlySegment(bytes.NewReader(sourceInitramfs(t)), epoch)
	if err != nil {
		t.Fatal(err)
	}
	if len(segment)%segmentAlign != 0 {
		t.Errorf("the segment has %d bytes; want a multiple of %d", len(segment), segmentAlign)
	}
	for name, body := range map[string]string{
		"kernel/x86/microcode/GenuineIntel.bin": "intel", "kernel/x86/microcode/AuthenticAMD.bin": "amd",
	} {
		at := bytes.Index(segment, []byte(name+"\x00"))
		if at < 0 {
			t.Errorf("%s is missing", name)
			continue
		}
		start := at + len(name)
		for segment[start] == 0 {
			start++
		}
		if got := string(segment[start : start+len(body)]); got != body || start%16 != 0 {
			t.Errorf("%s: %q at %d; want %q at a multiple of 16", name, got, start, body)
		}
	}
}

func TestEarlySegmentNone(t *testing.T) {
	var packed bytes.Buffer
	z, err := compress.NewWriter(compress.Zstd, &packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(sourceInitramfs(t)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := EarlySegment(&packed, epoch); got != nil || err != nil {
		t.Errorf("EarlySegment of a compressed archive = %d bytes, %v; want none", len(got), err)
	}
	source := sourceInitramfs(t)
	if _, err := EarlySegment(bytes.NewReader(source), -1); err == nil {
		t.Error("EarlySegment with a time before 1970 has no error")
	}
	if _, err := EarlySegment(bytes.NewReader(source[:200]), epoch); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("EarlySegment of a truncated archive: error = %v; want io.ErrUnexpectedEOF", err)
	}
}

func TestStorageNames(t *testing.T) {
	names := StorageNames()
	for _, want := range []string{"virtio", "nvme", "ahci", "scsi", "usb", "mmc", "all"} {
		if !slices.Contains(names, want) {
			t.Errorf("StorageNames() = %v, without %s", names, want)
		}
	}
	seen := map[string]int{}
	for _, n := range names {
		seen[n]++
	}
	if len(seen) != len(names) {
		t.Errorf("StorageNames() = %v; some name twice: %v", names, slices.Sorted(maps.Keys(seen)))
	}
}
