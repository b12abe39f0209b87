package vmtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/vmlinux"
)

// scanned is more than the kernel reads by itself to look for partitions.
const scanned = 64 << 10

// driveMachine boots the guest with a kernel that has its disk driver built in,
// and with disks of size bytes.
func driveMachine(t *testing.T, size int64, check string, drives ...vmtest.Drive) vmtest.Machine {
	t.Helper()
	m := guestMachine(t, "vmtest.check="+check)
	m.Kernel = filepath.Join(t.TempDir(), "vmlinux")
	if err := vmlinux.Extract(m.Kernel, fixtures.OpenKernel(t, "kernel-6.12").Image); err != nil {
		t.Fatal(err)
	}
	for _, d := range drives {
		d.Path, d.Snapshot = filepath.Join(t.TempDir(), "disk"), true
		if d.Bus == "" {
			d.Bus = vmtest.NVMe
		}
		if err := os.WriteFile(d.Path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(d.Path, size); err != nil {
			t.Fatal(err)
		}
		m.Drives = append(m.Drives, d)
	}
	m.BlockStats = true
	return m
}

// TestBootStatistics compares what QEMU says that a guest has read with what
// the guest knows to have read.
func TestBootStatistics(t *testing.T) {
	const size, request, reads = 16 << 20, 64 << 10, 12 << 20
	check := fmt.Sprintf("read_device:/dev/nvme0n1:%d:%d", request, reads)
	m := driveMachine(t, size, check, vmtest.Drive{Name: "read"},
		vmtest.Drive{Bus: vmtest.AHCI}) // for which the kernel has no driver built in: it cannot take the name
	r, err := vmtest.Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatsError != nil || r.Killed {
		t.Fatalf("statistics: %v, killed %v", r.StatsError, r.Killed)
	}
	t.Logf("times %v, host %v, disks %v", r.Times, r.HostTimes, r.Disks)
	for _, name := range []string{"read", "drive1"} {
		start, init, end := r.Disks[name][string(vmtest.KernelStart)], r.Disks[name][string(vmtest.KernelToInit)], r.Disks[name][vmtest.AtEnd]
		var least vmtest.BlockStats
		if name == "read" {
			least = vmtest.BlockStats{Bytes: reads, Requests: reads / request}
		}
		if start.Bytes != 0 || init.Bytes > scanned {
			t.Errorf("%s: %v when the kernel starts, %v when init does; want nothing and the search for partitions", name, start, init)
		}
		if end.Bytes < least.Bytes || end.Bytes > least.Bytes+scanned || end.Requests < least.Requests || end.Requests > least.Requests+scanned/512 {
			t.Errorf("%s: %v at the end, want %v and the search for partitions", name, end, least)
		}
	}
	if len(r.Disks) != 2 {
		t.Errorf("%d drives, want 2", len(r.Disks))
	}
	last := 0.0
	for _, milestone := range []vmtest.Milestone{vmtest.KernelStart, vmtest.KernelToInit, vmtest.InitfsInit} {
		host, ok := r.HostTimes[milestone]
		if !ok || host < last || host > r.Wall.Seconds() {
			t.Errorf("%s at %v on the host's clock, want it after %v and within %v", milestone, host, last, r.Wall)
		}
		last = host
	}
}

// TestBootStatisticsOfFailure proves that a guest that fails ends as it does
// without statistics.
func TestBootStatisticsOfFailure(t *testing.T) {
	for _, test := range []struct {
		end string
		ok  bool // statistics are there
	}{{"reset", true}, {"panic", false}} {
		t.Run(test.end, func(t *testing.T) {
			m := driveMachine(t, 1<<20, "args", vmtest.Drive{})
			m.Append = append(m.Append, "vmtest.end="+test.end)
			r, err := vmtest.Run(context.Background(), m)
			if test.end == "panic" {
				if r == nil || r.Panic == "" || err == nil {
					t.Fatalf("error = %v, want a panic", err)
				}
			} else if err != nil || !r.Reset {
				// The done event was sent before it.
				t.Fatalf("error = %v, reset %v; want a reset", err, r.Reset)
			}
			if ok := r.StatsError == nil; ok != test.ok || (r.Disks == nil) == test.ok {
				t.Errorf("statistics %v, error %v; want them: %v", r.Disks, r.StatsError, test.ok)
			}
		})
	}
}

// TestBootThrottled measures in the guest how fast a throttled drive is.
func TestBootThrottled(t *testing.T) {
	const large, small = 512 << 10, 4 << 10
	measure := func(t *testing.T, s vmtest.Storage, request, requests int) (perSecond float64) {
		t.Helper()
		total := int64(request * requests)
		d := vmtest.Drive{}
		d.Throttle(s)
		m := driveMachine(t, total, fmt.Sprintf("read_device:/dev/nvme0n1:%d:%d", request, total), d)
		r, err := vmtest.Run(context.Background(), m)
		if err != nil {
			t.Fatal(err)
		}
		var took struct{ Seconds float64 }
		if err := r.Done.Check("read_device", &took); err != nil {
			t.Fatal(err)
		}
		end := r.Disks["drive0"][vmtest.AtEnd]
		if end.Bytes < total || end.Bytes > total+scanned {
			t.Errorf("QEMU counts %v, want %d bytes", end, total)
		}
		perSecond = float64(requests) / took.Seconds
		t.Logf("%s: %d requests of %d in %.3f s: %.1f a second, %.2f MB/s; QEMU counts %v", s.Name,
			requests, request, took.Seconds, perSecond, perSecond*float64(request)/1e6, end)
		return perSecond
	}
	// What is possible here, and what no limit shows.
	fastest := map[int]float64{
		large: measure(t, vmtest.Unthrottled, large, 200),
		small: measure(t, vmtest.Unthrottled, small, 3000),
	}
	for _, test := range []struct {
		name              string
		storage           vmtest.Storage
		request, requests int
		limit             float64 // in requests a second
	}{
		{"bytes of an SD card", vmtest.SDCard, large, 120, float64(vmtest.SDCard.BPS) / large},
		{"requests of an SD card", vmtest.SDCard, small, 3000, float64(vmtest.SDCard.IOPS)},
		{"bytes of eMMC", vmtest.EMMC, large, 600, float64(vmtest.EMMC.BPS) / large},
	} {
		t.Run(test.name, func(t *testing.T) {
			rate := measure(t, test.storage, test.request, test.requests)
			if rate > 1.1*test.limit {
				t.Errorf("%.1f requests a second, want at most %.1f and a tenth", rate, test.limit)
			}
			if free := fastest[test.request]; free < 4*test.limit {
				t.Skipf("without a limit this host does %.1f requests a second: too busy to say more", free)
			}
			if rate < 0.9*test.limit {
				t.Errorf("%.1f requests a second, want at least %.1f without a tenth", rate, test.limit)
			}
		})
	}
}
