package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// readFiles gives the content of each of the files a:b:c.
func readFiles(paths string) (map[string]string, error) {
	found := map[string]string{}
	for path := range strings.SplitSeq(paths, ":") {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		found[path] = strings.TrimSuffix(string(text), "\n")
	}
	return found, nil
}

// listFolders gives the names in each of the folders a:b:c. One that is not
// there is empty, as sysfs has a class only from its first device on.
func listFolders(paths string) (map[string][]string, error) {
	found := map[string][]string{}
	for path := range strings.SplitSeq(paths, ":") {
		names := []string{}
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		found[path] = names
	}
	return found, nil
}

// program is how one command of the check run ended.
type program struct {
	Command string `json:"command"`
	Status  int    `json:"status"`
	Output  string `json:"output"` // both streams
}

// runPrograms runs commands, a+b:c+d being `a b` and then `c d`.
func runPrograms(commands string) ([]program, error) {
	var ended []program
	for command := range strings.SplitSeq(commands, ":") {
		words := strings.Split(command, "+")
		cmd := exec.Command(words[0], words[1:]...)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return nil, err
		}
		ended = append(ended, program{strings.Join(words, " "), cmd.ProcessState.ExitCode(), output.String()})
	}
	return ended, nil
}

// The main thread is the one that /proc/self shows. It stays with the main
// goroutine, so that no other changes what it sees.
func init() { runtime.LockOSThread() }

// oldRoot lists what is left in the rootfs below this root. A thread with a
// mount namespace of its own takes the root away and then looks at the
// namespace from its begin.
func oldRoot() ([]string, error) {
	type result struct {
		names []string
		err   error
	}
	done := make(chan result)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine.
		runtime.LockOSThread()
		names, err := lookBelowRoot()
		done <- result{names, err}
	}()
	r := <-done
	return r.names, r.err
}

func lookBelowRoot() ([]string, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	namespace, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the mount namespace: %w", err)
	}
	defer unix.Close(namespace)
	if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("detach /: %w", err)
	}
	if err := unix.Setns(namespace, unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("setns: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return nil, fmt.Errorf("statfs of the old root: %w", err)
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("the old root has the filesystem %#x, neither ramfs nor tmpfs", fs.Type)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// deviceReaders is how many requests readDevice has in flight, so that the
// device does not wait for the reader.
const deviceReaders = 8

// readDevice reads the first TOTAL bytes of a device in requests of SIZE bytes,
// none from a cache, and says how long that took. The argument is
// DEVICE:SIZE:TOTAL.
func readDevice(argument string) (any, error) {
	words := strings.Split(argument, ":")
	if len(words) != 3 {
		return nil, fmt.Errorf("%q is not DEVICE:SIZE:TOTAL", argument)
	}
	size, err := strconv.ParseInt(words[1], 10, 32)
	if err != nil {
		return nil, err
	}
	total, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil {
		return nil, err
	}
	fd, err := openDevice(words[0])
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var next atomic.Int64
	failed := make(chan error)
	began := time.Now()
	for range deviceReaders {
		go func() { failed <- readRequests(fd, size, total, &next) }()
	}
	for range deviceReaders {
		err = errors.Join(err, <-failed)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", words[0], err)
	}
	return map[string]float64{"seconds": time.Since(began).Seconds()}, nil
}

// readRequests reads, until the end, what nobody else reads.
func readRequests(fd int, size, total int64, next *atomic.Int64) error {
	// The kernel reads into it directly, which needs pages of its own.
	buffer, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buffer) }()
	for {
		at := next.Add(size) - size
		if at >= total {
			return nil
		}
		want := min(size, total-at)
		n, err := unix.Pread(fd, buffer[:want], at)
		if err == nil && int64(n) != want {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", at, err)
		}
	}
}

// openDevice waits, not for long, until the kernel has found the device.
func openDevice(path string) (fd int, err error) {
	for range 100 {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}
