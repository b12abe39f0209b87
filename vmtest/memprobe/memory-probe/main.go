// Memory-probe tells the host of a virtual machine how much memory the guest
// has. As PID 1 it does so as "init", and executes the init of the tree that it
// stands in; else its argument is the name of the moment. See package memprobe.
package main

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inits are tried in turn, as storage-init does it.
var inits = []string{"/init", "/sbin/init"}

func main() {
	if os.Getpid() != 1 {
		if len(os.Args) != 2 {
			os.Stderr.WriteString("memory-probe: one argument is needed, the name of the moment\n")
			os.Exit(2)
		}
		if err := report(os.Args[1]); err != nil {
			os.Stderr.WriteString("memory-probe: " + err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	// Whatever it says, the boot goes on.
	err := report("init")
	for _, path := range inits {
		err = errors.Join(err, unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ()))
	}
	say("memory-probe: no init: " + err.Error() + "\n")
	os.Exit(1)
}

// say writes to the kernel log.
func say(line string) {
	dev, err := detached("devtmpfs")
	if err != nil {
		return
	}
	if f, err := openAt(dev, "kmsg", unix.O_WRONLY); err == nil {
		_, _ = f.WriteString(line) // there is nobody to tell
	}
}

// report sends the event.
func report(moment string) error {
	proc, err := detached("proc")
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	text, err := readAt(proc, "meminfo")
	if err != nil {
		return err
	}
	zones, err := readAt(proc, "zoneinfo")
	if err != nil {
		return err
	}
	line, err := event(moment, text, zones, os.Getpagesize())
	if err != nil {
		return err
	}
	cmdline, err := readAt(proc, "cmdline")
	if err != nil {
		return err
	}
	port := eventsPort(cmdline)
	if port == "" {
		return errors.New("no vmtest.events= on the kernel command line")
	}
	return send(port, line)
}

// event gives the line of a moment.
func event(moment, meminfo, zoneinfo string, pageSize int) (string, error) {
	line := `{"event":"memory","at":` + strconv.Quote(moment)
	for _, member := range []struct{ name, key string }{
		{"available_kb", "MemAvailable"}, {"cached_kb", "Cached"}, {"shmem_kb", "Shmem"}, {"total_kb", "MemTotal"},
	} {
		kb, ok := lineOf(meminfo, member.key)
		if !ok {
			return "", errors.New("/proc/meminfo: no " + member.key)
		}
		line += `,"` + member.name + `":` + strconv.FormatInt(kb, 10)
	}
	pages := int64(0)
	for field := range strings.Lines(zoneinfo) {
		count, ok := strings.CutPrefix(strings.TrimSpace(field), "count:")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
		if err != nil {
			return "", errors.New("/proc/zoneinfo: " + err.Error())
		}
		pages += n
	}
	return line + `,"percpu_kb":` + strconv.FormatInt(pages*int64(pageSize)/1024, 10) + "}\n", nil
}

// lineOf gives a number of kB of /proc/meminfo.
func lineOf(meminfo, key string) (kb int64, ok bool) {
	for line := range strings.Lines(meminfo) {
		if value, found := strings.CutPrefix(line, key+":"); found {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kb, err == nil
		}
	}
	return 0, false
}

// eventsPort gives the device of vmtest.events=.
func eventsPort(cmdline string) string {
	port := ""
	for word := range strings.FieldsSeq(cmdline) {
		if value, ok := strings.CutPrefix(word, "vmtest.events="); ok {
			port = value
		}
	}
	return port
}

// send writes a line to a serial port, and waits until it is out.
func send(port, line string) error {
	dev, err := detached("devtmpfs")
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	f, err := openAt(dev, port, unix.O_RDWR|unix.O_NOCTTY)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	// Raw, so that the terminal changes nothing.
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("get the mode of "+port, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return os.NewSyscallError("set the mode of "+port, err)
	}
	if _, err := f.WriteString(line); err != nil {
		return err
	}
	// (1: wait, no break.)
	return os.NewSyscallError("wait for "+port, unix.IoctlSetInt(fd, unix.TCSBRK, 1))
}

// detached gives the root of a filesystem that is mounted nowhere, so that the
// real init finds the tree as it would without us.
func detached(kind string) (fd int, err error) {
	context, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen "+kind, err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, os.NewSyscallError("fsconfig "+kind, err)
	}
	fd, err = unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	return fd, os.NewSyscallError("fsmount "+kind, err)
}

func openAt(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open "+name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readAt(dir int, name string) (string, error) {
	f, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}
