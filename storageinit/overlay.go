package storageinit

import (
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// mountOverlay puts a tmpfs overlay on the mounted image. It is fatal.
func (b *boot) mountOverlay() error {
	for _, dir := range []string{overlayDir, b.sysroot} {
		if err := b.sys.Mkdir(dir, 0o755); err != nil {
			return failed("mkdir "+dir, err)
		}
	}
	if err := b.sys.Mount("tmpfs", overlayDir, "tmpfs", 0, "mode=0755,size="+b.conf.OverlaySize); err != nil {
		return failed("mount tmpfs (size="+b.conf.OverlaySize+") on "+overlayDir, err)
	}
	const upper, work = overlayDir + "/upper", overlayDir + "/work"
	for _, dir := range []string{upper, work} {
		if err := b.sys.Mkdir(dir, 0o755); err != nil {
			return failed("mkdir "+dir, err)
		}
	}
	// The root of an overlay shows the attributes of the upper directory.
	if err := b.sys.CopyAttributes(lowerDir, upper); err != nil {
		b.log(levelWarn, "attributes of the root directory: "+err.Error())
	}
	options := "lowerdir=" + lowerDir + ",upperdir=" + upper + ",workdir=" + work
	if err := b.sys.Mount("overlay", b.sysroot, "overlay", 0, options); err != nil {
		return failed("mount overlay on "+b.sysroot, err)
	}
	return nil
}

// findInit gives the init of the full tree: the configured one, or the first of
// the usual ones.
func (b *boot) findInit() (string, error) {
	candidates := []string{"/init", "/sbin/init"}
	if b.conf.Init != "" {
		candidates = []string{b.conf.Init}
	}
	var why reasons
	for _, path := range candidates {
		err := b.sys.Executable(b.sysroot, path)
		if err == nil {
			return path, nil
		}
		why = append(why, failed("init "+path+" of the image", err))
	}
	return "", why
}

// handOver makes the overlay the root and executes its init. The steps after
// the last mount is moved cannot be taken back, so what they need was checked.
func (b *boot) handOver(initPath string) error {
	record := b.writeRecord()
	argv := append([]string{initPath}, tail(b.sys.Args())...)
	env := withEnv(b.sys.Environ(), "SYSTEMD_IN_INITRD=lenient")
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := b.sys.Mkdir(b.sysroot+dir, 0o755); err != nil {
			return failed("mkdir "+dir+" in the overlay", err)
		}
	}
	b.saveRecords(record)
	b.carryReturn()
	b.disarmPanicTimeout()
	b.calmDown()

	for _, dir := range []string{"/run", "/sys", "/proc", "/dev"} {
		if err := b.sys.MoveMount(dir, b.sysroot+dir); err != nil {
			return failed("move "+dir+" to the overlay", err)
		}
	}
	b.detachLayers()
	if err := b.sys.EmptyRoot(b.sysroot); err != nil {
		b.log(levelWarn, "empty the mini-initramfs: "+err.Error())
	}
	b.logHandover()
	if err := b.sys.EnterRoot(b.sysroot); err != nil {
		return failed("enter "+b.sysroot, err)
	}
	return failed("execute "+initPath, b.sys.Exec(initPath, argv, env))
}

// detachLayers takes the mounts below the overlay out of the tree. The overlay
// holds its layers by itself; mounts that stayed in the old root would hold
// them, invisibly, for as long as the machine runs.
func (b *boot) detachLayers() {
	detach := []string{lowerDir, overlayDir}
	if b.bootfsMounted {
		detach = append(detach, bootfsDir)
	}
	for _, dir := range detach {
		if err := b.sys.Detach(dir); err != nil {
			b.log(levelWarn, "detach "+dir+": "+err.Error())
		}
	}
}

func (b *boot) logHandover() {
	b.log(levelInfo, "handover backend="+string(b.record.Backend)+
		" image="+b.record.ImageUUID+
		" verified="+b.record.Verified+
		" us="+strconv.FormatInt(b.sys.Now()-b.start, 10))
}

// writeRecord completes the record and gives its text.
func (b *boot) writeRecord() string {
	b.record.ImageUUID = b.conf.ImageUUID.String()
	b.record.Verified = "none"
	b.record.Modules = b.modules.loaded
	b.endPhase("record")
	return string(b.record.AppendJSON(nil))
}

// saveRecords leaves the record for the booted system. initramfs-tools mounts a
// fresh tmpfs over /run. A copy of the record below the mount is invisible, and
// our switch-root program finds it there.
func (b *boot) saveRecords(record string) {
	b.saveRecord(b.sysroot+bootconf.RecordPath, record)
	b.saveRecord(bootconf.RecordPath, record)
}

// saveRecord is best-effort: a boot does not fail for want of its report.
func (b *boot) saveRecord(path, text string) {
	dir := path[:strings.LastIndexByte(path, '/')]
	_ = b.sys.Mkdir(dir, 0o755)
	if err := b.sys.WriteFile(path, text); err != nil {
		b.log(levelWarn, "write "+path+": "+err.Error())
	}
}

func tail(args []string) []string {
	if len(args) == 0 {
		return nil
	}
	return args[1:]
}

// withEnv sets one variable, unless the kernel command line has set it.
func withEnv(env []string, variable string) []string {
	name := variable[:strings.IndexByte(variable, '=')+1]
	for _, v := range env {
		if strings.HasPrefix(v, name) {
			return env
		}
	}
	return append(env, variable)
}
