package powercut

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
)

// A Disk is the image of a disk to which the writes of a log are applied, one
// after the other, and from which they can be taken back.
type Disk struct {
	f    *os.File
	size int64
	undo []saved
}

// saved is what was on the disk before a write.
type saved struct {
	offset int64
	data   []byte
}

// OpenDisk opens an image for reading and writing. The file changes; a caller
// that wants to keep it makes a copy (see Copy).
func OpenDisk(path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Disk{f: f, size: info.Size()}, nil
}

// Close closes the image.
func (d *Disk) Close() error { return d.f.Close() }

// ReadAt reads from the image.
func (d *Disk) ReadAt(p []byte, offset int64) (int, error) { return d.f.ReadAt(p, offset) }

// BlockBytes is the piece of a write that a disk writes whole.
const BlockBytes = 4096

// Apply makes a write of the log. Keep, unless it is nil, says which blocks of
// it get there: a power cut may come in the middle of a large write.
func (d *Disk) Apply(l *Log, e Entry, keep func() bool) error {
	if !e.IsWrite() {
		return nil
	}
	if e.Offset+e.Bytes > d.size {
		return fmt.Errorf("write of %d bytes at %d: the disk has %d", e.Bytes, e.Offset, d.size)
	}
	data, err := l.Data(e)
	if err != nil {
		return err
	}
	if keep == nil {
		return d.write(e.Offset, data)
	}
	for at := 0; at < len(data); {
		// Blocks are the disk's, not the write's.
		n := min(len(data)-at, BlockBytes-int(e.Offset+int64(at))%BlockBytes)
		if keep() {
			if err := d.write(e.Offset+int64(at), data[at:at+n]); err != nil {
				return err
			}
		}
		at += n
	}
	return nil
}

func (d *Disk) write(offset int64, data []byte) error {
	old := saved{offset, make([]byte, len(data))}
	if _, err := d.f.ReadAt(old.data, offset); err != nil {
		return err
	}
	d.undo = append(d.undo, old)
	_, err := d.f.WriteAt(data, offset)
	return err
}

// Depth says how many writes could be taken back.
func (d *Disk) Depth() int { return len(d.undo) }

// Undo takes writes back until so many are left.
func (d *Disk) Undo(depth int) error {
	for len(d.undo) > depth {
		last := d.undo[len(d.undo)-1]
		if _, err := d.f.WriteAt(last.data, last.offset); err != nil {
			return err
		}
		d.undo = d.undo[:len(d.undo)-1]
	}
	return nil
}

// Forget makes the writes up to now final, and their memory free.
func (d *Disk) Forget() { d.undo = nil }

// Copy writes a part of the disk into a new file, without its zeros.
func (d *Disk) Copy(path string, offset, length int64) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(length); err != nil {
		return err
	}
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < length; at += int64(len(block)) {
		p := block[:min(int64(len(block)), length-at)]
		if _, err := d.f.ReadAt(p, offset+at); err != nil {
			return err
		}
		if string(p) == string(zeros[:len(p)]) {
			continue
		}
		if _, err := out.WriteAt(p, at); err != nil {
			return err
		}
	}
	return nil
}

// seeds are of this process: digests are compared in it and nowhere else.
var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// Digest tells contents apart, much quicker than a cryptographic one.
type Digest [2]uint64

// DigestOf gives the digest of some contents, one after the other.
func DigestOf(contents ...[]byte) (d Digest) {
	for i := range d {
		var h maphash.Hash
		h.SetSeed(seeds[i])
		for _, c := range contents {
			_, _ = h.Write(c) // never fails
		}
		d[i] = h.Sum64()
	}
	return d
}

// Digest is that of a part of the disk. Two states of a disk with the same one
// are the same state.
func (d *Disk) Digest(offset, length int64) (Digest, error) {
	p := make([]byte, length)
	if _, err := d.f.ReadAt(p, offset); err != nil {
		return Digest{}, err
	}
	return DigestOf(p), nil
}
