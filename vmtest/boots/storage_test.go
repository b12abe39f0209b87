package boots

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// hardware is how a guest reaches a disk: the driver set that serves it, and
// the driver by which that is seen to be at work.
var hardware = map[vmtest.Bus]struct{ storage, driver string }{
	vmtest.VirtioBlk:  {"virtio", "virtio_blk"},
	vmtest.VirtioSCSI: {"virtio-scsi", "virtio_scsi"},
	vmtest.NVMe:       {"nvme", "nvme"},
	vmtest.AHCI:       {"ahci", "ahci"},
	vmtest.USBStorage: {"usb", "usb_storage"},
	vmtest.SDHCI:      {"sdhci", "sdhci_pci"},
}

// cardSize is of every disk here: that of an SD card must be a power of two.
const cardSize = 32 << 20

func (b *build) card(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk.img")
	if _, err := disk.Create(tb.Context(), path, disk.Spec{Size: cardSize, Partitions: []disk.Partition{b.imagePartition()}}); err != nil {
		tb.Fatal(err)
	}
	return path
}

// TestStorage boots from each kind of disk, with the drivers for that kind.
func TestStorage(t *testing.T) {
	t.Parallel()
	if len(hardware) != len(vmtest.Buses) {
		t.Errorf("%d kinds of hardware for the buses %v", len(hardware), vmtest.Buses)
	}
	for bus, with := range hardware {
		t.Run(string(bus), func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend block\n", storage: with.storage}.build(t)
			m := b.machine(t)
			m.Drives = append(m.Drives, drive(bus, b.card(t)))
			record := b.checkRecord(t, b.boot(t, m, bootconf.Block), bootconf.Block)
			t.Logf("%d bytes, modules %v", b.Mini.Size, record.Modules)
			checkDrivers(t, record, with.driver)
		})
	}
}

// TestStorageAll boots one mini-initramfs, which has every driver, from each
// kind of disk: only the drivers of what is there are loaded.
func TestStorageAll(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend block\n", storage: "all"}.build(t)
	for bus, with := range hardware {
		t.Run(string(bus), func(t *testing.T) {
			t.Parallel()
			m := b.machine(t)
			m.Drives = append(m.Drives, drive(bus, b.card(t)))
			record := b.checkRecord(t, b.boot(t, m, bootconf.Block), bootconf.Block)
			t.Logf("%d bytes, %d modules, loaded %v", b.Mini.Size, len(b.Mini.Modules), record.Modules)
			checkDrivers(t, record, with.driver)
			for _, absent := range []string{"megaraid_sas", "mpt3sas", "hv_storvsc", "xen_blkfront", "nfit", "ata_piix"} {
				if slices.Contains(record.Modules, absent) {
					t.Errorf("%s is loaded on a machine that has no such device", absent)
				}
			}
		})
	}
}

// checkDrivers wants this driver and none of the other hardware's.
func checkDrivers(tb testing.TB, record *bootconf.Record, want string) {
	tb.Helper()
	for _, with := range hardware {
		if got := slices.Contains(record.Modules, with.driver); got != (with.driver == want) {
			tb.Errorf("driver %s is loaded: %v; the disk is for %s", with.driver, got, want)
		}
	}
}

// TestSCSIAddr has two disks at one controller. With an address only the disk
// at it is ever asked for; without, both are there.
func TestSCSIAddr(t *testing.T) {
	t.Parallel()
	const addressed = "0:0:0:1"
	plain := spec{config: "backend block\n", storage: "virtio-scsi"}
	configured := plain
	configured.config += "scsi.addr " + addressed + "\n"
	for _, test := range []struct {
		name  string
		spec  spec
		words []string
		want  []string
	}{
		{"configuration", configured, nil, []string{addressed}},
		{"command line", plain, []string{"scsi_mod.scan=manual", "scsi.addr=" + addressed}, []string{addressed}},
		{"none", plain, nil, []string{"0:0:0:0", addressed}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := test.spec.build(t)
			m := b.machine(t, test.words...)
			for lun, path := range []string{bootDisk(t, disk.Partition{Label: "other", Size: 1 << 20}), b.card(t)} {
				d := drive(vmtest.VirtioSCSI, path)
				d.SCSIAddr, d.SCSILUN = true, lun
				m.Drives = append(m.Drives, d)
			}
			const class = "/sys/class/scsi_disk"
			r := b.boot(t, m, bootconf.Block, "list:"+class)
			got := checked[map[string][]string](t, r, "list")[class]
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("disks (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSCSIAddrOfNothing fails in time where there is no disk at the address.
func TestSCSIAddrOfNothing(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend block\nscsi.addr 0:0:0:1\n", storage: "virtio-scsi"}.build(t)
	m := b.machine(t, "initoverlayfs.scsi.addr=0:0:3:7", "initoverlayfs.timeout=1", rebootSoon)
	m.Drives = append(m.Drives, drive(vmtest.VirtioSCSI, b.card(t)))
	failure{words: []string{"no device with an EROFS image"}, timeoutS: 1, policy: "reboot:1"}.boot(t, m)
}
