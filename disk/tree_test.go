package disk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asNobody runs a command line of the shell as an ordinary user, in a folder
// that the user may write to.
func asNobody(t *testing.T, dir, script string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-euc", script, "sh"}, args...)...)
	cmd.Dir = dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	cmd.Env = append(os.Environ(), "HOME=/nonexistent")
	return cmd
}

// treeTar makes a tar archive of what an ordinary user cannot have.
func treeTar(t *testing.T) string {
	t.Helper()
	oracle(t, "fakeroot")
	path := filepath.Join(t.TempDir(), "tree.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./dev/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Name: "./dev/vda", Typeflag: tar.TypeBlock, Mode: 0o660, Gid: 6, Devmajor: 254},
		{Name: "./dev/fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.folder": "yes",
		}},
		{Name: "./etc/one", Mode: 0o4755, Size: 4, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability,
			"SCHILY.xattr.user.name":           "value",
		}},
		{Name: "./etc/two", Typeflag: tar.TypeLink, Linkname: "./etc/one"},
		{Name: "./home/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "./home/link", Typeflag: tar.TypeSymlink, Linkname: "../etc/one", Mode: 0o777, Uid: 1000, Gid: 1001},
		{Name: "./home/user/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1000, Gid: 1001},
		{Name: "./locked/", Typeflag: tar.TypeDir, Mode: 0o500},
		{Name: "./locked/with space", Mode: 0o400, Size: 4, PAXRecords: map[string]string{
			"SCHILY.xattr.user.name": "spaced",
		}},
	} {
		h.ModTime = time.Unix(1_600_000_000, 0)
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "text"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// capability is what setcap(8) writes for cap_net_raw+ep.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// stat gives debugfs's description of a file in the ext4 at a disk's begin.
func stat(t *testing.T, disk, path string) string {
	t.Helper()
	return strings.Join(strings.Fields(mustRun(t, "debugfs", "-R", `stat "`+path+`"`, disk)), " ")
}

// TestTree copies a tar as root and as an ordinary user. What comes out is the
// same, to the byte.
func TestTree(t *testing.T) {
	oracle(t, "mke2fs")
	if os.Getenv("DISK_TEST_TAR") != "" {
		// The child, an ordinary user.
		if _, err := Create(t.Context(), "disk.img", treeSpec(os.Getenv("DISK_TEST_TAR"))); err != nil {
			t.Fatal(err)
		}
		noScraps(t, ".", "disk.img")
		return
	}
	archive := treeTar(t)
	var disks [][]byte
	for range 2 {
		dir := t.TempDir()
		path := filepath.Join(dir, "disk.img")
		parts, err := Create(t.Context(), path, treeSpec(archive))
		if err != nil {
			t.Fatal(err)
		}
		checkTree(t, path, parts[1])
		noScraps(t, dir, "disk.img", "root.img")
		disks = append(disks, readFile(t, path))
		time.Sleep(1100 * time.Millisecond)
	}
	if !bytes.Equal(disks[0], disks[1]) {
		t.Error("the same tar gave two different disks")
	}
	if os.Geteuid() != 0 {
		return // that was the ordinary user
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "disk-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	work := filepath.Join(dir, "work")
	for _, step := range []error{
		os.Chmod(dir, 0o755), copyFile(filepath.Join(dir, "test"), self), os.Chmod(filepath.Join(dir, "test"), 0o755),
		copyFile(filepath.Join(dir, "tree.tar.gz"), archive), os.Mkdir(work, 0o777), os.Chmod(work, 0o777),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	cmd := asNobody(t, work, `DISK_TEST_TAR=$1 exec ../test -test.run '^TestTree$'`, filepath.Join(dir, "tree.tar.gz"))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as an ordinary user: %v\n%s", err, text)
	}
	if got := readFile(t, filepath.Join(work, "disk.img")); !bytes.Equal(got, disks[0]) {
		t.Error("the disk of an ordinary user is not that of root")
	}
}

func treeSpec(archive string) Spec {
	return Spec{Seed: "tree", Partitions: []Partition{
		{Label: "first", Size: mib},
		{Label: "root", Type: Root["amd64"], FS: "ext4", FSLabel: "root", Tree: archive},
		{Label: "last", Size: mib},
	}}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func checkTree(t *testing.T, path string, p Partition) {
	t.Helper()
	disk := readFile(t, path)
	alone := filepath.Join(filepath.Dir(path), "root.img")
	if err := os.WriteFile(alone, disk[p.Offset:p.Offset+p.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "e2fsck", "-fn", alone)
	for name, words := range map[string][]string{
		"/dev/null":          {"Type: character special", "Device major/minor number: 01:03"},
		"/dev/vda":           {"Type: block special", "Device major/minor number: 254:00"},
		"/dev/fifo":          {"Type: FIFO"},
		"/etc/one":           {"Mode: 04755", "Links: 2", "User: 0 Group: 0", "Size: 4", "mtime: 0x5f5e1000", "ctime: 0x5f5e1000", "atime: 0x5f5e1000"},
		"/home":              {"Mode: 01777", "mtime: 0x5f5e1000"},
		"/home/user":         {"User: 1000 Group: 1001", "Type: directory"},
		"/home/link":         {"User: 1000 Group: 1001", `Fast link dest: "../etc/one"`},
		"/locked":            {"Mode: 0500"},
		"/locked/with space": {"Mode: 0400", "Size: 4"},
	} {
		got := stat(t, alone, name)
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %s; want %s", name, got, w)
			}
		}
	}
	for name, attrs := range map[string][]string{
		"/etc":               {`trusted.folder (3) = "yes"`},
		"/etc/one":           {"security.capability (20) = 01 00 00 02 00 20 00", `user.name (5) = "value"`},
		"/locked/with space": {`user.name (6) = "spaced"`},
	} {
		got := mustRun(t, "debugfs", "-R", `ea_list "`+name+`"`, alone)
		for _, a := range attrs {
			if !strings.Contains(got, a) {
				t.Errorf("attributes of %s: %s; want %s", name, got, a)
			}
		}
	}
	if one, two := stat(t, alone, "/etc/one"), stat(t, alone, "/etc/two"); one != two {
		t.Errorf("the hard links are two files: %s, %s", one, two)
	}
}

// TestTreeOfDirectory takes a directory with extended attributes, and files that
// belong to root in a filesystem made of files.
func TestTreeOfDirectory(t *testing.T) {
	oracle(t, "mke2fs")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(tree, "file")
	if err := os.WriteFile(file, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(file, "user.test", []byte("value"), 0); err != nil {
		t.Skipf("the folder for temporary files has no extended attributes: %v", err)
	}
	path := filepath.Join(dir, "disk.img")
	p, err := Format(t.Context(), path, Partition{FS: "ext4", Tree: tree, Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, "e2fsck", "-fn", path)
	if got := mustRun(t, "debugfs", "-R", "ea_get /file user.test", path); !strings.Contains(got, "value") {
		t.Errorf("the attribute is %q", got)
	}
	if got := stat(t, path, "/file"); !strings.Contains(got, "Mode: 0640") {
		t.Errorf("/file: %s", got)
	}
	if p.Size != 64<<20 {
		t.Errorf("size = %d", p.Size)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Format(t.Context(), path, Partition{FS: "ext4", Files: map[string]string{"/a/b": file}}); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "e2fsck", "-fn", path)
	for _, name := range []string{"/a", "/a/b"} {
		if got := stat(t, path, name); !strings.Contains(got, "User: 0 Group: 0") {
			t.Errorf("%s: %s; want root's", name, got)
		}
	}
}

// TestNoSpace fills a small filesystem: what was begun is removed.
func TestNoSpace(t *testing.T) {
	oracle(t, "mke2fs")
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small filesystem")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	image := randomFile(t, "image", 8<<20)
	files := map[string]string{"/image": image}
	for name, part := range map[string]Partition{
		"raw":  {Image: image},
		"ext4": {FS: "ext4", Files: files},
		"vfat": {FS: "vfat", Files: files},
		"tree": {FS: "ext4", Tree: filepath.Dir(image)},
	} {
		t.Run(name, func(t *testing.T) {
			before := randomFile(t, "before", 100)
			path := filepath.Join(dir, "disk.img")
			if err := copyFile(path, before); err != nil {
				t.Fatal(err)
			}
			_, err := Create(t.Context(), path, Spec{Partitions: []Partition{part}})
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), "no space left") {
				t.Errorf("error = %v, want no space left", err)
			}
			noScraps(t, dir, "disk.img")
			if !bytes.Equal(readFile(t, path), readFile(t, before)) {
				t.Error("the file that was there before is changed")
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// paxTar makes a tar of one empty file with these records.
func paxTar(t *testing.T, name string, records map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: records}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pax.tar")
	if err := errors.Join(w.Close(), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestXattrsOfPieces reads an archive that is compressed in several pieces, and
// one that is not compressed but looks so.
func TestXattrsOfPieces(t *testing.T) {
	plain := readFile(t, paxTar(t, "BZ", map[string]string{"SCHILY.xattr.user.a": "b"}))
	var packed bytes.Buffer
	for _, piece := range [][]byte{plain[:700], plain[700:]} {
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(piece); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := xattrs{"/BZ": {"user.a": []byte("b")}}
	for name, content := range map[string][]byte{"plain": plain, "pieces": packed.Bytes()} {
		path := filepath.Join(t.TempDir(), "tree.tar")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := (&maker{ctx: t.Context()}).readXattrs(path)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		// What is cut off is no end.
		if err := os.Truncate(path, int64(len(content)/2)); err != nil {
			t.Fatal(err)
		}
		if _, err := (&maker{ctx: t.Context()}).readXattrs(path); err == nil {
			t.Errorf("%s: no error for half of it", name)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	image := randomFile(t, "image", 3<<20)
	for name, part := range map[string]Partition{
		"raw":  {Image: image},
		"ext4": {FS: "ext4", Files: map[string]string{"/image": image}},
		"vfat": {FS: "vfat", Files: map[string]string{"/image": image}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Create(ctx, filepath.Join(dir, "disk.img"), Spec{Partitions: []Partition{part}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error = %v, want that it was cancelled", err)
			}
			noScraps(t, dir)
		})
	}
}

// TestCancelledProgram ends what a script has started, too, and does not wait
// for it.
func TestCancelledProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	script := filepath.Join(dir, "tool")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 100 &\n: >\"$1\"\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	started := filepath.Join(dir, "started")
	go func() {
		for {
			if _, err := os.Stat(started); err == nil || t.Context().Err() != nil {
				cancel()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	began := time.Now()
	if err := (&maker{ctx: ctx}).run(nil, script, started); err == nil {
		t.Error("the program was not ended")
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestTreeErrors(t *testing.T) {
	oracle(t, "mke2fs")
	file := randomFile(t, "file", 3<<20)
	tree := filepath.Dir(file)
	for _, test := range []struct {
		name string
		part Partition
		want string
	}{
		{"other filesystem", Partition{FS: "vfat", Tree: tree}, "needs an ext4 of its own"},
		{"files", Partition{FS: "ext4", Tree: tree, Files: map[string]string{"/x": file}}, "needs an ext4 of its own"},
		{"missing", Partition{FS: "ext4", Tree: file + "x"}, "no such file"},
		{"no archive", Partition{FS: "ext4", Tree: file}, "tar: "},
		{"device", Partition{FS: "ext4", Tree: "/dev/null"}, "neither a directory nor a tar"},
		{"text list", Partition{FS: "ext4", Tree: paxTar(t, "file", map[string]string{"SCHILY.acl.access": "user::rw-"})}, "access list is there as text only"},
		{"line break", Partition{FS: "ext4", Tree: paxTar(t, "a\nb", map[string]string{"SCHILY.xattr.user.a": "b"})}, "no line breaks"},
		{"refused", Partition{FS: "ext4", Tree: paxTar(t, "file", map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 70000)})}, "debugfs: set extended attributes: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Create(t.Context(), filepath.Join(dir, "disk.img"), Spec{Partitions: []Partition{test.part}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", err, test.want)
			}
			noScraps(t, dir)
		})
	}
}

func TestQCOW2(t *testing.T) {
	oracle(t, "qemu-img")
	image := randomFile(t, "image", 3<<20)
	dir := t.TempDir()
	spec := Spec{Partitions: []Partition{{Label: "x", Image: image}}}
	raw, converted := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if _, err := Create(t.Context(), raw, spec); err != nil {
		t.Fatal(err)
	}
	spec.Format = QCOW2
	if _, err := Create(t.Context(), converted, spec); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, converted)
	noScraps(t, dir, "qcow2", "raw")
	spec.Format = "vdi"
	if _, err := Create(t.Context(), raw, spec); err == nil || !strings.Contains(err.Error(), "unknown format") {
		t.Errorf("error = %v, want an unknown format", err)
	}
}
