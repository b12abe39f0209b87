package probe

import (
	"encoding/binary"
	"io"
	"unicode/utf16"

	"initoverlayfs/initrd/bootconf"
)

// Partition is the identity of a partition in its table. UUID is the GPT's
// unique GUID, or for an MBR the disk's signature and the number, SSSSSSSS-NN.
type Partition struct {
	UUID  string
	Label string
}

// FindPartition looks up partition number of a disk, which the kernel says to
// begin at the byte start. The kernel has checked the table; here an entry is
// believed only if it agrees about the start. Without such an entry the result
// is zero.
//
// Layout: UEFI specification 2.10, section 5.3; block/partitions/efi.h.
func FindPartition(disk io.ReaderAt, number int, start int64) Partition {
	for _, sectorSize := range []int64{512, 4096} {
		if p, ok := findGPT(disk, number, start, sectorSize); ok {
			return p
		}
	}
	return findMBR(disk, number, start)
}

func findGPT(disk io.ReaderAt, number int, start, sectorSize int64) (Partition, bool) {
	const headerSize, minEntry, maxEntry, maxEntries = 92, 128, 4096, 1024
	le := binary.LittleEndian
	var header [headerSize]byte
	if _, err := disk.ReadAt(header[:], sectorSize); err != nil || string(header[:8]) != "EFI PART" {
		return Partition{}, false
	}
	table := le.Uint64(header[72:])
	entries := le.Uint32(header[80:])
	size := le.Uint32(header[84:])
	if number < 1 || number > int(min(entries, maxEntries)) || size < minEntry || size > maxEntry || table > 1<<48 {
		return Partition{}, false
	}
	var entry [minEntry]byte
	at := int64(table)*sectorSize + int64(number-1)*int64(size)
	if _, err := disk.ReadAt(entry[:], at); err != nil {
		return Partition{}, false
	}
	if first := le.Uint64(entry[32:]); first != uint64(start/sectorSize) {
		return Partition{}, false
	}
	return Partition{guidText(entry[16:32]), utf16Text(entry[56:128])}, true
}

// guidText gives a GUID as it is printed: its first three fields are stored
// with the low byte first.
func guidText(b []byte) string {
	u := bootconf.UUID(b)
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	return u.String()
}

func utf16Text(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		unit := binary.LittleEndian.Uint16(b)
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}

func findMBR(disk io.ReaderAt, number int, start int64) Partition {
	const sectorSize, firstEntry, entrySize = 512, 446, 16
	le := binary.LittleEndian
	var b [sectorSize]byte
	if _, err := disk.ReadAt(b[:], 0); err != nil || b[510] != 0x55 || b[511] != 0xAA || number < 1 {
		return Partition{}
	}
	// Logical partitions, 5 and up, share the disk's signature; their entries
	// are not in this sector.
	if number <= 4 {
		entry := b[firstEntry+(number-1)*entrySize:]
		if int64(le.Uint32(entry[8:]))*sectorSize != start {
			return Partition{}
		}
	}
	signature := le.Uint32(b[440:])
	if signature == 0 {
		return Partition{}
	}
	const digits = "0123456789abcdef"
	var id []byte
	for shift := 28; shift >= 0; shift -= 4 {
		id = append(id, digits[signature>>shift&0xf])
	}
	return Partition{UUID: string(append(id, '-', digits[number>>4&0xf], digits[number&0xf]))}
}
