package storageinit

import "io"

// System is what storage-init asks of the kernel. The plan in run.go sees only
// this interface, so that tests can hold its order, rollback and failures
// without being PID 1.
type System interface {
	// Now is the monotonic clock in microseconds.
	Now() int64
	// OpenLog opens the kernel log, which must happen while /dev is in reach.
	OpenLog() error
	// Log writes one line to the kernel log with one of the log levels below.
	Log(level int, line string)
	// Args and Environ are the arguments and the environment of PID 1.
	Args() []string
	Environ() []string

	Mkdir(path string, mode uint32) error
	Mount(source, target, fstype string, flags uintptr, data string) error
	// Detach takes a mount out of the tree; what uses it keeps it alive.
	Detach(target string) error
	// Unmount unmounts now, and fails if the mount is in use.
	Unmount(target string) error
	// MoveMount moves a mount to another place.
	MoveMount(from, to string) error
	// CopyAttributes gives the directory to the mode, owner and times of from.
	CopyAttributes(from, to string) error

	ReadFile(path string) (string, error)
	WriteFile(path, data string) error
	ReadDir(path string) ([]string, error)
	// CopyFile makes a new file of the content of another.
	CopyFile(from, to string, mode uint32) error
	// Open opens a file or block device for reading. Symbolic links are
	// resolved as if root were the root directory.
	Open(root, path string) (Image, error)
	// Executable reports whether path, resolved inside root, can be executed.
	Executable(root, path string) error

	CPUs() int
	LoadModule(path, options string) error

	// DirectIO reports whether blocks of an image that have this size, in bytes, can
	// be read past the page cache.
	DirectIO(image Image, blockSize int64) bool
	// AttachLoop makes a read-only loop device of an image, with direct I/O
	// where its filesystem has it, that vanishes with its last user.
	AttachLoop(image Image) (LoopDevice, error)
	// ReadAhead has the kernel read a stretch of a file or block device into its
	// cache, and does not wait for that.
	ReadAhead(path string, offset, length int64) error
	// CopyToMemory gives a copy that does not need the original any more.
	CopyToMemory(image Image) (Image, error)

	// ListenUevents starts to collect the kernel's device events.
	ListenUevents() error
	// WaitUevent waits for the next event, at most until the deadline on the
	// monotonic clock; ok is false when that has passed.
	WaitUevent(deadline int64) (event Uevent, ok bool, err error)

	// EmptyRoot removes the files of the mini-initramfs.
	EmptyRoot(newRoot string) error
	// EnterRoot makes newRoot, a mount, the root of the mount namespace.
	EnterRoot(newRoot string) error
	// Exec replaces this process; it returns only on failure.
	Exec(path string, argv, env []string) error

	Sleep(seconds int)
	Reboot() error
	Halt() error
	// Exit ends PID 1, by which the kernel panics.
	Exit()
}

// Uevent is a change of the kernel's devices. The zero value says that events
// were lost, so that anything may have changed.
type Uevent struct {
	Block    string // name of a block device that appeared or changed
	SCSIHost bool   // a SCSI host appeared
	Modalias string // of a device that appeared
}

// Log levels, as <N> in front of a line in /dev/kmsg. The console shows levels
// up to 3 even when the command line has `quiet`.
const (
	levelFatal = 2
	levelError = 3
	levelWarn  = 4
	levelInfo  = 6
)

// Image is an open file or block device.
type Image interface {
	io.ReaderAt
	// Size in bytes, of the file or of the device.
	Size() int64
	// Source is a path by which a mount call reaches what is open here.
	Source() string
	Close()
}

// LoopDevice is an attached loop device.
type LoopDevice struct {
	Path     string
	DirectIO bool
	// Release drops our reference; before a mount it detaches the device.
	Release func()
}

// Mount flags, from the kernel's include/uapi/linux/mount.h.
const (
	mountReadOnly = 0x1
	mountNoSUID   = 0x2
	mountNoDev    = 0x4
	mountNoExec   = 0x8
)
