package kmod

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Module is one module that has to be loaded.
type Module struct {
	Name string // as in /proc/modules
	// After are the names of the modules in the list that must be loaded before,
	// sorted.
	After []string
	// CPUFeature is the number of the CPU feature, four hexadecimal digits as
	// in /sys/devices/system/cpu/modalias, without which (with which, if
	// CPUWithout) the module is not wanted. Empty: always wanted.
	CPUFeature string
	CPUWithout bool
	// Requests are the indexes of the requests that need the module, rising.
	Requests []int
}

// Closure returns the modules that must be loaded for the modules in names, in
// an order in which each comes after all that it needs: by the length of the
// longest path of dependencies below it, and then by name. Names may be aliases. What is built in is not listed.
//
// Soft dependencies (pre) count like dependencies, except that one that the
// kernel does not have is passed over, as is one that would close a circle. A
// soft dependency for which skip, if not nil, returns true is passed over too.
//
// Where an alias is served by an accelerated module, which is known by an alias
// for a single CPU feature, and by generic ones, exactly the one that suits the
// CPU is wanted: both are in the list, with opposite conditions. This matters
// beyond speed at boot: libcrc32c, for one, takes the best implementation that
// it finds when it is loaded, and keeps it until the machine is switched off.
//
// The error names every module that is missing; it wraps ErrNotFound.
func (x *Index) Closure(skip func(module, softdep string) bool, names ...string) ([]Module, error) {
	g := graph{x: x, skip: skip, nodes: map[string]*node{}}
	var errs []error
	for i, name := range names {
		wanted, err := x.resolve(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, w := range wanted {
			if err := g.visit(w, i); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return g.sorted()
}

// condition says for which CPUs a module is wanted. The zero condition holds
// for all of them.
type condition struct {
	feature string
	without bool
}

// wanted is a module that something needs, and when.
type wanted struct {
	name string
	cond condition
}

// resolve finds what has to be loaded for a module's name or an alias; nothing,
// if it is built in.
func (x *Index) resolve(name string) ([]wanted, error) {
	if n := Normalize(name); x.modules[n] != nil {
		return []wanted{{name: n}}, nil
	}
	// The name of built-in code comes last, as with modprobe: f2fs has the soft
	// dependency crc32, the algorithm, whereas the built-in crc32 is a library.
	modules, builtin := x.Match(name)
	if len(modules) == 0 && !builtin {
		if x.Builtin(name) {
			return nil, nil
		}
		return nil, fmt.Errorf("kernel %s has no module %s: %w", x.kver, name, ErrNotFound)
	}
	var accelerated, generic []wanted
	for _, m := range modules {
		if len(x.cpuAliases(m)) > 0 {
			accelerated = append(accelerated, wanted{name: m})
		} else {
			generic = append(generic, wanted{name: m})
		}
	}
	if len(accelerated) == 0 {
		if builtin {
			return nil, nil
		}
		return generic, nil
	}
	if feature := x.cpuFeature(accelerated[0].name); len(accelerated) == 1 && feature != "" {
		list := []wanted{{accelerated[0].name, condition{feature, false}}}
		if !builtin {
			for _, w := range generic {
				list = append(list, wanted{w.name, condition{feature, true}})
			}
		}
		return list, nil
	}
	// When to load which of several cannot be said by one feature. The generic
	// code serves every CPU.
	switch {
	case builtin:
		return nil, nil
	case len(generic) > 0:
		return generic, nil
	}
	return accelerated[:1], nil
}

// Accelerator returns the module with a faster version of an algorithm, and the
// CPU features of which any will do for it, as in CPUFeature and separated by
// commas. It is empty where the kernel has no such module, or only one for
// which nothing says what it needs.
func (x *Index) Accelerator(algorithm string) (module, features string) {
	modules, _ := x.Match(algorithm)
	for _, m := range modules {
		var list []string
		for _, pattern := range x.cpuAliases(m) {
			if f := oneFeature.FindStringSubmatch(pattern); f != nil {
				list = append(list, f[1])
			}
		}
		if features, ok := unsaidFeatures[m]; ok && len(list) == 0 {
			list = append(list, features)
		}
		if len(list) > 0 {
			slices.Sort(list)
			return m, strings.Join(slices.Compact(list), ",")
		}
	}
	return "", ""
}

// unsaidFeatures are the CPU features of modules that older kernels have without
// an alias: X86_FEATURE_SSSE3, the least that these look for.
var unsaidFeatures = map[string]string{"sha1_ssse3": "0089", "sha256_ssse3": "0089", "sha512_ssse3": "0089"}

// cpuAliases returns the patterns for CPUs on which the module is useful.
func (x *Index) cpuAliases(module string) []string {
	var list []string
	for _, a := range x.aliases {
		if a.module == module && strings.HasPrefix(a.pattern, "cpu:type:") {
			list = append(list, a.pattern)
		}
	}
	return list
}

// oneFeature matches the alias of any CPU that has one certain feature:
// X86_FEATURE_MATCH and module_cpu_feature_match in the kernel make it.
var oneFeature = regexp.MustCompile(`^cpu:type:[^,:]*(?:,ven\*fam\*mod\*)?:feature:\*,?([0-9A-F]{4}),?\*$`)

// cpuFeature returns the feature that decides over the module, or "" if there
// is not exactly one.
func (x *Index) cpuFeature(module string) string {
	list := x.cpuAliases(module)
	if len(list) != 1 {
		return ""
	}
	m := oneFeature.FindStringSubmatch(list[0])
	if m == nil {
		return ""
	}
	return m[1]
}

// graph collects modules and what each must wait for.
type graph struct {
	x     *Index
	skip  func(module, softdep string) bool
	nodes map[string]*node
}

type node struct {
	name     string
	cond     condition
	requests []int
	after    []string // dependencies; once sorted, soft ones too
	soft     []string
	level    int
	state    int // of the walk that sets the level
}

// visit enters w and all below it for the request. A module that is reached by
// paths of different conditions is wanted always; below a condition, an inner
// one alone counts, which may load a module too many but never one too few.
func (g *graph) visit(w wanted, request int) error {
	e := g.x.modules[w.name]
	if e == nil {
		if g.x.builtin[w.name] {
			return nil
		}
		return fmt.Errorf("kernel %s has no module %s: %w", g.x.kver, w.name, ErrNotFound)
	}
	n := g.nodes[w.name]
	if n == nil {
		n = &node{name: w.name, cond: w.cond}
		g.nodes[w.name] = n
	}
	relaxed := n.cond != w.cond && n.cond != (condition{})
	if relaxed {
		n.cond = condition{}
	}
	if slices.Contains(n.requests, request) && !relaxed {
		return nil
	}
	n.requests = appendNew(n.requests, request)
	for _, dep := range e.deps {
		if err := g.visit(wanted{dep, n.cond}, request); err != nil {
			return fmt.Errorf("module %s: %w", w.name, err)
		}
		n.after = appendNew(n.after, dep)
	}
	for _, soft := range e.soft {
		if g.skip != nil && g.skip(w.name, soft) {
			continue
		}
		list, err := g.x.resolve(soft)
		if err != nil {
			continue // soft: a kernel without it is all right
		}
		for _, dep := range list {
			if dep.cond == (condition{}) {
				dep.cond = n.cond
			}
			if err := g.visit(dep, request); err != nil {
				return fmt.Errorf("module %s: %w", w.name, err)
			}
			n.soft = appendNew(n.soft, dep.name)
		}
	}
	return nil
}

func appendNew[T comparable](list []T, item T) []T {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}

// sorted breaks the circles of soft dependencies and sets the levels.
func (g *graph) sorted() ([]Module, error) {
	names := make([]string, 0, len(g.nodes))
	for name := range g.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := g.checkAfter(g.nodes[name]); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		n := g.nodes[name]
		for _, dep := range n.soft {
			if !g.reaches(dep, name, map[string]bool{}) {
				n.after = appendNew(n.after, dep)
			}
		}
	}
	list := make([]Module, len(names))
	for i, name := range names {
		n := g.nodes[name]
		slices.Sort(n.requests)
		// What is built in is no node.
		n.after = slices.DeleteFunc(n.after, func(dep string) bool { return g.nodes[dep] == nil })
		slices.Sort(n.after)
		list[i] = Module{name, n.after, n.cond.feature, n.cond.without, n.requests}
	}
	slices.SortFunc(list, func(a, b Module) int {
		return cmp.Or(cmp.Compare(g.level(g.nodes[a.Name]), g.level(g.nodes[b.Name])), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// checkAfter finds circles of real dependencies. The kernel's build makes none,
// so there is no order to be found in one.
func (g *graph) checkAfter(n *node) error {
	const walking, walked = 1, 2
	if n == nil || n.state == walked {
		return nil
	}
	if n.state == walking {
		return fmt.Errorf("modules.dep of kernel %s: module %s depends on itself", g.x.kver, n.name)
	}
	n.state = walking
	for _, dep := range n.after {
		if err := g.checkAfter(g.nodes[dep]); err != nil {
			return err
		}
	}
	n.state = walked
	return nil
}

// reaches reports whether from needs to. Built-in modules are no nodes.
func (g *graph) reaches(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	n := g.nodes[from]
	if n == nil || seen[from] {
		return false
	}
	seen[from] = true
	return slices.ContainsFunc(n.after, func(dep string) bool { return g.reaches(dep, to, seen) })
}

// level sets and returns the node's level; the circles are broken by now.
func (g *graph) level(n *node) int {
	if n.level > 0 {
		return n.level - 1
	}
	for _, dep := range n.after {
		if d := g.nodes[dep]; d != nil {
			n.level = max(n.level, g.level(d)+1)
		}
	}
	n.level++ // stored one too high, so that 0 means not known yet
	return n.level - 1
}
