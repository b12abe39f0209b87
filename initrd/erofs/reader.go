package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"sync"
)

// ErrCorrupt is what every error wraps that is about an image breaking the
// format, and not about its end or a device that cannot be read.
var ErrCorrupt = errors.New("corrupt EROFS image")

// ErrUnsupported is what errors wrap that are about a part of the format that
// this package does not read, such as compression other than LZ4.
var ErrUnsupported = errors.New("not supported")

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// knownIncompat are the incompatible features that an FS reads.
const knownIncompat = FeatureIncompatMetabox<<1 - 1

// FS is an image, opened for reading. It implements fs.FS, fs.ReadDirFS,
// fs.StatFS and fs.ReadLinkFS and may be used by several goroutines at once.
//
// Nothing in the image is trusted: whatever its bytes are, methods return an
// error at worst, and memory is only taken for what the image can really hold.
type FS struct {
	Super Superblock

	image     *space
	devices   []device
	deviceIDs uint16 // mask of the bits that an index uses for a device
	metabox   func() (*space, error)
	packed    func() (*Inode, error)
	comprAlgs uint16 // bits of the algorithms that inodes may use
	prefixes  []string
	decoded   decodedCache

	epoch        int64
	metaboxNid   uint64
	packedNid    uint64
	xattrBlkAddr uint32
}

// Device is a slot of the device table: a file or device that an image needs
// besides itself.
type Device struct {
	// Tag names it. Of a blob that WriteSplit made it is the SHA-256 of the
	// content, in hexadecimal digits.
	Tag    string
	Blocks uint64 // 0 if it is not said
}

// Devices is the device table, in its order.
func (f *FS) Devices() []Device {
	list := make([]Device, len(f.devices))
	for i, d := range f.devices {
		list[i] = Device{d.tag, d.blocks}
	}
	return list
}

// device is an extra device of the image.
type device struct {
	tag     string
	space   *space // nil when it was not given
	uniAddr uint64 // block
	blocks  uint64
}

// Open reads the superblock of an image of size bytes and what belongs to it.
// blobs are the extra devices in the order of the device table; files whose data
// lies in one that is missing, or nil, cannot be read.
//
// It refuses what ReadSuperblock refuses, and incompatible features that this
// package does not know.
func Open(r io.ReaderAt, size int64, blobs ...io.ReaderAt) (*FS, error) {
	super, err := ReadSuperblock(r)
	if err != nil {
		return nil, err
	}
	if unknown := super.FeatureIncompat &^ uint32(knownIncompat); unknown != 0 {
		return nil, unsupportedf("EROFS superblock: incompatible features %#x", unknown)
	}
	f := &FS{Super: super, image: &space{r: r, size: size, name: "image"}}
	raw, err := f.image.read(SuperOffset, superSize)
	if err != nil {
		return nil, fmt.Errorf("read EROFS superblock: %w", err)
	}
	var sb diskSuper
	decode(raw, &sb)
	f.epoch = int64(sb.Epoch)
	f.xattrBlkAddr = sb.XattrBlkAddr
	f.packedNid = sb.PackedNid
	if err := f.openMetabox(&sb); err != nil {
		return nil, err
	}
	f.packed = sync.OnceValues(f.openPacked)
	if err := f.readComprConfigs(&sb); err != nil {
		return nil, err
	}
	if err := f.readDevices(&sb, blobs); err != nil {
		return nil, err
	}
	if err := f.readXattrPrefixes(&sb); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *FS) has(feature uint32) bool { return f.Super.FeatureIncompat&feature != 0 }

func (f *FS) blockSize() int64 { return f.Super.BlockSize() }

// superEnd is where the superblock and its extension slots end.
func superEnd(sb *diskSuper) int64 {
	return SuperOffset + superSize + int64(sb.SBExtSlots)*superExtSlotSize
}

// openMetabox reads which inode has compressed inodes as its content.
func (f *FS) openMetabox(sb *diskSuper) error {
	f.metabox = func() (*space, error) { return nil, corruptf("there is no metabox") }
	if !f.has(FeatureIncompatMetabox) {
		return nil
	}
	if sb.SBExtSlots == 0 {
		return corruptf("superblock at offset %d: no place for the metabox", SuperOffset)
	}
	raw, err := f.image.read(SuperOffset+superSize, superExtSlotSize)
	if err != nil {
		return fmt.Errorf("read the extension of the EROFS superblock: %w", err)
	}
	var ext diskSuperExt
	decode(raw, &ext)
	if ext.MetaboxNid&nidMetaboxBit != 0 {
		return corruptf("superblock at offset %d: the metabox lies in itself", SuperOffset)
	}
	f.metaboxNid = ext.MetaboxNid
	f.metabox = sync.OnceValues(func() (*space, error) {
		ino, err := f.InodeAt(ext.MetaboxNid)
		if err != nil {
			return nil, fmt.Errorf("open the metabox: %w", err)
		}
		return &space{r: ino, size: ino.Size, name: "metabox"}, nil
	})
	return nil
}

// openPacked opens the inode that holds the fragments.
func (f *FS) openPacked() (*Inode, error) {
	if !f.has(FeatureIncompatFragments) || f.packedNid == 0 {
		return nil, corruptf("a fragment, but no packed inode")
	}
	if f.packedNid&nidMetaboxBit != 0 {
		return nil, corruptf("the packed inode lies in the metabox")
	}
	ino, err := f.InodeAt(f.packedNid)
	if err != nil {
		return nil, fmt.Errorf("open the packed inode: %w", err)
	}
	return ino, nil
}

// readComprConfigs reads which algorithms the image uses; z_erofs_parse_cfgs in
// fs/erofs/decompressor.c.
func (f *FS) readComprConfigs(sb *diskSuper) error {
	if !f.has(FeatureIncompatBigPcluster) {
		f.comprAlgs = 1 << algLZ4
		return nil
	}
	f.comprAlgs = sb.ComprAlgs
	if f.comprAlgs>>algCount != 0 {
		return unsupportedf("EROFS superblock: compression algorithms %#x", f.comprAlgs)
	}
	pos := superEnd(sb)
	for alg := range algCount {
		if f.comprAlgs>>alg&1 == 0 {
			continue
		}
		record, next, err := readRecord(f.image, pos)
		if err != nil {
			return fmt.Errorf("read the configuration of compression algorithm %d: %w", alg, err)
		}
		if alg == algLZ4 && len(record) < binary.Size(diskLZ4Config{}) {
			return corruptf("configuration of LZ4 at offset %d has %d bytes", pos, len(record))
		}
		pos = next
	}
	return nil
}

// readRecord reads one of the records that a 2-byte length goes before and gives
// the offset behind it; erofs_read_metadata in fs/erofs/super.c.
func readRecord(s *space, pos int64) (record []byte, next int64, err error) {
	pos = alignUp(pos, metaRecordAlign)
	raw, err := s.read(pos, 2)
	if err != nil {
		return nil, 0, err
	}
	n := int(binary.LittleEndian.Uint16(raw))
	if n == 0 {
		return nil, 0, corruptf("empty record at offset %d of the %s", pos, s.name)
	}
	record, err = s.read(pos+2, n)
	return record, pos + 2 + int64(n), err
}

// readDevices reads the device table; erofs_scan_devices in fs/erofs/super.c.
func (f *FS) readDevices(sb *diskSuper, blobs []io.ReaderAt) error {
	n := 0
	if f.has(FeatureIncompatDeviceTable) {
		n = int(sb.ExtraDevices)
	}
	if len(blobs) > n {
		return fmt.Errorf("%d extra devices given, the image has %d", len(blobs), n)
	}
	f.deviceIDs = uint16(1<<bits.Len(uint(n)) - 1)
	table, err := f.image.read(int64(sb.DevtSlotOff)*deviceSlotSize, n*deviceSlotSize)
	if err != nil {
		return fmt.Errorf("read the table of %d extra devices: %w", n, err)
	}
	for i := range n {
		var slot diskDeviceSlot
		decode(table[i*deviceSlotSize:], &slot)
		d := device{tag: paddedString(slot.Tag[:]), uniAddr: uint64(slot.UniAddr), blocks: uint64(slot.Blocks)}
		if f.has(FeatureIncompat48Bit) {
			d.uniAddr |= uint64(slot.UniAddrHi) << 32
			d.blocks |= uint64(slot.BlocksHi) << 32
		}
		if i < len(blobs) && blobs[i] != nil {
			size := int64(d.blocks << f.Super.BlkSzBits)
			if size <= 0 {
				size = math.MaxInt64 // not said, as mkfs.erofs 1.5 does it
			}
			d.space = &space{r: blobs[i], size: size, name: fmt.Sprintf("extra device %d", i+1)}
		}
		f.devices = append(f.devices, d)
	}
	return nil
}

// dataAt says where the bytes lie that an index places at pos of a device, 0
// being the image itself; erofs_map_dev in fs/erofs/data.c.
func (f *FS) dataAt(deviceID uint16, pos int64) (*space, int64, error) {
	if deviceID == 0 {
		for _, d := range f.devices {
			start := int64(d.uniAddr << f.Super.BlkSzBits)
			if d.uniAddr == 0 || pos < start || pos-start >= int64(d.blocks<<f.Super.BlkSzBits) {
				continue
			}
			if d.space == nil {
				return nil, 0, fmt.Errorf("block %d lies in an extra device that was not given", pos>>f.Super.BlkSzBits)
			}
			return d.space, pos - start, nil
		}
		return f.image, pos, nil
	}
	if int(deviceID) > len(f.devices) {
		return nil, 0, corruptf("extra device %d of %d", deviceID, len(f.devices))
	}
	if s := f.devices[deviceID-1].space; s != nil {
		return s, pos, nil
	}
	return nil, 0, fmt.Errorf("the data lies in extra device %d, which was not given", deviceID)
}

// space is an address space: the image, an extra device, or the metabox.
type space struct {
	r    io.ReaderAt
	size int64 // bytes
	name string

	mu     sync.Mutex
	blocks [spaceBlocks]spaceBlock // by block number
}

// Metadata is read in small pieces; a space keeps this much of it.
const (
	spaceBlockSize = 4096
	spaceBlocks    = 128
)

type spaceBlock struct {
	number int64
	data   []byte // never written once it is here; nil when there is none
}

// readAt fills p and does not keep what it reads.
func (s *space) readAt(p []byte, off int64) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	if err := readAt(s.r, p, off); err != nil {
		return fmt.Errorf("read %d bytes at offset %d of the %s: %w", len(p), off, s.name, err)
	}
	return nil
}

// check says whether the space has these n bytes at off.
func (s *space) check(off, n int64) error {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return fmt.Errorf("read %d bytes at offset %d of the %s, which has %d: %w", n, off, s.name, s.size, io.ErrUnexpectedEOF)
	}
	return nil
}

// read gives n bytes of metadata, which the caller must not change.
func (s *space) read(off int64, n int) ([]byte, error) {
	if err := s.check(off, int64(n)); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	first, last := off/spaceBlockSize, (off+int64(n)-1)/spaceBlockSize
	if first == last {
		block, err := s.block(first)
		if err != nil {
			return nil, err
		}
		start := off % spaceBlockSize
		return block[start : start+int64(n)], nil
	}
	p := make([]byte, 0, n)
	for number := first; number <= last; number++ {
		block, err := s.block(number)
		if err != nil {
			return nil, err
		}
		if number == first {
			block = block[off%spaceBlockSize:]
		}
		p = append(p, block[:min(len(block), n-len(p))]...)
	}
	return p, nil
}

// block gives the block of this number, which must not lie behind the end.
func (s *space) block(number int64) ([]byte, error) {
	slot := &s.blocks[number%spaceBlocks]
	s.mu.Lock()
	kept := *slot
	s.mu.Unlock()
	if kept.data != nil && kept.number == number {
		return kept.data, nil
	}
	start := number * spaceBlockSize
	data := make([]byte, min(spaceBlockSize, s.size-start))
	if err := s.readAt(data, start); err != nil {
		return nil, err
	}
	s.mu.Lock()
	*slot = spaceBlock{number, data}
	s.mu.Unlock()
	return data, nil
}

// Inode is an inode of an image.
type Inode struct {
	NID       uint64
	Mode      uint32 // type and permission bits as in Linux's stat
	UID, GID  uint32
	NLink     uint32
	Size      int64 // bytes
	MTime     int64 // seconds since 1970
	MTimeNsec uint32
	// RdevMajor and RdevMinor are those of a character or block device.
	RdevMajor, RdevMinor uint32
	Layout               Layout

	fs          *FS
	space       *space // where the inode lies
	off         int64  // in space
	headSize    int64  // of the inode alone
	xattrIcount uint16
	addr        uint64 // first block of flat data, nullAddr48 for none
	chunkFormat uint16
	dotOmitted  bool
	clusters    func() (*clusterMap, error) // of compressed data
}

// InodeAt reads the inode with this number; fs/erofs/inode.c.
func (f *FS) InodeAt(nid uint64) (*Inode, error) {
	ino, err := f.readInode(nid)
	if err != nil {
		return nil, fmt.Errorf("read EROFS inode %d: %w", nid, err)
	}
	return ino, nil
}

func (f *FS) readInode(nid uint64) (*Inode, error) {
	ino := &Inode{NID: nid, fs: f, space: f.image}
	slot := nid
	if nid&nidMetaboxBit != 0 {
		s, err := f.metabox()
		if err != nil {
			return nil, err
		}
		ino.space = s
		slot &^= nidMetaboxBit
	} else {
		ino.off = int64(f.Super.MetaBlkAddr) << f.Super.BlkSzBits
	}
	if slot > uint64(ino.space.size)/inodeSlotSize {
		return nil, fmt.Errorf("the %s has %d bytes: %w", ino.space.name, ino.space.size, io.ErrUnexpectedEOF)
	}
	ino.off += int64(slot) * inodeSlotSize
	raw, err := ino.space.read(ino.off, inodeCompactSize)
	if err != nil {
		return nil, err
	}
	format := binary.LittleEndian.Uint16(raw)
	if format&^formatAll != 0 {
		return nil, unsupportedf("format %#x at offset %d", format, ino.off)
	}
	ino.Layout = Layout(format >> formatLayoutShift & formatLayoutMask)
	if ino.Layout >= layoutCount {
		return nil, unsupportedf("%s at offset %d", ino.Layout, ino.off)
	}
	var addrLow uint32
	var addrHigh uint16
	var size uint64
	addrMask := uint64(nullAddr48)
	if format&formatExtended != 0 {
		if raw, err = ino.space.read(ino.off, inodeExtendedSize); err != nil {
			return nil, err
		}
		var d diskInodeExtended
		decode(raw, &d)
		ino.headSize, ino.xattrIcount = inodeExtendedSize, d.XattrIcount
		ino.Mode, ino.UID, ino.GID, ino.NLink = uint32(d.Mode), d.UID, d.GID, d.Nlink
		ino.MTime, ino.MTimeNsec = int64(d.Mtime), d.MtimeNsec
		size, addrLow, addrHigh = d.Size, d.U, d.NB
	} else {
		var d diskInodeCompact
		decode(raw, &d)
		ino.headSize, ino.xattrIcount = inodeCompactSize, d.XattrIcount
		ino.Mode, ino.UID, ino.GID, ino.NLink = uint32(d.Mode), uint32(d.UID), uint32(d.GID), uint32(d.NB)
		ino.MTime, ino.MTimeNsec = f.epoch+int64(d.Mtime), f.Super.BuildTimeNsec
		size, addrLow = uint64(d.Size), d.U
		if ino.Mode&modeType != modeDir && format&formatNlink1 != 0 {
			ino.NLink, addrHigh = 1, d.NB
		} else {
			addrMask = nullAddr32
		}
	}
	if size > math.MaxInt64 {
		return nil, corruptf("size %d at offset %d", size, ino.off)
	}
	ino.Size = int64(size)

	switch ino.Mode & modeType {
	case modeDir:
		ino.dotOmitted = format&formatDotOmitted != 0
		fallthrough
	case modeReg, modeLnk:
		ino.addr = uint64(addrLow) | uint64(addrHigh)<<32
		if ino.addr&addrMask == addrMask {
			ino.addr = nullAddr48
		}
	case modeChr, modeBlk:
		ino.RdevMajor, ino.RdevMinor = decodeRdev(addrLow)
	case modeFifo, modeSock:
	default:
		return nil, corruptf("mode %#o at offset %d", ino.Mode, ino.off)
	}
	if ino.Layout == LayoutChunkBased {
		ino.chunkFormat = uint16(addrLow)
		if ino.chunkFormat&^chunkAll != 0 {
			return nil, unsupportedf("chunk format %#x at offset %d", ino.chunkFormat, ino.off)
		}
	}
	if ino.Layout.Compressed() {
		ino.clusters = sync.OnceValues(func() (*clusterMap, error) { return newClusterMap(ino) })
	}
	return ino, nil
}

// IsDir reports whether the inode is a directory.
func (i *Inode) IsDir() bool { return i.Mode&modeType == modeDir }

// IsRegular reports whether the inode is a regular file.
func (i *Inode) IsRegular() bool { return i.Mode&modeType == modeReg }

// IsSymlink reports whether the inode is a symbolic link.
func (i *Inode) IsSymlink() bool { return i.Mode&modeType == modeLnk }

// hasData reports whether the inode's type has content.
func (i *Inode) hasData() bool { return i.IsDir() || i.IsRegular() || i.IsSymlink() }

// bodyEnd is where the inode and its inline xattrs end and what belongs to its
// layout begins.
func (i *Inode) bodyEnd() int64 { return i.off + i.headSize + xattrBodySize(i.xattrIcount) }

// LinkTarget reads the target of a symbolic link.
func (i *Inode) LinkTarget() (string, error) {
	switch {
	case !i.IsSymlink():
		return "", fmt.Errorf("EROFS inode %d is no symbolic link", i.NID)
	case i.Size == 0 || i.Size > maxSymlinkLen:
		return "", fmt.Errorf("EROFS inode %d: %w", i.NID, corruptf("symbolic link of %d bytes at offset %d", i.Size, i.off))
	}
	target := make([]byte, i.Size)
	if _, err := i.ReadAt(target, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	for _, c := range target {
		if c == 0 {
			return "", fmt.Errorf("EROFS inode %d: %w", i.NID, corruptf("a zero byte in the symbolic link %q", target))
		}
	}
	return string(target), nil
}
