package storageinit

import (
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// selfProgram is this program's own file, wherever it lies.
const selfProgram = "/proc/self/exe"

// systemdPrograms tell a tree in which systemd switches to the real root from
// one that calls a switch-root program.
var systemdPrograms = []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"}

// The unit that runs in the real root, and what makes it start there: systemd
// reads /run again after the switch, and nothing is installed.
const (
	returnUnitPath = "/run/systemd/system/initoverlayfs-return-memory.service"
	returnWantPath = "/run/systemd/system/multi-user.target.d/initoverlayfs-return-memory.conf"

	returnUnitHead = `[Unit]
Description=Return the memory of the initial filesystem's image
After=multi-user.target
ConditionPathExists=` + bootconf.ReturnDir + "/" + bootconf.ReturnProgram + `

[Service]
Type=oneshot
ExecStart=` + bootconf.ReturnDir + "/" + bootconf.ReturnProgram + " " + ReturnArgument + " "
	returnWant = "[Unit]\nWants=initoverlayfs-return-memory.service\n"
)

// ReturnArgument comes before the image's UUID where the program is to give the
// image's region back; see package region.
const ReturnArgument = "--return-memory"

// carryReturn leaves for the booted system what gives the image's region back.
// It is best-effort: without it the region stays reserved.
func (b *boot) carryReturn() {
	if !b.record.Backend.InMemory() || len(bootconf.MemmapRegions(b.cmdline)) == 0 {
		return // the image is in no memory that the kernel could use as RAM
	}
	switch {
	case !b.conf.ReturnMemory:
		b.log(levelInfo, "the image's memory stays reserved: return_memory is no")
	case b.resumes():
		// The kernel that resumes has the region reserved, and refuses a saved
		// system that had more memory.
		b.log(levelInfo, "the image's memory stays reserved: the system can hibernate, as resume= says")
	default:
		if err := b.writeReturn(); err != nil {
			b.log(levelWarn, "the image's memory stays reserved: "+err.Error())
		}
	}
}

// resumes reports whether the command line names where the system hibernates to.
func (b *boot) resumes() bool {
	named := false
	for word := range bootconf.Words(b.cmdline) {
		switch {
		case word == "noresume", word == "nohibernate", word == "hibernate=no":
			return false
		case strings.HasPrefix(word, "resume=") && word != "resume=":
			named = true
		}
	}
	return named
}

func (b *boot) writeReturn() error {
	root := b.sysroot // for our switch-root program, below the mount on /run
	systemd := false
	for _, path := range systemdPrograms {
		if b.sys.Executable(b.sysroot, path) == nil {
			root, systemd = "", true
			break
		}
	}
	dir := root + bootconf.ReturnDir
	if err := b.makeDirs(root, bootconf.ReturnDir); err != nil {
		return err
	}
	// What the kernel has built in is not there.
	names, _ := b.sys.ReadDir(bootconf.ReturnModulesDir)
	for _, name := range names {
		if err := b.copyFile(bootconf.ReturnModulesDir+"/"+name, dir+"/"+name, 0o644); err != nil {
			return err
		}
	}
	uuid := b.conf.ImageUUID.String()
	if !systemd {
		return b.write(dir+"/"+bootconf.ReturnImage, uuid)
	}
	if err := b.copyFile(selfProgram, dir+"/"+bootconf.ReturnProgram, 0o755); err != nil {
		return err
	}
	if err := b.makeDirs("", returnWantPath[:strings.LastIndexByte(returnWantPath, '/')]); err != nil {
		return err
	}
	if err := b.write(returnUnitPath, returnUnitHead+uuid+"\n"); err != nil {
		return err
	}
	return b.write(returnWantPath, returnWant)
}

// makeDirs makes a directory below /run, with those that it lies in.
func (b *boot) makeDirs(root, path string) error {
	for end := len("/run/"); ; end++ {
		if end < len(path) && path[end] != '/' {
			continue
		}
		if err := b.sys.Mkdir(root+path[:end], 0o755); err != nil {
			return failed("mkdir "+path[:end], err)
		}
		if end == len(path) {
			return nil
		}
	}
}

func (b *boot) copyFile(from, to string, mode uint32) error {
	if err := b.sys.CopyFile(from, to, mode); err != nil {
		return failed("copy "+from, err)
	}
	return nil
}

func (b *boot) write(path, text string) error {
	if err := b.sys.WriteFile(path, text); err != nil {
		return failed("write "+path, err)
	}
	return nil
}
