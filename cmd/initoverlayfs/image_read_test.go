package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"a b.c": "a b.c", "ü": "ü", "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`,
	} {
		if got := printable(name); got != want {
			t.Errorf("printable(%q) = %s, want %s", name, got, want)
		}
	}
}

func TestModeString(t *testing.T) {
	for mode, want := range map[uint32]string{
		unix.S_IFREG | 0o644: "-rw-r--r--", unix.S_IFDIR | 0o1777: "drwxrwxrwt", unix.S_IFREG | 0o4755: "-rwsr-xr-x",
		unix.S_IFREG | 0o6644: "-rwSr-Sr--", unix.S_IFLNK | 0o777: "lrwxrwxrwx", unix.S_IFCHR | 0o1600: "crw------T",
		unix.S_IFBLK: "b---------", unix.S_IFIFO: "p---------", unix.S_IFSOCK | 0o1: "s--------x",
	} {
		if got := modeString(mode); got != want {
			t.Errorf("modeString(%o) = %s, want %s", mode, got, want)
		}
	}
}

// mkfsImage makes an image of a tree with mkfs.erofs.
func mkfsImage(t *testing.T, tree string) string {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(mkfs, "-zlz4hc", image, tree).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return image
}

// A symbolic link of the image never leads the unpacking out of its directory,
// and what is special about a file survives.
func TestExtract(t *testing.T) {
	tree, outside := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	content := append(make([]byte, 1<<20), "end"...)
	must(os.WriteFile(filepath.Join(tree, "file"), content, 0o644))
	must(os.Chmod(filepath.Join(tree, "file"), 0o555|os.ModeSetuid))
	must(os.Symlink(outside, filepath.Join(tree, "a-link")))
	must(os.Symlink(filepath.Join(outside, "new"), filepath.Join(tree, "b-link")))
	must(os.Mkdir(filepath.Join(tree, "dir"), 0o755))
	must(os.Link(filepath.Join(tree, "file"), filepath.Join(tree, "dir/hard")))
	must(os.Chmod(filepath.Join(tree, "dir"), 0o555))
	image := mkfsImage(t, tree)
	target := filepath.Join(t.TempDir(), "target")

	var stderr bytes.Buffer
	a := &app{stdout: &stderr, stderr: &stderr, getenv: os.Getenv}
	if status := run(t.Context(), a, []string{"image", "extract", image, target}); status != exitOK {
		t.Fatalf("status %d\n%s", status, &stderr)
	}
	got, err := os.ReadFile(filepath.Join(target, "dir/hard"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("content of %d bytes, %v; want %d", len(got), err, len(content))
	}
	var st, hard unix.Stat_t
	must(unix.Lstat(filepath.Join(target, "file"), &st))
	must(unix.Lstat(filepath.Join(target, "dir/hard"), &hard))
	if st.Ino != hard.Ino || st.Mode != unix.S_IFREG|0o4555 {
		t.Errorf("inodes %d and %d, mode %o; want one, mode 104555", st.Ino, hard.Ino, st.Mode)
	}
	if st.Blocks*512 >= int64(len(content)) {
		t.Errorf("the file takes %d blocks, although it is sparse", st.Blocks)
	}
	if link, err := os.Readlink(filepath.Join(target, "a-link")); err != nil || link != outside {
		t.Errorf("link to %q, %v", link, err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("unpacking wrote to %v, %v", entries, err)
	}
	info, err := os.Stat(filepath.Join(target, "dir"))
	must(err)
	if info.Mode().Perm() != 0o555 {
		t.Errorf("mode of the directory is %v", info.Mode())
	}
}

// Without rights, what is missing is said, and is an error unless it is accepted.
func TestExtractUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to make what others may not")
	}
	// Below /tmp and not in t.TempDir, which others cannot search.
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	for i, err := range []error{
		os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o644),
		unix.Mknod(filepath.Join(tree, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(filepath.Join(tree, "fifo"), 0o666),
	} {
		if err != nil {
			t.Fatal(i, err)
		}
	}
	image, err := os.ReadFile(mkfsImage(t, tree))
	if err != nil {
		t.Fatal(err)
	}
	// The test's program is the command when it has its name.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "initoverlayfs")
	for name, b := range map[string][]byte{program: self, filepath.Join(dir, "image"): image} {
		if err := os.WriteFile(name, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		flags  []string
		status int
		want   string
	}{
		{nil, exitFailure, "error: unpacked into one, but left out: 3 owners, 1 device nodes\nhint: "},
		{[]string{"--no-same-owner"}, exitOK, "warning: left out: 1 device nodes\n"},
	} {
		cmd := exec.Command(program, append([]string{"image", "extract", "image", "one"}, test.flags...)...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != test.status || !strings.Contains(string(out), test.want) {
			t.Errorf("%v: status %d, want %d with %q\n%s", test.flags, got, test.status, test.want, out)
		}
		got, err := os.ReadFile(filepath.Join(dir, "one/file"))
		if err != nil || string(got) != "content" {
			t.Errorf("%v: content %q, %v", test.flags, got, err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "one")); err != nil {
			t.Fatal(err)
		}
	}
}
