// Guest is a tiny init for tests. It stands in a full tree as /init, looks at
// the system it finds, sends what it saw as the done event to the host, and
// ends the virtual machine.
//
// The kernel command line tells it what to do:
//
//	vmtest.events=TTY       serial port of the events
//	vmtest.check=NAME[:ARGUMENT][,...]
//	vmtest.root=DEVICE:TYPE the new root of the check switch_root; else a tmpfs
//	vmtest.end=poweroff|reset|panic|hang
//
// The checks are in checks.go, but for switch_root:/bin/NAME, which hands over
// to a second stage in a new root by the named program; see switchroot.go.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// guest is what the command line asks for.
type guest struct {
	events     *bufio.Writer
	eventsFile *os.File
	checks     []string
	root       string
	end        string
	mounted    []string // what this stage had to mount
	done       vmtest.Done
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vmtest guest: not PID 1; it is the init of a virtual machine")
		os.Exit(1)
	}
	g := &guest{end: "poweroff"}
	err := g.run()
	g.report(err)
	g.finish()
}

// run does the checks. It does not return when the second stage takes over.
func (g *guest) run() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if err := g.mountAll(); err != nil {
		return err
	}
	if err := g.configure(); err != nil {
		return err
	}
	stage := "first"
	if isSecondStage() {
		stage = "second"
	}
	kmsg("vmtest guest: " + stage + " stage")

	g.done.Checks = map[string]json.RawMessage{}
	for _, check := range g.checks {
		name, argument, _ := strings.Cut(check, ":")
		if name == "switch_root" {
			continue // the last
		}
		found, err := g.check(name, argument)
		if err != nil {
			return fmt.Errorf("check %s: %w", check, err)
		}
		raw, err := json.Marshal(found)
		if err != nil {
			return fmt.Errorf("check %s: %w", check, err)
		}
		g.done.Checks[name] = raw
	}
	for _, check := range g.checks {
		if program, ok := strings.CutPrefix(check, "switch_root:"); ok && !isSecondStage() {
			return fmt.Errorf("check %s: %w", check, g.switchRoot(program))
		}
	}
	return nil
}

// mountAll mounts what an init expects and does not find mounted.
func (g *guest) mountAll() error {
	for _, m := range []struct{ kind, dir, probe string }{
		{"proc", "/proc", "/proc/self"},
		{"sysfs", "/sys", "/sys/kernel"},
		{"devtmpfs", "/dev", "/dev/null"},
		{"tmpfs", "/run", ""},
	} {
		if m.probe == "" && isMountPoint(m.dir) {
			continue
		}
		if _, err := os.Lstat(m.probe); m.probe != "" && err == nil {
			continue
		}
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.dir, err)
		}
		g.mounted = append(g.mounted, m.dir)
	}
	return nil
}

func isMountPoint(dir string) bool {
	var here, above unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

func (g *guest) configure() error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	tty := ""
	for word := range bootconf.Words(string(cmdline)) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "vmtest.events":
			tty = value
		case "vmtest.check":
			g.checks = append(g.checks, strings.Split(value, ",")...)
		case "vmtest.root":
			g.root = value
		case "vmtest.end":
			g.end = value
		}
	}
	if tty == "" {
		return errors.New("no vmtest.events= on the kernel command line")
	}
	f, err := os.OpenFile(filepath.Join("/dev", tty), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	// Raw, so that the terminal changes nothing.
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	g.events, g.eventsFile = bufio.NewWriterSize(f, 64<<10), f
	return nil
}

// send writes one event; v is an object without the member "event".
func (g *guest) send(kind string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fmt.Fprintf(g.events, `{"event":%q,%s`+"\n", kind, raw[1:])
	return g.events.Flush()
}

// report sends the done event.
func (g *guest) report(err error) {
	if g.events == nil {
		kmsg(fmt.Sprintf("vmtest guest: %v", err))
		return
	}
	d := &g.done
	// A guest that failed still tells where it was.
	err = errors.Join(err, g.look())
	d.OK = err == nil
	if err != nil {
		d.Error = err.Error()
	}
	if err := g.send(vmtest.EventDone, d); err != nil {
		kmsg("vmtest guest: send the done event: " + err.Error())
	}
}

// look fills in what every done event has.
func (g *guest) look() error {
	d := &g.done
	var usable []int64
	for i := range 3 {
		if i > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		available, err := meminfo("MemAvailable")
		if err != nil {
			return err
		}
		percpu, err := percpuFree()
		if err != nil {
			return err
		}
		d.MemSamplesKB = append(d.MemSamplesKB, available)
		d.MemPerCPUKB = append(d.MemPerCPUKB, percpu)
		usable = append(usable, available+percpu)
	}
	d.MemAvailableKB = slices.Sorted(slices.Values(d.MemSamplesKB))[1]
	d.MemUsableKB = slices.Sorted(slices.Values(usable))[1]
	var err error
	if d.MemTotalKB, err = meminfo("MemTotal"); err != nil {
		return err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _, _ := strings.Cut(string(uptime), " ")
	if d.UptimeS, err = strconv.ParseFloat(seconds, 64); err != nil {
		return fmt.Errorf("/proc/uptime: %w", err)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	d.Mountinfo = string(mountinfo)
	d.ErofsMounts = []string{}
	for line := range strings.Lines(d.Mountinfo) {
		line = strings.TrimSuffix(line, "\n")
		if strings.Contains(line, " - erofs ") {
			d.ErofsMounts = append(d.ErofsMounts, line)
		}
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/" {
			d.RootOptions = fields[5]
		}
	}
	d.ErofsSysfs = []string{}
	// The folder comes with the module.
	if entries, err := os.ReadDir("/sys/fs/erofs"); err == nil {
		for _, e := range entries {
			if e.Name() != "features" {
				d.ErofsSysfs = append(d.ErofsSysfs, e.Name())
			}
		}
	}
	record, err := os.ReadFile(bootconf.RecordPath)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case !json.Valid(record):
		return fmt.Errorf("%s is not JSON: %q", bootconf.RecordPath, record)
	default:
		d.Record = record
	}
	return nil
}

// meminfo gives a line of /proc/meminfo in kB.
func meminfo(key string) (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/meminfo: no %s", key)
}

// percpuFree gives the free memory in the per-CPU lists in kB.
func percpuFree() (int64, error) {
	text, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		return 0, err
	}
	var pages int64
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(line), "count:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/zoneinfo: %w", err)
			}
			pages += n
		}
	}
	return pages * int64(os.Getpagesize()) / 1024, nil
}

// kmsg writes a line to the kernel log.
func kmsg(line string) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		fmt.Println(line)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

// finish ends the virtual machine; it does not return.
func (g *guest) finish() {
	if g.eventsFile != nil {
		// What the port has not sent yet would be lost. (1: wait, no break.)
		_ = unix.IoctlSetInt(int(g.eventsFile.Fd()), unix.TCSBRK, 1)
	}
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	switch g.end {
	case "panic":
		os.Exit(1)
	case "reset":
		how = unix.LINUX_REBOOT_CMD_RESTART
	case "hang":
		time.Sleep(1 << 62)
	}
	err := unix.Reboot(how)
	kmsg(fmt.Sprintf("vmtest guest: %s: %v", g.end, err))
	os.Exit(1)
}
