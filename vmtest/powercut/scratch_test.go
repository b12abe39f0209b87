package powercut

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// scratch is a machine below a folder of this one, with a boot partition of its
// own: an ext4 in a file.
type scratch struct {
	root   string
	work   string // --work-dir
	kernel fixtures.Kernel
	image  string   // of the boot partition
	mounts int      // so far
	src    []string // archives of full trees; the first is the distribution's own
}

// newScratch makes a machine whose boot partition has so many bytes. It needs
// root, for the mounts.
func newScratch(t *testing.T, size int64) *scratch {
	t.Helper()
	if os.Geteuid() != 0 {
		notHere(t, "mounting a boot partition needs root")
	}
	dir := t.TempDir()
	m := &scratch{
		root: filepath.Join(dir, "root"), work: filepath.Join(dir, "work"), image: filepath.Join(dir, "boot.img"),
		kernel: fixtures.OpenKernel(t, "kernel-6.12"),
	}
	files := filepath.Join(dir, "files")
	kver := m.kernel.Version
	entry := fmt.Sprintf("title Debian\nversion %s\nmachine-id %s\nlinux /vmlinuz-%s\ninitrd /initrd.img-%s\n", kver, entryToken, kver, kver)
	for path, text := range map[string]string{
		filepath.Join(files, "vmlinuz-"+kver):                            "kernel\n",
		filepath.Join(files, entriesFolder, entryToken+"-"+kver+".conf"): entry,
		filepath.Join(m.root, "etc/machine-id"):                          entryToken + "\n",
		filepath.Join(m.root, "boot/below the mount"):                    "",
		filepath.Join(m.work, "somebody else's"):                         "",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		// Noise, so that the image has a size of its own.
		noise := make([]byte, 300<<10)
		rand.NewChaCha8([32]byte{byte(n)}).Read(noise)
		path := filepath.Join(dir, fmt.Sprintf("src%d.img", n))
		a := archive{}
		a.folder("dev", "proc", "run", "sys")
		a.file("init", fmt.Appendf(nil, "#!/bin/sh\n# tree %d\n", n))
		a.file("noise", noise)
		a.write(t, path)
		m.src = append(m.src, path)
	}
	copyWhole(t, filepath.Join(files, "initrd.img-"+kver), m.src[0])
	if err := os.WriteFile(m.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(m.image, size); err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command(tool(t, "mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", "-d", files, m.image))
	return m
}

func must(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, out)
	}
}

func (m *scratch) boot() string { return filepath.Join(m.root, "boot") }

// mount mounts a copy of the boot partition's image, until the function that it
// gives is called.
func (m *scratch) mount(t *testing.T) (unmount func()) {
	t.Helper()
	// A loop device may outlive its mount, and mount would take it again with
	// what it has in its cache.
	m.mounts++
	image := m.mounted()
	copyWhole(t, image, m.image)
	must(t, exec.Command("mount", "-o", "loop", image, m.boot()))
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		defer os.Remove(image)
		var err error
		for range 50 { // what was killed may not be gone yet
			var out []byte
			if out, err = exec.Command("umount", m.boot()).CombinedOutput(); err == nil {
				return
			}
			err = fmt.Errorf("%w: %s", err, out)
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	}
	t.Cleanup(unmount)
	return unmount
}

// mounted is the file that is mounted.
func (m *scratch) mounted() string { return fmt.Sprintf("%s.%d", m.image, m.mounts) }

// keep makes what is mounted the image that later mounts begin with.
func (m *scratch) keep(t *testing.T) {
	t.Helper()
	must(t, exec.Command("mount", "-o", "remount,ro", m.boot()))
	copyWhole(t, m.image, m.mounted())
	must(t, exec.Command("mount", "-o", "remount,rw", m.boot()))
}

// command is a call of a verb. In front of it may be a tracer with arguments.
func (m *scratch) command(t *testing.T, tracer []string, verb string, args ...string) *exec.Cmd {
	t.Helper()
	words := append(slices.Clone(tracer), program(t, "initoverlayfs"), verb, "--sysroot", m.root)
	words = append(words, args...)
	cmd := exec.Command(words[0], words[1:]...)
	// One thread does nearly all, so that the tracer's counts, one for each
	// thread, mean something.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	return cmd
}

// install installs the pair of an archive; of 0, of what the distribution has on
// the boot partition.
func (m *scratch) install(t *testing.T, n int, tracer ...string) *exec.Cmd {
	t.Helper()
	args := []string{
		m.kernel.Version, "--modules-dir", m.kernel.Modules, "--work-dir", m.work, "--storage", "virtio",
		"--image-compress", "lz4", "--compress", "none",
	}
	if n > 0 {
		args = append(args, "--initramfs", m.src[n])
	}
	return m.command(t, tracer, "install", args...)
}

func (m *scratch) remove(t *testing.T, tracer ...string) *exec.Cmd {
	t.Helper()
	return m.command(t, tracer, "remove", m.kernel.Version)
}

// listing names everything on the boot partition and in the work folder, with
// digests of the files.
func (m *scratch) listing(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, dir := range []string{m.boot(), m.work} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(filepath.Dir(dir), path)
			if err != nil {
				return err
			}
			if d.Type().IsRegular() {
				name += " " + sumOf(t, path)
			}
			list = append(list, name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// bootable is the image's UUID of the pair that the default entry boots, after
// all of it was read and compared with its manifest; "plain" of the plain entry.
func (m *scratch) bootable(t *testing.T) (string, error) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(m.boot(), entriesFolder))
	if err != nil {
		t.Fatal(err)
	}
	var entries []LoaderEntry
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".conf" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.boot(), entriesFolder, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if e := ParseLoaderEntry(f.Name(), string(text)); e.Linux != "" {
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return "", errors.New("there is no entry")
	}
	SortLoaderEntries(entries)
	first := entries[0]
	if len(first.Initrds) != 1 {
		return "", fmt.Errorf("entry %s: initrds %q", first.ID, first.Initrds)
	}
	if first.Initrds[0] == "/initrd.img-"+m.kernel.Version {
		return "plain", nil
	}
	mini := filepath.Join(m.boot(), first.Initrds[0])
	conf, err := builder.MiniConfig(mini)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(mini), "initoverlayfs-"+m.kernel.Version+".json"))
	if err != nil {
		return "", err
	}
	var manifest bootconf.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return "", err
	}
	if manifest.Image.UUID != conf.ImageUUID.String() {
		return "", fmt.Errorf("the manifest has the image %s, %s looks for %s", manifest.Image.UUID, mini, conf.ImageUUID)
	}
	for path, want := range map[string]string{mini: manifest.Mini.SHA256, filepath.Join(m.boot(), conf.FS): manifest.Image.SHA256} {
		body, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != want {
			return "", fmt.Errorf("%s is not what its manifest says", path)
		}
	}
	return conf.ImageUUID.String(), nil
}

// mustBoot is bootable, which must have one of some results.
func (m *scratch) mustBoot(t *testing.T, when string, want ...string) string {
	t.Helper()
	got, err := m.bootable(t)
	if err != nil {
		t.Errorf("%s: the default entry does not boot: %v", when, err)
	} else if !slices.Contains(want, got) {
		t.Errorf("%s: the default entry boots %s, want one of %s", when, got, want)
	}
	return got
}

// mustBeClean makes sure that there are no files but those of the pairs that the
// state names.
func (m *scratch) mustBeClean(t *testing.T, when string) {
	t.Helper()
	dir := filepath.Join(m.boot(), "initoverlayfs", m.kernel.Version)
	text, err := os.ReadFile(filepath.Join(dir, "installed.json"))
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	var state struct{ Current, Previous int }
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	want := []string{"installed.json", fmt.Sprint(state.Current)}
	if state.Previous != 0 {
		want = append(want, fmt.Sprint(state.Previous))
	}
	entries := []string{
		entryToken + "-" + m.kernel.Version + ".conf", entryToken + "-" + m.kernel.Version + ".initoverlayfs.conf",
	}
	if state.Previous != 0 {
		entries = append(entries, entryToken+"-"+m.kernel.Version+".backup.initoverlayfs.conf")
	}
	for _, folder := range []struct {
		path string
		want []string
	}{
		{dir, want},
		{filepath.Join(m.boot(), entriesFolder), entries},
		{m.boot(), []string{"initoverlayfs", "initrd.img-" + m.kernel.Version, "loader", "lost+found", "vmlinuz-" + m.kernel.Version}},
		{m.work, []string{"somebody else's"}},
	} {
		files, err := os.ReadDir(folder.path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			got = append(got, f.Name())
		}
		slices.Sort(folder.want)
		if !slices.Equal(got, folder.want) {
			t.Errorf("%s: %s has %q, want %q", when, folder.path, got, folder.want)
		}
	}
}

// run runs a command and gives its exit status and what it wrote to standard
// error.
func run(t *testing.T, cmd *exec.Cmd) (status int, stderr string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stderr = &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// mustRun is run of what must succeed.
func mustRun(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if status, stderr := run(t, cmd); status != 0 {
		t.Fatalf("%v: status %d: %s", cmd.Args, status, stderr)
	}
}

// errorLines are the lines of an error message.
func errorLines(stderr string) (lines []string) {
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "initoverlayfs: error: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
