package memprobe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
	"initoverlayfs/vmtest/memprobe"
	"initoverlayfs/vmtest/vmlinux"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "memprobe", &work)) }

// programs has what `make build` makes, and the probe.
var programs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(work, "bin")
	return dir, errors.Join(fixtures.BuildPrograms(dir), memprobe.Build(context.Background(), "", filepath.Join(dir, "memory-probe")))
})

// samples gives what a boot told about its memory, or what is wrong with it.
func samples(r *vmtest.Result) ([]vmtest.MemorySample, error) {
	all := append(append([]vmtest.MemorySample(nil), r.Memory...), r.Done.Memory())
	want := []string{vmtest.AtInit, vmtest.AtSwitchRoot, vmtest.AtMultiUser}
	for i, s := range all {
		if i >= len(want) || s.At != want[i] {
			return all, fmt.Errorf("sample %d of %d is that of %s, want one of each of %q", i, len(all), s.At, want)
		}
		if s.AvailableKB <= 0 || s.CachedKB <= 0 || s.ShmemKB < 0 || s.PerCPUKB < 0 || s.AvailableKB+s.PerCPUKB > s.TotalKB || s.ShmemKB > s.CachedKB {
			return all, fmt.Errorf("sample of %s: %+v cannot be", s.At, s)
		}
	}
	return all, nil
}

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name              string
		least             fixtures.Boots
		kernel, initramfs string
		ours, probe       bool
		want              string // in the error of samples; empty: none
	}{
		{"plain dracut", fixtures.Some, "kernel-6.1", "dracut-6.1.img", false, true, ""},
		{"block dracut", fixtures.Some, "kernel-6.1", "dracut-6.1.img", true, true, ""},
		{"no probe", fixtures.Some, "kernel-6.1", "dracut-6.1.img", false, false, "sample 0 of 1 is that of multi-user"},
		{"plain initramfs-tools", fixtures.All, "kernel-6.1", "initramfs-tools-6.1.img", false, true, ""},
		{"block initramfs-tools", fixtures.All, "kernel-6.1", "initramfs-tools-6.1.img", true, true, ""},
		{"plain dracut without systemd", fixtures.All, "kernel-6.1", "dracut-nosystemd-6.1.img", false, true, ""},
		{"plain sid", fixtures.All, "kernel-sid", "dracut-sid.img", false, true, ""},
		{"block sid", fixtures.All, "kernel-sid", "dracut-sid.img", true, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			kernel := fixtures.OpenKernel(t, test.kernel)
			initramfs := fixtures.Path(t, test.initramfs)
			root := vmtest.Drive{Name: "root", Path: fixtures.Path(t, "root-bookworm.ext4"), Snapshot: true}
			bin, err := programs()
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			m := vmtest.Machine{
				Kernel: filepath.Join(dir, "vmlinux"), Initrd: initramfs, Drives: []vmtest.Drive{root},
				Append: []string{"root=UUID=5e1f0d3a-6b1c-4c0e-9d52-0a1b2c3d4e5f"},
				Accel:  vmtest.TCG, LogParent: t.TempDir(), Timeout: 10 * time.Minute,
				Expect:     []vmtest.Milestone{vmtest.KernelStart, vmtest.KernelToInit, vmtest.InitfsInit, vmtest.MultiUser},
				BlockStats: true,
			}
			if err := vmlinux.Extract(m.Kernel, kernel.Image); err != nil {
				t.Fatal(err)
			}
			if test.probe {
				program, err := os.ReadFile(filepath.Join(bin, "memory-probe"))
				if err != nil {
					t.Fatal(err)
				}
				m.Initrd = filepath.Join(dir, "probed.img")
				if err := memprobe.AddTo(m.Initrd, initramfs, program); err != nil {
					t.Fatal(err)
				}
				m.Append = append(m.Append, memprobe.InitWord(test.ours))
			}
			if strings.Contains(test.name, "sid") || strings.HasSuffix(test.name, "dracut") {
				m.Expect = append(m.Expect, vmtest.SwitchRoot)
			}
			if test.ours {
				build := exec.Command(filepath.Join(bin, "initoverlayfs"), "build", "--quiet", "--kver", kernel.Version, "--initramfs", m.Initrd,
					"--modules-dir", kernel.Modules, "--storage", "virtio", "--output", dir, "--backend", "block", "--image-compress", "none")
				if text, err := build.CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", build.Args, err, text)
				}
				m.Initrd = filepath.Join(dir, "initramfs-"+kernel.Version+".img")
				image := vmtest.Drive{Name: "image", Path: filepath.Join(dir, "initoverlayfs-"+kernel.Version+".img"), ReadOnly: true}
				m.Drives = []vmtest.Drive{image, root}
				m.Append = append(m.Append, "initoverlayfs.bootfs=/dev/vda")
				m.Expect = append(m.Expect, vmtest.HandedOver)
			}
			r, err := vmtest.Run(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			all, err := samples(r)
			t.Logf("samples %+v", all)
			t.Logf("times %v, of the host %v, disks %v", r.Times, r.HostTimes, r.Disks)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q", err, test.want)
			}
			checkDisks(t, r, len(m.Drives))
		})
	}
}

// TestProbeCompressed has the kernel unpack archives of several compressions
// with the probe behind, whose init is the guest of the tests.
func TestProbeCompressed(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	guest, err := os.ReadFile(filepath.Join(bin, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(bin, "memory-probe"))
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []compress.Format{compress.LZ4, compress.Zstd} {
		t.Run(string(format), func(t *testing.T) {
			var archive bytes.Buffer
			packed, err := compress.NewWriter(format, &archive)
			if err != nil {
				t.Fatal(err)
			}
			w := cpio.NewWriter(packed)
			for i, f := range []struct {
				header cpio.Header
				body   []byte
			}{
				{cpio.Header{Name: "dev", Mode: cpio.TypeDir | 0o755}, nil},
				{cpio.Header{Name: "dev/console", Mode: cpio.TypeChar | 0o600, RDevMajor: 5, RDevMinor: 1}, nil},
				{cpio.Header{Name: "init", Mode: cpio.TypeRegular | 0o755}, guest},
			} {
				f.header.Ino, f.header.NLink, f.header.Size = uint32(i+1), 1, int64(len(f.body))
				if err := w.WriteHeader(&f.header); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(f.body); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.Close(), packed.Close()); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			from := filepath.Join(dir, "from")
			if err := os.WriteFile(from, archive.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			m := vmtest.Machine{
				Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd"), MemoryMiB: 256,
				// A word that is not the kernel's is the init's.
				Append: []string{"vmtest.check=args", memprobe.InitWord(false), "word"},
				Accel:  vmtest.TCG, LogParent: t.TempDir(), Timeout: 2 * time.Minute,
				Expect: []vmtest.Milestone{vmtest.KernelToInit, vmtest.InitfsInit},
			}
			if err := memprobe.AddTo(m.Initrd, from, program); err != nil {
				t.Fatal(err)
			}
			if err := vmlinux.Extract(m.Kernel, fixtures.OpenKernel(t, "kernel-6.1").Image); err != nil {
				t.Fatal(err)
			}
			r, err := vmtest.Run(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			var args struct{ Argv, Mounted []string }
			if err := r.Done.Check("args", &args); err != nil {
				t.Fatal(err)
			}
			if want := []string{"/init", "word"}; !slices.Equal(args.Argv, want) {
				t.Errorf("the init is called as %q, want %q", args.Argv, want)
			}
			// Nothing of the probe is left mounted.
			if want := []string{"/proc", "/sys", "/dev", "/run"}; !slices.Equal(args.Mounted, want) {
				t.Errorf("the init had to mount %q, want %q", args.Mounted, want)
			}
			if len(r.Memory) != 1 || r.Memory[0].At != vmtest.AtInit || r.Memory[0].TotalKB != r.Done.MemTotalKB {
				t.Errorf("samples %+v, want one, of %d kB", r.Memory, r.Done.MemTotalKB)
			}
		})
	}
}

// checkDisks holds against each other what QEMU counts and what the guest does.
func checkDisks(t *testing.T, r *vmtest.Result, drives int) {
	t.Helper()
	if r.StatsError != nil || len(r.Disks) != drives {
		t.Fatalf("disks %v, error %v; want %d of them", r.Disks, r.StatsError, drives)
	}
	order := []vmtest.Milestone{vmtest.KernelStart, vmtest.KernelToInit, vmtest.HandedOver, vmtest.InitfsInit, vmtest.SwitchRoot, vmtest.MultiUser, vmtest.AtEnd}
	for name, moments := range r.Disks {
		last := vmtest.BlockStats{}
		for _, m := range order {
			_, reached := r.Times[m]
			s, known := moments[string(m)]
			if m != vmtest.AtEnd && known != reached || s.Bytes < last.Bytes && known || s.Requests < last.Requests && known {
				t.Errorf("%s: %v read at %s after %v (reached: %v)", name, s, m, last, reached)
			}
			if known {
				last = s
			}
		}
	}
	guest := r.Done.Disks[fmt.Sprintf("vd%c", 'a'+drives-1)]
	end := r.Disks["root"][vmtest.AtEnd]
	// SeaBIOS looks at it before the kernel, and the agent goes on reading.
	if kb := end.Bytes >> 10; guest.KB == 0 || kb < guest.KB || kb > guest.KB+guest.KB/10+1024 {
		t.Errorf("the root disk: QEMU counts %d kB, the guest %d kB (%v)", kb, guest.KB, r.Done.Disks)
	}
}

// sizes is a store that keeps how long contents are, which is enough here.
type sizes struct{ next int64 }

func (s *sizes) Put(body io.Reader, _ int64) (int64, error) {
	_, err := io.Copy(io.Discard, body)
	s.next++
	return s.next, err
}

func (*sizes) Delete(int64) error { return nil }

// TestAddTo proves what of the files comes to be in which tree, and that nothing
// else of a tree changes.
func TestAddTo(t *testing.T) {
	folder := func(name string) cpio.Header { return cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, NLink: 2} }
	link := func(name, target string) cpio.Header {
		return cpio.Header{Name: name, Mode: cpio.TypeSymlink | 0o777, NLink: 1, Size: int64(len(target))}
	}
	const (
		dropIn = "usr/lib/systemd/system/initrd-switch-root.service.d"
		hook   = "/hooks/pre-pivot/99-memory-probe.sh"
	)
	for _, test := range []struct {
		name  string
		tree  []cpio.Header
		added []string
	}{
		{"empty", nil, nil},
		{
			"dracut 059", []cpio.Header{
				folder("usr"), folder("usr/lib"), folder("usr/lib/systemd"), folder("usr/lib/systemd/system"), folder("usr/lib/dracut"),
				folder("usr/lib/dracut/hooks"), folder("usr/lib/dracut/hooks/pre-pivot"), folder("var"), link("lib", "usr/lib"),
			},
			[]string{dropIn, dropIn + "/memory-probe.conf", "usr/lib/dracut" + hook},
		},
		{
			"dracut with a link", []cpio.Header{
				folder("usr"), folder("usr/lib"), folder("usr/lib/dracut"), link("usr/lib/dracut/hooks", "/var/lib/dracut/hooks"),
				folder("var"), folder("var/lib"), folder("var/lib/dracut"), folder("var/lib/dracut/hooks"), folder("var/lib/dracut/hooks/pre-pivot"),
			},
			[]string{"var/lib/dracut" + hook},
		},
		{"initramfs-tools", []cpio.Header{folder("conf"), folder("usr"), folder("usr/lib")}, []string{"conf/param.conf"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var archive bytes.Buffer
			w := cpio.NewWriter(&archive)
			for i := range test.tree {
				h := &test.tree[i]
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if h.Mode&cpio.TypeMask == cpio.TypeSymlink {
					target := map[string]string{"lib": "usr/lib"}[h.Name]
					if target == "" {
						target = "/var/lib/dracut/hooks"
					}
					if _, err := w.Write([]byte(target)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
			// What ends at no multiple of four: a compressed archive, say.
			if err := os.WriteFile(from, append(archive.Bytes(), 0), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := memprobe.AddTo(to, from, []byte("program")); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := cpio.ReadTree(cpio.NewReader(bytes.NewReader(text)), new(sizes))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]uint32{}
			if err := tree.Walk(func(path string, n *cpio.Node) error {
				got[path] = n.Mode
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			before := len(test.tree) + 1 // the root
			for _, h := range test.tree {
				if got[h.Name] != h.Mode {
					t.Errorf("%s has mode %o, had %o", h.Name, got[h.Name], h.Mode)
				}
			}
			if want := append(test.added, "memory-probe"); len(got) != before+len(want) {
				t.Errorf("the tree has %v, want %q added to %v", slices.Sorted(maps.Keys(got)), want, test.tree)
			}
			for _, path := range test.added {
				if _, ok := got[path]; !ok {
					t.Errorf("%s is not in the tree", path)
				}
			}
			if got["memory-probe"] != cpio.TypeRegular|0o755 {
				t.Errorf("memory-probe has mode %o", got["memory-probe"])
			}
		})
	}
}
