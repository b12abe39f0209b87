package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// What of linux/fs.h package unix does not have: _IOWR('X', 119 and 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// steps are what a script is made of. All else in one is a program.
var steps = map[string]struct {
	arguments int
	do        func(a []string) error
}{
	"insmod": {1, func(a []string) error { return insmod(a[0]) }}, // DIR
	"mount":  {3, func(a []string) error { return unix.Mount(a[1], a[2], a[0], 0, "") }},
	"umount": {1, func(a []string) error { return unix.Unmount(a[0], 0) }},
	"mkdir":  {1, func(a []string) error { return os.MkdirAll(a[0], 0o755) }},
	"copy":   {2, func(a []string) error { return copyFile(a[0], a[1]) }},  // FROM TO; an old TO is overwritten
	"fsync":  {1, func(a []string) error { return syncPath(a[0]) }},        // of a file or folder
	"rename": {2, func(a []string) error { return os.Rename(a[0], a[1]) }}, // FROM TO
	"freeze": {1, func(a []string) error { return freeze(a[0]) }},          // and thaw
	"mark":   {2, func(a []string) error { return mark(a[0], a[1]) }},      // DEVICE TEXT
}

// runScript does what the lines of a file say, in words with blanks between,
// and gives how its programs ended. It ends where a step or program fails.
func runScript(path string) ([]program, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return nil, err
	}
	var ended []program
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		kmsg("vmtest guest: " + strings.Join(words, " "))
		if step, ok := steps[words[0]]; ok {
			if len(words)-1 != step.arguments {
				return nil, fmt.Errorf("%q: %s takes %d words", words, words[0], step.arguments)
			}
			if err := step.do(words[1:]); err != nil {
				return nil, fmt.Errorf("%s: %w", strings.Join(words, " "), err)
			}
			continue
		}
		cmd := exec.Command(words[0], words[1:]...)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, bytes.TrimSpace(output.Bytes()))
		}
		ended = append(ended, program{strings.Join(words, " "), 0, output.String()})
	}
	return ended, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// freeze leaves nothing of a filesystem that only its journal has.
func freeze(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// mark writes a text into the first page of a device, so that it appears among
// the disk's writes. It does not make the device flush what came before.
func mark(device, text string) error {
	fd, err := unix.Open(device, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The kernel takes it from here directly, which needs a page of its own.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(page) }()
	copy(page, text)
	n, err := unix.Pwrite(fd, page, 0)
	if err == nil && n != len(page) {
		err = io.ErrShortWrite
	}
	return err
}
