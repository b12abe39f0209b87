package erofs_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// node gives the node at a path.
func (tr *testTree) node(path string) *erofs.Node {
	n := tr.root
	for part := range strings.SplitSeq(path, "/") {
		n = n.Children[part]
	}
	return n
}

// bootOrder are the paths of bootTree that every boot reads. The sparse one is
// the last, because it may lie elsewhere.
var bootOrder = []string{"z", "z/boot", "z/boot/pieces", "z/boot/small", "z/boot/full tail", "z/boot/block", "z/boot/random", "z/boot/large",
	"z/boot/part", "z/boot/tail", "z/boot/empty", "z/boot/sparse"}

// bootTree has files of Node.Boot among others, which have contents and parts of
// contents in common with them.
func bootTree() *testTree {
	tr := newTestTree()
	for _, dir := range []string{"a", "z/boot"} {
		tr.file(dir+"/small", text(1, 500))
		tr.file(dir+"/block", text(2, 4096))
		tr.file(dir+"/tail", text(3, 9000))
		tr.file(dir+"/full tail", text(4, 8190))
		tr.file(dir+"/large", text(5, 300_000))
		tr.file(dir+"/random", random(6, 70_000))
		tr.file(dir+"/empty", nil)
	}
	tr.file("a/part", append(text(7, 50_000), text(5, 200_000)...))
	tr.file("z/boot/part", append(text(9, 70_000), text(8, 200_000)...))
	tr.file("z/boot/pieces", text(8, 2*pieceSize+100))
	tr.file("z/boot/sparse", append(make([]byte, 100*blockSize), 'x'))
	tr.add("b/link", tr.node("z/boot/large"))
	for i := range 600 {
		tr.file(fmt.Sprintf("m/%d", i), text(uint64(i+100), 30))
	}
	for i, path := range bootOrder {
		tr.node(path).Boot = uint32(10 * (i + 1))
	}
	return tr
}

// What every boot reads lies in front, in its order, and is not compressed. Each
// content is found where the one before it ends.
func TestWriterBootFiles(t *testing.T) {
	for name, o := range map[string]erofs.Options{
		"flat": {},
		"dax":  {DAX: true, Holes: true},
		"compressed": {Compress: true, Level: lz4hc.Default, PclusterBytes: 64 << 10, Ztailpacking: true,
			PackBytes: 64 << 10, Dedupe: true, Holes: true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := bootTree()
			image := tr.write(t, o)
			files, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			end := blockSize // of what was found, behind the superblock
			for _, path := range bootOrder {
				in, err := files.Inode(path)
				if err != nil {
					t.Fatal(err)
				}
				if path == "z/boot/sparse" && o.Holes {
					continue
				}
				if in.Layout != erofs.LayoutFlatPlain && in.Layout != erofs.LayoutFlatInline {
					t.Errorf("%s has the layout %v", path, in.Layout)
				}
				// Without the others' inodes in between they take few blocks.
				if most := uint64(6 * blockSize / 32); in.NID > most {
					t.Errorf("%s is inode %d, want %d at most", path, in.NID, most)
				}
				if in.IsDir() || in.Size == 0 {
					continue
				}
				content := tr.contents[tr.node(path)]
				content = content[:len(content)/blockSize*blockSize]
				if o.DAX && len(content) >= 2<<20 {
					end = (end + 2<<20 - 1) &^ (2<<20 - 1)
				}
				if !bytes.HasPrefix(image[end:], content) {
					t.Fatalf("at %d there is not the content of %s", end, path)
				}
				end += len(content)
				if in.Layout == erofs.LayoutFlatPlain && in.Size%blockSize > 0 {
					end += blockSize
				}
			}
			checkImage(t, image, tr)
		})
	}
}
