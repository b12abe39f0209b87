package storageinit

import (
	"errors"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopyFile makes a new file of the content of another.
func (l *Linux) CopyFile(from, to string, mode uint32) error {
	src, err := openFile(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Open(to, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sendAll(fd, src)
}

// openFile opens a file by a path that is ours, for which every kind of symbolic
// link is followed.
func openFile(path string) (*file, error) {
	return newFile(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// sendAll writes the whole of a file to a descriptor.
func sendAll(fd int, src *file) error {
	for off := int64(0); off < src.size; {
		// At most what one call of sendfile moves, lib/splice.
		n, err := unix.Sendfile(fd, src.fd, &off, int(min(src.size-off, 1<<30)))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errors.New("the file ends at byte " + strconv.Itoa(int(off)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// OpenExclusive opens a block device that nothing has mounted, or holds in
// another way; else the error is EBUSY.
func (l *Linux) OpenExclusive(path string) (Image, error) {
	f, err := newFile(unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Yield lets every other process go first. A policy that gives way altogether
// could stop this one in a system call that others wait for.
func (l *Linux) Yield() {
	runtime.LockOSThread() // the priority is the thread's
	const lowest = 19
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, lowest)
}

// RemoveAll removes a directory and the files in it.
func (l *Linux) RemoveAll(dir string) error {
	names, err := l.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := unix.Unlink(dir + "/" + name); err != nil {
			return err
		}
	}
	return unix.Rmdir(dir)
}

// Spawn starts a copy of this program that runs from memory, so that it keeps
// no filesystem in use, with no standard streams, and does not wait for it.
func (l *Linux) Spawn(argv []string) error {
	self, err := openFile(selfProgram)
	if err != nil {
		return failed("open "+selfProgram, err)
	}
	defer self.Close()
	program, err := l.CopyToMemory(self)
	if err != nil {
		return err
	}
	defer program.Close()
	_, err = syscall.ForkExec(program.Source(), argv, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return err
}
