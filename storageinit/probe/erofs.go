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

	label       string
	incompat    uint32
	compression uint16
}

const (
	erofsSuperblock     = 1024
	erofsSuperblockSize = 128
	erofsMagic          = 0xE0F5E1E2

	// Feature bits that only images with compressed data have.
	incompatZeroPadding = 0x1
	incompatComprCfgs   = 0x2
)

// Compressed reports whether the image may hold compressed data.
func (e *EROFS) Compressed() bool {
	return e.incompat&(incompatZeroPadding|incompatComprCfgs) != 0 || e.compression != 0
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
	return EROFS{
		UUID:        bootconf.UUID(b[48:64]),
		Size:        int64(le.Uint32(b[36:])) << blockBits,
		label:       text(b[64:80]),
		incompat:    le.Uint32(b[80:]),
		compression: le.Uint16(b[84:]),
	}, nil
}
