package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit"
)

const (
	imageUUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	otherUUID = "01010101-0101-4101-8101-010101010101"
	bus       = ndDevices + "ndbus0"
	mebibyte  = 1 << 20
	block     = 128 * mebibyte
)

// machine is a kernel with regions of persistent memory. It knows the order of
// the steps, and refuses what a kernel would refuse.
type machine struct {
	t     *testing.T
	files map[string]string
	dirs  map[string][]string
	disks map[string]*pmem

	udev       bool // has device_dax take what appears
	autoOnline bool
	raced      bool // somebody else puts a block to use at the same time
	fail       func(call string) error

	calls, logs []string
	claimed     bool // the dax seed has the namespace
	slept       int
	removed     bool
}

// pmem is a disk.
type pmem struct {
	region, namespace string
	uuid              string // of the image on it; empty: no image
	busy              int    // seconds until nothing uses it any more
}

func (p *pmem) ReadAt(b []byte, off int64) (int, error) {
	if off != 1024 {
		return 0, io.ErrUnexpectedEOF
	}
	clear(b)
	if p.uuid != "" {
		id, err := bootconf.ParseUUID(p.uuid)
		if err != nil {
			return 0, err
		}
		binary.LittleEndian.PutUint32(b, 0xE0F5E1E2)
		b[12] = 12
		binary.LittleEndian.PutUint32(b[36:], 100) // blocks
		copy(b[48:], id[:])
	}
	return len(b), nil
}
func (p *pmem) Size() int64    { return 1 << 20 }
func (p *pmem) Source() string { return "" }
func (p *pmem) Close()         {}

// newMachine has one region, with the image, that the command line made.
func newMachine(t *testing.T, start, size int64) *machine {
	m := &machine{
		t: t,
		files: map[string]string{
			memory + "block_size_bytes": "8000000\n",
			uuidPath:                    "11111111-2222-4333-8444-555555555555\n",
			cmdlinePath:                 "quiet " + bootconf.Region{Start: start, Size: size}.Word() + "\n",
		},
		dirs: map[string][]string{
			ndDevices:           nil,
			bootconf.ReturnDir:  {"01-kmem.ko", "storage-init", "00-dax_pmem.ko"},
			daxDrivers + "kmem": {"bind", "new_id"},
		},
		disks: map[string]*pmem{},
	}
	m.addRegion("ndbus0", "e820", 0, start, size, imageUUID)
	return m
}

func (m *machine) addRegion(bus, provider string, number int, start, size int64, uuid string) *pmem {
	if !slices.Contains(m.dirs[ndDevices], bus) {
		m.dirs[ndDevices] = append(m.dirs[ndDevices], bus)
	}
	m.files[ndDevices+bus+"/provider"] = provider + "\n"
	name := fmt.Sprintf("region%d", number)
	m.dirs[ndDevices+bus] = append(m.dirs[ndDevices+bus], name)
	p := &pmem{region: ndDevices + bus + "/" + name, namespace: fmt.Sprintf("namespace%d.0", number), uuid: uuid}
	disk := fmt.Sprintf("pmem%d", number)
	m.disks["/dev/"+disk] = p
	m.dirs[p.region] = []string{"btt0.0", fmt.Sprintf("dax%d.0", number), "dax_seed", p.namespace, "namespace_seed"}
	m.dirs[p.region+"/"+p.namespace+"/block"] = []string{disk}
	m.files[p.region+"/resource"] = fmt.Sprintf("%#x\n", start)
	m.files[p.region+"/size"] = fmt.Sprintf("%d\n", size)
	m.files[p.region+"/dax_seed"] = fmt.Sprintf("dax%d.0\n", number)
	return p
}

func (m *machine) call(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	m.calls = append(m.calls, text)
	if m.fail != nil {
		return m.fail(text)
	}
	return nil
}

func (m *machine) Log(_ int, line string) { m.logs = append(m.logs, line) }

func (m *machine) Sleep(seconds int) {
	m.slept += seconds
	for _, d := range m.disks {
		d.busy = max(0, d.busy-seconds)
	}
}

func (m *machine) ReadFile(path string) (string, error) {
	if err := m.call("read %s", path); err != nil {
		return "", err
	}
	text, ok := m.files[path]
	if !ok {
		return "", syscall.ENOENT
	}
	return text, nil
}

func (m *machine) ReadDir(path string) ([]string, error) {
	if err := m.call("list %s", path); err != nil {
		return nil, err
	}
	names, ok := m.dirs[path]
	if !ok {
		return nil, syscall.ENOENT
	}
	return names, nil
}

func (m *machine) OpenExclusive(path string) (storageinit.Image, error) {
	if err := m.call("open %s", path); err != nil {
		return nil, err
	}
	d := m.disks[path]
	switch {
	case d == nil:
		return nil, syscall.ENOENT
	case d.busy > 0:
		return nil, syscall.EBUSY
	}
	return d, nil
}

func (m *machine) LoadModule(path, _ string) error { return m.call("load %s", path) }

func (m *machine) RemoveAll(dir string) error {
	m.removed = dir == bootconf.ReturnDir
	return m.call("remove %s", dir)
}

func (m *machine) WriteFile(path, data string) error {
	if err := m.call("write %s: %s", path, data); err != nil {
		return err
	}
	disk := m.disks["/dev/pmem0"]
	seed := bus + "/region0/dax0.0"
	switch path {
	case ndDrivers + "nd_pmem/unbind":
		if data != disk.namespace || disk.busy > 0 || disk.uuid != imageUUID {
			m.t.Errorf("%s is unbound", data)
		}
		delete(m.disks, "/dev/pmem0")
	case seed + "/uuid", seed + "/align", seed + "/mode":
	case seed + "/namespace":
		if _, bound := m.disks["/dev/pmem0"]; bound {
			return syscall.EBUSY
		}
		m.claimed = true
	case ndDrivers + "dax_pmem/bind":
		if !m.claimed || data != "dax0.0" || !slices.Contains(m.calls, "load "+bootconf.ReturnDir+"/00-dax_pmem.ko") {
			return syscall.ENODEV
		}
		m.dirs[seed] = []string{"align", "dax0.0", "dax_region", "mode"}
		if m.udev {
			m.dirs[daxDrivers+"device_dax"] = []string{"bind", "dax0.0", "unbind"}
		}
	case daxDrivers + "device_dax/unbind":
		m.dirs[daxDrivers+"device_dax"] = []string{"bind", "unbind"}
	case daxDrivers + "kmem/new_id":
		if !slices.Contains(m.dirs[daxDrivers+"device_dax"], "dax0.0") {
			m.takeRAM(data)
		}
	case daxDrivers + "kmem/bind":
		if slices.Contains(m.dirs[daxDrivers+"device_dax"], data) || slices.Contains(m.dirs[daxDrivers+"kmem"], data) {
			return syscall.EBUSY
		}
		m.takeRAM(data)
	default:
		state, ok := m.files[path]
		if !ok || !strings.HasPrefix(path, memory) {
			m.t.Errorf("write of %s", path)
			return syscall.ENOENT
		}
		if m.raced {
			m.files[path] = "online\n"
			return syscall.EINVAL
		}
		if data != "online" || state != "offline\n" {
			return syscall.EINVAL
		}
		m.files[path] = "online\n"
	}
	return nil
}

// takeRAM makes blocks of the region, as the driver kmem does.
func (m *machine) takeRAM(device string) {
	m.dirs[daxDrivers+"kmem"] = append(m.dirs[daxDrivers+"kmem"], device)
	var start, size int64
	if _, err := fmt.Sscan(m.files[bus+"/region0/resource"]+m.files[bus+"/region0/size"], &start, &size); err != nil {
		m.t.Error(err)
	}
	state := "offline\n"
	if m.autoOnline {
		state = "online\n"
	}
	for n := (start + 2*mebibyte + block - 1) / block; (n+1)*block <= start+size; n++ {
		m.files[fmt.Sprintf("%smemory%d/state", memory, n)] = state
	}
}

// online gives the numbers of the blocks in use.
func (m *machine) online() []string {
	var list []string
	for _, path := range slices.Sorted(maps.Keys(m.files)) {
		if name, ok := strings.CutSuffix(path, "/state"); ok && m.files[path] == "online\n" {
			list = append(list, strings.TrimPrefix(name, memory))
		}
	}
	return list
}

// changes gives the calls that change the machine.
func (m *machine) changes() []string {
	return slices.DeleteFunc(slices.Clone(m.calls), func(call string) bool {
		return strings.HasPrefix(call, "read ") || strings.HasPrefix(call, "list ") || strings.HasPrefix(call, "open ") || strings.HasPrefix(call, "remove ")
	})
}

const returned = bootconf.LogPrefix + "returned 131072 of 133120 kB, region 130M!510M"

func TestOrder(t *testing.T) {
	m := newMachine(t, 510*mebibyte, 130*mebibyte)
	Run(m, imageUUID)
	want := []string{
		"load /run/initoverlayfs/return-memory/00-dax_pmem.ko",
		"load /run/initoverlayfs/return-memory/01-kmem.ko",
		"write /sys/bus/nd/drivers/nd_pmem/unbind: namespace0.0",
		"write /sys/bus/nd/devices/ndbus0/region0/dax0.0/uuid: 11111111-2222-4333-8444-555555555555",
		"write /sys/bus/nd/devices/ndbus0/region0/dax0.0/align: 2097152",
		"write /sys/bus/nd/devices/ndbus0/region0/dax0.0/mode: ram",
		"write /sys/bus/nd/devices/ndbus0/region0/dax0.0/namespace: namespace0.0",
		"write /sys/bus/nd/drivers/dax_pmem/bind: dax0.0",
		"write /sys/bus/dax/drivers/kmem/new_id: dax0.0",
		"write /sys/devices/system/memory/memory4/state: online",
	}
	if diff := cmp.Diff(want, m.changes()); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{returned}, m.logs); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if !m.removed || m.calls[len(m.calls)-1] != "remove "+bootconf.ReturnDir {
		t.Errorf("what was carried over is still there")
	}
}

func TestReturn(t *testing.T) {
	for _, test := range []struct {
		name        string
		start, size int64 // MiB
		change      func(*machine)
		want        []string
		log         string
	}{
		{"two blocks", 382, 258, nil, []string{"memory3", "memory4"}, "returned 262144 of 264192 kB, region 258M!382M"},
		{"one of two", 512, 256, nil, []string{"memory5"}, "returned 131072 of 262144 kB, region 256M!512M; more would come back of one that begins 2 MiB below a multiple of 128 MiB"},
		{"image in use for a while", 510, 130, func(m *machine) { m.disks["/dev/pmem0"].busy = 5 }, []string{"memory4"}, returned},
		{"device_dax was faster", 510, 130, func(m *machine) { m.udev = true }, []string{"memory4"}, returned},
		{"put to use by the kernel", 510, 130, func(m *machine) { m.autoOnline = true }, []string{"memory4"}, returned},
		{"put to use by udev", 510, 130, func(m *machine) { m.raced = true }, []string{"memory4"}, returned},
		{"drivers are loaded", 510, 130, func(m *machine) {
			m.fail = func(call string) error {
				if strings.HasPrefix(call, "load ") {
					return syscall.EEXIST
				}
				return nil
			}
		}, []string{"memory4"}, returned},
		{"a second region, in use", 510, 130, func(m *machine) {
			m.files[cmdlinePath] += " memmap=16M!900M"
			m.addRegion("ndbus0", "e820", 1, 900*mebibyte, 16*mebibyte, otherUUID).busy = 1000
		}, []string{"memory4"}, returned},
		{"an NVDIMM with the same image", 510, 130, func(m *machine) {
			m.addRegion("ndbus1", "ACPI.NFIT", 1, 4096*mebibyte, 130*mebibyte, imageUUID)
		}, []string{"memory4"}, returned},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t, test.start*mebibyte, test.size*mebibyte)
			if test.change != nil {
				test.change(m)
			}
			Run(m, imageUUID)
			if diff := cmp.Diff(test.want, m.online()); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
			if len(m.logs) != 1 || !strings.HasSuffix(m.logs[0], test.log) {
				t.Errorf("log %q, want %q", m.logs, test.log)
			}
		})
	}
}

// Whatever is not ours, or is in use, or would not come back, is left as it is.
func TestLeftAlone(t *testing.T) {
	for _, test := range []struct {
		name        string
		start, size int64 // MiB
		image       string
		change      func(*machine)
		log         string
	}{
		{"no whole block", 512, 130, imageUUID, nil, "region 130M!512M holds no whole block of memory behind its first 2 MiB; a block is 128 MiB, so it should begin 2 MiB below a multiple of that"},
		{"another image", 510, 130, otherUUID, nil, "region 130M!510M holds something else"},
		{"no image", 510, 130, imageUUID, func(m *machine) { m.disks["/dev/pmem0"].uuid = "" }, "region 130M!510M: /dev/pmem0: not an EROFS image"},
		{"in use for good", 510, 130, imageUUID, func(m *machine) { m.disks["/dev/pmem0"].busy = 1000 }, "region 130M!510M: open /dev/pmem0: device or resource busy"},
		{"of the firmware", 510, 130, imageUUID, func(m *machine) { m.files[cmdlinePath] = "memmap=130M!640M\n" }, "region 130M!510M was not made by the command line"},
		{"joined with the firmware's", 510, 130, imageUUID, func(m *machine) { m.files[cmdlinePath] = "memmap=128M!512M\n" }, "region 130M!510M was not made by the command line"},
		{"an NVDIMM", 510, 130, imageUUID, func(m *machine) { m.files[bus+"/provider"] = "ACPI.NFIT\n" }, "no region of the kernel command line holds the image"},
		{"two namespaces", 510, 130, imageUUID, func(m *machine) {
			m.dirs[bus+"/region0"] = append(m.dirs[bus+"/region0"], "namespace0.1")
		}, "region 130M!510M: it is not a single disk"},
		{"no disk", 510, 130, imageUUID, func(m *machine) { delete(m.dirs, bus+"/region0/namespace0.0/block") }, "region 130M!510M: it is not a single disk"},
		{"no hotplug", 510, 130, imageUUID, func(m *machine) { delete(m.files, memory+"block_size_bytes") }, "the kernel has no memory hotplug: no such file or directory"},
		{"strange block size", 510, 130, imageUUID, func(m *machine) { m.files[memory+"block_size_bytes"] = "0\n" }, `bad block_size_bytes "0\n"`},
		{"no UUID", 510, 130, "image", nil, `bad UUID "image"`},
		{"large blocks", 510, 130, imageUUID, func(m *machine) { m.files[memory+"block_size_bytes"] = "80000000\n" }, "a block is 2048 MiB, so it should begin 2 MiB below a multiple of that"},
		{"a module is missing", 510, 130, imageUUID, func(m *machine) { m.dirs[bootconf.ReturnDir] = []string{"01-kmem.ko"} }, "no module 00- in /run/initoverlayfs/return-memory"},
		{"no seed", 510, 130, imageUUID, func(m *machine) { m.files[bus+"/region0/dax_seed"] = "\n" }, "there is no dax device to make for region 130M!510M"},
		{"no NVDIMM_DAX", 510, 130, imageUUID, func(m *machine) { delete(m.files, bus+"/region0/dax_seed") }, "the kernel has no NVDIMM_DAX: no such file or directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t, test.start*mebibyte, test.size*mebibyte)
			if test.change != nil {
				test.change(m)
			}
			Run(m, test.image)
			for _, call := range m.changes() {
				if strings.HasPrefix(call, "write ") {
					t.Errorf("%s", call)
				}
			}
			if len(m.logs) != 1 || !strings.HasPrefix(m.logs[0], bootconf.LogPrefix+"the image's memory stays reserved: ") || !strings.HasSuffix(m.logs[0], test.log) {
				t.Errorf("log %q, want %q", m.logs, test.log)
			}
			if !m.removed {
				t.Error("what was carried over is still there")
			}
			if m.slept > waitSeconds {
				t.Errorf("waited %d s", m.slept)
			}
		})
	}
}

// Each step fails once; that is told, with the step, and nothing follows but the
// end.
func TestFailures(t *testing.T) {
	errInjected := errors.New("injected failure")
	whole := newMachine(t, 382*mebibyte, 258*mebibyte)
	whole.udev = true
	Run(whole, imageUUID)
	failures := 0
	for n, call := range whole.calls {
		m := newMachine(t, 382*mebibyte, 258*mebibyte)
		m.udev = true
		m.fail = func(text string) error {
			if len(m.calls)-1 != n {
				return nil
			}
			if text != call {
				t.Errorf("call %d is %q, without failures %q", n, text, call)
			}
			return errInjected
		}
		Run(m, imageUUID)
		if strings.HasPrefix(call, "list ") {
			continue // what cannot be listed has nothing; TestLeftAlone
		}
		failures++
		if len(m.logs) == 0 {
			t.Errorf("%s failed and nothing is said", call)
			continue
		}
		said := strings.Join(m.logs, "\n")
		onlyOne := strings.HasPrefix(call, "write "+memory) || strings.HasPrefix(call, "read "+memory+"memory")
		switch {
		case strings.HasPrefix(call, "read "+bus+"/region0/resource"), strings.HasPrefix(call, "read "+bus+"/region0/size"), strings.HasPrefix(call, "read "+bus+"/provider"):
			if !strings.HasSuffix(said, "no region of the kernel command line holds the image") {
				t.Errorf("%s failed, and it says %q", call, said)
			}
		case !strings.Contains(said, errInjected.Error()):
			t.Errorf("%s failed, and it says %q", call, said)
		}
		if back := strings.Contains(said, "returned 131072 of 264192 kB"); back != onlyOne {
			t.Errorf("%s failed, and it says %q", call, said)
		}
		if got := m.calls[len(m.calls)-1]; got != "remove "+bootconf.ReturnDir {
			t.Errorf("%s failed, and the last call is %s", call, got)
		}
	}
	if failures < 15 {
		t.Errorf("%d failures", failures)
	}
}

func TestRole(t *testing.T) {
	for _, test := range []struct {
		argv  []string
		image string
		want  bool
	}{
		{[]string{"initoverlayfs", "--return-memory", imageUUID}, imageUUID, true},
		{[]string{"initoverlayfs", "--return-memory"}, "", false},
		{[]string{"initoverlayfs", "--systemd", imageUUID}, "", false},
		{nil, "", false},
	} {
		if image, got := Role(test.argv); got != test.want || image != test.image {
			t.Errorf("Role(%q) = %q, %v; want %q, %v", test.argv, image, got, test.image, test.want)
		}
	}
}
