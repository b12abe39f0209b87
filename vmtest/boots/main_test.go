package boots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/vmlinux"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "boots", &work)) }

// Names in the full tree.
const (
	bigFile    = "/big"
	bigBytes   = 10 << 20
	customInit = "/bin/custom-init"
	marker     = "/marker" // only in trees with an init
)

// tree is a full tree.
type tree string

const (
	initTree   tree = "init"
	noInitTree tree = "no-init" // the same without anything that can be executed
)

// programs are the guest and storage-init.
var programs = sync.OnceValues(func() (dir string, err error) {
	dir = filepath.Join(work, "programs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := vmtest.BuildGuest(context.Background(), "", filepath.Join(dir, "guest")); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
		"-o", filepath.Join(dir, "storage-init"), "initoverlayfs/cmd/storage-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build storage-init: %w: %s", err, text)
	}
	return dir, nil
})

// memo remembers what was made for each key.
type memo[K comparable, V any] struct{ made sync.Map }

func (m *memo[K, V]) get(key K, make func() (V, error)) (V, error) {
	once, _ := m.made.LoadOrStore(key, sync.OnceValues(make))
	return once.(func() (V, error))()
}

var (
	archives memo[tree, string]
	kernels  memo[string, string]
	builds   memo[spec, *build]
)

// archive writes the tree as a newc archive and gives its path.
func (t tree) archive() (string, error) {
	dir, err := programs()
	if err != nil {
		return "", err
	}
	guest, err := os.ReadFile(filepath.Join(dir, "guest"))
	if err != nil {
		return "", err
	}
	// Half of each page is noise, so that the file shrinks, but not to nothing.
	big := make([]byte, bigBytes)
	noise := rand.NewChaCha8([32]byte{})
	for page := 0; page < len(big); page += 4096 {
		noise.Read(big[page : page+2048])
	}
	const dirMode, fileMode = cpio.TypeDir | 0o755, cpio.TypeRegular | 0o644
	type entry struct {
		name string
		mode uint32
		body string
		ino  uint32 // of hard links; the last one has the body
	}
	entries := []entry{
		{name: ".", mode: dirMode},
		{name: "big", mode: fileMode, body: string(big)},
		{name: "bin", mode: dirMode},
		// By these two the tree is one of initramfs-tools.
		{name: "conf", mode: dirMode},
		{name: "conf/initramfs.conf", mode: fileMode, body: "MODULES=most\n"},
		{name: "scripts", mode: dirMode},
		{name: "scripts/functions", mode: fileMode, body: "true\n"},
		{name: "link", mode: cpio.TypeSymlink | 0o777, body: "init"},
		{name: "dev", mode: dirMode},
		{name: "dev/console", mode: cpio.TypeChar | 0o600},
		{name: "proc", mode: dirMode},
		{name: "run", mode: dirMode},
		{name: "sys", mode: dirMode},
	}
	if t == initTree {
		const program, links = cpio.TypeRegular | 0o755, 1000
		entries = append(entries,
			entry{name: marker[1:], mode: fileMode, body: "here\n"},
			entry{name: "bin/run-init", mode: program, body: "replaced"},
			entry{name: "bin/switch_root", mode: program, body: "replaced"},
			entry{name: customInit[1:], mode: program, ino: links},
			entry{name: "init", mode: program, ino: links, body: string(guest)},
		)
	}
	path := filepath.Join(work, string(t)+".cpio")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	for i, e := range entries {
		h := &cpio.Header{Name: e.name, Ino: uint32(i + 1), Mode: e.mode, NLink: 1, MTime: 1700000000, Size: int64(len(e.body))}
		if e.ino != 0 {
			h.Ino, h.NLink = e.ino, 2
		}
		if e.mode&cpio.TypeMask == cpio.TypeChar {
			h.RDevMajor, h.RDevMinor = 5, 1
		}
		if err := w.WriteHeader(h); err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			return "", err
		}
	}
	return path, errors.Join(w.Close(), f.Close())
}

// spec says what a build is made of; equal specs are one build.
type spec struct {
	kernel   string          // fixture; empty: kernel-6.1
	tree     tree            // empty: initTree
	config   string          // lines of the configuration, ended by newlines
	storage  string          // driver sets, by commas; empty: virtio
	compress compress.Format // of the mini-initramfs; empty: none, which boots fastest
	dax      bool            // an uncompressed image
	blobs    int             // that the image's data is in: one that it brings, and one that was there
}

// build is what a test boots.
type build struct {
	*bootconf.Manifest
	kernel string // of the fixture
	conf   bootconf.Config
	mini   string
	image  string
	blobs  []string
}

// build makes what the spec says, unless it is made already.
func (s spec) build(tb testing.TB) *build {
	tb.Helper()
	fixtures.RequireBoots(tb, fixtures.Some)
	if s.kernel == "" {
		s.kernel = "kernel-6.1"
	}
	if s.tree == "" {
		s.tree = initTree
	}
	if s.storage == "" {
		s.storage = "virtio"
	}
	if s.compress == "" {
		s.compress = compress.None
	}
	kernel := fixtures.OpenKernel(tb, s.kernel)
	b, err := builds.get(s, func() (*build, error) { return s.make(kernel) })
	if err != nil {
		tb.Fatalf("build %+v: %v", s, err)
	}
	return b
}

func (s spec) make(kernel fixtures.Kernel) (*build, error) {
	archive, err := archives.get(s.tree, s.tree.archive)
	if err != nil {
		return nil, err
	}
	dir, err := programs()
	if err != nil {
		return nil, err
	}
	producer, err := builder.ProducerNamed("native")
	if err != nil {
		return nil, err
	}
	o := builder.Options{
		KernelVersion: kernel.Version,
		Arch:          "amd64",
		Source:        builder.Source{Archive: archive},
		ModulesDir:    kernel.Modules,
		KernelConfig:  kernel.Config,
		StorageInit:   filepath.Join(dir, "storage-init"),
		Config:        bootconf.Default(),
		Producer:      producer,
		Image:         builder.DefaultImageOptions(),
		Compress:      s.compress,
		Storage:       strings.Split(s.storage, ","),
		ToolVersion:   "test",
	}
	o.Image.Compress = builder.ImageCompression{Algorithm: "lz4"} // the quickest
	if s.dax {
		o.Image.Compress = builder.ImageCompression{}
	}
	if o.OutputDir, err = os.MkdirTemp(work, "build-"); err != nil {
		return nil, err
	}
	if s.blobs > 0 {
		if err := s.putInBlobs(&o); err != nil {
			return nil, err
		}
	}
	if problems := o.Config.ReadFile(s.config); len(problems) > 0 {
		return nil, problems[0]
	}
	b := &build{kernel: kernel.Image}
	if b.Manifest, err = builder.Build(context.Background(), o); err != nil {
		return nil, err
	}
	b.mini = filepath.Join(o.OutputDir, b.Mini.File)
	b.image = filepath.Join(o.OutputDir, b.Image.File)
	for _, name := range b.Image.Blobs {
		b.blobs = append(b.blobs, filepath.Join(o.Image.BlobDir, name))
	}
	b.conf, err = builder.MiniConfig(b.mini)
	return b, err
}

// machine is a guest that boots the build; the words go on its command line.
func (b *build) machine(tb testing.TB, words ...string) vmtest.Machine {
	tb.Helper()
	kernel, err := kernels.get(b.KernelVersion, func() (string, error) {
		path := filepath.Join(work, "vmlinux-"+b.KernelVersion)
		return path, vmlinux.Extract(path, b.kernel)
	})
	if err != nil {
		tb.Fatal(err)
	}
	return vmtest.Machine{
		Kernel: kernel, Initrd: b.mini, Append: words, MemoryMiB: 512,
		Accel: vmtest.TCG, Timeout: 4 * time.Minute,
	}
}

// bootDisk makes a disk with these partitions.
func bootDisk(tb testing.TB, parts ...disk.Partition) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk.img")
	if _, err := disk.Create(tb.Context(), path, disk.Spec{Partitions: parts}); err != nil {
		tb.Fatal(err)
	}
	return path
}

// imagePartition is a partition that is the image.
func (b *build) imagePartition() disk.Partition {
	return disk.Partition{Label: "initoverlayfs", Image: b.image}
}

// filePartition is an ext4 partition that holds the image where the build looks
// for it.
func (b *build) filePartition(label string) disk.Partition {
	return disk.Partition{FS: "ext4", FSLabel: label, Files: map[string]string{b.conf.FS: b.image}}
}

// drive is a disk whose changes are thrown away.
func drive(bus vmtest.Bus, path string) vmtest.Drive {
	return vmtest.Drive{Path: path, Bus: bus, Snapshot: true}
}

// pmem is the image as persistent memory of a guest with 512 MiB.
func pmem(image string) vmtest.Pmem { return vmtest.Pmem{Path: image, AddrMiB: 256} }

// guests is as many as run at a time: they keep a CPU busy each.
var guests = make(chan struct{}, 2)

// run boots a machine when there is room for it.
func run(tb testing.TB, m vmtest.Machine) (*vmtest.Result, error) {
	tb.Helper()
	guests <- struct{}{}
	defer func() { <-guests }()
	r, err := vmtest.Run(tb.Context(), m)
	if r == nil {
		tb.Fatal(err)
	}
	tb.Logf("wall %.1f s, guest %.1f s", r.Wall.Seconds(), r.LastS)
	return r, err
}

// boot boots a machine that must come up through a backend, checks what holds
// after every boot, and does the named checks in the guest.
func (b *build) boot(tb testing.TB, m vmtest.Machine, backend bootconf.Backend, checks ...string) *vmtest.Result {
	tb.Helper()
	// First, because what follows `--` is for the tree's init.
	check := "vmtest.check=" + strings.Join(append(checks, "exists:"+marker, "old_root"), ",")
	m.Append = append([]string{check}, m.Append...)
	m.Expect = []vmtest.Milestone{vmtest.KernelToInit, vmtest.HandedOver, vmtest.InitfsInit}
	r, err := run(tb, m)
	if err != nil {
		tb.Fatalf("%v\n%s", err, ourLines(r))
	}
	b.checkRecord(tb, r, backend)
	b.checkMounts(tb, r)
	if here := checked[bool](tb, r, "exists"); !here {
		tb.Errorf("the tree has no %s: it is another image's", marker)
	}
	return r
}

// checkRecord holds the boot record and the hand-over line against the build.
func (b *build) checkRecord(tb testing.TB, r *vmtest.Result, backend bootconf.Backend) *bootconf.Record {
	tb.Helper()
	record, err := r.Done.BootRecord()
	if err != nil {
		tb.Fatal(err)
	}
	if record == nil {
		tb.Fatal("there is no boot record")
	}
	got := vmtest.Handover{Backend: record.Backend, Image: record.ImageUUID, Verified: record.Verified}
	if want := (vmtest.Handover{Backend: backend, Image: b.Image.UUID, Verified: "none"}); got != want {
		tb.Errorf("record = %+v, want %+v", got, want)
	}
	if line := *r.Handover; line.US <= 0 || line.Backend != got.Backend || line.Image != got.Image || line.Verified != got.Verified {
		tb.Errorf("handover line = %+v, record = %+v", line, got)
	}
	if n := len(record.Attempts); n == 0 || record.Attempts[n-1] != (bootconf.Attempt{Backend: backend}) {
		tb.Errorf("attempts = %+v, want %s without an error as the last", record.Attempts, backend)
	}
	if len(record.Modules) == 0 || !slices.Contains(record.Modules, "overlay") {
		tb.Errorf("modules = %v, want overlay among them", record.Modules)
	}
	end := int64(0)
	for _, p := range record.Phases {
		if p.StartUS < end || p.EndUS < p.StartUS {
			tb.Errorf("phases = %+v: %s overlaps", record.Phases, p.Name)
		}
		end = p.EndUS
	}
	if end == 0 {
		tb.Error("the record has no phases")
	}
	return record
}

// mounts gives the types of the filesystems at each mount point of the guest.
func mounts(tb testing.TB, r *vmtest.Result) map[string]string {
	tb.Helper()
	found := map[string]string{}
	for line := range strings.Lines(r.Done.Mountinfo) {
		fields := strings.Fields(line)
		i := slices.Index(fields, "-")
		if i < 5 || i+1 >= len(fields) {
			tb.Fatalf("mountinfo line %q", line)
		}
		found[fields[4]] += fields[i+1]
	}
	return found
}

// checkMounts makes sure that the full tree's init sees the overlay and the
// kernel's own filesystems, and nothing of what lies below them.
func (b *build) checkMounts(tb testing.TB, r *vmtest.Result) {
	tb.Helper()
	want := map[string]string{"/": "overlay", "/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs", "/run": "tmpfs"}
	if diff := cmp.Diff(want, mounts(tb, r)); diff != "" {
		tb.Errorf("mounts (-want +got):\n%s", diff)
	}
	// The overlay keeps the image, which nothing else can reach.
	if n := len(r.Done.ErofsSysfs); n != 1 {
		tb.Errorf("/sys/fs/erofs has %q, want one filesystem", r.Done.ErofsSysfs)
	}
	// The mount point of the overlay, which cannot go.
	if diff := cmp.Diff([]string{"sysroot"}, checked[[]string](tb, r, "old_root")); diff != "" {
		tb.Errorf("left in the mini-initramfs (-want +got):\n%s", diff)
	}
}

// checked gives what a check found.
func checked[T any](tb testing.TB, r *vmtest.Result, name string) (found T) {
	tb.Helper()
	if err := r.Done.Check(name, &found); err != nil {
		tb.Fatal(err)
	}
	return found
}

// ourLines gives storage-init's part of a console.
func ourLines(r *vmtest.Result) string {
	var lines []string
	for line := range strings.Lines(r.Console) {
		if strings.HasPrefix(line, bootconf.LogPrefix) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
