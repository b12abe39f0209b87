package erofs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/initrd/erofs"
)

// blobStore is a folder of blobs in memory.
type blobStore [][]byte

func (s blobStore) blobs() []erofs.Blob {
	var list []erofs.Blob
	for _, b := range s {
		list = append(list, erofs.Blob{SHA256: sha256.Sum256(b), Size: int64(len(b)), Data: bytes.NewReader(b)})
	}
	return list
}

// split writes the tree with the blobs that are there. used are those of the
// image.
func (s blobStore) split(t *testing.T, tr *testTree, o erofs.Options) (image []byte, used [][]byte, result erofs.Split) {
	t.Helper()
	var out memory
	var fresh bytes.Buffer
	result, err := tr.writer(t, o).WriteSplit(context.Background(), &out, &fresh, s.blobs(), tr.root, testIdentity)
	if err != nil {
		t.Fatal(err)
	}
	all := append(slices.Clone(s), fresh.Bytes())
	for i, d := range result.Devices {
		n := slices.IndexFunc(all, func(b []byte) bool {
			sum := sha256.Sum256(b)
			return hex.EncodeToString(sum[:]) == d.Tag
		})
		if n < 0 {
			t.Fatalf("there is no blob %s", d.Tag)
		}
		if got := uint64(len(all[n])); got != d.Blocks*blockSize {
			t.Errorf("blob %d has %d bytes, the device table says %d blocks", i, got, d.Blocks)
		}
		if isNew := n == len(s); isNew != (result.New && i == len(result.Devices)-1) {
			t.Errorf("blob %d of %d is new: %v", i, len(result.Devices), isNew)
		}
		used = append(used, all[n])
	}
	if !result.New && fresh.Len() > 0 {
		t.Errorf("%d bytes are written into a new blob that no one needs", fresh.Len())
	}
	return append(out.b, make([]byte, result.Size-int64(len(out.b)))...), used, result
}

var splitOptions = map[string]erofs.Options{
	"4k":  {ChunkBytes: 4 << 10},
	"64k": {ChunkBytes: 64 << 10},
	"1m":  {ChunkBytes: 1 << 20},
	"dax": {ChunkBytes: 16 << 10, DAX: true},
}

func TestWriterSplit(t *testing.T) {
	for _, test := range []struct {
		name, layout string
		tree         func() *testTree
		blobs        int
	}{
		{"shared", "4k", sharedTree, 3},
		{"shared", "64k", sharedTree, 2}, // the other one's part lies at odd places
		{"shared", "1m", sharedTree, 2},
		{"shared", "dax", sharedTree, 2},
		{"sparse", "64k", sparseTree, 1},
		{"sizes", "4k", trees["sizes"], 2}, // a file begins as one of the others
		{"xattrs", "1m", trees["xattrs"], 1},
		{"empty", "4k", newTestTree, 0},
	} {
		t.Run(test.name+"/"+test.layout, func(t *testing.T) {
			t.Parallel()
			// A part of the tree is in two blobs that other images brought.
			var store blobStore
			for _, seed := range []uint64{1, 3} {
				other := newTestTree()
				other.file("a", random(seed, 1024<<10))
				other.file("b", random(seed+100, 100_000))
				_, used, _ := store.split(t, other, splitOptions["4k"])
				store = append(store, used[len(used)-1])
			}
			tr := test.tree()
			image, used, _ := store.split(t, tr, splitOptions[test.layout])
			want := tr.infos()
			if len(used) != test.blobs {
				t.Errorf("%d blobs are used, want %d", len(used), test.blobs)
			}
			checkReader(t, image, want, used...)
			for _, u := range allUtils(t) {
				t.Run("fsck "+u.version, func(t *testing.T) {
					if tr.endsInHoles() {
						checkFsckOnly(t, u, image, used...)
						return
					}
					checkFsck(t, u, image, want, used...)
				})
			}
			t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want, used...) })
		})
	}
}

// Two trees that have most in common share what they have.
func TestWriterSplitShares(t *testing.T) {
	first, second := newTestTree(), newTestTree()
	const files, size = 20, 50_000
	for i := range files {
		first.file(fmt.Sprintf("dir/%d", i), random(uint64(i), size))
		second.file(fmt.Sprintf("other/%d", i), random(uint64(i+1), size))
	}
	for layout, o := range splitOptions {
		_, used1, result1 := blobStore{}.split(t, first, o)
		if !result1.New || len(used1) != 1 {
			t.Fatalf("%s: first image has %d blobs", layout, len(used1))
		}
		image2, used2, _ := blobStore(used1).split(t, second, o)
		if len(used2) != 2 || len(used2[1]) != (size+blockSize-1)/blockSize*blockSize {
			t.Errorf("%s: second image has %d blobs, want one of one file", layout, len(used2))
		}
		if len(image2) > 4*blockSize {
			t.Errorf("%s: second image has %d bytes", layout, len(image2))
		}
		_, again, result := blobStore(used2).split(t, second, o)
		if result.New {
			t.Errorf("%s: with all blobs there, a new one is made", layout)
		}
		if !slices.EqualFunc(used2, again, bytes.Equal) {
			t.Errorf("%s: with all blobs there, others are used", layout)
		}
		_, none, _ := blobStore(used2).split(t, newTestTree(), o)
		if len(none) != 0 {
			t.Errorf("%s: an empty tree has %d blobs", layout, len(none))
		}
	}
}

func TestWriterSplitDeterministic(t *testing.T) {
	store := blobStore{random(1, 1<<20), random(6, 2*blockSize)}
	for layout, o := range splitOptions {
		o.Workers = 1
		want, wantUsed, _ := store.split(t, sharedTree(), o)
		for _, workers := range []int{1, 4} {
			o.Workers = workers
			got, used, _ := store.split(t, sharedTree(), o)
			if !bytes.Equal(got, want) || !slices.EqualFunc(used, wantUsed, bytes.Equal) {
				t.Errorf("%s: with %d workers the image differs", layout, workers)
			}
		}
	}
}

func TestWriterSplitRefuses(t *testing.T) {
	block := random(1, blockSize)
	blob := erofs.Blob{SHA256: sha256.Sum256(block), Size: blockSize, Data: bytes.NewReader(block)}
	forged, odd, short := blob, blob, blob
	forged.Data = bytes.NewReader(random(2, blockSize))
	odd.Size--
	short.Data = bytes.NewReader(block[1:])
	many := newTestTree()
	var store blobStore
	for i := range 24 {
		store = append(store, random(uint64(i), 2*blockSize))
		many.file(fmt.Sprint(i), store[i])
	}
	tree := newTestTree()
	tree.file("file", random(3, 10_000))
	failure := errors.New("no more")
	for _, test := range []struct {
		name  string
		o     erofs.Options
		tree  *testTree
		fresh io.Writer
		blobs []erofs.Blob
		want  string
	}{
		{"no chunks", erofs.Options{}, tree, &bytes.Buffer{}, nil, "without chunks"},
		{"forged", erofs.Options{ChunkBytes: 4096}, tree, &bytes.Buffer{}, []erofs.Blob{forged}, "has SHA-256"},
		{"odd", erofs.Options{ChunkBytes: 4096}, tree, &bytes.Buffer{}, []erofs.Blob{odd}, "4095 bytes"},
		{"short", erofs.Options{ChunkBytes: 4096}, tree, &bytes.Buffer{}, []erofs.Blob{short}, io.ErrUnexpectedEOF.Error()},
		{"many", erofs.Options{ChunkBytes: 4096}, many, &bytes.Buffer{}, store.blobs(), "24 blobs, more than 23"},
		{"full", erofs.Options{ChunkBytes: 4096}, tree, io.NewOffsetWriter(&failingFile{from: 100, err: failure}, 0), nil, "/file: write block 0 of a blob: no more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out memory
			_, err := test.tree.writer(t, test.o).WriteSplit(context.Background(), &out, test.fresh, test.blobs, test.tree.root, testIdentity)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if _, err := erofs.ReadSuperblock(&out); err == nil {
				t.Error("there is an image")
			}
		})
	}
	store = store[:23]
	delete(many.root.Children, "23")
	if _, used, _ := store.split(t, many, erofs.Options{ChunkBytes: 4096}); len(used) != 23 {
		t.Errorf("%d blobs are used, want 23", len(used))
	}
}

// What an image with chunks and blobs must not have: data of two files at one
// place, other than as chunks of both.
func TestCheckChunkOverlap(t *testing.T) {
	tr := newTestTree()
	tr.file("a", random(1, 3*blockSize))
	tr.file("b", random(1, 3*blockSize))
	tr.file("flat", random(2, 3*blockSize))
	image := tr.write(t, erofs.Options{ChunkBytes: 4096})
	if err := erofs.Check(bytes.NewReader(image), int64(len(image))).Err(); err != nil {
		t.Fatal(err)
	}
	f, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	flat, err := f.Inode("flat")
	if err != nil {
		t.Fatal(err)
	}
	if flat.Layout == erofs.LayoutChunkBased {
		t.Fatal("a content without equal chunks has chunks")
	}
	// A compact inode's block address is at byte 16.
	at := int64(f.Super.MetaBlkAddr)*blockSize + int64(flat.NID)*32 + 16
	image[at]--
	err = erofs.Check(bytes.NewReader(image), int64(len(image))).Err()
	if err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("error %v, want one about an overlap", err)
	}
}
