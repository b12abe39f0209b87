package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is what reading a byte of each page of a mapped file took.
type mapping struct {
	Pages  int   `json:"pages"`
	Faults int64 `json:"faults"`
	// Results counts, by their names, the results of the kernel's attempts to
	// map 2 MiB at once: NOPAGE is one that was mapped.
	Results map[string]int `json:"results"`
}

const (
	hugeBytes = 2 << 20
	tracing   = "/sys/kernel/tracing"
	pmdEvent  = "dax_pmd_fault_done"
)

// daxFaults mounts the EROFS of a device with DAX, and maps and reads each file
// of its root.
func daxFaults(device string) (map[string]mapping, error) {
	const dir = "/dax"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount(device, dir, "erofs", unix.MS_RDONLY, "dax=always"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", device, err)
	}
	if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	enable := filepath.Join(tracing, "events/fs_dax", pmdEvent, "enable")
	if err := os.WriteFile(enable, []byte("1"), 0); err != nil {
		return nil, err
	}
	found := map[string]mapping{}
	files, err := os.ReadDir(dir)
	for _, file := range files {
		if file.Type() != 0 {
			continue
		}
		if found[file.Name()], err = touch(filepath.Join(dir, file.Name())); err != nil {
			return nil, err
		}
	}
	return found, errors.Join(err, unix.Unmount(dir, 0))
}

// touch maps a file at an address that a huge page could have, and reads a byte
// of each page.
func touch(path string) (m mapping, err error) {
	if err := os.WriteFile(filepath.Join(tracing, "trace"), nil, 0); err != nil {
		return m, err
	}
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	if m.Faults, err = mapAndRead(f, info); err != nil {
		return m, fmt.Errorf("map %s: %w", path, err)
	}
	m.Pages = (int(info.Size()) + os.Getpagesize() - 1) / os.Getpagesize()
	trace, err := os.ReadFile(filepath.Join(tracing, "trace"))
	if err != nil {
		return m, err
	}
	m.Results = map[string]int{}
	for line := range strings.Lines(string(trace)) {
		if strings.Contains(line, pmdEvent+": ") {
			fields := strings.Fields(line)
			m.Results[fields[len(fields)-1]]++
		}
	}
	return m, nil
}

// mapAndRead gives the number of page faults.
func mapAndRead(f *os.File, info fs.FileInfo) (faults int64, err error) {
	size := uintptr(info.Size())
	// Addresses among which there is a place where the file begins at a huge
	// page.
	room, err := unix.MmapPtr(-1, 0, nil, size+hugeBytes, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	place := unsafe.Add(room, -uintptr(room)&(hugeBytes-1))
	at, err := unix.MmapPtr(int(f.Fd()), 0, place, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		return 0, err
	}
	content := unsafe.Slice((*byte)(at), size)
	before, err := pageFaults()
	if err != nil {
		return 0, err
	}
	var sum byte
	for i := 0; i < len(content); i += os.Getpagesize() {
		sum += content[i]
	}
	runtime.KeepAlive(sum)
	after, err := pageFaults()
	return after - before, errors.Join(err, unix.MunmapPtr(room, size+hugeBytes))
}

// pageFaults counts those of this thread, which is the only one that reads.
func pageFaults() (int64, error) {
	var usage unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &usage)
	return usage.Minflt + usage.Majflt, err
}
