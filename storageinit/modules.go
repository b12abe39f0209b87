package storageinit

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"

	"initoverlayfs/initrd/bootconf"
)

// moduleSet is the module list and what became of it.
type moduleSet struct {
	list    []bootconf.Module
	aliases []bootconf.Alias
	present map[string]bool // drivers of which the machine has shown a device
	done    map[string]bool // by path: loaded, or not needed on this machine
	loaded  []string        // names, in load order, for the record
}

// loadModules loads what a backend needs on this machine. A driver may bring the
// bus on which the next one finds its device, as virtio_pci does for
// virtio_blk, so it looks again until nothing is new; what comes later than
// that comes with an event.
func (b *boot) loadModules(backend bootconf.Backend) error {
	if b.modules.done == nil {
		b.modules.done = make(map[string]bool)
		b.modules.present = make(map[string]bool)
		b.lookForDevices()
	}
	for {
		if err := b.loadPending(backend); err != nil {
			return err
		}
		if !b.lookForDevices() {
			return nil
		}
	}
}

// lookForDevices goes through the devices on the buses of our drivers, and
// reports whether one of a further driver is among them.
func (b *boot) lookForDevices() bool {
	var buses []string
	found := false
	for i := range b.modules.aliases {
		a := &b.modules.aliases[i]
		bus := a.Bus()
		if b.modules.present[a.Driver] || slices.Contains(buses, bus) {
			continue
		}
		buses = append(buses, bus)
		dir := "/sys/bus/" + bus + "/devices"
		names, _ := b.sys.ReadDir(dir) // no such bus, no such device
		for _, name := range names {
			modalias, err := b.sys.ReadFile(dir + "/" + name + "/modalias")
			if err == nil && b.deviceAppeared(strings.TrimSpace(modalias)) {
				found = true
			}
		}
	}
	return found
}

// deviceAppeared reports whether a device is the first one of a driver.
func (b *boot) deviceAppeared(modalias string) bool {
	found := false
	for i := range b.modules.aliases {
		a := &b.modules.aliases[i]
		if !b.modules.present[a.Driver] && bootconf.MatchAlias(a.Pattern, modalias) {
			b.modules.present[a.Driver] = true
			found = true
		}
	}
	return found
}

// loadPending loads what a backend needs, and has not been loaded, level by
// level; a level's modules do not depend on each other and are loaded side by
// side where the machine has more than one CPU.
//
// That the hardware of a driver is absent (ENODEV) is no failure: some drivers
// find out only by themselves.
func (b *boot) loadPending(backend bootconf.Backend) error {
	var pending []*bootconf.Module
	for i := range b.modules.list {
		m := &b.modules.list[i]
		if m.NeededBy(backend) && !b.modules.done[m.Path] && b.hasDevice(m) {
			pending = append(pending, m)
		}
	}
	for len(pending) > 0 {
		level := lowestLevel(pending)
		var group, rest []*bootconf.Module
		for _, m := range pending {
			switch {
			case m.Level != level:
				rest = append(rest, m)
			case b.wanted(m):
				group = append(group, m)
			default:
				b.modules.done[m.Path] = true
			}
		}
		if err := b.loadLevel(group); err != nil {
			return err
		}
		pending = rest
	}
	return nil
}

// hasDevice reports whether the machine has a device for which the module is
// in the mini-initramfs.
func (b *boot) hasDevice(m *bootconf.Module) bool {
	return len(m.Drivers) == 0 || slices.ContainsFunc(m.Drivers, func(driver string) bool {
		return b.modules.present[driver]
	})
}

func lowestLevel(modules []*bootconf.Module) int {
	level := modules[0].Level
	for _, m := range modules {
		level = min(level, m.Level)
	}
	return level
}

func (b *boot) loadLevel(group []*bootconf.Module) error {
	results := make([]error, len(group))
	load := func(i int) {
		results[i] = b.protect(func() error {
			return b.sys.LoadModule(group[i].Path, b.moduleOptions(group[i]))
		})
	}
	if len(group) > 1 && b.sys.CPUs() > 1 {
		var wg sync.WaitGroup
		for i := range group {
			wg.Go(func() { load(i) })
		}
		wg.Wait()
	} else {
		for i := range group {
			load(i)
		}
	}
	var first error
	for i, err := range results {
		m := group[i]
		switch {
		case err == nil:
			b.modules.loaded = append(b.modules.loaded, m.Name())
		case errors.Is(err, syscall.EEXIST):
		case errors.Is(err, syscall.ENODEV):
			b.log(levelInfo, "module "+m.Name()+": no such hardware")
		case m.Optional:
			b.log(levelWarn, "module "+m.Name()+": "+err.Error())
		default:
			if first == nil {
				first = failed("load module "+m.Path, err)
			}
			continue
		}
		b.modules.done[m.Path] = true
	}
	return first
}

// wanted decides the conditions under which a module is left out: the CPU lacks
// (or has) a feature, or the command line forbids the module.
func (b *boot) wanted(m *bootconf.Module) bool {
	if m.CPUFeature != "" {
		alias, err := b.sys.ReadFile("/sys/devices/system/cpu/modalias")
		// Without the file, as on a kernel without CPU autoprobing, the
		// generic module is the one that works.
		has := err == nil && hasFeature(strings.TrimSpace(alias)+",", m.CPUFeature)
		if has == m.CPUWithout {
			return false
		}
	}
	for word := range bootconf.Words(b.cmdline) {
		if list, ok := strings.CutPrefix(word, "modprobe.blacklist="); ok {
			for name := range strings.SplitSeq(list, ",") {
				if underscored(name) == m.Name() {
					b.log(levelWarn, "module "+m.Name()+": left out by modprobe.blacklist")
					return false
				}
			}
		}
	}
	return true
}

// hasFeature reports whether any of the features, separated by commas, is in a
// CPU's modalias.
func hasFeature(alias, features string) bool {
	for f := range strings.SplitSeq(features, ",") {
		if strings.Contains(alias, ","+f+",") {
			return true
		}
	}
	return false
}

// moduleOptions adds the command line's NAME.PARAMETER=VALUE to the options of
// a module. The kernel applies them by itself only to what is built in.
func (b *boot) moduleOptions(m *bootconf.Module) string {
	options := m.Options
	for word := range bootconf.Words(b.cmdline) {
		name, parameter, ok := strings.Cut(word, ".")
		if !ok || underscored(name) != m.Name() {
			continue
		}
		if key, value, ok := strings.Cut(parameter, "="); ok && strings.ContainsAny(value, " \t") {
			parameter = key + `="` + value + `"`
		}
		if options != "" {
			options += " "
		}
		options += parameter
	}
	return options
}

func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }
