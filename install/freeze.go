package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ioctls of include/uapi/linux/fs.h
const (
	ioctlFreeze = 0xc0045877 // FIFREEZE
	ioctlThaw   = 0xc0045878 // FITHAW
)

// thawTries is how often a thaw is tried: a boot filesystem that stays frozen stops
// whoever writes to it.
const thawTries = 20

// FreezeThaw writes all of the filesystem of dir to its final place: freezing
// empties the journal, so that the files are reachable without a replay of it,
// which storage-init and boot loaders do not make. Where there is nothing to
// freeze, as on a FAT, the filesystem is synced.
//
// While it is frozen, each write to it waits. Nothing here writes, and signals
// are ignored; but a process that is killed between would leave it frozen. That
// is why install calls this in a process of its own; see freezer.
func FreezeThaw(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	fd := int(f.Fd())
	// What takes long is done before.
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	switch err := unix.IoctlSetInt(fd, ioctlFreeze, 0); {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		return nil
	case errors.Is(err, unix.EBUSY):
		// Somebody else has frozen it, with the same effect.
		return nil
	case errors.Is(err, unix.EPERM):
		// An ordinary user on a machine of his own making.
		return nil
	case err != nil:
		return fmt.Errorf("freeze %s: %w", dir, err)
	}
	// Nobody else will do it.
	for try := 1; ; try++ {
		err := unix.IoctlSetInt(fd, ioctlThaw, 0)
		if err == nil {
			return nil
		}
		if try == thawTries {
			return fmt.Errorf("thaw %s: %w", dir, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// FreezeVerb is the hidden verb of the command line that calls FreezeThaw.
const FreezeVerb = "freeze-thaw"

// freezer runs FreezeThaw in another process, in a session of its own: whatever
// ends this one does not end that one.
func freezer(_ context.Context, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, FreezeVerb, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", FreezeVerb, dir, err, out)
	}
	return nil
}
