package probe

import (
	"encoding/binary"
	"io"
	"strings"
)

// identifyFAT reads a FAT12, FAT16 or FAT32 boot sector. The label is that of
// the root directory if it has one, as mkfs.fat and fatlabel keep both and
// other systems change only that one.
func identifyFAT(r io.ReaderAt, boot []byte) Filesystem {
	u16 := binary.LittleEndian.Uint16
	u32 := binary.LittleEndian.Uint32

	sectorSize := int64(u16(boot[11:]))
	clusterSectors := int64(boot[13])
	fats := int64(boot[16])
	media := boot[21]
	switch {
	case boot[510] != 0x55 || boot[511] != 0xAA,
		sectorSize < 512 || sectorSize > 4096 || sectorSize&(sectorSize-1) != 0,
		clusterSectors == 0 || clusterSectors&(clusterSectors-1) != 0,
		fats == 0, u16(boot[14:]) == 0, media != 0xf0 && media < 0xf8:
		return Filesystem{}
	}
	reserved := int64(u16(boot[14:]))
	rootEntries := int64(u16(boot[17:]))
	fatSectors := int64(u16(boot[22:]))

	var rootOffset, rootSize int64
	extended := boot[36:] // extended boot signature, FAT12 and FAT16
	if fatSectors != 0 {
		rootOffset = (reserved + fats*fatSectors) * sectorSize
		rootSize = rootEntries * direntSize
	} else {
		fatSectors = int64(u32(boot[36:]))
		rootCluster := int64(u32(boot[44:]))
		if fatSectors == 0 || rootCluster < 2 {
			return Filesystem{}
		}
		extended = boot[64:]
		rootSize = clusterSectors * sectorSize
		rootOffset = (reserved + fats*fatSectors + (rootCluster-2)*clusterSectors) * sectorSize
	}
	fs := Filesystem{Type: "vfat"}
	if extended[2] == 0x29 || extended[2] == 0x28 {
		serial := u32(extended[3:])
		const digits = "0123456789ABCDEF"
		var id []byte
		for shift := 28; shift >= 0; shift -= 4 {
			if shift == 12 {
				id = append(id, '-')
			}
			id = append(id, digits[serial>>shift&0xf])
		}
		fs.UUID = string(id)
		if label := strings.TrimRight(string(extended[7:18]), " \x00"); label != "NO NAME" {
			fs.Label = label
		}
	}
	if label := fatRootLabel(r, rootOffset, rootSize); label != "" {
		fs.Label = label
	}
	return fs
}

const direntSize = 32

// fatRootLabel looks for the volume entry in the first cluster of the root
// directory, where format programs put it.
func fatRootLabel(r io.ReaderAt, offset, size int64) string {
	dir := make([]byte, min(size, 64<<10))
	n, _ := r.ReadAt(dir, offset)
	for dir = dir[:n]; len(dir) >= direntSize; dir = dir[direntSize:] {
		const attrVolume, attrDirectory, attrLongName = 0x08, 0x10, 0x0f
		attr := dir[11]
		switch {
		case dir[0] == 0:
			return ""
		case dir[0] == 0xe5 || attr&attrLongName == attrLongName:
		case attr&(attrVolume|attrDirectory) == attrVolume:
			return strings.TrimRight(string(dir[:11]), " ")
		}
	}
	return ""
}
