package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"path/filepath"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// Source is the full tree: an initramfs archive or a directory.
type Source struct {
	Archive string
	Dir     string
}

// Path is the one that is set.
func (s Source) Path() string {
	if s.Dir != "" {
		return s.Dir
	}
	return s.Archive
}

// SourceAt tells an archive from a directory by looking.
func SourceAt(path string) (Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Source{}, err
	}
	if info.IsDir() {
		return Source{Dir: path}, nil
	}
	return Source{Archive: path}, nil
}

// Image describes an image that was written.
type Image struct {
	erofs.Superblock
	SizeBytes int64
	SHA256    string // of the file; empty if it was not computed
	Devices   []erofs.Device
}

// CreateImage writes the image of a source into the file out, which appears
// complete or not at all. epoch is the earliest time, in seconds, that the
// image may have as its own. The file's digest is not computed: that would be one
// more pass over it.
func CreateImage(ctx context.Context, src Source, out string, p Producer, o ImageOptions, epoch int64) (Image, error) {
	tree, err := readTree(ctx, src, p, o)
	if err != nil {
		return Image{}, err
	}
	defer tree.close()
	files := pendingFiles{dir: filepath.Dir(out)}
	defer files.discard()
	f, err := files.create(filepath.Base(out), privateMode)
	if err != nil {
		return Image{}, err
	}
	image, err := tree.writeImage(ctx, f, epoch)
	if err != nil {
		return Image{}, fmt.Errorf("write image of %s: %w", src.Path(), err)
	}
	return image, files.publish()
}

// fullTree is a source that was read, with its contents in an image writer.
type fullTree struct {
	*cpio.Tree
	writer  ImageWriter
	options ImageOptions
	boot    bootOrder // what every boot reads
	sha256  string    // of the archive
	modules *os.File  // without a name; nil: there are none to be stored otherwise
}

// readTree reads a source once, from its beginning to its end.
func readTree(ctx context.Context, src Source, p Producer, o ImageOptions) (_ *fullTree, err error) {
	w, err := p.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("read %s: %w", src.Path(), err), w.Close())
		}
	}()
	t := &fullTree{writer: w, options: o}
	if src.Dir != "" {
		t.Tree, err = readDir(ctx, src.Dir, w)
		return t, err
	}
	f, err := os.Open(src.Archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if t.Tree, err = cpio.ReadTree(cpio.NewReader(io.TeeReader(f, h)), cancelStore{w, ctx}); err != nil {
		return nil, err
	}
	// The reader may stop before the padding at the end.
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	t.sha256 = sum(h)
	return t, nil
}

// close gives back what the contents occupy. What cannot be removed from the
// folder for temporary files is no reason for a build to fail.
func (t *fullTree) close() {
	_ = t.writer.Close()
	if t.modules != nil {
		_ = t.modules.Close()
	}
}

// writeImage writes the image into the empty file f and reads back what its
// superblock says.
func (t *fullTree) writeImage(ctx context.Context, f *os.File, epoch int64) (Image, error) {
	id, err := t.imageIdentity(ctx, epoch)
	if err != nil {
		return Image{}, err
	}
	if err := t.writer.Write(ctx, f.Name(), t.Tree, t.boot, id); err != nil {
		return Image{}, err
	}
	image, err := readImage(f)
	if err != nil {
		return Image{}, err
	}
	if image.UUID != id.UUID {
		return Image{}, fmt.Errorf("the image has UUID %s, not %s", image.UUID, id.UUID)
	}
	// A program that fakeroot cannot reach, a static one, sees the modes and
	// owners of the temporary files.
	mode, err := image.ReadMode(f, image.RootNid)
	if err != nil {
		return Image{}, err
	}
	if want := t.Root().Mode; mode != want {
		return Image{}, fmt.Errorf("the root of the image has mode %#o, not %#o", mode, want)
	}
	return image, nil
}

// InspectImage reads an image's superblock and digest.
func InspectImage(f *os.File) (Image, error) {
	image, err := readImage(f)
	if err != nil {
		return Image{}, err
	}
	h := sha256.New()
	// What a disk has behind the image belongs to its digest, too.
	if image.SizeBytes, err = io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64)); err != nil {
		return Image{}, err
	}
	image.SHA256 = sum(h)
	return image, nil
}

// readImage reads an image's superblock and checks that all of it is there.
func readImage(f *os.File) (Image, error) {
	sb, err := erofs.ReadSuperblock(f)
	if err != nil {
		return Image{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	n, err := f.Seek(0, io.SeekEnd) // also of a block device
	if err != nil {
		return Image{}, err
	}
	if n < sb.Size() {
		return Image{}, fmt.Errorf("%s has %d of %d bytes: %w", f.Name(), n, sb.Size(), io.ErrUnexpectedEOF)
	}
	image := Image{Superblock: sb, SizeBytes: n}
	if sb.ExtraDevices > 0 {
		files, err := erofs.Open(f, n)
		if err != nil {
			return Image{}, fmt.Errorf("%s: %w", f.Name(), err)
		}
		image.Devices = files.Devices()
	}
	return image, nil
}

// imageIdentity derives the image's identity from all that decides its bytes:
// every path with its attributes and content, the producer and its options, and
// the time that the image has as its own. That time is the newest in the tree,
// or epoch if that is later, so that no file's time has to be clamped to it.
func (t *fullTree) imageIdentity(ctx context.Context, epoch int64) (erofs.Identity, error) {
	id := erofs.Identity{Label: t.options.Label, BuildTime: t.newestTime(epoch)}
	var err error
	if t.boot, err = t.writer.BootFiles().order(t.Tree, t.writer); err != nil {
		return id, err
	}
	if t.options.UUID != nil {
		id.UUID = *t.options.UUID
		return id, nil
	}
	if err := t.writer.Digest(ctx); err != nil {
		return id, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "initoverlayfs image 2\n%s\n%q\n", t.writer.Identity(), id.Label)
	first := make(map[*cpio.Node]string)
	_ = t.Walk(func(path string, n *cpio.Node) error {
		if other, ok := first[n]; ok {
			fmt.Fprintf(h, "%q link %q\n", path, other)
			return nil
		}
		first[n] = path
		fmt.Fprintf(h, "%q %o %d %d %d.%09d", path, n.Mode, n.UID, n.GID, n.MTime, n.MTimeNsec)
		switch n.Type() {
		case cpio.TypeRegular:
			fmt.Fprintf(h, " %d", n.Size)
			if n.Size > 0 {
				fmt.Fprintf(h, " %x", t.writer.Sum(n.Ref))
			}
		case cpio.TypeSymlink:
			fmt.Fprintf(h, " %q", n.Target)
		case cpio.TypeChar, cpio.TypeBlock:
			fmt.Fprintf(h, " %d:%d", n.RDevMajor, n.RDevMinor)
		}
		fmt.Fprintln(h, formatXattrs(n.Xattrs))
		return nil
	})
	_, _ = io.WriteString(h, t.boot.identity(first))
	fmt.Fprintf(h, "%d\n", id.BuildTime)
	copy(id.UUID[:], h.Sum(nil))
	id.UUID[6] = id.UUID[6]&0x0f | 0x80 // version 8, vendor-specific; RFC 9562
	id.UUID[8] = id.UUID[8]&0x3f | 0x80 // variant
	return id, nil
}

// newestTime gives the newest time in the tree, rounded up to seconds, or epoch.
func (t *fullTree) newestTime(epoch int64) int64 {
	newest := epoch
	_ = t.Walk(func(_ string, n *cpio.Node) error {
		if newest = max(newest, n.MTime); newest == n.MTime && n.MTimeNsec > 0 {
			newest++
		}
		return nil
	})
	return newest
}

// cancelStore ends the reading of an archive when its context does.
type cancelStore struct {
	cpio.Store
	ctx context.Context
}

func (s cancelStore) Put(body io.Reader, size int64) (int64, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Store.Put(body, size)
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
