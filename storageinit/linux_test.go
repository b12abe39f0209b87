package storageinit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
)

func writeTestFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestLinuxFiles(t *testing.T) {
	var l Linux
	dir := t.TempDir()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		path, text := fmt.Sprintf("%s/%d", dir, size), strings.Repeat("x", size)
		if err := l.WriteFile(path, text); err != nil {
			t.Fatalf("WriteFile of %d bytes: %v", size, err)
		}
		if got, err := l.ReadFile(path); err != nil || got != text {
			t.Errorf("ReadFile gives %d bytes and %v, want %d", len(got), err, size)
		}
	}
	if err := l.WriteFile(dir+"/4096", "short"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.ReadFile(dir + "/4096"); err != nil || got != "short" {
		t.Errorf("ReadFile after a shorter write = %q, %v; want %q", got, err, "short")
	}
	if got, err := l.ReadFile("/proc/self/status"); err != nil || !strings.HasPrefix(got, "Name:") {
		t.Errorf("ReadFile of a file whose size is not told = %q, %v", got, err)
	}
	if _, err := l.ReadFile(dir); !errors.Is(err, unix.EISDIR) {
		t.Errorf("ReadFile of a directory: %v, want %v", err, unix.EISDIR)
	}
	if err := l.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Errorf("Mkdir: %v", err)
	}
	if err := l.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Errorf("Mkdir of a directory that is there: %v, want nil", err)
	}
	if err := l.Mkdir(dir+"/no/sub", 0o755); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Mkdir without the parent: %v, want %v", err, unix.ENOENT)
	}
}

func TestLinuxReadDir(t *testing.T) {
	var l Linux
	dir := t.TempDir()
	var want []string
	for i := range 1000 { // more than one buffer of names
		name := fmt.Sprintf("a name that takes some bytes %04d", i)
		want = append(want, name)
		writeTestFile(t, dir+"/"+name, "", 0o644)
	}
	got, err := l.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadDir (-want +got):\n%s", diff)
	}
	if _, err := l.ReadDir(dir + "/none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("ReadDir of nothing: %v, want %v", err, unix.ENOENT)
	}
}

// Links of an image are resolved inside it.
func TestLinuxOpenStaysInRoot(t *testing.T) {
	var l Linux
	dir := t.TempDir()
	root := dir + "/root"
	writeTestFile(t, dir+"/outside", "outside", 0o755)
	writeTestFile(t, root+"/outside", "inside", 0o755)
	writeTestFile(t, root+"/plain", "plain", 0o644)
	for name, target := range map[string]string{
		"absolute": "/outside", "upward": "../../outside", "dangling": "nowhere", "loop": "loop", "directory": ".",
	} {
		if err := os.Symlink(target, root+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(root+"/fifo", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/outside", "/absolute", "/upward", "/../outside", "/directory/outside"} {
		image, err := l.Open(root, path)
		if err != nil {
			t.Errorf("Open %s: %v", path, err)
			continue
		}
		text, err := io.ReadAll(io.NewSectionReader(image, 0, image.Size()))
		if err != nil || string(text) != "inside" {
			t.Errorf("Open %s reads %q, %v; want %q", path, text, err, "inside")
		}
		source, err := os.ReadFile(image.Source())
		if err != nil || string(source) != "inside" {
			t.Errorf("the source of %s reads %q, %v; want %q", path, source, err, "inside")
		}
		image.Close()
		image.Close() // is safe to call twice
		if err := l.Executable(root, path); err != nil {
			t.Errorf("Executable %s: %v", path, err)
		}
	}
	for path, want := range map[string]error{"/dangling": unix.ENOENT, "/loop": unix.ELOOP, "/none": unix.ENOENT} {
		if _, err := l.Open(root, path); !errors.Is(err, want) {
			t.Errorf("Open %s: %v, want %v", path, err, want)
		}
		if err := l.Executable(root, path); !errors.Is(err, want) {
			t.Errorf("Executable %s: %v, want %v", path, err, want)
		}
	}
	for _, path := range []string{"/directory", "/fifo", "/plain"} {
		if err := l.Executable(root, path); !errors.Is(err, unix.EACCES) {
			t.Errorf("Executable %s: %v, want %v", path, err, unix.EACCES)
		}
	}
	for _, path := range []string{"/directory", "/fifo"} {
		if _, err := l.Open(root, path); err == nil {
			t.Errorf("Open %s succeeds, want an error", path)
		}
	}
}

func TestLinuxCopyToMemory(t *testing.T) {
	var l Linux
	path := t.TempDir() + "/image"
	want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	writeTestFile(t, path, string(want), 0o644)
	image, err := l.Open("/", path)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := l.CopyToMemory(image)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	image.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(memory, 0, memory.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy has %d bytes and the error %v, want the %d of the original", len(got), err, len(want))
	}

	// A file that has become shorter is an error and no shorter copy.
	writeTestFile(t, path, string(want), 0o644)
	if image, err = l.Open("/", path); err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := l.CopyToMemory(image); err == nil || err.Error() != "the file ends at byte 1000" {
		t.Errorf("CopyToMemory of a truncated file: %v", err)
	}
}

// TestLinuxDirectIO reads as EROFS would, where the answer is that it can.
func TestLinuxDirectIO(t *testing.T) {
	var l Linux
	const block = 4096
	path := t.TempDir() + "/image"
	want := strings.Repeat("x", block) + strings.Repeat("y", block)
	writeTestFile(t, path, want, 0o644)
	image, err := l.Open("/", path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if l.DirectIO(image, 1) {
		t.Error("single bytes can be read past the page cache")
	}
	if !l.DirectIO(image, block) {
		t.Skip("the filesystem of the temporary folder has no direct I/O")
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	if n, err := unix.Pread(fd, page, block); err != nil || string(page[:n]) != want[block:] {
		t.Errorf("reading a block: %d bytes, %v", n, err)
	}
}

func TestLinuxCopyAttributes(t *testing.T) {
	var l Linux
	dir := t.TempDir()
	from, to := dir+"/from", dir+"/to"
	for _, path := range []string{from, to} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Chmod(from, 0o1751); err != nil {
		t.Fatal(err)
	}
	mtime := []unix.Timespec{{Sec: 1}, {Sec: 1234567890, Nsec: 42}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, from, mtime, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.CopyAttributes(from, to); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o1751 || st.Mtim != mtime[1] {
		t.Errorf("mode %o and time %v, want 1751 and %v", st.Mode&0o7777, st.Mtim, mtime[1])
	}
	if err := l.CopyAttributes(dir+"/none", to); err == nil || !strings.HasPrefix(err.Error(), "stat "+dir+"/none: ") {
		t.Errorf("CopyAttributes of nothing: %v", err)
	}
}

func TestEmptyRootRefusesWithoutPID1(t *testing.T) {
	if os.Getpid() == 1 {
		t.Skip("this test is PID 1")
	}
	if err := new(Linux).EmptyRoot("/proc"); err == nil || err.Error() != "refused: this is not PID 1" {
		t.Errorf("EmptyRoot = %v, want a refusal", err)
	}
}

// TestEmptyRoot empties a root: this program runs again as PID 1 of its own PID
// and mount namespaces, whose root is a tmpfs.
func TestEmptyRoot(t *testing.T) {
	all := []string{
		"bin", "bin/tool", "etc", "etc/initoverlayfs.conf", "etc/initoverlayfs.modules", "fifo", "link",
		"lower", "lower/kept", "mounted", "proc", "sysroot", "sysroot/kept",
	}
	for _, test := range []struct {
		name, remove, newRoot string
		want                  rootReport
	}{
		{"mini-initramfs", "", "/sysroot", rootReport{"", []string{"lower", "lower/kept", "mounted", "sysroot", "sysroot/kept"}}},
		{"no configuration", "etc/initoverlayfs.conf", "/sysroot",
			rootReport{"refused: the root has no /etc/initoverlayfs.conf", without(all, "etc/initoverlayfs.conf")}},
		{"no module list", "etc/initoverlayfs.modules", "/sysroot",
			rootReport{"refused: the root has no /etc/initoverlayfs.modules", without(all, "etc/initoverlayfs.modules")}},
		{"new root is no mount", "", "/bin", rootReport{"refused: /bin is not a mount", all}},
		{"no new root", "", "/none", rootReport{"stat /none: no such file or directory", all}},
	} {
		t.Run(test.name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = []string{"STORAGEINIT_TEST_ROOT=" + t.TempDir(), "REMOVE=" + test.remove, "NEWROOT=" + test.newRoot}
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if errors.Is(err, syscall.EPERM) {
				t.Skip("needs root, or the permission to make namespaces")
			}
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.Bytes())
			}
			var got rootReport
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("report %q: %v", out, err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("the root afterwards (-want +got):\n%s", diff)
			}
		})
	}
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

// rootReport is what became of the root.
type rootReport struct {
	Error string
	Files []string
}

func TestMain(m *testing.M) {
	root := os.Getenv("STORAGEINIT_TEST_ROOT")
	if root == "" {
		os.Exit(m.Run())
	}
	if err := emptyOwnRoot(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// emptyOwnRoot makes a tmpfs on dir this process's root, and empties it.
func emptyOwnRoot(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}

	for _, dir := range []string{"/bin", "/etc", "/lower", "/proc", "/sysroot"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/lower", "/sysroot"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	for _, path := range []string{"/bin/tool", bootconf.ConfigPath, bootconf.ModulesPath, "/lower/kept", "/mounted", "/sysroot/kept"} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount("/lower/kept", "/mounted", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind a file: %w", err)
	}
	// A link must be removed, not followed.
	if err := os.Symlink("/sysroot", "/link"); err != nil {
		return err
	}
	if err := unix.Mkfifo("/fifo", 0o644); err != nil {
		return err
	}
	if remove := os.Getenv("REMOVE"); remove != "" {
		if err := os.Remove("/" + remove); err != nil {
			return err
		}
	}

	var r rootReport
	if err := new(Linux).EmptyRoot(os.Getenv("NEWROOT")); err != nil {
		r.Error = err.Error()
	}
	err := filepath.WalkDir("/", func(path string, _ fs.DirEntry, err error) error {
		if path != "/" {
			r.Files = append(r.Files, path[1:])
		}
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func TestLinuxCopyFile(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	content := strings.Repeat("some content\n", 100_000)
	writeTestFile(t, from, content, 0o644)
	var l Linux
	if err := l.CopyFile(from, to, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || string(got) != content {
		t.Errorf("the copy has %d bytes, want %d: %v", len(got), len(content), err)
	}
	if err := l.Executable("/", to); err != nil {
		t.Errorf("the copy is not executable: %v", err)
	}
	// What is there is not overwritten, and nothing comes of nothing.
	if err := l.CopyFile(from, to, 0o755); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second copy: %v, want EEXIST", err)
	}
	if err := l.CopyFile(filepath.Join(dir, "none"), filepath.Join(dir, "new"), 0o755); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a copy of nothing: %v, want ENOENT", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("nothing was copied to something")
	}
	if err := l.CopyFile(dir, filepath.Join(dir, "new"), 0o755); err == nil {
		t.Error("a directory was copied")
	}
}

func TestLinuxRemoveAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(dir, "a"), "a", 0o644)
	writeTestFile(t, filepath.Join(dir, "b"), "b", 0o600)
	var l Linux
	if err := l.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := l.RemoveAll(dir); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of nothing: %v, want ENOENT", err)
	}
}

// A stretch behind the end is no error: the kernel reads what is there.
func TestLinuxReadAhead(t *testing.T) {
	l := &Linux{}
	path := filepath.Join(t.TempDir(), "image")
	if err := l.ReadAhead(path, 0, 4096); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of a file that is not there: %v", err)
	}
	writeTestFile(t, path, strings.Repeat("x", 1<<20), 0o644)
	if err := l.ReadAhead(path, 512<<10, 4096); err != nil {
		t.Error(err)
	}
	if err := l.ReadAhead(path, 4<<20, 4096); err != nil {
		t.Errorf("behind the end: %v", err)
	}
}
