// Package region is the third role of storage-init: it gives the memory that the
// kernel's word memmap= has set aside for the image back to the booted system.
//
// The region is a legacy NVDIMM to the kernel. When nothing uses the image any
// more its namespace is turned from a disk into a device of package dax, and
// that into RAM. What comes back are whole blocks of memory; the region's begin
// holds the kernel's bookkeeping.
//
// Persistent memory with anything else in it is left alone: the region must be
// one that the command line made, with the image by its UUID in it, and not be
// in use.
package region

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/storageinit"
	"initoverlayfs/storageinit/probe"
)

// System is what the role asks of the kernel; storageinit.Linux has it.
type System interface {
	Log(level int, line string)
	Sleep(seconds int)
	ReadFile(path string) (string, error)
	WriteFile(path, data string) error
	ReadDir(path string) ([]string, error)
	// OpenExclusive fails with EBUSY if something holds the device.
	OpenExclusive(path string) (storageinit.Image, error)
	LoadModule(path, options string) error
	// RemoveAll removes a directory and the files in it.
	RemoveAll(dir string) error
}

var _ System = (*storageinit.Linux)(nil)

// Log levels.
const (
	levelWarn = 4
	levelInfo = 6
)

// Paths of the kernel.
const (
	ndDevices   = "/sys/bus/nd/devices/"
	ndDrivers   = "/sys/bus/nd/drivers/"
	daxDrivers  = "/sys/bus/dax/drivers/"
	memory      = "/sys/devices/system/memory/"
	cmdlinePath = "/proc/cmdline"
	uuidPath    = "/proc/sys/kernel/random/uuid"
)

// waitSeconds is how long the image may stay in use: until the last process of
// the full tree has ended.
const waitSeconds = 120

// Role reports whether the program was started to return memory, and of which
// image.
func Role(argv []string) (image string, ok bool) {
	if len(argv) == 3 && argv[1] == storageinit.ReturnArgument {
		return argv[2], true
	}
	return "", false
}

// Main runs the role on the booted system.
func Main(sys *storageinit.Linux, image string) {
	_ = sys.OpenLog() // without it the standard error has to do
	sys.Yield()
	Run(sys, image)
}

// Run gives the region of an image back, and says in the kernel log what came of
// it. Nothing depends on its success.
func Run(sys System, image string) {
	if err := run(sys, image); err != nil {
		log(sys, levelWarn, "the image's memory stays reserved: "+err.Error())
	}
	if err := sys.RemoveAll(bootconf.ReturnDir); err != nil {
		log(sys, levelWarn, "remove "+bootconf.ReturnDir+": "+err.Error())
	}
}

func log(sys System, level int, text string) { sys.Log(level, bootconf.LogPrefix+text) }

func run(sys System, image string) error {
	uuid, err := bootconf.ParseUUID(image)
	if err != nil {
		return err
	}
	text, err := sys.ReadFile(memory + "block_size_bytes")
	if err != nil {
		return failed("the kernel has no memory hotplug", err)
	}
	block, err := strconv.ParseInt(strings.TrimSpace(text), 16, 64)
	if err != nil || block <= 0 {
		return errors.New("bad block_size_bytes " + strconv.Quote(text))
	}
	r, err := find(sys, uuid)
	if err != nil {
		return err
	}
	part, ok := r.Returnable(block)
	if !ok {
		return errors.New(r.String() + " holds no whole block of memory behind its first " + mib(bootconf.RegionHead) +
			"; a block is " + mib(block) + ", so it should begin " + mib(bootconf.RegionHead) + " below a multiple of that")
	}
	if err := loadModules(sys); err != nil {
		return err
	}
	device, err := r.toDAX(sys)
	if err != nil {
		return err
	}
	if err := r.toRAM(sys, device); err != nil {
		return err
	}
	return r.online(sys, part, block)
}

// region is one region of persistent memory with the image in it.
type region struct {
	bootconf.Region
	path      string // of its directory in sysfs
	namespace string
}

func (r *region) String() string { return "region " + strings.TrimPrefix(r.Word(), "memmap=") }

func mib(n int64) string { return strconv.FormatInt(n>>20, 10) + " MiB" }

// find waits until the region with the image is no longer in use.
func find(sys System, image bootconf.UUID) (*region, error) {
	cmdline, err := sys.ReadFile(cmdlinePath)
	if err != nil {
		return nil, failed("read the kernel command line", err)
	}
	reserved := bootconf.MemmapRegions(cmdline)
	for waited := 0; ; waited++ {
		r, err := findNow(sys, image, reserved)
		if !errors.Is(err, syscall.EBUSY) || waited == waitSeconds {
			return r, err
		}
		sys.Sleep(1)
	}
}

// findNow looks at each region once. The error is EBUSY if one is in use, which
// may be the one.
func findNow(sys System, image bootconf.UUID, reserved []bootconf.Region) (*region, error) {
	var why []string
	var busy error
	for _, r := range candidates(sys) {
		if !slices.Contains(reserved, r.Region) {
			why = append(why, r.String()+" was not made by the command line")
			continue
		}
		found, err := r.holds(sys, image)
		switch {
		case errors.Is(err, syscall.EBUSY):
			busy = failed(r.String(), err)
		case err != nil:
			why = append(why, r.String()+": "+err.Error())
		case found:
			return r, nil
		default:
			why = append(why, r.String()+" holds something else")
		}
	}
	if busy != nil {
		return nil, busy
	}
	text := "no region of the kernel command line holds the image"
	if len(why) > 0 {
		text += ": " + strings.Join(why, "; ")
	}
	return nil, errors.New(text)
}

// candidates gives the regions of e820 type 12. Those of the firmware are among
// them, as are NVDIMMs that it does not describe in another way.
func candidates(sys System) []*region {
	var list []*region
	for _, bus := range names(sys, ndDevices, "ndbus") {
		provider, err := sys.ReadFile(ndDevices + bus + "/provider")
		if err != nil || strings.TrimSpace(provider) != "e820" {
			continue
		}
		for _, name := range names(sys, ndDevices+bus, "region") {
			r := &region{path: ndDevices + bus + "/" + name}
			var err1, err2 error
			r.Start, err1 = readNumber(sys, r.path+"/resource")
			r.Size, err2 = readNumber(sys, r.path+"/size")
			if err1 == nil && err2 == nil {
				list = append(list, r)
			}
		}
	}
	return list
}

// holds reports whether the region is one disk that nothing uses, with the image
// at its begin.
func (r *region) holds(sys System, image bootconf.UUID) (bool, error) {
	namespaces := names(sys, r.path, "namespace")
	var disks []string
	for _, n := range namespaces {
		disks = append(disks, names(sys, r.path+"/"+n+"/block", "pmem")...)
	}
	if len(namespaces) != 1 || len(disks) != 1 {
		return false, errors.New("it is not a single disk")
	}
	r.namespace = namespaces[0]
	device, err := sys.OpenExclusive("/dev/" + disks[0])
	if err != nil {
		return false, failed("open /dev/"+disks[0], err)
	}
	defer device.Close()
	superblock, err := probe.ReadEROFS(device)
	if err != nil {
		return false, failed("/dev/"+disks[0], err)
	}
	return superblock.UUID == image, nil
}

// loadModules loads what storage-init has carried over.
func loadModules(sys System) error {
	files := names(sys, bootconf.ReturnDir, "") // each begins with its number
	for i := range files {
		number := string(rune('0'+i/10)) + string(rune('0'+i%10)) + "-"
		n := slices.IndexFunc(files, func(name string) bool { return strings.HasPrefix(name, number) })
		if n < 0 {
			return errors.New("no module " + number + " in " + bootconf.ReturnDir)
		}
		path := bootconf.ReturnDir + "/" + files[n]
		if err := sys.LoadModule(path, ""); err != nil && !errors.Is(err, syscall.EEXIST) {
			return failed("load module "+path, err)
		}
	}
	return nil
}

// toDAX makes a device of package dax of the region's namespace, and gives its
// name.
func (r *region) toDAX(sys System) (string, error) {
	seed, err := sys.ReadFile(r.path + "/dax_seed")
	if err != nil {
		return "", failed("the kernel has no NVDIMM_DAX", err)
	}
	seed = strings.TrimSpace(seed)
	if seed == "" {
		return "", errors.New("there is no dax device to make for " + r.String())
	}
	uuid, err := sys.ReadFile(uuidPath)
	if err != nil {
		return "", failed("read "+uuidPath, err)
	}
	dir := r.path + "/" + seed
	for _, w := range []struct{ path, text string }{
		{ndDrivers + "nd_pmem/unbind", r.namespace},
		{dir + "/uuid", strings.TrimSpace(uuid)},
		{dir + "/align", strconv.Itoa(bootconf.RegionHead)},
		{dir + "/mode", "ram"},
		{dir + "/namespace", r.namespace},
		{ndDrivers + "dax_pmem/bind", seed},
	} {
		if err := sys.WriteFile(w.path, w.text); err != nil {
			return "", failed("write "+w.text+" to "+w.path, err)
		}
	}
	devices := names(sys, dir, "dax")
	if len(devices) != 1 {
		return "", errors.New("there is no dax device in " + dir)
	}
	return devices[0], nil
}

// toRAM has the driver of memory take the device, from the one that is for
// processes if udev was faster.
func (r *region) toRAM(sys System, device string) error {
	const kmem, processes = daxDrivers + "kmem", daxDrivers + "device_dax"
	if err := sys.WriteFile(kmem+"/new_id", device); err != nil {
		return failed("write "+device+" to "+kmem+"/new_id", err)
	}
	if slices.Contains(names(sys, kmem, "dax"), device) {
		return nil
	}
	if slices.Contains(names(sys, processes, "dax"), device) {
		if err := sys.WriteFile(processes+"/unbind", device); err != nil {
			return failed("write "+device+" to "+processes+"/unbind", err)
		}
	}
	if err := sys.WriteFile(kmem+"/bind", device); err != nil {
		return failed("write "+device+" to "+kmem+"/bind", err)
	}
	return nil
}

// online puts the blocks of memory to use, unless the kernel or udev has, and
// says how much came back.
func (r *region) online(sys System, part bootconf.Region, block int64) error {
	var back int64
	var first error
	for at := part.Start; at < part.Start+part.Size; at += block {
		state := memory + "memory" + strconv.FormatInt(at/block, 10) + "/state"
		text, err := sys.ReadFile(state)
		if err == nil && strings.TrimSpace(text) != "online" {
			if err = sys.WriteFile(state, "online"); err != nil {
				text, _ = sys.ReadFile(state)
				if strings.TrimSpace(text) == "online" {
					err = nil // meanwhile
				}
			}
		}
		switch {
		case err == nil:
			back += block
		case first == nil:
			first = failed(state, err)
		}
	}
	if back == 0 {
		return first
	}
	level, text := levelInfo, "returned "+kb(back)+" of "+kb(r.Size)+" kB, "+r.String()
	switch {
	case first != nil:
		level, text = levelWarn, text+"; "+first.Error()
	case r.Size-back > bootconf.RegionHead:
		text += "; more would come back of one that begins " + mib(bootconf.RegionHead) + " below a multiple of " + mib(block)
	}
	log(sys, level, text)
	return nil
}

func kb(n int64) string { return strconv.FormatInt(n>>10, 10) }

// names gives the entries of a directory that are a kind of device and a number.
// There are others that begin alike, as namespace_seed.
func names(sys System, dir, kind string) []string {
	list, _ := sys.ReadDir(dir) // what is not there has none
	var devices []string
	for _, name := range list {
		number, ok := strings.CutPrefix(name, kind)
		if ok && number != "" && '0' <= number[0] && number[0] <= '9' {
			devices = append(devices, name)
		}
	}
	return devices
}

func readNumber(sys System, path string) (int64, error) {
	text, err := sys.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(text), 0, 64)
}

// stepError names the operation and its object in front of what went wrong.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func failed(step string, err error) error { return &stepError{step, err} }
