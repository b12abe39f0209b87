package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const workPattern = "initoverlayfs-install-"

// makeWork makes the folder in which a pair is made, and gives the function that
// removes it. The folder is locked until then, so that those of runs that were
// killed can be told from those in use; the former are removed.
func makeWork(parent string) (dir string, remove func(), err error) {
	if err := removeStale(parent); err != nil {
		return "", nil, err
	}
	for {
		if dir, err = os.MkdirTemp(parent, workPattern); err != nil {
			return "", nil, err
		}
		f, err := lockFolder(dir)
		if err != nil {
			return "", nil, err
		}
		if f != nil {
			return dir, func() {
				_ = os.RemoveAll(dir)
				_ = f.Close()
			}, nil
		}
		// Another run took it for a stale one before it was locked.
	}
}

// removeStale removes the work folders of this user that nobody has locked.
func removeStale(parent string) error {
	found, err := filepath.Glob(filepath.Join(escapeGlob(parent), workPattern+"*"))
	if err != nil {
		return err
	}
	for _, dir := range found {
		// Everybody may write into the folder of temporary files.
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		f, err := lockFolder(dir)
		if err != nil {
			return err
		}
		if f != nil {
			_ = os.RemoveAll(dir) // what stays is in nobody's way
			_ = f.Close()
		}
	}
	return nil
}

// lockFolder locks a folder, nil if somebody else has or it is gone.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && isDir(dir) { // it may have been removed before it was locked
		return f, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("lock %s: %w", dir, err)
	}
	return nil, errors.Join(err, f.Close())
}
