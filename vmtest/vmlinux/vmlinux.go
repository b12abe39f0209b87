// Package vmlinux takes the kernel proper out of a bzImage, so that QEMU starts
// it at once and emulates neither firmware nor decompression: of a boot under
// TCG that is the greater part.
//
// The guest's clock begins with the kernel proper either way. The kernel does
// not move itself to a random address then.
package vmlinux

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"initoverlayfs/initrd/compress"
)

// ErrNotBootable says that QEMU could not start the kernel: it has no entry
// for virtual machines (CONFIG_PVH).
var ErrNotBootable = errors.New("no PVH entry")

// Offsets in the header of a bzImage, from the kernel's
// Documentation/arch/x86/boot.rst.
const (
	setupSectors  = 0x1f1
	headerMagic   = 0x202
	headerVersion = 0x206
	payloadOffset = 0x248
	payloadLength = 0x24c
	headerEnd     = 0x250

	withPayload = 0x208 // the version that has the payload's place
	sectorSize  = 512
)

// Extract writes the kernel proper of the bzImage into the file out. On an
// error there is no file at out that was not there before.
func Extract(out, bzImage string) error {
	in, err := os.Open(bzImage)
	if err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	defer in.Close()
	payload, err := payload(in)
	if err != nil {
		return fmt.Errorf("vmlinux: %s: %w", bzImage, err)
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".vmlinux-")
	if err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	err = unpack(f, payload)
	if err == nil {
		err = checkPVH(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), out)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("vmlinux: %s: %w", bzImage, err), os.Remove(f.Name()))
	}
	return nil
}

// payload gives the compressed kernel in a bzImage.
func payload(in io.ReaderAt) (io.Reader, error) {
	header := make([]byte, headerEnd)
	if _, err := in.ReadAt(header, 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("header: %w", err)
	}
	le := binary.LittleEndian
	if string(header[headerMagic:headerMagic+4]) != "HdrS" || le.Uint16(header[headerVersion:]) < withPayload {
		return nil, errors.New("not a bzImage")
	}
	sectors := int64(header[setupSectors])
	if sectors == 0 {
		sectors = 4 // what the header means by 0
	}
	at := (sectors+1)*sectorSize + int64(le.Uint32(header[payloadOffset:]))
	return io.NewSectionReader(in, at, int64(le.Uint32(header[payloadLength:]))), nil
}

func unpack(out io.Writer, payload io.Reader) error {
	in := bufio.NewReader(payload)
	head, err := in.Peek(16)
	if err != nil {
		return fmt.Errorf("payload: %w", io.ErrUnexpectedEOF)
	}
	format, ok := compress.Detect(head)
	if bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		format, ok = compress.None, true
	}
	if !ok {
		return errors.New("payload: unknown compression")
	}
	if format == compress.XZ {
		return unxz(out, in)
	}
	r, err := compress.NewReader(format, in)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	defer r.Close()
	if _, err := io.Copy(out, r); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	return nil
}

// unxz uses the program: kernels are packed with the filter for x86 code, which
// package compress does not know. What follows the stream is not looked at.
func unxz(out io.Writer, in io.Reader) error {
	cmd := exec.Command("xz", "--decompress", "--stdout", "--single-stream")
	var complaint strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("payload: xz: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// checkPVH looks for the note by which QEMU finds the entry
// (XEN_ELFNOTE_PHYS32_ENTRY of the kernel's include/xen/interface/elfnote.h).
func checkPVH(f io.ReaderAt) error {
	const physEntry = 18
	kernel, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	for _, p := range kernel.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := bufio.NewReader(p.Open())
		for {
			var head struct{ Name, Desc, Type uint32 }
			if binary.Read(notes, kernel.ByteOrder, &head) != nil {
				break
			}
			name := make([]byte, len("Xen\x00"))
			padded := func(n uint32) int64 { return (int64(n) + 3) &^ 3 }
			skip := padded(head.Name) + padded(head.Desc)
			if int(head.Name) == len(name) {
				if _, err := io.ReadFull(notes, name); err != nil {
					break
				}
				skip -= int64(len(name))
			}
			if string(name) == "Xen\x00" && head.Type == physEntry {
				return nil
			}
			if _, err := io.CopyN(io.Discard, notes, skip); err != nil {
				break
			}
		}
	}
	return ErrNotBootable
}
