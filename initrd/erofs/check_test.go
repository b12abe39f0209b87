package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/erofs"
)

// makeSmallTree makes a tree whose image has few bytes that mean nothing.
func makeSmallTree(t testing.TB, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	var text bytes.Buffer
	for text.Len() < 60000 {
		fmt.Fprintf(&text, "%x ", rng.IntN(4000))
	}
	random := make([]byte, 6000)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for name, content := range map[string][]byte{
		"text": text.Bytes(), "dir/part": text.Bytes()[20000:45000], "dir/tail": text.Bytes()[50100:], "dir/sub/random": random,
		"small": []byte("small"), "empty": nil, "zeros": make([]byte, 70000), "mixed": append(text.Bytes()[:9000:9000], random...),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		for key, value := range map[string]string{"user.same": "same", "user.name": name} {
			if err := unix.Lsetxattr(path, key, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink("dir/part", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "dir/hard")); err != nil {
		t.Fatal(err)
	}
}

// smallImage is the image of makeSmallTree.
func smallImage(t testing.TB, u utils, options string) []byte {
	t.Helper()
	src, img := t.TempDir(), filepath.Join(t.TempDir(), "img")
	makeSmallTree(t, src)
	u.make(t, img, src, append(strings.Fields(options), "-T1700000000", "--all-root")...)
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// smallOptions are those of which mutants are made, with every feature.
var smallOptions = []struct{ since, options string }{
	{"1.5", ""},
	{"1.5", "-Eforce-inode-extended -x1"},
	{"1.5", "--chunksize=4096 -x1"},
	{"1.5", "--chunksize=8192 -Eforce-chunk-indexes"},
	{"1.5", "-zlz4hc -x1"},
	{"1.5", "-zlz4hc -C16384"},
	{"1.5", "-zlz4 -Elegacy-compress"},
	{"1.5", "-zlz4hc -C16384 -Eztailpacking"},
	{"1.9", "-zlz4hc -C16384 -Efragments"},
	{"1.9", "-zlz4hc -C16384 -Eall-fragments,dedupe"},
	{"1.9", "-zlz4hc -Ededupe -Eforce-inode-extended"},
	{"1.9", "-zlz4hc -C16384 -Efragments,ztailpacking,legacy-compress"},
	{"1.9", "-zlz4hc -C16384 -Ededupe,ztailpacking"},
	{"1.9", "-zlz4hc -C16384 -E48bit"},
	{"1.9", "-zlz4hc -C16384 -E48bit,fragments,dedupe"},
	{"1.9", "--chunksize=4096 -E48bit"},
	{"1.9", "-zlz4hc -C16384 --zD=1"},
	{"1.9", "-zlz4hc -C16384 -m4096 --MZ=i"},
	{"1.9", "-zlz4hc -C16384 -m4096 --MZ=id -x1"},
	{"1.9", "-zlz4hc -b512 -C2048 -x1"},
	{"1.9", "-Edot-omitted -x1"},
	{"1.9", "-x1 --xattr-prefix=user.na -Exattr-name-filter"},
}

// smallTree is makeSmallTree for the writer.
func smallTree() *testTree {
	tr := newTestTree()
	words, noise := text(5, 60_000), random(6, 6000)
	for name, content := range map[string][]byte{
		"text": words, "dir/part": words[20_000:45_000], "dir/tail": words[50_100:], "dir/sub/random": noise,
		"small": []byte("small"), "empty": nil, "zeros": make([]byte, 70_000), "mixed": append(words[:9000:9000], noise...), "same": words,
	} {
		tr.file(name, content).Xattrs = map[string][]byte{"user.same": []byte("same"), "user.name": []byte(name)}
	}
	tr.add("link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, MTime: testTime - 1, Target: "dir/part"})
	tr.add("dir/hard", tr.root.Children["small"])
	tr.add("null", &erofs.Node{Mode: unix.S_IFCHR | 0o666, MTime: testTime, RDevMajor: 1, RDevMinor: 3})
	return tr
}

// namedImage is an image of which mutants are made.
type namedImage struct {
	name  string
	image []byte
}

// smallImages are those of mkfs.erofs with smallOptions, and those of the writer
// with its options in pairs.
func smallImages(t testing.TB) []namedImage {
	t.Helper()
	var all []namedImage
	for _, u := range allUtils(t) {
		for _, set := range smallOptions {
			if set.since <= u.version {
				all = append(all, namedImage{"mkfs " + u.version + " " + set.options, smallImage(t, u, set.options)})
			}
		}
	}
	for _, c := range matrix([]string{""}, false) {
		all = append(all, namedImage{"writer " + c.name, smallTree().write(t, c.options)})
	}
	return all
}

// seal sets the superblock's checksum, so that a mutant is not refused for it.
func seal(b []byte) {
	if len(b) < 4096 {
		return
	}
	block := b[erofs.SuperOffset:4096]
	clear(block[4:8])
	binary.LittleEndian.PutUint32(block[4:], ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)))
}

// metadataOf lists the offsets of what an image's inodes are, roughly.
func metadataOf(t testing.TB, image []byte) []int {
	t.Helper()
	f, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	var offsets []int
	err = f.Walk(func(_ string, ino *erofs.Inode) error {
		length := 160
		if ino.IsDir() {
			length += int(ino.Size)
		}
		start := int(f.Super.InodeOffset(ino.NID))
		for at := start; at < min(start+length, len(image)); at++ {
			offsets = append(offsets, at)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return offsets
}

// mutate changes a few bytes, mostly among the metadata.
func mutate(rng *rand.Rand, image []byte, metadata []int) []byte {
	b := bytes.Clone(image)
	for range 1 + rng.IntN(2) {
		at := metadata[rng.IntN(len(metadata))]
		if rng.IntN(4) == 0 {
			at = erofs.SuperOffset + rng.IntN(len(b)-erofs.SuperOffset)
		}
		switch rng.IntN(4) {
		case 0:
			b[at] ^= 1 << rng.IntN(8)
		case 1:
			b[at] = byte(rng.Uint32())
		case 2:
			b[at] += byte(rng.IntN(3)) - 1
		case 3:
			binary.LittleEndian.PutUint16(b[min(at, len(b)-2):], uint16(rng.Uint32()))
		}
	}
	seal(b)
	return b
}

// Every mutant that fsck.erofs refuses is refused, by its last version that takes
// the image for good: 1.9 cannot read LZ4 without padding, 1.5 no fragments. The
// environment variable EROFS_MUTANTS says how many there are of each image.
func TestCheckMutants(t *testing.T) {
	count := parameter(t, "EROFS_MUTANTS", 10)
	versions := allUtils(t)
	slices.Reverse(versions)
	var mutants, byFsck, byUs, endless atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d mutants; fsck.erofs refused %d and did not end for %d; Check refused %d",
			mutants.Load(), byFsck.Load(), endless.Load(), byUs.Load())
		if byFsck.Load() == 0 || byUs.Load() < byFsck.Load() {
			t.Error("too few are refused")
		}
	})
	for number, small := range smallImages(t) {
		t.Run(small.name, func(t *testing.T) {
			t.Parallel()
			if err := erofs.Check(bytes.NewReader(small.image), int64(len(small.image))).Err(); err != nil {
				t.Fatal(err)
			}
			metadata := metadataOf(t, small.image)
			rng := rand.New(rand.NewPCG(7, uint64(number)))
			path := filepath.Join(scratch(t), "mutant")
			if err := os.WriteFile(path, small.image, 0o644); err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(versions, func(u utils) bool { return exec.Command(u.fsck, "--extract", path).Run() == nil })
			if at < 0 {
				t.Skip("no fsck.erofs here reads this image")
			}
			u := versions[at]
			for n := range count {
				mutant := mutate(rng, small.image, metadata)
				if err := os.WriteFile(path, mutant, 0o644); err != nil {
					t.Fatal(err)
				}
				args := []string{"--extract", path}
				if n%2 == 1 && u.version >= "1.9" {
					args = append(args, "--xattrs") // it checks other things of them
				}
				// It reads sparse files to their ends, and a mutant may have 2^60 bytes.
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				out, err := exec.CommandContext(ctx, u.fsck, args...).CombinedOutput()
				if ctx.Err() != nil {
					endless.Add(1)
					err = nil
				}
				cancel()
				mutants.Add(1)
				ours := erofs.Check(bytes.NewReader(mutant), int64(len(mutant))).Err()
				if ours != nil {
					byUs.Add(1)
				}
				if err == nil {
					continue
				}
				byFsck.Add(1)
				if ours == nil {
					keep := filepath.Join(os.TempDir(), fmt.Sprintf("mutant-%d-%d", number, n))
					if err := os.WriteFile(keep, mutant, 0o644); err != nil {
						t.Fatal(err)
					}
					t.Errorf("mutant %d, kept as %s: Check finds nothing, fsck.erofs: %v\n%s", n, keep, err, out)
				}
			}
		})
	}
}

// Each kind of damage is found, and said where.
func TestCheckFinds(t *testing.T) {
	u := allUtils(t)[0]
	image := smallImage(t, u, "-x1")
	le := binary.LittleEndian
	f, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	inode := func(name string) (*erofs.Inode, []byte) {
		t.Helper()
		ino, err := f.Inode(name)
		if err != nil {
			t.Fatal(err)
		}
		return ino, nil
	}
	at := func(name string, b []byte) []byte {
		ino, _ := inode(name)
		return b[f.Super.InodeOffset(ino.NID):]
	}
	for _, test := range []struct {
		name, want string
		change     func(b []byte)
	}{
		{"superblock checksum", "checksum", func(b []byte) { b[erofs.SuperOffset+70] ^= 1 }},
		{"short", "declares", func(b []byte) { le.PutUint32(b[erofs.SuperOffset+36:], 1<<20); seal(b) }},
		{"unknown feature", "incompatible features 0x80000000", func(b []byte) {
			b[erofs.SuperOffset+83] |= 0x80
			seal(b)
		}},
		{"links", "dir/hard: corrupt EROFS image: EROFS inode", func(b []byte) { le.PutUint16(at("small", b)[6:], 9); seal(b) }},
		{"mode", "mode 0", func(b []byte) { le.PutUint16(at("small", b)[4:], 0); seal(b) }},
		{"type", "the directory says type 1", func(b []byte) { le.PutUint16(at("empty", b)[4:], unix.S_IFIFO|0o644); seal(b) }},
		{"layout", "layout-7", func(b []byte) { at("small", b)[0] |= 0x0e; seal(b) }},
		{"block behind the end", "unexpected EOF", func(b []byte) { le.PutUint32(at("text", b)[16:], 1<<20); seal(b) }},
		{"overlap", "overlap", func(b []byte) { copy(at("zeros", b)[16:20], at("text", b)[16:20]); seal(b) }},
		{"loop", "is also", func(b []byte) {
			dir, _ := inode("dir")
			sub, _ := inode("dir/sub")
			i := bytes.Index(b, le.AppendUint64(nil, sub.NID))
			le.PutUint64(b[i:], dir.NID)
			seal(b)
		}},
		{"xattr class", "class that there is not", func(b []byte) {
			at("small", b)[32+12+1] = 5
			seal(b)
		}},
		{"inodes", "declares 3 inodes", func(b []byte) { le.PutUint64(b[erofs.SuperOffset+16:], 3); seal(b) }},
		{"blocks", "of which the superblock declares", func(b []byte) {
			le.PutUint32(b[erofs.SuperOffset+36:], uint32(f.Super.Blocks)-1)
			seal(b)
		}},
		{"order", "comes after", func(b []byte) {
			i := bytes.LastIndex(b, []byte("emptylink"))
			copy(b[i:], "zmptylink")
			seal(b)
		}},
		{"name", "bad name", func(b []byte) {
			i := bytes.LastIndex(b, []byte("emptylink"))
			b[i+2] = '/'
			seal(b)
		}},
		{"dot dot", `".." is inode`, func(b []byte) {
			i := bytes.LastIndex(b, []byte("...hard"))
			if i < 0 {
				i = bytes.LastIndex(b, []byte("...dir"))
			}
			if i < 0 {
				t.Fatal("no directory found")
			}
			// The entry ".." is the second; the names follow the entries.
			first := i - i%4
			for first >= 0 && int(le.Uint16(b[first+8:])) != i-first {
				first--
			}
			le.PutUint64(b[first+12:], 1)
			seal(b)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := bytes.Clone(image)
			test.change(b)
			err := erofs.Check(bytes.NewReader(b), int64(len(b))).Err()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to contain %q", err, test.want)
			}
		})
	}
}

// A truncated image is one that ends unexpectedly, wherever it ends.
func TestTruncated(t *testing.T) {
	image := smallImage(t, allUtils(t)[0], "-zlz4hc -C16384")
	for n := 0; n < len(image)-1; n += 997 {
		err := erofs.Check(bytes.NewReader(image[:n]), int64(n)).Err()
		if err == nil {
			t.Errorf("an image of %d bytes, truncated to %d, is right", len(image), n)
		}
		f, err := erofs.Open(bytes.NewReader(image[:n]), int64(n))
		if err == nil {
			err = readAll(f)
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("truncated to %d: %v, want an unexpected end", n, err)
		}
	}
}

// readAll reads everything there is, but of sparse files only what is not sparse.
func readAll(f *erofs.FS) error {
	buf := make([]byte, 1<<16)
	var first error
	err := f.Walk(func(_ string, ino *erofs.Inode) error {
		_, err := ino.Xattrs()
		if err == nil && ino.IsSymlink() {
			_, err = ino.LinkTarget()
		}
		for off, budget := int64(0), 64; err == nil && budget > 0; budget-- {
			var n int
			if off, _, err = ino.NextData(off); err == nil {
				n, err = ino.ReadAt(buf, off)
				off += int64(n)
			}
		}
		if first == nil && err != nil && !errors.Is(err, io.EOF) {
			first = err
		}
		return nil
	})
	if err == nil {
		err = first
	}
	return err
}

func fuzzSeeds(t testing.TB) [][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/images/*.img")
	if err != nil || len(paths) == 0 {
		t.Fatal("no seeds in testdata/images", err)
	}
	var seeds [][]byte
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	return seeds
}

// The seeds are right, so fuzzing begins from images that are read to the end.
func TestSeeds(t *testing.T) {
	layouts := map[erofs.Layout]bool{}
	var pclusters int
	for n, b := range fuzzSeeds(t) {
		report := erofs.Check(bytes.NewReader(b), int64(len(b)))
		if err := report.Err(); err != nil {
			t.Errorf("seed %d: %v", n, err)
			continue
		}
		pclusters += report.Pclusters
		f, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if err := readAll(f); err != nil {
			t.Errorf("seed %d: %v", n, err)
		}
		err = f.Walk(func(_ string, ino *erofs.Inode) error {
			layouts[ino.Layout] = true
			return nil
		})
		if err != nil {
			t.Errorf("seed %d: %v", n, err)
		}
	}
	if len(layouts) != 5 || pclusters < 10 {
		t.Errorf("the seeds have %d layouts of 5 and %d pclusters", len(layouts), pclusters)
	}
}

// FuzzRead changes images: nothing panics, and what Check accepts can be read.
// Each four bytes of edits are where to change an image, 16 bits, and what to
// put there.
func FuzzRead(f *testing.F) {
	seeds := fuzzSeeds(f)
	for n, b := range seeds {
		metadata := metadataOf(f, b)
		rng := rand.New(rand.NewPCG(9, uint64(n)))
		for range 20 {
			var edits []byte
			for range 1 + rng.IntN(2) {
				edits = binary.LittleEndian.AppendUint16(edits, uint16(metadata[rng.IntN(len(metadata))]))
				edits = binary.LittleEndian.AppendUint16(edits, uint16(rng.Uint32()>>rng.IntN(16)))
			}
			f.Add(uint8(n), edits)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, edits []byte) {
		b := bytes.Clone(seeds[int(n)%len(seeds)])
		for ; len(edits) >= 4; edits = edits[4:] {
			at := int(binary.LittleEndian.Uint16(edits))
			copy(b[at%len(b):], edits[2:4])
		}
		seal(b)
		image, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		read := readAll(image)
		check := erofs.Check(bytes.NewReader(b), int64(len(b))).Err()
		if read != nil && check == nil {
			t.Errorf("Check finds nothing, reading says: %v", read)
		}
	})
}
