package storageinit

import (
	"errors"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
)

// EmptyRoot removes what lies in the old root, and so gives its memory back. It
// would be the end of a real root filesystem. So it refuses unless this is PID
// 1, the root is a ramfs or tmpfs, it has the files of a mini-initramfs, and
// newRoot is another filesystem; and it never leaves the root's own device.
func (l *Linux) EmptyRoot(newRoot string) error {
	if unix.Getpid() != 1 {
		return errors.New("refused: this is not PID 1")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return failed("statfs /", err)
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return errors.New("refused: the root is neither ramfs nor tmpfs")
	}
	for _, marker := range []string{bootconf.ConfigPath, bootconf.ModulesPath} {
		var st unix.Stat_t
		if err := unix.Lstat(marker, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return errors.New("refused: the root has no " + marker)
		}
	}
	var root, target unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return failed("stat /", err)
	}
	if err := unix.Stat(newRoot, &target); err != nil {
		return failed("stat "+newRoot, err)
	}
	if root.Dev == target.Dev {
		return errors.New("refused: " + newRoot + " is not a mount")
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open /", err)
	}
	return emptyDirectory(fd, root.Dev)
}

// emptyDirectory removes the entries of an open directory, which it closes.
// Mount points stay, whatever is in them.
func emptyDirectory(fd int, dev uint64) error {
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return failed("read a directory", err)
	}
	var first error
	for _, name := range names {
		if err := remove(fd, name, dev); err != nil && first == nil {
			first = failed("remove "+name, err)
		}
	}
	return first
}

func remove(dir int, name string, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Dev != dev {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlinkat(dir, name, 0)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// A mount could have come between the two calls.
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != dev {
		unix.Close(fd)
		return err
	}
	if err := emptyDirectory(fd, dev); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.EBUSY {
		return err
	}
	return nil
}
