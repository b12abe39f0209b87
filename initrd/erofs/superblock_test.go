package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
)

var testUUID = bootconf.UUID{0x21, 0xfd, 0x58, 0xcf, 0x53, 0x2a, 0x45, 0x18, 0x9a, 0xd3, 1, 2, 3, 4, 5, 6}

// image gives one block that begins an image, its checksum right after edit.
func image(edit func(sb []byte)) []byte {
	b := make([]byte, 4096)
	sb := b[erofs.SuperOffset:]
	le := binary.LittleEndian
	le.PutUint32(sb[0:], erofs.SuperMagic)
	le.PutUint32(sb[8:], erofs.FeatureCompatSBChksum|erofs.FeatureCompatMtime)
	sb[12] = 12
	le.PutUint16(sb[14:], 36)
	le.PutUint64(sb[16:], 8)
	le.PutUint64(sb[24:], 1_700_000_000)
	le.PutUint32(sb[32:], 5)
	le.PutUint32(sb[36:], 3)
	le.PutUint32(sb[40:], 1)
	copy(sb[48:], testUUID[:])
	copy(sb[64:], "volume")
	le.PutUint32(sb[80:], erofs.FeatureIncompatZeroPadding|1<<20)
	if edit != nil {
		edit(sb)
	}
	clear(sb[4:8])
	n := min(1<<sb[12], len(sb))
	le.PutUint32(sb[4:], ^crc32.Checksum(sb[:n], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestReadSuperblock(t *testing.T) {
	got, err := erofs.ReadSuperblock(bytes.NewReader(image(nil)))
	if err != nil {
		t.Fatal(err)
	}
	got.Checksum = 0 // computed by this test itself; mkfs.erofs is the oracle below
	want := erofs.Superblock{
		FeatureCompat: 3, FeatureIncompat: 0x100001, BlkSzBits: 12, Blocks: 3, Inos: 8, RootNid: 36, MetaBlkAddr: 1,
		BuildTime: 1_700_000_000, BuildTimeNsec: 5, UUID: testUUID, VolumeName: "volume",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("superblock (-want +got):\n%s", diff)
	}
	if got, want := got.InodeOffset(36), int64(4096+36*32); got != want {
		t.Errorf("InodeOffset(36) = %d, want %d", got, want)
	}
	if got, want := got.Size(), int64(3*4096); got != want {
		t.Errorf("Size() = %d, want %d", got, want)
	}
	if diff := cmp.Diff([]string{"sb_chksum", "mtime", "zero_padding", "incompat-0x100000"}, got.Features()); diff != "" {
		t.Errorf("features (-want +got):\n%s", diff)
	}
	if !got.Compressed() {
		t.Error("Compressed() = false, want true")
	}
}

func TestReadSuperblock48Bit(t *testing.T) {
	le := binary.LittleEndian
	got, err := erofs.ReadSuperblock(bytes.NewReader(image(func(sb []byte) {
		le.PutUint16(sb[14:], 2) // high bits of the blocks
		le.PutUint32(sb[80:], erofs.FeatureIncompat48Bit)
		le.PutUint32(sb[108:], 100)
		le.PutUint64(sb[112:], 99)
	})))
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(2<<32 | 3); got.Blocks != want {
		t.Errorf("Blocks = %#x, want %#x", got.Blocks, want)
	}
	if got.RootNid != 99 || got.BuildTime != 1_700_000_100 {
		t.Errorf("RootNid = %d, BuildTime = %d; want 99, 1700000100", got.RootNid, got.BuildTime)
	}
}

func TestReadSuperblockSmallBlocks(t *testing.T) {
	if _, err := erofs.ReadSuperblock(bytes.NewReader(image(func(sb []byte) { sb[12] = 9 }))); err != nil {
		t.Error(err)
	}
}

func TestReadSuperblockRefuses(t *testing.T) {
	damaged := image(nil)
	damaged[4095] ^= 1
	tests := []struct {
		name  string
		image []byte
		is    error
		want  string
	}{
		{"magic", make([]byte, 4096), erofs.ErrNotEROFS, "offset 1024"},
		{"empty", nil, io.ErrUnexpectedEOF, "offset 1024"},
		{"short superblock", image(nil)[:1024+127], io.ErrUnexpectedEOF, "offset 1024"},
		{"short block", image(nil)[:4095], io.ErrUnexpectedEOF, "3072 bytes at offset 1024"},
		{"checksum", damaged, nil, "checksum"},
		{"block size", image(func(sb []byte) { sb[12] = 17 }), nil, "blkszbits 17 at offset 1036"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := erofs.ReadSuperblock(bytes.NewReader(test.image))
			if err == nil {
				t.Fatal("no error")
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %q is not %q", err, test.is)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not contain %q", err, test.want)
			}
		})
	}
}

// Without the feature, the kernel does not look at the checksum.
func TestReadSuperblockWithoutChecksum(t *testing.T) {
	b := image(func(sb []byte) { binary.LittleEndian.PutUint32(sb[8:], 0) })
	b[4095] ^= 1
	if _, err := erofs.ReadSuperblock(bytes.NewReader(b)); err != nil {
		t.Error(err)
	}
}

// mkfs.erofs is an independent writer of superblocks.
func TestReadSuperblockMkfs(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "zeros"), make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, compressed := range []bool{false, true} {
		out := filepath.Join(dir, "img")
		args := []string{"-U", testUUID.String(), out, tree}
		if compressed {
			args = append([]string{"-zlz4hc"}, args...)
		}
		cmd := exec.Command(mkfs, args...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mkfs.erofs: %v\n%s", err, text)
		}
		f, err := os.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		got, err := erofs.ReadSuperblock(f)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if mode, err := got.ReadMode(f, got.RootNid); err != nil || mode != 0o40751 {
			t.Errorf("mode of the root = %#o, %v; want 040751", mode, err)
		}
		if _, err := got.ReadMode(f, 1<<40); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("mode of an inode behind the end: %v, want an unexpected end", err)
		}
		f.Close()
		if got.UUID != testUUID || got.BuildTime != 1_700_000_000 || got.Inos != 2 {
			t.Errorf("UUID %s, build time %d, %d inodes; want %s, 1700000000, 2", got.UUID, got.BuildTime, got.Inos, testUUID)
		}
		if got.Size() != info.Size() {
			t.Errorf("Size() = %d, file has %d", got.Size(), info.Size())
		}
		if got.FeatureCompat&erofs.FeatureCompatSBChksum == 0 {
			t.Error("the image has no checksum, so this test proves nothing about it")
		}
		if got.Compressed() != compressed {
			t.Errorf("Compressed() = %t, want %t", got.Compressed(), compressed)
		}
	}
}

func FuzzReadSuperblock(f *testing.F) {
	f.Add(image(nil))
	f.Add(image(nil)[:1200])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := erofs.ReadSuperblock(bytes.NewReader(b))
		if err == nil && s.BlockSize() == 0 {
			t.Error("a block of no bytes")
		}
	})
}
