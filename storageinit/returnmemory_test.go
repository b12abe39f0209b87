package storageinit

import (
	"strings"
	"testing"

	"initoverlayfs/initrd/bootconf"
)

// Nothing is left for a booted system whose image was not in reserved memory, or
// that is to keep it.
func TestNoReturn(t *testing.T) {
	const memmap = " memmap=130M!510M"
	for _, test := range []struct {
		name, cmdline, log string
		conf               []string
	}{
		{"NVDIMM", "quiet", "", []string{"backend pmem"}},
		{"no persistent memory", "memmap=64M$512M memmap=exactmap", "", []string{"backend pmem"}},
		{"disk", "quiet" + memmap, "", []string{"backend block", "bootfs PARTLABEL=image"}},
		{"configuration", "quiet" + memmap, "return_memory is no", []string{"backend pmem", "return_memory no"}},
		{"hibernation", "resume=UUID=" + rootUUID + memmap, "as resume= says", []string{"backend pmem"}},
		{"command line", "initoverlayfs.return_memory=no" + memmap, "return_memory is no", []string{"backend pmem"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t, test.conf...)
			f.addReturn()
			f.setCmdline(test.cmdline)
			f.run()
			if f.end != "exec" {
				t.Fatalf("the boot ends with %s: %s", f.end, f.fatal())
			}
			for path := range f.written {
				if f.isReturn(path) {
					t.Errorf("%s was written", path)
				}
			}
			lines := f.linesWith("the image's memory stays reserved: ")
			if got := strings.Join(lines, "\n"); !strings.HasSuffix(got, test.log) || (got == "") != (test.log == "") {
				t.Errorf("log %q, want %q", got, test.log)
			}
		})
	}
}

// What is left is complete, and for the one who is to find it.
func TestReturnIsCarried(t *testing.T) {
	for _, test := range []struct {
		systemd bool
		want    map[string]string
	}{
		{true, map[string]string{
			bootconf.ReturnDir + "/00-dax_pmem.ko": "copy of /lib/return-memory/00-dax_pmem.ko",
			bootconf.ReturnDir + "/01-kmem.ko":     "copy of /lib/return-memory/01-kmem.ko",
			bootconf.ReturnDir + "/storage-init":   "copy of /proc/self/exe",
			returnUnitPath:                         unitText(imageUUID),
			returnWantPath:                         returnWant,
		}},
		{false, map[string]string{
			sysroot + bootconf.ReturnDir + "/00-dax_pmem.ko": "copy of /lib/return-memory/00-dax_pmem.ko",
			sysroot + bootconf.ReturnDir + "/01-kmem.ko":     "copy of /lib/return-memory/01-kmem.ko",
			sysroot + bootconf.ReturnDir + "/image":          imageUUID,
		}},
	} {
		f := newFake(t, "backend pmem")
		f.addReturn()
		f.executables[systemdPrograms[0]] = test.systemd
		f.run()
		for path := range f.written {
			if want, ok := test.want[path]; f.isReturn(path) && (!ok || f.written[path] != want) {
				t.Errorf("systemd %v: %s is %q, want %q", test.systemd, path, f.written[path], want)
			}
		}
		for path := range test.want {
			if _, ok := f.written[path]; !ok {
				t.Errorf("systemd %v: %s is missing", test.systemd, path)
			}
		}
	}
}

// A word that keeps the system from hibernating lets the memory come back.
func TestReturnWithoutHibernation(t *testing.T) {
	for _, word := range []string{"noresume", "nohibernate", "hibernate=no"} {
		f := newFake(t, "backend pmem")
		f.addReturn()
		f.setCmdline("memmap=130M!510M resume=/dev/sda2 " + word)
		f.run()
		if got := f.written[sysroot+bootconf.ReturnDir+"/image"]; f.end != "exec" || got != imageUUID {
			t.Errorf("%s: the boot ends with %s and leaves %q", word, f.end, got)
		}
	}
}

// A kernel that has the drivers built in needs no modules.
func TestReturnWithoutModules(t *testing.T) {
	f := newFake(t, "backend pmem")
	f.addReturn()
	delete(f.dirs, bootconf.ReturnModulesDir)
	f.absent[bootconf.ReturnModulesDir] = true
	f.run()
	if got := f.written[sysroot+bootconf.ReturnDir+"/image"]; f.end != "exec" || got != imageUUID {
		t.Errorf("the boot ends with %s and leaves %q", f.end, got)
	}
}
