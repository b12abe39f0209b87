package vmtest_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/vmlinux"
)

var bigBody = strings.Repeat("x", 10<<20)

var guestInitramfs = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "vmtest-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	guest := filepath.Join(dir, "guest")
	if err := vmtest.BuildGuest(context.Background(), "", guest); err != nil {
		return nil, err
	}
	init, err := os.ReadFile(guest)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	w := cpio.NewWriter(&b)
	for i, e := range []struct {
		name         string
		mode         uint32
		uid          uint32
		body         string
		major, minor uint32
	}{
		{"big", unix.S_IFREG | 0o640, 7, bigBody, 0, 0},
		{"dev", unix.S_IFDIR | 0o755, 0, "", 0, 0},
		{"dev/console", unix.S_IFCHR | 0o600, 0, "", 5, 1},
		{"init", unix.S_IFREG | 0o755, 0, string(init), 0, 0},
		{"link", unix.S_IFLNK | 0o777, 0, "init", 0, 0},
	} {
		h := &cpio.Header{
			Name: e.name, Ino: uint32(i + 1), Mode: e.mode, UID: e.uid, NLink: 1, MTime: 1700000000,
			Size: int64(len(e.body)), RDevMajor: e.major, RDevMinor: e.minor,
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
})

// guestMachine is a machine that boots the guest as its initramfs's init.
func guestMachine(t *testing.T, words ...string) vmtest.Machine {
	t.Helper()
	fixtures.RequireBoots(t, fixtures.Some)
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := vmlinux.Extract(kernel, fixtures.OpenKernel(t, "kernel-6.1").Image); err != nil {
		t.Fatal(err)
	}
	archive, err := guestInitramfs()
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return vmtest.Machine{
		Kernel: kernel, Initrd: initrd, Append: words, MemoryMiB: 256,
		Accel: vmtest.TCG, Timeout: 2 * time.Minute, LogParent: t.TempDir(),
	}
}

func TestBootGuest(t *testing.T) {
	m := guestMachine(t, "vmtest.check=args,modules,loop_dio,cached_growth:/big,overlay_write:1048576,tree_digest,exists:/big", "word")
	m.Expect = []vmtest.Milestone{vmtest.KernelToInit, vmtest.InitfsInit}
	entries := map[string]vmtest.Entry{}
	m.OnEvent = func(e vmtest.Event) {
		if e.Kind != vmtest.EventEntry {
			return
		}
		var entry vmtest.Entry
		if err := json.Unmarshal(e.JSON, &entry); err != nil {
			t.Errorf("entry event: %v", err)
		}
		entries[entry.Path] = entry
	}
	r, err := vmtest.Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("times %v, wall %v, MemAvailable %d kB, QEMU %s", r.Times, r.Wall, r.Done.MemAvailableKB, r.QEMU)
	if init, first := r.Times[vmtest.KernelToInit], r.Times[vmtest.InitfsInit]; init <= 0 || first < init {
		t.Errorf("times = %v; want the first message after the start of init", r.Times)
	}
	if r.Killed || r.LogDir != "" {
		t.Errorf("killed %v, logs %q; want a power-off and no logs", r.Killed, r.LogDir)
	}
	if record, err := r.Done.BootRecord(); record != nil || err != nil {
		t.Errorf("boot record = %v, %v; a plain boot has none", record, err)
	}
	if !strings.Contains(r.Done.Mountinfo, " /proc ") || r.Done.MemAvailableKB == 0 || r.Done.UptimeS == 0 {
		t.Errorf("done = %+v; want mountinfo, memory and uptime", r.Done)
	}

	var args struct{ Argv, Env []string }
	if err := r.Done.Check("args", &args); err != nil {
		t.Error(err)
	}
	if want := []string{"/init", "word"}; !slices.Equal(args.Argv, want) {
		t.Errorf("argv = %q, want %q", args.Argv, want)
	}
	var growth struct {
		Bytes int64
	}
	if err := r.Done.Check("cached_growth", &growth); err != nil || growth.Bytes != 10<<20 {
		t.Errorf("cached_growth = %+v, %v", growth, err)
	}
	var write struct {
		Written int64 `json:"written_bytes"`
		ENOSPC  bool
	}
	if err := r.Done.Check("overlay_write", &write); err != nil || write.Written != 1<<20 || write.ENOSPC {
		t.Errorf("overlay_write = %+v, %v", write, err)
	}
	for path, want := range map[string]vmtest.Entry{
		"big": {
			Path: "big", Mode: unix.S_IFREG | 0o640, UID: 7, MTime: 1700000000, Size: 10 << 20, NLink: 1,
			SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(bigBody))),
		},
		"dev/console": {Path: "dev/console", Mode: unix.S_IFCHR | 0o600, MTime: 1700000000, NLink: 1, Major: 5, Minor: 1},
		"link":        {Path: "link", Mode: unix.S_IFLNK | 0o777, MTime: 1700000000, Size: 4, NLink: 1, Target: "init"},
	} {
		if diff := cmp.Diff(want, entries[path]); diff != "" {
			t.Errorf("entry %s (-want +got):\n%s", path, diff)
		}
	}
}

func TestBootFails(t *testing.T) {
	for _, test := range []struct {
		word string
		want error
	}{
		{"vmtest.check=nonsense", vmtest.ErrNotOK},
		{"rdinit=/none", vmtest.ErrPanic},
	} {
		t.Run(test.word, func(t *testing.T) {
			r, err := vmtest.Run(context.Background(), guestMachine(t, test.word))
			if !errors.Is(err, test.want) {
				t.Errorf("error = %v, want %v", err, test.want)
			}
			if r == nil || r.LogDir == "" {
				t.Error("the logs are not kept")
			}
		})
	}
}

// TestBootAuto boots with the accelerator that this machine proves.
func TestBootAuto(t *testing.T) {
	m := guestMachine(t)
	m.Kernel = fixtures.OpenKernel(t, "kernel-6.1").Image // as a user has it
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	m.Accel = vmtest.Auto
	began := time.Now()
	accel, reason, err := m.ResolveAccel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	proof := time.Since(began)
	if limit := 30 * time.Second; proof > limit {
		t.Errorf("the proof took %v, want at most %v", proof, limit)
	}
	r, err := vmtest.Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s, found in %v", accel, reason, proof)
	if r.Accel != accel || r.AccelReason != reason {
		t.Errorf("accelerator = %s because %q, want %s because %q", r.Accel, r.AccelReason, accel, reason)
	}
}

// TestQEMUTakesArguments starts QEMU, without running the guest, with every
// kind of device: it would end with an error if it knew one not.
func TestQEMUTakesArguments(t *testing.T) {
	m := guestMachine(t)
	image := func(name string, size int64) string {
		name = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, size); err != nil {
			t.Fatal(err)
		}
		return name
	}
	m.MemoryMiB = 1024
	for i, bus := range vmtest.Buses {
		m.Drives = append(m.Drives, vmtest.Drive{
			Path: image("a,b", 8<<20), Bus: bus, Snapshot: i%2 == 0, Serial: "serial", BPSRead: 1 << 20, IOPSRead: 100,
		})
	}
	m.Drives = append(m.Drives,
		vmtest.Drive{Path: image("x", 8<<20), Bus: vmtest.VirtioSCSI, SCSIAddr: true, SCSITarget: 2, SCSILUN: 5, WWN: 1 << 60},
		vmtest.Drive{Path: image("x", 8<<20), Bus: vmtest.AHCI, WWN: 5 << 60},
		vmtest.Drive{Path: image("x", 8<<20), Bus: vmtest.NVMe, ReadOnly: true},
	)
	m.Pmem = []vmtest.Pmem{{Path: image("a,b", 5<<20)}, {Path: image("a,b", 6<<20), Virtio: true}}
	m.Extra = []string{"-S"}
	m.Timeout = 3 * time.Second
	if _, err := vmtest.Run(context.Background(), m); !errors.Is(err, vmtest.ErrTimeout) {
		t.Errorf("error = %v, want %v", err, vmtest.ErrTimeout)
	}
}
