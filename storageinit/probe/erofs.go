package probe

import (
	"encoding/binary"
	"errors"
	"io"

	"initoverlayfs/initrd/bootconf"
)

// EROFS is what storage-init must know of an image before it mounts it. The
// layout is that of struct erofs_super_block, kernel fs/erofs/erofs_fs.h.
type EROFS struct {
	UUID bootconf.UUID
	Size int64 // bytes that the superblock counts
	// Devices is how many extra devices the image needs; see Device.
	Devices int

	label       string
	incompat    uint32
	compression uint16
	table       int64 // offset of the device table
	metadata    int64 // offset of the inodes
	blockBits   uint8
}

const (
	erofsSuperblock     = 1024
	erofsSuperblockSize = 128
	erofsMagic          = 0xE0F5E1E2

	// Feature bits that only images with compressed data have.
	incompatZeroPadding = 0x1
	incompatComprCfgs   = 0x2

	incompatDeviceTable = 0x8
	deviceSlotSize      = 128
)

// BlockSize is the size of a block in bytes.
func (e *EROFS) BlockSize() int64 { return 1 << e.blockBits }

// Compressed reports whether the image may hold compressed data.
func (e *EROFS) Compressed() bool {
	return e.incompat&(incompatZeroPadding|incompatComprCfgs) != 0 || e.compression != 0
}

// Metadata gives the stretch that begins with the inodes. In an image of this
// project it has all metadata and nothing else; mkfs.erofs puts data into it, too.
func (e *EROFS) Metadata() (offset, length int64) {
	return e.metadata, max(0, e.Size-e.metadata)
}

// ReadEROFS reads the superblock of an image.
func ReadEROFS(r io.ReaderAt) (EROFS, error) {
	var b [erofsSuperblockSize]byte
	if n, err := r.ReadAt(b[:], erofsSuperblock); n < len(b) {
		if err == io.EOF {
			return EROFS{}, errNotEROFS
		}
		return EROFS{}, err
	}
	return parseEROFS(b[:])
}

var errNotEROFS = errors.New("not an EROFS image")

func parseEROFS(b []byte) (EROFS, error) {
	le := binary.LittleEndian
	blockBits := b[12]
	if le.Uint32(b) != erofsMagic || blockBits < 9 || blockBits > 16 {
		return EROFS{}, errNotEROFS
	}
	e := EROFS{
		UUID:        bootconf.UUID(b[48:64]),
		Size:        int64(le.Uint32(b[36:])) << blockBits,
		label:       text(b[64:80]),
		incompat:    le.Uint32(b[80:]),
		compression: le.Uint16(b[84:]),
		table:       int64(le.Uint16(b[88:])) * deviceSlotSize,
		metadata:    int64(le.Uint32(b[40:])) << blockBits,
		blockBits:   blockBits,
	}
	if e.incompat&incompatDeviceTable != 0 {
		e.Devices = int(le.Uint16(b[86:]))
	}
	return e, nil
}

// Device reads the i-th slot of the device table, struct erofs_deviceslot: what
// the device is called, and how many bytes of it the image may read.
func (e *EROFS) Device(r io.ReaderAt, i int) (tag string, size int64, err error) {
	var b [deviceSlotSize]byte
	if n, err := r.ReadAt(b[:], e.table+int64(i)*deviceSlotSize); n < len(b) {
		return "", 0, err
	}
	return text(b[:64]), int64(binary.LittleEndian.Uint32(b[64:])) << e.blockBits, nil
}
