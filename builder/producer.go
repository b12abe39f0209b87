package builder

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// Producer makes EROFS images.
type Producer interface {
	// Begin starts an image. An error says what the producer needs and has not,
	// or what of the options it cannot do or the kernel could not read.
	Begin(ctx context.Context, o ImageOptions) (ImageWriter, error)
}

// ImageWriter is one image in the making. The contents of regular files are put
// into it while the source is still being read, so that a producer may compress
// them then or spool them; the tree follows when it is complete.
type ImageWriter interface {
	cpio.Store
	// Add takes a content that stays in source, with its size bytes, until
	// Write is done.
	Add(source io.ReaderAt, size int64) (ref int64, err error)
	// Digest computes the digests of the contents, which Sum then gives.
	Digest(ctx context.Context) error
	Sum(ref int64) erofs.Sum
	// Identity names all besides the tree that decides over the image's bytes:
	// the program that lays them out, and its options.
	Identity() string
	// BootFiles are those that the writer can lay out by themselves.
	BootFiles() BootFiles
	// Open reads back a content that was put and not deleted, before Write.
	Open(ref int64) (io.ReadCloser, error)
	// Write writes the image of tree into the empty file at path. It may take the
	// tree apart. boot has what BootFiles stands for.
	Write(ctx context.Context, path string, tree *cpio.Tree, boot bootOrder, id erofs.Identity) error
	// Close gives back what the writer occupies, whether Write ran or not.
	Close() error
}

// ImageOptions say how the contents are laid out.
type ImageOptions struct {
	Compress      ImageCompression
	PclusterBytes int // largest compressed cluster
	Features      ImageFeatures
	BootFiles     BootFiles
	// Kernel is the oldest that has to read the image; zero: BaselineKernel.
	Kernel erofs.KernelVersion
	// UUID of the image; nil: it is derived from what goes into the image.
	UUID *bootconf.UUID
	// Label has at most erofs.MaxLabel bytes.
	Label string
	// BlobDir is a folder of blobs: contents go there and not into the image,
	// unless a blob has them already. Empty: the image has its contents itself.
	BlobDir string
	TempDir string // for what is spooled; empty: os.TempDir
}

// DefaultImageOptions are those of small images that are still quick to read.
func DefaultImageOptions() ImageOptions {
	return ImageOptions{Compress: ImageCompression{"lz4hc", 12}, PclusterBytes: 64 << 10}
}

// ImageCompression is an algorithm and its level. The zero value stores
// contents as they are, block-aligned, so that DAX can map them.
type ImageCompression struct {
	Algorithm string // lz4hc, lz4; empty: none
	Level     int    // of lz4hc
}

// DAX reports whether an image laid out this way can be mounted with dax=always.
func (c ImageCompression) DAX() bool { return c.Algorithm == "" }

// String gives the form that ParseImageCompression reads.
func (c ImageCompression) String() string {
	switch {
	case c.Algorithm == "":
		return "none"
	case c.Level == 0:
		return c.Algorithm
	}
	return c.Algorithm + "," + strconv.Itoa(c.Level)
}

// ParseImageCompression reads `lz4hc[,LEVEL]`, `lz4` or `none`.
func ParseImageCompression(s string) (ImageCompression, error) {
	algorithm, level, hasLevel := strings.Cut(s, ",")
	switch {
	case s == "none":
		return ImageCompression{}, nil
	case s == "lz4":
		return ImageCompression{Algorithm: "lz4"}, nil
	case algorithm == "lz4hc" && !hasLevel:
		return DefaultImageOptions().Compress, nil
	case algorithm == "lz4hc":
		if n, err := strconv.Atoi(level); err == nil && n >= 1 && n <= 12 {
			return ImageCompression{"lz4hc", n}, nil
		}
	}
	return ImageCompression{}, fmt.Errorf("bad image compression %q; it is lz4hc[,1-12], lz4 or none", s)
}

// Check refuses what no producer could lay out.
func (o ImageOptions) Check() error {
	n := o.PclusterBytes
	if n < 4096 || n > 1<<20 || n&(n-1) != 0 {
		return fmt.Errorf("bad pcluster size %d; it is a power of two from 4096 to 1048576", n)
	}
	if len(o.Label) > erofs.MaxLabel || strings.ContainsRune(o.Label, 0) {
		return fmt.Errorf("bad label %q; it has at most %d bytes, none of them zero", o.Label, erofs.MaxLabel)
	}
	return nil
}

// ProducerNamed gives the producer for the value of --mkfs.
func ProducerNamed(name string) (Producer, error) {
	switch name {
	case "mkfs.erofs":
		return mkfsErofs{}, nil
	case "native":
		return native{}, nil
	}
	return nil, fmt.Errorf("unknown image producer %q; it is native or mkfs.erofs", name)
}
