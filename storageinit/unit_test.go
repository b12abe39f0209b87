package storageinit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// newUnit is the machine of newFake when its mini-initramfs has systemd: the
// drivers are there, and udev is done with each device.
func newUnit(t testing.TB, lines ...string) *fakeSystem {
	f := newFake(t, lines...)
	f.unit = true
	f.files = map[string]string{"/etc/initoverlayfs.conf": f.files["/etc/initoverlayfs.conf"], "/proc/cmdline": f.files["/proc/cmdline"]}
	f.absent, f.dirs = map[string]bool{}, map[string][]string{}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		f.mounts[dir] = fakeMount{}
	}
	for _, block := range f.disks {
		f.addUdev(block)
	}
	return f
}

// addUdev adds a device of which udev knows these properties and links.
func (f *fakeSystem) addUdev(block *fakeBlock, lines ...string) {
	f.blocks = append(f.blocks, block)
	f.files[f.udevPath(block.name)] = strings.Join(append([]string{"I:123", "V:1"}, lines...), "\n") + "\n"
	f.dirs[classBlock+"/"+block.name+"/holders"] = nil
}

func (f *fakeSystem) udevPath(name string) string {
	i := slices.IndexFunc(f.blocks, func(b *fakeBlock) bool { return b.name == name })
	return fmt.Sprintf("/run/udev/data/b254:%d", i)
}

// runUnit runs the unit to its end: f.end is empty if it succeeds.
func (f *fakeSystem) runUnit() {
	f.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		RunUnit(f)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		f.t.Fatalf("the run hangs after %q", f.calls)
	}
	fatal, handover := len(f.linesWith("fatal: ")), len(f.linesWith("handover "))
	switch {
	case f.end == "" && (fatal != 0 || handover != 1):
		f.t.Errorf("a good unit has %d fatal and %d handover lines, want 0 and 1: %q", fatal, handover, f.logs)
	case f.end == "exit" && (fatal != 1 || handover != 0):
		f.t.Errorf("a failed unit has %d fatal and %d handover lines, want 1 and 0: %q", fatal, handover, f.logs)
	case f.end != "" && f.end != "exit":
		f.t.Errorf("the unit ends with %s", f.end)
	}
	f.checkClosed()
}

func TestUnitOrder(t *testing.T) {
	f := newUnit(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	f.runUnit()
	if f.end != "" {
		t.Fatalf("the unit fails: %s", f.fatal())
	}
	golden(t, "unit-loop.txt", strings.Join(f.calls, "\n")+"\n")
	if want := "INIT=/init\n"; f.written[environmentPath] != want {
		t.Errorf("the next unit is told %q, want %q", f.written[environmentPath], want)
	}
	for _, dir := range []string{lowerDir, overlayDir, bootfsDir} {
		if _, ok := f.mounts[dir]; ok {
			t.Errorf("%s is still mounted", dir)
		}
	}
}

// TestUnitFailures lets each call fail in turn: the unit succeeds or it fails, and
// the machine is left to systemd.
func TestUnitFailures(t *testing.T) {
	whole := newUnit(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	whole.runUnit()
	good, failures := 0, 0
	for n, call := range whole.calls {
		if strings.HasPrefix(call, "log ") {
			continue
		}
		f := newUnit(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
		f.inject = func(i int, _ string) error {
			if i == n {
				return errInjected
			}
			return nil
		}
		f.runUnit()
		if f.end == "" {
			good++
			continue
		}
		failures++
		if strings.Contains(f.fatal(), "on_failure") || f.called("reboot") {
			t.Errorf("%s failed: %s; the policy is not for a unit", call, f.fatal())
		}
		if _, ok := f.written[environmentPath]; ok {
			t.Errorf("%s failed, and the next unit is told an init", call)
		}
	}
	if good < 10 || failures < 10 {
		t.Errorf("%d good and %d failed units, want at least 10 of each", good, failures)
	}
}

// The members of an array or a volume show what the whole of it has.
func TestUnitMembers(t *testing.T) {
	image := erofsContent(imageUUID, true)
	files := map[string]*fakeContent{imagePath: &image}
	whole := func() *fakeBlock { return ext4Block("md0", otherUUID, "array", files) }
	for _, test := range []struct {
		name   string
		member []string // what udev knows of a member
		holder bool
		serves bool
	}{
		{"MD", []string{"E:ID_FS_TYPE=linux_raid_member"}, false, false},
		{"LVM", []string{"E:ID_FS_TYPE=LVM2_member"}, false, false},
		{"LUKS", []string{"E:ID_FS_TYPE=crypto_LUKS"}, false, false},
		{"multipath", []string{"E:DM_MULTIPATH_DEVICE_PATH=1"}, false, false},
		{"held", nil, true, false},
		{"suspended", []string{"E:SYSTEMD_READY=0"}, false, false},
		{"none", []string{"E:ID_FS_TYPE=ext4", "E:DM_MULTIPATH_DEVICE_PATH=0", "E:SYSTEMD_READY=1"}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newUnit(t, "backend loop", "bootfs UUID="+otherUUID, "fs "+imagePath)
			f.addUdev(ext4Block("sda", otherUUID, "array", files), test.member...)
			if test.holder {
				f.dirs[classBlock+"/sda/holders"] = []string{"md0"}
			}
			// The whole comes later, with an event when udev is done with it.
			f.events = []fakeEvent{{at: 5, Uevent: Uevent{Block: "md0"}, do: func(f *fakeSystem) { f.addUdev(whole()) }}}
			f.runUnit()
			if f.end != "" {
				t.Fatalf("the unit fails: %s", f.fatal())
			}
			if got := f.called("mount /dev/sda on /bootfs type ext4 (ro,noload)"); got != test.serves {
				t.Errorf("the member is mounted: %v, want %v", got, test.serves)
			}
			if got := f.called("mount /dev/md0 on /bootfs type ext4 (ro,noload)"); got == test.serves {
				t.Errorf("the array is mounted: %v, want %v", got, !test.serves)
			}
		})
	}
}

// What the kernel shows is not looked at before udev is done with it.
func TestUnitWaitsForUdev(t *testing.T) {
	f := newUnit(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	path := f.udevPath("vda1")
	text := f.files[path]
	delete(f.files, path)
	f.absent[path] = true
	f.events = []fakeEvent{
		{at: 1, Uevent: Uevent{Block: "vda2"}},
		{at: 2, Uevent: Uevent{Block: "vda1"}, do: func(f *fakeSystem) { f.files[path] = text }},
	}
	f.runUnit()
	if f.end != "" || f.now < fakeStart+2_000_000 {
		t.Errorf("the unit ends with %q after %d us: %q", f.end, f.now-fakeStart, f.logs)
	}
}

func TestUnitLinks(t *testing.T) {
	for _, test := range []struct {
		bootfs string
		fatal  string
	}{
		{"/dev/mapper/vg-boot", ""},
		{"/dev/vg/boot", ""},
		{"/dev/dm-0", ""},
		{"/dev/vg/other", "no image after 30 s: loop: no device /dev/vg/other"},
	} {
		image := erofsContent(imageUUID, true)
		f := newUnit(t, "backend loop", "bootfs "+test.bootfs, "fs "+imagePath)
		f.addUdev(ext4Block("dm-0", otherUUID, "x", map[string]*fakeContent{imagePath: &image}), "S:vg/boot", "S:mapper/vg-boot")
		f.runUnit()
		if test.fatal == "" && f.end != "" || test.fatal != "" && f.fatal() != test.fatal {
			t.Errorf("%s: the unit ends with %q, %s; want %q", test.bootfs, f.end, f.fatal(), test.fatal)
		}
	}
}
