package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// chunkLayouts are the options that make chunks.
var chunkLayouts = map[string]erofs.Options{
	"holes":       {Holes: true},
	"dax holes":   {DAX: true, Holes: true},
	"lz4 holes":   {Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10, Holes: true},
	"packed":      {Compress: true, Level: lz4hc.Fast, PclusterBytes: 64 << 10, Holes: true, PackBytes: 32 << 10, Dedupe: true},
	"chunks 4k":   {ChunkBytes: 4 << 10},
	"chunks 64k":  {ChunkBytes: 64 << 10},
	"chunks 1m":   {ChunkBytes: 1 << 20},
	"dax chunks":  {ChunkBytes: 16 << 10, DAX: true},
	"chunks 512m": {ChunkBytes: 512 << 20},
}

// parts is a content of parts: positive numbers are bytes of data, negative ones
// are zeros.
func parts(seed uint64, sizes ...int) []byte {
	var b []byte
	for i, n := range sizes {
		if n < 0 {
			b = append(b, make([]byte, -n)...)
		} else {
			b = append(b, random(seed+uint64(i), n)...)
		}
	}
	return b
}

func sparseTree() *testTree {
	tr := newTestTree()
	const m = 1 << 20
	for name, sizes := range map[string][]int{
		"only":       {-8 * m},
		"only, odd":  {-8*m - 5},
		"one block":  {-4096},
		"small":      {-100},
		"first":      {-8 * m, 4096},
		"last":       {100, -8 * m},
		"end":        {4096, -8*m - 1},
		"middle":     {5000, -8 * m, 70_000},
		"byte":       {-4*m - 2047, 1, -4 * m},
		"last byte":  {-4 * m, 1},
		"few":        {1, -2 * m, 1, -3 * m, 4096, -4 * m, 8192, -m, 1},
		"alternates": {4096, -4096, 4096, -4096, 4096, -4096, 4096, -4096},
		"data":       {m + 17},
	} {
		tr.file("sparse/"+name, parts(uint64(len(name)), sizes...))
	}
	tr.add("sparse/link", tr.root.Children["sparse"].Children["few"])
	tr.file("again/few", parts(3, 1, -2*m, 1, -3*m, 4096, -4*m, 8192, -m, 1))
	tr.root.Children["sparse"].Children["few"].Xattrs = map[string][]byte{"user.x": []byte("odd")}
	return tr
}

// sharedTree has parts that are equal, at chunk boundaries of several sizes and
// elsewhere.
func sharedTree() *testTree {
	tr := newTestTree()
	const k = 1 << 10
	long := random(1, 3072*k+100)
	tr.file("long", long)
	tr.file("long again", bytes.Clone(long))
	tr.file("beginning", bytes.Clone(long[:2048*k]))
	tr.file("beginning, odd", bytes.Clone(long[:1024*k+1]))
	tr.file("end", bytes.Clone(long[2048*k:]))
	tr.file("middle", append(random(2, 1024*k), long[1024*k:2048*k]...))
	tr.file("shifted", append(random(3, 12*k), long[:256*k]...))
	tr.file("rotated", append(bytes.Clone(long[1024*k:2048*k]), long[:1024*k]...))
	tr.file("repeats", bytes.Repeat(random(4, 64*k), 40))
	tr.file("alone", random(5, 100*k))
	for i := range 3 {
		tr.file(fmt.Sprintf("tail %d", i), random(6, 9*k))
		tr.file(fmt.Sprintf("small %d", i), random(7, 500))
		tr.file(fmt.Sprintf("block %d", i), append(random(8, 4096), byte(i+1)))
	}
	// Equal up to a zero more or less: the end of a chunk is filled up with them.
	tr.file("padded/0", random(9, 10*k))
	tr.file("padded/1", append(random(9, 10*k), make([]byte, 5)...))
	tr.file("padded/2", append(random(9, 10*k), 1))
	return tr
}

func TestWriterChunks(t *testing.T) {
	layouts := slices.Sorted(maps.Keys(chunkLayouts))
	for _, test := range []struct {
		name    string
		tree    func() *testTree
		layouts []string
	}{
		{"sparse", sparseTree, layouts},
		{"shared", sharedTree, []string{"chunks 4k", "chunks 64k", "chunks 1m", "dax chunks"}},
		{"sizes", trees["sizes"], []string{"holes", "chunks 4k"}},
		{"xattrs", trees["xattrs"], []string{"chunks 64k"}},
		{"kinds", trees["kinds"], []string{"chunks 4k"}},
	} {
		for _, layout := range test.layouts {
			t.Run(test.name+"/"+layout, func(t *testing.T) {
				t.Parallel()
				tr, o := test.tree(), chunkLayouts[layout]
				image := tr.write(t, o)
				want := tr.infos()
				checkReader(t, image, want)
				for _, u := range allUtils(t) {
					if u.version < "1.9" && (o.PackBytes > 0 || o.Dedupe) {
						continue
					}
					t.Run("fsck "+u.version, func(t *testing.T) {
						if u.version < "1.9" && tr.endsInHoles() {
							checkFsckOnly(t, u, image)
							return
						}
						checkFsck(t, u, image, want)
					})
				}
				t.Run("kernel", func(t *testing.T) { checkKernel(t, image, want) })
			})
		}
	}
}

// endsInHoles reports whether a file's last block is zeros. If it is a hole,
// fsck.erofs 1.5 extracts the file without it, and so does 1.9.4 if the inode has
// chunk indexes; both do that with images of mkfs.erofs.
func (tr *testTree) endsInHoles() bool {
	for _, data := range tr.contents {
		if n := len(data); n > 0 && len(bytes.Trim(data[(n-1)/blockSize*blockSize:], "\x00")) == 0 {
			return true
		}
	}
	return false
}

// checkFsckOnly lets fsck.erofs read the image without extracting it.
func checkFsckOnly(t *testing.T, u utils, image []byte, blobs ...[]byte) {
	t.Helper()
	args := blobFiles(t, append([][]byte{image}, blobs...))
	for i := range args[1:] {
		args[i+1] = "--device=" + args[i+1]
	}
	if text, err := exec.Command(u.fsck, append(args, "--extract")...).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs %s: %v: %s", u.version, err, text)
	}
}

// What holes and equal chunks save.
func TestWriterChunkSizes(t *testing.T) {
	const k = 1 << 10
	sparse, shared := sparseTree(), sharedTree()
	for _, test := range []struct {
		tree   *testTree
		layout string
		most   int
	}{
		{sparse, "holes", 1300 * k},
		{sparse, "dax holes", 1300 * k},
		{sparse, "lz4 holes", 1350 * k},
		{sparse, "packed", 1450 * k},
		{sparse, "chunks 4k", 1300 * k},
		{sparse, "chunks 1m", 1300 * k},
		{shared, "chunks 4k", 4400 * k},
		{shared, "chunks 64k", 4700 * k},
		{shared, "chunks 1m", 5700 * k},
	} {
		n := len(test.tree.write(t, chunkLayouts[test.layout]))
		if n > test.most {
			t.Errorf("%s: %d kB, want at most %d", test.layout, n/k, test.most/k)
		}
		t.Log(test.layout, n/k)
	}
}

func TestWriterChunksDeterministic(t *testing.T) {
	sparse, shared := sparseTree(), sharedTree()
	for _, test := range []struct {
		tree   *testTree
		layout string
	}{{sparse, "lz4 holes"}, {shared, "chunks 4k"}, {shared, "chunks 1m"}} {
		o := chunkLayouts[test.layout]
		o.Workers = 1
		want := test.tree.write(t, o)
		for o.Workers = 1; o.Workers <= 4; o.Workers++ {
			if !bytes.Equal(test.tree.write(t, o), want) {
				t.Errorf("%s: with %d workers the image differs", test.layout, o.Workers)
			}
		}
	}
}

// The features of an image say what its kernel must know.
func TestWriterChunkFeatures(t *testing.T) {
	for _, test := range []struct {
		tree   *testTree
		layout string
		want   bool
	}{
		{sparseTree(), "holes", true},
		{sharedTree(), "holes", false},
		{sharedTree(), "dax holes", false},
		{sharedTree(), "lz4 holes", false},
		{sharedTree(), "chunks 4k", true},
		{sharedTree(), "dax chunks", true},
		{trees["links"](), "chunks 4k", false},
	} {
		sb, err := erofs.ReadSuperblock(bytes.NewReader(test.tree.write(t, chunkLayouts[test.layout])))
		if err != nil {
			t.Fatal(err)
		}
		if got := sb.FeatureIncompat&erofs.FeatureIncompatChunkedFile != 0; got != test.want {
			t.Errorf("%s: has the feature of chunks: %v, want %v", test.layout, got, test.want)
		}
		if strings.HasPrefix(test.layout, "chunks") && sb.FeatureIncompat&^uint32(erofs.FeatureIncompatChunkedFile) != 0 {
			t.Errorf("%s: has features %v", test.layout, sb.Features())
		}
	}
}

// zeros is a file of zeros with a few bytes in it.
type zeros struct {
	size, at int64
	data     map[int64]string
}

func (z *zeros) Read(p []byte) (int, error) {
	if z.at == z.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), z.size-z.at)]
	clear(p)
	for at, text := range z.data {
		if i := at - z.at; i >= 0 && i < int64(len(p)) {
			copy(p[i:], text)
		}
	}
	z.at += int64(len(p))
	return len(p), nil
}

// A file of 5 GiB that is nearly all holes costs little space and time.
func TestWriterLargeSparse(t *testing.T) {
	for _, layout := range []string{"lz4 holes", "chunks 4k"} {
		t.Run(layout, func(t *testing.T) {
			spool := &memory{}
			w, err := erofs.NewWriter(spool, chunkLayouts[layout])
			if err != nil {
				t.Fatal(err)
			}
			tr := newTestTree()
			begin := time.Now()
			n := tr.file("large", nil)
			n.Size = 5<<30 + 5
			data := map[int64]string{0: "begin", 4<<30 + 8192: "beyond", 5 << 30: "end"}
			if n.Ref, err = w.Put(&zeros{size: n.Size, data: data}, n.Size); err != nil {
				t.Fatal(err)
			}
			if len(spool.b) > 3*blockSize {
				t.Errorf("the spool has %d bytes", len(spool.b))
			}
			var out memory
			size, err := w.Write(context.Background(), &out, tr.root, testIdentity)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes, %v", size, time.Since(begin))
			out.b = append(out.b, make([]byte, size-int64(len(out.b)))...)
			if size > 1<<20 {
				t.Errorf("the image has %d bytes", size)
			}
			if err := erofs.Check(&out, size).Err(); err != nil {
				t.Error(err)
			}
			f, err := erofs.Open(&out, size)
			if err != nil {
				t.Fatal(err)
			}
			ino, err := f.Inode("large")
			if err != nil {
				t.Fatal(err)
			}
			check := func(r io.ReaderAt) {
				for at, text := range data {
					got := make([]byte, len(text)+20)
					m, err := r.ReadAt(got[:min(int64(len(got)), n.Size-at)], at)
					if err != nil || strings.TrimRight(string(got[:m]), "\x00") != text {
						t.Errorf("at %d: %q, %v", at, got[:m], err)
					}
				}
			}
			check(ino)
			checkFsckAccepts(t, out.b)
			t.Run("kernel", func(t *testing.T) {
				mounted := open(t, filepath.Join(mountImage(t, out.b), "large"))
				if got := fileSize(t, mounted); got != n.Size {
					t.Errorf("size %d, want %d", got, n.Size)
				}
				check(mounted)
			})
		})
	}
}
