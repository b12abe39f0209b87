package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/vmlinux"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "images", &work)) }

// kernels are those that mount the images.
var kernels = []string{"kernel-6.1", "kernel-6.12", "kernel-sid"}

var guestProgram = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(work, "guest")
	if err := vmtest.BuildGuest(context.Background(), "", path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// checked is an image of a boot.
type checked struct {
	vmtest.Image
	path  string
	blobs []string
	want  map[string]vmtest.TreeSeen
}

// perDisk is how many partitions a disk has.
const perDisk = 100

// boot boots a kernel that mounts and reads the images, and gives what it saw,
// by the images' names.
func boot(t *testing.T, kernel string, images []checked) map[string]vmtest.ImageSeen {
	t.Helper()
	var m vmtest.Machine
	var parts []disk.Partition
	flush := func() {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("disk%d", len(m.Drives)))
		if _, err := disk.Create(t.Context(), path, disk.Spec{Partitions: parts}); err != nil {
			t.Fatal(err)
		}
		m.Drives = append(m.Drives, vmtest.Drive{Path: path, ReadOnly: true})
		parts = nil
	}
	attach := func(path string) (device string) {
		if len(parts) == perDisk {
			flush()
		}
		parts = append(parts, disk.Partition{Label: fmt.Sprintf("part%d", len(parts)), Image: path})
		return fmt.Sprintf("/dev/vd%c%d", 'a'+len(m.Drives), len(parts))
	}
	for i := range images {
		image := &images[i]
		image.Device = attach(image.path)
		var options []string
		for _, blob := range image.blobs {
			options = append(options, "device="+attach(blob))
		}
		image.Options = strings.Join(options, ",")
	}
	flush()
	seen := map[string]vmtest.ImageSeen{}
	m.OnEvent = func(e vmtest.Event) {
		if e.Kind != vmtest.EventImage {
			return
		}
		var s vmtest.ImageSeen
		if err := json.Unmarshal(e.JSON, &s); err != nil {
			t.Errorf("image event: %v", err)
		}
		seen[s.Name] = s
	}
	run(t, kernel, m, images, "images")
	if len(seen) != len(images) {
		t.Fatalf("%d images were looked at, want %d", len(seen), len(images))
	}
	return seen
}

// run boots a machine with the guest's initramfs, which does a check.
func run(t *testing.T, kernel string, m vmtest.Machine, images []checked, check string) *vmtest.Result {
	t.Helper()
	k := fixtures.OpenKernel(t, kernel)
	dir := t.TempDir()
	m.Kernel, m.Initrd, m.LogParent = filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd"), t.TempDir()
	m.MemoryMiB, m.Accel, m.Timeout = 512, vmtest.TCG, 15*time.Minute
	m.Append = []string{"vmtest.check=insmod:/modules," + check}
	if err := vmlinux.Extract(m.Kernel, k.Image); err != nil {
		t.Fatal(err)
	}
	if err := writeInitrd(m.Initrd, k, images); err != nil {
		t.Fatal(err)
	}
	r, err := vmtest.Run(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("wall %.1f s, guest %.1f s", r.Wall.Seconds(), r.LastS)
	return r
}

// writeInitrd writes an initramfs with the guest, the list of the images and
// the modules that mount them.
func writeInitrd(path string, k fixtures.Kernel, images []checked) error {
	guest, err := guestProgram()
	if err != nil {
		return err
	}
	var list []vmtest.Image
	for _, i := range images {
		list = append(list, i.Image)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	index, err := kmod.Open(k.Modules, k.Version)
	if err != nil {
		return err
	}
	modules, err := index.Closure(nil, "virtio_pci", "virtio_blk", "erofs", "nd_e820", "nd_pmem")
	if err != nil {
		return err
	}
	type file struct {
		name string
		mode uint32
		body []byte
	}
	files := []file{
		{"dev", unix.S_IFDIR | 0o755, nil},
		{"init", unix.S_IFREG | 0o755, guest},
		{vmtest.ImagesPath[1:], unix.S_IFREG | 0o644, text},
		{"modules", unix.S_IFDIR | 0o755, nil},
	}
	for i, m := range modules {
		if m.CPUFeature != "" && !m.CPUWithout {
			continue // the processor of the guest has nothing special
		}
		body, err := index.Read(m.Name)
		if err != nil {
			return err
		}
		files = append(files, file{fmt.Sprintf("modules/%02d-%s", i, m.Name), unix.S_IFREG | 0o644, body})
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	for i, file := range files {
		h := &cpio.Header{Name: file.name, Ino: uint32(i + 1), Mode: file.mode, NLink: 1, Size: int64(len(file.body))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(file.body); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}
