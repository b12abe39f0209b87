package storageinit

import (
	"strings"

	"golang.org/x/sys/unix"
)

// unitArgument is how the unit of systemd calls the program.
const unitArgument = "--systemd"

// environmentPath has what the unit that switches the root must know.
const environmentPath = "/run/initoverlayfs/environment"

// IsInit reports whether this is PID 1, to which a kernel command line can give
// any argument.
func IsInit() bool { return unix.Getpid() == 1 }

// IsUnit reports whether the program was started as a unit.
func IsUnit(argv []string) bool { return len(argv) == 2 && argv[1] == unitArgument }

// RunUnit mounts the full tree on /initoverlayfs, in a mini-initramfs with systemd,
// and returns. A failure ends the process with status 1: what follows is for the
// unit to say, and the next unit must require this one.
func RunUnit(sys System) {
	b := newBoot(sys)
	b.unit, b.sysroot = true, unitSysroot
	if err := b.protect(b.runUnit); err != nil {
		b.log(levelFatal, "fatal: "+err.Error())
		sys.Exit()
	}
}

// runUnit is the order of run without what systemd has done or will do.
func (b *boot) runUnit() error {
	if err := b.sys.OpenLog(); err != nil {
		b.log(levelWarn, "open the kernel log: "+err.Error())
	}
	if err := b.configure(); err != nil {
		return err
	}
	b.endPhase("setup")

	initPath, err := b.mountFullTree()
	if err != nil {
		return err
	}
	record := b.writeRecord()
	if err := b.sys.Mkdir(b.sysroot+"/run", 0o755); err != nil {
		return failed("mkdir /run in the overlay", err)
	}
	b.saveRecords(record)
	if err := b.sys.WriteFile(environmentPath, "INIT="+initPath+"\n"); err != nil {
		return failed("write "+environmentPath, err)
	}
	b.detachLayers()
	b.logHandover()
	return nil
}

// askUdev learns what udev knows of a device, and reports whether it may be looked
// at: udev is done with it, and it is no part of another one. A member of a mirror
// shows the same filesystem as the mirror; mounted, it would keep the mirror from
// being assembled.
func (b *boot) askUdev(d *device) bool {
	dir := classBlock + "/" + d.name
	number, err := b.sys.ReadFile(dir + "/dev")
	if err != nil {
		return false
	}
	database, err := b.sys.ReadFile("/run/udev/data/b" + strings.TrimSpace(number))
	if err != nil {
		return false // its event comes
	}
	if holders, _ := b.sys.ReadDir(dir + "/holders"); len(holders) > 0 {
		return false
	}
	// A line each: S for a link below /dev, E for a property.
	for line := range strings.SplitSeq(database, "\n") {
		kind, value, _ := strings.Cut(line, ":")
		switch kind {
		case "S":
			d.links = append(d.links, "/dev/"+value)
		case "E":
			if isMember(value) {
				return false
			}
		}
	}
	return true
}

// isMember reports whether a property says that the device is a part of another
// one, or not ready.
func isMember(property string) bool {
	key, value, _ := strings.Cut(property, "=")
	switch key {
	case "ID_FS_TYPE":
		return strings.HasSuffix(value, "_member") || value == "crypto_LUKS"
	case "DM_MULTIPATH_DEVICE_PATH":
		return value == "1"
	case "SYSTEMD_READY":
		return value == "0"
	}
	return false
}
