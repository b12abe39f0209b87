package storageinit

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit/probe"
)

// attempt is one backend on trial.
type attempt struct {
	backend bootconf.Backend
	// given up: nothing that may still appear can help
	refused error
	// devices that were tried, in that order
	tried []trial
}

// trial is a device that did not serve.
type trial struct {
	device string
	err    error
}

func (a *attempt) triedDevice(name string) bool {
	return slices.ContainsFunc(a.tried, func(t trial) bool { return t.device == name })
}

// forget makes the devices of an event worth another try. The image may also
// have missed an extra device; the loop devices of an attempt are none.
func (a *attempt) forget(event Uevent, conf *bootconf.Config) {
	lost := event == Uevent{} || len(conf.Devices) > 0 && event.Block != "" && !ignoredDevice(event.Block)
	a.tried = slices.DeleteFunc(a.tried, func(t trial) bool { return lost || t.device == event.Block })
}

// reason says why the attempt has not served.
func (a *attempt) reason(conf *bootconf.Config) error {
	if a.refused != nil {
		return failed(string(a.backend), a.refused)
	}
	var why reasons
	for _, t := range a.tried {
		why = append(why, t.err)
	}
	if len(why) == 0 {
		why = append(why, errors.New(a.missing(conf)))
	}
	return failed(string(a.backend), why)
}

func (a *attempt) missing(conf *bootconf.Config) string {
	switch {
	case a.backend == bootconf.Pmem || a.backend == bootconf.PmemDAX:
		return "no pmem device with an EROFS image"
	case !conf.Bootfs.IsZero():
		return "no device " + conf.Bootfs.String()
	}
	return "no device with an EROFS image"
}

// errIsRoot is why a file on the real root's filesystem is not used in place: a
// mount of it, even a read-only one, keeps fsck and a read-write mount out.
var errIsRoot = errors.New("it is also the real root, which must stay free")

// mountImage tries the backends in order until one has mounted the image on
// lowerDir. What is present is tried at once, what appears until the timeout
// when it appears. It is fatal when no backend serves.
func (b *boot) mountImage() error {
	if err := b.sys.Mkdir(lowerDir, 0o755); err != nil {
		return failed("mkdir "+lowerDir, err)
	}
	if err := b.sys.Mkdir(bootfsDir, 0o755); err != nil {
		return failed("mkdir "+bootfsDir, err)
	}
	var attempts []*attempt
	for _, backend := range b.conf.Backends {
		attempts = append(attempts, &attempt{backend: backend})
	}
	for i := 0; i < len(attempts); i++ { // grows by the RAM fall-back
		a := attempts[i]
		if err := b.loadModules(a.backend); err != nil {
			a.refused = err
			continue
		}
		b.endPhase("modules " + string(a.backend))
		b.settle(a)
		if b.try(a) {
			return b.served(attempts, a)
		}
		attempts = b.withFallBack(attempts, a)
	}

	waited := false
	deadline := b.sys.Now() + int64(b.conf.TimeoutSeconds)*1_000_000
	late := int64(0) // when the first event after the deadline was read
	for anyWaiting(attempts) {
		event, ok, err := b.sys.WaitUevent(deadline)
		if err != nil {
			return failed("wait for device events", err)
		}
		if now := b.sys.Now(); now > deadline {
			if late == 0 {
				late = now
			}
			ok = ok && now <= late+lateTime
		}
		if !ok {
			waited = true
			break
		}
		b.noteEvent(event)
		for i := 0; i < len(attempts); i++ { // as above
			a := attempts[i]
			if a.refused != nil {
				continue
			}
			if a.refused = b.loadPending(a.backend); a.refused != nil {
				continue
			}
			a.forget(event, &b.conf)
			if b.try(a) {
				return b.served(attempts, a)
			}
			attempts = b.withFallBack(attempts, a)
		}
	}
	var why reasons
	for _, a := range attempts {
		why = append(why, a.reason(&b.conf))
	}
	if waited {
		return failed("no image after "+strconv.Itoa(b.conf.TimeoutSeconds)+" s", why)
	}
	return failed("no image", why)
}

// lateTime is how long events are still read, in microseconds, that waited while
// an attempt went on beyond the deadline. There may be no end to them.
const lateTime = 1_000_000

// withFallBack adds the RAM backend when the one that was asked for would hold
// the real root. `auto` has its own list.
func (b *boot) withFallBack(attempts []*attempt, a *attempt) []*attempt {
	if errors.Is(a.refused, errIsRoot) && !b.conf.Auto {
		b.log(levelWarn, a.reason(&b.conf).Error()+"; the image is copied to memory instead")
		attempts = append(attempts, &attempt{backend: bootconf.RAM})
	}
	return attempts
}

func anyWaiting(attempts []*attempt) bool {
	for _, a := range attempts {
		if a.refused == nil {
			return true
		}
	}
	return false
}

// served completes the record of the attempts.
func (b *boot) served(attempts []*attempt, winner *attempt) error {
	b.record.Backend = winner.backend
	for _, a := range attempts {
		entry := bootconf.Attempt{Backend: a.backend}
		if a != winner {
			entry.Error = a.reason(&b.conf).Error()
			b.log(levelInfo, entry.Error)
		}
		b.record.Attempts = append(b.record.Attempts, entry)
		if a == winner {
			break
		}
	}
	return nil
}

// settle waits for what the modules have begun: libnvdimm probes its regions
// in the background. Without it `auto` would find the slower devices first.
func (b *boot) settle(a *attempt) {
	if a.backend != bootconf.Pmem && a.backend != bootconf.PmemDAX {
		return
	}
	buses, _ := b.sys.ReadDir("/sys/bus/nd/devices")
	for _, bus := range buses {
		if strings.HasPrefix(bus, "ndbus") {
			_, _ = b.sys.ReadFile("/sys/bus/nd/devices/" + bus + "/wait_probe")
		}
	}
}

// try tries a backend with what is present now.
func (b *boot) try(a *attempt) bool {
	b.scanSCSI()
	switch {
	case a.backend == bootconf.Embedded:
		a.refused = b.mountEmbedded()
		return a.refused == nil
	case a.backend.OnBootfs() && b.conf.Bootfs.IsZero():
		a.refused = errors.New("bootfs is not set")
		return false
	case a.backend.OnBootfs() && b.conf.FS == "":
		a.refused = errors.New("fs is not set")
		return false
	}
	for _, d := range b.scan() {
		if a.triedDevice(d.name) || !b.eligible(a.backend, d) {
			continue
		}
		var err error
		if a.backend.OnBootfs() {
			if a.backend != bootconf.RAM && b.isRoot(d) {
				a.refused = failed(d.path(), errIsRoot)
				return false
			}
			err = b.mountFromBootfs(a.backend, d)
		} else {
			err = b.mountDevice(a.backend, d)
		}
		if err == nil {
			return true
		}
		a.tried = append(a.tried, trial{d.name, failed(d.path(), err)})
	}
	return false
}

// eligible reports whether a backend looks at a device at all.
func (b *boot) eligible(backend bootconf.Backend, d *device) bool {
	switch {
	case backend == bootconf.Pmem || backend == bootconf.PmemDAX:
		// bootfs names the disk of the other backends, unless it is a pmem path.
		return d.isPmem() && (!strings.HasPrefix(b.conf.Bootfs.Value, "/dev/pmem") || b.matches(d, b.conf.Bootfs))
	case !b.conf.Bootfs.IsZero():
		return b.matches(d, b.conf.Bootfs)
	}
	// Without a tag the image's own UUID is the only name.
	return !d.isPmem() && b.filesystem(d).UUID == b.conf.ImageUUID.String()
}

// isRoot reports whether the command line's root= names the device; the last
// one counts, as everywhere on the command line.
func (b *boot) isRoot(d *device) bool {
	var root string
	for word := range bootconf.Words(b.cmdline) {
		if value, ok := strings.CutPrefix(word, "root="); ok {
			root = value
		}
	}
	root = strings.TrimPrefix(root, "block:")
	for dir, kind := range map[string]bootconf.TagKind{
		"uuid/": bootconf.TagUUID, "label/": bootconf.TagLabel,
		"partuuid/": bootconf.TagPartUUID, "partlabel/": bootconf.TagPartLabel,
	} {
		// udev's links, which are not there yet, say the same as a tag.
		if value, ok := strings.CutPrefix(root, "/dev/disk/by-"+dir); ok {
			return b.matches(d, bootconf.Tag{Kind: kind, Value: value})
		}
	}
	tag, err := bootconf.ParseTag(root)
	return err == nil && b.matches(d, tag)
}

// mountDevice mounts an image that fills a block device.
func (b *boot) mountDevice(backend bootconf.Backend, d *device) error {
	image, err := b.sys.Open("/", d.path())
	if err != nil {
		return failed("open", err)
	}
	defer image.Close()
	superblock, err := b.checkImage(image)
	if err != nil {
		return err
	}
	if image.Size() < b.conf.ImageSize {
		return errors.New("the device has " + strconv.FormatInt(image.Size(), 10) +
			" bytes, the image " + strconv.FormatInt(b.conf.ImageSize, 10))
	}
	data, release, err := b.openBlobs(backend, image, &superblock)
	if err != nil {
		return err
	}
	defer release()
	if backend == bootconf.PmemDAX {
		if superblock.Compressed() {
			return errors.New("the image is compressed, dax needs an uncompressed one")
		}
		data = "dax=always"
	}
	if err := b.mountErofs(d.path(), data); err != nil {
		return err
	}
	if backend == bootconf.PmemDAX && !b.mountedWith(lowerDir, "dax=always") {
		return b.unmountLower(errors.New("the device has no dax, the mount silently went without"))
	}
	if backend == bootconf.Block {
		b.readAhead(d.path(), &superblock)
	}
	return nil
}

// mountFromBootfs mounts an image that is a file on the filesystem of d.
func (b *boot) mountFromBootfs(backend bootconf.Backend, d *device) (err error) {
	if err := b.mountBootfs(d); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if e := b.releaseBootfs(); e != nil {
				err = reasons{err, e}
			}
		}
	}()
	image, err := b.sys.Open(bootfsDir, b.conf.FS)
	if err != nil {
		return failed("open "+b.conf.FS, err)
	}
	defer image.Close()
	superblock, err := b.checkImageFile(image)
	if err != nil {
		return failed(b.conf.FS, err)
	}
	blobs, releaseBlobs, err := b.openBlobs(backend, image, &superblock)
	if err != nil {
		return err
	}
	defer releaseBlobs()
	switch backend {
	case bootconf.File:
		if err := b.mountFile(image, superblock.BlockSize(), blobs); err != nil {
			return err
		}
		b.readAhead(image.Source(), &superblock)
		return nil
	case bootconf.Loop:
		loop, err := b.mountLoop(image, blobs)
		if err != nil {
			return err
		}
		if !loop.DirectIO {
			b.log(levelWarn, "loop device without direct I/O: the image is cached twice")
		}
		b.readAhead(loop.Path, &superblock)
		return nil
	}
	memory, err := b.sys.CopyToMemory(image)
	if err != nil {
		return failed("copy "+b.conf.FS+" to memory", err)
	}
	defer memory.Close()
	image.Close()
	if err := b.releaseBootfs(); err != nil {
		return err
	}
	if _, err := b.checkImageFile(memory); err != nil {
		return failed("copy of "+b.conf.FS, err)
	}
	_, err = b.mountLoop(memory, blobs)
	return err
}

// mountFile mounts a file without a loop device. With direct I/O, EROFS has many
// requests on their way at once, and what it decompresses is not cached in its
// compressed form as well. Linux knows the option since 6.12.7 and does not ask
// whether the disk can read single blocks of the image (fs/erofs/fileio.c).
func (b *boot) mountFile(image Image, blockSize int64, blobs string) error {
	if b.sys.DirectIO(image, blockSize) {
		err := b.mountErofs(image.Source(), strings.TrimSuffix("directio,"+blobs, ","))
		if !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	if err := b.mountErofs(image.Source(), blobs); err != nil {
		return err
	}
	b.log(levelWarn, "file-backed mount without direct I/O: the image may be cached twice")
	return nil
}

// mountEmbedded mounts the image inside the mini-initramfs, through a loop
// device: the kernel has no file-backed mount on tmpfs.
func (b *boot) mountEmbedded() error {
	image, err := b.sys.Open("/", bootconf.EmbeddedPath)
	if err != nil {
		return failed("open "+bootconf.EmbeddedPath, err)
	}
	defer image.Close()
	superblock, err := b.checkImageFile(image)
	if err != nil {
		return failed(bootconf.EmbeddedPath, err)
	}
	blobs, release, err := b.openBlobs(bootconf.Embedded, image, &superblock)
	if err != nil {
		return err
	}
	defer release()
	_, err = b.mountLoop(image, blobs)
	return err
}

// mountLoop mounts an image through a loop device, which the mount then keeps.
func (b *boot) mountLoop(image Image, data string) (LoopDevice, error) {
	loop, err := b.sys.AttachLoop(image)
	if err != nil {
		return loop, failed("attach a loop device", err)
	}
	defer loop.Release()
	return loop, b.mountErofs(loop.Path, data)
}

func (b *boot) mountErofs(source, data string) error {
	err := b.sys.Mount(source, lowerDir, "erofs", mountReadOnly, data)
	if err != nil {
		return failed("mount erofs", err)
	}
	return nil
}

func (b *boot) unmountLower(why error) error {
	if err := b.sys.Unmount(lowerDir); err != nil {
		return reasons{why, failed("unmount "+lowerDir, err)}
	}
	return why
}

// checkImageFile checks identity and length of an image that is a file.
func (b *boot) checkImageFile(image Image) (probe.EROFS, error) {
	if image.Size() != b.conf.ImageSize {
		return probe.EROFS{}, errors.New("the image has " + strconv.FormatInt(image.Size(), 10) +
			" bytes, image_size says " + strconv.FormatInt(b.conf.ImageSize, 10))
	}
	return b.checkImage(image)
}

// checkImage checks that an image is the configured one. A truncated one would
// mount, and fail when the missing part is read.
func (b *boot) checkImage(image Image) (probe.EROFS, error) {
	superblock, err := probe.ReadEROFS(image)
	if err != nil {
		return superblock, err
	}
	if superblock.UUID != b.conf.ImageUUID {
		return superblock, errors.New("the image has UUID " + superblock.UUID.String() +
			", image_uuid says " + b.conf.ImageUUID.String())
	}
	if superblock.Size > b.conf.ImageSize {
		return superblock, errors.New("the superblock counts " + strconv.FormatInt(superblock.Size, 10) +
			" bytes, image_size says " + strconv.FormatInt(b.conf.ImageSize, 10))
	}
	if superblock.Devices != len(b.conf.Devices) {
		return superblock, errors.New("the image needs " + strconv.Itoa(superblock.Devices) +
			" extra devices, the key device names " + strconv.Itoa(len(b.conf.Devices)))
	}
	return superblock, nil
}

// mountedWith looks up an option in the mount table.
func (b *boot) mountedWith(target, option string) bool {
	table, err := b.sys.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(table, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != target {
			continue
		}
		for o := range strings.SplitSeq(fields[len(fields)-1], ",") {
			if o == option {
				return true
			}
		}
	}
	return false
}
