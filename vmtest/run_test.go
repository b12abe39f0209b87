package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeQEMU writes a shell script that stands for QEMU: it writes the console
// to descriptor 3 and events to 4.
func fakeQEMU(t *testing.T, body string) Machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version 10.0.2 (fake)'; exit; fi\n" + body + "\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return Machine{QEMU: path, Kernel: "K", Accel: TCG, LogParent: t.TempDir(), Timeout: 20 * time.Second}
}

const (
	saysInit = `echo '<6>[    1.000000] Run /init as init process' >&3` + "\n"
	saysDone = `echo '{"event":"done","ok":true,"uptime_s":2.5,"new":1}' >&4` + "\n"
	saysFail = `echo '{"event":"done","ok":false,"error":"no such thing"}' >&4` + "\n"
	sleeps   = "sleep 100\n"
	// A wrapper's child must not outlive it.
	forks = "sleep 100 & echo $! >child; wait\n"
)

func TestRun(t *testing.T) {
	const (
		panics = `echo '<0>[    1.500000] Kernel panic - not syncing: VFS' >&3` + "\n"
		fatal  = `echo '<10>[    1.500000] storage-init: fatal: no device (on_failure halt)' >&3` + "\n"
		halts  = `echo '<6>[    1.600000] reboot: System halted' >&3` + "\n"
		resets = `echo '<6>[    1.600000] reboot: Restarting system' >&3` + "\n"
	)
	for _, test := range []struct {
		name   string
		script string
		change func(*Machine)
		want   error // nil: success
		detail string
		killed bool
	}{
		{"done", saysInit + saysDone, nil, nil, "", false},
		{"done without power-off", saysInit + saysDone + sleeps, func(m *Machine) { m.Timeout = 500 * time.Millisecond }, nil, "", true},
		{"done but not ok", saysInit + saysFail, nil, ErrNotOK, "no such thing", false},
		{"done malformed", `echo '{"event":"done","ok":"yes"}' >&4`, nil, ErrNotOK, "cannot unmarshal", false},
		{"done cut short", `printf '{"event":"done","ok":tr' >&4`, nil, ErrExit, "", false},
		{"console only", saysInit + `echo 'done ok' >&3`, nil, ErrExit, "done ok", false},
		{"milestone missing", saysInit + saysDone, func(m *Machine) { m.Expect = []Milestone{KernelToInit, HandedOver} }, ErrMilestone, "handover_s", false},
		{"panic", saysInit + panics + sleeps, nil, ErrPanic, "Kernel panic - not syncing: VFS", true},
		{"panic after done", saysInit + saysDone + panics + sleeps, nil, ErrPanic, "VFS", true},
		{"fatal, halt", saysInit + fatal + halts + sleeps, nil, ErrFatal, "storage-init: fatal: no device", true},
		{"fatal, hang", saysInit + fatal + sleeps, func(m *Machine) { m.FatalGrace = 200 * time.Millisecond }, ErrFatal, "no device", true},
		{"fatal, panic", saysInit + fatal + panics + sleeps, func(m *Machine) { m.FatalGrace = time.Second }, ErrFatal, "no device", true},
		{"reset", saysInit + resets, nil, ErrReset, "Restarting system", false},
		{"exit", saysInit, nil, ErrExit, "Run /init", false},
		{"timeout", saysInit + sleeps, func(m *Machine) { m.Timeout = 300 * time.Millisecond }, ErrTimeout, "Run /init", true},
		{"timeout of a wrapper", saysInit + forks, func(m *Machine) { m.Timeout = 300 * time.Millisecond }, ErrTimeout, "300ms", true},
		{"until", saysInit + sleeps, func(m *Machine) { m.Until = KernelToInit }, nil, "", true},
		{"until, with more expected", saysInit + sleeps, func(m *Machine) {
			m.Until, m.Expect, m.Timeout = KernelToInit, []Milestone{HandedOver}, 300*time.Millisecond
		}, ErrTimeout, "Run /init", true},
		{"until, but a panic before", panics + saysInit + sleeps, func(m *Machine) { m.Until = KernelToInit }, ErrPanic, "VFS", true},
		{"until multi-user, by its event", saysInit + `echo '{"event":"multi-user","uptime_s":9}' >&4` + "\n" + sleeps, func(m *Machine) { m.Until = MultiUser }, nil, "", true},
		{"until multi-user, by the console alone", saysInit + `echo '[  OK  ] Reached target multi-user.target' >&3` + "\n" + sleeps, func(m *Machine) {
			m.Until, m.Timeout = MultiUser, 300*time.Millisecond
		}, ErrTimeout, "multi-user", true},
		{"until never reached", saysInit, func(m *Machine) { m.Until = MultiUser }, ErrExit, "Run /init", false},
		{"qemu's own error", "echo 'qemu: no such machine' >&2; exit 1", nil, ErrStart, "qemu: no such machine", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := fakeQEMU(t, strings.ReplaceAll(test.script, ">child", ">"+filepath.Join(t.TempDir(), "child")))
			// Only now: a script that is being written while another test forks
			// would be busy.
			t.Parallel()
			if test.change != nil {
				test.change(&m)
			}
			began := time.Now()
			r, err := Run(context.Background(), m)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Run took %v", took)
			}
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("error = %v, want %v", err, test.want)
			}
			if r.Killed != test.killed {
				t.Errorf("killed = %v, want %v", r.Killed, test.killed)
			}
			left, globErr := filepath.Glob(filepath.Join(m.LogParent, "*"))
			if globErr != nil {
				t.Fatal(globErr)
			}
			if err == nil {
				if len(left) != 0 || r.LogDir != "" || r.QEMU != "10.0.2 (fake)" {
					t.Errorf("logs %v, LogDir %q, QEMU %q; want none and the version", left, r.LogDir, r.QEMU)
				}
				return
			}
			var bootErr *BootError
			if !errors.As(err, &bootErr) || !strings.Contains(bootErr.Detail, test.detail) {
				t.Errorf("error = %v, want %q in its detail", err, test.detail)
			}
			if bootErr.LogDir != r.LogDir || !strings.Contains(err.Error(), r.LogDir) || len(left) != 1 || left[0] != r.LogDir {
				t.Errorf("error %v, LogDir %q, folders %v; want one folder, named", err, r.LogDir, left)
			}
			for _, name := range []string{consoleLog, eventsLog, argsLog, stderrLog} {
				if _, err := os.Stat(filepath.Join(r.LogDir, name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRunResult(t *testing.T) {
	m := fakeQEMU(t, saysInit+
		`echo '<14>[    1.200000] storage-init: handover backend=block image=U verified=none us=1200000' >&3
		echo 'Welcome' >&3
		echo '[  OK  ] Reached target multi-user.target - Multi-User System.' >&3
		echo noise >&4
		echo '{"event":"multi-user","uptime_s":2.25}' >&4
		echo '{"event":"other","x":1}' >&4
		echo '{"event":"memory","at":"init","available_kb":9,"cached_kb":3,"shmem_kb":2,"total_kb":20,"percpu_kb":1}' >&4
		echo '{"event":"memory","at":7}' >&4
		sleep 0.2
		echo '<6>[    3.000000] x' >&3
		printf '{"event":"done","ok":true,"mem_available_kb":5,"mem_usable_kb":7,"mem_total_kb":20,"cached_kb":4,"shmem_kb":1,"checks":{"a":[1]},"record":{"backend":"block","phases":[{"name":"p","start_us":1,"end_us":2}]}}' >&4`)
	m.Keep = true
	var lines, events int
	m.OnLine = func(Line) { lines++ }
	m.OnEvent = func(Event) { events++ }
	r, err := Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	for milestone, want := range map[Milestone]float64{KernelToInit: 1, HandedOver: 1.2, MultiUser: 2.25} {
		if got := r.Time(milestone); got == nil || *got != want {
			t.Errorf("%s = %v, want %v", milestone, got, want)
		}
	}
	for milestone := range r.Times {
		if host := r.HostTimes[milestone]; host < 0 || host > r.Wall.Seconds() {
			t.Errorf("%s = %v on the host's clock, want it within %v", milestone, host, r.Wall)
		}
	}
	if r.Disks != nil || r.StatsError != nil {
		t.Errorf("statistics %v, %v; none were wanted", r.Disks, r.StatsError)
	}
	if got := r.Time(InitfsInit); got == nil || *got < 1.2 || *got > 3 {
		t.Errorf("%s = %v, want it between 1.2 and 3", InitfsInit, got)
	}
	if got := r.Time(Failed); got != nil {
		t.Errorf("%s = %v, want nil", Failed, *got)
	}
	if r.Handover == nil || r.Handover.US != 1200000 || r.LastS != 3 {
		t.Errorf("handover %+v, last stamp %v; want 1200000 us, 3", r.Handover, r.LastS)
	}
	if lines != 5 || events != 5 || len(r.Events) != 5 {
		t.Errorf("%d lines, %d and %d events, want 5, 5 and 5", lines, events, len(r.Events))
	}
	wantMemory := []MemorySample{
		{At: AtInit, AvailableKB: 9, CachedKB: 3, ShmemKB: 2, TotalKB: 20, PerCPUKB: 1},
		{At: AtMultiUser, AvailableKB: 5, CachedKB: 4, ShmemKB: 1, TotalKB: 20, PerCPUKB: 2},
	}
	if diff := cmp.Diff(wantMemory, append(r.Memory, r.Done.Memory())); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}
	record, err := r.Done.BootRecord()
	if err != nil || record.Backend != "block" || record.Phases[0].EndUS != 2 {
		t.Errorf("record = %+v, %v", record, err)
	}
	var a []int
	if err := r.Done.Check("a", &a); err != nil || len(a) != 1 {
		t.Errorf("check a = %v, %v", a, err)
	}
	if err := r.Done.Check("b", &a); err == nil {
		t.Error("no error for a check that was not made")
	}
	for name, want := range map[string]string{
		consoleLog: "1.200000 program storage-init: handover", eventsLog: "noise\n", argsLog: "-nodefaults",
	} {
		got, err := os.ReadFile(filepath.Join(r.LogDir, name))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s = %q, %v; want %q in it", name, got, err, want)
		}
	}
}

// Shell functions that answer QMP on descriptor 5.
const (
	qmpStarts = "echo '" + qmpGreeting + "' >&5; ok='" + qmpOK + "'\n" +
		`command() { read -r line <&5; case $line in *"$1"*) echo "$ok" >&5 ;; *) echo "$line, not $1" >&2; exit 1 ;; esac; }
		command qmp_capabilities` + "\n"
	qmpArms = qmpStarts + "command set-action\n"
	// Each query is answered with one more request.
	qmpServes = qmpArms + `(n=0; while read -r line <&5; do case $line in
		*query-blockstats*) n=$((n + 1)); echo '{"return":[{"device":"drive0","stats":{"rd_bytes":'$((n * 512))',"rd_operations":'$n'}}]}' >&5 ;;
		*quit*) echo "$ok" >&5; exit ;;
		esac; done) &` + "\n"
	qmpShutdown = `echo '{"event":"SHUTDOWN","data":{"guest":true}}' >&5; wait` + "\n"
	saysOff     = `echo '<6>[    2.600000] reboot: Power down' >&3` + "\n"
)

func TestRunStatistics(t *testing.T) {
	const resets = `echo '<6>[    1.600000] reboot: Restarting system' >&3` + "\n"
	for _, test := range []struct {
		name   string
		script string
		err    error  // of the boot
		stats  string // in StatsError; empty: statistics are there
		killed bool
	}{
		{"good", qmpServes + saysInit + "sleep 0.3\n" + saysDone + saysOff + qmpShutdown, nil, "", false},
		{"reset", qmpServes + saysInit + "sleep 0.3\n" + resets + qmpShutdown, ErrReset, "", false},
		{"panic", qmpServes + saysInit + `echo '<0>[    1.500000] Kernel panic - not syncing: VFS' >&3; wait; sleep 100`, ErrPanic, "before the end of the guest", true},
		{"hang", qmpServes + saysInit + "sleep 100", ErrTimeout, "before the end of the guest", true},
		// QEMU was not yet told to wait.
		{"no QMP", saysInit + saysDone + saysOff, nil, "greeting: QEMU has closed the connection", false},
		{"garbage", "echo x >&5\n" + saysInit + saysDone + saysOff, nil, "greeting: message", false},
		{"ends early", qmpStarts + saysInit + saysDone, nil, "set-action", false},
		// From here on nobody would end it.
		{"garbage later", qmpArms + "echo x >&5; exec 5>&-\n" + saysInit + saysDone + saysOff + sleeps, nil, `message "x`, true},
		{"garbage after the power-off", qmpArms + saysInit + saysDone + saysOff + "sleep 0.3; echo x >&5\n" + sleeps, nil, "qmp: ", true},
		{"garbage, reset", qmpArms + "echo x >&5\n" + saysInit + resets + sleeps, ErrReset, `message "x`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := fakeQEMU(t, test.script)
			t.Parallel()
			m.BlockStats = true
			m.Drives = []Drive{{Path: "a", Name: "root"}}
			if errors.Is(test.err, ErrTimeout) {
				m.Timeout = time.Second
			}
			began := time.Now()
			r, err := Run(context.Background(), m)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Run took %v", took)
			}
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Fatalf("error = %v, want %v", err, test.err)
			}
			if r.Killed != test.killed {
				t.Errorf("killed = %v, want %v", r.Killed, test.killed)
			}
			if test.stats != "" {
				if r.Disks != nil || r.StatsError == nil || !strings.Contains(r.StatsError.Error(), test.stats) {
					t.Errorf("statistics %v, error %v; want none, and %q", r.Disks, r.StatsError, test.stats)
				}
				return
			}
			if r.StatsError != nil {
				t.Fatal(r.StatsError)
			}
			start, init, end := r.Disks["root"][string(KernelStart)], r.Disks["root"][string(KernelToInit)], r.Disks["root"][AtEnd]
			if start.Requests == 0 || init.Requests < start.Requests || end.Requests <= init.Requests || end.Bytes != 512*end.Requests {
				t.Errorf("statistics = %v, want them to grow", r.Disks)
			}
			if len(r.Disks) != 1 || len(r.Disks["root"]) != 3 {
				t.Errorf("statistics = %v, want one drive and three moments", r.Disks)
			}
		})
	}
}

// TestRunCancel proves that cancelling ends QEMU and what it started.
func TestRunCancel(t *testing.T) {
	child := filepath.Join(t.TempDir(), "child")
	m := fakeQEMU(t, strings.ReplaceAll(forks, ">child", ">"+child+".new; mv "+child+".new "+child))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for range 1000 {
			if _, err := os.Stat(child); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	r, err := Run(ctx, m)
	if !errors.Is(err, context.Canceled) || r == nil || !r.Killed {
		t.Fatalf("error = %v, result %+v; want context.Canceled and a kill", err, r)
	}
	text, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if dead(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d still runs", pid)
}

// dead reports whether a process is gone or a zombie.
func dead(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestRunFlood proves that a guest that writes without end costs bounded memory
// and is ended in time.
func TestRunFlood(t *testing.T) {
	m := fakeQEMU(t, `while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done >&3`)
	m.Timeout = time.Second
	r, err := Run(context.Background(), m)
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("error = %v, want %v", err, ErrTimeout)
	}
	if most := keptHead + 2*keptTail + 100; len(r.Console) > most {
		t.Errorf("console has %d bytes, want at most %d", len(r.Console), most)
	}
}

// TestRunPmem proves that QEMU gets a virtio-pmem image of a size it takes.
func TestRunPmem(t *testing.T) {
	out := filepath.Join(t.TempDir(), "sizes")
	m := fakeQEMU(t, `for a; do case $a in memory-backend-file,*) a=${a#*mem-path=}; stat -c %s "${a%%,*}" >>`+out+`; echo "${a#*,}" >>`+out+` ;; esac; done
		`+saysDone)
	odd := fileOf(t, "odd", 3<<20)
	m.Pmem = []Pmem{{Path: odd, Virtio: true}, {Path: fileOf(t, "even", 2<<20), Virtio: true}}
	m.Keep = true
	r, err := Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if want := "4194304\nsize=4M,share=off\n2097152\nsize=2M,share=off\n"; err != nil || string(got) != want {
		t.Errorf("QEMU sees %q, %v; want %q", got, err, want)
	}
	if info, err := os.Stat(odd); err != nil || info.Size() != 3<<20 {
		t.Errorf("the image itself: %v, %v; want it unchanged", info, err)
	}
	if left, err := filepath.Glob(filepath.Join(r.LogDir, "pmem*")); err != nil || len(left) != 0 {
		t.Errorf("copies are left: %v, %v", left, err)
	}
}

// TestRunRefused proves that a machine that cannot be leaves no folder.
func TestRunRefused(t *testing.T) {
	m := fakeQEMU(t, saysDone)
	m.Drives = []Drive{{Bus: "mfm"}}
	if r, err := Run(context.Background(), m); err == nil || r != nil {
		t.Errorf("Run = %v, %v; want an error", r, err)
	}
	if left, err := os.ReadDir(m.LogParent); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRunWithoutQEMU(t *testing.T) {
	m := Machine{QEMU: filepath.Join(t.TempDir(), "none"), Kernel: "K", Accel: TCG}
	if r, err := Run(context.Background(), m); err == nil || r != nil {
		t.Errorf("Run = %v, %v; want an error", r, err)
	}
}

func TestReadLines(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	in := "a\r\n\nlast\n" + long + "\nend"
	pieces := make(chan piece)
	go func() {
		readLines(strings.NewReader(in), time.Now(), false, pieces, nil)
		close(pieces)
	}()
	var got []string
	for p := range pieces {
		if p.err != nil {
			t.Error(p.err)
		}
		got = append(got, string(p.text))
	}
	if len(got) != 6 || got[0] != "a" || got[1] != "" || got[2] != "last" || got[3]+got[4] != long || got[5] != "end" {
		t.Errorf("%d lines: %.20q", len(got), got)
	}
}
