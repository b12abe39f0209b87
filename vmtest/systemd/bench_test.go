package systemd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"initoverlayfs/bench"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// TestBench is the short form of `make bench`: one round of the initramfs as it
// is, of one backend, and of a system that cannot boot. The report has the first
// two beside each other, and the third as a failure and in no figure.
func TestBench(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	kernel := fixtures.OpenKernel(t, "kernel-6.1")
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.img")
	f, err := os.Create(broken)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.NewWriter(f) // nothing that could be started
	err = w.WriteHeader(&cpio.Header{Name: "etc", Ino: 1, Mode: cpio.TypeDir | 0o755, NLink: 2})
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "run")
	args := []string{
		"bench", "run", "--output", out, "--kver", kernel.Version, "--kernel", kernel.Image, "--modules-dir", kernel.Modules,
		"--initramfs", fixtures.Path(t, "dracut-6.1.img"), "--rootdisk", fixtures.Path(t, rootDisk),
		"--set", "standard", "--scenario", "plain,block", "--system", "broken=" + kernel.Image + "," + broken,
		"--rounds", "1", "--accel", "tcg",
	}
	run(t, command(t, args...))
	r, err := bench.Read(filepath.Join(out, bench.ResultsName))
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete || len(r.Boots) != 3 {
		t.Fatalf("%d boots, complete = %v; want 3 of 3", len(r.Boots), r.Complete)
	}
	multiUser := bench.GuestTime(vmtest.MultiUser, bench.Wall)
	for name, n := range map[string]int{"plain": 1, "block": 1, "broken": 0} {
		s := r.Scenario(name)
		if s == nil {
			t.Fatalf("there is no scenario %s", name)
		}
		if got := r.Summary(s, multiUser); got.N != n {
			t.Errorf("%s: statistics have %d boots, want %d; failures: %v", name, got.N, n, r.Failures(s))
		}
	}
	failed := r.Failures(r.Scenario("broken"))
	if len(failed) != 1 || !strings.Contains(failed[0].Error, "panic") {
		t.Errorf("failures of the broken system: %+v", failed)
	} else if _, err := os.Stat(filepath.Join(out, failed[0].Log, "console.log")); err != nil {
		t.Errorf("its logs: %v", err)
	}
	block := r.Boots[1]
	if end := block.Disks["image"]["end"]; end.Bytes < 1<<20 || end.Bytes > r.Scenario("block").ImageBytes || end.Requests == 0 {
		t.Errorf("read from the image: %+v of %d bytes", end, r.Scenario("block").ImageBytes)
	}
	if len(block.Phases) == 0 || block.HostTimes[vmtest.MultiUser] < block.Times[vmtest.MultiUser] {
		t.Errorf("phases %v, host times %v", block.Phases, block.HostTimes)
	}
	for _, name := range []string{"report.md", "report.html"} {
		text, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "broken") || !strings.Contains(string(text), "Kernel panic") {
			t.Errorf("%s does not tell of the system that failed", name)
		}
	}
	// The run is there: nothing is booted again, and the report is the same.
	before, err := os.ReadFile(filepath.Join(out, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, command(t, args...))
	run(t, command(t, "bench", "report", out))
	after, err := os.ReadFile(filepath.Join(out, "report.md"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the report has changed: %v", err)
	}
}
