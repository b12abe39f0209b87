package main

import (
	"strings"
	"testing"
)

func TestEvent(t *testing.T) {
	const (
		meminfo = "MemTotal:         210752 kB\nMemFree:           1 kB\nMemAvailable:     175484 kB\n" +
			"Cached:    21000 kB\nSwapCached:  1 kB\nShmem:    800 kB\nShmemHugePages:   2 kB\n"
		zoneinfo = "Node 0, zone DMA32\n  pagesets\n    cpu: 0\n              count: 299\n              high:  4\n    cpu: 1\n              count: 2\n"
	)
	got, err := event("in\"it", meminfo, zoneinfo, 4096)
	want := `{"event":"memory","at":"in\"it","available_kb":175484,"cached_kb":21000,"shmem_kb":800,"total_kb":210752,"percpu_kb":1204}` + "\n"
	if err != nil || got != want {
		t.Errorf("event = %s, %v; want %s", got, err, want)
	}
	for _, test := range []struct{ meminfo, zoneinfo, want string }{
		{strings.ReplaceAll(meminfo, "Shmem:", "X:"), zoneinfo, "no Shmem"},
		{strings.ReplaceAll(meminfo, "21000", "many"), zoneinfo, "no Cached"},
		{meminfo, "count: x\n", "/proc/zoneinfo"},
	} {
		if line, err := event("init", test.meminfo, test.zoneinfo, 4096); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("event = %s, %v; want %q in an error", line, err, test.want)
		}
	}
}

func TestEventsPort(t *testing.T) {
	for cmdline, want := range map[string]string{
		"a vmtest.events=ttyS1 b\n":         "ttyS1",
		"vmtest.events=a vmtest.events=b\n": "b",
		"xvmtest.events=ttyS1\n":            "",
	} {
		if got := eventsPort(cmdline); got != want {
			t.Errorf("eventsPort(%q) = %q, want %q", cmdline, got, want)
		}
	}
}
