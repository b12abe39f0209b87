package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// tree is the content of a boot partition, unpacked into a folder.
type tree struct {
	dir string
	// fetch unpacks a file that is not there yet; nil: all is.
	fetch func(path string)
}

// unpack reads a boot partition as a boot loader does, which like storage-init
// does not look into a journal. What the tools complain about is let pass: files
// that an entry needs and that cannot be read will be missed.
func (s *scene) unpack(t testing.TB, image string) (tree, error) {
	t.Helper()
	d := tree{dir: filepath.Join(s.dir, "tree")}
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// Without looking at the bitmaps, which no reader needs.
	cmd := exec.Command(tool(t, "debugfs"), "-c", "-R", "rdump / "+d.dir, image)
	if s.fs == "vfat" {
		mcopy := func(what, to string) *exec.Cmd {
			cmd := exec.Command(tool(t, "mcopy"), "-s", "-n", "-i", image, "::"+what, to)
			cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
			return cmd
		}
		cmd = mcopy("/loader", d.dir)
		// It ends with the first file that it cannot read, so it gets one at a time.
		d.fetch = func(path string) {
			to := filepath.Join(d.dir, path)
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				t.Fatal(err)
			}
			_ = mcopy(path, to).Run()
		}
	}
	out, _ := cmd.CombinedOutput()
	if _, err := os.Stat(filepath.Join(d.dir, entriesFolder)); err != nil {
		return d, fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
	}
	return d, nil
}

// read gives the content of a file, nil where there is none.
func (d tree) read(path string) ([]byte, error) {
	file := filepath.Join(d.dir, path)
	if _, err := os.Stat(file); err != nil && d.fetch != nil {
		d.fetch(path)
	}
	body, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return body, err
}

// choice is an entry with what it boots.
type choice struct {
	LoaderEntry
	initrd []byte
	conf   bootconf.Config // of a mini-initramfs
	image  []byte          // nil: it needs none
}

// menu is what a boot loader finds.
type menu struct {
	choices []choice
	broken  map[string]error // by the entry's name: why it does not boot
}

const entriesFolder = "/loader/entries"

// readMenu reads the entries and what they boot. It looks at contents only
// where somebody else has: a hash of them says which they are.
func (s *scene) readMenu(fs tree) (m menu, err error) {
	m.broken = map[string]error{}
	files, err := os.ReadDir(filepath.Join(fs.dir, entriesFolder))
	if err != nil {
		return m, err
	}
	var entries []LoaderEntry
	for _, file := range files {
		name := file.Name()
		if filepath.Ext(name) != ".conf" {
			continue
		}
		text, err := fs.read(entriesFolder + "/" + name)
		if err != nil {
			m.broken[name] = err
			continue
		}
		// A boot loader passes over what names no kernel, or none that is there.
		if e := ParseLoaderEntry(name, string(text)); e.Linux != "" {
			entries = append(entries, e)
		} else {
			m.broken[name] = fmt.Errorf("no kernel in %q", text)
		}
	}
	SortLoaderEntries(entries)
	for _, e := range entries {
		c := choice{LoaderEntry: e}
		if err := s.load(fs, &c); err != nil {
			m.broken[e.ID] = err
		}
		m.choices = append(m.choices, c)
	}
	return m, nil
}

// load reads what an entry boots.
func (s *scene) load(fs tree, c *choice) error {
	if kernel, err := fs.read(c.Linux); err != nil {
		return err
	} else if len(kernel) == 0 {
		return fmt.Errorf("kernel %s: missing or empty", c.Linux)
	}
	for _, path := range c.Initrds {
		body, err := fs.read(path)
		if err != nil {
			return err
		}
		if len(body) == 0 {
			return fmt.Errorf("initrd %s: missing or empty", path)
		}
		c.initrd = append(c.initrd, body...)
	}
	if c.ID == s.plainEntry() {
		return nil
	}
	var err error
	if c.conf, err = s.confOf(c.initrd); err != nil {
		return err
	}
	if c.image, err = fs.read(c.conf.FS); err != nil {
		return err
	}
	if int64(len(c.image)) != c.conf.ImageSize {
		return fmt.Errorf("image %s: %d bytes, want %d", c.conf.FS, len(c.image), c.conf.ImageSize)
	}
	return nil
}

// confOf reads the configuration in a mini-initramfs.
func (s *scene) confOf(initrd []byte) (bootconf.Config, error) {
	sum := DigestOf(initrd)
	if conf, ok := s.confs[sum]; ok {
		return conf, nil
	}
	file := filepath.Join(s.dir, "initrd")
	if err := os.WriteFile(file, initrd, 0o600); err != nil {
		return bootconf.Config{}, err
	}
	conf, err := builder.MiniConfig(file)
	if err == nil {
		s.confs[sum] = conf
	}
	return conf, err
}

// key tells what an entry boots from all else.
func (c *choice) key() Digest {
	return DigestOf(fmt.Appendf(nil, "%q %d %d\n", c.LoaderEntry, len(c.initrd), len(c.image)), c.initrd, c.image)
}

// look is a state of the disk that was looked at.
type look struct {
	fsck string   // what the checker found; empty: nothing
	menu [2]*menu // as a boot loader sees it, and after the journal was replayed
	err  [2]error // why there is no menu
}

const (
	raw      = 0
	replayed = 1
)

// look looks at the state of a disk.
func (s *scene) look(t *testing.T, d *Disk) *look {
	t.Helper()
	image := s.stateImage()
	if err := d.Copy(image, s.part.Offset, s.part.Size); err != nil {
		t.Fatal(err)
	}
	l := &look{}
	see := func(i int) {
		fs, err := s.unpack(t, image)
		if err != nil {
			l.err[i] = err
			return
		}
		m, err := s.readMenu(fs)
		l.menu[i], l.err[i] = &m, err
	}
	see(raw)
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if s.fs == "vfat" {
		l.fsck = fsckFAT(t, image)
		l.menu[replayed], l.err[replayed] = l.menu[raw], l.err[raw]
		return l
	}
	// The journal is replayed as a mount does it, and then nothing may be wrong.
	if out, err := exec.Command(tool(t, "e2fsck"), "-y", "-E", "journal_only", image).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 {
			l.fsck = fmt.Sprintf("replay: %v: %s", err, out)
		}
	}
	if out, err := exec.Command(tool(t, "e2fsck"), "-f", "-n", image).CombinedOutput(); err != nil {
		l.fsck += fmt.Sprintf("%v: %s", err, out)
	}
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before, after) {
		l.menu[replayed], l.err[replayed] = l.menu[raw], l.err[raw]
	} else {
		see(replayed)
	}
	return l
}

// harmless are the findings of fsck.vfat that a filesystem without a journal has
// after a power cut, and no boot loader minds: the dirty bit, which is set as long
// as it is mounted and which the copy of the boot sector does not have; counts; a
// table of clusters that is newer than its copy; clusters that nobody has any
// more; a piece of a long name without the others, of a file that is not there yet
// or no longer.
var harmless = regexp.MustCompile(`^(fsck\.fat .*|.* files, .* clusters` +
	`|Dirty bit is set\..*|Automatically removing dirty bit\.|There are differences between boot sector and its backup\.` +
	`|This is mostly harmless\. Differences: .*|65:01/00|Not automatically fixing this\.` +
	`|Free cluster summary (wrong|uninitialized) .*|Auto-(correcting|setting)\..*` +
	`|FATs differ but appear to be intact\.|Using first FAT\.` +
	`|Long filename fragment ".*" found outside a LFN sequence\.|\(Maybe the start bit is missing on the last fragment\)|Not auto-correcting this\.` +
	`|Reclaimed .*|Reclaiming unconnected clusters\.` +
	`|Leaving filesystem unchanged\.|\*\*\* Filesystem was changed \*\*\*|The changes have not yet been written.*)$`)

// about is how fsck.vfat begins what it says of a file; the next lines are about
// it.
var about = regexp.MustCompile(`^/(initoverlayfs|loader/entries)/`)

// fsckFAT gives the findings that are not harmless.
func fsckFAT(t *testing.T, image string) string {
	t.Helper()
	out, err := exec.Command(tool(t, "fsck.vfat"), "-n", image).CombinedOutput()
	if err == nil {
		return ""
	}
	var found []string
	ours := false
	for line := range strings.Lines(string(out)) {
		text := strings.TrimSpace(line)
		if strings.HasPrefix(line, "/") {
			ours = about.MatchString(line)
			continue
		}
		// What follows is indented. Whether what is damaged is needed, the boot
		// will show.
		if strings.HasPrefix(line, " ") && ours {
			continue
		}
		ours = false
		if text != "" && !harmless.MatchString(text) {
			found = append(found, text)
		}
	}
	return strings.Join(found, "\n")
}

// replay puts the partition with its journal replayed into the image of a disk.
func (s *scene) replay(t *testing.T, path string) {
	t.Helper()
	part, err := os.ReadFile(s.stateImage())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(part, s.part.Offset)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// stateImage is the partition that was looked at last.
func (s *scene) stateImage() string { return filepath.Join(s.dir, "state.img") }

// boot boots an entry from the disk as it is or after a replay, and gives the name of the tree
// that came up.
func (s *scene) boot(t *testing.T, d *Disk, c *choice, view int) (string, error) {
	t.Helper()
	image, initrd := filepath.Join(s.dir, "boot.img"), filepath.Join(s.dir, "boot.initrd")
	if err := d.Copy(image, 0, d.size); err != nil {
		t.Fatal(err)
	}
	if view == replayed {
		s.replay(t, image)
	}
	if err := os.WriteFile(initrd, c.initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	m := machine(t, s.kernel)
	m.Initrd = initrd
	m.Append = append(strings.Fields(c.Options), "vmtest.check=read:/"+generationFile, "initoverlayfs.timeout=20", "initoverlayfs.on_failure=halt")
	m.Drives = []vmtest.Drive{{Path: image, Snapshot: true}}
	r, err := vmtest.Run(t.Context(), m)
	if err != nil {
		return "", err
	}
	record, err := r.Done.BootRecord()
	if err != nil {
		return "", err
	}
	switch {
	case record == nil && c.ID != s.plainEntry():
		return "", errors.New("there is no boot record")
	case record != nil && record.ImageUUID != c.conf.ImageUUID.String():
		return "", fmt.Errorf("the image is %s, the entry's is %s", record.ImageUUID, c.conf.ImageUUID)
	}
	var files map[string]string
	if err := r.Done.Check("read", &files); err != nil {
		return "", err
	}
	return slices.Collect(maps.Values(files))[0], nil
}
