package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
)

// request is a module that the mini-initramfs needs, and the backends for
// which; none means for every boot.
type request struct {
	module string
	uses   []bootconf.Backend
	// onDevice: only on a machine that has a device of this driver
	onDevice bool
	storage  bool // it brings the disk, or the persistent memory
}

// plan collects requests and what the kernel lacks.
type plan struct {
	o        *MiniOptions
	x        *kmod.Index
	config   kernelConfig
	requests []request
	missing  []string
}

// need requests modules; who needs them, the error message says.
func (p *plan) need(who string, uses []bootconf.Backend, modules ...string) {
	p.request(who, request{uses: uses}, modules)
}

// request requests modules as r says.
func (p *plan) request(who string, r request, modules []string) {
	for _, m := range modules {
		if !p.x.Has(m) {
			p.missing = append(p.missing, "module "+m+" for "+who)
			continue
		}
		r := r
		r.module, r.onDevice = m, r.onDevice && len(p.x.DeviceAliases(m)) > 0
		p.requests = append(p.requests, r)
	}
}

// planModules decides which modules the mini-initramfs holds.
func planModules(o *MiniOptions) ([]bootconf.Module, error) {
	p := &plan{o: o, x: o.Modules, config: parseKernelConfig(o.KernelConfig)}
	p.missing = lacking(p.config, p.x, "every boot", bootNeeds)
	if n, ok := formatNeeds[o.Compress]; ok {
		p.missing = append(p.missing, lacking(p.config, p.x, "an archive packed with "+string(o.Compress), []need{n})...)
	}
	if o.ImageCompressed {
		p.missing = append(p.missing, lacking(p.config, p.x, "a compressed image", []need{compressedImageNeed})...)
	}
	var disk, bootfs, pmem []bootconf.Backend
	for _, b := range o.Config.Backends {
		lacks := lacking(p.config, p.x, "backend "+string(b), backendNeeds[b])
		p.missing = append(p.missing, lacks...)
		for _, n := range backendNeeds[b] {
			if n.module != "" && len(lacks) == 0 {
				r := request{uses: []bootconf.Backend{b}, storage: n == pmemNeed}
				p.request("backend "+string(b), r, []string{n.module})
			}
		}
		if b == bootconf.File && p.x.Has(loopNeed.module) {
			// Should the boot filesystem turn out to be the real root,
			// storage-init falls back to ram, which takes a loop device.
			p.need("backend ram", []bootconf.Backend{bootconf.RAM}, loopNeed.module)
		}
		switch {
		case b == bootconf.Block:
			disk = append(disk, b)
		case b.OnBootfs():
			disk, bootfs = append(disk, b), append(bootfs, b)
		case b == bootconf.Pmem || b == bootconf.PmemDAX:
			pmem = append(pmem, b)
		}
	}
	for _, n := range bootNeeds {
		if n.module != "" && p.x.Has(n.module) {
			p.need("every boot", nil, n.module)
		}
	}
	if len(bootfs) > 0 {
		if err := p.filesystem(bootfs); err != nil {
			return nil, err
		}
	}
	if err := p.storage(disk, pmem); err != nil {
		return nil, err
	}
	p.need("every boot as chosen", nil, o.ExtraModules...)
	if err := lacksError(p.x, p.missing); err != nil {
		return nil, err
	}
	return p.modules()
}

// filesystem requests what mounts the boot filesystem. If its type is not
// configured it may be ext4: one for every type that storage-init could find
// would cost half a dozen modules at every boot.
func (p *plan) filesystem(uses []bootconf.Backend) error {
	name := p.o.Config.BootfsType
	if name == "" {
		name = filesystems[0].types[0]
	}
	i := slices.IndexFunc(filesystems, func(f filesystem) bool { return slices.Contains(f.types, name) })
	if i < 0 {
		var known []string
		for _, f := range filesystems {
			known = append(known, f.types...)
		}
		return fmt.Errorf("unknown bootfs type %q; known: %s", name, strings.Join(known, " "))
	}
	fs := filesystems[i]
	who := "a boot filesystem of type " + name
	p.need(who, uses, fs.module)
	if fs.requests != nil {
		p.need(who, uses, fs.requests(p.config, p.x)...)
	}
	return nil
}

// storage requests the drivers below the backends that read a disk and those
// that read persistent memory.
func (p *plan) storage(disk, pmem []bootconf.Backend) error {
	sets, err := chooseSets(p.o.Storage, p.x)
	if err != nil {
		return err
	}
	isPmem := func(s driverSet) bool { return s.pmem }
	if len(pmem) > 0 && !slices.ContainsFunc(sets, isPmem) && !slices.Contains(p.o.Storage, storageNone) {
		memmap, err := chooseSets([]string{"memmap"}, p.x)
		if err != nil {
			return err
		}
		sets = append(sets, memmap...)
	}
	ofKind := map[bool]int{} // sets of each kind
	for _, s := range sets {
		ofKind[s.pmem]++
	}
	for _, s := range sets {
		uses := disk
		if s.pmem {
			uses = pmem
		}
		if len(uses) == 0 {
			continue
		}
		modules, missing := s.drivers(p.x)
		for _, m := range missing {
			p.missing = append(p.missing, m+" for storage "+s.name)
		}
		if len(missing) == 0 {
			// A choice between drivers is made by the machine that boots. The
			// drivers of a single kind of disk are all needed.
			onDevice := ofKind[s.pmem] > 1 || len(s.any) > 1
			p.request("storage "+s.name, request{uses: uses, onDevice: onDevice, storage: true}, modules)
		}
	}
	if len(disk) == 0 {
		return nil
	}
	if p.o.Hostonly {
		modules, err := p.o.hostModules()
		if err != nil {
			return err
		}
		p.request("this machine's boot device", request{uses: disk, storage: true}, modules)
	}
	if !p.o.Hostonly && len(p.o.Storage) == 0 {
		return fmt.Errorf("no storage drivers are chosen for backend %s: --storage is one or more of %s",
			bootconf.FormatBackends(disk, false), strings.Join(StorageNames(), " "))
	}
	if slices.Contains(p.o.Storage, storageAll) && !slices.ContainsFunc(sets, func(s driverSet) bool { return !s.pmem }) {
		p.missing = append(p.missing, "every disk driver for storage all")
	}
	return nil
}

// modules turns the requests into the module list.
func (p *plan) modules() ([]bootconf.Module, error) {
	names := make([]string, len(p.requests))
	for i, r := range p.requests {
		names[i] = r.module
	}
	closure, err := p.x.Closure(skipSoftdep, names...)
	if err != nil {
		return nil, err
	}
	list := make([]bootconf.Module, len(closure))
	for i, m := range closure {
		list[i] = bootconf.Module{
			Uses:       p.uses(m.Requests),
			Path:       modulePath(m.Name),
			CPUFeature: m.CPUFeature,
			CPUWithout: m.CPUWithout,
			Drivers:    p.drivers(m.Requests),
			After:      m.After,
			Options:    p.options(m.Name),
		}
	}
	// Drivers first: a disk takes its time to appear, and what else there is to
	// load can be loaded meanwhile. All below a driver is there for the driver's
	// sake, too, so no module comes before what it needs.
	var first, rest []bootconf.Module
	for i, m := range closure {
		if slices.ContainsFunc(m.Requests, func(r int) bool { return p.requests[r].storage }) {
			first = append(first, list[i])
		} else {
			rest = append(rest, list[i])
		}
	}
	return append(first, rest...), nil
}

func modulePath(name string) string { return "/lib/modules/" + name + ".ko" }

// leastAccelerated is the size of all modules from which on it is worth while to
// load one more. With 46 kB, sha256_ssse3 costs as much to load as the kernel's
// plain code takes for some 100 kB.
const leastAccelerated = 256 << 10

// accelerate puts in front of the modules the one that computes the digest of
// their signatures with the CPU's own instructions. The kernel's plain SHA-256
// takes 54 instructions for a byte, Debian's computes it twice, and it is most of
// what loading signed modules takes. Where the CPU has SHA instructions the
// kernel needs half of what it needs without this module, itself included.
func (o *MiniOptions) accelerate(modules []bootconf.Module) ([]bootconf.Module, error) {
	config := parseKernelConfig(o.KernelConfig)
	if o.StripSignatures || config != nil && config["CONFIG_MODULE_SIG"] != "y" {
		return modules, nil
	}
	var digest string
	sizeBytes := 0
	for _, m := range modules {
		data, err := o.Modules.Read(m.Name())
		if err != nil {
			return nil, fmt.Errorf("mini-initramfs: %w", err)
		}
		if d := kmod.SignatureDigest(data); d != "" {
			digest = d
			sizeBytes += len(data)
		}
	}
	name, features := o.Modules.Accelerator(digest)
	if sizeBytes < leastAccelerated || name == "" ||
		slices.ContainsFunc(modules, func(m bootconf.Module) bool { return m.Name() == name }) {
		return modules, nil
	}
	first, err := o.Modules.Closure(skipSoftdep, name)
	if err != nil {
		return nil, fmt.Errorf("mini-initramfs: %w", err)
	}
	if len(first) > 1 {
		return modules, nil // what it depends on is computed with the plain code
	}
	// It may be of a package that is not installed: the boot is only slower then.
	if _, err := o.Modules.Read(name); errors.Is(err, fs.ErrNotExist) {
		return modules, nil
	}
	list := []bootconf.Module{{Path: modulePath(name), CPUFeature: features, Optional: true}}
	for _, m := range modules {
		m.After = append([]string{name}, m.After...)
		list = append(list, m)
	}
	return list, nil
}

// options are the parameters of a module for storage-init's sake.
func (p *plan) options(module string) string {
	switch {
	case module == "scsi_mod" && p.o.Config.SCSIAddr != "":
		// As a module it does not see the kernel's command line. Without this it
		// would scan all that the host reaches.
		return "scan=manual"
	case module == "loop":
		// A loop device is made when it is asked for. Without this there would
		// be eight from the beginning, each with its memory and its events for
		// udev. 0 is no limit, drivers/block/loop.c.
		return "max_loop=0"
	}
	return ""
}

// uses joins the backends of the requests, in the order of the attempts, of
// which ram may come last unasked.
func (p *plan) uses(requests []int) []bootconf.Backend {
	var uses []bootconf.Backend
	for _, b := range append(slices.Clone(p.o.Config.Backends), bootconf.RAM) {
		for _, i := range requests {
			if len(p.requests[i].uses) == 0 {
				return nil
			}
			if slices.Contains(p.requests[i].uses, b) && !slices.Contains(uses, b) {
				uses = append(uses, b)
			}
		}
	}
	return uses
}

// drivers returns the names of the requested drivers for whose sake alone a
// module is needed, and nil if it is needed always.
func (p *plan) drivers(requests []int) []string {
	var names []string
	for _, i := range requests {
		if !p.requests[i].onDevice {
			return nil
		}
		names = append(names, kmod.Normalize(p.requests[i].module))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// aliases returns what tells storage-init that the machine has a device of a
// driver, for each driver that is not always needed.
func aliases(x *kmod.Index, modules []bootconf.Module) []bootconf.Alias {
	var list []bootconf.Alias
	for _, m := range modules {
		if slices.Contains(m.Drivers, m.Name()) {
			for _, pattern := range x.DeviceAliases(m.Name()) {
				list = append(list, bootconf.Alias{Pattern: pattern, Driver: m.Name()})
			}
		}
	}
	return list
}
