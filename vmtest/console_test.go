package vmtest

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSplit(t *testing.T) {
	const host = time.Second
	program := func(text string) Line { return Line{Host: host, Program: true, Text: text} }
	for _, test := range []struct {
		raw  string
		want []Line
	}{
		{"", nil},
		{"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16)\r", []Line{program("SeaBIOS (version 1.16)")}},
		{"<6>[    2.380444] Run /init as init process", []Line{{host, 2.380444, true, false, "Run /init as init process"}}},
		{"[    2.380444] Run /init as init process", []Line{{host, 2.380444, true, false, "Run /init as init process"}}},
		{"<6>[    2.380444][    T1] Run /init", []Line{{host, 2.380444, true, false, "Run /init"}}},
		{"<14>[    3.100000] storage-init: loading", []Line{{host, 3.1, true, true, "storage-init: loading"}}},
		{"<30>[12345.100000] systemd[1]: hello", []Line{{host, 12345.1, true, true, "systemd[1]: hello"}}},
		// A kernel that does not show the facility.
		{"[    3.100000] systemd[1]: hello", []Line{{host, 3.1, true, true, "systemd[1]: hello"}}},
		{"[    3.100000] dracut-cmdline[99]: x", []Line{{host, 3.1, true, true, "dracut-cmdline[99]: x"}}},
		{"[    3.100000] usb 1-1: new device", []Line{{host, 3.1, true, false, "usb 1-1: new device"}}},
		// A program's line without its end, and the kernel's behind it.
		{"Begin: Loading drivers ... <6>[    2.500000] virtio_blk virtio0", []Line{
			program("Begin: Loading drivers ..."),
			{host, 2.5, true, false, "virtio_blk virtio0"},
		}},
		{"<6>[    2.000000] a<4>[    2.100000] b", []Line{{host, 2, true, false, "a"}, {host, 2.1, true, false, "b"}}},
		// A time in a text is not the line's.
		{"<6>[    2.000000] took [    1.000000] s", []Line{{host, 2, true, false, "took [    1.000000] s"}}},
		{"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System.\r",
			[]Line{program("[  OK  ] Reached target multi-user.target - Multi-User System.")}},
	} {
		if diff := cmp.Diff(test.want, split(host, test.raw)); diff != "" {
			t.Errorf("split(%q) (-want +got):\n%s", test.raw, diff)
		}
	}
}

// Consoles: host seconds, then the raw line.
const (
	plainSystemd = `
0.2 SeaBIOS (version 1.16.3)
6.0 <5>[    0.000000] Linux version 6.1.0-56-amd64
8.0 <6>[    2.380444] Run /init as init process
8.1 <6>[    2.450000] input: ImExPS/2 Generic Explorer Mouse as /devices/platform/i8042/serio1
8.9 <30>[    3.300000] systemd[1]: Inserted module 'autofs4'
9.0 <30>[    3.400000] systemd[1]: systemd 252.39-1~deb12u1 running in system mode
10.9 <46>[    5.100000] systemd-journald[123]: Received SIGTERM from PID 1 (systemd).
20.0 <6>[   14.000000] EXT4-fs (vda2): mounted filesystem
23.5 [` + "\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m" + ` - Multi-User System.
24.5 <6>[   18.200000] late
24.6 <46>[   18.300000] systemd-journald[321]: Received SIGTERM from PID 1 (systemd).`

	overlayDracut = `
6.0 <5>[    0.000000] Linux version 6.1.0-56-amd64
7.5 <6>[    1.750000] Run /init as init process
7.6 <14>[    1.800000] storage-init: loading 8 modules
7.7 <6>[    1.900000] loop: module loaded
7.8 something on the console before the hand-over
8.0 <14>[    2.100000] storage-init: handover backend=loop image=11111111-2222-4333-8444-555555555555 verified=none us=2100123
8.1 <6>[    2.200000] tsc: Refined TSC clocksource calibration: 2596.098 MHz
8.4 <30>[    2.500000] systemd[1]: systemd 252.39-1~deb12u1 running in system mode
30.0 <6>[   20.000000] x`

	miniSystemd = `
6.0 <6>[    1.700000] Run /memory-probe as init process
6.1 <14>[    1.700001] x: Run /init as init process
6.5 <30>[    2.200000] systemd[1]: systemd 252.39-1~deb12u1 running in system mode
8.0 <14>[    3.000000] storage-init: handover backend=block image=U verified=none us=100
8.2 <29>[    3.100000] systemd[1]: Switching root.
10.5 <46>[    5.000000] systemd-journald[99]: Received SIGTERM from PID 1 (systemd).
11.0 <46>[    5.200000] systemd-journald[99]: Received SIGTERM from PID 1 (systemd-shutdow).`

	initramfsTools = `
6.0 <6>[    1.700000] Run /init as init process
6.4 Loading, please wait...
6.9 <6>[    1.900000] virtio_blk virtio0: [vda]
7.0 Begin: Running /scripts/init-premount ... done.`

	fatal = `
7.5 <6>[    1.750000] Run /init as init process
7.6 <10>[    2.000000] storage-init: fatal: find bootfs LABEL=none: no such filesystem within 5 s (on_failure reboot:1)
7.6 <10>[    2.000001] storage-init: rebooting in 1 s
8.6 <6>[    3.000000] reboot: Restarting system`

	panicked = `
7.5 <6>[    1.750000] Run /init as init process
7.6 <0>[    1.900000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
7.6 <4>[    1.910000] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-56-amd64
7.6 <0>[    1.990000] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---`

	halted = `
7.5 <6>[    1.750000] Run /init as init process
7.6 <6>[    1.900000] reboot: System halted`
)

// readConsole feeds a recorded console to the parser.
func readConsole(t *testing.T, c *console, text string) {
	t.Helper()
	for line := range strings.Lines(strings.TrimPrefix(text, "\n")) {
		at, raw, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		host, err := time.ParseDuration(at + "s")
		if err != nil || !ok {
			t.Fatalf("line %q: %v", line, err)
		}
		for _, l := range split(host, raw) {
			c.line(l)
		}
	}
}

func TestConsole(t *testing.T) {
	for _, test := range []struct {
		name, text  string
		want, hosts map[Milestone]float64
	}{
		{
			"plain systemd", plainSystemd,
			map[Milestone]float64{
				// multi-user: 14.0 and 3.5 s of the host's clock later
				KernelStart: 0, KernelToInit: 2.380444, InitfsInit: 3.3, SwitchRoot: 5.1, MultiUser: 17.5,
			},
			// The line of the init was the least late: 8 - 2.380444.
			map[Milestone]float64{KernelStart: 5.619556, KernelToInit: 8, InitfsInit: 8.9, SwitchRoot: 10.9, MultiUser: 23.5},
		},
		{
			"overlay", overlayDracut,
			map[Milestone]float64{KernelStart: 0, KernelToInit: 1.75, HandedOver: 2.1, InitfsInit: 2.5},
			map[Milestone]float64{KernelStart: 5.75, KernelToInit: 7.5, HandedOver: 8, InitfsInit: 8.4},
		},
		{
			"mini-initramfs with systemd", miniSystemd,
			map[Milestone]float64{KernelStart: 1.7, KernelToInit: 1.7, HandedOver: 3, InitfsInit: 3.1, SwitchRoot: 5},
			map[Milestone]float64{KernelStart: 4.3, KernelToInit: 6, HandedOver: 8, InitfsInit: 8.2, SwitchRoot: 10.5},
		},
		// The estimate of 2.1 is behind the next stamp, and cannot be.
		{
			"initramfs-tools", initramfsTools,
			map[Milestone]float64{KernelStart: 1.7, KernelToInit: 1.7, InitfsInit: 1.9},
			map[Milestone]float64{KernelStart: 4.3, KernelToInit: 6, InitfsInit: 6.4},
		},
		{
			"fatal", fatal, map[Milestone]float64{KernelStart: 1.75, KernelToInit: 1.75, Failed: 2},
			map[Milestone]float64{KernelStart: 5.75, KernelToInit: 7.5, Failed: 7.6},
		},
		{
			"panic", panicked, map[Milestone]float64{KernelStart: 1.75, KernelToInit: 1.75},
			map[Milestone]float64{KernelStart: 5.75, KernelToInit: 7.5},
		},
		{
			"halt", halted, map[Milestone]float64{KernelStart: 1.75, KernelToInit: 1.75},
			map[Milestone]float64{KernelStart: 5.75, KernelToInit: 7.5},
		},
	} {
		var reached []Milestone
		c := &console{onReached: func(m Milestone) { reached = append(reached, m) }}
		readConsole(t, c, test.text)
		if diff := cmp.Diff(test.want, c.times); diff != "" {
			t.Errorf("%s: times (-want +got):\n%s", test.name, diff)
		}
		near := cmpopts.EquateApprox(0, 1e-9)
		if diff := cmp.Diff(test.hosts, c.hosts, near); diff != "" {
			t.Errorf("%s: times of the host (-want +got):\n%s", test.name, diff)
		}
		slices.Sort(reached)
		if want := slices.Sorted(maps.Keys(test.want)); !slices.Equal(slices.Compact(reached), want) {
			t.Errorf("%s: %q were reached, want %q", test.name, reached, want)
		}
	}
}

// TestMultiUserAt proves where the time that systemd has for its target lies on
// the host's clock.
func TestMultiUserAt(t *testing.T) {
	for _, test := range []struct {
		guest    float64
		reported time.Duration
		want     float64
	}{
		{3.75, 9 * time.Second, 8.25},                     // a quarter of a second behind the last line
		{3.25, 9 * time.Second, 7.75},                     // and before it
		{3.75, 8*time.Second + 100*time.Millisecond, 8.1}, // never after it was told
	} {
		c := new(console)
		readConsole(t, c, "5.0 <6>[    0.500000] x\n8.0 <6>[    3.500000] y")
		c.multiUserAt(test.guest, test.reported)
		if got := c.hosts[MultiUser]; math.Abs(got-test.want) > 1e-9 || c.times[MultiUser] != test.guest {
			t.Errorf("multi-user at %v, reported at %v: %v on the host's clock and %v on the guest's, want %v",
				test.guest, test.reported, got, c.times[MultiUser], test.want)
		}
	}
}

func TestConsoleStates(t *testing.T) {
	read := func(text string) *console {
		c := new(console)
		readConsole(t, c, text)
		return c
	}
	c := read(overlayDracut)
	want := &Handover{Backend: "loop", Image: "11111111-2222-4333-8444-555555555555", Verified: "none", US: 2100123}
	if diff := cmp.Diff(want, c.handover); diff != "" {
		t.Errorf("handover (-want +got):\n%s", diff)
	}
	c = read(fatal)
	if !strings.HasPrefix(c.fatal, "storage-init: fatal: find bootfs") || !c.reset || c.halted || c.panic != "" {
		t.Errorf("fatal %q, reset %v, halted %v, panic %q", c.fatal, c.reset, c.halted, c.panic)
	}
	c = read(panicked)
	if want := "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"; c.panic != want || c.fatal != "" {
		t.Errorf("panic %q, fatal %q, want %q and none", c.panic, c.fatal, want)
	}
	if c = read(halted); !c.halted || c.reset {
		t.Errorf("halted %v, reset %v, want true and false", c.halted, c.reset)
	}
}

func TestTranscript(t *testing.T) {
	var b transcript
	b.add("first")
	line := strings.Repeat("x", 1000)
	for range 10000 {
		b.add(line)
	}
	b.add("last")
	got := b.String()
	if !strings.HasPrefix(got, "first\n") || !strings.HasSuffix(got, "\nlast\n") || !strings.Contains(got, " bytes not kept]\n") {
		t.Errorf("transcript = %.40q ... %q; want begin, note and end", got, got[len(got)-40:])
	}
	if most := keptHead + 2*keptTail + 100; len(got) > most {
		t.Errorf("transcript has %d bytes, want at most %d", len(got), most)
	}
}
