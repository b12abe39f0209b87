// Package disk makes disk images, without root and without mounts: a GPT whose
// partitions hold a filesystem with chosen files, a filesystem with a whole
// tree, or a ready image.
//
// Everything has a chosen identity. What a caller leaves open is derived from
// the seed and from the partition's place and label, and times are those of the
// epoch, so that the same Spec gives the same table, the same names, and the
// same vfat and ext4. mkfs.btrfs and mkfs.xfs take times from the clock.
package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Spec describes a disk with a GUID partition table.
type Spec struct {
	GUID string // of the disk
	// Seed is what the identities that are left open are derived from, so that
	// disks with other contents have others.
	Seed       string
	Epoch      int64  // seconds; the time of what has no time of its own
	Size       int64  // bytes; 0: as the partitions need
	Format     string // Raw or QCOW2; empty: Raw
	Partitions []Partition
}

// The formats of a disk image.
const (
	Raw   = "raw"
	QCOW2 = "qcow2" // made by qemu-img
)

// The types of partitions. Root has those of root filesystems.
const (
	LinuxFilesystem = string(gpt.LinuxFilesystem)
	EFISystem       = string(gpt.EFISystemPartition)
	// XBOOTLDR is the extended boot loader partition of the Boot Loader
	// Specification.
	XBOOTLDR = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
	// Image is initoverlayfs' own: the partition is an EROFS image.
	Image = "28C56636-C88C-44AD-AC4D-9AC7588AD62E"
)

// Root has the types of root filesystems in the Discoverable Partitions
// Specification, by Go's names of architectures.
var Root = map[string]string{
	"386":     "44479540-F297-41B2-9AF7-D131D5F0458A",
	"amd64":   "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
	"arm":     "69DAD710-2CE4-4E3C-B16C-21A1D49ABED3",
	"arm64":   "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
	"loong64": "77055800-792C-4F94-B39A-98C91B762BB6",
	"ppc64le": "C31C45E6-3F39-412E-80FB-4809C4980599",
	"riscv64": "72EC70A6-CF74-40E6-BD49-4BDA08E8F224",
	"s390x":   "5EEAD9A9-FE09-4A1E-A1D7-520D00531306",
}

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
	// Tree is a directory or a tar archive that an ext4 gets whole, as it is:
	// owners, modes, times, links, device nodes and extended attributes. A tar
	// is unpacked beside the disk, by root or under fakeroot.
	Tree string

	Offset int64 // bytes from the disk's begin; Create sets it
}

const (
	mib = 1 << 20
	// sector is that of the partition table.
	sector = 512
	// tableRoom is what the table and its copy, each with the alignment of the
	// neighbouring partition, take.
	tableRoom = mib
	// privateMode is that of a disk image: what is inside may be secret.
	privateMode = 0o600
)

// maker is a disk image in the making.
type maker struct {
	ctx   context.Context
	work  string // folder beside the output, removed at the end
	seed  string
	epoch int64
}

// filler puts the content of a partition into the open disk image.
type filler func(disk *os.File, p *Partition) error

// Create writes the disk image and gives its partitions with everything that
// was left open filled in. The file is sparse and appears complete or not at
// all: on an error there is no file at path that was not there before.
func Create(ctx context.Context, path string, s Spec) (parts []Partition, err error) {
	parts = append([]Partition(nil), s.Partitions...)
	table := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: s.GUID}
	if table.GUID == "" {
		table.GUID = DerivedUUID(s.Seed, "disk")
	}
	if err := CheckFormat(s.Format); err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	err = makeFile(ctx, path, s.Seed, s.Epoch, func(m *maker, out string) error {
		var fill []filler
		next := int64(tableRoom)
		for i := range parts {
			p := &parts[i]
			f, err := m.plan(p, i)
			if err != nil {
				return fmt.Errorf("partition %d: %w", i+1, err)
			}
			fill = append(fill, f)
			p.Offset = next
			next += p.Size
			table.Partitions = append(table.Partitions, &gpt.Partition{
				Index: i + 1,
				Start: uint64(p.Offset / sector), End: uint64((p.Offset+p.Size)/sector - 1), Size: uint64(p.Size),
				Type: gpt.Type(strings.ToUpper(p.Type)), Name: p.Label, GUID: p.GUID,
			})
		}
		size := next + tableRoom
		switch {
		case s.Size == 0:
		case s.Size < size || s.Size%sector != 0:
			return fmt.Errorf("size %d; the partitions need %d", s.Size, size)
		default:
			size = s.Size
		}
		if err := assemble(out, size, table, parts, fill); err != nil {
			return err
		}
		if s.Format == QCOW2 {
			return m.convert(out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return parts, nil
}

// Format writes a disk image without a partition table and gives it with
// everything that was left open filled in. On an error there is no file at
// path that was not there before.
func Format(ctx context.Context, path string, p Partition) (Partition, error) {
	err := makeFile(ctx, path, "", 0, func(m *maker, out string) error {
		fill, err := m.plan(&p, 0)
		if err != nil {
			return err
		}
		return assemble(out, p.Size, nil, []Partition{p}, []filler{fill})
	})
	return p, err
}

// makeFile has one file made beside its place, and puts it there when it is
// complete and on the disk.
func makeFile(ctx context.Context, path, seed string, epoch int64, write func(m *maker, out string) error) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(path), ".disk-")
	if err != nil {
		return fmt.Errorf("disk %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	out := filepath.Join(work, "disk")
	if err := write(&maker{ctx: ctx, work: work, seed: seed, epoch: max(epoch, 1)}, out); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("disk %s: %w", path, err)
	}
	if err := publish(out, path); err != nil {
		return fmt.Errorf("disk %s: %w", path, err)
	}
	return nil
}

// publish makes a complete file durable and gives it its name.
func publish(from, to string) error {
	for _, step := range []func() error{
		func() error { return syncPath(from) },
		func() error { return os.Rename(from, to) },
		func() error { return syncPath(filepath.Dir(to)) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// CheckFormat makes sure that a format is known, and what makes it is there.
func CheckFormat(format string) error {
	switch format {
	case "", Raw:
		return nil
	case QCOW2:
		if _, err := exec.LookPath("qemu-img"); err != nil {
			return &HintedError{err, "install qemu-utils (Debian) or qemu-img"}
		}
		return nil
	}
	return fmt.Errorf("unknown format %q; it is %s or %s", format, Raw, QCOW2)
}

// convert makes a qcow2 of the raw image.
func (m *maker) convert(path string) error {
	converted := path + ".qcow2"
	if err := m.run(nil, "qemu-img", "convert", "-f", Raw, "-O", QCOW2, path, converted); err != nil {
		return err
	}
	return errors.Join(os.Rename(converted, path), os.Chmod(path, privateMode))
}

// assemble writes the table, unless it is nil, and the contents.
func assemble(path string, size int64, table *gpt.Table, parts []Partition, fill []filler) (err error) {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, privateMode)
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
	for i := range parts {
		if fill[i] == nil {
			continue
		}
		if err := fill[i](out, &parts[i]); err != nil {
			return fmt.Errorf("partition %d: %w", i+1, err)
		}
	}
	return nil
}

// plan fills in what p leaves open, but for the offset, and gives what writes
// its content; nil if it has none.
func (m *maker) plan(p *Partition, index int) (filler, error) {
	place := strconv.Itoa(index+1) + " " + p.Label
	if p.Type == "" {
		p.Type = LinuxFilesystem
	}
	if p.GUID == "" {
		p.GUID = DerivedUUID(m.seed, "partition "+place)
	}
	switch {
	case p.Image != "" && p.FS != "":
		return nil, fmt.Errorf("both an image and a filesystem")
	case p.Image != "":
		info, err := os.Stat(p.Image)
		if err != nil {
			return nil, err
		}
		if p.Size == 0 {
			p.Size = info.Size()
		}
		if p.Size < info.Size() {
			return nil, fmt.Errorf("image %s has %d bytes, the partition %d", p.Image, info.Size(), p.Size)
		}
		p.Size = roundUp(p.Size)
		return func(disk *os.File, p *Partition) error { return m.copySparse(disk, p.Offset, p.Image) }, nil
	case p.FS == "" && p.Size == 0:
		return nil, fmt.Errorf("neither content nor size")
	case p.FS == "":
		p.Size = roundUp(p.Size)
		return nil, nil
	}
	if p.FSUUID == "" {
		p.FSUUID = DerivedUUID(m.seed, "filesystem "+place)
		if p.FS == "vfat" {
			p.FSUUID = strings.ToUpper(p.FSUUID[:4] + "-" + p.FSUUID[4:8])
		}
	}
	fill, err := m.planFS(p, filepath.Join(m.work, "part"+strconv.Itoa(index+1)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.FS, err)
	}
	return fill, nil
}

// DerivedUUID gives an identity that depends on nothing but the seed and the
// name: "disk", or "partition" or "filesystem" with the place and the label.
func DerivedUUID(seed, name string) string {
	h := sha256.Sum256([]byte("initoverlayfs disk: " + seed + "\n" + name))
	h[6] = h[6]&0x0f | 0x80 // version 8: made by rules of one's own
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func roundUp(n int64) int64 { return (n + mib - 1) / mib * mib }

// copySparse copies a file into out at an offset and leaves out its zeros.
func (m *maker) copySparse(out *os.File, offset int64, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	const block = 64 << 10
	buf := make([]byte, block)
	zeros := make([]byte, block)
	for at := int64(0); ; {
		if err := m.ctx.Err(); err != nil {
			return err
		}
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
