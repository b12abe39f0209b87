package storageinit

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
)

var update = flag.Bool("update", false, "write the golden files anew")

// machines has one machine for each backend; each of them boots.
var machines = []struct {
	name string
	make func(t testing.TB) *fakeSystem
}{
	{"block", func(t testing.TB) *fakeSystem {
		return newFake(t, "backend block", "bootfs PARTLABEL=image")
	}},
	{"loop", func(t testing.TB) *fakeSystem {
		return newFake(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	}},
	{"file", func(t testing.TB) *fakeSystem {
		return newFake(t, "backend file", "bootfs UUID="+strings.ToUpper(bootUUID), "bootfstype ext4", "fs "+imagePath)
	}},
	{"pmem", func(t testing.TB) *fakeSystem {
		f := newFake(t, "backend pmem", "bootfs LABEL=boot")
		f.addPmem(true)
		return f
	}},
	{"pmem-systemd", func(t testing.TB) *fakeSystem {
		f := newFake(t, "backend pmem")
		f.addReturn()
		f.executables[systemdPrograms[1]] = true
		return f
	}},
	{"pmem-switchroot", func(t testing.TB) *fakeSystem {
		f := newFake(t, "backend pmem")
		f.addReturn()
		return f
	}},
	{"pmem-dax", func(t testing.TB) *fakeSystem {
		f := newFake(t, "backend pmem-dax")
		f.addPmem(false)
		return f
	}},
	{"embedded", func(t testing.TB) *fakeSystem {
		f := newFake(t, "backend embedded")
		image := erofsContent(imageUUID, true)
		f.embedded = &image
		return f
	}},
	{"ram", func(t testing.TB) *fakeSystem {
		return newFake(t, "backend ram", "bootfs /dev/vda1", "fs "+imagePath)
	}},
	{"auto", func(t testing.TB) *fakeSystem {
		return newFake(t, "backend auto:pmem,embedded,file,loop,ram", "bootfs LABEL=boot", "fs "+imagePath)
	}},
}

func TestBootOrder(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			f := m.make(t)
			f.run()
			if f.end != "exec" {
				t.Fatalf("the boot ends with %s, want exec: %s", f.end, f.fatal())
			}
			golden(t, "boot-"+m.name+".txt", strings.Join(f.calls, "\n")+"\n")
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestExec(t *testing.T) {
	for _, test := range []struct {
		name               string
		args, env          []string
		init               string
		executables        []string
		wantArgv, wantEnvp []string
	}{
		{
			name: "arguments and environment of PID 1 are passed on",
			args: []string{"/init", "splash", "a b"}, env: []string{"HOME=/", "X="}, executables: []string{"/init", "/sbin/init"},
			wantArgv: []string{"/init", "splash", "a b"}, wantEnvp: []string{"HOME=/", "X=", "SYSTEMD_IN_INITRD=lenient"},
		},
		{
			name: "/sbin/init in place of /init", args: []string{"/init"}, executables: []string{"/sbin/init"},
			wantArgv: []string{"/sbin/init"}, wantEnvp: []string{"SYSTEMD_IN_INITRD=lenient"},
		},
		{
			name: "the configured init", args: []string{"/init", "1"}, init: "/other", executables: []string{"/init", "/other"},
			wantArgv: []string{"/other", "1"}, wantEnvp: []string{"SYSTEMD_IN_INITRD=lenient"},
		},
		{
			name: "the command line's SYSTEMD_IN_INITRD is kept", args: []string{"/init"}, env: []string{"SYSTEMD_IN_INITRD=1"},
			executables: []string{"/init"},
			wantArgv:    []string{"/init"}, wantEnvp: []string{"SYSTEMD_IN_INITRD=1"},
		},
		{
			name: "unknown arguments", executables: []string{"/init"},
			wantArgv: []string{"/init"}, wantEnvp: []string{"SYSTEMD_IN_INITRD=lenient"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines := []string{"backend loop", "bootfs LABEL=boot", "fs " + imagePath}
			if test.init != "" {
				lines = append(lines, "init "+test.init)
			}
			f := newFake(t, lines...)
			f.args, f.env = test.args, test.env
			f.executables = map[string]bool{}
			for _, path := range test.executables {
				f.executables[path] = true
			}
			f.run()
			if f.end != "exec" {
				t.Fatalf("the boot ends with %s: %s", f.end, f.fatal())
			}
			if diff := cmp.Diff(test.wantArgv, f.argv); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.wantEnvp, f.envp); diff != "" {
				t.Errorf("environment (-want +got):\n%s", diff)
			}
			if want := "execute " + test.wantArgv[0]; !f.called(want) {
				t.Errorf("no call %q in %q", want, f.calls)
			}
		})
	}
}

func TestNoInit(t *testing.T) {
	f := newFake(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	f.executables = nil
	f.run()
	const want = "init /init of the image: no such file or directory; init /sbin/init of the image: no such file or directory (on_failure reboot:10)"
	if got := f.fatal(); got != want {
		t.Errorf("fatal: %s\nwant:  %s", got, want)
	}
	for _, call := range f.calls {
		if strings.HasPrefix(call, "move ") {
			t.Errorf("%s: mounts are moved though there is no init", call)
		}
	}
}

func TestRecord(t *testing.T) {
	f := newFake(t, "backend auto:pmem,embedded,loop", "bootfs LABEL=boot", "fs "+imagePath)
	f.run()
	if f.end != "exec" {
		t.Fatalf("the boot ends with %s: %s", f.end, f.fatal())
	}
	text := f.written[bootconf.RecordPath]
	if below := f.written[sysroot+bootconf.RecordPath]; below != text || text == "" {
		t.Errorf("the copy below /run is %q, the record %q", below, text)
	}
	var got bootconf.Record
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("record %q: %v", text, err)
	}
	if len(got.Phases) == 0 || got.Phases[0].StartUS != fakeStart {
		t.Fatalf("the phases do not begin with the start: %v", got.Phases)
	}
	for i, p := range got.Phases {
		if p.EndUS < p.StartUS || i > 0 && p.StartUS != got.Phases[i-1].EndUS {
			t.Errorf("phase %d does not follow the one before it: %v", i, got.Phases)
		}
	}
	got.Phases = nil
	want := bootconf.Record{
		Backend: bootconf.Loop, ImageUUID: imageUUID, Verified: "none",
		Attempts: []bootconf.Attempt{
			{Backend: bootconf.Pmem, Error: "pmem: no pmem device with an EROFS image"},
			{Backend: bootconf.Embedded, Error: "embedded: open /initoverlayfs.img: no such file or directory"},
			{Backend: bootconf.Loop},
		},
		Modules: []string{"crc32c_generic", "libnvdimm", "erofs", "nd_pmem", "overlay", "loop", "virtio_pci", "ext4", "virtio_blk"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if want := "handover backend=loop image=" + imageUUID + " verified=none us="; len(f.linesWith(want)) != 1 {
		t.Errorf("no line %q in %q", want, f.logs)
	}
}

// bestEffort has the calls whose failure does not keep a machine from booting;
// with a number, only the call of that number among its like.
var bestEffort = map[string]int{
	"mkdir /dev": 0, "mkdir /proc": 0, "mkdir /sys": 0, "mkdir /run": 0,
	"open log":                           0,
	"read " + panicTimeoutPath:           0,
	"write " + panicTimeoutPath + ": 10": 0,
	"write " + panicTimeoutPath + ": 0":  0,
	"read " + rcuPath:                    0,
	"write " + rcuPath + ": 1":           0,
	"write " + rcuPath + ": 0":           0,
	// The first is for the panic timeout, the second for the configuration.
	"read /proc/cmdline": 1,

	"copy attributes of " + lowerDir + " to " + overlayDir + "/upper":        0,
	"mkdir " + sysroot + parent(bootconf.RecordPath):                         0,
	"mkdir " + parent(bootconf.RecordPath):                                   0,
	"write " + sysroot + bootconf.RecordPath + ": RECORD":                    0,
	"write " + bootconf.RecordPath + ": RECORD":                              0,
	"detach " + lowerDir:                                                     0,
	"detach " + overlayDir:                                                   0,
	"detach " + bootfsDir:                                                    0,
	"empty the root":                                                         0,
	"read ahead in /dev/vda2: 1036288+12288":                                 0,
	"read ahead in /proc/self/fd/(/bootfs/initoverlayfs.img): 1036288+12288": 0,
	"read ahead in /dev/loop0: 1036288+12288":                                0,
	"release /dev/loop0":                                                     0, // it cannot fail

	// A bus is looked at again after the modules of a round were loaded.
	"list " + pciBus: 0,
	"read " + pciBus + "/0000:00:01.0/modalias": 0,
	"read " + pciBus + "/0000:00:02.0/modalias": 0,
	"list " + virtioBus:                         1,
	"list " + ndBus:                             0,
	"read " + ndBus + "/ndbus0/wait_probe":      0,

	// Devices that are not the one that is looked for.
	"read " + classBlock + "/vda/size":       0,
	"read " + classBlock + "/vda3/size":      0,
	"read " + classBlock + "/vda/partition":  0,
	"read " + classBlock + "/vda1/partition": 0,
	"read " + classBlock + "/vda1/start":     0,
	"read " + classBlock + "/vda1/../uevent": 0,
}

// bestEffortOf has more such calls of one machine.
var bestEffortOf = map[string]map[string]int{
	"block":    {"read " + classBlock + "/vda1/size": 0, "open /dev/vda": 1},
	"loop":     {"read " + classBlock + "/vda2/size": 0, "open /dev/vda": 0},
	"file":     {"read " + classBlock + "/vda2/size": 0, "open /dev/vda": 0},
	"pmem":     {"list " + virtioBus: 0},
	"pmem-dax": {"list " + virtioBus: 0},

	"pmem-systemd":    returnIsBestEffort,
	"pmem-switchroot": returnIsBestEffort,
	"embedded":        {"list " + virtioBus: 0},
	"ram":             {"read " + classBlock + "/vda2/size": 0},
}

// returnIsBestEffort has the calls that only give memory back later.
var returnIsBestEffort = map[string]int{
	"list " + virtioBus: 0,
	"executable " + systemdPrograms[0] + " in " + sysroot:                                                     0,
	"executable " + systemdPrograms[1] + " in " + sysroot:                                                     0,
	"mkdir " + parent(bootconf.ReturnDir):                                                                     0,
	"mkdir " + sysroot + parent(bootconf.ReturnDir):                                                           0,
	"mkdir " + bootconf.ReturnDir:                                                                             0,
	"mkdir " + sysroot + bootconf.ReturnDir:                                                                   0,
	"list " + bootconf.ReturnModulesDir:                                                                       0,
	"copy /lib/return-memory/00-dax_pmem.ko to " + bootconf.ReturnDir + "/00-dax_pmem.ko, mode 644":           0,
	"copy /lib/return-memory/01-kmem.ko to " + bootconf.ReturnDir + "/01-kmem.ko, mode 644":                   0,
	"copy /lib/return-memory/00-dax_pmem.ko to " + sysroot + bootconf.ReturnDir + "/00-dax_pmem.ko, mode 644": 0,
	"copy /lib/return-memory/01-kmem.ko to " + sysroot + bootconf.ReturnDir + "/01-kmem.ko, mode 644":         0,
	"write " + sysroot + bootconf.ReturnDir + "/image: " + imageUUID:                                          0,
	"copy " + selfProgram + " to " + bootconf.ReturnDir + "/storage-init, mode 755":                           0,
	"mkdir /run/systemd":                                            0,
	"mkdir /run/systemd/system":                                     0,
	"mkdir " + parent(returnWantPath):                               0,
	"write " + returnUnitPath + ": " + oneLine(unitText(imageUUID)): 0,
	"write " + returnWantPath + ": " + oneLine(returnWant):          0,
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "\\n") }

func unitText(uuid string) string { return returnUnitHead + uuid + "\n" }

// isBestEffort reports whether the nth call of that text is declared so.
func isBestEffort(machine, call string, nth int) bool {
	for _, table := range []map[string]int{bestEffort, bestEffortOf[machine]} {
		if number, ok := table[call]; ok && (number == 0 || number == nth) {
			return true
		}
	}
	return false
}

// TestInjectedFailures lets each call of each boot fail in turn.
func TestInjectedFailures(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			whole := m.make(t)
			whole.run()
			if whole.end != "exec" {
				t.Fatalf("the boot ends with %s: %s", whole.end, whole.fatal())
			}
			seen := map[string]int{}
			boots, fatals := 0, 0
			for n, call := range whole.calls {
				if strings.HasPrefix(call, "log ") {
					continue
				}
				seen[call]++
				f := m.make(t)
				f.inject = func(i int, text string) error {
					if i == n {
						if text != call {
							t.Errorf("call %d is %q, in the boot without failures %q", n, text, call)
						}
						return errInjected
					}
					return nil
				}
				f.run()
				if !f.injected {
					t.Errorf("%s: the failure was not reached", call)
				}
				wantBoot := isBestEffort(m.name, call, seen[call])
				if m.name == "auto" && inAttempts(whole.calls, n) {
					wantBoot = f.end == "exec" // the next backend may serve
				}
				switch {
				case f.end == "exec":
					boots++
					if !wantBoot {
						t.Errorf("%s (call %d) failed and the machine booted, want a fatal error", call, n)
					}
				case wantBoot:
					t.Errorf("%s (call %d) failed and the boot ends with %s, want a boot: %s", call, n, f.end, f.fatal())
				default:
					fatals++
					if f.end != "reboot" || !f.called("sleep 10 s") {
						t.Errorf("%s failed and the boot ends with %s, want a reboot after 10 s", call, f.end)
					}
					if !strings.HasSuffix(f.fatal(), " (on_failure reboot:10)") {
						t.Errorf("%s failed and the fatal line is %q", call, f.fatal())
					}
				}
			}
			if boots < 10 || fatals < 10 {
				t.Errorf("%d boots and %d fatal errors, want at least 10 of each", boots, fatals)
			}
		})
	}
}

// inAttempts reports whether call n is one of the attempts to mount the image.
func inAttempts(calls []string, n int) bool {
	return n > slices.Index(calls, "mkdir "+bootfsDir) && n < slices.Index(calls, "mkdir "+overlayDir)
}

// What a failed attempt has taken is given back at once.
func TestRollback(t *testing.T) {
	for _, test := range []struct {
		name, backend, fail string
		want                []string // the calls from the failed one on
	}{
		{"mount on a loop device", "loop", "mount /dev/loop0 on /lower type erofs (ro)", []string{
			"release /dev/loop0", "unmount /bootfs", "wait for an event until 30 s",
		}},
		{"no loop device", "loop", "attach loop to /bootfs/initoverlayfs.img", []string{
			"unmount /bootfs", "wait for an event until 30 s",
		}},
		{"file-backed mount", "file", "mount /proc/self/fd/(/bootfs/initoverlayfs.img) on /lower type erofs (ro,directio)", []string{
			"unmount /bootfs", "wait for an event until 30 s",
		}},
		{"open the image", "file", "open /bootfs/initoverlayfs.img", []string{
			"unmount /bootfs", "wait for an event until 30 s",
		}},
		{"no memory", "ram", "copy /bootfs/initoverlayfs.img to memory", []string{
			"unmount /bootfs", "wait for an event until 30 s",
		}},
		{"mount of the copy", "ram", "mount /dev/loop0 on /lower type erofs (ro)", []string{
			"release /dev/loop0", "wait for an event until 30 s",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, "backend "+test.backend, "bootfs LABEL=boot", "fs "+imagePath)
			f.failCall(test.fail, errInjected)
			f.run()
			from := slices.Index(f.calls, test.fail)
			if from < 0 {
				t.Fatalf("no call %q in %q", test.fail, f.calls)
			}
			got := slices.DeleteFunc(slices.Clone(f.calls[from+1:]), func(call string) bool {
				return strings.HasPrefix(call, "read ") || strings.HasPrefix(call, "open /dev/")
			})
			if len(got) > len(test.want) {
				got = got[:len(test.want)]
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("calls after the failure (-want +got):\n%s", diff)
			}
			if !strings.Contains(f.fatal(), errInjected.Error()) {
				t.Errorf("fatal: %s\nwant the reason %q", f.fatal(), errInjected)
			}
		})
	}
}

// How the kernel waits is changed only from the usual setting, and given back
// before anything else runs, whatever becomes of the boot.
func TestHurry(t *testing.T) {
	const hurry, calm = "write " + rcuPath + ": 1", "write " + rcuPath + ": 0"
	for _, test := range []struct {
		name, kernel string
		fail         string // a call
		end          string
		want         []string
	}{
		{name: "usual", kernel: "0\n", end: "exec", want: []string{hurry, calm}},
		{name: "hurries already", kernel: "1\n", end: "exec"},
		{name: "no choice", end: "exec"},
		{name: "refused", kernel: "0\n", fail: hurry, end: "exec", want: []string{hurry}},
		{name: "not given back", kernel: "0\n", fail: calm, end: "exec", want: []string{hurry, calm}},
		{name: "failure", kernel: "0\n", fail: "mkdir " + overlayDir, end: "reboot", want: []string{hurry, calm}},
		{name: "failure after it", kernel: "0\n", fail: "enter " + sysroot, end: "reboot", want: []string{hurry, calm}},
		{name: "failure before it", kernel: "0\n", fail: "mount sysfs on /sys type sysfs (nodev,noexec,nosuid)", end: "reboot"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
			if test.kernel == "" {
				delete(f.files, rcuPath)
				f.absent[rcuPath] = true
			} else {
				f.files[rcuPath] = test.kernel
			}
			f.failCall(test.fail, errInjected)
			f.run()
			if f.end != test.end {
				t.Errorf("the boot ends with %s, want %s: %s", f.end, test.end, f.fatal())
			}
			if diff := cmp.Diff(test.want, f.callsWith("write "+rcuPath)); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			warned := len(f.linesWith("write "+rcuPath)) > 0
			if warned != (test.fail == calm) {
				t.Errorf("there is a warning: %v: %q", warned, f.logs)
			}
			if calmed, moved := slices.Index(f.calls, calm), slices.Index(f.calls, "move /sys to "+sysroot+"/sys"); moved >= 0 && calmed > moved {
				t.Error("the setting is given back when /sys is moved away")
			}
		})
	}
}
