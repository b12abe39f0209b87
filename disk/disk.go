// Package disk makes disk images for guests, without root: a GPT whose
// partitions hold a filesystem with chosen files, or a ready image.
//
// Everything has a chosen identity. What a caller leaves open is derived from
// the partition's place and label, so that the same Spec gives the same table
// and the same names. The filesystems differ in the times of their inodes,
// which their formatters take from the clock.
package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Spec describes a disk with a GUID partition table.
type Spec struct {
	GUID       string // of the disk
	Size       int64  // bytes; 0: as the partitions need
	Partitions []Partition
}

// The types of partitions.
const (
	LinuxFilesystem = string(gpt.LinuxFilesystem)
	EFISystem       = string(gpt.EFISystemPartition)
)

// Partition is one partition of a disk, or a whole disk without a table. Its
// content is the file Image, or a filesystem of type FS, or nothing.
type Partition struct {
	Label string // PARTLABEL, at most 36 characters
	GUID  string // PARTUUID
	Type  string // GUID of the type; empty: LinuxFilesystem
	Size  int64  // bytes, rounded up to MiB; 0: as the content needs

	Image string // file with the content

	FS      string // ext4, xfs, btrfs or vfat
	FSLabel string
	FSUUID  string // of a vfat: a serial number XXXX-XXXX
	// Files has the files of the filesystem: absolute path inside it, and path
	// on the host. They belong to root, mode 0644, in folders of mode 0755.
	Files map[string]string

	Offset int64 // bytes from the disk's begin; Create sets it
}

const (
	mib = 1 << 20
	// sector is that of the partition table.
	sector = 512
	// tableRoom is what the table and its copy, each with the alignment of the
	// neighbouring partition, take.
	tableRoom = mib
)

// Create writes the disk image and gives its partitions with everything that
// was left open filled in. The file is sparse. On an error there is no file at
// path that was not there before.
func Create(path string, s Spec) (parts []Partition, err error) {
	parts = append([]Partition(nil), s.Partitions...)
	var contents []string
	work, err := os.MkdirTemp(filepath.Dir(path), ".disk-")
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	table := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: s.GUID}
	if table.GUID == "" {
		table.GUID = derivedUUID("disk")
	}
	next := int64(tableRoom)
	for i := range parts {
		p := &parts[i]
		content, err := p.make(work, i)
		if err != nil {
			return nil, fmt.Errorf("disk %s: partition %d: %w", path, i+1, err)
		}
		contents = append(contents, content)
		p.Offset = next
		next += p.Size
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1,
			Start: uint64(p.Offset / sector), End: uint64((p.Offset+p.Size)/sector - 1), Size: uint64(p.Size),
			Type: gpt.Type(p.Type), Name: p.Label, GUID: p.GUID,
		})
	}
	size := next + tableRoom
	switch {
	case s.Size == 0:
	case s.Size < size || s.Size%sector != 0:
		return nil, fmt.Errorf("disk %s: size %d; the partitions need %d", path, s.Size, size)
	default:
		size = s.Size
	}

	out := filepath.Join(work, "disk")
	if err := assemble(out, size, table, parts, contents); err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	if err := os.Rename(out, path); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return parts, nil
}

// Format writes a disk image without a partition table and gives it with
// everything that was left open filled in. On an error there is no file at
// path that was not there before.
func Format(path string, p Partition) (_ Partition, err error) {
	work, err := os.MkdirTemp(filepath.Dir(path), ".disk-")
	if err != nil {
		return p, fmt.Errorf("disk %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	content, err := p.make(work, 0)
	if err != nil {
		return p, fmt.Errorf("disk %s: %w", path, err)
	}
	out := filepath.Join(work, "disk")
	if err := assemble(out, p.Size, nil, []Partition{p}, []string{content}); err != nil {
		return p, fmt.Errorf("disk %s: %w", path, err)
	}
	if err := os.Rename(out, path); err != nil {
		return p, fmt.Errorf("disk: %w", err)
	}
	return p, nil
}

// assemble writes the table, unless it is nil, and the contents.
func assemble(path string, size int64, table *gpt.Table, parts []Partition, contents []string) (err error) {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o666)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	if table != nil {
		storage := file.New(out, false)
		w, err := storage.Writable()
		if err != nil {
			return fmt.Errorf("partition table: %w", err)
		}
		if err := table.Write(w, size); err != nil {
			return fmt.Errorf("partition table: %w", err)
		}
	}
	for i, p := range parts {
		if contents[i] == "" {
			continue
		}
		if err := copySparse(out, p.Offset, contents[i]); err != nil {
			return fmt.Errorf("partition %d: %w", i+1, err)
		}
	}
	return nil
}

// make fills in what p leaves open and gives the file with its content, empty
// if there is none.
func (p *Partition) make(work string, index int) (content string, err error) {
	place := strconv.Itoa(index+1) + " " + p.Label
	if p.Type == "" {
		p.Type = LinuxFilesystem
	}
	if p.GUID == "" {
		p.GUID = derivedUUID("partition " + place)
	}
	switch {
	case p.Image != "" && p.FS != "":
		return "", fmt.Errorf("both an image and a filesystem")
	case p.Image != "":
		info, err := os.Stat(p.Image)
		if err != nil {
			return "", err
		}
		if p.Size == 0 {
			p.Size = info.Size()
		}
		if p.Size < info.Size() {
			return "", fmt.Errorf("image %s has %d bytes, the partition %d", p.Image, info.Size(), p.Size)
		}
		p.Size = roundUp(p.Size)
		return p.Image, nil
	case p.FS == "" && p.Size == 0:
		return "", fmt.Errorf("neither content nor size")
	case p.FS == "":
		p.Size = roundUp(p.Size)
		return "", nil
	}
	if p.FSUUID == "" {
		p.FSUUID = derivedUUID("filesystem " + place)
		if p.FS == "vfat" {
			p.FSUUID = strings.ToUpper(p.FSUUID[:4] + "-" + p.FSUUID[4:8])
		}
	}
	content = filepath.Join(work, "part"+strconv.Itoa(index+1))
	if err := p.format(content, work); err != nil {
		return "", fmt.Errorf("%s: %w", p.FS, err)
	}
	return content, nil
}

// derivedUUID gives an identity that depends on nothing but the name.
func derivedUUID(name string) string {
	h := sha256.Sum256([]byte("initoverlayfs vmtest disk: " + name))
	h[6] = h[6]&0x0f | 0x80 // version 8: made by rules of one's own
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func roundUp(n int64) int64 { return (n + mib - 1) / mib * mib }

// copySparse copies a file into out at an offset and leaves out its zeros.
func copySparse(out *os.File, offset int64, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	const block = 64 << 10
	buf := make([]byte, block)
	zeros := make([]byte, block)
	for at := int64(0); ; {
		begin, err := dataAt(in, at)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s at %d: %w", path, at, err)
		}
		// Whole blocks, so that a hole's edge does not shift all that follow.
		at = begin / block * block
		n, err := in.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s at %d: %w", path, at, err)
		}
		if string(buf[:n]) != string(zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], offset+at); err != nil {
				return err
			}
		}
		at += int64(n)
		if n < block {
			return nil
		}
	}
}
