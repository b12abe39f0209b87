package disks

import (
	"os"
	"strings"
	"testing"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

const debianKernel = "kernel-6.1"

// TestEntries boots disks of each kind by the entries of their menus: the first
// is what is booted if nobody chooses.
func TestEntries(t *testing.T) {
	for _, test := range []struct {
		name     string
		least    fixtures.Boots // of the first entry; the others are for All
		backend  bootconf.Backend
		args     []string
		previous []string // how the previous pair is built; nil: there is none
		kernel   string
	}{
		{
			"boot partition", fixtures.Some, bootconf.Loop, nil,
			[]string{"--backend", "loop", "--bootfstype", "ext4"}, debianKernel,
		},
		{
			"raw partition", fixtures.All, bootconf.Block, []string{"--boot", "raw"},
			[]string{"--backend", "block"}, debianKernel,
		},
		{
			"esp", fixtures.All, bootconf.RAM, []string{"--boot", "esp", "--backend", "ram"},
			[]string{"--backend", "auto:ram,loop", "--bootfstype", "vfat"}, debianKernel,
		},
		{
			"grub", fixtures.All, bootconf.Loop, []string{"--bootloader", "grub"},
			[]string{"--backend", "loop", "--bootfstype", "ext4"}, debianKernel,
		},
		{"a kernel that mounts files", fixtures.All, bootconf.File, nil, nil, "kernel-6.12"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			initramfs := fixtures.Path(t, strings.Replace(test.kernel, "kernel", "dracut", 1)+".img")
			root := fixtures.Path(t, "root-bookworm.tar")
			d := makeDisk(t, test.kernel, initramfs, test.previous, append(test.args, "--root", root, "--append", followed(t))...)
			t.Run("ours", func(t *testing.T) { d.bootPair(t, d.Manifest.Image.UUID, test.backend) })
			t.Run("plain", func(t *testing.T) {
				fixtures.RequireBoots(t, fixtures.All)
				d.choose(t, 1)
				doc := d.bootGood(t)
				if doc.Record != nil || doc.HandoverS != nil || doc.Backend != "plain" {
					t.Errorf("backend %s, handover %v, record %+v; want a plain boot", doc.Backend, doc.HandoverS, doc.Record)
				}
			})
			if test.previous == nil {
				return
			}
			t.Run("previous", func(t *testing.T) {
				fixtures.RequireBoots(t, fixtures.All)
				d.choose(t, 2)
				d.bootPair(t, d.previous, test.backend)
			})
		})
	}
}

// bootGood boots the disk to multi-user.target.
func (d *madeDisk) bootGood(t *testing.T) document {
	t.Helper()
	doc, err := d.boot(t)
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, doc.Error, endOfConsole(doc.LogDir))
	}
	if doc.MultiUserS == nil || doc.Done == nil {
		t.Fatalf("the document lacks something: %+v", doc)
	}
	if len(doc.Done.ErofsMounts) > 0 || len(doc.Done.ErofsSysfs) > 0 {
		t.Errorf("an EROFS is still mounted: %q %q", doc.Done.ErofsMounts, doc.Done.ErofsSysfs)
	}
	if !strings.Contains(doc.Done.Mountinfo, " - ext4 ") || !strings.HasPrefix(doc.Done.RootOptions, "rw") {
		t.Errorf("the root is mounted with %s in %s", doc.Done.RootOptions, doc.Done.Mountinfo)
	}
	t.Logf("multi-user %.2f s, wall %.0f s", *doc.MultiUserS, doc.WallS)
	return doc
}

// bootPair boots the disk through a pair with this image.
func (d *madeDisk) bootPair(t *testing.T, uuid string, backend bootconf.Backend) {
	t.Helper()
	doc := d.bootGood(t)
	r := doc.Record
	if r == nil || r.Backend != backend || r.ImageUUID != uuid {
		t.Errorf("record %+v; want %s from the image %s", r, backend, uuid)
	}
}

// TestDamaged boots disks whose image is not there any more as it was: the boot
// is reported as failed, for the reason that storage-init names.
func TestDamaged(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	d := makeDisk(t, debianKernel, tinyTree(t), []string{"--backend", "block"}, "--root", t.TempDir(), "--boot", "raw",
		"--append", followed(t)+" initoverlayfs.timeout=2 initoverlayfs.on_failure=reboot:0")
	const superblock = 1024
	for _, test := range []struct {
		name   string
		least  fixtures.Boots
		damage func(t *testing.T, f *os.File, at int64)
		want   string
	}{
		{"superblock", fixtures.Some, func(t *testing.T, f *os.File, at int64) {
			if _, err := f.WriteAt(make([]byte, 128), at+superblock); err != nil {
				t.Fatal(err)
			}
		}, "not an EROFS image"},
		{"another image", fixtures.All, func(t *testing.T, f *os.File, at int64) {
			other := make([]byte, 1<<20)
			if _, err := f.ReadAt(other, d.offset(t, "initoverlayfs-previous")); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(other, at); err != nil {
				t.Fatal(err)
			}
		}, d.previous},
	} {
		t.Run(test.name, func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			f, err := os.OpenFile(d.path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			test.damage(t, f, d.offset(t, "initoverlayfs"))
			doc, err := d.boot(t)
			if err == nil {
				t.Fatal("it booted")
			}
			if !strings.Contains(doc.Error, "storage-init: fatal: ") || !strings.Contains(doc.Error, test.want) {
				t.Errorf("error = %q; want the fatal line of storage-init with %q\n%s", doc.Error, test.want, endOfConsole(doc.LogDir))
			}
			if doc.HandoverS != nil || doc.Record != nil {
				t.Errorf("handover at %v, record %+v; want none", doc.HandoverS, doc.Record)
			}
		})
	}
}
