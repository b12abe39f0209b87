package erofs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"iter"
	"math"
	"slices"
	"sort"
)

// Blob is an extra device: blocks of data that images refer to. It is named by
// its content, so that images may share it.
type Blob struct {
	SHA256 [sha256.Size]byte
	Size   int64 // bytes, a multiple of 4096
	Data   io.ReaderAt
}

// Split says what WriteSplit wrote.
type Split struct {
	Size    int64    // of the image, bytes
	Devices []Device // that it needs, in order
	New     bool     // the last of them is new
}

// WriteSplit writes as Write does, but only metadata and contents that fit
// behind their inodes into out. Chunks of the others are looked for in the
// blobs, which are read once and must be what their names say. What is in none
// of them goes into fresh, a new blob, whose tag is the SHA-256 of what it got.
// The image's device table names only the blobs that it refers to, in their
// order, and the new one last; Linux 5.16.
//
// It needs Options.ChunkBytes. For each block of a blob it takes about 40 bytes
// of memory.
func (w *Writer) WriteSplit(ctx context.Context, out io.WriterAt, fresh io.Writer, existing []Blob, root *Node, id Identity) (Split, error) {
	if w.options.ChunkBytes == 0 {
		return Split{}, errors.New("EROFS writer: without chunks there is nothing to share in blobs")
	}
	b := &blobs{fresh: fresh, digest: sha256.New()}
	for i := range existing {
		if err := b.index(ctx, &existing[i], w.seed); err != nil {
			return Split{}, fmt.Errorf("blob %x: %w", existing[i].SHA256, err)
		}
	}
	b.link()
	size, err := w.write(ctx, &image{out: out, id: id, options: w.options, blobs: b}, root)
	if err != nil {
		return Split{}, err
	}
	return Split{Size: size, Devices: b.used, New: b.newDevice > 0}, nil
}

// Where a device table begins that lies behind the superblock, and how many slots
// it has then.
const (
	deviceTableAt = SuperOffset + superSize
	maxDevices    = (blockSize - deviceTableAt) / deviceSlotSize
)

// blobs are the extra devices of an image in the making.
type blobs struct {
	existing []*Blob
	starts   []int    // of each blob, its first block among those of all
	sums     []uint64 // of all blocks
	first    map[uint64]int32
	next     []int32 // block with the same sum; -1 for none

	devices   []uint16 // of each blob, its number in the image; 0: it is not used
	newDevice uint16
	newBlocks uint64
	fresh     io.Writer
	digest    hash.Hash
	used      []Device
}

// index reads a blob.
func (b *blobs) index(ctx context.Context, blob *Blob, seed maphash.Seed) error {
	if blob.Size%blockSize != 0 || int64(len(b.sums))+blob.Size>>blockBits > math.MaxInt32-1 {
		return fmt.Errorf("it has %d bytes, which are no blocks or too many", blob.Size)
	}
	b.existing = append(b.existing, blob)
	b.starts = append(b.starts, len(b.sums))
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for at := int64(0); at < blob.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), blob.Size-at)]
		if err := readAt(blob.Data, p, at); err != nil {
			return fmt.Errorf("read %d bytes at offset %d: %w", len(p), at, err)
		}
		_, _ = h.Write(p)
		at += int64(len(p))
		for ; len(p) > 0; p = p[blockSize:] {
			b.sums = append(b.sums, maphash.Bytes(seed, p[:blockSize]))
		}
	}
	if got := [sha256.Size]byte(h.Sum(nil)); got != blob.SHA256 {
		return corruptf("its content has SHA-256 %x", got)
	}
	return nil
}

// link makes the lists of blocks with equal sums, the first block first.
func (b *blobs) link() {
	b.first = make(map[uint64]int32)
	b.next = make([]int32, len(b.sums))
	for n := len(b.sums) - 1; n >= 0; n-- {
		b.next[n] = -1
		if other, ok := b.first[b.sums[n]]; ok {
			b.next[n] = other
		}
		b.first[b.sums[n]] = int32(n)
	}
}

// blobOf is the blob of a block.
func (b *blobs) blobOf(n int) int {
	return sort.Search(len(b.starts), func(i int) bool { return b.starts[i] > n }) - 1
}

// candidates gives the places where blocks with these sums lie in one blob.
func (b *blobs) candidates(sums []uint64) iter.Seq[int] {
	return func(yield func(int) bool) {
		n, ok := b.first[sums[0]]
		if !ok {
			return
		}
		for range maxCandidates {
			end := int(n) + len(sums)
			if end <= len(b.sums) && slices.Equal(b.sums[n:end], sums) && b.blobOf(int(n)) == b.blobOf(end-1) && !yield(int(n)) {
				return
			}
			if n = b.next[n]; n < 0 {
				return
			}
		}
	}
}

// reader reads a blob from this block on.
func (b *blobs) reader(n int) io.ReaderAt {
	i := b.blobOf(n)
	at := int64(n-b.starts[i]) << blockBits
	return io.NewSectionReader(b.existing[i].Data, at, b.existing[i].Size-at)
}

// ref is how the image names a block of a blob that it uses.
func (b *blobs) ref(n int) chunkRef {
	i := b.blobOf(n)
	return chunkRef{b.devices[i], uint32(n - b.starts[i])}
}

// use numbers the blobs that these contents need.
func (b *blobs) use(contents []*planData) error {
	b.devices = make([]uint16, len(b.existing))
	isNew := false
	for _, d := range contents {
		for _, id := range d.chunks.ids {
			if id < holeChunk {
				b.devices[b.blobOf(int(blobChunk-id))] = 1
			}
			isNew = isNew || id >= 0
		}
	}
	for i, blob := range b.existing {
		if b.devices[i] > 0 {
			b.used = append(b.used, Device{Tag: hex.EncodeToString(blob.SHA256[:]), Blocks: uint64(blob.Size) >> blockBits})
			b.devices[i] = uint16(len(b.used))
		}
	}
	if isNew {
		b.newDevice = uint16(len(b.used) + 1)
	}
	if n := max(len(b.used), int(b.newDevice)); n > maxDevices {
		return fmt.Errorf("EROFS writer: the image would need %d blobs, more than %d", n, maxDevices)
	}
	return nil
}

// append adds blocks to the new blob.
func (b *blobs) append(p []byte) error {
	if b.newBlocks+uint64(len(p))>>blockBits > maxBlocks {
		return errors.New("blob is larger than 16 TiB")
	}
	if _, err := b.fresh.Write(p); err != nil {
		return fmt.Errorf("write block %d of a blob: %w", b.newBlocks, err)
	}
	_, _ = b.digest.Write(p)
	b.newBlocks += uint64(len(p)) >> blockBits
	return nil
}

// table gives the device table, once all data is written.
func (b *blobs) table() (p []byte) {
	if b.newDevice > 0 {
		b.used = append(b.used, Device{Tag: hex.EncodeToString(b.digest.Sum(nil)), Blocks: b.newBlocks})
	}
	for _, d := range b.used {
		slot := diskDeviceSlot{Blocks: uint32(d.Blocks)}
		copy(slot.Tag[:], d.Tag)
		p = encode(p, &slot)
	}
	return p
}
