package install

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// mount is one line of /proc/PID/mountinfo; proc_pid_mountinfo(5).
type mount struct {
	device string // MAJOR:MINOR
	root   string // the folder of the filesystem that is mounted
	point  string
	fstype string
	source string
}

func parseMounts(text string) ([]mount, error) {
	var mounts []mount
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+3 {
			return nil, fmt.Errorf("mount table: bad line %q", line)
		}
		mounts = append(mounts, mount{
			device: fields[2],
			root:   unescape(fields[3]),
			point:  unescape(fields[4]),
			fstype: fields[dash+1],
			source: unescape(fields[dash+2]),
		})
	}
	return mounts, nil
}

// unescape undoes the kernel's mangling of spaces and the like: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf gives the mount that shows dir, an absolute path without symbolic
// links, and the path of dir on the mounted filesystem. Later lines hide earlier
// ones.
func mountOf(mounts []mount, dir string) (mount, string, error) {
	best := -1
	for i, m := range mounts {
		if (m.point == "/" || m.point == dir || strings.HasPrefix(dir, m.point+"/")) &&
			(best < 0 || len(m.point) >= len(mounts[best].point)) {
			best = i
		}
	}
	if best < 0 {
		return mount{}, "", fmt.Errorf("no filesystem is mounted on %s", dir)
	}
	m := mounts[best]
	rel, err := filepath.Rel(m.point, dir)
	return m, filepath.Join(m.root, rel), err
}

// place is a folder as storage-init finds it: a filesystem and a path on it.
type place struct {
	mount
	path    string // of the folder on the filesystem; of a btrfs from its top
	node    string // device node
	uuid    string
	partID  string // UUID of the partition
	stacked string // what has to be assembled before the device is there; empty: nothing
}

// tag names the filesystem.
func (p *place) tag() (bootconf.Tag, error) {
	switch {
	case p.uuid != "":
		return bootconf.Tag{Kind: bootconf.TagUUID, Value: p.uuid}, nil
	case p.partID != "":
		return bootconf.Tag{Kind: bootconf.TagPartUUID, Value: p.partID}, nil
	}
	return bootconf.Tag{}, fmt.Errorf("%s has no UUID by which it could be named", p.node)
}

// sameFilesystem tells whether both lie on one filesystem. The device numbers
// of a btrfs differ from subvolume to subvolume.
func (p *place) sameFilesystem(m mount) bool {
	return p.device == m.device || p.fstype == "btrfs" && m.fstype == "btrfs" && p.source == m.source
}

// bootFilesystems are those that storage-init mounts, by the kernel's names.
var bootFilesystems = []string{"ext4", "xfs", "btrfs", "vfat"}

const mountTable = "/proc/self/mountinfo"

// locate finds out on which filesystem a folder of this system lies, from what
// is mounted.
func locate(dir string) (*place, []mount, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, nil, err
	}
	text, err := os.ReadFile(mountTable)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := parseMounts(string(text))
	if err != nil {
		return nil, nil, err
	}
	m, path, err := mountOf(mounts, real)
	if err != nil {
		return nil, nil, err
	}
	p := &place{mount: m, path: path}
	if !slices.Contains(bootFilesystems, m.fstype) {
		return nil, nil, &builder.HintedError{
			Err:    fmt.Errorf("%s lies on a filesystem of type %s, which storage-init does not mount", dir, m.fstype),
			Advice: "mount the boot filesystem (" + strings.Join(bootFilesystems, ", ") + ") there, or name it with --bootfs and --fs",
		}
	}
	p.node, p.stacked = blockDevice("/sys", m)
	if p.node == "" {
		return nil, nil, fmt.Errorf("the device of %s, mounted on %s, is not known", m.source, m.point)
	}
	if err := p.identify(); err != nil {
		return nil, nil, err
	}
	return p, mounts, nil
}

// blockDevice gives the node of a mounted device and, if it is one that is put
// together from others, what does that.
func blockDevice(sysfs string, m mount) (node, stacked string) {
	dir := filepath.Join(sysfs, "dev/block", m.device)
	if m.fstype == "btrfs" {
		// Its number is that of a subvolume.
		name, err := filepath.EvalSymlinks(m.source)
		if err != nil {
			return "", ""
		}
		dir = filepath.Join(sysfs, "class/block", strings.ReplaceAll(strings.TrimPrefix(name, "/dev/"), "/", "!"))
	}
	uevent, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(string(uevent)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			node = "/dev/" + name
		}
	}
	// A partition of an array is in the folder of its disk.
	for _, d := range []string{dir, filepath.Join(dir, "..")} {
		switch {
		case isDir(filepath.Join(d, "dm")):
			text, _ := os.ReadFile(filepath.Join(d, "dm/uuid"))
			kind, _, _ := strings.Cut(string(text), "-")
			return node, "device mapper (" + firstOf(strings.TrimSpace(kind), "unknown") + ")"
		case isDir(filepath.Join(d, "md")):
			return node, "MD RAID"
		}
	}
	return node, ""
}

// identify asks blkid, which reads the device itself: there may be no udev, as
// in a chroot.
func (p *place) identify() error {
	out, err := exec.Command("blkid", "-p", "-o", "export", p.node).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return &builder.HintedError{Err: err, Advice: "install util-linux"}
	}
	if err != nil {
		return fmt.Errorf("blkid %s: %w%s", p.node, err, stderrOf(err))
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "UUID":
			p.uuid = value
		case "PART_ENTRY_UUID":
			p.partID = value
		}
	}
	return nil
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return ": " + strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
