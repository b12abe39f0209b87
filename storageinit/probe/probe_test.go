package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
)

// tool finds a program of another project that serves as an oracle.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func run(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(tool(t, name), args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sparseFile makes a file of zeros.
func sparseFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// blkid gives what blkid finds in an image or a partition of it.
func blkid(t *testing.T, args ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(run(t, "", "blkid", append([]string{"-p", "-o", "export"}, args...)...)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			found[key] = strings.ReplaceAll(value, `\ `, " ")
		}
	}
	return found
}

func TestIdentify(t *testing.T) {
	const uuid = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0"
	const mib = 1 << 20
	for _, test := range []struct {
		name string
		size int64
		make []string // without the path of the image
		want Filesystem
	}{
		{"ext4", 16 * mib, []string{"mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-L", "my boot"}, Filesystem{"ext4", uuid, "my boot"}},
		{"ext4 with a full label", 16 * mib, []string{"mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-L", "0123456789abcdef"}, Filesystem{"ext4", uuid, "0123456789abcdef"}},
		{"ext4 without a label", 16 * mib, []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", uuid}, Filesystem{"ext4", uuid, ""}},
		{"ext3", 16 * mib, []string{"mke2fs", "-q", "-F", "-t", "ext3", "-U", uuid, "-L", "boot"}, Filesystem{"ext4", uuid, "boot"}},
		{"ext2", 16 * mib, []string{"mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-U", uuid, "-L", "a=b  c"}, Filesystem{"ext4", uuid, "a=b  c"}},
		{"xfs", 320 * mib, []string{"mkfs.xfs", "-q", "-m", "uuid=" + uuid, "-L", "xfs boot"}, Filesystem{"xfs", uuid, "xfs boot"}},
		{"xfs with a full label", 320 * mib, []string{"mkfs.xfs", "-q", "-m", "uuid=" + uuid, "-L", "0123456789ab"}, Filesystem{"xfs", uuid, "0123456789ab"}},
		{"xfs version 4", 320 * mib, []string{"mkfs.xfs", "-q", "-m", "crc=0", "-m", "uuid=" + uuid}, Filesystem{"xfs", uuid, ""}},
		{"btrfs", 128 * mib, []string{"mkfs.btrfs", "-q", "-U", uuid, "-L", "btrfs boot"}, Filesystem{"btrfs", uuid, "btrfs boot"}},
		{"btrfs without a label", 128 * mib, []string{"mkfs.btrfs", "-q", "-U", uuid}, Filesystem{"btrfs", uuid, ""}},
		{"FAT12", 2 * mib, []string{"mkfs.fat", "-F", "12", "-i", "1234abcd", "-n", "BOOT12"}, Filesystem{"vfat", "1234-ABCD", "BOOT12"}},
		{"FAT16", 32 * mib, []string{"mkfs.fat", "-F", "16", "-i", "0000000f", "-n", "ELEVENCHARS"}, Filesystem{"vfat", "0000-000F", "ELEVENCHARS"}},
		{"FAT32", 64 * mib, []string{"mkfs.fat", "-F", "32", "-i", "1234abcd", "-n", "EFI SYSTEM"}, Filesystem{"vfat", "1234-ABCD", "EFI SYSTEM"}},
		{"FAT32 without a label", 64 * mib, []string{"mkfs.fat", "-F", "32", "-i", "1234abcd"}, Filesystem{"vfat", "1234-ABCD", ""}},
		{"FAT32 with sectors of 4096 bytes", 512 * mib, []string{"mkfs.fat", "-F", "32", "-S", "4096", "-i", "1234abcd", "-n", "EFI"}, Filesystem{"vfat", "1234-ABCD", "EFI"}},
		{"FAT16 with large clusters", 256 * mib, []string{"mkfs.fat", "-F", "16", "-s", "64", "-i", "1234abcd", "-n", "BIG"}, Filesystem{"vfat", "1234-ABCD", "BIG"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := sparseFile(t, test.size)
			run(t, "", test.make[0], append(test.make[1:], path)...)
			got := Identify(openFile(t, path))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("Identify (-want +got):\n%s", diff)
			}
			compareWithBlkid(t, got, blkid(t, path))
		})
	}
}

// compareWithBlkid compares with what blkid says of the same filesystem.
func compareWithBlkid(t *testing.T, got Filesystem, found map[string]string) {
	t.Helper()
	want := Filesystem{found["TYPE"], found["UUID"], found["LABEL"]}
	if want.Type == "ext2" || want.Type == "ext3" {
		want.Type = "ext4" // the driver that mounts them
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Identify (-blkid +got):\n%s", diff)
	}
}

// makeErofs makes an image of one file that compresses well.
func makeErofs(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("text "), 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	run(t, "", "mkfs.erofs", append(args, path, dir)...)
	return path
}

func TestEROFS(t *testing.T) {
	const uuid = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0"
	for _, test := range []struct {
		name       string
		args       []string
		compressed bool
	}{
		{"plain", nil, false},
		{"plain without inline data", []string{"-Enoinline_data"}, false},
		{"lz4hc", []string{"-zlz4hc"}, true},
		{"large pclusters", []string{"-zlz4hc,9", "-C65536"}, true},
		{"legacy compression", []string{"-zlz4", "-Elegacy-compress"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := makeErofs(t, append([]string{"-U" + uuid}, test.args...)...)
			f := openFile(t, path)
			got, err := ReadEROFS(f)
			if err != nil {
				t.Fatalf("ReadEROFS: %v", err)
			}
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if got.UUID.String() != uuid || got.Size != st.Size() || got.Compressed() != test.compressed {
				t.Errorf("ReadEROFS = UUID %s, %d bytes, compressed %v; want %s, %d, %v",
					got.UUID, got.Size, got.Compressed(), uuid, st.Size(), test.compressed)
			}
			compareWithBlkid(t, Identify(f), blkid(t, path))
			sb, err := erofs.ReadSuperblock(f)
			if err != nil {
				t.Fatal(err)
			}
			from, length := got.Metadata()
			if root := sb.InodeOffset(sb.RootNid); from > root || from+length <= root || from+length != got.Size {
				t.Errorf("Metadata = %d bytes at %d; the root's inode is at %d of %d", length, from, root, got.Size)
			}
		})
	}
}

// A superblock that is damaged gives no negative length.
func TestEROFSMetadata(t *testing.T) {
	for block, want := range map[uint32][2]int64{0: {0, 3 * 4096}, 2: {2 * 4096, 4096}, 3: {3 * 4096, 0}, 1 << 31: {1 << 43, 0}} {
		b := erofsHead()
		binary.LittleEndian.PutUint32(b[erofsSuperblock+40:], block)
		e, err := ReadEROFS(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if offset, length := e.Metadata(); offset != want[0] || length != want[1] {
			t.Errorf("Metadata at block %d = %d, %d; want %d", block, offset, length, want)
		}
	}
}

// A volume name of all its 16 bytes has no NUL; erofs-utils has no option for
// it in every release.
func TestEROFSLabel(t *testing.T) {
	for label, want := range map[string]string{"boot": "boot", "0123456789abcdef": "0123456789abcdef", "a\x00b": "a"} {
		b := erofsHead()
		copy(b[erofsSuperblock+64:erofsSuperblock+80], label)
		if got := Identify(bytes.NewReader(b)); got.Label != want || got.Type != "erofs" {
			t.Errorf("Identify = %+v, want the label %q", got, want)
		}
	}
}

// erofsHead is the first block of an image of 3 blocks.
func erofsHead() []byte {
	b := make([]byte, 4096)
	s := b[erofsSuperblock:]
	binary.LittleEndian.PutUint32(s, erofsMagic)
	s[12] = 12
	binary.LittleEndian.PutUint32(s[36:], 3)
	s[63] = 1
	return b
}

func TestReadEROFSErrors(t *testing.T) {
	valid := erofsHead()
	if e, err := ReadEROFS(bytes.NewReader(valid)); err != nil || e.Size != 3*4096 || e.UUID != (bootconf.UUID{15: 1}) {
		t.Fatalf("ReadEROFS of the valid head = %+v, %v", e, err)
	}
	changed := func(offset int, value byte) []byte {
		b := bytes.Clone(valid)
		b[erofsSuperblock+offset] = value
		return b
	}
	for name, b := range map[string][]byte{
		"empty":                nil,
		"truncated":            valid[:erofsSuperblock+erofsSuperblockSize-1],
		"wrong magic":          changed(0, 0),
		"blocks of 256 bytes":  changed(12, 8),
		"blocks of 128 KiB":    changed(12, 17),
		"blocks of 2^255":      changed(12, 255),
		"only the magic there": valid[:erofsSuperblock+4],
	} {
		if e, err := ReadEROFS(bytes.NewReader(b)); !errors.Is(err, errNotEROFS) {
			t.Errorf("%s: ReadEROFS = %+v, %v; want %v", name, e, err, errNotEROFS)
		}
	}
	// A device that cannot be read is not said to hold something else.
	if _, err := ReadEROFS(failingReader{}); !errors.Is(err, errBroken) {
		t.Errorf("ReadEROFS of a broken device: %v, want %v", err, errBroken)
	}
	if got := Identify(failingReader{}); got != (Filesystem{}) {
		t.Errorf("Identify of a broken device = %+v, want nothing", got)
	}
	if got := FindPartition(failingReader{}, 1, 0); got != (Partition{}) {
		t.Errorf("FindPartition on a broken disk = %+v, want nothing", got)
	}
}

var errBroken = errors.New("broken device")

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

// A device that ends too early is unknown, and no panic at any length.
func TestIdentifyTruncated(t *testing.T) {
	path := makeErofs(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := Identify(bytes.NewReader(whole)); got.Type != "erofs" {
		t.Fatalf("Identify of the whole image = %+v, want erofs", got)
	}
	for size := range headSize {
		if got := Identify(bytes.NewReader(whole[:size])); got != (Filesystem{}) {
			t.Fatalf("Identify of the first %d bytes = %+v, want nothing", size, got)
		}
	}
	for _, size := range []int{0, 1, 510, 4096, 8192} {
		if got := Identify(bytes.NewReader(make([]byte, size))); got != (Filesystem{}) {
			t.Errorf("Identify of %d zeros = %+v, want nothing", size, got)
		}
	}
}

// The label of the root directory counts, where fatlabel of other systems
// leaves the boot sector as it was.
func TestFATLabelOfRootDirectory(t *testing.T) {
	path := sparseFile(t, 2<<20)
	run(t, "", "mkfs.fat", "-F", "12", "-n", "OLD", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const field = 43 // of the boot sector's label
	if got := strings.TrimSpace(string(b[field : field+11])); got != "OLD" {
		t.Fatalf("the boot sector has the label %q, want OLD", got)
	}
	copy(b[field:], "BOOT SECTOR")
	if got := Identify(bytes.NewReader(b)); got.Label != "OLD" {
		t.Errorf("label %q, want that of the root directory, OLD", got.Label)
	}
	at := bytes.LastIndex(b, []byte("OLD        "))
	b[at] = 0xe5 // deleted
	if got := Identify(bytes.NewReader(b)); got.Label != "BOOT SECTOR" {
		t.Errorf("label %q, want that of the boot sector", got.Label)
	}
}

// partitionsOf gives what sfdisk made: start, in bytes, by number.
func partitionsOf(t *testing.T, path string, sectorSize int64) map[int]int64 {
	t.Helper()
	starts := map[int]int64{}
	for line := range strings.Lines(run(t, "", "sfdisk", "--dump", path)) {
		rest, ok := strings.CutPrefix(line, path)
		if !ok {
			continue
		}
		number, rest, _ := strings.Cut(rest, " : start=")
		start, _, _ := strings.Cut(strings.TrimSpace(rest), ",")
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil {
			t.Fatalf("sfdisk: %q: %v", line, err)
		}
		at, err := strconv.ParseInt(start, 10, 64)
		if err != nil {
			t.Fatalf("sfdisk: %q: %v", line, err)
		}
		starts[n] = at * sectorSize
	}
	return starts
}

func TestFindPartition(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         map[int]Partition
	}{
		{
			"GPT", "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n" +
				"size=4MiB, uuid=0F1E2D3C-4B5A-4978-8796-A5B4C3D2E1F0, name=\"boot_a\"\n" +
				"size=4MiB, uuid=00000000-0000-0000-0000-000000000002, name=\"a b=c\"\n" +
				"size=4MiB, uuid=00000000-0000-0000-0000-000000000003, name=\"0123456789abcdefghijklmnopqrstuvwxyz\"\n" +
				"size=4MiB, uuid=00000000-0000-0000-0000-000000000004\n",
			map[int]Partition{
				1: {"0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0", "boot_a"},
				2: {"00000000-0000-0000-0000-000000000002", "a b=c"},
				3: {"00000000-0000-0000-0000-000000000003", "0123456789abcdefghijklmnopqrstuvwxyz"},
				4: {"00000000-0000-0000-0000-000000000004", ""},
			},
		},
		{
			"GPT with gaps in the numbers", "label: gpt\n3 : size=4MiB, uuid=00000000-0000-0000-0000-000000000003\n" +
				"128 : size=4MiB, uuid=00000000-0000-0000-0000-000000000080, name=last\n",
			map[int]Partition{
				3:   {"00000000-0000-0000-0000-000000000003", ""},
				128: {"00000000-0000-0000-0000-000000000080", "last"},
			},
		},
		{
			"DOS", "label: dos\nlabel-id: 0x0a1B2c3D\nsize=4MiB\nsize=4MiB\n4 : size=4MiB\n",
			map[int]Partition{1: {UUID: "0a1b2c3d-01"}, 2: {UUID: "0a1b2c3d-02"}, 4: {UUID: "0a1b2c3d-04"}},
		},
		{
			"DOS with logical partitions", "label: dos\nlabel-id: 0xffffffff\nsize=4MiB\nsize=40MiB, type=5\n5 : size=4MiB\n6 : size=4MiB\n",
			map[int]Partition{1: {UUID: "ffffffff-01"}, 2: {UUID: "ffffffff-02"}, 5: {UUID: "ffffffff-05"}, 6: {UUID: "ffffffff-06"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := sparseFile(t, 64<<20)
			run(t, test.script, "sfdisk", "-q", path)
			starts := partitionsOf(t, path, 512)
			disk := openFile(t, path)
			got := map[int]Partition{}
			for number, start := range starts {
				got[number] = FindPartition(disk, number, start)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("FindPartition (-want +got):\n%s", diff)
			}
			compareWithPartprobe(t, path, got)

			// Nothing is believed that does not agree with the kernel.
			for number, start := range starts {
				if p := FindPartition(disk, number, start+512); number <= 4 && p != (Partition{}) {
					t.Errorf("FindPartition %d at a wrong start = %+v, want nothing", number, p)
				}
			}
			for _, number := range []int{-1, 0} {
				if p := FindPartition(disk, number, 0); p != (Partition{}) {
					t.Errorf("FindPartition %d = %+v, want nothing", number, p)
				}
			}
		})
	}
}

// compareWithPartprobe compares with libblkid's reading of a partition table,
// as `blkid -p` has it for a partition's device, by way of sfdisk.
func compareWithPartprobe(t *testing.T, path string, got map[int]Partition) {
	t.Helper()
	table := blkid(t, path)
	for number, p := range got {
		switch table["PTTYPE"] {
		case "gpt":
			uuid := strings.TrimSpace(run(t, "", "sfdisk", "--part-uuid", path, strconv.Itoa(number)))
			label := strings.TrimSpace(run(t, "", "sfdisk", "--part-label", path, strconv.Itoa(number)))
			if want := (Partition{strings.ToLower(uuid), label}); p != want {
				t.Errorf("partition %d is %+v, sfdisk says %+v", number, p, want)
			}
		case "dos":
			if want := fmt.Sprintf("%s-%02x", table["PTUUID"], number); p.UUID != want {
				t.Errorf("partition %d has the UUID %s, blkid says %s", number, p.UUID, want)
			}
		default:
			t.Errorf("blkid finds the partition table %q", table["PTTYPE"])
		}
	}
}

// gptTable is a table of 4 entries on a disk with sectors of that size.
func gptTable(sectorSize int, entrySize int) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*sectorSize+4*entrySize)
	copy(b[sectorSize:], "EFI PART")
	le.PutUint64(b[sectorSize+72:], 2)
	le.PutUint32(b[sectorSize+80:], 4)
	le.PutUint32(b[sectorSize+84:], uint32(entrySize))
	entry := b[2*sectorSize+1*entrySize:] // number 2
	entry[16] = 0xA1
	le.PutUint64(entry[32:], 256)
	entry[56] = 'x'
	return b
}

func TestFindPartitionSectorSizes(t *testing.T) {
	want := Partition{"000000a1-0000-0000-0000-000000000000", "x"}
	for _, sectorSize := range []int{512, 4096} {
		for _, entrySize := range []int{128, 256, 4096} {
			b := gptTable(sectorSize, entrySize)
			if got := FindPartition(bytes.NewReader(b), 2, 256*int64(sectorSize)); got != want {
				t.Errorf("sectors of %d, entries of %d bytes: FindPartition = %+v, want %+v", sectorSize, entrySize, got, want)
			}
		}
	}
	// sfdisk writes ASCII alone; names are UTF-16.
	named := gptTable(512, 128)
	copy(named[2*512+128+56:], []byte{0xf6, 0, 0x3d, 0xd8, 0, 0xde, 0, 0xd8, 'x', 0}) // the last pair is broken
	if got := FindPartition(bytes.NewReader(named), 2, 256*512).Label; got != "\u00f6\U0001f600\ufffdx" {
		t.Errorf("label %q, want %q", got, "\u00f6\U0001f600\ufffdx")
	}
	b := gptTable(512, 128)
	for name, change := range map[string]func(){
		"entries too small": func() { binary.LittleEndian.PutUint32(b[512+84:], 64) },
		"entries too large": func() { binary.LittleEndian.PutUint32(b[512+84:], 1<<31) },
		"few entries":       func() { binary.LittleEndian.PutUint32(b[512+80:], 1) },
		"table far away":    func() { binary.LittleEndian.PutUint64(b[512+72:], 1<<62) },
		"no magic":          func() { b[512] = 0 },
	} {
		b = gptTable(512, 128)
		change()
		if got := FindPartition(bytes.NewReader(b), 2, 256*512); got != (Partition{}) {
			t.Errorf("%s: FindPartition = %+v, want nothing", name, got)
		}
	}
	whole := gptTable(512, 128)
	for size := range 2*512 + 2*128 {
		if got := FindPartition(bytes.NewReader(whole[:size]), 2, 256*512); got != (Partition{}) {
			t.Fatalf("FindPartition on the first %d bytes = %+v, want nothing", size, got)
		}
	}
}

// boundedReader is a device of hostile bytes: it fails the test when a read is
// larger than any that the formats need.
type boundedReader struct {
	t    *testing.T
	b    []byte
	far  []byte // more bytes, where btrfs has its superblock
	read int
}

func (r *boundedReader) ReadAt(p []byte, off int64) (int, error) {
	const largest, total = 64 << 10, 256 << 10
	if r.read += len(p); len(p) > largest || r.read > total {
		r.t.Errorf("a read of %d bytes, %d in all; want at most %d and %d", len(p), r.read, largest, total)
	}
	if off < 0 {
		r.t.Errorf("a read at %d", off)
		return 0, io.EOF
	}
	b := r.b
	if off >= btrfsSuperblock && r.far != nil {
		b, off = r.far, off-btrfsSuperblock
	}
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fatHead is the beginning of a FAT whose root directory is far away.
func fatHead() []byte {
	b := make([]byte, 4096)
	copy(b[11:], []byte{0, 2, 8, 32, 0, 2, 0, 0, 0, 0, 0xf8})
	binary.LittleEndian.PutUint32(b[36:], 0xffffffff)
	binary.LittleEndian.PutUint32(b[44:], 0xffffffff)
	b[66] = 0x29
	b[510], b[511] = 0x55, 0xAA
	return b
}

func identifySeeds() map[string][]byte {
	ext := make([]byte, 4096)
	binary.LittleEndian.PutUint16(ext[extSuperblock+0x38:], 0xEF53)
	xfs := make([]byte, 4096)
	copy(xfs, "XFSB")
	return map[string][]byte{"erofs": erofsHead(), "ext4": ext, "xfs": xfs, "vfat": fatHead(), "": make([]byte, 4096)}
}

func btrfsSeed() []byte {
	b := make([]byte, 1024)
	copy(b[64:], "_BHRfS_M")
	return b
}

func TestIdentifySeeds(t *testing.T) {
	for want, b := range identifySeeds() {
		if got := checkIdentify(t, b, nil); got.Type != want {
			t.Errorf("the seed of %q is identified as %q", want, got.Type)
		}
	}
	if got := checkIdentify(t, make([]byte, headSize), btrfsSeed()); got.Type != "btrfs" {
		t.Errorf("the seed of btrfs is identified as %q", got.Type)
	}
}

func FuzzIdentify(f *testing.F) {
	for _, b := range identifySeeds() {
		f.Add(b, []byte(nil))
	}
	f.Add(make([]byte, headSize), btrfsSeed())
	f.Fuzz(func(t *testing.T, b, far []byte) { checkIdentify(t, b, far) })
}

func checkIdentify(t *testing.T, b, far []byte) Filesystem {
	got := Identify(&boundedReader{t: t, b: b, far: far})
	if got.Type == "" && got != (Filesystem{}) {
		t.Errorf("Identify = %+v: an identity without a type", got)
	}
	e, err := ReadEROFS(&boundedReader{t: t, b: b})
	if err == nil && len(b) >= headSize {
		if e.Size < 0 || got.Type != "erofs" || got.UUID != e.UUID.String() {
			t.Errorf("ReadEROFS = %+v, Identify = %+v", e, got)
		}
	}
	return got
}

func FuzzFindPartition(f *testing.F) {
	f.Add(gptTable(512, 128), 2, int64(256*512))
	f.Add(gptTable(4096, 128), 2, int64(256*4096))
	f.Add(mbrTable(), 1, int64(512*2048))
	f.Add([]byte{}, 1<<30, int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, number int, start int64) {
		p := FindPartition(&boundedReader{t: t, b: b}, number, start)
		if p != (Partition{}) && number < 1 {
			t.Errorf("FindPartition %d = %+v", number, p)
		}
		if p.UUID == "" && p.Label != "" {
			t.Errorf("FindPartition %d = %+v: a label without a UUID", number, p)
		}
	})
}

func mbrTable() []byte {
	b := make([]byte, 512)
	binary.LittleEndian.PutUint32(b[440:], 0x12345678)
	binary.LittleEndian.PutUint32(b[446+8:], 2048)
	b[510], b[511] = 0x55, 0xAA
	return b
}

func TestFindPartitionMBR(t *testing.T) {
	b := mbrTable()
	if got := FindPartition(bytes.NewReader(b), 1, 2048*512); got.UUID != "12345678-01" {
		t.Errorf("FindPartition = %+v, want 12345678-01", got)
	}
	b[440], b[441], b[442], b[443] = 0, 0, 0, 0
	if got := FindPartition(bytes.NewReader(b), 1, 2048*512); got != (Partition{}) {
		t.Errorf("FindPartition without a disk signature = %+v, want nothing", got)
	}
	b = mbrTable()
	b[511] = 0
	if got := FindPartition(bytes.NewReader(b), 1, 2048*512); got != (Partition{}) {
		t.Errorf("FindPartition without the boot signature = %+v, want nothing", got)
	}
}
