// Package peer makes what a boot of ours is measured against where no
// distribution makes it: initramfs archives as somebody would put them together
// by hand, from standard programs and as well as these can do it.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/cpio"
)

// Options are what an initramfs is made from.
type Options struct {
	// Source is the full tree: an initramfs archive or a directory.
	Source        builder.Source
	KernelVersion string
	ModulesDir    string // of the kernel
	// Busybox is a static busybox with insmod, mkdir, mount, sh and switch_root.
	Busybox string
	// Output is the file to write. It appears complete or not at all.
	Output  string
	TempDir string // for what is unpacked; empty: os.TempDir
}

// peerModules are those without which an image in a file is not mounted below an
// overlay.
var peerModules = []string{"loop", "erofs", "overlay"}

const (
	imagePath   = "root.erofs"
	modulesPath = "modules"
)

// ErofsInitramfs writes an uncompressed initramfs that holds an EROFS image of
// the full tree as a file, and a script that mounts it through a loop device
// below a tmpfs overlay and runs its init there: the idea of this project without
// its programs.
//
// The image is made by the mkfs.erofs in PATH with -zlz4hc,12 -C65536, from the
// tree as it is. The archive is uncompressed, because the image is compressed in
// itself. Nothing else is in it but busybox and the modules, signed as they are,
// in the order in which they depend on each other; as ours it takes no module
// twice and looks for no devices. What it does not do is what needs a program
// for it: the image and the archive stay in memory after the boot.
func ErofsInitramfs(ctx context.Context, o Options) (err error) {
	if err := builder.CheckProgram(o.Busybox, "amd64"); err != nil {
		return err
	}
	index, err := kmod.Open(o.ModulesDir, o.KernelVersion)
	if err != nil {
		return err
	}
	closure, err := index.Closure(nil, peerModules...)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.TempDir, "initoverlayfs-peer-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image := filepath.Join(dir, imagePath)
	mkfs, err := builder.ProducerNamed("mkfs.erofs")
	if err != nil {
		return err
	}
	layout := builder.DefaultImageOptions()
	layout.TempDir = dir
	if _, err := builder.CreateImage(ctx, o.Source, image, mkfs, layout, 0); err != nil {
		return err
	}

	f, err := os.CreateTemp(filepath.Dir(o.Output), "."+filepath.Base(o.Output)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), o.Output)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	a := archive{Writer: cpio.NewWriter(f)}
	for _, name := range []string{"bin", "dev", "lower", "new", "rw", modulesPath} {
		a.dir(name)
	}
	a.file("bin/busybox", 0o755, o.Busybox)
	for _, applet := range []string{"insmod", "mkdir", "mount", "sh", "switch_root"} {
		a.add(&cpio.Header{Name: "bin/" + applet, Mode: cpio.TypeSymlink | 0o777, NLink: 1}, int64(len("busybox")), strings.NewReader("busybox"))
	}
	var load []string
	for _, m := range closure {
		// Of code for certain CPUs the generic one, which serves all.
		if m.CPUFeature != "" && !m.CPUWithout {
			continue
		}
		content, err := index.Read(m.Name)
		if err != nil {
			return err
		}
		name := path.Join(modulesPath, m.Name+".ko")
		a.add(&cpio.Header{Name: name, Mode: cpio.TypeRegular | 0o644, NLink: 1}, int64(len(content)), strings.NewReader(string(content)))
		load = append(load, "insmod /"+name)
	}
	script := initScript(load)
	a.add(&cpio.Header{Name: "init", Mode: cpio.TypeRegular | 0o755, NLink: 1}, int64(len(script)), strings.NewReader(script))
	a.file(imagePath, 0o444, image)
	if a.err != nil {
		return fmt.Errorf("write %s: %w", o.Output, a.err)
	}
	return a.Close()
}

// initScript is PID 1. systemd takes an overlay for the root of an initramfs
// only if it is told so.
func initScript(load []string) string {
	return strings.Join(append(append([]string{"#!/bin/sh -e"}, load...),
		"mount -t devtmpfs devtmpfs /dev",
		"mount -t erofs -o ro,loop /"+imagePath+" /lower",
		"mount -t tmpfs tmpfs /rw",
		"mkdir /rw/upper /rw/work",
		"mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new",
		"mount --move /dev /new/dev",
		"export SYSTEMD_IN_INITRD=lenient",
		"exec switch_root /new /init",
	), "\n") + "\n"
}

// archive writes entries until one fails.
type archive struct {
	*cpio.Writer
	ino uint32
	err error
}

func (a *archive) add(h *cpio.Header, size int64, body io.Reader) {
	if a.err != nil {
		return
	}
	a.ino++
	h.Ino, h.Size = a.ino, size
	if a.err = a.WriteHeader(h); a.err == nil {
		_, a.err = io.Copy(a.Writer, body)
	}
}

func (a *archive) dir(name string) {
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, NLink: 2}, 0, strings.NewReader(""))
}

func (a *archive) file(name string, perm uint32, from string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeRegular | perm, NLink: 1}, info.Size(), f)
}
