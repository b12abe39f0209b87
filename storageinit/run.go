// Package storageinit is PID 1 of the mini-initramfs: it finds the EROFS image
// of the full tree, mounts it below a tmpfs overlay and executes its init.
//
// A step is fatal when the full tree cannot run without it. Everything else is
// best-effort: it is logged and the boot goes on. A fatal error is told in one
// line and answered with the configured policy; no step is half done and
// followed by the next.
package storageinit

import (
	"errors"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// Mount points in the mini-initramfs. None of them survives the hand-over.
const (
	lowerDir   = "/lower"   // the EROFS image
	overlayDir = "/overlay" // the tmpfs with the overlay's upper and work directories
	bootfsDir  = "/bootfs"  // the filesystem that holds the image
	sysroot    = "/sysroot" // the overlay, the full tree's root
	// the same for systemd, which knows another one under that name
	unitSysroot = "/initoverlayfs"
)

// boot is one run of storage-init.
type boot struct {
	sys     System
	conf    bootconf.Config
	cmdline string
	modules moduleSet
	devices map[string]*device // by name in sysfs, as the last scan found them
	record  bootconf.Record
	unit    bool   // of systemd, which loads modules and has udev; else PID 1
	sysroot string // where the overlay is mounted

	scsiScanned   bool
	bootfsMounted bool

	start        int64  // of storage-init, microseconds
	phase        int64  // start of the current phase
	panicTimeout string // of the kernel, before we set it
	hurried      bool   // we have changed how the kernel waits
}

// Run boots. It does not return: it becomes the full tree's init or follows
// the failure policy.
func Run(sys System) {
	b := newBoot(sys)
	b.sysroot = sysroot
	b.fail(b.protect(b.run))
}

func newBoot(sys System) *boot {
	now := sys.Now()
	return &boot{sys: sys, conf: bootconf.Default(), start: now, phase: now}
}

// protect turns a panic of f into an error.
func (b *boot) protect(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("internal error: " + panicText(r))
		}
	}()
	return f()
}

func panicText(r any) string {
	switch v := r.(type) {
	case error:
		return v.Error()
	case string:
		return v
	}
	return "panic"
}

// run is the boot order. It returns only with a fatal error.
func (b *boot) run() error {
	if err := b.mountKernelFilesystems(); err != nil {
		return err
	}
	if err := b.sys.OpenLog(); err != nil {
		b.log(levelWarn, "open the kernel log: "+err.Error())
	}
	b.armPanicTimeout()
	b.hurry()
	if err := b.configure(); err != nil {
		return err
	}
	if err := b.readModuleLists(); err != nil {
		return err
	}
	b.endPhase("setup")

	initPath, err := b.mountFullTree()
	if err != nil {
		return err
	}
	return b.handOver(initPath)
}

// mountFullTree finds the image, puts the overlay on it and gives the path of the
// init inside it.
func (b *boot) mountFullTree() (initPath string, err error) {
	if err := b.sys.ListenUevents(); err != nil {
		return "", failed("listen for device events", err)
	}
	if err := b.mountImage(); err != nil {
		return "", err
	}
	b.endPhase("image")

	if err := b.mountOverlay(); err != nil {
		return "", err
	}
	if initPath, err = b.findInit(); err != nil {
		return "", err
	}
	b.endPhase("overlay")
	return initPath, nil
}

// mountKernelFilesystems makes what everything else looks at. It is fatal.
func (b *boot) mountKernelFilesystems() error {
	for _, m := range []struct {
		fstype, target string
		flags          uintptr
		data           string
	}{
		{"devtmpfs", "/dev", mountNoSUID, "mode=0755"},
		{"proc", "/proc", mountNoSUID | mountNoDev | mountNoExec, ""},
		{"sysfs", "/sys", mountNoSUID | mountNoDev | mountNoExec, ""},
		// systemd keeps a /run that is there. Its own has this size, by which
		// journald sizes its journal: with tmpfs's default of half the memory
		// that would hold 8 MB more of a 1 GB machine.
		{"tmpfs", "/run", mountNoSUID | mountNoDev, "mode=0755,size=20%,nr_inodes=800k"},
	} {
		// The directories are in the mini-initramfs; one that is missing
		// shows as the mount's error.
		_ = b.sys.Mkdir(m.target, 0o755)
		if err := b.sys.Mount(m.fstype, m.target, m.fstype, m.flags, m.data); err != nil {
			return failed("mount "+m.fstype+" on "+m.target, err)
		}
	}
	return nil
}

const panicTimeoutPath = "/proc/sys/kernel/panic"

// armPanicTimeout makes the kernel reboot should this process die of something
// that Go cannot recover. A timeout that is set already is kept.
func (b *boot) armPanicTimeout() {
	text, err := b.sys.ReadFile(panicTimeoutPath)
	if err != nil {
		return
	}
	b.panicTimeout = strings.TrimSpace(text)
	if b.panicTimeout != "0" {
		return
	}
	cmdline, _ := b.sys.ReadFile("/proc/cmdline")
	for word := range bootconf.Words(cmdline) {
		if word == "panic=0" {
			return // the user asked for a kernel that stays
		}
	}
	_ = b.sys.WriteFile(panicTimeoutPath, "10")
}

// disarmPanicTimeout gives the kernel back the timeout that it had.
func (b *boot) disarmPanicTimeout() {
	if b.panicTimeout != "" {
		_ = b.sys.WriteFile(panicTimeoutPath, b.panicTimeout)
	}
}

// configure reads the configuration file and the command line. An unknown key is
// logged, a bad value is fatal.
func (b *boot) configure() error {
	cmdline, err := b.sys.ReadFile("/proc/cmdline")
	if err != nil {
		return failed("read the kernel command line", err)
	}
	b.cmdline = strings.TrimSpace(cmdline)

	// Command line first: its failure policy must hold if there is no file. It
	// overrides the file, so it is read once more before the file is judged.
	b.conf.ReadCmdline(b.cmdline)
	text, err := b.sys.ReadFile(bootconf.ConfigPath)
	if err != nil {
		return failed("read "+bootconf.ConfigPath, err)
	}
	inFile, inCmdline := b.conf.ReadFile(text), b.conf.ReadCmdline(b.cmdline)
	if err := b.report(bootconf.ConfigPath, inFile); err != nil {
		return err
	}
	if err := b.report("kernel command line", inCmdline); err != nil {
		return err
	}
	if err := b.conf.Check(); err != nil {
		return failed(bootconf.ConfigPath, err)
	}
	return nil
}

func (b *boot) readModuleLists() error {
	text, err := b.sys.ReadFile(bootconf.ModulesPath)
	if err != nil {
		return failed("read "+bootconf.ModulesPath, err)
	}
	if b.modules.list, err = bootconf.ParseModules(text); err != nil {
		return failed(bootconf.ModulesPath, err)
	}
	if text, err = b.sys.ReadFile(bootconf.AliasesPath); err != nil {
		return failed("read "+bootconf.AliasesPath, err)
	}
	if b.modules.aliases, err = bootconf.ParseAliases(text); err != nil {
		return failed(bootconf.AliasesPath, err)
	}
	return nil
}

func (b *boot) report(source string, problems []bootconf.Problem) error {
	for _, p := range problems {
		if !errors.Is(p, bootconf.ErrUnknownKey) {
			return failed(source, p)
		}
		b.log(levelWarn, source+": "+p.Error()+", ignored")
	}
	return nil
}

func (b *boot) endPhase(name string) {
	now := b.sys.Now()
	b.record.Phases = append(b.record.Phases, bootconf.Phase{Name: name, StartUS: b.phase, EndUS: now})
	b.phase = now
}

func (b *boot) log(level int, text string) {
	// A second line would not carry the prefix by which it is found.
	b.sys.Log(level, bootconf.LogPrefix+strings.ReplaceAll(text, "\n", " "))
}

// fail says what failed and follows the policy. It does not return.
func (b *boot) fail(err error) {
	b.calmDown() // a halted machine may be looked at, and `panic` may be no end
	policy := b.conf.OnFailure
	b.log(levelFatal, "fatal: "+err.Error()+" (on_failure "+policy.String()+")")
	switch policy.Action {
	case bootconf.Halt:
		err = b.sys.Halt()
	case bootconf.Reboot:
		if policy.Seconds > 0 {
			b.log(levelFatal, "rebooting in "+strconv.Itoa(policy.Seconds)+" s")
			b.sys.Sleep(policy.Seconds)
		}
		err = b.sys.Reboot()
	case bootconf.Panic:
		b.disarmPanicTimeout()
		b.sys.Exit()
	}
	if err != nil {
		b.log(levelFatal, string(policy.Action)+": "+err.Error())
	}
	b.sys.Exit()
}
