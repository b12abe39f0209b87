package install

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

const (
	kver  = "6.1.0-9-amd64"
	token = "0123456789abcdef0123456789abcdef"
)

// plainEntry is what kernel-install of Debian 12 writes.
const plainEntry = `# Boot Loader Specification type#1 entry
title      Debian GNU/Linux 12 (bookworm)
version    ` + kver + `
machine-id ` + token + `
sort-key   debian
options    root=UUID=1 ro quiet
linux      /vmlinuz-` + kver + `
initrd     /initrd.img-` + kver + `
`

// scratch is a machine with a kernel, its initramfs and an entry for it.
type scratch struct {
	t    *testing.T
	root string
	o    Options
	// frozen has the folders that were frozen, in order.
	frozen []string
	warned []string
}

func newScratch(t *testing.T) *scratch {
	t.Helper()
	s := &scratch{t: t, root: t.TempDir()}
	k := kmodtest.Kernel{Version: kver}
	for _, m := range []string{"erofs", "overlay", "loop", "ext4", "virtio_pci", "virtio_blk"} {
		k.Modules = append(k.Modules, kmodtest.Module{File: "kernel/" + m + ".ko"})
	}
	kmodtest.Write(t, s.root, k)
	s.write("lib/modules/"+kver+"/config", "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\nCONFIG_EROFS_FS_ZIP=y\nCONFIG_RD_ZSTD=y\n")
	s.write("boot/vmlinuz-"+kver, "a kernel")
	s.write("etc/machine-id", token+"\n")
	s.write("boot/loader/entries/"+token+"-"+kver+".conf", plainEntry)
	s.source("first")
	// The folder is not a filesystem of its own, so it is told which one is meant.
	s.write("etc/initoverlayfs.conf", "# of a test\nbootfs LABEL=boot\nbootfstype ext4\nbackend loop\nstorage virtio\n")
	program := filepath.Join(t.TempDir(), "storage-init")
	if err := os.WriteFile(program, emptyProgram(t), 0o755); err != nil {
		t.Fatal(err)
	}
	producer, err := builder.ProducerNamed("native")
	if err != nil {
		t.Fatal(err)
	}
	s.o = Options{
		KernelVersion: kver,
		Sysroot:       s.root,
		WorkDir:       t.TempDir(),
		Build: builder.Options{
			Arch: "amd64", StorageInit: program, ToolVersion: "test", Compress: compress.Zstd,
			Producer: producer, Image: builder.DefaultImageOptions(),
		},
		Freeze: func(_ context.Context, dir string) error {
			s.frozen = append(s.frozen, strings.TrimPrefix(dir, s.root))
			return nil
		},
		Warn: func(text string) { s.warned = append(s.warned, text) },
	}
	return s
}

func (s *scratch) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scratch) read(name string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// source makes the plain initramfs, with a file of this content.
func (s *scratch) source(text string) {
	s.t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for i, e := range []struct {
		name string
		mode uint32
		body string
	}{
		{"conf", cpio.TypeDir | 0o755, ""},
		{"conf/initramfs.conf", cpio.TypeRegular | 0o644, text},
		{"init", cpio.TypeRegular | 0o755, "#!/bin/sh\n"},
		{"scripts", cpio.TypeDir | 0o755, ""},
		{"scripts/functions", cpio.TypeRegular | 0o644, strings.Repeat(text+"\n", 1000)},
	} {
		h := cpio.Header{Name: e.name, Ino: uint32(i + 1), Mode: e.mode, NLink: 1, MTime: 1_700_000_000, Size: int64(len(e.body))}
		if err := w.WriteHeader(&h); err != nil {
			s.t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.write("boot/initrd.img-"+kver, b.String())
}

func emptyProgram(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s *scratch) install() *Result {
	s.t.Helper()
	r, err := Install(context.Background(), s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// files are the paths below /boot, sorted.
func (s *scratch) files() []string {
	s.t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Join(s.root, "boot"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.ReplaceAll(strings.TrimPrefix(path, s.root+"/boot/"), kver, "V"))
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

func pairFiles(generations ...string) []string {
	var files []string
	for _, g := range generations {
		for _, name := range []string{"initoverlayfs-V.img", "initoverlayfs-V.json", "initramfs-V.img"} {
			files = append(files, "initoverlayfs/V/"+g+"/"+name)
		}
	}
	return append(files, "initoverlayfs/V/installed.json")
}

var plainFiles = []string{"initrd.img-V", "loader/entries/" + token + "-V.conf", "vmlinuz-V"}

const (
	currentEntry  = "loader/entries/" + token + "-V.initoverlayfs.conf"
	previousEntry = "loader/entries/" + token + "-V.backup.initoverlayfs.conf"
)

func (s *scratch) wantFiles(want ...string) {
	s.t.Helper()
	want = slices.Concat(want, plainFiles)
	slices.Sort(want)
	if diff := cmp.Diff(want, s.files()); diff != "" {
		s.t.Errorf("files in /boot (-want +got):\n%s", diff)
	}
}

// initrd is what an entry boots.
func (s *scratch) initrd(entry string) string {
	s.t.Helper()
	for line := range strings.Lines(s.read("boot/" + strings.ReplaceAll(entry, "V", kver))) {
		if path, ok := strings.CutPrefix(line, "initrd "); ok {
			return strings.ReplaceAll(strings.TrimSpace(path), kver, "V")
		}
	}
	return ""
}

func TestInstall(t *testing.T) {
	s := newScratch(t)
	plain := s.read("boot/initrd.img-" + kver)

	r := s.install()
	if !r.New || r.Current != 1 || r.Previous != 0 || len(r.Entries) != 1 {
		t.Errorf("the first time: %+v", r)
	}
	s.wantFiles(append(pairFiles("1"), currentEntry)...)
	if got, want := s.initrd(currentEntry), "/initoverlayfs/V/1/initramfs-V.img"; got != want {
		t.Errorf("the entry boots %s, want %s", got, want)
	}
	// The files before what refers to them.
	if diff := cmp.Diff([]string{"/boot/initoverlayfs/" + kver + "/1", "/boot", "/boot"}, s.frozen); diff != "" {
		t.Errorf("frozen (-want +got):\n%s", diff)
	}
	c, err := builder.MiniConfig(filepath.Join(s.root, r.Generations[0].Mini))
	if err != nil {
		t.Fatal(err)
	}
	if c.Bootfs.String() != "LABEL=boot" || !strings.HasSuffix(c.FS, "/initoverlayfs/"+kver+"/1/initoverlayfs-"+kver+".img") ||
		c.ImageUUID.String() != r.Generations[0].ImageUUID {
		t.Errorf("the mini-initramfs is told %s", c.Format())
	}

	// Nothing has changed.
	s.frozen = nil
	if r := s.install(); r.New || r.Current != 1 || len(s.frozen) != 0 {
		t.Errorf("the second time: %+v, frozen %q", r, s.frozen)
	}
	s.wantFiles(append(pairFiles("1"), currentEntry)...)

	s.source("second")
	if r := s.install(); !r.New || r.Current != 2 || r.Previous != 1 {
		t.Errorf("with another source: %+v", r)
	}
	s.wantFiles(append(pairFiles("1", "2"), currentEntry, previousEntry)...)
	for entry, want := range map[string]string{currentEntry: "2", previousEntry: "1"} {
		if got, want := s.initrd(entry), "/initoverlayfs/V/"+want+"/initramfs-V.img"; got != want {
			t.Errorf("%s boots %s, want %s", entry, got, want)
		}
	}

	// The system runs on the first pair: the second one never proved itself.
	s.write("run/initoverlayfs/boot.json", `{"image_uuid":"`+r.Generations[0].ImageUUID+`"}`)
	s.source("third")
	if r := s.install(); r.Current != 3 || r.Previous != 1 {
		t.Errorf("booted from the previous pair: %+v", r)
	}
	s.wantFiles(append(pairFiles("1", "3"), currentEntry, previousEntry)...)
	if err := os.Remove(filepath.Join(s.root, "run/initoverlayfs/boot.json")); err != nil {
		t.Fatal(err)
	}

	s.o.Force = true
	s.source("first")
	if r := s.install(); r.Current != 4 || r.Previous != 3 {
		t.Errorf("forced: %+v", r)
	}

	if err := Remove(context.Background(), s.o); err != nil {
		t.Fatal(err)
	}
	s.wantFiles()
	if s.read("boot/initrd.img-"+kver) == "" || len(plain) == 0 || s.read("boot/loader/entries/"+token+"-"+kver+".conf") != plainEntry {
		t.Error("the plain initramfs or its entry is not as it was")
	}
	if err := Remove(context.Background(), s.o); err == nil {
		t.Error("nothing was removed without an error")
	}
}

// What an earlier run that was killed has left goes, and its number is not used
// again while it is there.
func TestInstallAfterKill(t *testing.T) {
	s := newScratch(t)
	s.install()
	s.write("boot/initoverlayfs/"+kver+"/2/.initoverlayfs.img.123.tmp", "half")
	s.write("boot/initoverlayfs/"+kver+"/.installed.json.123.tmp", "half")
	s.install()
	s.wantFiles(append(pairFiles("1"), currentEntry)...)

	// Between the new state and the new entries: the entry names the pair that is
	// neither the current one nor the one that the system runs on.
	s.source("second")
	running := s.install()
	s.write("run/initoverlayfs/boot.json", `{"image_uuid":"`+running.Generations[0].ImageUUID+`"}`)
	s.source("third")
	s.o.NoEntries = true
	i, err := prepareKernel(&s.o, true)
	if err != nil {
		t.Fatal(err)
	}
	if i.work, err = os.MkdirTemp(s.o.WorkDir, ""); err != nil {
		t.Fatal(err)
	}
	if err := i.configure(3); err != nil {
		t.Fatal(err)
	}
	src, err := i.source(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	state, err := readState(i.statePath())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.replace(context.Background(), state, src, 3, ""); err != nil {
		t.Fatal(err)
	}
	s.wantFiles(append(pairFiles("1", "2", "3"), currentEntry, previousEntry)...)
	s.o.Freeze = func(context.Context, string) error { return errors.New("killed once more") }
	s.source("fourth")
	if _, err := Install(context.Background(), s.o); err == nil {
		t.Fatal("no error")
	}
	s.wantFiles(append(pairFiles("1", "2", "3"), currentEntry, previousEntry)...)
	s.o.Freeze = func(context.Context, string) error { return nil }
	s.o.NoEntries = false
	if r := s.install(); r.Current != 4 || r.Previous != 1 {
		t.Errorf("%+v; want 4 and the running 1", r.State)
	}
	s.wantFiles(append(pairFiles("1", "4"), currentEntry, previousEntry)...)

	// Without a state nothing is known of the folders: one of them may be booted.
	if err := os.Remove(filepath.Join(s.root, "boot/initoverlayfs", kver, stateName)); err != nil {
		t.Fatal(err)
	}
	if r := s.install(); r.Current != 5 || r.Previous != 0 {
		t.Errorf("without a state: %+v", r)
	}
	s.wantFiles(append(pairFiles("5"), currentEntry)...)
}

// A failure at any step leaves what was there.
func TestInstallFails(t *testing.T) {
	for name, breakIt := range map[string]func(*scratch){
		"freeze":        func(s *scratch) { s.o.Freeze = func(context.Context, string) error { return errors.New("no") } },
		"source":        func(s *scratch) { s.write("boot/initrd.img-"+kver, "nonsense") },
		"configuration": func(s *scratch) { s.write("etc/initoverlayfs.conf", "colour red\n") },
		"device":        func(s *scratch) { s.o.Settings = [][2]string{{"backend", "block"}} },
		"mini-initramfs as source": func(s *scratch) {
			s.write("boot/initrd.img-"+kver, s.read("boot/initoverlayfs/"+kver+"/1/initramfs-"+kver+".img"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScratch(t)
			s.install()
			s.source("second")
			entry, first := s.initrd(currentEntry), s.files()
			breakIt(s)
			if _, err := Install(context.Background(), s.o); err == nil {
				t.Error("no error")
			}
			if diff := cmp.Diff(first, s.files()); diff != "" {
				t.Errorf("files in /boot (-before +after):\n%s", diff)
			}
			if got := s.initrd(currentEntry); got != entry {
				t.Errorf("the entry boots %s, before %s", got, entry)
			}
			if left, err := os.ReadDir(s.o.WorkDir); err != nil || len(left) > 0 {
				t.Errorf("left in the work folder: %v, %v", left, err)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	s := newScratch(t)
	health := func() (Health, *Overview) {
		t.Helper()
		v, err := ReadOverview(context.Background(), s.o)
		if err != nil || len(v.Kernels) != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
		return v.Kernels[0].Health, v
	}
	if v, err := ReadOverview(context.Background(), s.o); err != nil || len(v.Kernels) != 0 {
		t.Errorf("before: %+v, %v", v, err)
	}
	r := s.install()
	if got, v := health(); got != Current || v.Record != nil || v.Kernels[0].Booted != 0 {
		t.Errorf("installed: %s, %+v", got, v)
	}
	s.write("run/initoverlayfs/boot.json", `{"backend":"loop","image_uuid":"`+r.Generations[0].ImageUUID+`","phases":[{"name":"setup","start_us":1,"end_us":2}]}`)
	if _, v := health(); v.Record == nil || len(v.Record.Phases) != 1 || v.Kernels[0].Booted != 1 {
		t.Errorf("booted: %+v", v)
	}
	s.source("second")
	if got, _ := health(); got != Stale {
		t.Errorf("source changed: %s", got)
	}
	if err := os.Remove(filepath.Join(s.root, r.Generations[0].Image)); err != nil {
		t.Fatal(err)
	}
	if got, _ := health(); got != Missing {
		t.Errorf("image gone: %s", got)
	}
}

// One byte that is not as it was written is found, in each file that is ours.
func TestVerify(t *testing.T) {
	s := newScratch(t)
	s.install()
	s.source("second")
	r := s.install()
	verify := func() (*Verdict, error) { return Verify(context.Background(), s.o) }
	v, err := verify()
	if err != nil || !v.Boots {
		t.Fatalf("%+v, %v", v, err)
	}
	var ours []string
	for _, f := range s.files() {
		if !slices.Contains(plainFiles, f) {
			ours = append(ours, f)
		}
	}
	if want := 2*3 + 1 + 2; len(ours) != want || len(r.Entries) != 2 {
		t.Fatalf("%d files are ours, want %d: %q", len(ours), want, ours)
	}
	for _, name := range ours {
		path := "boot/" + strings.ReplaceAll(name, "V", kver)
		if strings.HasPrefix(name, "loader/entries/"+token) {
			path = "boot/loader/entries/" + token + "-" + kver + strings.TrimPrefix(name, "loader/entries/"+token+"-V")
		}
		text := s.read(path)
		for _, at := range []int{0, len(text) / 3, len(text) - 1} {
			changed := []byte(text)
			changed[at] ^= 1
			s.write(path, string(changed))
			v, err := verify()
			if err == nil && v.Boots {
				t.Errorf("%s: byte %d is changed, and nothing is found", name, at)
			}
			if err == nil && !slices.ContainsFunc(v.Findings, func(f Finding) bool { return f.Problem != "" && "/"+path == f.Path }) {
				t.Errorf("%s: byte %d: the file is not named: %+v", name, at, v.Findings)
			}
		}
		s.write(path, text)
	}
	if v, err := verify(); err != nil || !v.Boots {
		t.Errorf("as it was: %+v, %v", v, err)
	}
}

func TestGrubKernels(t *testing.T) {
	s := newScratch(t)
	s.install()
	s.source("second")
	s.install()
	if menu, err := GrubKernels(s.o, "/@/boot"); err != nil || len(menu) != 0 {
		t.Errorf("with entries in files: %+v, %v; want none", menu, err)
	}
	if err := os.RemoveAll(filepath.Join(s.root, "boot/loader")); err != nil {
		t.Fatal(err)
	}
	menu, err := GrubKernels(s.o, "/@/boot")
	want := []bootentry.GrubKernel{{
		Version: kver, Linux: "/@/boot/vmlinuz-" + kver, Plain: "/@/boot/initrd.img-" + kver,
		Mini:     "/@/boot/initoverlayfs/" + kver + "/2/initramfs-" + kver + ".img",
		Previous: "/@/boot/initoverlayfs/" + kver + "/1/initramfs-" + kver + ".img",
	}}
	if diff := cmp.Diff(want, menu); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	// Of a kernel whose state is damaged no entry can be made, of the others can.
	s.write("boot/initoverlayfs/6.0/installed.json", "{}")
	s.warned = nil
	menu, err = GrubKernels(s.o, "/@/boot")
	if diff := cmp.Diff(want, menu); err != nil || diff != "" || !slices.ContainsFunc(s.warned, func(w string) bool { return strings.Contains(w, "6.0/installed.json is damaged") }) {
		t.Errorf("with a damaged state: %v, warnings %q, (-want +got):\n%s", err, s.warned, diff)
	}
	if err := os.RemoveAll(filepath.Join(s.root, "boot/initoverlayfs/6.0")); err != nil {
		t.Fatal(err)
	}
	// The warning says that nothing boots the pair.
	s.warned = nil
	s.install()
	if !slices.ContainsFunc(s.warned, func(w string) bool { return strings.Contains(w, "is not booted") }) {
		t.Errorf("without a boot loader the warnings are %q", s.warned)
	}
}

// TestDamagedState installs where the state is not what was written, as after a
// power cut on a FAT.
func TestDamagedState(t *testing.T) {
	s := newScratch(t)
	s.install()
	s.o.Force = true
	s.install()
	for _, text := range []string{"", "{", "{}"} {
		s.write("boot/initoverlayfs/"+kver+"/installed.json", text)
		s.warned = nil
		r := s.install()
		if !r.New || r.Current < 3 || r.Previous != 0 {
			t.Errorf("with the state %q: %+v", text, r)
		}
		s.wantFiles(append(pairFiles(fmt.Sprint(r.Current)), currentEntry)...)
		if len(s.warned) == 0 || !strings.Contains(s.warned[0], "installed.json is damaged") {
			t.Errorf("with the state %q: warnings %q", text, s.warned)
		}
	}
}
