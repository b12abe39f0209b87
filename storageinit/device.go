package storageinit

import (
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit/probe"
)

// device is a block device and what was read of it so far. Nothing is read
// before a question needs it: on a phone or a server there may be a hundred
// partitions, and each read of a slow one delays the boot.
type device struct {
	name      string // in sysfs
	partition *probe.Partition
	content   *probe.Filesystem
	links     []string // paths that udev has given it
}

// called reports whether a path below /dev is the device.
func (d *device) called(path string) bool {
	return d.path() == path || slices.Contains(d.links, path)
}

func (d *device) path() string { return "/dev/" + strings.ReplaceAll(d.name, "!", "/") }

const classBlock = "/sys/class/block"

// scan gives the block devices that have a size, the hinted one first.
func (b *boot) scan() []*device {
	names, err := b.sys.ReadDir(classBlock)
	if err != nil {
		return nil // sysfs has no such class before the first device
	}
	present := make(map[string]*device, len(names))
	var list []*device
	for _, name := range names {
		if ignoredDevice(name) {
			continue
		}
		d := b.devices[name]
		if d == nil {
			size, err := b.sys.ReadFile(classBlock + "/" + name + "/size")
			if err != nil || strings.TrimSpace(size) == "0" {
				continue // a drive without a medium; an event tells of one
			}
			d = &device{name: name}
			if b.unit && !b.askUdev(d) {
				continue
			}
		}
		present[name] = d
		list = append(list, d)
		if d.called(b.conf.BootfsHint) {
			copy(list[1:], list)
			list[0] = d
		}
	}
	b.devices = present
	return list
}

// noteEvent takes in what an event changes: what is known of a device, and
// which drivers the machine needs.
func (b *boot) noteEvent(event Uevent) {
	switch {
	case event == Uevent{}:
		b.devices = nil
		b.lookForDevices()
	case event.Modalias != "":
		b.deviceAppeared(event.Modalias)
	case event.Block != "":
		delete(b.devices, event.Block)
	}
}

// ignoredDevice reports whether a device cannot hold an image or bootfs.
func ignoredDevice(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "fd", "nbd"} {
		rest, ok := strings.CutPrefix(name, prefix)
		if ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return true
		}
	}
	return false
}

func (d *device) isPmem() bool { return strings.HasPrefix(d.name, "pmem") }

// matches reports whether a tag names the device.
func (b *boot) matches(d *device, tag bootconf.Tag) bool {
	switch tag.Kind {
	case bootconf.TagPath:
		return d.called(tag.Value)
	case bootconf.TagPartUUID:
		return strings.EqualFold(b.partition(d).UUID, tag.Value)
	case bootconf.TagPartLabel:
		return b.partition(d).Label == tag.Value
	case bootconf.TagUUID:
		fs := b.filesystem(d)
		return fs.Type != "" && strings.EqualFold(fs.UUID, tag.Value)
	case bootconf.TagLabel:
		fs := b.filesystem(d)
		return fs.Type != "" && fs.Label == tag.Value
	}
	return false
}

// filesystem gives what the device holds; the zero value when that is unknown
// or cannot be read.
func (b *boot) filesystem(d *device) probe.Filesystem {
	if d.content == nil {
		d.content = &probe.Filesystem{}
		if dev, err := b.sys.Open("/", d.path()); err == nil {
			*d.content = probe.Identify(dev)
			dev.Close()
		}
	}
	return *d.content
}

// partition gives the identity of the device in its disk's partition table; the
// zero value for a whole disk.
func (b *boot) partition(d *device) probe.Partition {
	if d.partition == nil {
		d.partition = b.readPartition(d)
	}
	return *d.partition
}

func (b *boot) readPartition(d *device) *probe.Partition {
	part := &probe.Partition{}
	dir := classBlock + "/" + d.name
	number, err := b.readNumber(dir + "/partition")
	if err != nil {
		return part
	}
	start, err := b.readNumber(dir + "/start")
	if err != nil {
		return part
	}
	// The directory is a symbolic link into the device tree, where a partition
	// lies inside its disk.
	uevent, err := b.sys.ReadFile(dir + "/../uevent")
	if err != nil {
		return part
	}
	disk, err := b.sys.Open("/", "/dev/"+property(uevent, "DEVNAME"))
	if err != nil {
		return part
	}
	defer disk.Close()
	const sectorSize = 512 // of every size in sysfs, whatever the disk's is
	*part = probe.FindPartition(disk, int(number), start*sectorSize)
	if part.Label == "" {
		// Partitions that come from the command line or the device tree have
		// names and no table.
		uevent, _ = b.sys.ReadFile(dir + "/uevent")
		part.Label = property(uevent, "PARTNAME")
	}
	return part
}

func (b *boot) readNumber(path string) (int64, error) {
	text, err := b.sys.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(text), 10, 64)
}

// property reads one KEY=VALUE line.
func property(uevent, key string) string {
	for line := range strings.SplitSeq(uevent, "\n") {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			return value
		}
	}
	return ""
}

// scanSCSI asks the configured LUN's host for that LUN, once the host is there.
// With scsi_mod.scan=manual nothing else of it is scanned.
func (b *boot) scanSCSI() {
	if b.conf.SCSIAddr == "" || b.scsiScanned {
		return
	}
	host, rest, _ := strings.Cut(b.conf.SCSIAddr, ":")
	dir := "/sys/class/scsi_host/host" + host
	if _, err := b.sys.ReadDir(dir); err != nil {
		return
	}
	b.scsiScanned = true
	if err := b.sys.WriteFile(dir+"/scan", strings.ReplaceAll(rest, ":", " ")); err != nil {
		b.log(levelError, "scan SCSI address "+b.conf.SCSIAddr+": "+err.Error())
	}
}
