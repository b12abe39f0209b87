package storageinit

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit/probe"
)

// openBlobs opens the extra devices of an image and gives the mount options that
// name them; release is for after the mount. A device that is missing or too
// short would only fail when files are read.
func (b *boot) openBlobs(backend bootconf.Backend, image Image, superblock *probe.EROFS) (options string, release func(), err error) {
	var held []func()
	release = func() {
		for _, f := range slices.Backward(held) {
			f()
		}
	}
	for i, name := range b.conf.Devices {
		tag, size, err := superblock.Device(image, i)
		var path string
		var hold func()
		if err == nil {
			path, hold, err = b.openBlob(backend, name, tag, size)
		}
		if err != nil {
			release()
			return "", nil, failed("extra device "+name, err)
		}
		held = append(held, hold)
		options += ",device=" + path
	}
	return strings.TrimPrefix(options, ","), release, nil
}

// openBlob opens one extra device, of which the image reads size bytes.
func (b *boot) openBlob(backend bootconf.Backend, name, tag string, size int64) (path string, release func(), err error) {
	var blob Image
	switch {
	case backend == bootconf.Pmem || backend == bootconf.PmemDAX:
		return "", nil, errors.New("an image in memory cannot have extra devices")
	case backend == bootconf.Block:
		blob, path, err = b.openBlobDevice(name)
	case !strings.HasPrefix(name, "/"):
		return "", nil, errors.New("not a path")
	case backend == bootconf.Embedded:
		blob, err = b.sys.Open("/", name)
	default:
		blob, err = b.sys.Open(bootfsDir, name)
	}
	if err != nil {
		return "", nil, err
	}
	if err := checkBlob(blob, backend, name, tag, size); err != nil {
		blob.Close()
		return "", nil, err
	}
	switch backend {
	case bootconf.Block:
		blob.Close()
		return path, func() {}, nil
	case bootconf.File:
		return blob.Source(), blob.Close, nil
	case bootconf.RAM:
		memory, err := b.sys.CopyToMemory(blob)
		blob.Close()
		if err != nil {
			return "", nil, failed("copy to memory", err)
		}
		blob = memory
	}
	defer blob.Close()
	loop, err := b.sys.AttachLoop(blob)
	if err != nil {
		return "", nil, failed("attach a loop device", err)
	}
	return loop.Path, loop.Release, nil
}

// openBlobDevice opens the block device that has this name.
func (b *boot) openBlobDevice(name string) (Image, string, error) {
	tag, err := bootconf.ParseTag(name)
	if err != nil {
		return nil, "", err
	}
	for _, d := range b.scan() {
		if b.matches(d, tag) {
			blob, err := b.sys.Open("/", d.path())
			return blob, d.path(), err
		}
	}
	return nil, "", errors.New("no such device")
}

// checkBlob holds a blob against its slot in the device table. Files have the
// size that the slot says, and those that are named by their content its name.
func checkBlob(blob Image, backend bootconf.Backend, name, tag string, size int64) error {
	if n := blob.Size(); n < size || n > size && backend != bootconf.Block {
		return errors.New("it has " + strconv.FormatInt(n, 10) + " bytes, the image says " + strconv.FormatInt(size, 10))
	}
	base := name[strings.LastIndexByte(name, '/')+1:]
	if named, ok := strings.CutSuffix(base, bootconf.BlobSuffix); ok && named != tag && backend != bootconf.Block {
		return errors.New("the image has " + tag + " in its place")
	}
	return nil
}
