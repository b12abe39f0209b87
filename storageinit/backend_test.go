package storageinit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
)

var loopLines = []string{"backend loop", "bootfs LABEL=boot", "fs " + imagePath}

// wantBoot checks that the machine boots from a backend.
func wantBoot(t *testing.T, f *fakeSystem, backend string) {
	t.Helper()
	if f.end != "exec" {
		t.Fatalf("the boot ends with %s, want exec: %s", f.end, f.fatal())
	}
	if want := "handover backend=" + backend + " "; len(f.linesWith(want)) != 1 {
		t.Errorf("no line %q in %q", want, f.logs)
	}
}

// TestNoImage has machines that do not boot, and what they say.
func TestNoImage(t *testing.T) {
	withoutDevice := func(f *fakeSystem) { f.disks = nil }
	image := func(change func(*fakeContent)) func(*fakeSystem) {
		return func(f *fakeSystem) { change(f.disks[1].files[imagePath]) }
	}
	partition := func(change func(*fakeContent)) func(*fakeSystem) {
		return func(f *fakeSystem) { change(&f.disks[2].fakeContent) }
	}
	pmem := func(compressed bool, change func(*fakeSystem)) func(*fakeSystem) {
		return func(f *fakeSystem) {
			f.addPmem(compressed)
			if change != nil {
				change(f)
			}
		}
	}
	otherImage := func(c *fakeContent) { c.head = erofsContent(otherUUID, true).head }
	notErofs := func(c *fakeContent) { c.head = []byte("text") }
	block := []string{"backend block", "bootfs PARTLABEL=image"}

	for _, test := range []struct {
		name   string
		lines  []string
		change func(*fakeSystem)
		want   string
	}{
		{"loop: no device", loopLines, withoutDevice, "no image after 30 s: loop: no device LABEL=boot"},
		{"loop: no file", loopLines, func(f *fakeSystem) { f.disks[1].files = nil },
			"no image after 30 s: loop: /dev/vda1: open /initoverlayfs.img: no such file or directory"},
		{"loop: another image", loopLines, image(otherImage),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: the image has UUID " + otherUUID + ", image_uuid says " + imageUUID},
		{"loop: truncated", loopLines, image(func(c *fakeContent) { c.size -= 4096 }),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: the image has 1044480 bytes, image_size says 1048576"},
		{"loop: too long", loopLines, image(func(c *fakeContent) { c.size++ }),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: the image has 1048577 bytes, image_size says 1048576"},
		{"loop: empty", loopLines, image(func(c *fakeContent) { c.size = 0 }),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: the image has 0 bytes, image_size says 1048576"},
		{"loop: the superblock counts more", loopLines, image(func(c *fakeContent) { c.head[1024+37]++ }),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: the superblock counts 2097152 bytes, image_size says 1048576"},
		{"loop: not EROFS", loopLines, image(notErofs),
			"no image after 30 s: loop: /dev/vda1: /initoverlayfs.img: not an EROFS image"},
		{"loop: no filesystem that is known", append(slices.Clone(loopLines), "bootfs /dev/vda"), nil,
			"no image after 30 s: loop: /dev/vda: no known filesystem (ext4, xfs, btrfs, vfat, erofs)"},
		{"loop: another filesystem than configured", append(slices.Clone(loopLines), "bootfstype xfs"), nil,
			"no image after 30 s: loop: /dev/vda1: mount xfs: invalid argument"},
		{"loop: bootfs is not set", []string{"backend loop", "fs " + imagePath}, nil, "no image: loop: bootfs is not set"},
		{"loop: fs is not set", []string{"backend loop", "bootfs LABEL=boot"}, nil, "no image: loop: fs is not set"},
		{"ram: truncated", []string{"backend ram", "bootfs LABEL=boot", "fs " + imagePath}, image(func(c *fakeContent) { c.size = 1 }),
			"no image after 30 s: ram: /dev/vda1: /initoverlayfs.img: the image has 1 bytes, image_size says 1048576"},

		{"block: no device", block, withoutDevice, "no image after 30 s: block: no device PARTLABEL=image"},
		{"block: no device, no tag", []string{"backend block"}, withoutDevice, "no image after 30 s: block: no device with an EROFS image"},
		{"block: another image", block, partition(otherImage),
			"no image after 30 s: block: /dev/vda2: the image has UUID " + otherUUID + ", image_uuid says " + imageUUID},
		{"block: another image, no tag", []string{"backend block"}, partition(otherImage),
			"no image after 30 s: block: no device with an EROFS image"},
		{"block: device too small", block, partition(func(c *fakeContent) { c.size = imageSize - 512 }),
			"no image after 30 s: block: /dev/vda2: the device has 1048064 bytes, the image 1048576"},
		{"block: not EROFS", block, partition(notErofs), "no image after 30 s: block: /dev/vda2: not an EROFS image"},

		{"pmem: no device", []string{"backend pmem"}, nil, "no image after 30 s: pmem: no pmem device with an EROFS image"},
		{"pmem: another image", []string{"backend pmem"}, pmem(true, func(f *fakeSystem) { otherImage(&f.pmems[0].fakeContent) }),
			"no image after 30 s: pmem: /dev/pmem0: the image has UUID " + otherUUID + ", image_uuid says " + imageUUID},
		{"pmem-dax: compressed", []string{"backend pmem-dax"}, pmem(true, nil),
			"no image after 30 s: pmem-dax: /dev/pmem0: the image is compressed, dax needs an uncompressed one"},
		{"pmem-dax: without dax", []string{"backend pmem-dax"}, pmem(false, func(f *fakeSystem) { f.noDAX = true }),
			"no image after 30 s: pmem-dax: /dev/pmem0: the device has no dax, the mount silently went without"},

		{"embedded: no file", []string{"backend embedded"}, nil, "no image: embedded: open /initoverlayfs.img: no such file or directory"},
		{"embedded: truncated", []string{"backend embedded"}, func(f *fakeSystem) {
			c := erofsContent(imageUUID, true)
			c.size--
			f.embedded = &c
		}, "no image: embedded: /initoverlayfs.img: the image has 1048575 bytes, image_size says 1048576"},

		{"auto: every reason", []string{"backend auto:pmem,embedded,block,loop", "bootfs LABEL=boot", "timeout 5"}, nil,
			"no image after 5 s: pmem: no pmem device with an EROFS image; " +
				"embedded: open /initoverlayfs.img: no such file or directory; " +
				"block: /dev/vda1: not an EROFS image; loop: fs is not set"},
		{"timeout 0", append(slices.Clone(loopLines), "timeout 0"), withoutDevice, "no image after 0 s: loop: no device LABEL=boot"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, test.lines...)
			if test.change != nil {
				test.change(f)
			}
			f.run()
			if want := test.want + " (on_failure reboot:10)"; f.fatal() != want {
				t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
			}
			f.checkRolledBack()
		})
	}
}

// TestConfigurationErrors are found before anything is mounted.
func TestConfigurationErrors(t *testing.T) {
	for _, test := range []struct {
		name, path, text, want string
	}{
		{"no UUID", bootconf.ConfigPath, "image_size 1\n", "/etc/initoverlayfs.conf: image_uuid is not set"},
		{"no size", bootconf.ConfigPath, "image_uuid " + imageUUID + "\n", "/etc/initoverlayfs.conf: image_size is not set"},
		{"bad value", bootconf.ConfigPath, "\ntimeout x\n", `/etc/initoverlayfs.conf: line 2: timeout: bad timeout "x"; it is a number of seconds`},
		{"bad override", "/proc/cmdline", "initoverlayfs.backend=disk", `kernel command line: initoverlayfs.backend: unknown backend "disk"; ` +
			"known: block loop file pmem pmem-dax embedded ram auto auto:LIST"},
		{"bad module list", bootconf.ModulesPath, "0 - m.ko\n", `/etc/initoverlayfs.modules: line 1: not a module: "0 - m.ko"`},
		{"bad alias list", bootconf.AliasesPath, "pci:*\n", `/etc/initoverlayfs.aliases: line 1: not an alias: "pci:*"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, loopLines...)
			f.files[test.path] = test.text
			f.run()
			if want := test.want + " (on_failure reboot:10)"; f.fatal() != want {
				t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
			}
			if len(f.callsWith("load ")) > 0 {
				t.Error("modules were loaded with a configuration that is not sound")
			}
		})
	}
}

func TestUnknownKeysAreLogged(t *testing.T) {
	f := newFake(t, append(slices.Clone(loopLines), "verify yes")...)
	f.setCmdline("initoverlayfs.future=1")
	f.run()
	wantBoot(t, f, "loop")
	for _, want := range []string{
		"/etc/initoverlayfs.conf: line 6: verify: unknown key, ignored",
		"kernel command line: initoverlayfs.future: unknown key, ignored",
	} {
		if got := f.linesWith(want); len(got) != 1 {
			t.Errorf("%d lines %q in %q, want 1", len(got), want, f.logs)
		}
	}
}

func TestCommandLineOverridesFile(t *testing.T) {
	f := newFake(t, append(slices.Clone(loopLines), "timeout 3")...)
	f.setCmdline("initoverlayfs.backend=file initoverlayfs.bootfs=UUID=" + bootUUID)
	f.run()
	wantBoot(t, f, "file")
}

// TestTags boots from a filesystem that is named in each way.
func TestTags(t *testing.T) {
	for _, tag := range []string{
		"LABEL=boot", "UUID=" + bootUUID, "UUID=" + strings.ToUpper(bootUUID), "PARTLABEL=boot", "/dev/vda1",
		"PARTUUID=00000001-0000-0000-0000-0000000000a1",
	} {
		f := newFake(t, "backend loop", "bootfs "+tag, "fs "+imagePath)
		f.setCmdline("")
		f.run()
		if f.end != "exec" {
			t.Errorf("bootfs %s: %s", tag, f.fatal())
		}
	}
	for _, tag := range []string{"LABEL=Boot", "LABEL=boo", "UUID=" + otherUUID, "PARTLABEL=BOOT", "/dev/vda9", "PARTUUID=00000001"} {
		f := newFake(t, "backend loop", "bootfs "+tag, "fs "+imagePath)
		f.run()
		if want := "no image after 30 s: loop: no device " + tag; !strings.HasPrefix(f.fatal(), want) {
			t.Errorf("bootfs %s: fatal: %s, want %s", tag, f.fatal(), want)
		}
	}
}

// A partition without a table has the name that the kernel gives it.
func TestPartitionNameOfTheKernel(t *testing.T) {
	f := newFake(t, "backend loop", "bootfs PARTLABEL=boot", "fs "+imagePath)
	clear(f.disks[0].head)
	f.run()
	wantBoot(t, f, "loop")
}

// The right image decides between two filesystems with the same label.
func TestSameLabelTwice(t *testing.T) {
	twin := func(files map[string]*fakeContent) *fakeSystem {
		f := newFake(t, loopLines...)
		old := ext4Block("vdb", otherUUID, "boot", files)
		f.disks = slices.Insert(f.disks, 0, old)
		return f
	}
	other := erofsContent(otherUUID, true)
	for name, files := range map[string]map[string]*fakeContent{
		"no image":      nil,
		"another image": {imagePath: &other},
	} {
		f := twin(files)
		f.run()
		wantBoot(t, f, "loop")
		if !f.called("mount /dev/vdb on /bootfs type ext4 (ro,noload)") {
			t.Errorf("%s: the first filesystem was not tried: %q", name, f.calls)
		}
		if f.called("wait for an event until 30 s") {
			t.Errorf("%s: it waits though the second filesystem is there", name)
		}
	}

	f := twin(nil)
	f.disks[2].files[imagePath].size--
	f.run()
	for _, want := range []string{
		"/dev/vdb: open /initoverlayfs.img: no such file or directory",
		"/dev/vda1: /initoverlayfs.img: the image has 1048575 bytes",
	} {
		if !strings.Contains(f.fatal(), want) {
			t.Errorf("fatal: %s\nwant:  %s in it", f.fatal(), want)
		}
	}
}

// The same for whole devices, where the UUID is all that is looked at.
func TestTwoImages(t *testing.T) {
	f := newFake(t, "backend block")
	f.disks = slices.Insert(f.disks, 0, erofsBlock("vdb", otherUUID))
	f.run()
	wantBoot(t, f, "block")
	if !f.called("mount /dev/vda2 on /lower type erofs (ro)") || f.called("mount /dev/vdb on /lower type erofs (ro)") {
		t.Errorf("the wrong device was mounted: %q", f.callsWith("mount "))
	}
}

// The hinted device is the first that is read, and the last if it is the one.
func TestHint(t *testing.T) {
	f := newFake(t, append(slices.Clone(loopLines), "bootfs_hint /dev/vda1")...)
	f.setCmdline("")
	f.run()
	wantBoot(t, f, "loop")
	if diff := cmp.Diff([]string{"open /dev/vda1"}, f.callsWith("open /dev/")); diff != "" {
		t.Errorf("devices that were opened (-want +got):\n%s", diff)
	}

	f = newFake(t, append(slices.Clone(loopLines), "bootfs_hint /dev/vda3")...)
	f.setCmdline("")
	f.run()
	wantBoot(t, f, "loop")
	if diff := cmp.Diff([]string{"open /dev/vda3", "open /dev/vda", "open /dev/vda1"}, f.callsWith("open /dev/")); diff != "" {
		t.Errorf("devices that were opened with a wrong hint (-want +got):\n%s", diff)
	}
}

// With a path nothing but that device is read.
func TestPathOpensNothingElse(t *testing.T) {
	f := newFake(t, "backend loop", "bootfs /dev/vda1", "bootfstype ext4", "fs "+imagePath)
	f.setCmdline("")
	f.run()
	wantBoot(t, f, "loop")
	if got := f.callsWith("open /dev/"); len(got) > 0 {
		t.Errorf("devices that were opened: %q, want none", got)
	}
}

func TestDevicesThatAreLeftAlone(t *testing.T) {
	f := newFake(t, "backend block")
	for _, name := range []string{"loop1", "ram0", "zram0", "fd0", "nbd3"} {
		f.disks = slices.Insert(f.disks, 0, erofsBlock(name, imageUUID))
	}
	empty := erofsBlock("sr0", imageUUID)
	empty.size = 0
	// Names that only begin like those of such devices.
	f.disks = slices.Insert(f.disks, 0, empty, erofsBlock("ramdisk", otherUUID), erofsBlock("cciss!c0d0", otherUUID))
	f.run()
	wantBoot(t, f, "block")
	want := []string{"open /dev/ramdisk", "open /dev/cciss/c0d0", "open /dev/vda", "open /dev/vda1", "open /dev/vda2", "open /dev/vda2"}
	if diff := cmp.Diff(want, f.callsWith("open /dev/")); diff != "" {
		t.Errorf("devices that were opened (-want +got):\n%s", diff)
	}
}

func TestPmemEligible(t *testing.T) {
	// A path decides between two of them; a tag of the boot disk does not.
	for bootfs, want := range map[string]string{"/dev/pmem1": "pmem1", "/dev/vda1": "pmem0", "LABEL=boot": "pmem0"} {
		f := newFake(t, "backend pmem", "bootfs "+bootfs)
		f.addPmem(true)
		f.pmems = append(f.pmems, erofsBlock("pmem1", imageUUID))
		f.run()
		wantBoot(t, f, "pmem")
		if call := "mount /dev/" + want + " on /lower type erofs (ro)"; !f.called(call) {
			t.Errorf("bootfs %s: no call %q in %q", bootfs, call, f.callsWith("mount "))
		}
	}
	// block does not take what is for pmem.
	f := newFake(t, "backend auto:pmem-dax,block")
	f.addPmem(true)
	f.disks = nil
	f.run()
	if f.end == "exec" {
		t.Errorf("block took a pmem device: %q", f.callsWith("mount "))
	}
}

// withoutDAX: the next backend takes the device that pmem-dax gave back.
func TestAutoFromDAXToPmem(t *testing.T) {
	f := newFake(t, "backend auto:pmem-dax,pmem")
	f.addPmem(false)
	f.noDAX = true
	f.run()
	wantBoot(t, f, "pmem")
	want := []string{
		"mount /dev/pmem0 on /lower type erofs (ro,dax=always)",
		"unmount /lower",
		"mount /dev/pmem0 on /lower type erofs (ro)",
	}
	got := slices.DeleteFunc(slices.Clone(f.calls), func(call string) bool { return !strings.Contains(call, " /lower type") && call != "unmount /lower" })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func TestLoopWithoutDirectIO(t *testing.T) {
	f := newFake(t, loopLines...)
	f.noDirectIO = true
	f.run()
	wantBoot(t, f, "loop")
	if got := f.linesWith("loop device without direct I/O"); len(got) != 1 {
		t.Errorf("%d lines about direct I/O in %q, want 1", len(got), f.logs)
	}
}

// TestFileWithoutDirectIO boots from a file where the disk cannot do it or the
// kernel does not know the option, and does not where it refuses the file as well.
func TestFileWithoutDirectIO(t *testing.T) {
	lines := []string{"backend file", "bootfs LABEL=boot", "fs " + imagePath, "timeout 0"}
	const mount = "mount /proc/self/fd/(/bootfs" + imagePath + ") on /lower type erofs "
	mounts := []string{mount + "(ro,directio)", mount + "(ro)"}
	for _, test := range []struct {
		name    string
		coarse  bool // disk
		refused int  // of the mounts
		err     error
		boots   bool
		mounts  []string
	}{
		{"coarse disk", true, 0, nil, true, mounts[1:]},
		{"coarse disk, no image for it", true, 1, syscall.EINVAL, false, mounts[1:]},
		{"old kernel", false, 1, syscall.EINVAL, true, mounts},
		{"no image for it", false, 2, syscall.EINVAL, false, mounts},
		{"another error", false, 1, syscall.EIO, false, mounts[:1]},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, lines...)
			f.noDirectIO = test.coarse
			refused := 0
			f.inject = func(_ int, call string) error {
				if strings.HasPrefix(call, mount) && refused < test.refused {
					refused++
					return test.err
				}
				return nil
			}
			f.run()
			warned := len(f.linesWith("file-backed mount without direct I/O"))
			if test.boots {
				wantBoot(t, f, "file")
				if warned != 1 {
					t.Errorf("%d lines about direct I/O in %q, want 1", warned, f.logs)
				}
			} else if want := "mount erofs: " + test.err.Error(); !strings.Contains(f.fatal(), want) || warned != 0 {
				t.Errorf("log %q, want %q", f.logs, want)
			}
			if diff := cmp.Diff(test.mounts, f.callsWith(mount)); diff != "" {
				t.Errorf("mounts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadOnlyWithoutReplay(t *testing.T) {
	for fstype, want := range map[string]string{
		"ext4": "ro,noload", "xfs": "ro,norecovery", "btrfs": "ro,rescue=nologreplay,subvolid=5", "vfat": "ro", "erofs": "ro",
	} {
		f := newFake(t, append(slices.Clone(loopLines), "bootfstype "+fstype)...)
		f.disks[1].fstype = fstype
		f.run()
		wantBoot(t, f, "loop")
		if call := fmt.Sprintf("mount /dev/vda1 on /bootfs type %s (%s)", fstype, want); !f.called(call) {
			t.Errorf("no call %q in %q", call, f.callsWith("mount "))
		}
	}
}

// TestLateDevice boots from a device that appears during the wait.
func TestLateDevice(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
	}{
		{"loop", loopLines},
		{"file", []string{"backend file", "bootfs PARTLABEL=boot", "fs " + imagePath}},
		{"ram", []string{"backend ram", "bootfs /dev/vda1", "fs " + imagePath}},
		{"block", []string{"backend block"}},
		{"loop", []string{"backend auto:block,loop", "bootfs LABEL=boot", "fs " + imagePath}},
	} {
		f := newFake(t, test.lines...)
		disks := f.disks
		f.disks = nil
		appear := func(i int) func(*fakeSystem) {
			return func(f *fakeSystem) { f.blocks = append(f.blocks, disks[i]) }
		}
		f.events = []fakeEvent{
			{at: 1, Uevent: Uevent{SCSIHost: true}},
			{at: 2, Uevent: Uevent{Block: "vda"}, do: appear(0)},
			{at: 29, Uevent: Uevent{Block: "vda1"}, do: appear(1)},
			{at: 30, Uevent: Uevent{Block: "vda2"}, do: appear(2)},
		}
		f.run()
		wantBoot(t, f, test.name)
	}
}

// A device that was read in vain is read again after an event about it, as for
// a drive into which a medium was put, and not after other events.
func TestEventAboutTriedDevice(t *testing.T) {
	for _, test := range []struct {
		name  string
		event Uevent
		boots bool
	}{
		{"its own", Uevent{Block: "vda1"}, true},
		{"lost events", Uevent{}, true},
		{"another device", Uevent{Block: "vda2"}, false},
	} {
		f := newFake(t, loopLines...)
		image := f.disks[1].files[imagePath]
		f.disks[1].files = map[string]*fakeContent{}
		boot := f.disks[1]
		f.events = []fakeEvent{{at: 3, Uevent: test.event, do: func(*fakeSystem) { boot.files[imagePath] = image }}}
		f.run()
		if boots := f.end == "exec"; boots != test.boots {
			t.Errorf("%s: the machine boots: %v, want %v", test.name, boots, test.boots)
		}
	}
}

// What a device holds is read again after an event about it, as when a medium
// was put in or a filesystem made.
func TestEventAboutUnknownDevice(t *testing.T) {
	f := newFake(t, loopLines...)
	boot := f.disks[1]
	head := boot.head
	boot.head = nil
	f.events = []fakeEvent{{at: 1, Uevent: Uevent{Block: "vda1"}, do: func(*fakeSystem) { boot.head = head }}}
	f.run()
	wantBoot(t, f, "loop")
}

func TestTooLate(t *testing.T) {
	f := newFake(t, append(slices.Clone(loopLines), "timeout 7")...)
	disks := f.disks
	f.disks = nil
	f.events = []fakeEvent{{at: 8, Uevent: Uevent{Block: "vda1"}, do: func(f *fakeSystem) { f.blocks = append(f.blocks, disks[1]) }}}
	f.run()
	if want := "no image after 7 s: loop: no device LABEL=boot (on_failure reboot:10)"; f.fatal() != want {
		t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
	}
}

// An attempt may outlast the deadline: what happened meanwhile is looked at, but
// not without end.
func TestEventsWithoutEnd(t *testing.T) {
	f := newFake(t, loopLines...)
	f.disks = nil
	seen := 0
	slow := func(seconds int64) fakeEvent {
		return fakeEvent{at: 29, Uevent: Uevent{Block: "vda"}, do: func(f *fakeSystem) {
			seen++
			f.now += seconds * 1_000_000
		}}
	}
	f.events = []fakeEvent{slow(40), slow(0), slow(2), slow(0), slow(0)}
	f.run()
	if want := "no image after 30 s: loop: no device LABEL=boot (on_failure reboot:10)"; f.fatal() != want {
		t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
	}
	// The first begins the time for late ones, the third is read behind its end.
	if want := 3; seen != want {
		t.Errorf("%d events were looked at, want %d", seen, want)
	}
}

// Nothing is waited for when no backend can gain by it.
func TestNoWait(t *testing.T) {
	f := newFake(t, "backend auto:embedded,loop")
	f.run()
	if want := "no image: embedded: open /initoverlayfs.img: no such file or directory; loop: bootfs is not set (on_failure reboot:10)"; f.fatal() != want {
		t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
	}
	if f.called("wait for an event until 30 s") {
		t.Error("it waits")
	}
}

// The real root stays free: its image is copied to memory.
func TestBootfsIsRoot(t *testing.T) {
	roots := []string{"root=LABEL=boot", "root=UUID=" + bootUUID, "root=/dev/vda1", "root=PARTLABEL=boot", "root=block:/dev/vda1", "root=/dev/vda3 root=LABEL=boot", "root=/dev/disk/by-uuid/" + bootUUID, "root=/dev/disk/by-label/boot"}
	for _, root := range roots {
		for _, backend := range []string{"loop", "file", "auto:file,loop,ram"} {
			f := newFake(t, "backend "+backend, "bootfs LABEL=boot", "fs "+imagePath)
			f.setCmdline("ro " + root)
			f.run()
			wantBoot(t, f, "ram")
			if !strings.Contains(f.written[bootconf.RecordPath], "it is also the real root") {
				t.Errorf("%s, %s: the record has no reason: %s", backend, root, f.written[bootconf.RecordPath])
			}
			unasked := !strings.HasPrefix(backend, "auto")
			if got := len(f.linesWith(backend+": /dev/vda1: it is also the real root, which must stay free; the image is copied to memory instead")) == 1; got != unasked {
				t.Errorf("%s, %s: the fall-back is told: %t, want %t", backend, root, got, unasked)
			}
			if _, mounted := f.mounts[bootfsDir]; mounted || !f.called("unmount "+bootfsDir) {
				t.Errorf("%s, %s: the root is still mounted", backend, root)
			}
		}
	}
	// Neither is said of a root= on another device, or of ram itself.
	f := newFake(t, "backend ram", "bootfs LABEL=boot", "fs "+imagePath)
	f.setCmdline("root=LABEL=boot")
	f.run()
	wantBoot(t, f, "ram")
	if strings.Contains(f.written[bootconf.RecordPath], "real root") {
		t.Errorf("ram has an excuse: %s", f.written[bootconf.RecordPath])
	}
}

// The same when the device comes late.
func TestLateBootfsIsRoot(t *testing.T) {
	f := newFake(t, loopLines...)
	f.setCmdline("root=LABEL=boot")
	disks := f.disks
	f.disks = nil
	f.events = []fakeEvent{{at: 2, Uevent: Uevent{Block: "vda1"}, do: func(f *fakeSystem) { f.blocks = append(f.blocks, disks[1]) }}}
	f.run()
	wantBoot(t, f, "ram")
}

func TestSCSIAddress(t *testing.T) {
	const host = "/sys/class/scsi_host/host2"
	write := "write " + scsiScanPath + ": 0 1 49476"
	lines := append(slices.Clone(loopLines), "scsi.addr 2:0:1:49476")

	// Present from the beginning, and with more events to come.
	f := newFake(t, lines...)
	f.dirs[host] = []string{"scan"}
	disks := f.disks
	f.disks = nil
	f.events = []fakeEvent{
		{at: 1, Uevent: Uevent{Block: "sda"}},
		{at: 2, Uevent: Uevent{Block: "vda1"}, do: func(f *fakeSystem) { f.blocks = append(f.blocks, disks[1]) }},
	}
	f.run()
	wantBoot(t, f, "loop")
	if got := f.callsWith("write " + scsiScanPath); !slices.Equal(got, []string{write}) {
		t.Errorf("writes %q, want one %q", got, write)
	}

	// The host appears during the wait.
	f = newFake(t, lines...)
	f.disks = nil
	f.absent[host] = true
	f.events = []fakeEvent{
		{at: 1, Uevent: Uevent{Block: "sr0"}},
		{at: 2, Uevent: Uevent{SCSIHost: true}, do: func(f *fakeSystem) { f.dirs[host] = []string{"scan"} }},
		{at: 3, Uevent: Uevent{SCSIHost: true}},
		{at: 4, Uevent: Uevent{Block: "vda1"}, do: func(f *fakeSystem) { f.blocks = append(f.blocks, disks[1]) }},
	}
	f.run()
	wantBoot(t, f, "loop")
	if got := f.callsWith("write " + scsiScanPath); !slices.Equal(got, []string{write}) {
		t.Errorf("writes %q, want one %q", got, write)
	}

	// A scan that fails is told, and not repeated; the disk may come anyway.
	f = newFake(t, lines...)
	f.dirs[host] = []string{"scan"}
	f.failCall(write, syscall.EINVAL)
	f.run()
	wantBoot(t, f, "loop")
	if got := f.linesWith("scan SCSI address 2:0:1:49476: invalid argument"); len(got) != 1 {
		t.Errorf("%d lines about the scan in %q, want 1", len(got), f.logs)
	}
}

// TestFailurePolicy ends a boot without a device in each way.
func TestFailurePolicy(t *testing.T) {
	for _, test := range []struct {
		name, file, cmdline string
		fail                string
		want                []string // from the fatal line on
	}{
		{name: "default", want: []string{"(on_failure reboot:10)", "rebooting in 10 s", "sleep 10 s", "reboot"}},
		{name: "at once", file: "on_failure reboot:0", want: []string{"(on_failure reboot:0)", "reboot"}},
		{name: "halt", file: "on_failure halt", want: []string{"(on_failure halt)", "halt"}},
		{name: "panic", file: "on_failure panic", want: []string{"(on_failure panic)", "write /proc/sys/kernel/panic: 0", "exit"}},
		{name: "panic=", cmdline: "panic=3", want: []string{"(on_failure reboot:3)", "rebooting in 3 s", "sleep 3 s", "reboot"}},
		{name: "panic=0", file: "on_failure reboot:1", cmdline: "panic=0", want: []string{"(on_failure halt)", "halt"}},
		{name: "override", file: "on_failure reboot:1", cmdline: "panic=0 initoverlayfs.on_failure=panic",
			want: []string{"(on_failure panic)", "write /proc/sys/kernel/panic: 0", "exit"}},
		{name: "no reboot", file: "on_failure reboot:0", fail: "reboot",
			want: []string{"(on_failure reboot:0)", "reboot", "reboot: injected failure", "exit"}},
		{name: "no halt", file: "on_failure halt", fail: "halt",
			want: []string{"(on_failure halt)", "halt", "halt: injected failure", "exit"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, append(slices.Clone(loopLines), test.file)...)
			f.disks = nil
			f.setCmdline(test.cmdline)
			f.failCall(test.fail, errInjected)
			f.run()
			from := slices.IndexFunc(f.calls, func(call string) bool { return strings.Contains(call, " fatal: ") })
			if from < 0 {
				t.Fatalf("no fatal line in %q", f.calls)
			}
			got := slices.Clone(f.calls[from:])
			for i, call := range got {
				if _, text, ok := strings.Cut(call, bootconf.LogPrefix); ok {
					if !strings.HasPrefix(call, "log <2>") {
						t.Errorf("%s: not at a level that the console shows", call)
					}
					got[i] = text
				}
			}
			got[0] = got[0][strings.LastIndexByte(got[0], '('):]
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
		})
	}
}

// The command line's policy holds for what is wrong with the file, too.
func TestPolicyOfABadFile(t *testing.T) {
	f := newFake(t, "on_failure reboot:1", "timeout x")
	f.setCmdline("initoverlayfs.on_failure=halt")
	f.run()
	if f.end != "halt" {
		t.Errorf("the boot ends with %s, want halt: %s", f.end, f.fatal())
	}
}

func TestPanicTimeout(t *testing.T) {
	for _, test := range []struct {
		name, kernel, cmdline string
		want                  []string
	}{
		{"not set", "0\n", "", []string{"10", "0"}},
		{"set", "5\n", "panic=5", []string{"5"}},
		{"set to stay", "0\n", "panic=0", []string{"0"}},
	} {
		f := newFake(t, loopLines...)
		f.files[panicTimeoutPath] = test.kernel
		f.setCmdline(test.cmdline)
		f.run()
		wantBoot(t, f, "loop")
		var got []string
		for _, call := range f.callsWith("write " + panicTimeoutPath) {
			got = append(got, call[strings.LastIndexByte(call, ' ')+1:])
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: values of the timeout (-want +got):\n%s", test.name, diff)
		}
	}
}

// The fake machine refuses a log line that is more than one.
func TestFatalIsOneLine(t *testing.T) {
	f := newFake(t, loopLines...)
	f.load = func(string, string) error { return errors.New("one\ntwo") }
	f.run()
	if want := "no image: loop: load module /lib/modules/crc32c_generic.ko: one two (on_failure reboot:10)"; f.fatal() != want {
		t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
	}
}

// A panic of ours is a fatal error like others.
func TestPanicIsFatal(t *testing.T) {
	for _, where := range []string{"mount devtmpfs on /dev type devtmpfs (nosuid,mode=0755)", "open /bootfs/initoverlayfs.img", "load /lib/modules/erofs.ko"} {
		f := newFake(t, loopLines...)
		f.cpus = 4
		f.inject = func(_ int, call string) error {
			if call == where {
				panic("something")
			}
			return nil
		}
		f.run()
		if f.end != "reboot" || !strings.Contains(f.fatal(), "internal error: something") {
			t.Errorf("panic in %s: the boot ends with %s: %s", where, f.end, f.fatal())
		}
	}
}
