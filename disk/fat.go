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
	"time"

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
	dirCreateTenth = 13
	dirCreateTime  = 14
	dirCreateDate  = 16
	dirAccessDate  = 18
	dirClusterHigh = 20
	dirWriteTime   = 22
	dirWriteDate   = 24
	dirClusterLow  = 26
	dirDeleted     = 0xe5
	attrDirectory  = 0x10
	attrVolume     = 0x08
	attrLongName   = 0x0f // of the parts of a long name

	clusterMask = 0x0fffffff
	clusterEnd  = 0x0ffffff8
)

// copyBytes is how much is written into a FAT at a time: go-diskfs writes the
// whole allocation table after each piece.
const copyBytes = 16 * mib

// formatFAT writes a FAT32. A size whose allocation table go-diskfs makes too
// small for its clusters is raised.
func (m *maker) formatFAT(p *Partition, out string) error {
	id, err := strconv.ParseUint(strings.ReplaceAll(p.FSUUID, "-", ""), 16, 32)
	if err != nil || len(p.FSUUID) != len("XXXX-XXXX") {
		return fmt.Errorf("serial number %q is not XXXX-XXXX", p.FSUUID)
	}
	for tries := 0; ; tries++ {
		err := m.tryFAT(p, out, uint32(id))
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

func (m *maker) tryFAT(p *Partition, out string, id uint32) (err error) {
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
		if err := m.writeFAT(fs, name, p.Files[name]); err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
	}
	w, err := storage.Writable()
	if err != nil {
		return err
	}
	return amendFAT(w, id, m.epoch)
}

func (m *maker) writeFAT(fs *fat32.FileSystem, name, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := fs.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Neither side may choose the size of the pieces.
	to, buf := struct{ io.Writer }{f}, make([]byte, copyBytes)
	for err == nil {
		if err = m.ctx.Err(); err == nil {
			var n int64
			if n, err = io.CopyBuffer(to, io.LimitReader(in, copyBytes), buf); n == 0 {
				break
			}
		}
	}
	return err
}

// amendFAT sets the serial number and all times, and mends what go-diskfs
// leaves wrong: the count of free clusters is not there, and a folder in the
// root names, where it should name none, the root's cluster as its parent.
func amendFAT(f readerWriterAt, id uint32, epoch int64) error {
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

	w := fatWalk{
		f: f, root: int64(le.Uint32(boot[bpbRootCluster:])),
		clusterBytes: perCluster * sector, data: data * sector, end: clusters + first, entry: entry,
	}
	w.date, w.time = fatTime(epoch)
	return w.folder(w.root, 0)
}

type readerWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// fatTime gives an epoch as a FAT has dates and times; it begins with 1980.
func fatTime(epoch int64) (date, clock uint16) {
	t := time.Unix(epoch, 0).UTC()
	if t.Year() < 1980 {
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()),
		uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
}

// fatWalk visits all folders.
type fatWalk struct {
	f                  readerWriterAt
	root               int64 // cluster
	clusterBytes, data int64 // bytes; offset of the first cluster
	end                int64 // number behind the last cluster
	entry              func(cluster int64) int64
	date, time         uint16
}

const fatMostDepth = 64

func (w *fatWalk) folder(c int64, depth int) error {
	le := binary.LittleEndian
	if depth > fatMostDepth {
		return errors.New("folders: too deep")
	}
	buf := make([]byte, w.clusterBytes)
	for steps := int64(0); c < clusterEnd && steps <= w.end; steps++ {
		if c < 2 || c >= w.end {
			return fmt.Errorf("folder: cluster %d of %d", c, w.end)
		}
		at := w.data + (c-2)*w.clusterBytes
		if _, err := w.f.ReadAt(buf, at); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
		var below []int64
		for e := buf; len(e) >= dirEntrySize && e[0] != 0; e = e[dirEntrySize:] {
			if e[0] == dirDeleted || e[dirAttributes] == attrLongName {
				continue
			}
			e[dirCreateTenth] = 0
			le.PutUint16(e[dirCreateTime:], w.time)
			le.PutUint16(e[dirWriteTime:], w.time)
			for _, field := range []int{dirCreateDate, dirAccessDate, dirWriteDate} {
				le.PutUint16(e[field:], w.date)
			}
			if e[dirAttributes]&(attrDirectory|attrVolume) != attrDirectory {
				continue
			}
			child := int64(le.Uint16(e[dirClusterHigh:]))<<16 | int64(le.Uint16(e[dirClusterLow:]))
			switch string(e[:11]) {
			case ".          ":
			case "..         ":
				if child == w.root {
					le.PutUint16(e[dirClusterHigh:], 0)
					le.PutUint16(e[dirClusterLow:], 0)
				}
			default:
				below = append(below, child)
			}
		}
		if _, err := w.f.WriteAt(buf, at); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
		for _, child := range below {
			if err := w.folder(child, depth+1); err != nil {
				return err
			}
		}
		c = w.entry(c)
	}
	return nil
}
