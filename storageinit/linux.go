package storageinit

import (
	"errors"
	"io"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Linux is the running kernel.
type Linux struct {
	// Udev chooses the events that udev passes on when it is done with a device,
	// in place of the kernel's own.
	Udev bool

	kmsg   int // of /dev/kmsg; 0 until it is open
	uevent int
}

var _ System = (*Linux)(nil)

// Now is CLOCK_MONOTONIC, the clock of the kernel log.
func (l *Linux) Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano() / 1000
}

// OpenLog opens /dev/kmsg.
func (l *Linux) OpenLog() error {
	fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		l.kmsg = fd
	}
	return err
}

// Log writes to the kernel log, and before that is open to the console.
func (l *Linux) Log(level int, line string) {
	if l.kmsg == 0 {
		_, _ = unix.Write(2, []byte(line+"\n"))
		return
	}
	// A record of the kernel log ends at about 1000 bytes.
	const maxLine = 900
	if len(line) > maxLine {
		line = line[:maxLine] + "..."
	}
	_, _ = unix.Write(l.kmsg, []byte("<"+string(rune('0'+level))+">"+line+"\n"))
}

// Args reads the arguments from /proc: package os, which has them too, costs
// bytes and start-up time. Where /proc is not mounted, at the start of PID 1
// and where a full tree has moved it away, it is mounted for that moment.
func (l *Linux) Args() []string {
	const path = "/proc/self/cmdline"
	text, err := l.ReadFile(path)
	if err != nil {
		_ = l.Mkdir("/proc", 0o755)
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return nil
		}
		text, err = l.ReadFile(path)
		_ = unix.Unmount("/proc", 0)
		if err != nil {
			return nil
		}
	}
	return strings.Split(strings.TrimSuffix(text, "\x00"), "\x00")
}

// Environ gives the environment.
func (l *Linux) Environ() []string { return unix.Environ() }

// Mkdir makes a directory; one that is there is no error.
func (l *Linux) Mkdir(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != unix.EEXIST {
		return err
	}
	return nil
}

// Mount is mount(2).
func (l *Linux) Mount(source, target, fstype string, flags uintptr, data string) error {
	return unix.Mount(source, target, fstype, flags, data)
}

// Detach is umount2(2) with MNT_DETACH.
func (l *Linux) Detach(target string) error { return unix.Unmount(target, unix.MNT_DETACH) }

// Unmount is umount2(2).
func (l *Linux) Unmount(target string) error { return unix.Unmount(target, 0) }

// MoveMount is mount(2) with MS_MOVE.
func (l *Linux) MoveMount(from, to string) error { return unix.Mount(from, to, "", unix.MS_MOVE, "") }

// CopyAttributes copies mode, owner and modification time.
func (l *Linux) CopyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return failed("stat "+from, err)
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return failed("chown "+to, err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return failed("chmod "+to, err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Mtim, st.Mtim}, 0); err != nil {
		return failed("set the time of "+to, err)
	}
	return nil
}

// ReadFile reads a file whose size stat does not tell, as those in /proc.
func (l *Linux) ReadFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	return ReadAll(fd)
}

// ReadAll reads an open file to its end and closes it.
func ReadAll(fd int) (string, error) {
	defer unix.Close(fd)
	buf := make([]byte, 0, 4096)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", err
		case n == 0:
			return string(buf), nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

// WriteFile writes a file of /proc or /sys, or a small new one, by one write.
func (l *Linux) WriteFile(path, data string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(data))
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	return err
}

// ReadDir gives the names in a directory, in the kernel's order.
func (l *Linux) ReadDir(path string) ([]string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return ReadNames(fd)
}

// ReadNames reads the names in an open directory and closes it.
func ReadNames(fd int) ([]string, error) {
	defer unix.Close(fd)
	return readNames(fd)
}

func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// openInRoot opens a path with every symbolic link resolved inside root, and
// without waiting for a fifo's other end or a drive's medium.
func openInRoot(root, path string, flags uint64) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// Open opens a file or block device for reading.
func (l *Linux) Open(root, path string) (Image, error) {
	f, err := newFile(openInRoot(root, path, unix.O_RDONLY|unix.O_NONBLOCK))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// newFile takes what a system call that opens gives.
func newFile(fd int, err error) (*file, error) {
	if err != nil {
		return nil, err
	}
	f := &file{fd: fd}
	if f.size, err = sizeOf(fd); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func sizeOf(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return st.Size, nil
	case unix.S_IFBLK:
		return unix.Seek(fd, 0, unix.SEEK_END)
	}
	return 0, errors.New("neither a file nor a block device")
}

// Executable reports why path cannot be executed.
func (l *Linux) Executable(root, path string) error {
	fd, err := openInRoot(root, path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return unix.EACCES
	}
	return nil
}

// CPUs is the number of CPUs that this process may use.
func (l *Linux) CPUs() int { return runtime.NumCPU() }

// LoadModule is finit_module(2).
func (l *Linux) LoadModule(path, options string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	// What these two mean here is not what their texts say.
	switch err := unix.FinitModule(fd, options, 0); err {
	case unix.ENOENT:
		return errors.New("it needs a symbol that no loaded module has")
	case unix.ENOEXEC:
		return errors.New("it is not for this kernel")
	default:
		return err
	}
}

// EnterRoot moves the mount newRoot over the root directory, which in rootfs
// cannot be pivoted, and makes it this process's root.
func (l *Linux) EnterRoot(newRoot string) error {
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// Exec is execve(2).
func (l *Linux) Exec(path string, argv, env []string) error {
	if l.uevent != 0 {
		unix.Close(l.uevent)
	}
	return unix.Exec(path, argv, env)
}

// Sleep sleeps through interruptions.
func (l *Linux) Sleep(seconds int) {
	for end := l.Now() + int64(seconds)*1_000_000; l.Now() < end; {
		ts := unix.NsecToTimespec((end - l.Now()) * 1000)
		_ = unix.Nanosleep(&ts, nil)
	}
}

// Reboot restarts the machine.
func (l *Linux) Reboot() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Halt stops the machine and leaves the screen as it is.
func (l *Linux) Halt() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
}

// Exit ends the process.
func (l *Linux) Exit() {
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	panic("exit_group returned")
}

// file is an open file or block device.
type file struct {
	fd   int
	size int64
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

func (f *file) Size() int64 { return f.size }

func (f *file) Source() string { return "/proc/self/fd/" + strconv.Itoa(f.fd) }

// Close is safe to call twice.
func (f *file) Close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// CopyToMemory copies an image to an anonymous file: it lies in no filesystem
// that has a size limit or must be emptied later, and vanishes with its last
// user, the loop device.
func (l *Linux) CopyToMemory(image Image) (Image, error) {
	src, ok := image.(*file)
	if !ok {
		return nil, unix.EINVAL
	}
	fd, err := unix.MemfdCreate("initoverlayfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, failed("memfd_create", err)
	}
	dst := &file{fd: fd, size: src.size}
	if err := sendAll(fd, src); err != nil {
		dst.Close()
		return nil, err
	}
	return dst, nil
}

// ReadAhead starts to read.
func (l *Linux) ReadAhead(path string, offset, length int64) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	return unix.Fadvise(fd, offset, length, unix.FADV_WILLNEED)
}

// DirectIO asks statx(2), as XFS and ext4 answer it. vfat and btrfs do not: they can
// read 4096 bytes, the largest sector that FAT has.
func (l *Linux) DirectIO(image Image, blockSize int64) bool {
	src, ok := image.(*file)
	if !ok {
		return false
	}
	align := int64(4096)
	var st unix.Statx_t
	err := unix.Statx(src.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		align = int64(st.Dio_offset_align)
	}
	return align != 0 && blockSize%align == 0
}

// AttachLoop attaches an image with LOOP_CONFIGURE (Linux 5.8).
func (l *Linux) AttachLoop(image Image) (LoopDevice, error) {
	src, ok := image.(*file)
	if !ok {
		return LoopDevice{}, unix.EINVAL
	}
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return LoopDevice{}, failed("/dev/loop-control", err)
	}
	defer unix.Close(control)

	config := unix.LoopConfig{Fd: uint32(src.fd)}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	// Direct I/O needs a block size not below that of the disk; EROFS reads
	// whole blocks of 4096 anyway.
	if src.size%4096 == 0 {
		config.Size = 4096
	}
	const attempts = 8 // another process may take the free device first
	for i := 0; ; i++ {
		number, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return LoopDevice{}, failed("LOOP_CTL_GET_FREE", err)
		}
		name := "loop" + strconv.Itoa(number)
		fd, err := unix.Open("/dev/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return LoopDevice{}, failed("/dev/"+name, err)
		}
		err = unix.IoctlLoopConfigure(fd, &config)
		if err == nil {
			dio, _ := l.ReadFile("/sys/block/" + name + "/loop/dio")
			return LoopDevice{
				Path:     "/dev/" + name,
				DirectIO: strings.TrimSpace(dio) == "1",
				Release:  func() { unix.Close(fd) },
			}, nil
		}
		unix.Close(fd)
		if err != unix.EBUSY || i == attempts {
			return LoopDevice{}, failed("LOOP_CONFIGURE /dev/"+name, err)
		}
	}
}

// Fail says on the standard error what failed, and ends the process.
func (l *Linux) Fail(text string) {
	_, _ = unix.Write(2, []byte(text+"\n"))
	l.Exit()
}
