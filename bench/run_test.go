package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest"
)

// fakeTool makes builds that have what a run reads of them.
type fakeTool struct {
	t    *testing.T
	runs [][]string
}

func (f *fakeTool) Run(_ context.Context, args ...string) error {
	f.runs = append(f.runs, args)
	value := func(flag string) string {
		for i, a := range args {
			if a == flag {
				return args[i+1]
			}
		}
		return ""
	}
	if value("--backend") == "file" {
		return errors.New("the kernel has no CONFIG_EROFS_FS_BACKED_BY_FILE")
	}
	dir := value("--output")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	text := `{"format":1,"image":{"file":"image","size":4096},"mini":{"file":"mini"}}`
	if err := os.WriteFile(filepath.Join(dir, "initoverlayfs-6.1.0.json"), []byte(text), 0o666); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "mini"), make([]byte, 100), 0o666)
}

func (f *fakeTool) Machine(_ context.Context, args ...string) (vmtest.Machine, func(), error) {
	m := vmtest.Machine{Append: args}
	for i, a := range args {
		if a == "--memory" {
			if _, err := fmt.Sscanf(args[i+1], "%d", &m.MemoryMiB); err != nil {
				f.t.Error(err)
			}
		}
	}
	return m, nil, nil
}

// backendOf is what the arguments of the verb boot ask for.
func backendOf(m vmtest.Machine) string {
	for i, a := range m.Append {
		if a == "--backend" {
			return m.Append[i+1]
		}
	}
	return ""
}

// goodBoot is what a guest shows that boots.
func goodBoot(m vmtest.Machine) *vmtest.Result {
	r := &vmtest.Result{
		Accel: vmtest.TCG, QEMU: "10.0.0", Wall: time.Second,
		Times: map[vmtest.Milestone]float64{vmtest.KernelToInit: 1, vmtest.InitfsInit: 2, vmtest.MultiUser: 9},
		Done:  &vmtest.Done{OK: true, MemAvailableKB: 1000},
	}
	if b := backendOf(m); b != "plain" {
		r.Times[vmtest.HandedOver] = 1.5
		r.Handover = &vmtest.Handover{Backend: bootconf.Backend(b)}
	}
	return r
}

func testOptions(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return Options{
		Dir: filepath.Join(dir, "run"), Tool: &fakeTool{t: t}, KernelVersion: "6.1.0",
		Kernel: file("kernel", "kernel"), Initramfs: file("initramfs", "initramfs"), RootDisk: file("root", "root"),
		Sets: []string{"standard"}, Series: []string{"plain", "block", "loop"}, Rounds: 2, MaxRounds: 10,
		// A program that says its version is all that a run asks of QEMU itself.
		QEMU: file("qemu", ""), Append: []string{}, Accel: vmtest.TCG, MemoryMiB: 1024, CPUs: 1, BootTimeout: time.Minute, MemoryStepMiB: 16,
		Progress: t.Logf,
		guest:    func(_ context.Context, m vmtest.Machine) (*vmtest.Result, error) { return goodBoot(m), nil },
	}
}

func withQEMU(t *testing.T, o *Options) {
	t.Helper()
	if err := os.WriteFile(o.QEMU, []byte("#!/bin/sh\necho 'QEMU emulator version 10.0.0'\n"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.QEMU, 0o777); err != nil {
		t.Fatal(err)
	}
}

// order is what was booted, in turn.
func order(r *Results) []string {
	var list []string
	for _, b := range r.Boots {
		list = append(list, fmt.Sprintf("%s %d", b.Scenario, b.Round))
	}
	return list
}

func TestRunInterleaves(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"plain 1", "block 1", "loop 1", "plain 2", "block 2", "loop 2"}
	if diff := cmp.Diff(want, order(r)); diff != "" {
		t.Errorf("order of the boots (-want +got):\n%s", diff)
	}
	if !r.Complete || r.Why != "" {
		t.Errorf("complete = %v, %q", r.Complete, r.Why)
	}
	onDisk, err := Read(filepath.Join(o.Dir, ResultsName))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, onDisk); diff != "" {
		t.Errorf("results on the disk (-run +disk):\n%s", diff)
	}
}

// TestRunGoesOn interrupts a run at each of its boots. The same call makes what
// is missing, and makes nothing twice.
func TestRunGoesOn(t *testing.T) {
	for stop := range 6 {
		o := testOptions(t)
		withQEMU(t, &o)
		ctx, cancel := context.WithCancel(t.Context())
		boots := 0
		good := o.guest
		o.guest = func(ctx context.Context, m vmtest.Machine) (*vmtest.Result, error) {
			if boots++; boots > stop {
				cancel()
				return nil, ctx.Err()
			}
			return good(ctx, m)
		}
		r, err := Run(ctx, o)
		if !errors.Is(err, ErrIncomplete) || len(r.Boots) != stop || r.Complete {
			t.Fatalf("stopped at boot %d: %d boots, complete = %v, %v", stop, len(r.Boots), r.Complete, err)
		}
		o.guest = func(ctx context.Context, m vmtest.Machine) (*vmtest.Result, error) { boots++; return good(ctx, m) }
		if r, err = Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if len(r.Boots) != 6 || boots != 7 || !r.Complete {
			t.Errorf("stopped at boot %d: it has %d boots after %d, complete = %v", stop, len(r.Boots), boots, r.Complete)
		}
		if err := r.Check(); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

func TestRunBudget(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	o.Budget = time.Nanosecond
	r, err := Run(t.Context(), o)
	if !errors.Is(err, ErrIncomplete) || len(r.Boots) != 0 || !strings.Contains(r.Why, "budget") {
		t.Errorf("%d boots, %q, %v; want none, and that the budget is why", len(r.Boots), r.Why, err)
	}
}

// TestFailedBootIsNotAveraged has boots that look good but for one thing. Each
// must be kept as a failure, and no statistic may see its times.
func TestFailedBootIsNotAveraged(t *testing.T) {
	bootError := func(r *vmtest.Result) error {
		return &vmtest.BootError{Kind: vmtest.ErrTimeout, Detail: "no done event"}
	}
	for _, test := range []struct {
		name  string
		spoil func(r *vmtest.Result) error
		want  string // in the reason
	}{
		{"timeout", bootError, "no done event"},
		{"no multi-user", func(r *vmtest.Result) error { delete(r.Times, vmtest.MultiUser); return nil }, "multi_user_s was not reached"},
		{"no handover", func(r *vmtest.Result) error { delete(r.Times, vmtest.HandedOver); return nil }, "handover_s was not reached"},
		{"out of order", func(r *vmtest.Result) error { r.Times[vmtest.MultiUser] = 0.5; return nil }, "lies before"},
		{"another backend", func(r *vmtest.Result) error { r.Handover.Backend = bootconf.RAM; return nil }, "booted through ram"},
		{"silent", func(r *vmtest.Result) error { r.Handover = nil; return nil }, "did not say"},
		{"no statistics", func(r *vmtest.Result) error { r.StatsError = errors.New("qmp: closed"); return nil }, "qmp: closed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := testOptions(t)
			withQEMU(t, &o)
			o.Series, o.Rounds = []string{"block"}, 3
			boots := 0
			o.guest = func(_ context.Context, m vmtest.Machine) (*vmtest.Result, error) {
				r := goodBoot(m)
				if boots++; boots == 2 {
					r.Times[vmtest.MultiUser] = 1e6 // would be seen in any average
					return r, test.spoil(r)
				}
				return r, nil
			}
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			bad := r.Boots[1]
			if bad.OK || !strings.Contains(bad.Error, test.want) {
				t.Errorf("the boot is kept as ok = %v, %q; want a failure with %q", bad.OK, bad.Error, test.want)
			}
			s := r.Scenario("block")
			if got := r.Summary(s, GuestTime(vmtest.MultiUser, Wall)); got.N != 2 || got.Max != 9 {
				t.Errorf("statistics have %d boots up to %v s, want the 2 good ones", got.N, got.Max)
			}
			if n := len(r.Failures(s)); n != 1 {
				t.Errorf("%d failures are listed, want 1", n)
			}
		})
	}
}

// TestPlainThatIsNone: a plain scenario that storage-init booted measures
// something else.
func TestPlainThatIsNone(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	o.Series, o.Rounds = []string{"plain"}, 1
	o.guest = func(_ context.Context, m vmtest.Machine) (*vmtest.Result, error) {
		r := goodBoot(m)
		r.Handover = &vmtest.Handover{Backend: bootconf.Loop}
		return r, nil
	}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Boots[0].OK {
		t.Error("it counts as good")
	}
}

func TestLeftOut(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	o.Series = []string{"block", "file"}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.LeftOut["file"], "CONFIG_EROFS_FS_BACKED_BY_FILE") || r.Scenario("file") != nil {
		t.Errorf("left out: %v; want file, with the reason", r.LeftOut)
	}
	if r.Scenario("block") == nil {
		t.Error("block is missing, too")
	}
}

// TestAnotherRun: results and inputs of one kernel or initramfs are not mixed
// with those of another.
func TestAnotherRun(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	more := o
	more.MemoryMiB = 512
	if _, err := Run(t.Context(), more); err == nil || !strings.Contains(err.Error(), "MemoryMiB is 1024 there and 512 here") {
		t.Errorf("with other memory: %v", err)
	}
	if err := os.WriteFile(o.Initramfs, []byte("another"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another kernel or initramfs") {
		t.Errorf("with another initramfs: %v", err)
	}
}

func TestTwoRunsInOneFolder(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	good := o.guest
	o.guest = func(ctx context.Context, m vmtest.Machine) (*vmtest.Result, error) {
		second := o
		second.guest = good
		if _, err := Run(ctx, second); err == nil || !strings.Contains(err.Error(), "another run works there") {
			t.Errorf("a second run: %v", err)
		}
		return good(ctx, m)
	}
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func TestSearch(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	o.Sets, o.Series = []string{leastMemory}, []string{"block"}
	const needs = 150
	boots, tries := 0, map[int]int{}
	o.guest = func(_ context.Context, m vmtest.Machine) (*vmtest.Result, error) {
		boots++
		tries[m.MemoryMiB]++
		// With just enough it boots only once.
		if m.MemoryMiB < needs || m.MemoryMiB < needs+16 && tries[m.MemoryMiB] == 2 {
			return goodBoot(m), &vmtest.BootError{Kind: vmtest.ErrPanic, Detail: "out of memory"}
		}
		return goodBoot(m), nil
	}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Searches) != 1 {
		t.Fatalf("searches = %+v", r.Searches)
	}
	s := r.Searches[0]
	if !s.Done || s.FailsMiB >= s.BootsMiB || s.BootsMiB-s.FailsMiB > 2*o.MemoryStepMiB || s.BootsMiB < needs || s.FailsMiB > needs+16 {
		t.Errorf("search = %+v", s)
	}
	for _, size := range []struct {
		mib  int
		ok   bool
		want int
	}{{s.BootsMiB, true, 2}, {s.FailsMiB, false, 1}} {
		n := 0
		for _, try := range s.Tries {
			if try.MiB == size.mib && try.OK == size.ok {
				n++
			}
		}
		if n < size.want {
			t.Errorf("%d MiB were tried %d times with ok = %v, want %d", size.mib, n, size.ok, size.want)
		}
	}
	before := boots
	if _, err := Run(t.Context(), o); err != nil || boots != before {
		t.Errorf("a second run: %v, %d further boots", err, boots-before)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

func TestUntil(t *testing.T) {
	o := testOptions(t)
	withQEMU(t, &o)
	o.Series, o.Until, o.MaxRounds = []string{"plain-none", "block"}, 0.5, 20
	var source bytes.Buffer
	segment(t, &source, compress.Gzip, map[string]string{"init": "#!"}, "init")
	if err := os.WriteFile(o.Initramfs, source.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// Six pairs are the fewest that have an interval; these are all alike.
	if n := len(r.Boots); n != 12 {
		t.Errorf("%d boots, want 12", n)
	}
}
