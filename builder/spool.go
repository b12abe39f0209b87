package builder

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"initoverlayfs/initrd/erofs"
)

// spool keeps contents as files of a directory, one each, named by their
// reference.
type spool struct {
	dir  string
	sums []erofs.Sum // by reference
}

// Put stores the size bytes of body. A body that ends before is
// io.ErrUnexpectedEOF.
func (s *spool) Put(body io.Reader, size int64) (int64, error) {
	ref := int64(len(s.sums))
	s.sums = append(s.sums, erofs.Sum{})
	f, err := os.OpenFile(s.path(ref), os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
	if err != nil {
		return 0, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, size))
	if err == nil && n != size {
		err = fmt.Errorf("content has %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	h.Sum(s.sums[ref][:0])
	return ref, err
}

// Add copies the content.
func (s *spool) Add(source io.ReaderAt, size int64) (int64, error) {
	return s.Put(io.NewSectionReader(source, 0, size), size)
}

// Digest has nothing to do: Put did it.
func (s *spool) Digest(context.Context) error { return nil }

// Sum gives the SHA-256 of a content.
func (s *spool) Sum(ref int64) erofs.Sum { return s.sums[ref] }

// Delete drops a content.
func (s *spool) Delete(ref int64) error { return os.Remove(s.path(ref)) }

// Open reads a content.
func (s *spool) Open(ref int64) (io.ReadCloser, error) { return os.Open(s.path(ref)) }

func (s *spool) path(ref int64) string { return filepath.Join(s.dir, strconv.FormatInt(ref, 10)) }
