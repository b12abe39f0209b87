package storageinit

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
)

// loads gives the modules that were loaded, without the directory.
func loads(f *fakeSystem) []string {
	var list []string
	for _, call := range f.callsWith("load ") {
		list = append(list, strings.TrimPrefix(call, "load /lib/modules/"))
	}
	return list
}

// On one CPU modules are loaded in the order of the list.
func TestModuleOrder(t *testing.T) {
	f := newFake(t, loopLines...)
	f.files[bootconf.AliasesPath] = ""
	f.files[bootconf.ModulesPath] = `- /lib/modules/z.ko
loop,ram /lib/modules/b.ko after=z
pmem /lib/modules/no.ko
- /lib/modules/virtio_blk.ko
- /lib/modules/a.ko after=b,z
loop /lib/modules/e.ko
`
	f.run()
	wantBoot(t, f, "loop")
	if diff := cmp.Diff([]string{"z.ko", "b.ko", "virtio_blk.ko", "a.ko", "e.ko"}, loads(f)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

// A boot goes on without a module that only makes it faster.
func TestOptionalModule(t *testing.T) {
	for _, err := range []error{syscall.EPERM, syscall.ENODEV, syscall.ENOMEM, nil} {
		for _, cpus := range []int{1, 4} {
			f := newFake(t, loopLines...)
			f.cpus = cpus
			f.files[bootconf.ModulesPath] = "- /lib/modules/fast.ko optional x=1\n- /lib/modules/virtio_blk.ko after=fast\n"
			f.files[bootconf.AliasesPath] = ""
			f.load = func(path, _ string) error {
				if path == "/lib/modules/fast.ko" {
					return err
				}
				return nil
			}
			f.run()
			wantBoot(t, f, "loop")
			if diff := cmp.Diff([]string{"fast.ko x=1", "virtio_blk.ko"}, loads(f)); diff != "" {
				t.Errorf("%v: modules, each once (-want +got):\n%s", err, diff)
			}
			if loaded := strings.Contains(f.written[bootconf.RecordPath], `"fast"`); loaded != (err == nil) {
				t.Errorf("%v: the record has the module: %v", err, loaded)
			}
			if warned := strings.Contains(strings.Join(f.logs, "\n"), "<4>storage-init: module fast: "); warned != (err != nil && !errors.Is(err, syscall.ENODEV)) {
				t.Errorf("%v: there is a warning: %v: %q", err, warned, f.logs)
			}
		}
	}
}

// gate lets n loaders through once all of them have arrived.
type gate struct {
	mu      sync.Mutex
	arrived int
	open    chan struct{}
}

func (g *gate) wait(n int) bool {
	g.mu.Lock()
	if g.arrived++; g.arrived == n {
		close(g.open)
	}
	g.mu.Unlock()
	select {
	case <-g.open:
		return true
	case <-time.After(10 * time.Second):
		return false
	}
}

func TestModulesInParallel(t *testing.T) {
	// What is not in the list, and what comes later in it, is not waited for.
	const list = `- /lib/modules/a.ko after=nothing,virtio_blk
- /lib/modules/b.ko
- /lib/modules/c.ko
- /lib/modules/virtio_blk.ko after=a
- /lib/modules/d.ko after=virtio_blk,c
`
	f := newFake(t, loopLines...)
	f.files[bootconf.AliasesPath] = ""
	f.files[bootconf.ModulesPath] = list
	f.cpus = 2
	// b ends last of all, so nothing that does not need it waits for it.
	var mu sync.Mutex
	loaded := map[string]bool{}
	first, last := gate{open: make(chan struct{})}, gate{open: make(chan struct{})}
	f.load = func(path, _ string) error {
		name := strings.TrimSuffix(strings.TrimPrefix(path, "/lib/modules/"), ".ko")
		mu.Lock()
		for _, need := range map[string][]string{"virtio_blk": {"a"}, "d": {"virtio_blk", "c"}}[name] {
			if !loaded[need] {
				t.Errorf("%s is loaded before %s", name, need)
			}
		}
		mu.Unlock()
		ok := true
		switch name {
		case "a", "c":
			ok = first.wait(3)
		case "b":
			ok = first.wait(3) && last.wait(2)
		case "d":
			ok = last.wait(2)
		}
		if !ok {
			t.Errorf("%s waits in vain for what can be loaded beside it", path)
		}
		mu.Lock()
		loaded[name] = true
		mu.Unlock()
		return nil
	}
	f.run()
	wantBoot(t, f, "loop")
	// The record has the list's order, not that of the goroutines.
	if want := `"modules":["a","b","c","virtio_blk","d"]`; !strings.Contains(f.written[bootconf.RecordPath], want) {
		t.Errorf("record %s, want %s in it", f.written[bootconf.RecordPath], want)
	}

	f = newFake(t, loopLines...)
	f.files[bootconf.AliasesPath] = ""
	f.files[bootconf.ModulesPath] = list
	var running sync.Mutex
	f.load = func(path, _ string) error {
		if !running.TryLock() {
			t.Errorf("%s is loaded beside another one, on one CPU", path)
			return nil
		}
		defer running.Unlock()
		time.Sleep(time.Millisecond)
		return nil
	}
	f.run()
	wantBoot(t, f, "loop")
}

// Behind a module that fails, nothing that needs it is loaded.
func TestModulesBehindFailure(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		f := newFake(t, loopLines...)
		f.cpus = cpus
		f.files[bootconf.AliasesPath] = ""
		f.files[bootconf.ModulesPath] = "- /lib/modules/a.ko\n- /lib/modules/b.ko after=a\n- /lib/modules/c.ko after=b\n"
		f.load = func(path, _ string) error {
			if path == "/lib/modules/a.ko" {
				return syscall.ENOEXEC
			}
			return nil
		}
		f.run()
		if diff := cmp.Diff([]string{"a.ko"}, loads(f)); diff != "" {
			t.Errorf("%d CPUs: modules (-want +got):\n%s", cpus, diff)
		}
		if want := "no image: loop: load module /lib/modules/a.ko: exec format error"; !strings.HasPrefix(f.fatal(), want) {
			t.Errorf("%d CPUs: fatal: %s\nwant: %s", cpus, f.fatal(), want)
		}
	}
}

func TestModuleErrors(t *testing.T) {
	for _, test := range []struct {
		err   error
		boots bool
	}{
		{syscall.EEXIST, true},
		{syscall.ENODEV, true},
		{syscall.ENOENT, false},
		{syscall.ENOEXEC, false},
		{syscall.EPERM, false},
	} {
		for _, cpus := range []int{1, 4} {
			f := newFake(t, loopLines...)
			f.cpus = cpus
			f.load = func(path, _ string) error {
				if path == "/lib/modules/crc32c_generic.ko" {
					return failed("open", test.err) // wrapped errors count too
				}
				return nil
			}
			f.run()
			if boots := f.end == "exec"; boots != test.boots {
				t.Errorf("%v with %d CPUs: the machine boots: %v, want %v", test.err, cpus, boots, test.boots)
				continue
			}
			if test.boots {
				if strings.Contains(f.written[bootconf.RecordPath], "crc32c") {
					t.Errorf("%v: the record has the module: %s", test.err, f.written[bootconf.RecordPath])
				}
				continue
			}
			want := "no image: loop: load module /lib/modules/crc32c_generic.ko: open: " + test.err.Error() + " (on_failure reboot:10)"
			if f.fatal() != want {
				t.Errorf("fatal: %s\nwant:  %s", f.fatal(), want)
			}
		}
	}
}

// A backend whose module does not load is given up, and the next one tried;
// what was loaded for the first is not loaded again, and is in the record.
func TestModuleErrorInAuto(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		f := newFake(t, "backend auto:pmem,loop", "bootfs LABEL=boot", "fs "+imagePath)
		f.cpus = cpus
		f.load = func(path, _ string) error {
			if path == "/lib/modules/libnvdimm.ko" {
				return syscall.ENOENT
			}
			return nil
		}
		f.files[bootconf.ModulesPath] += "- /lib/modules/after.ko\n"
		f.run()
		wantBoot(t, f, "loop")
		if want := `{"backend":"pmem","error":"pmem: load module /lib/modules/libnvdimm.ko: no such file or directory"}`; !strings.Contains(f.written[bootconf.RecordPath], want) {
			t.Errorf("record %s, want %s in it", f.written[bootconf.RecordPath], want)
		}
		for _, module := range []string{"crc32c_generic", "after"} {
			if got := f.callsWith("load /lib/modules/" + module); len(got) != 1 {
				t.Errorf("%d CPUs: %s is loaded %d times, want once", cpus, module, len(got))
			}
			if !strings.Contains(f.written[bootconf.RecordPath], `"`+module+`"`) {
				t.Errorf("%d CPUs: %s is not in the record %s", cpus, module, f.written[bootconf.RecordPath])
			}
		}
	}
}

func TestModuleConditions(t *testing.T) {
	const cpuPath = "/sys/devices/system/cpu/modalias"
	const cpu = "cpu:type:x86,ven0000fam0006mod003A:feature:,0000,0094,00C0\n"
	for _, test := range []struct {
		name, module, modalias, cmdline string
		want                            bool
	}{
		{name: "has the feature", module: "cpu=0094", modalias: cpu, want: true},
		{name: "has the last feature", module: "cpu=00C0", modalias: cpu, want: true},
		{name: "has the first feature", module: "cpu=0000", modalias: cpu, want: true},
		{name: "has one of the features", module: "cpu=0095,0094", modalias: cpu, want: true},
		{name: "lacks all of the features", module: "cpu=0095,0096", modalias: cpu},
		{name: "stand-in, with one of the features", module: "cpu=!0095,0094", modalias: cpu},
		{name: "lacks the feature", module: "cpu=0095", modalias: cpu},
		{name: "stand-in, with the feature", module: "cpu=!0094", modalias: cpu},
		{name: "stand-in, without", module: "cpu=!0095", modalias: cpu, want: true},
		{name: "unknown CPU", module: "cpu=0094"},
		{name: "stand-in on an unknown CPU", module: "cpu=!0094", want: true},
		{name: "blacklisted", cmdline: "modprobe.blacklist=x,the-module,y"},
		{name: "blacklisted in a second list", cmdline: "modprobe.blacklist=x modprobe.blacklist=the_module"},
		{name: "another is blacklisted", cmdline: "modprobe.blacklist=the,module the_module", want: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, loopLines...)
			f.files[bootconf.ModulesPath] += strings.TrimSpace("- /lib/modules/the-module.ko "+test.module) + "\n"
			f.setCmdline(test.cmdline)
			f.absent[cpuPath] = true
			if test.modalias != "" {
				f.files[cpuPath] = test.modalias
			}
			f.run()
			wantBoot(t, f, "loop")
			if got := slices.Contains(loads(f), "the-module.ko"); got != test.want {
				t.Errorf("the module is loaded: %v, want %v", got, test.want)
			}
		})
	}
}

func TestModuleOptions(t *testing.T) {
	for cmdline, want := range map[string]string{
		"":                               "virtio_blk.ko a=1",
		"virtio_blk.queues=2":            "virtio_blk.ko a=1 queues=2",
		"virtio-blk.queues=2":            "virtio_blk.ko a=1 queues=2",
		"virtio_blk.flag":                "virtio_blk.ko a=1 flag",
		`virtio_blk.name="x y" a`:        `virtio_blk.ko a=1 name="x y"`,
		"virtio_blk.x=1 virtio_blk.x=2":  "virtio_blk.ko a=1 x=1 x=2",
		"virtio.queues=2 loop.max_loop4": "virtio_blk.ko a=1",
	} {
		f := newFake(t, loopLines...)
		f.files[bootconf.AliasesPath] = ""
		f.files[bootconf.ModulesPath] = "- /lib/modules/virtio_blk.ko a=1\n"
		f.setCmdline(cmdline)
		f.run()
		wantBoot(t, f, "loop")
		if diff := cmp.Diff([]string{want}, loads(f)); diff != "" {
			t.Errorf("%s: modules (-want +got):\n%s", cmdline, diff)
		}
	}
}

// A driver waits for a device of its own, which may come with an event.
func TestDriverOfALateDevice(t *testing.T) {
	f := newFake(t, loopLines...)
	f.dirs[pciBus] = []string{"0000:00:01.0"}
	f.events = []fakeEvent{
		{at: 1, Uevent: Uevent{Modalias: pciCard}},
		{at: 2, Uevent: Uevent{Modalias: pciDisk}},
		{at: 3, Uevent: Uevent{Modalias: "virtio:d00000002v00001AF4"}},
		{at: 4, Uevent: Uevent{Block: "vda1"}},
	}
	f.run()
	wantBoot(t, f, "loop")
	list := loads(f)
	if n := len(list); n < 2 || list[n-2] != "virtio_pci.ko" || list[n-1] != "virtio_blk.ko" {
		t.Errorf("modules %q, want virtio_pci.ko and virtio_blk.ko at the end", list)
	}
	if slices.Contains(list, "nvme.ko") {
		t.Errorf("modules %q: nvme.ko without such a device", list)
	}

	// The same when the events are lost.
	f = newFake(t, loopLines...)
	devices := f.dirs[pciBus]
	f.dirs[pciBus] = nil
	f.events = []fakeEvent{
		{at: 1, do: func(f *fakeSystem) { f.dirs[pciBus] = devices }},
		{at: 2},
		{at: 3},
	}
	f.run()
	wantBoot(t, f, "loop")
}

// Without a device of its own a driver is left out.
func TestDriverWithoutDevice(t *testing.T) {
	f := newFake(t, "backend embedded")
	image := erofsContent(imageUUID, false)
	f.embedded = &image
	f.files[bootconf.ModulesPath] += "- /lib/modules/shared.ko for=nvme,virtio_pci\n- /lib/modules/alone.ko for=nvme\n"
	f.run()
	wantBoot(t, f, "embedded")
	want := []string{"crc32c_generic.ko", "loop.ko max_loop=0", "erofs.ko", "overlay.ko", "shared.ko"}
	if diff := cmp.Diff(want, loads(f)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

// udevMessage is what udev sends: a header that says where the fields begin.
func udevMessage(offset uint32, fields string) string {
	header := make([]byte, 40)
	copy(header, "libudev\x00\xfe\xed\xca\xfe")
	binary.NativeEndian.PutUint32(header[16:], offset)
	return string(header) + fields
}

func TestParseUevent(t *testing.T) {
	event := func(fields ...string) string { return strings.Join(fields, "\x00") + "\x00" }
	for _, test := range []struct {
		message string
		want    Uevent
	}{
		{event("add@/devices/x/block/vda/vda1", "ACTION=add", "DEVPATH=/devices/x/block/vda/vda1", "SUBSYSTEM=block", "DEVNAME=vda1"), Uevent{Block: "vda1"}},
		{event("change@/block/sr0", "ACTION=change", "DEVPATH=/block/sr0", "SUBSYSTEM=block"), Uevent{Block: "sr0"}},
		{event("remove@/block/sda", "ACTION=remove", "DEVPATH=/block/sda", "SUBSYSTEM=block"), Uevent{}},
		{event("add@/h", "ACTION=add", "DEVPATH=/devices/host2/scsi_host/host2", "SUBSYSTEM=scsi_host"), Uevent{SCSIHost: true}},
		{event("add@/p", "ACTION=add", "DEVPATH=/devices/pci", "SUBSYSTEM=pci", "MODALIAS="+pciDisk), Uevent{Modalias: pciDisk}},
		{event("remove@/p", "ACTION=remove", "DEVPATH=/devices/pci", "SUBSYSTEM=pci", "MODALIAS="+pciDisk), Uevent{}},
		{event("add@/x", "ACTION=add", "DEVPATH=/devices/tty", "SUBSYSTEM=tty"), Uevent{}},
		{"", Uevent{}},
		{"\x00\x00=", Uevent{}},
		{"ACTION=add\x00SUBSYSTEM=block", Uevent{}},
		{"libudev\x00\xfe\xed\xca\xfe", Uevent{}},
		{udevMessage(40, event("ACTION=change", "DEVPATH=/devices/virtual/block/dm-0", "SUBSYSTEM=block", "DM_NAME=boot")), Uevent{Block: "dm-0"}},
		{udevMessage(40, event("ACTION=remove", "DEVPATH=/devices/virtual/block/dm-0", "SUBSYSTEM=block")), Uevent{}},
		{udevMessage(1<<31, event("ACTION=add", "DEVPATH=/block/dm-0", "SUBSYSTEM=block")), Uevent{}},
	} {
		if got := parseUevent(test.message); got != test.want {
			t.Errorf("parseUevent(%q) = %+v, want %+v", test.message, got, test.want)
		}
	}
}
