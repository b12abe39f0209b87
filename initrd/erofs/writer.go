package erofs

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"runtime"
	"slices"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/lz4hc"
)

// The writer makes images of one kind: blocks of 4 KiB, metadata behind the
// data.
const (
	blockBits = 12
	blockSize = 1 << blockBits

	// hugeSize is what one huge mapping covers on the machines that have DAX.
	hugeSize = 2 << 20

	// maxWorkers bounds the memory for encoders.
	maxWorkers = 8
)

// Options say how an image is laid out.
type Options struct {
	// Compress stores contents as LZ4 blocks where that is smaller.
	Compress bool
	Level    lz4hc.Level
	// PclusterBytes is the size of the largest physical cluster, a power of two
	// from 4096 to 1 MiB. It is what the kernel decompresses to read a byte.
	PclusterBytes int
	// Ztailpacking stores the last physical cluster of a file in the metadata
	// if it is smaller than a block; Linux 5.17.
	Ztailpacking bool
	// PackBytes packs contents up to this size together, as fragments of one
	// hidden file: files share clusters then, which are read as a whole; Linux
	// 6.1.
	PackBytes int64
	// Dedupe stores equal contents once, and with Compress also equal parts of
	// contents from about 32 KiB on; Linux 6.1, before which a cluster belonged to
	// one file.
	Dedupe bool
	// DAX lays contents out so that they can be mapped: uncompressed, in blocks
	// of their own, those of 2 MiB and more aligned to 2 MiB. Without DAX and
	// Compress, the tail of a content lies behind its inode.
	DAX bool
	// Holes stores a content that is nearly all zeros as chunks, of which those
	// of zeros take nothing but a place in the map; Linux 5.15. The others are
	// not compressed. It is done where the size is clear before encoding: see
	// sparse.
	Holes bool
	// ChunkBytes stores equal chunks of contents once, and implies Holes. It is
	// a power of two from 4096 to 1 GiB; 0 is off. Without Compress only; Linux
	// 5.15. A content without an equal or a zero chunk is laid out as without.
	ChunkBytes int
	// Workers is how many contents and pieces of contents are encoded at once;
	// 0 is one for each processor, 8 at most. The image does not depend on it.
	Workers int
}

func (o Options) check() error {
	n := o.PclusterBytes
	switch {
	case o.DAX && o.Compress:
		return errors.New("compressed contents cannot be mapped with DAX")
	case o.Compress && (n < blockSize || n > maxPclusterSize || n&(n-1) != 0):
		return fmt.Errorf("pcluster size %d is not a power of two from %d to %d", n, blockSize, maxPclusterSize)
	case !o.Compress && (o.Ztailpacking || o.PackBytes > 0 || o.Dedupe):
		return errors.New("without compression there are no clusters to pack or share")
	case o.Compress && o.ChunkBytes != 0:
		return errors.New("compressed contents have no chunks")
	case o.ChunkBytes != 0 && (o.ChunkBytes < blockSize || o.ChunkBytes > 1<<maxChunkBits || o.ChunkBytes&(o.ChunkBytes-1) != 0):
		return fmt.Errorf("chunk size %d is not a power of two from %d to %d", o.ChunkBytes, blockSize, 1<<maxChunkBits)
	}
	return nil
}

// Spool keeps contents until the image is written. A file that has no name any
// more will do.
type Spool interface {
	io.ReaderAt
	io.WriterAt
}

// Writer makes an image. Contents are put into the spool as they are, in any
// order and while the source is still being read; Write then encodes those that
// the tree names, in the tree's order. So the image depends neither on the order
// of the source nor on what was put and deleted again, and each content is read
// from its source once. The price is a spool as large as all contents put, less
// their blocks of zeros; those that stay where they are until then are added
// instead.
//
// Memory is the tree's, 12 bytes for each physical cluster, and for each worker
// about 8 MiB and an encoder; for parts that are stored once, up to 48 MiB, and
// 300 bytes for each small content of a name that others have; for chunks that are shared, also 8 bytes for each
// block of all contents put, and about 60 for each different chunk.
type Writer struct {
	spool    Spool
	options  Options
	contents []content // by reference
	end      int64     // of what is in the spool
	buf      []byte
	seed     maphash.Seed
}

// NewWriter starts an image. The spool is empty.
func NewWriter(spool Spool, o Options) (*Writer, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("EROFS writer: %w", err)
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	o.Workers = min(max(o.Workers, 1), maxWorkers)
	return &Writer{spool: spool, options: o, buf: make([]byte, 256<<10), seed: maphash.MakeSeed()}, nil
}

// Put takes the size bytes of body and gives the reference for Node.Ref. A body
// that ends before is io.ErrUnexpectedEOF.
func (w *Writer) Put(body io.Reader, size int64) (ref int64, err error) {
	s := &spooled{spool: w.spool, size: size}
	for at := int64(0); at < size; {
		p := w.buf[:min(int64(len(w.buf)), size-at)]
		n, err := io.ReadFull(body, p)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("content has %d of %d bytes: %w", at+int64(n), size, io.ErrUnexpectedEOF)
		}
		if err == nil {
			err = w.keep(s, p, at)
		}
		if err != nil {
			return 0, err
		}
		at += int64(n)
	}
	c := content{source: s, size: size}
	if len(s.runs) == 1 && s.runs[0].end-s.runs[0].start == size {
		c.source, c.offset = w.spool, s.runs[0].spool
	}
	w.contents = append(w.contents, c)
	return int64(len(w.contents) - 1), nil
}

// Add takes a content that stays in source until Write is done. The source ends
// behind its size bytes.
func (w *Writer) Add(source io.ReaderAt, size int64) (ref int64) {
	w.contents = append(w.contents, content{source: source, size: size, alone: true})
	return int64(len(w.contents) - 1)
}

// Delete drops a content. Its place in the spool is not used again.
func (w *Writer) Delete(ref int64) error {
	c, err := w.content(ref)
	if err == nil {
		*c = content{size: -1}
	}
	return err
}

// Open reads back a content.
func (w *Writer) Open(ref int64) (io.ReadCloser, error) {
	c, err := w.content(ref)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(c.reader()), nil
}

func (w *Writer) content(ref int64) (*content, error) {
	if ref < 0 || ref >= int64(len(w.contents)) || w.contents[ref].size < 0 {
		return nil, fmt.Errorf("there is no content %d", ref)
	}
	return &w.contents[ref], nil
}

// MaxLabel is the size of the place for a label, in bytes.
const MaxLabel = len(diskSuper{}.VolumeName)

// Identity is what tells an image from others. Inodes with the build time as
// their own are smaller.
type Identity struct {
	UUID          bootconf.UUID
	Label         string // of MaxLabel bytes at most
	BuildTime     int64  // seconds since 1970
	BuildTimeNsec uint32
}

// Write writes the image of the tree below root into out, which is empty, and
// gives its size in bytes, a multiple of 4096. What lies between the writes is
// zero. The superblock comes last: a part of an image is no image.
//
// Errors name the path they are about.
func (w *Writer) Write(ctx context.Context, out io.WriterAt, root *Node, id Identity) (int64, error) {
	return w.write(ctx, &image{out: out, id: id, options: w.options}, root)
}

func (w *Writer) write(ctx context.Context, im *image, root *Node) (int64, error) {
	id := im.id
	if len(id.Label) > MaxLabel {
		return 0, fmt.Errorf("EROFS label %q is longer than %d bytes", id.Label, MaxLabel)
	}
	if w.options.Dedupe || w.options.holes() {
		if err := w.Digest(ctx); err != nil {
			return 0, fmt.Errorf("EROFS writer: %w", err)
		}
	}
	p, err := w.plan(root, id)
	if err != nil {
		return 0, fmt.Errorf("EROFS writer: %w", err)
	}
	if w.options.Compress && w.options.Dedupe {
		// What is not compressed has no clusters to refer to.
		compressed := slices.DeleteFunc(slices.Clone(p.contents), func(d *planData) bool { return d.boot })
		if err := findCopies(ctx, compressed, w.options.Workers); err != nil {
			return 0, fmt.Errorf("EROFS writer: %w", err)
		}
		for _, d := range compressed {
			p.shared = p.shared || len(d.copies) > 0
		}
	}
	im.end = 1
	if err := im.writeChunked(ctx, p); err != nil {
		return 0, err
	}
	if err := im.writeContents(ctx, p.contents); err != nil {
		return 0, err
	}
	if err := im.writeMetadata(p); err != nil {
		return 0, err
	}
	return int64(im.end) << blockBits, im.writeSuperblock(p)
}

// image is the output of a Write.
type image struct {
	out     io.WriterAt
	id      Identity
	options Options
	end     uint64 // first block that is not taken; block 0 is the superblock's
	blobs   *blobs // nil: the image has all data

	metaBlock  uint64
	xattrBlock uint64
}

// maxBlocks is as far as block addresses of 32 bits reach; the last is no address.
const maxBlocks = nullAddr32

// write writes p at the beginning of a block.
func (im *image) write(p []byte, block uint64) error {
	if block+uint64(len(p)+blockSize-1)>>blockBits > maxBlocks {
		return errors.New("image is larger than 16 TiB")
	}
	if _, err := im.out.WriteAt(p, int64(block)<<blockBits); err != nil {
		return fmt.Errorf("write EROFS block %d: %w", block, err)
	}
	return nil
}

// append writes p behind what is there, filled up to whole blocks.
func (im *image) append(p []byte) error {
	if err := im.write(p, im.end); err != nil {
		return err
	}
	im.end += uint64(len(p)+blockSize-1) >> blockBits
	return nil
}
