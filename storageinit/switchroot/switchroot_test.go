package switchroot

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/storageinit"
)

var compareRequests = cmp.AllowUnexported(request{})

func TestRole(t *testing.T) {
	for _, test := range []struct {
		argv []string
		name string
		ok   bool
	}{
		{nil, "", false},
		{[]string{""}, "", false},
		{[]string{"/init", "run-init"}, "init", false},
		{[]string{"run-init"}, "run-init", true},
		{[]string{"/usr/bin/run-init", "-n"}, "run-init", true},
		{[]string{"switch_root"}, "switch_root", true},
		{[]string{"/sbin/switch_root"}, "switch_root", true},
		{[]string{"switch-root"}, "switch-root", false},
		{[]string{"run-init/"}, "", false},
	} {
		if name, ok := Role(test.argv); name != test.name || ok != test.ok {
			t.Errorf("Role(%q) = %q, %v; want %q, %v", test.argv, name, ok, test.name, test.ok)
		}
	}
}

func TestParseRunInit(t *testing.T) {
	root := request{newRoot: "/root", init: "/sbin/init", args: []string{"/sbin/init"}, console: "/dev/console"}
	with := func(change func(*request)) request {
		r := root
		change(&r)
		return r
	}
	for _, test := range []struct {
		args []string
		want request
	}{
		{[]string{"/root", "/sbin/init"}, root},
		{[]string{"-p", "/root", "/sbin/init"}, root},
		{[]string{"--", "/root", "/sbin/init"}, root},
		{[]string{"-n", "/root", "/sbin/init"}, with(func(r *request) { r.dryRun = true })},
		{[]string{"-np", "/root", "/sbin/init"}, with(func(r *request) { r.dryRun = true })},
		{[]string{"-c", "/dev/tty0", "/root", "/sbin/init"}, with(func(r *request) { r.console = "/dev/tty0" })},
		{[]string{"-c/dev/tty0", "/root", "/sbin/init"}, with(func(r *request) { r.console = "/dev/tty0" })},
		{[]string{"-nc/dev/tty0", "/root", "/sbin/init"}, with(func(r *request) { r.dryRun, r.console = true, "/dev/tty0" })},
		{[]string{"-d", "cap_sys_module,cap_bpf", "-c", "x", "/root", "/sbin/init"}, with(func(r *request) {
			r.drop, r.console = "cap_sys_module,cap_bpf", "x"
		})},
		// As initramfs-tools calls it, with the kernel's arguments for init.
		{[]string{"/root", "/sbin/init", "-p", "--", "splash", ""}, with(func(r *request) {
			r.args = []string{"/sbin/init", "-p", "--", "splash", ""}
		})},
		{[]string{"-c", "-n", "/root", "/sbin/init"}, with(func(r *request) { r.console = "-n" })},
	} {
		got, err := parse(runInit, test.args)
		if err != nil {
			t.Errorf("run-init %q: %v", test.args, err)
			continue
		}
		if diff := cmp.Diff(test.want, got, compareRequests); diff != "" {
			t.Errorf("run-init %q (-want +got):\n%s", test.args, diff)
		}
	}
}

func TestParseSwitchRoot(t *testing.T) {
	root := request{newRoot: "/sysroot", init: "/init", args: []string{"/init"}}
	console := root
	console.console = "/dev/ttyS0"
	arguments := root
	arguments.args = []string{"/init", "-h", "--version"}
	for _, test := range []struct {
		args []string
		want request
	}{
		{[]string{"/sysroot", "/init"}, root},
		{[]string{"--", "/sysroot", "/init"}, root},
		{[]string{"-c", "/dev/ttyS0", "/sysroot", "/init"}, console},
		{[]string{"/sysroot", "/init", "-h", "--version"}, arguments},
		{[]string{"-h"}, request{help: true}},
		{[]string{"--help"}, request{help: true}},
		{[]string{"-V"}, request{help: true}},
		{[]string{"--version", "/sysroot", "/init"}, request{help: true}},
	} {
		got, err := parse(switchRoot, test.args)
		if err != nil {
			t.Errorf("switch_root %q: %v", test.args, err)
			continue
		}
		if diff := cmp.Diff(test.want, got, compareRequests); diff != "" {
			t.Errorf("switch_root %q (-want +got):\n%s", test.args, diff)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{runInit, nil, "usage: run-init "},
		{runInit, []string{"/root"}, "usage: run-init "},
		{runInit, []string{"--"}, "usage: run-init "},
		{runInit, []string{"-x", "/root", "/init"}, "unknown option -x; usage: run-init "},
		{runInit, []string{"-nx", "/root", "/init"}, "unknown option -nx; usage: run-init "},
		{runInit, []string{"-h", "/root", "/init"}, "unknown option -h; usage: run-init "},
		{runInit, []string{"-d"}, "option -d needs a value; usage: run-init "},
		{runInit, []string{"-nc"}, "option -c needs a value; usage: run-init "},
		{switchRoot, nil, "usage: switch_root "},
		{switchRoot, []string{"/sysroot"}, "usage: switch_root "},
		{switchRoot, []string{"-"}, "usage: switch_root "},
		{switchRoot, []string{"-n", "/sysroot", "/init"}, "unknown option -n; usage: switch_root "},
		{switchRoot, []string{"-d", "cap_bpf", "/sysroot", "/init"}, "unknown option -d; usage: switch_root "},
		{switchRoot, []string{"--long", "/sysroot", "/init"}, "unknown option --long; usage: switch_root "},
		{switchRoot, []string{"-c"}, "option -c needs a value; usage: switch_root "},
	} {
		got, err := parse(test.name, test.args)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s %q = %+v, %v; want the error %q", test.name, test.args, got, err, test.want)
		}
	}
}

// capabilityNumbers are those of the kernel's headers, as x/sys/unix has them.
var capabilityNumbers = map[string]uint{
	"cap_audit_control": unix.CAP_AUDIT_CONTROL, "cap_audit_read": unix.CAP_AUDIT_READ, "cap_audit_write": unix.CAP_AUDIT_WRITE,
	"cap_block_suspend": unix.CAP_BLOCK_SUSPEND, "cap_bpf": unix.CAP_BPF, "cap_checkpoint_restore": unix.CAP_CHECKPOINT_RESTORE,
	"cap_chown": unix.CAP_CHOWN, "cap_dac_override": unix.CAP_DAC_OVERRIDE, "cap_dac_read_search": unix.CAP_DAC_READ_SEARCH,
	"cap_fowner": unix.CAP_FOWNER, "cap_fsetid": unix.CAP_FSETID, "cap_ipc_lock": unix.CAP_IPC_LOCK, "cap_ipc_owner": unix.CAP_IPC_OWNER,
	"cap_kill": unix.CAP_KILL, "cap_lease": unix.CAP_LEASE, "cap_linux_immutable": unix.CAP_LINUX_IMMUTABLE,
	"cap_mac_admin": unix.CAP_MAC_ADMIN, "cap_mac_override": unix.CAP_MAC_OVERRIDE, "cap_mknod": unix.CAP_MKNOD,
	"cap_net_admin": unix.CAP_NET_ADMIN, "cap_net_bind_service": unix.CAP_NET_BIND_SERVICE, "cap_net_broadcast": unix.CAP_NET_BROADCAST,
	"cap_net_raw": unix.CAP_NET_RAW, "cap_perfmon": unix.CAP_PERFMON, "cap_setfcap": unix.CAP_SETFCAP, "cap_setgid": unix.CAP_SETGID,
	"cap_setpcap": unix.CAP_SETPCAP, "cap_setuid": unix.CAP_SETUID, "cap_syslog": unix.CAP_SYSLOG, "cap_sys_admin": unix.CAP_SYS_ADMIN,
	"cap_sys_boot": unix.CAP_SYS_BOOT, "cap_sys_chroot": unix.CAP_SYS_CHROOT, "cap_sys_module": unix.CAP_SYS_MODULE,
	"cap_sys_nice": unix.CAP_SYS_NICE, "cap_sys_pacct": unix.CAP_SYS_PACCT, "cap_sys_ptrace": unix.CAP_SYS_PTRACE,
	"cap_sys_rawio": unix.CAP_SYS_RAWIO, "cap_sys_resource": unix.CAP_SYS_RESOURCE, "cap_sys_time": unix.CAP_SYS_TIME,
	"cap_sys_tty_config": unix.CAP_SYS_TTY_CONFIG, "cap_wake_alarm": unix.CAP_WAKE_ALARM,
}

func TestCapabilities(t *testing.T) {
	if got, want := len(strings.Fields(capabilityNames)), unix.CAP_LAST_CAP+1; got != want || len(capabilityNumbers) != want {
		t.Errorf("%d names, %d numbers; the kernel has %d capabilities", got, len(capabilityNumbers), want)
	}
	for name, want := range capabilityNumbers {
		for _, spelling := range []string{name, strings.ToUpper(name)} {
			got, err := capabilities(spelling)
			if diff := cmp.Diff([]uint{want}, got); err != nil || diff != "" {
				t.Errorf("capabilities(%q): %v (-want +got):\n%s", spelling, err, diff)
			}
		}
	}
	got, err := capabilities("cap_bpf,cap_chown,CAP_SYS_MODULE")
	if diff := cmp.Diff([]uint{unix.CAP_BPF, unix.CAP_CHOWN, unix.CAP_SYS_MODULE}, got); err != nil || diff != "" {
		t.Errorf("capabilities of a list: %v (-want +got):\n%s", err, diff)
	}
	if got, err := capabilities(""); got != nil || err != nil {
		t.Errorf(`capabilities("") = %v, %v; want none`, got, err)
	}
	for _, list := range []string{"chown", "cap_", "cap_nothing", "cap_chown,", ",cap_chown", "cap_chown, cap_bpf", "cap_chown bpf"} {
		if got, err := capabilities(list); err == nil || got != nil {
			t.Errorf("capabilities(%q) = %v, %v; want an error", list, got, err)
		}
	}
}

// What Main refuses before it changes anything.
func TestMainRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		argv []string
		want string
	}{
		{[]string{runInit, "/nowhere", "/init"}, "/nowhere: no such file or directory"},
		{[]string{runInit, "/", "/init"}, "/ is not a mount"},
		{[]string{runInit, "-d", "cap_nothing", "/proc", "/init"}, `unknown capability "cap_nothing"`},
		{[]string{runInit, "/proc", "/no-init"}, "init /no-init in /proc: no such file or directory"},
		{[]string{switchRoot, "/proc", "/version"}, "init /version in /proc: permission denied"},
		{[]string{switchRoot, dir}, usage(switchRoot)},
	} {
		err := Main(&storageinit.Linux{}, test.argv[0], test.argv)
		if err == nil || err.Error() != test.want {
			t.Errorf("%q: %v, want %s", test.argv, err, test.want)
		}
	}
	if err := Main(&storageinit.Linux{}, switchRoot, []string{switchRoot, "-h"}); err != nil {
		t.Errorf("switch_root -h: %v, want nil", err)
	}
}
