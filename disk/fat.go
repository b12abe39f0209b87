package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

// Offsets in a FAT32, from Microsoft's "FAT32 File System Specification"
// (fatgen103).
const (
	bpbSectorsPerCluster = 13
	bpbReservedSectors   = 14
	bpbFATs              = 16
	bpbTotalSectors      = 32
	bpbFATSectors        = 36
	bpbRootCluster       = 44
	bpbFSInfoSector      = 48
	bpbBackupSector      = 50
	bsVolumeID           = 67

	fsiFreeCount = 488
	fsiNextFree  = 492

	dirEntrySize   = 32
	dirAttributes  = 11
	dirClusterHigh = 20
	dirClusterLow  = 26
	attrDirectory  = 0x10
	attrVolume     = 0x08 // also set in the parts of a long name

	clusterMask = 0x0fffffff
	clusterEnd  = 0x0ffffff8
)

// formatFAT writes a FAT32. A size whose allocation table go-diskfs makes too
// small for its clusters is raised.
func (p *Partition) formatFAT(out string) error {
	id, err := strconv.ParseUint(strings.ReplaceAll(p.FSUUID, "-", ""), 16, 32)
	if err != nil || len(p.FSUUID) != len("XXXX-XXXX") {
		return fmt.Errorf("serial number %q is not XXXX-XXXX", p.FSUUID)
	}
	for tries := 0; ; tries++ {
		err := p.tryFAT(out, uint32(id))
		if !errors.Is(err, errFATTooSmall) || tries == 16 {
			return err
		}
		if err := os.Remove(out); err != nil {
			return err
		}
		p.Size += mib
	}
}

var errFATTooSmall = errors.New("allocation table smaller than the clusters need")

func (p *Partition) tryFAT(out string, id uint32) (err error) {
	storage, err := file.CreateFromPath(out, p.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, storage.Close()) }()
	fs, err := fat32.Create(storage, p.Size, 0, sector, p.FSLabel, true)
	if err != nil {
		return err
	}
	made := map[string]bool{"/": true}
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		if dir := path.Dir(name); !made[dir] {
			if err := fs.Mkdir(dir); err != nil {
				return fmt.Errorf("folder %s: %w", dir, err)
			}
			made[dir] = true
		}
		if err := p.writeFAT(fs, name); err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
	}
	w, err := storage.Writable()
	if err != nil {
		return err
	}
	return amendFAT(w, id)
}

func (p *Partition) writeFAT(fs *fat32.FileSystem, name string) (err error) {
	in, err := os.Open(p.Files[name])
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := fs.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, in)
	return err
}

// amendFAT sets the serial number and mends what go-diskfs leaves wrong: the
// count of free clusters is not there, and a folder in the root names, where
// it should name none, the root's cluster as its parent.
func amendFAT(f interface {
	io.ReaderAt
	io.WriterAt
}, id uint32) error {
	le := binary.LittleEndian
	boot := make([]byte, sector)
	if _, err := f.ReadAt(boot, 0); err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	perCluster := int64(boot[bpbSectorsPerCluster])
	reserved := int64(le.Uint16(boot[bpbReservedSectors:]))
	fatSectors := int64(le.Uint32(boot[bpbFATSectors:]))
	data := reserved + int64(boot[bpbFATs])*fatSectors
	if perCluster == 0 || fatSectors == 0 {
		return fmt.Errorf("boot sector: not a FAT32")
	}
	clusters := (int64(le.Uint32(boot[bpbTotalSectors:])) - data) / perCluster
	const first = 2 // number of the first cluster
	if fatSectors*sector/4 < clusters+first {
		return errFATTooSmall
	}

	fat := make([]byte, fatSectors*sector)
	if _, err := f.ReadAt(fat, reserved*sector); err != nil {
		return fmt.Errorf("allocation table: %w", err)
	}
	entry := func(cluster int64) int64 { return int64(le.Uint32(fat[cluster*4:]) & clusterMask) }
	var free uint32
	next := int64(0)
	for c := int64(first); c < clusters+first; c++ {
		if entry(c) == 0 {
			free++
			if next == 0 {
				next = c
			}
		}
	}

	le.PutUint32(boot[bsVolumeID:], id)
	info := make([]byte, sector)
	infoSector := int64(le.Uint16(boot[bpbFSInfoSector:]))
	if _, err := f.ReadAt(info, infoSector*sector); err != nil {
		return fmt.Errorf("information sector: %w", err)
	}
	le.PutUint32(info[fsiFreeCount:], free)
	le.PutUint32(info[fsiNextFree:], uint32(next))
	for _, copyAt := range []int64{0, int64(le.Uint16(boot[bpbBackupSector:]))} {
		if _, err := f.WriteAt(boot, copyAt*sector); err != nil {
			return fmt.Errorf("boot sector: %w", err)
		}
		if _, err := f.WriteAt(info, (copyAt+infoSector)*sector); err != nil {
			return fmt.Errorf("information sector: %w", err)
		}
	}

	offset := func(cluster int64) int64 { return (data + (cluster-first)*perCluster) * sector }
	buf := make([]byte, perCluster*sector)
	c := int64(le.Uint32(boot[bpbRootCluster:]))
	for steps := int64(0); c >= first && c < clusterEnd && steps <= clusters; steps++ {
		if c >= clusters+first {
			return fmt.Errorf("root folder: cluster %d of %d", c, clusters)
		}
		if _, err := f.ReadAt(buf, offset(c)); err != nil {
			return fmt.Errorf("root folder: %w", err)
		}
		for e := buf; len(e) >= dirEntrySize && e[0] != 0; e = e[dirEntrySize:] {
			if e[dirAttributes]&(attrDirectory|attrVolume) != attrDirectory {
				continue
			}
			child := int64(le.Uint16(e[dirClusterHigh:]))<<16 | int64(le.Uint16(e[dirClusterLow:]))
			if child < first || child >= clusters+first {
				continue
			}
			// The second entry of a folder is "..".
			parent := offset(child) + dirEntrySize
			for _, field := range []int64{dirClusterHigh, dirClusterLow} {
				if _, err := f.WriteAt([]byte{0, 0}, parent+field); err != nil {
					return fmt.Errorf("folder: %w", err)
				}
			}
		}
		c = entry(c)
	}
	return nil
}
