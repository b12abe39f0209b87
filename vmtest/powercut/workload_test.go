package powercut

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// What a boot partition has from its distribution.
const (
	entryToken = "0123456789abcdef0123456789abcdef"
	bootLabel  = "boot" // PARTLABEL
)

// workload is a row of changes to a boot partition whose disk writes a log.
type workload struct {
	name string
	fs   string // of the boot partition
	// trees has what the default entry boots before, and after each change.
	trees []string
	// previous has what the entry of the previous pair boots; empty: there is none.
	previous []string
	// settled is set where a change, once it is made, can be read without the
	// journal.
	settled bool
	// script gives the lines that make the n-th change, 1 the first.
	script func(n int) []string
	// prepare puts what the script needs into the guest's archive.
	prepare func(t *testing.T, s *scene, a archive)
}

// scene is a workload that has run.
type scene struct {
	workload
	kernel fixtures.Kernel
	dir    string
	before string // the disk of before
	plain  string // the initramfs of the distribution
	part   disk.Partition
	marks  disk.Partition
	log    *Log
	output []string                   // what the programs of the script wrote
	confs  map[Digest]bootconf.Config // of mini-initramfs archives
}

// plainEntry is the name of the distribution's own entry.
func (s *scene) plainEntry() string { return entryToken + "-" + s.kernel.Version + ".conf" }

// ourEntry is the name of an entry of ours.
func (s *scene) ourEntry(role string) string {
	return entryToken + "-" + s.kernel.Version + role + ".initoverlayfs.conf"
}

// run runs a workload in a guest.
func (w workload) run(t *testing.T) *scene {
	t.Helper()
	s := &scene{workload: w, kernel: fixtures.OpenKernel(t, "kernel-6.12"), dir: t.TempDir(), confs: map[Digest]bootconf.Config{}}
	s.makeDisk(t)
	a := host(t, s.kernel)
	w.prepare(t, s, a)
	a.file("script", []byte(s.lines()))
	initrd := filepath.Join(s.dir, "host.cpio")
	a.write(t, initrd)

	written := filepath.Join(s.dir, "written.img")
	copyWhole(t, written, s.before)
	log := filepath.Join(s.dir, "log")
	m := machine(t, s.kernel)
	m.Initrd, m.Append = initrd, []string{"vmtest.check=insmod:/modules,script:/script"}
	m.MemoryMiB = 1024 // the root filesystem is in memory
	m.Drives = []vmtest.Drive{{Path: written, WriteLog: log}}
	r, err := vmtest.Run(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s on %s: %d changes in %.1f s, guest %.1f s", w.name, w.fs, len(w.trees)-1, r.Wall.Seconds(), r.LastS)
	var ended []struct{ Command, Output string }
	if err := r.Done.Check("script", &ended); err != nil {
		t.Fatal(err)
	}
	for _, e := range ended {
		s.output = append(s.output, "$ "+e.Command+"\n"+e.Output)
	}

	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if s.log, err = ReadLog(f, info.Size()); err != nil {
		t.Fatal(err)
	}
	return s
}

// makeDisk makes the disk of a machine without our files: a kernel, its
// initramfs, and a boot loader's entry for them.
func (s *scene) makeDisk(t *testing.T) {
	t.Helper()
	kver := s.kernel.Version
	s.plain = fullTree(t, "plain")
	kernel, entry := filepath.Join(s.dir, "vmlinuz"), filepath.Join(s.dir, "entry")
	for path, text := range map[string]string{
		kernel: "stands for the kernel, which QEMU loads\n",
		entry: fmt.Sprintf("title Debian\nversion %s\nmachine-id %s\noptions root=LABEL=root\nlinux /vmlinuz-%s\ninitrd /initrd.img-%s\n",
			kver, entryToken, kver, kver),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.before = filepath.Join(s.dir, "before.img")
	parts, err := disk.Create(t.Context(), s.before, disk.Spec{Partitions: []disk.Partition{
		{Label: bootLabel, FS: s.fs, Size: 36 << 20, Files: map[string]string{
			"/vmlinuz-" + kver: kernel, "/initrd.img-" + kver: s.plain, "/loader/entries/" + s.plainEntry(): entry,
		}},
		{Label: "marks", Size: 1 << 20},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.part, s.marks = parts[0], parts[1]
}

const (
	bootDevice = "/dev/vda1"
	markDevice = "/dev/vda2"
)

// lines is the script that the guest runs.
func (s *scene) lines() string {
	lines := []string{"mount " + s.fs + " " + bootDevice + " /boot"}
	for n := 1; n < len(s.trees); n++ {
		lines = append(lines, fmt.Sprintf("mark %s begin-%d", markDevice, n))
		lines = append(lines, s.script(n)...)
		lines = append(lines, fmt.Sprintf("mark %s end-%d", markDevice, n))
	}
	lines = append(lines, "umount /boot")
	return strings.NewReplacer("$V", s.kernel.Version, "$TOKEN", entryToken).Replace(strings.Join(lines, "\n") + "\n")
}

func copyWhole(t testing.TB, to, from string) {
	t.Helper()
	d, err := OpenDisk(from)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Copy(to, 0, d.size); err != nil {
		t.Fatal(err)
	}
}

// buildPair builds the pair that finds its image in a folder of the boot
// partition, and whose tree has the name n.
func (s *scene) buildPair(t *testing.T, to string, n int, dir string) *bootconf.Manifest {
	t.Helper()
	producer, err := builder.ProducerNamed("native")
	if err != nil {
		t.Fatal(err)
	}
	o := builder.Options{
		KernelVersion: s.kernel.Version, Arch: "amd64", Source: builder.Source{Archive: fullTree(t, fmt.Sprint(n))},
		ModulesDir: s.kernel.Modules, KernelConfig: s.kernel.Config, StorageInit: program(t, "storage-init"),
		Config: bootconf.Default(), Producer: producer, Image: builder.DefaultImageOptions(), Compress: compress.None,
		Storage: []string{"virtio"}, OutputDir: to, ToolVersion: "test",
	}
	o.Image.Compress = builder.ImageCompression{Algorithm: "lz4"}
	config := fmt.Sprintf("backend auto:file,loop\nbootfs PARTLABEL=%s\nbootfstype %s\nfs %s/image\n", bootLabel, s.fs, dir)
	if problems := o.Config.ReadFile(config); len(problems) > 0 {
		t.Fatal(problems[0])
	}
	m, err := builder.Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// pairsOf builds a pair for each change and puts it into the guest's archive
// below /pair/N, with the entry that boots it from the folder dir(N) of the boot
// partition.
func pairsOf(dir func(n int) string) func(t *testing.T, s *scene, a archive) {
	return func(t *testing.T, s *scene, a archive) {
		t.Helper()
		for n := 1; n < len(s.trees); n++ {
			out, to := t.TempDir(), fmt.Sprintf("pair/%d/", n)
			m := s.buildPair(t, out, n, dir(n))
			a.take(t, to+"mini", filepath.Join(out, m.Mini.File))
			a.take(t, to+"image", filepath.Join(out, m.Image.File))
			a.file(to+"entry", fmt.Appendf(nil, "title Debian %d\nversion %s.initoverlayfs\nlinux /vmlinuz-%s\ninitrd %s/mini\n",
				n, s.kernel.Version, s.kernel.Version, dir(n)))
		}
	}
}

// ours is our own installer: two pairs, and all of it removed; or two pairs, a
// third while the system that runs was booted from the first, a fourth, and all of
// it removed.
func ours(fs string, four bool) workload {
	w := workload{
		name: "initoverlayfs install", fs: fs, settled: true,
		trees: []string{"plain", "1", "2", "plain"}, previous: []string{"", "", "1", ""},
	}
	if four {
		w.trees, w.previous = []string{"plain", "1", "2", "3", "4", "plain"}, []string{"", "", "1", "1", "3", ""}
	}
	last := len(w.trees) - 1
	w.script = func(n int) []string {
		if n == last {
			return []string{"initoverlayfs remove $V"}
		}
		install := fmt.Sprintf("initoverlayfs install $V --initramfs /src/%d.img --image-compress lz4 --compress none --storage virtio", n)
		switch n {
		case 3:
			return []string{"mkdir /run/initoverlayfs", "copy /src/record /run/initoverlayfs/boot.json", install}
		case 4:
			return []string{"rename /run/initoverlayfs /run/other", install}
		}
		return []string{install}
	}
	w.prepare = func(t *testing.T, s *scene, a archive) {
		a.file("etc/machine-id", []byte(entryToken+"\n"))
		for n := 1; n < last; n++ {
			a.take(t, fmt.Sprintf("src/%d.img", n), fullTree(t, fmt.Sprint(n)))
		}
		// The first pair's image has this identity wherever it is made.
		m := s.buildPair(t, t.TempDir(), 1, "")
		record := bootconf.Record{Backend: bootconf.File, ImageUUID: m.Image.UUID, Verified: "none"}
		a.file("src/record", record.AppendJSON(nil))
	}
	return w
}
