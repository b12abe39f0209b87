package switchroot

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/storageinit"
)

// The capabilities in the order of their numbers, include/uapi/linux/capability.h.
const capabilityNames = "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap " +
	"linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module " +
	"sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time " +
	"sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog " +
	"wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"

// capabilities reads a comma-separated list of names with the prefix cap_ and
// gives their numbers.
func capabilities(list string) ([]uint, error) {
	var numbers []uint
	if list == "" {
		return nil, nil
	}
next:
	for name := range strings.SplitSeq(list, ",") {
		short, ok := strings.CutPrefix(strings.ToLower(name), "cap_")
		var number uint
		for known := range strings.SplitSeq(capabilityNames, " ") {
			if ok && short == known {
				numbers = append(numbers, number)
				continue next
			}
			number++
		}
		return nil, errors.New("unknown capability " + strconv.Quote(name))
	}
	return numbers, nil
}

// dropCapabilities takes capabilities from this process, from what it executes
// and from the helpers that the kernel starts.
func dropCapabilities(sys *storageinit.Linux, list string) error {
	numbers, err := capabilities(list)
	if err != nil || len(numbers) == 0 {
		return err
	}
	var dropped [2]uint32
	for _, n := range numbers {
		dropped[n/32] |= 1 << (n % 32)
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return errors.New("drop capability " + strconv.Itoa(int(n)) + ": " + err.Error())
		}
	}
	for _, name := range []string{"bset", "inheritable"} {
		if err := dropFromHelpers(sys, "/proc/sys/kernel/usermodehelper/"+name, dropped); err != nil {
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return errors.New("capget: " + err.Error())
	}
	for i := range sets {
		sets[i].Effective &^= dropped[i]
		sets[i].Permitted &^= dropped[i]
		sets[i].Inheritable &^= dropped[i]
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return errors.New("capset: " + err.Error())
	}
	return nil
}

func dropFromHelpers(sys *storageinit.Linux, path string, dropped [2]uint32) error {
	text, err := sys.ReadFile(path)
	if err != nil {
		return errors.New(path + ": " + err.Error())
	}
	var out string
	for i, field := range strings.Fields(text) {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil || i > 1 {
			return errors.New(path + ": unexpected " + strconv.Quote(text))
		}
		out += strconv.FormatUint(n&^uint64(dropped[i]), 10) + " "
	}
	if err := sys.WriteFile(path, out); err != nil {
		return errors.New(path + ": " + err.Error())
	}
	return nil
}
