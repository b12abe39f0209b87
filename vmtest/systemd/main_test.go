package systemd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "systemd", &work)) }

// program is the path of the command line, with storage-init beside it, as
// `make build` makes them.
var program = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(work, "bin")
	return filepath.Join(dir, "initoverlayfs"), fixtures.BuildPrograms(dir)
})

// command is a call of the command line.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

// run runs a command to its good end and gives what it printed.
func run(t testing.TB, cmd *exec.Cmd) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.Bytes()
}

// fastImage is a level of compression that takes a sixth of the default's time.
const fastImage = "lz4hc,9"

// built is a build and what it was made from.
type built struct {
	*bootconf.Manifest
	kernel fixtures.Kernel
	source string // initramfs
	dir    string
}

// build runs the verb on two fixtures.
func build(t testing.TB, kernel, initramfs string, args ...string) built {
	t.Helper()
	b := built{kernel: fixtures.OpenKernel(t, kernel), source: fixtures.Path(t, initramfs), dir: t.TempDir()}
	args = append(b.buildArgs(), args...)
	b.Manifest = new(bootconf.Manifest)
	if err := json.Unmarshal(run(t, command(t, append(args, "--json")...)), b.Manifest); err != nil {
		t.Fatal(err)
	}
	onDisk, err := builder.ReadManifest(filepath.Join(b.dir, "initoverlayfs-"+b.kernel.Version+".json"))
	if err != nil || onDisk.Image.SHA256 != b.Image.SHA256 {
		t.Fatalf("the manifest is %+v, %v; printed was %+v", onDisk, err, b.Manifest)
	}
	return b
}

func (b *built) buildArgs() []string {
	return []string{
		"build", "--kver", b.kernel.Version, "--initramfs", b.source, "--modules-dir", b.kernel.Modules,
		"--storage", "virtio", "--output", b.dir,
	}
}

func (b *built) image() string { return filepath.Join(b.dir, b.Image.File) }

// needTools skips the test, or fails it in CI, where a program is missing.
func needTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			notHere(t, err.Error())
		}
	}
}

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
