package vmtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	defaultTimeout    = 5 * time.Minute
	defaultFatalGrace = 15 * time.Second
	panicGrace        = time.Second      // for the rest of a panic's report
	doneGrace         = 20 * time.Second // for the power-off after the done event
	drainGrace        = 2 * time.Second  // for the pipes, once QEMU has ended
)

// Result is what a boot showed.
type Result struct {
	Accel       Accel  // KVM or TCG
	AccelReason string // why, if it was to be found out
	QEMU        string // version

	// Times has the milestones that were reached, in seconds on the guest's
	// printk clock.
	Times map[Milestone]float64
	// HostTimes has the same milestones in seconds of the host's clock since QEMU
	// was started; nil with ICount. KernelStart is when the guest's clock began, or
	// when its console did, if that was earlier.
	HostTimes map[Milestone]float64
	// Disks has what the guest has read from each drive, by its name, until it
	// reached each milestone, and until AtEnd, as QEMU's block layer counts it. It
	// is asked when the milestone shows on the console, or where it does not show
	// there when its event comes, and answers some milliseconds later. Drives
	// whose reads QEMU does not count, SD cards, are not there. Nil without
	// Machine.BlockStats.
	Disks map[string]map[string]BlockStats
	// StatsError says why Disks is nil although it was asked for. QEMU had to be
	// killed, for example.
	StatsError error

	Handover *Handover // nil: no handover line
	Done     *Done     // nil: no done event
	// Memory has what a probe in the tree, package memprobe, has sent, in its
	// order.
	Memory []MemorySample
	Events []Event // the first 32 MiB of them, the done event included

	Panic    string  // first line of a kernel panic
	Fatal    string  // fatal line of storage-init
	Reset    bool    // the guest asked for a reset
	Halted   bool    // the guest stopped and did not power off
	TimedOut bool    // Timeout ended the run
	Killed   bool    // QEMU did not end by itself
	LastS    float64 // last stamp of the kernel log

	Wall    time.Duration // from the start of QEMU to its end
	Console string        // the console's text; of a long one, begin and end
	LogDir  string        // folder of the logs; empty: removed
}

// Time gives the time of a milestone, nil if it was not reached.
func (r *Result) Time(m Milestone) *float64 {
	if t, ok := r.Times[m]; ok {
		return &t
	}
	return nil
}

// Run boots the machine and returns when QEMU has ended. When the boot failed
// the error is a *BootError, and the result, unless it is nil, tells how far
// the boot came. Cancelling the context ends QEMU; so does the death of the
// calling process.
func Run(ctx context.Context, m Machine) (result *Result, err error) {
	binary, err := m.binary()
	if err != nil {
		return nil, err
	}
	version, err := qemuVersion(ctx, binary)
	if err != nil {
		return nil, err
	}
	r := &Result{QEMU: version, Times: map[Milestone]float64{}}
	if r.Accel, r.AccelReason, err = m.ResolveAccel(ctx); err != nil {
		return nil, err
	}
	m.Accel = r.Accel
	logs, err := newLogs(m.LogParent)
	if err != nil {
		return nil, err
	}
	args, err := m.prepare(logs.dir)
	if err != nil {
		return nil, errors.Join(err, m.removeCopies(logs.dir), logs.close(), logs.remove())
	}
	command := shellQuote(append([]string{binary}, args...)) + "\n"
	if err := os.WriteFile(filepath.Join(logs.dir, argsLog), []byte(command), 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("log folder: %w", err), logs.close())
	}

	b := &boot{machine: &m, result: r, logs: logs}
	b.console.times = r.Times
	if !m.ICount {
		r.HostTimes = map[Milestone]float64{}
		b.console.hosts = r.HostTimes
	}
	bootErr := b.run(ctx, binary, args)
	if err := m.removeCopies(logs.dir); err != nil {
		return r, err
	}
	r.LogDir = logs.dir
	if err := logs.close(); err != nil && bootErr == nil {
		return r, err
	}
	if bootErr != nil {
		bootErr.LogDir = logs.dir
		return r, bootErr
	}
	if !m.Keep {
		r.LogDir = ""
		if err := logs.remove(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// prepare gives the arguments, after making in dir a copy of the firmware's
// variables, and lengthened copies of the virtio-pmem images that need it, and
// empty logs of writes where drives have them.
func (m *Machine) prepare(dir string) ([]string, error) {
	if m.Firmware != nil {
		if err := m.copyVars(dir); err != nil {
			return nil, err
		}
	}
	pmem := append([]Pmem(nil), m.Pmem...)
	for i, p := range pmem {
		if !p.Virtio {
			continue
		}
		info, err := os.Stat(p.Path)
		if err != nil {
			return nil, fmt.Errorf("qemu: persistent memory: %w", err)
		}
		if over := info.Size() % PmemAlign; over != 0 {
			pmem[i].Path = pmemCopy(dir, i)
			if err := lengthen(pmem[i].Path, p.Path, info.Size()-over+PmemAlign); err != nil {
				return nil, errors.Join(fmt.Errorf("qemu: persistent memory %s: %w", p.Path, err), os.Remove(pmem[i].Path))
			}
		}
	}
	m.Pmem = pmem
	for _, d := range m.Drives {
		if d.WriteLog == "" {
			continue
		}
		if err := os.WriteFile(d.WriteLog, nil, 0o666); err != nil {
			return nil, fmt.Errorf("qemu: log of writes: %w", err)
		}
	}
	return m.Args()
}

// removeCopies removes what prepare made: large, and copies of what the caller
// has.
func (m *Machine) removeCopies(dir string) error {
	copies := []string{varsCopy(dir)}
	for i := range m.Pmem {
		copies = append(copies, pmemCopy(dir, i))
	}
	for _, path := range copies {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("log folder: %w", err)
		}
	}
	return nil
}

func pmemCopy(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("pmem%d.img", i)) }

// lengthen copies a file and puts zeros behind.
func lengthen(to, from string, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Truncate(size)
}

func (m *Machine) binary() (string, error) {
	name := m.QEMU
	if name == "" {
		a, err := m.arch()
		if err != nil {
			return "", err
		}
		name = a.binary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("qemu: %w", err)
	}
	return path, nil
}

// boot is one run of QEMU.
type boot struct {
	machine    *Machine
	result     *Result
	logs       *logs
	console    console
	transcript transcript
	eventBytes int
	stats      *statistics // nil: not wanted

	start    time.Time
	deadline time.Time // when QEMU is killed
	timedOut bool      // the deadline is still that of the machine's timeout
	enough   bool      // what the boot was for was reached
}

// piece is a line of one of the two serial ports.
type piece struct {
	at    time.Duration
	text  []byte
	event bool
	err   error
}

func (b *boot) run(ctx context.Context, binary string, args []string) *BootError {
	fail := func(kind error, detail string) *BootError { return &BootError{Kind: kind, Detail: detail} }
	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return fail(ErrStart, err.Error())
	}
	defer consoleR.Close()
	eventsR, eventsW, err := os.Pipe()
	if err != nil {
		consoleW.Close()
		return fail(ErrStart, err.Error())
	}
	defer eventsR.Close()
	stderr, err := os.Create(filepath.Join(b.logs.dir, stderrLog))
	if err != nil {
		consoleW.Close()
		eventsW.Close()
		return fail(ErrStart, err.Error())
	}
	defer stderr.Close()
	given := []*os.File{consoleW, eventsW} // 3 and 4, as Args has it
	if b.machine.BlockStats {
		stats, theirs, err := newStatistics(b.machine.Drives)
		if err != nil {
			consoleW.Close()
			eventsW.Close()
			return fail(ErrStart, err.Error())
		}
		given = append(given, theirs)
		b.stats = stats
		b.console.onReached = func(m Milestone) { stats.at(string(m)) }
		defer stats.hangUp()
	}

	cmd := exec.Command(binary, args...)
	cmd.ExtraFiles = given
	cmd.Stdout = stderr
	cmd.Stderr = stderr
	// The kernel sends the death signal when the thread that forked ends, so
	// this goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	b.start = time.Now()
	err = cmd.Start()
	for _, f := range given {
		f.Close()
	}
	if err != nil {
		return fail(ErrStart, err.Error())
	}
	var statsEnd <-chan struct{}
	if b.stats != nil {
		go b.stats.follow()
		statsEnd = b.stats.finished
	}

	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop := make(chan struct{}) // nobody takes pieces any more
	pieces := make(chan piece)
	readers := make(chan struct{})
	go func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			readLines(consoleR, b.start, false, pieces, stop)
		}()
		readLines(eventsR, b.start, true, pieces, stop)
		<-done
		close(readers)
	}()
	exitErr := b.watch(ctx, cmd.Process.Pid, pieces, readers, exited, statsEnd)
	close(stop)

	r := b.result
	r.Wall = time.Since(b.start)
	r.Handover, r.Panic, r.Fatal = b.console.handover, b.console.panic, b.console.fatal
	r.Reset, r.Halted, r.LastS = b.console.reset, b.console.halted, b.console.lastGuest
	r.Console = b.transcript.String()
	if b.stats != nil {
		// QEMU has ended. Something else may hold its end of the connection.
		b.stats.hangUp()
		<-b.stats.finished
		r.Disks, r.StatsError = b.stats.result(r.Times)
	}
	return b.verdict(ctx, exitErr)
}

// watch follows the guest to the end of QEMU and gives QEMU's exit error.
func (b *boot) watch(ctx context.Context, pid int, pieces <-chan piece, readers <-chan struct{}, exited <-chan error, statsEnd <-chan struct{}) error {
	timeout := b.machine.timeout()
	b.deadline, b.timedOut = b.start.Add(timeout), true
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	kill := func() {
		b.result.Killed = true
		// The group, so that no child of a wrapper stays. It can only be gone
		// already.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	cancelled := ctx.Done()
	var exitErr error
	for exited != nil || readers != nil {
		before := b.deadline
		select {
		case p := <-pieces:
			b.take(p)
			if exited != nil && b.deadline != before {
				timer.Reset(time.Until(b.deadline))
			}
		case <-timer.C:
			if exited == nil {
				return exitErr // something that is not QEMU holds the pipes
			}
			b.result.TimedOut = b.timedOut
			kill()
		case <-cancelled:
			cancelled = nil
			kill()
		case exitErr = <-exited:
			exited = nil
			timer.Reset(drainGrace)
		case <-readers:
			readers = nil
		case <-statsEnd:
			statsEnd = nil
			b.endAbandoned(time.Since(b.start))
			if exited != nil && b.deadline != before {
				timer.Reset(time.Until(b.deadline))
			}
		}
	}
	return exitErr
}

// take handles one piece.
func (b *boot) take(p piece) {
	switch {
	case p.event:
		b.event(p)
		return
	case p.err != nil:
		b.logs.console.line("console: " + p.err.Error())
		return
	}
	for _, l := range split(p.at, string(p.text)) {
		b.console.line(l)
		b.logs.console.line(l.String())
		b.transcript.add(l.Text)
		if b.machine.OnLine != nil {
			b.machine.OnLine(l)
		}
	}
	// Of multi-user.target the agent's event, which follows, has the exact time.
	if b.machine.Until != MultiUser {
		b.until(p.at)
	}
	grace := b.machine.FatalGrace
	if grace <= 0 {
		grace = defaultFatalGrace
	}
	if b.console.fatal != "" {
		b.endIn(p.at + grace)
	}
	if b.console.panic != "" && b.console.fatal == "" || b.console.halted {
		b.endIn(p.at + panicGrace)
	}
	b.endAbandoned(p.at)
}

// endAbandoned ends a QEMU that waits, at the end of the guest, for an order
// that will not come.
func (b *boot) endAbandoned(at time.Duration) {
	if (b.console.off || b.console.reset) && b.stats != nil && b.stats.abandoned() {
		b.endIn(at + panicGrace)
	}
}

// endIn moves the deadline to a time of the host's clock, never to a later one.
func (b *boot) endIn(at time.Duration) {
	if t := b.start.Add(at); t.Before(b.deadline) {
		b.deadline, b.timedOut = t, false
	}
}

func (b *boot) event(p piece) {
	if p.err != nil {
		b.logs.events.line("# " + p.err.Error())
		return
	}
	line := bytes.TrimRight(p.text, "\r\n")
	if len(line) == 0 {
		return
	}
	b.logs.events.line(string(line))
	var head struct {
		Event   string  `json:"event"`
		UptimeS float64 `json:"uptime_s"`
	}
	// A line that is not an event is noise: it stays in the log, and the boot
	// fails if the done event is missing for it.
	if json.Unmarshal(line, &head) != nil || head.Event == "" {
		return
	}
	e := Event{Kind: head.Event, JSON: json.RawMessage(line)}
	switch head.Event {
	case EventDone:
		done := new(Done)
		if err := json.Unmarshal(line, done); err != nil {
			done = &Done{Error: "done event: " + err.Error()}
		}
		b.result.Done = done
		b.endIn(p.at + doneGrace)
	case EventMemory:
		var sample MemorySample
		if json.Unmarshal(line, &sample) == nil && len(b.result.Memory) < maxMemory {
			b.result.Memory = append(b.result.Memory, sample)
		}
	case EventMultiUser:
		b.console.multiUserAt(head.UptimeS, p.at)
		b.until(p.at)
	}
	if b.eventBytes+len(line) <= maxEvents || head.Event == EventDone {
		b.eventBytes += len(line)
		b.result.Events = append(b.result.Events, e)
	}
	if b.machine.OnEvent != nil {
		b.machine.OnEvent(e)
	}
}

// verdict says why the boot failed, nil if it did not. A cause that the guest
// names comes before what merely followed from it.
func (b *boot) verdict(ctx context.Context, exitErr error) *BootError {
	r := b.result
	fail := func(kind error, detail string) *BootError { return &BootError{Kind: kind, Detail: detail} }
	switch {
	case ctx.Err() != nil && r.Killed:
		return fail(context.Cause(ctx), "")
	case r.Fatal != "":
		return fail(ErrFatal, r.Fatal)
	case r.Panic != "":
		return fail(ErrPanic, r.Panic)
	case b.enough && r.Done == nil:
		return nil
	case r.Done == nil && r.TimedOut:
		return fail(ErrTimeout, fmt.Sprintf("no done event within %v, last line %q", b.machine.timeout(), lastLine(r.Console)))
	case r.Done == nil && exitErr != nil && !r.Killed:
		return fail(ErrStart, b.qemuSays(exitErr))
	case r.Done == nil && r.Reset:
		return fail(ErrReset, lastLine(r.Console))
	case r.Done == nil:
		return fail(ErrExit, lastLine(r.Console))
	case !r.Done.OK:
		return fail(ErrNotOK, r.Done.Error)
	}
	if m := b.missing(); m != "" {
		return fail(ErrMilestone, string(m))
	}
	return nil
}

// until ends the guest if all has been reached that the boot was for.
func (b *boot) until(at time.Duration) {
	if !b.enough && b.machine.Until != "" && b.reached(b.machine.Until) && b.missing() == "" {
		b.enough = true
		b.endIn(at)
	}
}

func (b *boot) reached(m Milestone) bool {
	_, ok := b.result.Times[m]
	return ok
}

// missing gives the first expected milestone that was not reached, "" if all
// were.
func (b *boot) missing() Milestone {
	for _, m := range b.machine.Expect {
		if !b.reached(m) {
			return m
		}
	}
	return ""
}

func (m *Machine) timeout() time.Duration {
	if m.Timeout > 0 {
		return m.Timeout
	}
	return defaultTimeout
}

// qemuSays gives the last line that QEMU wrote about itself.
func (b *boot) qemuSays(exitErr error) string {
	text, err := os.ReadFile(filepath.Join(b.logs.dir, stderrLog))
	if line := lastLine(string(text)); err == nil && line != "" {
		return exitErr.Error() + ": " + line
	}
	return exitErr.Error()
}

func lastLine(text string) string {
	text = strings.TrimRight(text, "\n")
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// readLines sends the lines of a serial port until it ends. The time of a
// line is that of its first byte.
func readLines(r io.Reader, start time.Time, event bool, to chan<- piece, stop <-chan struct{}) {
	limit := maxLine
	if event {
		limit = maxEventLen
	}
	send := func(p piece) bool {
		p.event = event
		select {
		case to <- p:
			return true
		case <-stop:
			return false
		}
	}
	in := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	var at time.Duration
	for {
		chunk, err := in.ReadSlice('\n')
		if len(line) == 0 {
			at = time.Since(start)
		}
		line = append(line, chunk...)
		if partial := errors.Is(err, bufio.ErrBufferFull) && len(line) < limit; len(line) > 0 && !partial {
			if !send(piece{at: at, text: bytes.Clone(bytes.TrimRight(line, "\r\n"))}) {
				return
			}
			line = line[:0]
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if !errors.Is(err, io.EOF) {
				send(piece{err: err})
			}
			return
		}
	}
}
