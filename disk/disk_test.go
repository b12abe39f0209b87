package disk

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// oracle finds a tool that a test needs.
func oracle(t *testing.T, name string) string {
	t.Helper()
	binary, err := tool(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: %v", name, err)
		}
		t.Skipf("%s is missing: %v", name, err)
	}
	return binary
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(oracle(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// randomFile writes a file of incompressible content.
func randomFile(t *testing.T, name string, size int) string {
	t.Helper()
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(b); err != nil {
		t.Fatal(err)
	}
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFormat(t *testing.T) {
	image := randomFile(t, "image", 5<<20+123)
	small := randomFile(t, "small", 1)
	files := map[string]string{
		"/initoverlayfs-6.1.0-56-amd64.img": image,
		"/sub/deep/image.img":               image,
		"/sub/small":                        small,
		"/other/small":                      small,
	}
	const uuid = "11111111-2222-4333-8444-555555555555"
	for _, test := range []struct {
		fs, formatter, uuid string
		size                int64
		check               []string
		wantSize            int64
	}{
		{"ext4", "mke2fs", uuid, 0, []string{"e2fsck", "-fn"}, 32 << 20},
		{"ext4", "mke2fs", uuid, 200 << 20, []string{"e2fsck", "-fn"}, 200 << 20},
		{"xfs", "mkfs.xfs", uuid, 0, []string{"xfs_repair", "-n", "-f"}, 300 << 20},
		{"btrfs", "mkfs.btrfs", uuid, 0, []string{"btrfs", "check", "--readonly"}, 128 << 20},
		{"vfat", "", "1234-ABCD", 0, []string{"fsck.fat", "-n"}, 33 << 20},
		{"vfat", "", "1234-ABCD", 100 << 20, []string{"fsck.fat", "-n"}, 100 << 20},
		// go-diskfs's allocation table is two entries too small at 64 MiB.
		{"vfat", "", "1234-ABCD", 64 << 20, []string{"fsck.fat", "-n"}, 65 << 20},
		{"vfat", "", "1234-ABCD", 512 << 20, []string{"fsck.fat", "-n"}, 512 << 20},
	} {
		t.Run(test.fs, func(t *testing.T) {
			if test.formatter != "" {
				oracle(t, test.formatter)
			}
			path := filepath.Join(t.TempDir(), "disk.img")
			got, err := Format(t.Context(), path, Partition{FS: test.fs, FSLabel: "BOOTFS", FSUUID: test.uuid, Size: test.size, Files: files})
			if err != nil {
				t.Fatal(err)
			}
			if got.Size != test.wantSize {
				t.Errorf("size = %d, want %d", got.Size, test.wantSize)
			}
			mustRun(t, test.check[0], append(test.check[1:], path)...)
			got2 := probe(t, path)
			want := map[string]string{"TYPE": test.fs, "LABEL": "BOOTFS", "UUID": test.uuid}
			if diff := cmp.Diff(want, got2); diff != "" {
				t.Errorf("blkid (-want +got):\n%s", diff)
			}
		})
	}
}

// probe gives what blkid finds.
func probe(t *testing.T, path string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(mustRun(t, "blkid", "-p", "-o", "export", path)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "TYPE" || key == "LABEL" || key == "UUID" {
			found[key] = value
		}
	}
	return found
}

// TestContent reads the files back with tools that do not mount.
func TestContent(t *testing.T) {
	image := randomFile(t, "image", 3<<20+7)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]func(t *testing.T, disk, to string){
		"ext4": func(t *testing.T, disk, to string) {
			mustRun(t, "debugfs", "-R", "dump /a/b/image.img "+to, disk)
		},
		"vfat": func(t *testing.T, disk, to string) {
			mustRun(t, "mcopy", "-i", disk, "::a/b/image.img", to)
		},
		"btrfs": func(t *testing.T, disk, to string) {
			dir := t.TempDir()
			mustRun(t, "btrfs", "restore", disk, dir)
			if err := os.Rename(filepath.Join(dir, "a/b/image.img"), to); err != nil {
				t.Fatal(err)
			}
		},
	}
	for fs, extract := range read {
		t.Run(fs, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			if _, err := Format(t.Context(), path, Partition{FS: fs, Files: map[string]string{"/a/b/image.img": image}}); err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(t.TempDir(), "out")
			extract(t, path, to)
			got, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes read differ from the %d written", len(got), len(want))
			}
		})
	}
}

func TestCreate(t *testing.T) {
	oracle(t, "mke2fs")
	image := randomFile(t, "image.erofs", 2<<20+4096)
	spec := Spec{
		GUID: "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE",
		Partitions: []Partition{
			{Label: "esp", Type: EFISystem, FS: "vfat", Files: map[string]string{"/EFI/BOOT/x.efi": image}},
			{Label: "initoverlayfs", GUID: "11111111-2222-4333-8444-666666666666", Image: image},
			{Label: "boot", FS: "ext4", FSLabel: "BOOT", Files: map[string]string{"/x.img": image}},
			{Label: "empty", Size: 5 << 20},
		},
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	parts, err := Create(t.Context(), path, spec)
	if err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "sfdisk", "-V", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk -V: %s", out)
	}
	var table struct {
		PartitionTable struct {
			ID         string
			Partitions []struct {
				Start, Size      int64
				Type, UUID, Name string
			}
		}
	}
	if err := json.Unmarshal([]byte(mustRun(t, "sfdisk", "--json", path)), &table); err != nil {
		t.Fatal(err)
	}
	if got := table.PartitionTable.ID; got != spec.GUID {
		t.Errorf("disk GUID = %s, want %s", got, spec.GUID)
	}
	if got, want := len(table.PartitionTable.Partitions), len(parts); got != want {
		t.Fatalf("%d partitions, want %d", got, want)
	}
	for i, got := range table.PartitionTable.Partitions {
		want := parts[i]
		if got.Start*sector != want.Offset || got.Size*sector != want.Size ||
			!strings.EqualFold(got.UUID, want.GUID) || got.Name != want.Label || !strings.EqualFold(got.Type, want.Type) {
			t.Errorf("partition %d = %+v, want %+v", i+1, got, want)
		}
	}

	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	p := parts[1]
	content := disk[p.Offset : p.Offset+p.Size]
	if !bytes.Equal(content[:len(want)], want) || len(bytes.Trim(content[len(want):], "\x00")) != 0 {
		t.Error("the raw partition does not hold the image and zeros")
	}
	// The filesystem in the third partition is sound in its place.
	p = parts[2]
	alone := filepath.Join(dir, "alone")
	if err := os.WriteFile(alone, disk[p.Offset:p.Offset+p.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "e2fsck", "-fn", alone)

	again := filepath.Join(dir, "again.img")
	parts2, err := Create(t.Context(), again, spec)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parts, parts2); diff != "" {
		t.Errorf("the same description gave other partitions (-first +second):\n%s", diff)
	}
	disk2, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk, disk2) {
		t.Error("the same description gave two different disks")
	}
	var usage syscall.Stat_t
	if err := syscall.Stat(path, &usage); err != nil {
		t.Fatal(err)
	}
	if got, most := usage.Blocks*512, int64(16*mib); got > most {
		t.Errorf("the disk takes %d bytes, want at most %d: its holes are filled", got, most)
	}
	noScraps(t, dir, "again.img", "alone", "disk.img")
}

// noScraps fails if a folder holds anything but the named files.
func noScraps(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	image := randomFile(t, "image", 3<<20)
	for _, test := range []struct {
		name string
		spec Spec
		want string
	}{
		{"nothing", Spec{Partitions: []Partition{{}}}, "neither content nor size"},
		{"both", Spec{Partitions: []Partition{{Image: image, FS: "ext4"}}}, "both an image and a filesystem"},
		{"unknown", Spec{Partitions: []Partition{{FS: "ntfs"}}}, "partition 1: ntfs: unknown filesystem"},
		{"small", Spec{Partitions: []Partition{{Image: image, Size: 1 << 20}}}, "has 3145728 bytes"},
		{"small disk", Spec{Size: 4 << 20, Partitions: []Partition{{Image: image}}}, "the partitions need 5242880"},
		{"missing", Spec{Partitions: []Partition{{Image: image + "x"}}}, "no such file"},
		{"relative", Spec{Partitions: []Partition{{FS: "ext4", Files: map[string]string{"a": image}}}}, "not a clean absolute path"},
		{"climbs", Spec{Partitions: []Partition{{FS: "ext4", Files: map[string]string{"/../a": image}}}}, "not a clean absolute path"},
		{"serial", Spec{Partitions: []Partition{{FS: "vfat", FSUUID: "12345678"}}}, "not XXXX-XXXX"},
		{"formatter", Spec{Partitions: []Partition{{FS: "ext4", FSUUID: "x"}}}, "mke2fs: "},
		{"guid", Spec{Partitions: []Partition{{Image: image, GUID: "x"}}}, "partition table"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Create(t.Context(), filepath.Join(dir, "disk.img"), test.spec)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", err, test.want)
			}
			noScraps(t, dir)
		})
	}
}
