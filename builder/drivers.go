package builder

import (
	"fmt"
	"slices"
	"strings"

	"initoverlayfs/builder/kmod"
)

// driverSet is the drivers for one way by which a machine reaches its disks.
//
// A set is kept as small as will do: every module of it is loaded at every boot,
// and checking a module's signature costs some 20 million instructions.
type driverSet struct {
	name string
	all  []string // every one is needed
	any  []string // those that the kernel has; at least one
	also []string // those that the kernel has; none is needed

	pmem    bool // serves the pmem backends instead of those that read a disk
	special bool // never part of "all"
}

// driverSets are what --storage chooses from. The kernel asks for none of
// sd_mod, mmc_block and the like by itself: udev loads them by the modalias of
// the disk (scsi:t-0x00, mmc:block), and there is no udev here.
var driverSets = []driverSet{
	{name: "virtio", all: []string{"virtio_pci", "virtio_blk"}},
	{name: "virtio-scsi", all: []string{"virtio_pci", "virtio_scsi", "sd_mod"}},
	{name: "virtio-mmio", all: []string{"virtio_mmio", "virtio_blk"}, special: true},
	{name: "nvme", all: []string{"nvme"}},
	{name: "ahci", all: []string{"ahci", "sd_mod"}},
	{name: "ata", all: []string{"sd_mod"}, any: []string{"ata_piix", "ata_generic"}},
	{
		name: "scsi", all: []string{"sd_mod"},
		any: []string{
			"aacraid", "hpsa", "megaraid_sas", "mpi3mr", "mpt3sas", "mptsas", "mptspi",
			"smartpqi", "virtio_scsi", "vmw_pvscsi",
		},
		also: []string{"virtio_pci"}, // below virtio_scsi
	},
	{
		name: "usb", all: []string{"usb_storage", "sd_mod"},
		any: []string{"xhci_pci", "ehci_pci", "ohci_pci", "uhci_hcd", "xhci_plat_hcd", "dwc3"}, also: []string{"uas"},
	},
	{
		name: "mmc", all: []string{"mmc_block"},
		any: []string{"sdhci_pci", "sdhci_acpi", "sdhci_iproc", "sdhci_of_arasan", "sdhci_msm", "bcm2835", "dw_mmc_rockchip", "meson_gx_mmc", "sunxi_mmc"},
	},
	{name: "sdhci", all: []string{"sdhci_pci", "mmc_block"}},
	{name: "ufs", all: []string{"sd_mod"}, any: []string{"ufshcd_pci", "ufs_qcom"}},
	// hv_vmbus is named for its own sake: the bus must be there before it can
	// show the disk that hv_storvsc is for.
	{name: "hyperv", all: []string{"hv_vmbus", "hv_storvsc", "sd_mod"}},
	{name: "xen", all: []string{"xen_blkfront"}},

	// nd_e820 is CONFIG_X86_PMEM_LEGACY, for memmap=SIZE!ADDR; of_pmem is for
	// pmem-region nodes of a device tree.
	{name: "memmap", any: []string{"nd_e820", "of_pmem"}, pmem: true},
	{name: "nvdimm", all: []string{"nfit"}, pmem: true},
	{name: "virtio-pmem", all: []string{"virtio_pci", "virtio_pmem"}, pmem: true},
}

// Names of --storage that stand for no one set.
const (
	storageAll  = "all"  // every set that the kernel has
	storageNone = "none" // the kernel has its disk drivers built in
)

// StorageNames lists what MiniOptions.Storage may hold.
func StorageNames() []string {
	names := []string{storageAll, storageNone}
	for _, s := range driverSets {
		names = append(names, s.name)
	}
	return names
}

// chooseSets returns the driver sets of the names, in the order of driverSets.
func chooseSets(names []string, x *kmod.Index) ([]driverSet, error) {
	for _, name := range names {
		if !slices.Contains(StorageNames(), name) {
			return nil, fmt.Errorf("unknown storage %q; known: %s", name, strings.Join(StorageNames(), " "))
		}
	}
	var sets []driverSet
	for _, s := range driverSets {
		switch {
		case slices.Contains(names, s.name):
			sets = append(sets, s)
		case slices.Contains(names, storageAll) && !s.special:
			if _, missing := s.drivers(x); len(missing) == 0 {
				sets = append(sets, s)
			}
		}
	}
	return sets, nil
}

// drivers returns the set's modules and what it needs that the kernel lacks.
func (s driverSet) drivers(x *kmod.Index) (modules, missing []string) {
	has := func(m string) bool { return x.Has(m) }
	for _, m := range s.all {
		if !has(m) {
			missing = append(missing, "module "+m)
		}
	}
	if len(s.any) > 0 && !slices.ContainsFunc(s.any, has) {
		missing = append(missing, "all of the modules "+strings.Join(s.any, " "))
	}
	modules = slices.Clone(s.all)
	for _, m := range slices.Concat(s.any, s.also) {
		if has(m) {
			modules = append(modules, m)
		}
	}
	return modules, missing
}

// filesystem is a type of boot filesystem.
type filesystem struct {
	types  []string // names of the type; the first is that of storage-init
	module string
	// requests returns the modules for which the kernel runs modprobe when it
	// mounts the filesystem. There is no modprobe, and no index file names them.
	requests func(kernelConfig, *kmod.Index) []string
}

// What else the kernel looks for at a mount of these, the crc32c of all of them
// and the checksums that btrfs can be made with, is in modules.softdep.
var filesystems = []filesystem{
	{types: []string{"ext4", "ext3", "ext2"}, module: "ext4"},
	{types: []string{"xfs"}, module: "xfs"},
	{types: []string{"btrfs"}, module: "btrfs"},
	{types: []string{"vfat", "fat", "msdos"}, module: "vfat", requests: fatCharsets},
}

// fatCharsets returns the tables that fs/fat/inode.c loads when it mounts vfat
// without options; without either of the two the mount fails, even with
// CONFIG_FAT_DEFAULT_UTF8. Where the kernel's configuration is not known, they
// are the usual ones, as far as the kernel has them.
func fatCharsets(config kernelConfig, x *kmod.Index) []string {
	if config == nil {
		tables := []string{"nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8"}
		return slices.DeleteFunc(tables, func(m string) bool { return !x.Has(m) })
	}
	codepage, charset := config["CONFIG_FAT_DEFAULT_CODEPAGE"], config["CONFIG_FAT_DEFAULT_IOCHARSET"]
	var tables []string
	if codepage != "" {
		tables = append(tables, "nls_cp"+codepage)
	}
	if charset != "" {
		tables = append(tables, "nls_"+charset)
	}
	return tables
}

// skipSoftdep names the soft dependencies that a boot can do without.
func skipSoftdep(module, softdep string) bool {
	// lib/crc-t10dif.c computes by itself until an algorithm is registered, and
	// takes that one over at once when udev loads it later. It has no part in
	// reading disks without protection information.
	return module == "crc_t10dif" && softdep == "crct10dif"
}
