package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mustFail runs an installation that cannot succeed: its status is 1, it says
// one error that has the words, and it changes nothing.
func (p *pairs) mustFail(t *testing.T, when string, cmd *exec.Cmd, words ...string) (stderr string) {
	t.Helper()
	before := p.listing(t)
	status, stderr := run(t, cmd)
	lines := errorLines(stderr)
	if status != 1 || len(lines) != 1 {
		t.Errorf("%s: status %d, want 1, and one error:\n%s", when, status, stderr)
	}
	for _, word := range words {
		if !strings.Contains(strings.Join(lines, "\n"), word) {
			t.Errorf("%s: error %q, want %q in it", when, lines, word)
		}
	}
	if got := p.listing(t); !slices.Equal(got, before) {
		t.Errorf("%s: there is\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
	p.mustBoot(t, when, p.before)
	return stderr
}

// fill leaves so many bytes free on the filesystem of a folder, or a few more.
func fill(t *testing.T, dir string, leave int64) (empty func()) {
	t.Helper()
	free := func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	path := filepath.Join(dir, "somebody else's ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The map of a large file takes blocks itself.
	for size := free() - leave; size > 0; size -= 4096 {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil && free() >= leave {
			break
		}
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

var spaceError = regexp.MustCompile(`no space in (\S+): the new pair needs (\d+) bytes, (\d+) are free`)

// TestNoSpace installs where there is too little room, in the boot partition and
// in the work folder.
func TestNoSpace(t *testing.T) {
	p := newPairs(t)
	unmount := p.mount(t)
	// All that is missing is known before anything is written.
	need := int64(0)
	for _, left := range []int64{0, 64 << 10, 512 << 10, 1 << 20, 2 << 20} {
		when := fmt.Sprintf("%d bytes left", left)
		empty := fill(t, p.boot(), left)
		stderr := p.mustFail(t, when, p.install(t, 3))
		found := spaceError.FindStringSubmatch(stderr)
		if found == nil || !strings.HasPrefix(found[1], p.boot()) {
			t.Fatalf("%s: error %q, want it to name the folder and the numbers", when, stderr)
		}
		var free int64
		if _, err := fmt.Sscan(found[2]+" "+found[3], &need, &free); err != nil || free < left || need <= free {
			t.Errorf("%s: need %d, free %d, %v", when, need, free, err)
		}
		empty()
	}
	// What is said to be enough is enough.
	empty := fill(t, p.boot(), need)
	mustRun(t, p.install(t, 3))
	p.mustBoot(t, fmt.Sprintf("with room for %d bytes", need), p.after)
	empty()
	p.mustBeClean(t, "with room")
	unmount()

	p.mount(t)
	p.mustFailInWork(t)
	mustRun(t, p.install(t, 3))
	p.mustBoot(t, "with room", p.after)
	p.mustBeClean(t, "with room")
}

// mustFailInWork gives the work folder a filesystem of its own that is too small.
func (p *pairs) mustFailInWork(t *testing.T) {
	t.Helper()
	for _, size := range []string{"4k", "100k", "1m", "3m"} {
		must(t, exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "none", p.work))
		p.mustFail(t, "a work folder of "+size, p.install(t, 3), "no space left on device", p.work)
		must(t, exec.Command("umount", p.work))
	}
}

// TestFaults makes system calls of install fail, one after the other.
func TestFaults(t *testing.T) {
	tool(t, "strace")
	p := newPairs(t)
	step := step(t)
	faults := 0
	const full, bad = "no space left on device", "input/output error"
	for _, f := range []struct {
		calls, errno, says string
		file               string // the only one concerned; empty: all
	}{
		{"copy_file_range", "ENOSPC", full, ""},
		{"pwrite64", "ENOSPC", full, ""},
		{"mkdirat", "ENOSPC", full, ""},
		{"write", "ENOSPC", full, entriesFolder + "/.initoverlayfs.0.tmp"},
		{"fsync", "EIO", bad, ""},
		{"renameat,renameat2", "EIO", bad, ""},
		{"ioctl", "EIO", bad, ""},
		{"syncfs", "EIO", bad, ""},
	} {
		for n := 1; ; n += step {
			unmount := p.mount(t)
			when := fmt.Sprintf("%s %d fails with %s", f.calls, n, f.errno)
			tracer := inject(f.calls, "error="+f.errno, n)
			if f.file != "" {
				when += " in " + f.file
				tracer = append(tracer, "-P", p.boot()+f.file)
			}
			status, stderr := run(t, p.install(t, 3, tracer...))
			if status == 0 {
				if n == 1 && f.calls != "ioctl" { // of a thaw that is tried again, for example
					t.Errorf("%s: nothing failed", when)
				}
				p.mustBoot(t, when, p.after)
				p.mustBeClean(t, when)
				unmount()
				break
			}
			faults++
			lines := errorLines(stderr)
			if status != 1 || len(lines) != 1 || !strings.Contains(lines[0], f.says) {
				t.Errorf("%s: status %d, want 1, and one error with %q:\n%s", when, status, f.says, stderr)
			}
			p.mustBoot(t, when, p.before, p.after)
			if left := p.temporary(t); len(left) > 0 {
				t.Errorf("%s: left behind: %q\n%s", when, left, stderr)
			}
			p.recover(t, when, p.before, p.after)
			unmount()
			if n > mostFaults {
				t.Fatalf("%s: it never ends", when)
			}
		}
	}
	if faults < 5 {
		t.Errorf("only %d faults", faults)
	}
	t.Logf("%d faults", faults)
}

// temporary lists what has the name of a file that is being written, and the
// folders of pairs that the state does not have.
func (m *scratch) temporary(t *testing.T) (left []string) {
	t.Helper()
	for _, name := range m.listing(t) {
		name, _, _ = strings.Cut(name, " ")
		if strings.HasSuffix(name, ".tmp") || strings.HasPrefix(name, "work/initoverlayfs") {
			left = append(left, name)
		}
	}
	return left
}

// TestVerify flips bytes in each file that is published. The distribution's own
// files are its to change: then the pair is stale, and status says so.
func TestVerify(t *testing.T) {
	m := newScratch(t, bootBytes)
	m.mount(t)
	mustRun(t, m.install(t, 0))
	must(t, exec.Command("cp", m.src[1], filepath.Join(m.boot(), "initrd.img-"+m.kernel.Version)))
	mustRun(t, m.install(t, 0))
	verify := func() (int, string) {
		t.Helper()
		cmd := m.command(t, nil, "verify", m.kernel.Version)
		out, _ := cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if status, out := verify(); status != 0 {
		t.Fatalf("verify of what is whole: status %d: %s", status, out)
	}
	var files []string
	for _, pattern := range []string{
		"initoverlayfs/*/*", "initoverlayfs/*/*/*", entriesFolder + "/*.initoverlayfs.conf",
	} {
		found, err := filepath.Glob(filepath.Join(m.boot(), pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %q, %v", pattern, found, err)
		}
		files = append(files, found...)
	}
	flipped := 0
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			if strings.Contains(err.Error(), "is a directory") {
				continue
			}
			t.Fatal(err)
		}
		name := strings.TrimPrefix(path, m.root)
		for _, at := range []int{0, len(body) / 3, len(body) / 2, len(body) - 1} {
			bad := slices.Clone(body)
			bad[at] ^= 4
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			status, out := verify()
			if status != 1 || !strings.Contains(out, name) {
				t.Errorf("byte %d of %s is flipped: status %d, want 1 and the name in\n%s", at, name, status, out)
			}
			flipped++
		}
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, out := verify(); status != 0 {
		t.Errorf("verify of what is whole again: status %d: %s", status, out)
	}
	t.Logf("%d bytes of %d files", flipped, flipped/4)

	stale := func() bool {
		t.Helper()
		out, err := m.command(t, nil, "status", "--json").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(out), `"health": "stale"`)
	}
	if stale() {
		t.Error("the pair is stale and should not be")
	}
	must(t, exec.Command("cp", m.src[2], filepath.Join(m.boot(), "initrd.img-"+m.kernel.Version)))
	if !stale() {
		t.Error("the pair is not stale with another initramfs of the distribution")
	}
}
