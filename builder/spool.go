package builder

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// spool keeps contents as files of a directory, one each, named by their
// reference.
type spool struct {
	dir  string
	next int64
}

// Put stores the size bytes of body. A body that ends before is
// io.ErrUnexpectedEOF.
func (s *spool) Put(body io.Reader, size int64) (int64, error) {
	ref := s.next
	s.next++
	f, err := os.OpenFile(s.path(ref), os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, io.LimitReader(body, size))
	if err == nil && n != size {
		err = fmt.Errorf("content has %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return ref, err
}

// Delete drops a content.
func (s *spool) Delete(ref int64) error { return os.Remove(s.path(ref)) }

// Open reads a content.
func (s *spool) Open(ref int64) (io.ReadCloser, error) { return os.Open(s.path(ref)) }

func (s *spool) path(ref int64) string { return filepath.Join(s.dir, strconv.FormatInt(ref, 10)) }
