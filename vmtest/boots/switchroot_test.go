package boots

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// The programs that the builder replaces in the tree.
const (
	runInit    = "/bin/run-init"
	switchRoot = "/bin/switch_root"
)

// TestReplacedPrograms makes sure that the other tests run ours.
func TestReplacedPrograms(t *testing.T) {
	b := spec{config: "backend loop\n" + onBootLabel}.build(t)
	var got []string
	for _, c := range b.Changes {
		got = append(got, "/"+c.Path)
	}
	if diff := cmp.Diff([]string{runInit, switchRoot}, got); diff != "" {
		t.Errorf("changes of the tree (-want +got):\n%s", diff)
	}
	if b.Source.Kind != bootconf.KindInitramfsTools {
		t.Errorf("kind = %s, want %s", b.Source.Kind, bootconf.KindInitramfsTools)
	}
}

// TestSwitchRoot goes on from the tree to a real root, by each program and as
// its callers do: run-init's has put a new tmpfs over /run and has moved the
// mounts, switch_root's leaves them to the program. Then nothing of the boot is
// left but the record.
func TestSwitchRoot(t *testing.T) {
	t.Parallel()
	for _, program := range []string{runInit, switchRoot} {
		for _, root := range []string{"tmpfs", "ext4"} {
			t.Run(filepath.Base(program)+" to "+root, func(t *testing.T) {
				t.Parallel()
				// The loop backend, so that a boot filesystem could stay behind.
				b := spec{config: "backend loop\n" + onBootLabel}.build(t)
				m := b.machine(t, "vmtest.check=args,old_root,loop_dio,exists:"+marker+",switch_root:"+program)
				b.attach(t, &m, bootconf.Loop)
				if root != "tmpfs" {
					path := filepath.Join(t.TempDir(), "root.img")
					if _, err := disk.Format(t.Context(), path, disk.Partition{FS: root}); err != nil {
						t.Fatal(err)
					}
					m.Append = append(m.Append, "vmtest.root=/dev/vdb:"+root)
					m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, path))
				}
				r, err := run(t, m)
				if err != nil {
					t.Fatalf("%v\n%s", err, r.Console)
				}
				t.Logf("%d kB available", r.Done.MemAvailableKB)
				if r.Done.MemAvailableKB <= 0 {
					t.Error("the available memory is not reported")
				}
				b.checkRecord(t, r, bootconf.Loop)
				args := checked[initArgs](t, r, "args")
				if want := []string{"/sbin/init", "second", "stage"}; !slices.Equal(args.Argv, want) {
					t.Errorf("argv = %q, want %q", args.Argv, want)
				}
				if !slices.Contains(args.Env, "VMTEST_STAGE=second") {
					t.Errorf("environment %q lacks the caller's VMTEST_STAGE", args.Env)
				}
				if len(args.Mounted) > 0 {
					t.Errorf("%v were not mounted in the real root", args.Mounted)
				}
				if checked[bool](t, r, "exists") {
					t.Error("the tree is still the root")
				}
				want := map[string]string{"/": root, "/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs", "/run": "tmpfs"}
				if diff := cmp.Diff(want, mounts(t, r)); diff != "" {
					t.Errorf("mounts (-want +got):\n%s", diff)
				}
				if len(r.Done.ErofsSysfs) > 0 {
					t.Errorf("/sys/fs/erofs still has %q", r.Done.ErofsSysfs)
				}
				if loops := checked[map[string]any](t, r, "loop_dio"); len(loops) > 0 {
					t.Errorf("loop devices are still attached: %v", loops)
				}
				if diff := cmp.Diff([]string{"sysroot"}, checked[[]string](t, r, "old_root")); diff != "" {
					t.Errorf("left in the mini-initramfs (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestSwitchRootRefuses runs the programs as an ordinary process of the tree,
// where all they may do is to check.
func TestSwitchRootRefuses(t *testing.T) {
	t.Parallel()
	type program struct {
		Command string
		Status  int
		Output  string
	}
	want := []program{
		{runInit + " -n /run /init", 0, ""},
		{runInit + " -d cap_sys_module -n /run /init", 0, ""},
		{runInit + " -d cap_nothing -n /run /init", 1, "run-init: unknown capability \"cap_nothing\"\n"},
		{runInit + " -n /bin /run-init", 1, "run-init: /bin is not a mount\n"},
		{runInit + " -n /none /init", 1, "run-init: /none: no such file or directory\n"},
		{runInit + " -n /run /none", 1, "run-init: init /none in /run: no such file or directory\n"},
		{runInit + " /run /init", 1, "run-init: this is not PID 1\n"},
		{switchRoot + " /run /none", 1, "switch_root: init /none in /run: no such file or directory\n"},
		{switchRoot + " /run /init", 1, "switch_root: this is not PID 1\n"},
		{switchRoot + " /run", 1, "switch_root: usage: switch_root [-c CONSOLE] NEWROOT INIT [ARGUMENT...]\n"},
	}
	var commands []string
	for _, p := range want {
		commands = append(commands, strings.ReplaceAll(p.Command, " ", "+"))
	}
	b := spec{config: "backend loop\n" + onBootLabel}.build(t)
	m := b.machine(t)
	b.attach(t, &m, bootconf.Loop)
	r := b.boot(t, m, bootconf.Loop, "copy_self:/run/init", "run:"+strings.Join(commands, ":"))
	if diff := cmp.Diff(want, checked[[]program](t, r, "run")); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
}

// TestSwitchRootFails has PID 1 switch to what is no root: the kernel panics
// below a line that says why.
func TestSwitchRootFails(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		program string
		args    []string
		want    string
	}{
		{runInit, []string{"/bin", "/sbin/init"}, "run-init: /bin is not a mount"},
		{switchRoot, []string{"/run", "/sbin/init"}, "switch_root: init /sbin/init in /run: no such file or directory"},
	} {
		t.Run(filepath.Base(test.program), func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend loop\n" + onBootLabel}.build(t)
			m := b.machine(t, append([]string{"initoverlayfs.init=" + test.program, "--"}, test.args...)...)
			m.LogParent = t.TempDir()
			b.attach(t, &m, bootconf.Loop)
			r, err := run(t, m)
			if !errors.Is(err, vmtest.ErrPanic) || r.Handover == nil {
				t.Errorf("error = %v, handover = %v; want a panic after it", err, r.Handover)
			}
			if !strings.Contains(r.Console, test.want) {
				t.Errorf("the console lacks %q:\n%s", test.want, r.Console)
			}
		})
	}
}
