package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// rootUUID is that of the root disk's filesystem.
const rootUUID = "5e1f0d3a-6b1c-4c0e-9d52-0a1b2c3d4e5f"

// TestImageOnRoot boots where the image lies on the real root's filesystem,
// whose journal has to be replayed. It must be fsck who does that: storage-init
// neither replays it nor holds the filesystem when fsck and the mount want it.
func TestImageOnRoot(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	needTools(t, "debugfs", "dumpe2fs", "e2fsck")
	for _, backend := range []bootconf.Backend{bootconf.RAM, bootconf.Loop} {
		t.Run(string(backend), func(t *testing.T) {
			fs := "/boot/initoverlayfs.img"
			b := build(t, "kernel-6.1", "dracut-6.1.img", "--image-compress", fastImage, "--backend", string(backend),
				"--bootfs", "UUID="+rootUUID, "--bootfstype", "ext4", "--fs", fs)
			clean := copyOf(t, fixtures.Path(t, rootDisk))
			debugfs(t, clean, "write "+b.image()+" "+fs)
			dirty := copyOf(t, clean)
			leaveTransaction(t, dirty)
			for _, test := range []struct {
				name, disk, option string
				replay             bool
			}{
				{"clean", clean, "ro", false},
				{"ro", dirty, "ro", true},
				{"rw", dirty, "rw", true},
			} {
				t.Run(test.name, func(t *testing.T) {
					d := boot(t, b.kernel, "--dir", b.dir, "--backend", string(backend), "--rootdisk", test.disk, "--bootdisk", test.disk,
						"--append", test.option+" systemd.journald.forward_to_console=1", "--keep")
					defer os.RemoveAll(d.LogDir)
					checkRecord(t, d, b.Image.UUID, bootconf.RAM)
					if backend == bootconf.Loop {
						first := d.Record.Attempts[0]
						if len(d.Record.Attempts) != 2 || first.Backend != backend || !strings.Contains(first.Error, "/dev/vda: it is also the real root") {
							t.Errorf("attempts %+v, want that loop was refused for the root's sake", d.Record.Attempts)
						}
					}
					if !strings.Contains(d.Done.Fsck, "success 0") {
						t.Errorf("fsck ended with %q, want success", d.Done.Fsck)
					}
					console, err := os.ReadFile(filepath.Join(d.LogDir, "console.log"))
					if err != nil {
						t.Fatal(err)
					}
					// As fsck says it, and as the kernel does.
					if got := bytes.Contains(console, []byte("]: root: recovering journal")); got != test.replay {
						t.Errorf("fsck replayed the journal: %v, want %v", got, test.replay)
					}
					if !bytes.Contains(console, []byte("]: root: clean")) {
						t.Error("fsck did not say that the filesystem is clean")
					}
					if bytes.Contains(console, []byte("recovery complete")) {
						t.Error("the kernel replayed the journal")
					}
				})
			}
		})
	}
}

func copyOf(t *testing.T, disk string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(disk))
	run(t, exec.Command("cp", "--sparse=always", disk, path))
	return path
}

// debugfs runs commands on an unmounted disk, and fails where one fails.
func debugfs(t *testing.T, disk string, commands ...string) string {
	t.Helper()
	cmd := exec.Command("debugfs", "-w", "-f", "-", disk)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	// It says its version there, and what went wrong; its status tells little.
	if err != nil || strings.Count(stderr.String(), "\n") > 1 {
		t.Fatalf("debugfs: %v: %q: %s%s", err, commands, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// leaveTransaction leaves a transaction in the journal, that makes a file's old
// content new, and proves that fsck can replay it.
func leaveTransaction(t *testing.T, disk string) {
	t.Helper()
	const blockSize = 4096
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(strings.Repeat(text, blockSize/len(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	debugfs(t, disk, "write "+write("old", "old\n")+" /proof")
	var block int
	out := debugfs(t, disk, "blocks /proof")
	if _, err := fmt.Sscanf(lastLine(out), "%d", &block); err != nil || block == 0 {
		t.Fatalf("blocks of /proof: %v: %q", err, out)
	}
	debugfs(t, disk, "journal_open", fmt.Sprintf("journal_write -b %d %s", block, write("new", "new\n")), "journal_close")

	if out := run(t, exec.Command("dumpe2fs", "-h", disk)); !bytes.Contains(out, []byte("needs_recovery")) {
		t.Fatalf("the journal is clean:\n%s", out)
	}
	replayed := copyOf(t, disk)
	if err := exec.Command("e2fsck", "-p", replayed).Run(); err != nil && cmdStatus(err) != 1 {
		t.Fatal(err)
	}
	if out := debugfs(t, replayed, "cat /proof"); !strings.Contains(out, "new\nnew\n") {
		t.Fatalf("after a replay /proof has %.60q", out)
	}
}

func cmdStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// lastLine is the last one that is not a prompt.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(lines[i]); line != "" && !strings.HasPrefix(line, "debugfs") {
			return line
		}
	}
	return ""
}
