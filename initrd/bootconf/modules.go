package bootconf

import (
	"errors"
	"strconv"
	"strings"
)

// Module is one line of the module list in the mini-initramfs:
//
//	USES PATH [cpu=[!]HHHH,...] [for=DRIVER,...] [after=NAME,...] [optional] [OPTION...]
//
// for example `pmem,pmem-dax /lib/modules/nd_pmem.ko after=libnvdimm`. A module
// comes behind all that it needs, and in that order the list can be loaded one by
// one. Modules of which none is After the other may be loaded at the same time.
type Module struct {
	// Uses has the backends that need the module; empty, written `-`, means
	// that every boot needs it.
	Uses []Backend
	// Path of the unpacked module in the mini-initramfs, absolute.
	Path string
	// CPUFeature is the number of the CPU feature, four hexadecimal digits as
	// in /sys/devices/system/cpu/modalias, without which (with which, if
	// CPUWithout) the module is not to be loaded. Of several, separated by commas,
	// any will do. Empty: no condition.
	CPUFeature string
	CPUWithout bool
	// Drivers are the names of the drivers for whose sake the module is there:
	// itself, or those that depend on it. It is loaded once the machine shows a
	// device of one of them; see Alias. Empty: it is loaded always.
	Drivers []string
	// After are the names of modules further up in the list that must be loaded
	// before, if they are loaded at all.
	After []string
	// Optional says that a boot goes on without the module if the kernel refuses
	// it.
	Optional bool
	// Options are the module's parameters, for finit_module.
	Options string
}

const optional = "optional"

// NeededBy reports whether the module serves b.
func (m *Module) NeededBy(b Backend) bool {
	if len(m.Uses) == 0 {
		return true
	}
	for _, u := range m.Uses {
		if u == b {
			return true
		}
	}
	return false
}

// Name is the module's name as /proc/modules has it.
func (m *Module) Name() string {
	name := m.Path[strings.LastIndexByte(m.Path, '/')+1:]
	name, _, _ = strings.Cut(name, ".")
	return strings.ReplaceAll(name, "-", "_")
}

// String gives the line, without its end.
func (m *Module) String() string {
	var s string
	if len(m.Uses) == 0 {
		s = "-"
	} else {
		s = FormatBackends(m.Uses, false)
	}
	s += " " + m.Path
	if m.CPUFeature != "" {
		s += " cpu="
		if m.CPUWithout {
			s += "!"
		}
		s += m.CPUFeature
	}
	if len(m.Drivers) > 0 {
		s += " for=" + strings.Join(m.Drivers, ",")
	}
	if len(m.After) > 0 {
		s += " after=" + strings.Join(m.After, ",")
	}
	if m.Optional {
		s += " " + optional
	}
	if m.Options != "" {
		s += " " + m.Options
	}
	return s
}

// ParseModules reads a module list. An error names the line.
func ParseModules(text string) ([]Module, error) {
	var list []Module
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		if line == "" {
			continue
		}
		m, err := parseModule(line)
		if err != nil {
			return nil, Problem{n, "", err}
		}
		list = append(list, m)
	}
	return list, nil
}

func parseModule(line string) (Module, error) {
	uses, rest, _ := strings.Cut(line, " ")
	path, rest, _ := strings.Cut(rest, " ")
	var m Module
	if !strings.HasPrefix(path, "/") {
		return m, errors.New("not a module: " + strconv.Quote(line))
	}
	m.Path = path
	if uses != "-" {
		for name := range strings.SplitSeq(uses, ",") {
			b, ok := backendNamed(name)
			if !ok {
				return m, errors.New("module " + path + ": unknown backend " + strconv.Quote(name))
			}
			m.Uses = append(m.Uses, b)
		}
	}
	if cond, ok := strings.CutPrefix(rest, "cpu="); ok {
		cond, rest, _ = strings.Cut(cond, " ")
		m.CPUFeature, m.CPUWithout = strings.CutPrefix(cond, "!")
		for feature := range strings.SplitSeq(m.CPUFeature, ",") {
			if _, err := strconv.ParseUint(feature, 16, 16); err != nil || len(feature) != 4 {
				return m, errors.New("module " + path + ": bad CPU feature " + strconv.Quote(cond))
			}
		}
	}
	if drivers, ok := strings.CutPrefix(rest, "for="); ok {
		drivers, rest, _ = strings.Cut(drivers, " ")
		m.Drivers = strings.Split(drivers, ",")
	}
	if names, ok := strings.CutPrefix(rest, "after="); ok {
		names, rest, _ = strings.Cut(names, " ")
		m.After = strings.Split(names, ",")
	}
	if word, options, _ := strings.Cut(rest, " "); word == optional {
		m.Optional, rest = true, options
	}
	m.Options = rest
	return m, nil
}
