package erofs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Sum is the digest of a content. Up to 4 MiB it is the SHA-256 of the bytes;
// a larger one is cut into pieces of 4 MiB, so that they can be read side by
// side, and its digest is the SHA-256 of theirs.
type Sum [sha256.Size]byte

// content is a stretch of the spool or of a source of its own.
type content struct {
	source       io.ReaderAt
	offset, size int64 // size -1: deleted
	sum          Sum
	digested     bool
	alone        bool // in its source
	blockMap          // where contents may have chunks
}

// at reads the content, from offset 0 on.
func (c *content) at() io.ReaderAt {
	if c.alone {
		return c.source
	}
	return c.reader()
}

func (c *content) reader() *io.SectionReader { return io.NewSectionReader(c.source, c.offset, c.size) }

// Digest computes the digests of all contents that have none yet, and finds their
// blocks of zeros. It reads them with as many workers as Write has.
func (w *Writer) Digest(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan digestJob, 64)
	var running sync.WaitGroup
	for range w.options.Workers {
		running.Go(func() {
			buf := make([]byte, digestBuffer)
			for j := range todo {
				if err := w.digest(&j, buf); err != nil {
					cancel(fmt.Errorf("read content %d: %w", j.ref, err))
				}
			}
		})
	}
	for ref := range w.contents {
		c := &w.contents[ref]
		if c.digested || c.size < 0 {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if c.size <= pieceSize {
			todo <- digestJob{ref: ref, content: c, size: c.size, sum: &c.sum, blocks: &c.blockMap}
			continue
		}
		l := &largeSum{sum: &c.sum, pieces: make([]pieceSum, (c.size+pieceSize-1)/pieceSize)}
		l.missing.Store(int64(len(l.pieces)))
		for i := range l.pieces {
			offset := int64(i) * pieceSize
			todo <- digestJob{ref, c, offset, min(pieceSize, c.size-offset), &l.pieces[i].Sum, &l.pieces[i].blockMap, l}
		}
	}
	close(todo)
	running.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for ref := range w.contents {
		w.contents[ref].digested = true
	}
	return nil
}

// Sum gives the digest of a content, after Digest.
func (w *Writer) Sum(ref int64) Sum { return w.contents[ref].sum }

// digestBuffer stays in a processor's cache.
const digestBuffer = 128 << 10

// digestJob is a piece of a content.
type digestJob struct {
	ref int
	*content
	at     int64 // in the content
	size   int64
	sum    *Sum
	blocks *blockMap
	large  *largeSum // of which it is a piece; nil: it is all
}

type largeSum struct {
	sum     *Sum
	pieces  []pieceSum
	missing atomic.Int64
}

type pieceSum struct {
	Sum
	blockMap
}

func (w *Writer) digest(j *digestJob, buf []byte) error {
	h := sha256.New()
	for at, end := j.at, j.at+j.size; at < end; {
		p := buf[:min(int64(len(buf)), end-at)]
		if err := readAt(j.source, p, j.offset+at); err != nil {
			return err
		}
		_, _ = h.Write(p)
		if w.options.holes() {
			j.blocks.add(p, at, w.options, w.seed)
		}
		at += int64(len(p))
	}
	h.Sum(j.sum[:0])
	if j.large != nil && j.large.missing.Add(-1) == 0 {
		h.Reset()
		for i := range j.large.pieces {
			_, _ = h.Write(j.large.pieces[i].Sum[:])
			j.join(&j.large.pieces[i].blockMap)
		}
		h.Sum(j.large.sum[:0])
	}
	return nil
}
