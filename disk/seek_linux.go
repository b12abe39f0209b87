package disk

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// seekData is SEEK_DATA of lseek(2).
const seekData = 3

// dataAt gives the first offset from at on that is not in a hole, io.EOF if
// there is none.
func dataAt(f *os.File, at int64) (int64, error) {
	begin, err := f.Seek(at, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return 0, io.EOF
	case errors.Is(err, syscall.EINVAL): // the filesystem knows no holes
		return at, nil
	}
	return begin, err
}
