package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/bench/peer"
	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/memprobe"
)

// Tool is the command line, by which inputs are made as its users make them.
type Tool interface {
	// Run runs a verb.
	Run(ctx context.Context, args ...string) error
	// Machine gives the guest that the verb boot would boot, and what to call when
	// it is no longer needed.
	Machine(ctx context.Context, args ...string) (vmtest.Machine, func(), error)
}

// inputs makes what is booted, once for each run: what lies in the folder from
// an earlier start of the run is taken.
type inputs struct {
	o        *Options
	dir      string
	progress func(format string, args ...any)
	made     map[string]error // by name: what this start has tried
	sums     digests
	images   map[string]string // builds by what their image is made from
}

// make gives the path of an input, which fn makes under another name first. An
// input that failed once is not tried again.
func (in *inputs) make(name string, fn func(path string) error) (string, error) {
	path := filepath.Join(in.dir, name)
	if err, tried := in.made[name]; tried {
		return path, err
	}
	if _, err := os.Stat(path); err == nil {
		in.made[name] = nil
		return path, nil
	}
	in.progress("making %s", name)
	half := path + ".half"
	err := errors.Join(os.MkdirAll(in.dir, 0o777), os.RemoveAll(half))
	if err == nil {
		err = fn(half)
	}
	if err == nil {
		err = os.Rename(half, path)
	}
	in.made[name] = err
	return path, err
}

// variant is how an initramfs differs from the one that was given.
type variant struct {
	format compress.Format // empty: as it is
	fill   Filling
	probe  bool // it tells how much memory there is
}

func (v variant) unchanged() bool { return v == variant{} }

func (v variant) name() string {
	name := string(v.format)
	if v.fill.Bytes > 0 {
		kind := "text"
		if v.fill.Random {
			kind = "random"
		}
		name += fmt.Sprintf("-%s%d", kind, v.fill.Bytes>>20)
	}
	if v.probe {
		name += "-probe"
	}
	return strings.TrimPrefix(name, "-")
}

// archive gives an initramfs in a variant.
func (in *inputs) archive(ctx context.Context, v variant) (string, error) {
	if v.unchanged() {
		return in.o.Initramfs, nil
	}
	if v.probe {
		return in.probed(ctx, v)
	}
	if v.format == "" {
		v.format = compress.None
	}
	return in.make("initramfs-"+v.name()+".img", func(path string) error {
		return repack(ctx, in.o.Initramfs, path, v.format, v.fill)
	})
}

// probed gives an initramfs with the memory probe behind it.
func (in *inputs) probed(ctx context.Context, v variant) (string, error) {
	base := v
	base.probe = false
	archive, err := in.archive(ctx, base)
	if err != nil {
		return "", err
	}
	path, err := in.make("memory-probe", func(path string) error { return memprobe.Build(ctx, "", path) })
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return in.make("initramfs-"+v.name()+".img", func(path string) error { return memprobe.AddTo(path, archive, program) })
}

// build gives the folder of a build of a variant. Flags are those of the verb
// beyond the usual ones.
func (in *inputs) build(ctx context.Context, backend bootconf.Backend, v variant, flags ...string) (string, error) {
	source := v
	if !source.unchanged() {
		source.format = compress.None // it makes no difference to the image
	}
	archive, err := in.archive(ctx, source)
	if err != nil {
		return "", err
	}
	name := "build-" + string(backend)
	if n := source.name(); n != "" {
		name += "-" + n
	}
	name += strings.NewReplacer("--", "-", ",", "-", "/", "-").Replace(strings.Join(flags, ""))
	final := filepath.Join(in.dir, name)
	return in.make(name, func(path string) error {
		args := append([]string{
			"build", "--quiet", "--kver", in.o.KernelVersion, "--initramfs", archive, "--output", path,
			"--backend", string(backend), "--storage", "virtio",
		}, flags...)
		if in.o.ModulesDir != "" {
			args = append(args, "--modules-dir", in.o.ModulesDir)
		}
		if backend.OnBootfs() {
			args = append(args, "--bootfstype", "ext4")
		}
		// Most builds differ in the mini-initramfs only. Images for persistent memory
		// are laid out for it.
		layout := flags
		if slices.Contains(flags, "--compress") { // of the mini-initramfs alone
			layout = nil
		}
		twin := fmt.Sprint(backend.InMemory(), source.name(), layout)
		if backend != bootconf.PmemDAX {
			if dir, ok := in.images[twin]; ok {
				args = append(args, "--reuse", dir)
			} else {
				in.images[twin] = final
			}
		}
		return in.o.Tool.Run(ctx, args...)
	})
}

// nothing gives an initramfs whose init is none: the kernel says that it starts
// it, and the boot is over.
func (in *inputs) nothing() (string, error) {
	return in.make("initramfs-nothing.img", func(path string) error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		w := cpio.NewWriter(f)
		init := File{Path: "init", Mode: cpio.TypeRegular | 0o755}
		return errors.Join(writeFiles(w, []File{init}), w.Close(), f.Close())
	})
}

// erofsInitramfs gives what somebody would make without us.
func (in *inputs) erofsInitramfs(ctx context.Context) (string, error) {
	return in.make("initramfs-erofs.img", func(path string) error {
		busybox := in.o.Busybox
		if busybox == "" {
			var err error
			if busybox, err = exec.LookPath("busybox"); err != nil {
				return err
			}
		}
		modules := in.o.ModulesDir
		if modules == "" {
			modules = filepath.Join("/lib/modules", in.o.KernelVersion)
		}
		return peer.ErofsInitramfs(ctx, peer.Options{
			Source: builder.Source{Archive: in.o.Initramfs}, KernelVersion: in.o.KernelVersion, ModulesDir: modules,
			Busybox: busybox, Output: path, TempDir: in.dir,
		})
	})
}

// disk gives a disk that firmware boots into the pair for the backend, or with
// none into the plain initramfs.
func (in *inputs) disk(ctx context.Context, backend bootconf.Backend, v variant) (string, error) {
	archive, err := in.archive(ctx, v)
	if err != nil {
		return "", err
	}
	words, err := vmtest.ConsoleWords("")
	if err != nil {
		return "", err
	}
	name, flags := "disk-plain-"+v.name()+".img", []string{"--default", "plain"}
	if backend != "" {
		name, flags = "disk-"+string(backend)+".img", []string{"--default", "pair", "--backend", string(backend)}
		if backend == bootconf.Block {
			flags = append(flags, "--boot", "raw")
		}
	}
	if in.o.ModulesDir != "" {
		flags = append(flags, "--modules-dir", in.o.ModulesDir)
	}
	return in.make(name, func(path string) error {
		return in.o.Tool.Run(ctx, append([]string{
			"disk", "--quiet", "--output", path, "--kver", in.o.KernelVersion, "--kernel", in.o.Kernel, "--initramfs", archive,
			"--root", in.o.RootTree, "--storage", "virtio", "--menu-timeout", "0", "--append", strings.Join(words, " "),
		}, flags...)...)
	})
}

// manifest reads the manifest of a build.
func (in *inputs) manifest(dir string) (*bootconf.Manifest, error) {
	return builder.ReadManifest(filepath.Join(dir, "initoverlayfs-"+in.o.KernelVersion+".json"))
}

// digests are those of files that do not change during a run.
type digests map[string]string

func (d digests) of(path string) (string, error) {
	if sum, ok := d[path]; ok {
		return sum, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	d[path] = hex.EncodeToString(h.Sum(nil))
	return d[path], nil
}

func sizeOf(paths ...string) (int64, error) {
	var sum int64
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// onDemand are the backends whose boot does not depend on what nobody reads.
var onDemand = []bootconf.Backend{bootconf.Block, bootconf.Loop, bootconf.File, bootconf.Pmem, bootconf.PmemDAX}
