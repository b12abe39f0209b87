package vmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProveKVM(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         Accel
		reason       string
	}{
		{"works", `echo '<5>[    0.000000] Linux version' >&3
			echo '<0>[    0.900000] Kernel panic - not syncing: VFS: Unable to mount root fs' >&3` + "\n" + sleeps, KVM, "boots under KVM"},
		{"silent but for the firmware", "echo SeaBIOS >&3\n" + sleeps, TCG, "says nothing under KVM within 300ms"},
		{"hangs later", "echo '<5>[    0.000000] Linux version' >&3\n" + sleeps, TCG, "does not come to its end"},
		{"refused", "echo 'could not access KVM' >&2; exit 1", TCG, "could not access KVM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := fakeQEMU(t, test.script)
			began := time.Now()
			got := m.proveKVM(context.Background(), 300*time.Millisecond, time.Second)
			if got.Accel != test.want || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("proof = %+v, want %s and %q", got, test.want, test.reason)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("took %v", took)
			}
			left, err := filepath.Glob(filepath.Join(m.LogParent, "*"))
			if err != nil || len(left) != 0 {
				t.Errorf("logs of the trial are left: %v, %v", left, err)
			}
		})
	}
}

func TestProofCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "proof.json")
	if _, ok := readProof(path); ok {
		t.Error("a proof without a file")
	}
	want := proof{KVM, "works"}
	if err := want.write(path); err != nil {
		t.Fatal(err)
	}
	if got, ok := readProof(path); !ok || got != want {
		t.Errorf("proof = %+v, %v; want %+v", got, ok, want)
	}
	for _, bad := range []string{"", "{", `{"accel":"auto"}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := readProof(path); ok {
			t.Errorf("%q gives the proof %+v", bad, got)
		}
	}
}

// TestProofKey proves that what a proof depends on is in its key.
func TestProofKey(t *testing.T) {
	m := fakeQEMU(t, "")
	m.Kernel = fileOf(t, "kernel", 10)
	key := func() string {
		t.Helper()
		k, err := m.proofKey(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := key()
	if again := key(); again != first {
		t.Errorf("key = %s, then %s", first, again)
	}
	if err := os.Truncate(m.Kernel, 11); err != nil {
		t.Fatal(err)
	}
	if other := key(); other == first {
		t.Error("another kernel has the same key")
	}
	m.Kernel += "x"
	if _, err := m.proofKey(context.Background()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error = %v, want that the kernel is missing", err)
	}
}

func TestResolveAccel(t *testing.T) {
	for _, test := range []struct {
		m    Machine
		want Accel
	}{
		{Machine{Accel: KVM}, KVM},
		{Machine{Accel: TCG}, TCG},
		{Machine{ICount: true}, TCG},
	} {
		if got, _, err := test.m.ResolveAccel(context.Background()); got != test.want || err != nil {
			t.Errorf("%+v: accelerator = %s, %v; want %s", test.m, got, err, test.want)
		}
	}
	if _, _, err := (&Machine{Accel: "xen"}).ResolveAccel(context.Background()); err == nil {
		t.Error("no error for an unknown accelerator")
	}
}

// TestResolveAuto asks twice; the second answer is the cache's.
func TestResolveAuto(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	count := filepath.Join(t.TempDir(), "count")
	m := fakeQEMU(t, "echo >>"+count+`
		echo '<0>[    0.900000] Kernel panic - not syncing: VFS: Unable to mount root fs' >&3`)
	m.Accel, m.Kernel = Auto, fileOf(t, "kernel", 10)
	for range 2 {
		if got, reason, err := m.ResolveAccel(context.Background()); got != KVM || reason == "" || err != nil {
			t.Errorf("accelerator = %s, %q, %v; want kvm", got, reason, err)
		}
	}
	if runs, err := os.ReadFile(count); err != nil || len(runs) != 1 {
		t.Errorf("QEMU ran %d times, %v; want once", len(runs), err)
	}
}
