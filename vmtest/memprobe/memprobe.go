// Package memprobe adds to a full tree a program that tells how much memory
// there is when the tree's init starts, and when it is about to leave for the
// real root: events of the kind vmtest.EventMemory on the serial port of the
// guest's events.
//
// The program takes the place of the init, by a word of the kernel command line,
// and executes the real one, which is none the wiser. In the end it is called by
// what the tree calls then: systemd's switch of the root, or a hook of dracut or
// of initramfs-tools. In all trees it is itself a megabyte or two of what is in
// use, and costs time: a boot with it has no times worth to be shown.
package memprobe

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
)

// Path is that of the program in the tree.
const Path = "/memory-probe"

// InitWord gives the word of the kernel command line by which the program is
// the init of the full tree: of an initramfs as it is, or of ours. Of words that
// are arguments of the init the kernel forgets those in front of it.
func InitWord(ours bool) string {
	if ours {
		return "initoverlayfs.init=" + Path
	}
	return "rdinit=" + Path
}

// AddTo copies an archive of a tree, from, to the file to, with the program.
func AddTo(to, from string, program []byte) (err error) {
	segment, err := Segment(program)
	if err != nil {
		return err
	}
	archive, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("memory probe: %w", err)
	}
	// An archive begins at a multiple of four. Zeros between archives mean nothing,
	// but that four of them end one that is compressed with lz4.
	archive = append(archive, make([]byte, 4+-len(archive)&3)...)
	if err := os.WriteFile(to, append(archive, segment...), 0o666); err != nil {
		return fmt.Errorf("memory probe: %w", err)
	}
	return nil
}

// File is what is added to a tree.
type File struct {
	Path     string // without the leading slash
	Mode     uint32 // with the type bits of Linux
	Contents []byte
}

// Build builds the program for an architecture (empty: amd64) into the file out.
// It needs the go command and the project's sources.
func Build(ctx context.Context, arch, out string) error {
	return vmtest.BuildProgram(ctx, arch, "initoverlayfs/vmtest/memprobe/memory-probe", out)
}

// Files gives what is added to a tree, in this order. Of the ways by which the
// program is called in the end only those come to be whose folders the tree has:
// an unpacker passes a file over that has none, and no folder but one is made,
// for a record of a folder could take the place of a link.
func Files(program []byte) []File {
	const (
		dropIn = "usr/lib/systemd/system/initrd-switch-root.service.d"
		call   = Path + " " + vmtest.AtSwitchRoot
		// dracut without systemd. Its hooks are sourced.
		hook = "[ -n \"$DRACUT_SYSTEMD\" ] || " + call + "\n"
	)
	return []File{
		{Path[1:], cpio.TypeRegular | 0o755, program},
		{dropIn, cpio.TypeDir | 0o755, nil},
		{dropIn + "/memory-probe.conf", cpio.TypeRegular | 0o644, []byte("[Service]\nExecStartPre=-" + call + "\n")},
		// Where dracut has them, until 059 and from 103 on.
		{"usr/lib/dracut/hooks/pre-pivot/99-memory-probe.sh", cpio.TypeRegular | 0o755, []byte(hook)},
		{"var/lib/dracut/hooks/pre-pivot/99-memory-probe.sh", cpio.TypeRegular | 0o755, []byte(hook)},
		// initramfs-tools sources it behind each script, the last of which is udev's
		// of this folder.
		{"conf/param.conf", cpio.TypeRegular | 0o644, []byte("[ \"$initdir\" != /scripts/init-bottom ] || " + call + "\n")},
	}
}

// Segment gives the files as a cpio archive, which follows the tree's.
func Segment(program []byte) ([]byte, error) {
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for i, f := range Files(program) {
		h := &cpio.Header{Name: f.Path, Ino: uint32(i + 1), Mode: f.Mode, NLink: 1, Size: int64(len(f.Contents))}
		if f.Mode&cpio.TypeDir != 0 {
			h.NLink = 2
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("memory probe: %w", err)
		}
		if _, err := w.Write(f.Contents); err != nil {
			return nil, fmt.Errorf("memory probe: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("memory probe: %w", err)
	}
	return b.Bytes(), nil
}
