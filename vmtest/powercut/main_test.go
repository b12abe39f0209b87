package powercut

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/vmlinux"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "powercut", &work)) }

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// programs is a folder with initoverlayfs, storage-init and guest.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(work, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"initoverlayfs/cmd/initoverlayfs"},
		{"initoverlayfs/vmtest/guest"},
		{"-gcflags=all=-l", "initoverlayfs/cmd/storage-init"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if text, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w: %s", cmd.Args, err, text)
		}
	}
	return dir, nil
})

func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// tool finds a program that an ordinary user may not have in PATH.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, file := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	notHere(t, name+" is not here")
	return ""
}

// archive is an initramfs in the making: contents, and links to contents, by
// their paths without the leading slash. Folders come by themselves.
type archive map[string]archived

type archived struct {
	mode uint32 // with the type
	body []byte
}

func (a archive) folder(names ...string) {
	for _, name := range names {
		a[name] = archived{mode: unix.S_IFDIR | 0o755}
	}
}

func (a archive) file(name string, body []byte) {
	a[name] = archived{mode: unix.S_IFREG | 0o644, body: body}
}

// take puts a file of this machine into the archive.
func (a archive) take(t testing.TB, name, path string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a[name] = archived{mode: unix.S_IFREG | 0o755, body: body}
}

// takeProgram takes a program with its libraries, to where it finds them.
func (a archive) takeProgram(t testing.TB, name, path string) {
	t.Helper()
	if _, ok := a[name]; ok {
		return
	}
	a.take(t, name, path)
	f, err := elf.Open(path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text, err := io.ReadAll(p.Open())
			if err != nil {
				t.Fatal(err)
			}
			loader := strings.TrimRight(string(text), "\x00")
			a.take(t, loader[1:], loader)
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, library := range libraries {
		found := false
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"} {
			if _, err := os.Stat(filepath.Join(dir, library)); err == nil {
				a.takeProgram(t, filepath.Join(dir, library)[1:], filepath.Join(dir, library))
				found = true
				break
			}
		}
		if !found {
			t.Fatalf("%s: no library %s", path, library)
		}
	}
}

// write writes the archive as a file.
func (a archive) write(t testing.TB, path string) {
	t.Helper()
	for name := range a {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if _, ok := a[dir]; !ok {
				a.folder(dir)
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for name := range a {
		names = append(names, name)
	}
	slices.Sort(names)
	w := cpio.NewWriter(f)
	for i, name := range names {
		h := &cpio.Header{Name: name, Ino: uint32(i + 1), Mode: a[name].mode, NLink: 1, MTime: 1700000000, Size: int64(len(a[name].body))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(a[name].body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// generationFile is the file of a full tree that says which one it is.
const generationFile = "generation"

// fullTree is the path of an initramfs whose init is the guest.
func fullTree(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "full-"+name+".cpio")
	a := archive{}
	a.folder("dev", "proc", "run", "sys")
	a.take(t, "init", program(t, "guest"))
	a.file(generationFile, []byte(name+"\n"))
	a.write(t, path)
	return path
}

// hostModules are what the guest that installs needs, and what it may put into
// a mini-initramfs.
var hostModules = []string{"virtio_pci", "virtio_blk", "virtio_scsi", "ext4", "vfat", "nls_ascii", "nls_cp437", "erofs", "overlay", "loop"}

// host makes the initramfs of the guest that installs: a small system with our
// programs, blkid, and the modules of its kernel.
func host(t testing.TB, k fixtures.Kernel) archive {
	t.Helper()
	a := archive{}
	a.folder("boot", "dev", "etc", "modules", "proc", "run", "sys", "tmp", "var/tmp")
	a.take(t, "init", program(t, "guest"))
	a.take(t, "usr/bin/initoverlayfs", program(t, "initoverlayfs"))
	a.take(t, "usr/lib/initoverlayfs/storage-init", program(t, "storage-init"))
	a.takeProgram(t, "usr/sbin/blkid", tool(t, "blkid"))

	index, err := kmod.Open(k.Modules, k.Version)
	if err != nil {
		t.Fatal(err)
	}
	dir := "lib/modules/" + k.Version
	a.take(t, dir+"/config", k.Config)
	indexes, err := filepath.Glob(filepath.Join(k.Modules, "modules.*"))
	if err != nil || len(indexes) == 0 {
		t.Fatalf("%s: no module index, %v", k.Modules, err)
	}
	for _, path := range indexes {
		if filepath.Ext(path) != ".bin" {
			a.take(t, filepath.Join(dir, filepath.Base(path)), path)
		}
	}
	modules, err := index.Closure(nil, hostModules...)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range modules {
		if m.CPUFeature != "" && !m.CPUWithout {
			continue // the processor of the guest has nothing special
		}
		body, err := index.Read(m.Name)
		if err != nil {
			t.Fatal(err)
		}
		a.file(fmt.Sprintf("modules/%02d-%s", i, m.Name), body)
	}
	err = filepath.WalkDir(k.Modules, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(path), ".ko")
		name = kmod.Normalize(name)
		if !slices.ContainsFunc(modules, func(m kmod.Module) bool { return kmod.Normalize(m.Name) == name }) {
			return nil
		}
		rest, err := filepath.Rel(k.Modules, path)
		if err == nil {
			a.take(t, filepath.Join(dir, rest), path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var vmlinuxes sync.Map // of kernel version to a function that gives the path

// machine is a guest with a kernel.
func machine(t testing.TB, k fixtures.Kernel) vmtest.Machine {
	t.Helper()
	once, _ := vmlinuxes.LoadOrStore(k.Version, sync.OnceValues(func() (string, error) {
		path := filepath.Join(work, "vmlinux-"+k.Version)
		return path, vmlinux.Extract(path, k.Image)
	}))
	path, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return vmtest.Machine{
		Kernel: path, MemoryMiB: 512, Accel: vmtest.TCG, Timeout: 8 * time.Minute, LogParent: t.TempDir(),
	}
}
