package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
)

// hostModules returns the drivers below this machine's own boot device.
func (o *MiniOptions) hostModules() ([]string, error) {
	sysfs := o.Sysfs
	if sysfs == "" {
		sysfs = "/sys"
	}
	device := o.HostDevice
	if device == "" {
		var err error
		if device, err = findDevice("/dev", o.Config.Bootfs); err != nil {
			return nil, fmt.Errorf("hostonly: %w", err)
		}
	}
	w := hostWalk{sysfs: sysfs, x: o.Modules, seen: map[string]bool{}}
	if err := w.device(device); err != nil {
		return nil, fmt.Errorf("hostonly: drivers of block device %s: %w", device, err)
	}
	return w.modules, nil
}

// findDevice returns the numbers, MAJOR:MINOR, of the block device that udev
// names by tag.
func findDevice(dev string, tag bootconf.Tag) (string, error) {
	path := tag.Value
	switch tag.Kind {
	case "":
		return "", errors.New("no bootfs is given whose drivers to look for")
	case bootconf.TagPath:
	default:
		path = filepath.Join(dev, "disk", "by-"+strings.ToLower(string(tag.Kind)), udevName(tag.Value))
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("bootfs %s: %w", tag.String(), &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("bootfs %s: %s is not a block device", tag.String(), path)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// udevName writes a label as udev does in the names of links: what is neither
// in its list nor beyond ASCII becomes \xHH.
func udevName(label string) string {
	var b strings.Builder
	for _, c := range []byte(label) {
		switch {
		case c >= 0x80, '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z',
			strings.IndexByte("#+-.:=@_", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// hostWalk collects the modules of the drivers along paths of sysfs.
type hostWalk struct {
	sysfs   string
	x       *kmod.Index
	modules []string
	seen    map[string]bool // directories of devices
}

// device walks from the block device MAJOR:MINOR up to the bus it hangs on.
func (w *hostWalk) device(numbers string) error {
	dir, err := filepath.EvalSymlinks(filepath.Join(w.sysfs, "dev/block", numbers))
	if err != nil {
		return err
	}
	for _, stacked := range []string{"dm", "md"} {
		disk := dir
		if exists(filepath.Join(disk, "partition")) {
			disk = filepath.Dir(disk)
		}
		if exists(filepath.Join(disk, stacked)) {
			return fmt.Errorf("it is made of others (%s), which only the full tree can put together", stacked)
		}
	}
	// With native multipathing an NVMe disk hangs on a subsystem, which links
	// to its controllers.
	if controllers, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "nvme[0-9]*")); strings.Contains(dir, "/nvme-subsystem/") {
		if exists(filepath.Join(dir, "partition")) {
			controllers, _ = filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(dir)), "nvme[0-9]*"))
		}
		for _, c := range controllers {
			target, err := filepath.EvalSymlinks(c)
			if err == nil && !strings.Contains(target, "/nvme-subsystem/") {
				if err := w.up(target); err != nil {
					return err
				}
			}
		}
	}
	return w.up(dir)
}

// up visits the device in dir, its parents, and the devices that supply them
// with clocks, power and the like.
func (w *hostWalk) up(dir string) error {
	top, err := filepath.EvalSymlinks(filepath.Join(w.sysfs, "devices"))
	if err != nil {
		return err
	}
	for ; strings.HasPrefix(dir, top+"/") && !w.seen[dir]; dir = filepath.Dir(dir) {
		w.seen[dir] = true
		if err := w.driver(dir); err != nil {
			return err
		}
		suppliers, _ := filepath.Glob(filepath.Join(dir, "supplier:*"))
		for _, s := range suppliers {
			if target, err := filepath.EvalSymlinks(filepath.Join(s, "supplier")); err == nil {
				if err := w.up(target); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// driver adds the module of the driver that is bound to the device in dir. If
// the driver is built into the running kernel sysfs may name no module; the
// kernel that the modules are for may have one nevertheless, by the modalias.
func (w *hostWalk) driver(dir string) error {
	driver, err := os.Readlink(filepath.Join(dir, "driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	name := ""
	if module, err := os.Readlink(filepath.Join(dir, "driver/module")); err == nil {
		name = filepath.Base(module)
		if w.x.Has(name) {
			w.add(name)
			return nil
		}
	}
	modalias, err := os.ReadFile(filepath.Join(dir, "modalias"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	alias := strings.TrimSpace(string(modalias))
	// A PCI bridge works without a driver; what matches its class is hotplug.
	if strings.HasPrefix(alias, "pci:") && strings.Contains(alias, "bc06") {
		return nil
	}
	modules, builtin := w.x.Match(alias)
	if len(modules) == 0 && !builtin && name != "" {
		return fmt.Errorf("kernel %s has neither the module %s nor another for driver %s of %s",
			w.x.KernelVersion(), name, filepath.Base(driver), dir)
	}
	for _, m := range modules {
		w.add(m)
	}
	return nil
}

func (w *hostWalk) add(module string) {
	if !slices.Contains(w.modules, module) {
		w.modules = append(w.modules, module)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
