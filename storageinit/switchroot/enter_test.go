package switchroot

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit"
	"initoverlayfs/storageinit/region"
)

// TestEnter really switches roots: this program runs again as PID 1 of its own
// PID and mount namespaces, in a root of its own (stage oldRootStage), where it
// takes the role of run-init; what that executes is this program once more
// (stage newRootStage), which tells what it sees.
func TestEnter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Skip("this test is linked dynamically and would need its libraries in the new root")
		}
	}
	for _, test := range []struct {
		name string
		want report
	}{
		// A fresh /run hides the record; it is carried across.
		{freshRun, report{Record: "the record\n", Root: "tmpfs", Mounts: []string{"/", "/proc", "/run"}}},
		// The /run of the full tree has it already.
		{sameRun, report{Record: "the record on /run\n", Root: "tmpfs", Mounts: []string{"/", "/proc", "/run"}}},
		// Without a /run of the initial filesystem the real root's stays as it is.
		{noRun, report{Record: "", Root: "tmpfs", Mounts: []string{"/", "/proc"}}},
		// What is to give memory back goes along, and is started.
		{returning, report{
			Record: "the record\n", Root: "tmpfs", Mounts: []string{"/", "/proc", "/run"},
			Carried: []string{"00-a.ko: module a", "01-b.ko: module b", "image: the image"},
			Started: "initoverlayfs --return-memory the image from memory, streams []",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(self)
			cmd.Env = []string{stageVariable + "=" + oldRootStage, "DIR=" + t.TempDir(), "CASE=" + test.name}
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
			var got report
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("report %q: %v", out, err)
			}
			test.want.PID = 1
			test.want.Args = []string{"/sbin/init", "splash", "a b"}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("what the new init sees (-want +got):\n%s", diff)
			}
		})
	}
}

const (
	stageVariable = "SWITCHROOT_TEST_STAGE"
	oldRootStage  = "old root"
	newRootStage  = "new root"

	freshRun = "fresh run"
	sameRun  = "same run"
	noRun    = "no run"

	returning = "memory to give back"
	// startedPath is where what was started tells of itself.
	startedPath = "/run/started"
)

// report is what the init in the new root sees.
type report struct {
	PID    int
	Args   []string
	Root   string // the type of its filesystem
	Mounts []string
	Record string
	Left   []string // of the old root's files

	Carried []string // to return memory
	Started string   // how what returns it was started
}

func TestMain(m *testing.M) {
	var err error
	if image, ok := region.Role(os.Args); ok {
		if err := reportStarted(image); err != nil {
			os.Exit(1)
		}
		return
	}
	switch os.Getenv(stageVariable) {
	case oldRootStage:
		err = switchFromOldRoot()
	case newRootStage:
		err = reportNewRoot()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// switchFromOldRoot makes a tmpfs this process's root, as an initial filesystem
// would look, and leaves it by run-init. It returns only with an error.
func switchFromOldRoot() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	root := os.Getenv("DIR")
	if err := mountTmpfs(root); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
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

	for _, dir := range []string{"/proc", "/run", "/dev", "/sys", "/newroot", filepath.Dir(bootconf.RecordPath)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	record := "the record\n"
	if os.Getenv("CASE") == noRun {
		record = "not to be carried\n"
	}
	if err := os.WriteFile(bootconf.RecordPath, []byte(record), 0o644); err != nil {
		return err
	}
	if os.Getenv("CASE") == returning {
		if err := os.Mkdir(bootconf.ReturnDir, 0o755); err != nil {
			return err
		}
		for name, content := range map[string]string{"00-a.ko": "module a", "01-b.ko": "module b", bootconf.ReturnImage: "the image"} {
			if err := os.WriteFile(filepath.Join(bootconf.ReturnDir, name), []byte(content), 0o644); err != nil {
				return err
			}
		}
	}
	if os.Getenv("CASE") != noRun {
		if err := mountTmpfs("/run"); err != nil {
			return err
		}
	}
	if os.Getenv("CASE") == sameRun {
		if err := os.Mkdir(filepath.Dir(bootconf.RecordPath), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(bootconf.RecordPath, []byte("the record on /run\n"), 0o644); err != nil {
			return err
		}
	}
	if err := mountTmpfs("/newroot"); err != nil {
		return err
	}
	for _, dir := range []string{"proc", "run", "dev", "sys", "sbin"} {
		if err := os.Mkdir("/newroot/"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mknod("/newroot/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return fmt.Errorf("mknod /dev/null: %w", err)
	}
	if err := os.WriteFile("/newroot/sbin/init", self, 0o755); err != nil {
		return err
	}
	if err := os.Setenv(stageVariable, newRootStage); err != nil {
		return err
	}
	return Main(&storageinit.Linux{}, runInit, []string{runInit, "/newroot", "/sbin/init", "splash", "a b"})
}

func mountTmpfs(path string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", path, err)
	}
	return nil
}

func reportNewRoot() error {
	r := report{PID: os.Getpid(), Args: os.Args}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return err
	}
	if st.Type == unix.TMPFS_MAGIC {
		r.Root = "tmpfs"
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		r.Mounts = append(r.Mounts, strings.Fields(line)[4])
	}
	slices.Sort(r.Mounts)
	record, err := os.ReadFile(bootconf.RecordPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.Record = string(record)
	for _, path := range []string{"/newroot", "/sysroot"} {
		if _, err := os.Lstat(path); err == nil {
			r.Left = append(r.Left, path)
		}
	}
	carried, err := os.ReadDir(bootconf.ReturnDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, file := range carried {
		content, err := os.ReadFile(filepath.Join(bootconf.ReturnDir, file.Name()))
		if err != nil {
			return err
		}
		r.Carried = append(r.Carried, file.Name()+": "+string(content))
	}
	for range 1000 {
		started, err := os.ReadFile(startedPath)
		if r.Started = string(started); err == nil && len(started) > 0 || len(carried) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// reportStarted is what returns memory. It keeps nothing in use.
func reportStarted(image string) error {
	from := "a filesystem"
	if exe, err := os.Readlink("/proc/self/exe"); err == nil && strings.HasPrefix(exe, "/memfd:") {
		from = "memory"
	}
	streams := []string{}
	for fd := range 3 {
		// The Go runtime opens /dev/null in the place of a stream that is closed.
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && to != "/dev/null" {
			streams = append(streams, to)
		}
	}
	text := fmt.Sprintf("%s %s %s from %s, streams %q", os.Args[0], os.Args[1], image, from, streams)
	if err := os.WriteFile(startedPath+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(startedPath+".new", startedPath)
}
