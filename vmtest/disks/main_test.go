package disks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "disks", &work)) }

// programs is the folder of the command line, of storage-init and of the guest.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(work, "bin")
	return dir, fixtures.BuildPrograms(dir)
})

// command is a call of the command line.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), filepath.Join(dir, "initoverlayfs"), args...)
}

// run runs a command to its good end and gives what it printed.
func run(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.Bytes()
}

// followed are the words by which a boot can be followed.
func followed(t *testing.T) string {
	t.Helper()
	words, err := vmtest.ConsoleWords("")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(words, " ")
}

const (
	// fastImage is a level of compression that takes a sixth of the default's
	// time, otherImage one by which an image is another one.
	fastImage  = "lz4hc,3"
	otherImage = "lz4hc,4"
)

// madeDisk is what `disk --json` printed.
type madeDisk struct {
	Partitions []struct {
		Label  string
		Offset int64
	}
	Entries  []struct{ File, Title, Options string }
	Manifest *bootconf.Manifest

	path     string
	grub     bool
	previous string // UUID of the image of the previous pair
}

// makeDisk makes a disk of a kernel and an initramfs, with a previous pair if its flags say
// how to build one.
func makeDisk(t *testing.T, kernelName, initramfs string, previous []string, args ...string) *madeDisk {
	t.Helper()
	kernel := fixtures.OpenKernel(t, kernelName)
	dir := t.TempDir()
	d := &madeDisk{path: filepath.Join(dir, "disk.img"), grub: slices.Contains(args, "grub")}
	inputs := []string{"--kver", kernel.Version, "--initramfs", initramfs, "--modules-dir", kernel.Modules, "--storage", "virtio"}
	args = append(append([]string{"disk", "--output", d.path, "--kernel", kernel.Image, "--image-compress", fastImage, "--json"}, inputs...), args...)
	if previous != nil {
		earlier := filepath.Join(dir, "earlier")
		build := append(append([]string{"build", "--output", earlier, "--image-compress", otherImage, "--json"}, inputs...), previous...)
		var m bootconf.Manifest
		if err := json.Unmarshal(run(t, command(t, build...)), &m); err != nil {
			t.Fatal(err)
		}
		d.previous = m.Image.UUID
		args = append(args, "--previous", earlier)
	}
	if err := json.Unmarshal(run(t, command(t, args...)), d); err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{false: 2, true: 3}[previous != nil]; len(d.Entries) != want {
		t.Fatalf("%d entries, want %d", len(d.Entries), want)
	}
	if d.previous == d.Manifest.Image.UUID {
		t.Fatal("the two pairs have the same image")
	}
	return d
}

// offset gives where a partition begins.
func (d *madeDisk) offset(t *testing.T, label string) int64 {
	t.Helper()
	for _, p := range d.Partitions {
		if p.Label == label {
			return p.Offset
		}
	}
	t.Fatalf("no partition %s in %+v", label, d.Partitions)
	return 0
}

// choose makes an entry of the menu the one that is booted.
func (d *madeDisk) choose(t *testing.T, entry int) {
	t.Helper()
	esp := fmt.Sprintf("%s@@%d", d.path, d.offset(t, "esp"))
	path, text := "::loader/loader.conf", "timeout 1\ndefault "+d.Entries[entry].File+"\n"
	if d.grub {
		path = "::grub/grub.cfg"
		menu := string(run(t, exec.CommandContext(t.Context(), "mtype", "-i", esp, path)))
		before, after, found := strings.Cut(menu, "set default=")
		if !found {
			t.Fatalf("no default in GRUB's menu:\n%s", menu)
		}
		_, after, _ = strings.Cut(after, "\n")
		text = fmt.Sprintf("%sset default=%d\n%s", before, entry, after)
	}
	conf := filepath.Join(t.TempDir(), "menu")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.CommandContext(t.Context(), "mcopy", "-o", "-i", esp, conf, path))
}

// document is what `boot --json` prints.
type document struct {
	OK         bool     `json:"ok"`
	Backend    string   `json:"backend"`
	HandoverS  *float64 `json:"handover_s"`
	MultiUserS *float64 `json:"multi_user_s"`
	Error      string   `json:"error"`
	LogDir     string   `json:"log_dir"`
	WallS      float64  `json:"wall_s"`

	Record *bootconf.Record `json:"record"`
	Done   *vmtest.Done     `json:"done"`
}

// boot boots the disk by firmware; err is how the command ended.
func (d *madeDisk) boot(t *testing.T, args ...string) (doc document, err error) {
	t.Helper()
	if _, err := vmtest.FindFirmware(""); err != nil {
		notHere(t, err.Error())
	}
	// Emulated, firmware and boot loader take their time on a busy machine.
	cmd := command(t, append([]string{"boot", "--disk", d.path, "--accel", "tcg", "--timeout", "9m", "--json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if jsonErr := json.Unmarshal(stdout.Bytes(), &doc); jsonErr != nil {
		t.Fatalf("%v: %v, %v\n%s%s", cmd.Args, err, jsonErr, stderr.Bytes(), stdout.Bytes())
	}
	if doc.OK != (err == nil) {
		t.Fatalf("ok is %t, the command ended with %v", doc.OK, err)
	}
	return doc, err
}

// endOfConsole is for the message of a failed boot; without a console it is
// empty.
func endOfConsole(logDir string) string {
	text, err := os.ReadFile(filepath.Join(logDir, "console.log"))
	if err != nil {
		return ""
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
