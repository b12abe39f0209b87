// Package switchroot is the second role of storage-init: the switch-root
// program of a full tree.
//
// klibc's run-init and busybox's switch_root refuse to leave a root that is not
// a ramfs or tmpfs, because they free it by deleting its files. The root of a
// full tree is an overlay. It is freed by leaving it: the new root is pivoted
// in and the old one is detached, and with it go the tmpfs and the image.
//
// The program is told by its name which original it stands for, and takes the
// arguments of that one.
package switchroot

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit"
)

// request is a parsed command line.
type request struct {
	newRoot string
	init    string
	args    []string // of init, its name first
	console string   // device for init's standard streams; empty: leave them
	drop    string   // capabilities to drop, comma-separated
	dryRun  bool     // check only
	help    bool
}

const (
	runInit    = "run-init"
	switchRoot = "switch_root"
)

// Role gives the name under which the program was started if that is one of a
// switch-root program.
func Role(argv []string) (string, bool) {
	if len(argv) == 0 {
		return "", false
	}
	name := argv[0][strings.LastIndexByte(argv[0], '/')+1:]
	return name, name == runInit || name == switchRoot
}

// Main runs the role. It returns only with an error; a nil error is the end of
// a request that only asked.
func Main(sys *storageinit.Linux, name string, argv []string) error {
	req, err := parse(name, argv[1:])
	switch {
	case err != nil:
		return err
	case req.help:
		_, _ = unix.Write(1, []byte(usage(name)+"\n"))
		return nil
	}
	if err := check(sys, &req); err != nil || req.dryRun {
		return err
	}
	if unix.Getpid() != 1 {
		return errors.New("this is not PID 1")
	}
	return enter(sys, &req)
}

func usage(name string) string {
	if name == runInit {
		return "usage: run-init [-d CAPABILITIES] [-c CONSOLE] [-n] [-p] NEWROOT INIT [ARGUMENT...]"
	}
	return "usage: switch_root [-c CONSOLE] NEWROOT INIT [ARGUMENT...]"
}

// parse reads the options of klibc's run-init, and of both switch_root: that of
// busybox knows -c, that of util-linux -h and -V.
func parse(name string, args []string) (request, error) {
	var req request
	takesValue, flags := "c", "hV"
	if name == runInit {
		req.console = "/dev/console"
		takesValue, flags = "cd", "np"
	}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		option := args[0]
		args = args[1:]
		if option == "--" {
			break
		}
		switch option {
		case "--help":
			option = "-h"
		case "--version":
			option = "-V"
		}
		for letters := option[1:]; letters != ""; {
			letter := letters[:1]
			letters = letters[1:]
			var value string
			switch {
			case strings.Contains(takesValue, letter):
				if value = letters; value == "" {
					if len(args) == 0 {
						return req, errors.New("option -" + letter + " needs a value; " + usage(name))
					}
					value, args = args[0], args[1:]
				}
				letters = ""
			case !strings.Contains(flags, letter):
				return req, errors.New("unknown option " + option + "; " + usage(name))
			}
			switch letter {
			case "c":
				req.console = value
			case "d":
				req.drop = value
			case "n":
				req.dryRun = true
			case "h", "V":
				req.help = true
				return req, nil
			}
			// -p keeps the initramfs's files; there are none to delete here.
		}
	}
	if len(args) < 2 {
		return req, errors.New(usage(name))
	}
	req.newRoot, req.init, req.args = args[0], args[1], args[1:]
	return req, nil
}

// check makes sure, before anything is changed, that the new root can take over.
func check(sys *storageinit.Linux, req *request) error {
	if _, err := capabilities(req.drop); err != nil {
		return err
	}
	oldDev, err := device("/")
	if err != nil {
		return err
	}
	newDev, err := device(req.newRoot)
	if err != nil {
		return err
	}
	if oldDev == newDev {
		return errors.New(req.newRoot + " is not a mount")
	}
	if err := sys.Executable(req.newRoot, req.init); err != nil {
		return errors.New("init " + req.init + " in " + req.newRoot + ": " + err.Error())
	}
	return nil
}

// enter is the hand-over.
func enter(sys *storageinit.Linux, req *request) error {
	newDev, err := device(req.newRoot)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		moveMount(dir, req.newRoot+dir, newDev)
	}
	image := carry(sys, req.newRoot, newDev)

	if err := unix.Chdir(req.newRoot); err != nil {
		return errors.New("chdir " + req.newRoot + ": " + err.Error())
	}
	// With both arguments the same directory the old root comes to lie on top
	// of the new one, from where it can be detached by that name; pivot_root(2).
	if err := unix.PivotRoot(".", "."); err == nil {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return errors.New("detach the old root: " + err.Error())
		}
		if err := unix.Chdir("/"); err != nil {
			return errors.New("chdir /: " + err.Error())
		}
	} else if err := sys.EnterRoot("."); err != nil {
		// A root that cannot be pivoted is rootfs itself.
		return errors.New("enter " + req.newRoot + ": " + err.Error())
	}
	if image != "" {
		returnMemory(sys, image)
	}
	openConsole(req.console)
	if err := dropCapabilities(sys, req.drop); err != nil {
		return err
	}
	return errors.New("execute " + req.init + ": " + unix.Exec(req.init, req.args, unix.Environ()).Error())
}

func device(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, errors.New(path + ": " + err.Error())
	}
	return st.Dev, nil
}

// moveMount takes a mount to the new root unless the caller has done so.
// Directories that are no mounts, or have no place to go, stay behind.
func moveMount(from, to string, newDev uint64) {
	fromDev, err := device(from)
	if err != nil {
		return
	}
	rootDev, err := device("/")
	if err != nil || fromDev == rootDev {
		return
	}
	if toDev, err := device(to); err == nil && toDev == newDev {
		_ = unix.Mount(from, to, "", unix.MS_MOVE, "")
	}
}

// carry puts what storage-init has left for the booted system into the /run of
// the new root, and gives the image's UUID if its memory is to be given back. A
// fresh /run, as the one of initramfs-tools, hides the boot record and the
// modules: they are in the old root's /run directory, below every mount on it.
func carry(sys *storageinit.Linux, newRoot string, newDev uint64) (image string) {
	runDev, err := device(newRoot + "/run")
	if err != nil || runDev == newDev {
		return "" // never write into the real root itself
	}
	// A clone of the root mount alone shows what lies below other mounts.
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(tree)
	_ = sys.Mkdir(newRoot+directory(bootconf.RecordPath), 0o755)
	if _, err := sys.ReadFile(newRoot + bootconf.RecordPath); err != nil {
		if record, err := readAt(tree, bootconf.RecordPath); err == nil {
			_ = sys.WriteFile(newRoot+bootconf.RecordPath, record)
		}
	}
	if image, err = readAt(tree, bootconf.ReturnDir+"/"+bootconf.ReturnImage); err != nil {
		return ""
	}
	_ = sys.Mkdir(newRoot+bootconf.ReturnDir, 0o755)
	for _, name := range namesAt(tree, bootconf.ReturnDir) {
		path := bootconf.ReturnDir + "/" + name
		content, err := readAt(tree, path)
		if err == nil {
			err = sys.WriteFile(newRoot+path, content)
		}
		if err != nil {
			return ""
		}
	}
	return image
}

func directory(path string) string { return path[:strings.LastIndexByte(path, '/')] }

// readAt reads a file by its absolute path inside a tree.
func readAt(tree int, path string) (string, error) {
	fd, err := unix.Openat(tree, path[1:], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	return storageinit.ReadAll(fd)
}

// namesAt lists a directory by its absolute path inside a tree.
func namesAt(tree int, path string) []string {
	fd, err := unix.Openat(tree, path[1:], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	names, _ := storageinit.ReadNames(fd)
	return names
}

// returnMemory starts what waits until the old root is gone, with everything in
// it, this program too. The real root need not know of it.
func returnMemory(sys *storageinit.Linux, image string) {
	if err := sys.Spawn([]string{"initoverlayfs", storageinit.ReturnArgument, image}); err != nil {
		_ = sys.OpenLog()
		const warning = 4
		sys.Log(warning, bootconf.LogPrefix+"the image's memory stays reserved: "+err.Error())
		_ = sys.RemoveAll(bootconf.ReturnDir)
	}
}

// openConsole gives init its standard streams.
func openConsole(path string) {
	if path == "" {
		return
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	for stream := range 3 {
		_ = unix.Dup3(fd, stream, 0)
	}
	if fd > 2 {
		unix.Close(fd)
	}
}
