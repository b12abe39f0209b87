// Package kmod reads a kernel's module directory and answers what has to be
// loaded, in which order, for some modules to work.
//
// It reads what depmod and the kernel's build left there: modules.dep,
// modules.softdep, modules.alias, modules.builtin and modules.builtin.modinfo
// (modules.dep(5); Documentation/kbuild/kbuild.rst). The configuration of the
// building machine, /etc/modprobe.d, is not read: what is built for a kernel
// depends on that kernel alone.
package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// ErrNotFound is wrapped by every error about a kernel that has no such module.
var ErrNotFound = errors.New("no such module")

// Index is what is known about the modules of one kernel.
type Index struct {
	dir  string
	kver string

	modules  map[string]*entry // by normalised name
	builtin  map[string]bool   // by normalised name
	aliases  []alias           // in the order of the file
	builtins []alias           // aliases of what is built in
}

// entry is one module that is a file.
type entry struct {
	path string   // below dir, or absolute where modules.dep says so
	deps []string // normalised names
	soft []string // the names and aliases of "softdep NAME pre: ..."
}

type alias struct {
	pattern string // normalised
	raw     string // as the file has it
	module  string
}

// Open reads the index of the kernel kver, whose module directory dir is
// usually /lib/modules/KVER. Only modules.dep must be there.
func Open(dir, kver string) (*Index, error) {
	x := &Index{dir: dir, kver: kver, modules: map[string]*entry{}, builtin: map[string]bool{}}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("kernel %s has no module directory %s%s", kver, dir, others(dir))
	}
	for _, file := range []struct {
		name string
		read func(line string) error
	}{
		{"modules.dep", x.readDep},
		{"modules.softdep", x.readSoftdep},
		{"modules.alias", x.readAlias},
		{"modules.builtin", x.readBuiltin},
	} {
		data, err := os.ReadFile(filepath.Join(dir, file.name))
		if errors.Is(err, fs.ErrNotExist) {
			if file.name == "modules.dep" {
				return nil, fmt.Errorf("kernel %s has no %s in %s; depmod %s makes it", kver, file.name, dir, kver)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("module index of kernel %s: %w", kver, err)
		}
		n := 0
		for line := range strings.Lines(string(data)) {
			n++
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if err := file.read(line); err != nil {
				return nil, fmt.Errorf("%s of kernel %s: line %d: %w", file.name, kver, n, err)
			}
		}
	}
	return x, x.readBuiltinModinfo()
}

// others names the kernels that are beside dir, for an error message.
func others(dir string) string {
	siblings, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*", "modules.dep"))
	if len(siblings) == 0 {
		return ""
	}
	for i, s := range siblings {
		siblings[i] = filepath.Base(filepath.Dir(s))
	}
	return " (there are " + strings.Join(siblings, ", ") + ")"
}

// readDep reads "PATH: PATH...". Old distributions have absolute paths.
func (x *Index) readDep(line string) error {
	file, deps, ok := strings.Cut(line, ":")
	if !ok || file == "" {
		return fmt.Errorf("not a dependency: %q", line)
	}
	for _, prefix := range []string{"/lib/modules/", "/usr/lib/modules/"} {
		file = strings.TrimPrefix(file, prefix+x.kver+"/")
	}
	if slices.Contains(strings.Split(file, "/"), "..") {
		return fmt.Errorf("path leaves the module directory: %q", file)
	}
	e := &entry{path: file}
	for _, dep := range strings.Fields(deps) {
		e.deps = append(e.deps, nameOf(dep))
	}
	x.modules[nameOf(file)] = e
	return nil
}

// readSoftdep reads "softdep NAME [pre: NAME...] [post: NAME...]". A module may
// have several lines. What is wanted after a module (post) cannot be needed to
// mount anything, and is left to the full tree; so are names without pre or
// post, which modprobe ignores too.
func (x *Index) readSoftdep(line string) error {
	f := strings.Fields(line)
	if f[0] != "softdep" || len(f) < 2 {
		return fmt.Errorf("not a soft dependency: %q", line)
	}
	e := x.modules[Normalize(f[1])]
	if e == nil {
		return nil
	}
	pre := false
	for _, word := range f[2:] {
		switch word {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				e.soft = append(e.soft, word)
			}
		}
	}
	return nil
}

// readAlias reads "alias PATTERN NAME".
func (x *Index) readAlias(line string) error {
	// A pattern may have spaces in it (dmi: and of: names), the name has none.
	pattern, ok := strings.CutPrefix(line, "alias ")
	i := strings.LastIndexByte(pattern, ' ')
	if !ok || i < 0 {
		return fmt.Errorf("not an alias: %q", line)
	}
	x.aliases = append(x.aliases, alias{Normalize(pattern[:i]), pattern[:i], Normalize(pattern[i+1:])})
	return nil
}

func (x *Index) readBuiltin(line string) error {
	x.builtin[nameOf(line)] = true
	return nil
}

// readBuiltinModinfo reads the aliases of what is built in. The file is a row
// of "NAME.KEY=VALUE" strings, each ended by NUL. It also names code that
// cannot be a module and therefore is not in modules.builtin.
func (x *Index) readBuiltinModinfo() error {
	data, err := os.ReadFile(filepath.Join(x.dir, "modules.builtin.modinfo"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // kernels before 5.2
	}
	if err != nil {
		return fmt.Errorf("module index of kernel %s: %w", x.kver, err)
	}
	for s := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(s, "=")
		if name, ok := strings.CutSuffix(key, ".alias"); ok {
			x.builtins = append(x.builtins, alias{Normalize(value), value, Normalize(name)})
		}
	}
	return nil
}

// KernelVersion is the version that the index was opened for.
func (x *Index) KernelVersion() string { return x.kver }

// Has reports whether the kernel has name, as a module, as an alias of one, or
// built in.
func (x *Index) Has(name string) bool {
	_, err := x.resolve(name)
	return err == nil
}

// Builtin reports whether name, which is no alias, is built into the kernel.
func (x *Index) Builtin(name string) bool { return x.builtin[Normalize(name)] }

// Match returns the modules that claim a device by its modalias, or serve an
// alias such as crypto-crc32c, in the order of modules.alias; builtin reports
// whether something in the kernel itself does.
func (x *Index) Match(modalias string) (modules []string, builtin bool) {
	modalias = Normalize(modalias)
	for _, a := range x.aliases {
		if x.modules[a.module] != nil && bootconf.MatchAlias(a.pattern, modalias) && !slices.Contains(modules, a.module) {
			modules = append(modules, a.module)
		}
	}
	builtin = slices.ContainsFunc(x.builtins, func(a alias) bool { return bootconf.MatchAlias(a.pattern, modalias) })
	return modules, builtin
}

// DeviceAliases returns the patterns for the modaliases of the devices that a
// module drives, in the order of modules.alias and as it has them, so that they
// fit a modalias as sysfs has it. Aliases of another sort, as those for a
// filesystem's name or a CPU's features, have no bus. One with a blank in it,
// which no disk's has, is passed over.
func (x *Index) DeviceAliases(module string) []string {
	var list []string
	module = Normalize(module)
	for _, a := range x.aliases {
		bus, _, ok := strings.Cut(a.raw, ":")
		if a.module == module && ok && bus != "cpu" && !strings.Contains(a.raw, " ") {
			list = append(list, a.raw)
		}
	}
	return list
}

// Normalize writes a module's name or alias as the kernel has it in
// /proc/modules: '-' becomes '_', except in a bracket expression of a pattern.
func Normalize(name string) string {
	if !strings.Contains(name, "-") {
		return name
	}
	b := []byte(name)
	bracket := false
	for i, c := range b {
		switch {
		case c == '[':
			bracket = true
		case c == ']':
			bracket = false
		case c == '-' && !bracket:
			b[i] = '_'
		}
	}
	return string(b)
}

// nameOf is the name of the module in file, which ends with .ko, .ko.xz, ...
func nameOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return Normalize(name)
}
