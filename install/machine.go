// Package install publishes pairs, a mini-initramfs and the image that it
// mounts, where a machine's boot loader and storage-init find them, and keeps
// them until newer ones have taken their place.
//
// One pair is one generation: a folder of its own, whose files never change.
// A new pair becomes the one that is booted by the rename of a boot entry, so
// at each moment the machine boots either what it booted before or the new pair,
// whole.
package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
)

// machine is the system whose boot files are handled.
type machine struct {
	sysroot string // empty: the running system
}

// path gives the place of one of the machine's paths on this system.
func (m machine) path(elem ...string) string {
	return filepath.Join(m.sysroot, filepath.Join(elem...))
}

// name is the inverse of path: what the machine itself calls a place.
func (m machine) name(path string) string {
	if m.sysroot == "" {
		return path
	}
	if rel, err := filepath.Rel(m.sysroot, path); err == nil {
		return filepath.Join("/", rel)
	}
	return path
}

// bootDirs are where boot loaders' folders are mounted.
var bootDirs = []string{"/efi", "/boot/efi", "/boot"}

// bootDir gives the folder from which the boot loader reads, by the machine's
// name of it. There may be several, such as an ESP and an extended boot
// partition. A new pair goes where the kernel has its plain entry; else it is
// the folder that has pairs.
func (m machine) bootDir(named, kver string, forNew bool) (string, error) {
	if named != "" {
		if !filepath.IsAbs(named) {
			return "", fmt.Errorf("boot folder %q is not an absolute path", named)
		}
		info, err := os.Stat(m.path(named))
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("boot folder %s: not a folder", m.path(named))
		}
		return named, err
	}
	plain := func(dir string) bool {
		entries, err := bootentry.PlainEntries(m.path(dir), kver)
		return forNew && err == nil && len(entries) > 0
	}
	for _, has := range []func(dir string) bool{
		plain,
		func(dir string) bool { return isDir(m.path(dir, folder, kver)) },
		func(dir string) bool { return isDir(m.path(dir, "loader/entries")) },
		func(dir string) bool { return dir == "/boot" && isDir(m.path(dir)) },
	} {
		for _, dir := range bootDirs {
			if has(dir) {
				return dir, nil
			}
		}
	}
	return "", &builder.HintedError{Err: errors.New("there is no folder " + m.path("/boot")), Advice: "name the boot loader's folder with --boot-dir"}
}

// lock keeps other calls away from a boot folder until release is called. It
// waits for them. The lock is on the folder itself, so that it leaves no file.
func lock(dir string, waiting func()) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		waiting()
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// readOptional reads a file that need not be there.
func readOptional(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// checkKernelVersion refuses what would lead out of the folders that are made of
// it.
func checkKernelVersion(kver string) error {
	if kver == "" || strings.ContainsAny(kver, "/\x00 \n") || strings.HasPrefix(kver, ".") {
		return fmt.Errorf("bad kernel version %q", kver)
	}
	return nil
}
