package vmtest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"initoverlayfs/initrd/bootconf"
)

// Milestone is a point of a boot. Its value is the name that the command
// line's JSON gives to its time.
type Milestone string

// The milestones, in the order of a boot.
const (
	// KernelStart is the first line of the kernel. On the guest's clock that is
	// about zero; on the host's clock it tells what firmware and boot loader took.
	KernelStart  Milestone = "kernel_start_s"
	KernelToInit Milestone = "kernel_to_init_s" // the kernel starts /init, or what rdinit= names
	HandedOver   Milestone = "handover_s"       // storage-init executes the full tree's init
	// InitfsInit is the first line that the full tree's init writes to the
	// kernel log or to the console.
	InitfsInit Milestone = "initfs_init_s"
	// SwitchRoot is where systemd leaves the initial filesystem for the real
	// root. Of several such moves, as a mini-initramfs with systemd makes them, it
	// is the last. A tree without systemd does not tell it.
	SwitchRoot Milestone = "switch_root_s"
	MultiUser  Milestone = "multi_user_s" // systemd reaches multi-user.target
	// Failed is the fatal line of storage-init, which a good boot lacks.
	Failed Milestone = "failed_s"
)

// Line is one line of the console.
type Line struct {
	Host  time.Duration // from the start of QEMU to the line's first byte
	Guest float64       // seconds on the guest's printk clock, if Stamped
	// Stamped says that the line came through the kernel log.
	Stamped bool
	// Program says that a program wrote the line, not the kernel.
	Program bool
	Text    string // without the kernel log's prefix and terminal controls
}

// Handover is what storage-init says in its last line.
type Handover struct {
	Backend  bootconf.Backend
	Image    string // UUID
	Verified string
	US       int64 // microseconds since storage-init started
}

var (
	// stamp is the prefix of a kernel log line on the console: priority (with
	// console_msg_format=syslog), time, and caller on some kernels.
	stamp = regexp.MustCompile(`(?:<(\d{1,4})>)?\[ {0,5}(\d{1,7}\.\d{6})\](?:\[ *[TC]\d+\])? ?`)
	// controls are the sequences by which programs colour their lines.
	controls = regexp.MustCompile("\x1b(?:\\[[0-9;?]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[()][0-9A-Z]|[0-9=>a-zA-Z])")
	// program is how programs begin a line of the kernel log; it serves
	// consoles that do not show who wrote a line.
	program = regexp.MustCompile(`^(?:[A-Za-z][\w.@-]*\[\d+\]|dracut[\w-]*|systemd[\w-]*|storage-init): `)

	// Another path is that of rdinit=.
	runInit = regexp.MustCompile(`^Run /\S+ as init process`)
	// systemd says so itself where its messages go to the kernel log. Where they
	// go to the journal, the journal's last line in the kernel log tells it: all
	// that runs is ended by systemd at the switch.
	switchRoot = regexp.MustCompile(`^(?:systemd\[1\]: Switching root\.|systemd-journald\[\d+\]: Received SIGTERM from PID 1 \(systemd\)\.)`)
	multiUser  = regexp.MustCompile(`Reached target (?:multi-user\.target|Multi-User System)`)
)

const (
	panicText    = "Kernel panic - not syncing"
	fatalPrefix  = bootconf.LogPrefix + "fatal"
	handoverText = bootconf.LogPrefix + "handover "
)

// console finds the milestones in the lines of a console.
type console struct {
	times map[Milestone]float64
	// hosts has the same milestones in seconds since QEMU was started.
	hosts map[Milestone]float64
	// onReached, if set, is called when a milestone was reached, also when it
	// takes the place of an earlier one.
	onReached func(Milestone)

	handover *Handover
	panic    string // the first line of a kernel panic
	fatal    string // the fatal line of storage-init
	reset    bool   // the guest asked for a reset
	off      bool   // the guest asked to be powered off
	halted   bool   // the guest stopped

	lastGuest float64       // the last stamp
	lastHost  time.Duration // and when it came
	estimated []Milestone   // milestones placed after the last stamp
}

// split takes a raw line apart: text that a program wrote to the console may
// lie in front of a kernel log line.
func split(host time.Duration, raw string) []Line {
	var lines []Line
	add := func(l Line, text string) {
		l.Host = host
		l.Text = strings.TrimRight(controls.ReplaceAllString(text, ""), " \r\n")
		if l.Text != "" || l.Stamped {
			lines = append(lines, l)
		}
	}
	current := Line{Program: true}
	begin := 0
	for _, at := range stamp.FindAllStringSubmatchIndex(raw, -1) {
		prioritised := at[2] >= 0
		if !prioritised && controls.ReplaceAllString(raw[:at[0]], "") != "" {
			continue // a time in the text of a line
		}
		guest, err := strconv.ParseFloat(raw[at[4]:at[5]], 64)
		if err != nil {
			continue
		}
		add(current, raw[begin:at[0]])
		begin = at[1]
		current = Line{Guest: guest, Stamped: true}
		if prioritised {
			priority, err := strconv.Atoi(raw[at[2]:at[3]])
			current.Program = err == nil && priority>>3 != 0 // the kernel's own facility is 0
		} else {
			current.Program = program.MatchString(raw[begin:])
		}
	}
	add(current, raw[begin:])
	return lines
}

// line takes one line, in order.
func (c *console) line(l Line) {
	if l.Stamped {
		c.lastGuest, c.lastHost = l.Guest, l.Host
		// What came before this line on the console did not happen after it.
		for _, m := range c.estimated {
			c.times[m] = min(c.times[m], l.Guest)
		}
		c.estimated = c.estimated[:0]
		c.kernelStart(l)
	}
	text := l.Text
	switch {
	case !l.Program && runInit.MatchString(text):
		c.reached(KernelToInit, l)
	case strings.HasPrefix(text, handoverText) && c.handover == nil:
		c.handover = parseHandover(text)
		c.reached(HandedOver, l)
		// Until here the lines were not the full tree's.
		c.forget(InitfsInit)
	case strings.HasPrefix(text, fatalPrefix):
		if c.fatal == "" {
			c.fatal = text
		}
		c.reached(Failed, l)
	case strings.HasPrefix(text, bootconf.LogPrefix):
	case strings.HasPrefix(text, panicText):
		if c.panic == "" {
			c.panic = text
		}
	case !l.Program && strings.HasPrefix(text, "reboot: "):
		switch what := strings.TrimPrefix(text, "reboot: "); {
		case strings.HasPrefix(what, "Restarting system"):
			c.reset = true
		case strings.HasPrefix(what, "Power down"):
			c.off = true
		case strings.HasPrefix(what, "System halted"):
			c.halted = true
		}
	case l.Program && text != "":
		if c.has(KernelToInit) {
			c.reached(InitfsInit, l)
		}
		switch {
		case switchRoot.MatchString(text) && !c.has(MultiUser):
			c.forget(SwitchRoot)
			c.reached(SwitchRoot, l)
		case multiUser.MatchString(text):
			c.reached(MultiUser, l)
		}
	}
}

// kernelStart takes a stamped line. The kernel keeps its first lines until it
// knows the console, so the host sees all of them later than they were written;
// the one that was the least late tells when the kernel's clock began.
func (c *console) kernelStart(l Line) {
	if l.Program || c.has(KernelToInit) {
		return
	}
	c.reached(KernelStart, l)
	c.hosts[KernelStart] = max(0, min(c.hosts[KernelStart], l.Host.Seconds()-l.Guest))
}

// multiUserAt takes systemd's own time of the target, which the guest reported
// at a time of the host. It is exact, where a line on the console is placed by
// the host's clock and is lost when a getty takes the console over.
func (c *console) multiUserAt(guest float64, reported time.Duration) {
	known := c.has(MultiUser)
	// Both clocks run alike, and what is reported has happened.
	host := min(reported.Seconds(), c.lastHost.Seconds()+guest-c.lastGuest)
	c.set(MultiUser, guest, host)
	if !known {
		c.notify(MultiUser)
	}
}

func (c *console) set(m Milestone, guest, host float64) {
	if c.times == nil {
		c.times = map[Milestone]float64{}
	}
	if c.hosts == nil {
		c.hosts = map[Milestone]float64{}
	}
	c.times[m], c.hosts[m] = guest, host
}

func (c *console) has(m Milestone) bool {
	_, ok := c.times[m]
	return ok
}

func (c *console) forget(m Milestone) {
	delete(c.times, m)
	delete(c.hosts, m)
	c.estimated = slices.DeleteFunc(c.estimated, func(e Milestone) bool { return e == m })
}

func (c *console) notify(m Milestone) {
	if c.onReached != nil {
		c.onReached(m)
	}
}

// reached notes the time of m, unless it was reached before. A line without a
// stamp is placed by the host's clock from the last stamp on.
func (c *console) reached(m Milestone, l Line) {
	if c.has(m) {
		return
	}
	guest := l.Guest
	if !l.Stamped {
		guest = c.lastGuest + (l.Host - c.lastHost).Seconds()
		c.estimated = append(c.estimated, m)
	}
	c.set(m, guest, l.Host.Seconds())
	c.notify(m)
}

func parseHandover(text string) *Handover {
	h := new(Handover)
	for word := range strings.FieldsSeq(strings.TrimPrefix(text, handoverText)) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "backend":
			h.Backend = bootconf.Backend(value)
		case "image":
			h.Image = value
		case "verified":
			h.Verified = value
		case "us":
			h.US, _ = strconv.ParseInt(value, 10, 64) // 0: not said
		}
	}
	return h
}

// String shows the line with its times, as the log has it: seconds of the
// host, then of the guest.
func (l Line) String() string {
	guest := strings.Repeat(" ", 12)
	if l.Stamped {
		guest = fmt.Sprintf("%12.6f", l.Guest)
	}
	by := "kernel "
	if l.Program {
		by = "program"
	}
	return fmt.Sprintf("%9.3f %s %s %s", l.Host.Seconds(), guest, by, l.Text)
}
