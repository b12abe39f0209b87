package boots

import (
	"testing"

	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// The identities of the boot filesystem in TestBootfs.
const (
	partLabel = "Boot Partition"
	partUUID  = "6A898CC3-1DD2-11B2-99A6-080020736631"
	fsLabel   = "BOOT FS"
	fsUUID    = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
	fatSerial = "B007-CAFE"
)

// TestBootfs finds each filesystem by each of its names. The disk has a
// partition of the same kind in front, with other names, and one behind it.
func TestBootfs(t *testing.T) {
	t.Parallel()
	for _, fs := range []string{"ext4", "xfs", "btrfs", "vfat"} {
		t.Run(fs, func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend loop\nbootfstype " + fs + "\n"}.build(t)
			uuid := fsUUID
			if fs == "vfat" {
				uuid = fatSerial
			}
			part := disk.Partition{
				Label: partLabel, GUID: partUUID, FS: fs, FSLabel: fsLabel, FSUUID: uuid,
				Files: map[string]string{b.conf.FS: b.image},
			}
			other := disk.Partition{Label: "first", FS: fs, FSLabel: "first", Files: map[string]string{"/file": b.mini}}
			path := bootDisk(t, other, part, disk.Partition{Label: "last", Size: 1 << 20})
			for _, tag := range []string{
				"UUID=" + uuid, "LABEL=" + fsLabel, "PARTUUID=" + partUUID, "PARTLABEL=" + partLabel, "/dev/vda2",
			} {
				t.Run(tag, func(t *testing.T) {
					t.Parallel()
					m := b.machine(t, `"initoverlayfs.bootfs=`+tag+`"`)
					m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, path))
					b.boot(t, m, bootconf.Loop)
				})
			}
		})
	}
}

// TestFileOnEachFilesystem mounts the file itself. Direct I/O is the filesystem's
// matter: each has it, so the page cache has what was read only once.
func TestFileOnEachFilesystem(t *testing.T) {
	t.Parallel()
	for _, fs := range []string{"ext4", "xfs", "btrfs", "vfat"} {
		t.Run(fs, func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend file\nbootfs LABEL=boot\nbootfstype " + fs + "\n", kernel: "kernel-6.12"}.build(t)
			part := b.filePartition("boot")
			part.FS = fs
			m := b.machine(t)
			m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, part)))
			wantCachedOnce(t, b.boot(t, m, bootconf.File, growthOfBig))
		})
	}
}

// TestBlockTags finds an image that fills a partition, by the partition's names
// and by the image's own.
func TestBlockTags(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend block\n"}.build(t)
	part := b.imagePartition()
	part.Label, part.GUID = partLabel, partUUID
	path := bootDisk(t, disk.Partition{Label: "first", Size: 1 << 20}, part)
	for _, tag := range []string{"UUID=" + b.Image.UUID, "PARTLABEL=" + partLabel, "PARTUUID=" + partUUID} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			m := b.machine(t, `"initoverlayfs.bootfs=`+tag+`"`)
			m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, path))
			b.boot(t, m, bootconf.Block)
		})
	}
	t.Run("whole disk", func(t *testing.T) {
		t.Parallel()
		m := b.machine(t)
		m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, b.image))
		b.boot(t, m, bootconf.Block)
	})
}

// TestSameLabel has two disks that the tag does not tell apart: the image does,
// in either order and for either backend; where neither has it, both are named.
func TestSameLabel(t *testing.T) {
	t.Parallel()
	loop := spec{config: "backend loop\n" + onBootLabel}
	block := spec{config: "backend block\n"}
	right, rightBlock := loop.build(t), block.build(t)
	loop.tree, block.tree = noInitTree, noInitTree
	wrong, wrongBlock := loop.build(t), block.build(t)

	rightDisk, wrongDisk := bootDisk(t, right.filePartition("boot")), bootDisk(t, wrong.filePartition("boot"))
	same := func(b *build) string {
		part := b.imagePartition()
		part.Label = "same"
		return bootDisk(t, part)
	}
	rightPart, wrongPart := same(rightBlock), same(wrongBlock)

	for _, test := range []struct {
		name  string
		build *build
		disks []string
		words []string
	}{
		{"loop, right first", right, []string{rightDisk, wrongDisk}, nil},
		{"loop, wrong first", right, []string{wrongDisk, rightDisk}, nil},
		{"loop, wrong one hinted", right, []string{rightDisk, wrongDisk}, []string{"initoverlayfs.bootfs_hint=/dev/vdb1"}},
		{"block, right first", rightBlock, []string{rightPart, wrongPart}, []string{"initoverlayfs.bootfs=PARTLABEL=same"}},
		{"block, wrong first", rightBlock, []string{wrongPart, rightPart}, []string{"initoverlayfs.bootfs=PARTLABEL=same"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := test.build.machine(t, test.words...)
			for _, path := range test.disks {
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, path))
			}
			test.build.boot(t, m, test.build.conf.Backends[0])
		})
	}
	t.Run("both wrong", func(t *testing.T) {
		t.Parallel()
		m := right.machine(t, "initoverlayfs.timeout=1", rebootSoon)
		m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, wrongDisk), drive(vmtest.VirtioBlk, wrongDisk))
		says := ": " + right.conf.FS + ": the image has "
		failure{words: []string{"/dev/vda1" + says, "/dev/vdb1" + says}, timeoutS: 1, policy: "reboot:1"}.boot(t, m)
	})
}

// TestWrongTag has a disk with the right image, which the tag does not name.
func TestWrongTag(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"LABEL=Boot", "PARTUUID=" + fsUUID, "/dev/vdb1"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend loop\n" + onBootLabel}.build(t)
			m := b.machine(t, "initoverlayfs.timeout=1", rebootSoon, "initoverlayfs.bootfs="+tag)
			b.attach(t, &m, bootconf.Loop)
			failure{words: []string{"no image after 1 s: loop: no device " + tag}, timeoutS: 1, policy: "reboot:1"}.boot(t, m)
		})
	}
}
