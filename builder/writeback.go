package builder

import (
	"os"

	"golang.org/x/sys/unix"
)

// writebackBytes is how much is written before the disk is told to begin.
const writebackBytes = 8 << 20

// writebackFile has the disk write while the image is still being made, so that
// little is left for the fsync at the end. It is not for concurrent use.
type writebackFile struct {
	*os.File
	start, end int64 // of what the disk was not told of
}

func (f *writebackFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if off != f.end {
		f.start = off
	}
	f.end = off + int64(n)
	if f.end-f.start >= writebackBytes {
		// Where this does not work, fsync has more to do.
		_ = unix.SyncFileRange(int(f.Fd()), f.start, f.end-f.start, unix.SYNC_FILE_RANGE_WRITE)
		f.start = f.end
	}
	return n, err
}
