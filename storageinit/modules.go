package storageinit

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// loadPending loads what a backend needs and has not been loaded.
//
// That the hardware of a driver is absent (ENODEV) is no failure: some drivers
// find out only by themselves.
func (b *boot) loadPending(backend bootconf.Backend) error {
	var pending []*bootconf.Module
	for i := range b.modules.list {
		m := &b.modules.list[i]
		switch {
		case !m.NeededBy(backend) || b.modules.done[m.Path] || !b.hasDevice(m):
		case b.wanted(m):
			pending = append(pending, m)
		default:
			b.modules.done[m.Path] = true
		}
	}
	if len(pending) == 0 {
		return nil
	}
	return b.load(pending)
}

// hasDevice reports whether the machine has a device for which the module is
// in the mini-initramfs.
func (b *boot) hasDevice(m *bootconf.Module) bool {
	return len(m.Drivers) == 0 || slices.ContainsFunc(m.Drivers, func(driver string) bool {
		return b.modules.present[driver]
	})
}

// load loads modules: each as soon as those are loaded that it needs, where the
// machine has more than one CPU, and else one by one. After a failure nothing
// more is begun.
func (b *boot) load(modules []*bootconf.Module) error {
	results := make([]error, len(modules))
	var stop atomic.Bool
	load := func(i int) {
		m := modules[i]
		if stop.Load() {
			results[i] = errNotBegun
			return
		}
		results[i] = b.protect(func() error { return b.sys.LoadModule(m.Path, b.moduleOptions(m)) })
		if !passes(m, results[i]) {
			stop.Store(true)
		}
	}
	if len(modules) > 1 && b.sys.CPUs() > 1 {
		loadTogether(modules, load)
	} else {
		for i := range modules {
			load(i)
		}
	}
	return b.noteLoaded(modules, results)
}

// loadTogether calls load for each module, beside each other as far as their
// dependencies allow.
func loadTogether(modules []*bootconf.Module, load func(i int)) {
	finished := make([]chan struct{}, len(modules))
	for i := range modules {
		finished[i] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for i, m := range modules {
		wg.Go(func() {
			defer close(finished[i])
			// Only what comes before it in the list, so that no list makes two
			// modules wait for each other.
			for j, other := range modules[:i] {
				if slices.Contains(m.After, other.Name()) {
					<-finished[j]
				}
			}
			load(i)
		})
	}
	wg.Wait()
}

// errNotBegun is the result of a module that came behind a failure.
var errNotBegun = errors.New("not begun")

// passes reports whether a boot goes on with that result of loading a module.
func passes(m *bootconf.Module, err error) bool {
	return err == nil || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENODEV) || m.Optional && !errors.Is(err, errNotBegun)
}

// noteLoaded notes what became of modules, in the order of the list, and gives
// the first failure.
func (b *boot) noteLoaded(modules []*bootconf.Module, results []error) error {
	var first error
	for i, err := range results {
		m := modules[i]
		if !passes(m, err) {
			if first == nil && !errors.Is(err, errNotBegun) {
				first = failed("load module "+m.Path, err)
			}
			continue
		}
		b.modules.done[m.Path] = true
		switch {
		case err == nil:
			b.modules.loaded = append(b.modules.loaded, m.Name())
		case errors.Is(err, syscall.EEXIST):
		case errors.Is(err, syscall.ENODEV):
			b.log(levelInfo, "module "+m.Name()+": no such hardware")
		default:
			b.log(levelWarn, "module "+m.Name()+": "+err.Error())
		}
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
