package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// Filling is what a tree is made larger with.
type Filling struct {
	Bytes int64
	// Random cannot be compressed; otherwise it is text of which one part in
	// three or so is left.
	Random bool
}

// ParseFilling reads a size in MiB or GiB, as 0, 64M or 1G, of random bytes, or
// with -text behind it of text.
func ParseFilling(s string) (Filling, error) {
	number, text := strings.CutSuffix(s, "-text")
	unit := int64(1)
	switch {
	case strings.HasSuffix(number, "M"):
		number, unit = strings.TrimSuffix(number, "M"), 1<<20
	case strings.HasSuffix(number, "G"):
		number, unit = strings.TrimSuffix(number, "G"), 1<<30
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n < 0 || unit == 1 && n != 0 || n*unit > 1<<34 {
		return Filling{}, fmt.Errorf("bad size %q; it is 0, or a number with M or G, of 16G at most, and perhaps -text", s)
	}
	return Filling{Bytes: n * unit, Random: !text && n > 0}, nil
}

// fillingPath is where it lies. Nothing reads it.
const fillingPath = "usr/lib/initoverlayfs-bench"

// fillingFile is the size of its files: those of drivers and firmware are of
// this kind, and a single one of a gigabyte would not be.
const fillingFile = 4 << 20

// repack writes the initramfs at source as one archive in the given compression,
// behind the microcode that has to stay in front. The filling lies behind
// what the archive has.
func repack(ctx context.Context, source, out string, format compress.Format, fill Filling) (err error) {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	early, err := builder.EarlySegment(in, 0)
	if err != nil {
		return fmt.Errorf("read %s: %w", source, err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(out))
		}
	}()
	if _, err := f.Write(early); err != nil {
		return err
	}
	packed, err := compress.NewWriter(format, f)
	if err != nil {
		return err
	}
	w := cpio.NewWriter(packed)
	if err := copyRecords(ctx, w, cpio.NewReader(in), len(early) > 0); err != nil {
		return fmt.Errorf("read %s: %w", source, err)
	}
	if err := writeFiles(w, fill.files()); err != nil {
		return err
	}
	return errors.Join(w.Close(), packed.Close())
}

// copyRecords copies every record that is not in the early segment. Inode numbers
// of segments are apart from each other, as the kernel keeps them.
func copyRecords(ctx context.Context, w *cpio.Writer, r *cpio.Reader, early bool) error {
	const perSegment = 1 << 24
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if early && r.Format() == compress.None && builder.IsEarly(h.Name) {
			continue
		}
		h.Ino += uint32(h.Segment) * perSegment
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}

// File is a file that is added to a tree.
type File struct {
	Path string
	Mode uint32 // with the type bits
	Size int64
	Body io.Reader
}

func (f Filling) files() []File {
	if f.Bytes == 0 {
		return nil
	}
	files := []File{{Path: fillingPath, Mode: cpio.TypeDir | 0o755}}
	var seed [32]byte
	random := rand.NewChaCha8(seed)
	for left, i := f.Bytes, 0; left > 0; i++ {
		n := min(left, fillingFile)
		var body io.Reader = random
		if !f.Random {
			body = &halfRandom{random: random}
		}
		files = append(files, File{
			Path: filepath.Join(fillingPath, fmt.Sprintf("%05d", i)), Mode: cpio.TypeRegular | 0o644,
			Size: n, Body: io.LimitReader(body, n),
		})
		left -= n
	}
	return files
}

// halfRandom repeats bytes: machine code and text are to be had at a third.
type halfRandom struct {
	random io.Reader
	word   [64]byte
	left   []byte
	times  int
}

func (h *halfRandom) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(h.left) == 0 {
			if h.times == 0 {
				if _, err := io.ReadFull(h.random, h.word[:]); err != nil {
					return n, err
				}
				h.times = 4
			}
			h.times--
			h.left = h.word[:]
		}
		k := copy(p[n:], h.left)
		h.left = h.left[k:]
		n += k
	}
	return n, nil
}

func writeFiles(w *cpio.Writer, files []File) error {
	// Behind those of every segment that there may be.
	const firstIno = 0xf0000000
	for i, f := range files {
		h := &cpio.Header{Name: f.Path, Ino: firstIno + uint32(i), Mode: f.Mode, NLink: 1, Size: f.Size}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if f.Size == 0 {
			continue
		}
		if n, err := io.Copy(w, f.Body); err != nil || n != f.Size {
			return fmt.Errorf("add %s: %d of %d bytes: %w", f.Path, n, f.Size, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return nil
}
