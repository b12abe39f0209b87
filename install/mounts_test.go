package install

import (
	"os"
	"path/filepath"
	"testing"
)

const table = `22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
30 22 259:1 / /boot rw,relatime shared:2 master:1 - ext4 /dev/nvme0n1p1 rw
31 30 8:1 / /boot/efi rw - vfat /dev/sda1 rw,fmask=0077
40 22 0:30 /@home /home rw - btrfs /dev/sdb1 rw,subvol=/@home
41 22 0:31 / /mnt/with\040space rw - tmpfs tmpfs rw
42 22 259:3 /sub/folder /srv rw - xfs /dev/nvme0n1p3 rw
43 42 259:4 / /srv rw - ext4 /dev/nvme0n1p4 rw
`

func TestMountOf(t *testing.T) {
	mounts, err := parseMounts(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ dir, device, path string }{
		{"/", "259:2", "/"},
		{"/bootstrap", "259:2", "/bootstrap"},
		{"/boot", "259:1", "/"},
		{"/boot/initoverlayfs/1", "259:1", "/initoverlayfs/1"},
		{"/boot/efi/x", "8:1", "/x"},
		{"/home/u", "0:30", "/@home/u"},
		{"/mnt/with space/a", "0:31", "/a"},
		{"/srv/a", "259:4", "/a"}, // the later mount hides the earlier one
	} {
		m, path, err := mountOf(mounts, test.dir)
		if err != nil || m.device != test.device || path != test.path {
			t.Errorf("mountOf(%s) = %s, %s, %v; want %s, %s", test.dir, m.device, path, err, test.device, test.path)
		}
	}
	for _, bad := range []string{"22 1 259:2 / / rw\n", "nonsense\n", "22 1 259:2 / / rw - ext4\n"} {
		if _, err := parseMounts(bad); err == nil {
			t.Errorf("parseMounts(%q): no error", bad)
		}
	}
	if _, _, err := mountOf(nil, "/"); err == nil {
		t.Error("without mounts: no error")
	}
}

func TestBlockDevice(t *testing.T) {
	sysfs := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(sysfs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("dev/block/8:1/uevent", "MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\n")
	write("dev/block/253:0/uevent", "DEVNAME=dm-0\n")
	write("dev/block/253:0/dm/uuid", "LVM-abc\n")
	write("dev/block/9:0/uevent", "DEVNAME=md0\n")
	write("dev/block/9:0/md/level", "raid1\n")
	write("class/block/sdb1/uevent", "DEVNAME=sdb1\n")
	for _, test := range []struct {
		m             mount
		node, stacked string
	}{
		{mount{device: "8:1", fstype: "ext4"}, "/dev/sda1", ""},
		{mount{device: "253:0", fstype: "ext4"}, "/dev/dm-0", "device mapper (LVM)"},
		{mount{device: "9:0", fstype: "xfs"}, "/dev/md0", "MD RAID"},
		{mount{device: "0:30", fstype: "btrfs", source: "/dev/nothing"}, "", ""},
		{mount{device: "0:31", fstype: "ext4"}, "", ""},
	} {
		if node, stacked := blockDevice(sysfs, test.m); node != test.node || stacked != test.stacked {
			t.Errorf("blockDevice(%+v) = %q, %q; want %q, %q", test.m, node, stacked, test.node, test.stacked)
		}
	}
}
