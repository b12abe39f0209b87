package bench

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"initoverlayfs/vmtest"
)

// Conditions is what two scenarios must have in common to be compared.
type Conditions struct {
	Set       string
	X         float64
	Label     string
	Clock     Clock
	KernelSHA string
	CPUs      int
	MemoryMiB int
	Storage   string
	Firmware  bool
	Memory    bool
}

// Conditions gives those of the scenario.
func (s *Scenario) Conditions() Conditions {
	return Conditions{s.Set, s.X, s.Label, s.Clock, s.KernelSHA, s.CPUs, s.MemoryMiB, s.Storage, s.Firmware, s.Memory}
}

// conditionNames has the members of Conditions as messages name them.
var conditionNames = map[string]string{
	"Set": "set", "X": "point of the sweep", "Label": "label of the point", "Clock": "clock", "KernelSHA": "kernel",
	"CPUs": "number of CPUs", "MemoryMiB": "memory in MiB", "Storage": "storage", "Firmware": "firmware", "Memory": "memory probe",
}

// Comparable says why a and b must not be compared, nil if they may. Points of a
// sweep are compared where the sweep has the same value for both.
func Comparable(_ *Results, a, b *Scenario) error {
	x, y := reflect.ValueOf(a.Conditions()), reflect.ValueOf(b.Conditions())
	for i := range x.NumField() {
		u, v := x.Field(i).Interface(), y.Field(i).Interface()
		if u == v {
			continue
		}
		name := conditionNames[x.Type().Field(i).Name]
		if x.Type().Field(i).Name == "KernelSHA" {
			u, v = kernelName(a), kernelName(b)
		}
		return fmt.Errorf("%q and %q cannot be compared: %s %v and %v", a.Name, b.Name, name, u, v)
	}
	return nil
}

// kernelName tells kernels of one version apart by the digest of the file.
func kernelName(s *Scenario) string {
	version := s.Kernel
	if version == "" {
		version = "of unknown version"
	}
	return fmt.Sprintf("%s (%.12s)", version, s.KernelSHA)
}

// Group is scenarios that belong side by side.
type Group struct {
	// Scenarios may all be compared with each other. Others are shown beside
	// them, without a ratio.
	Scenarios []*Scenario
	Others    []*Scenario
}

// All gives both, in the order of the run.
func (g Group) All(r *Results) []*Scenario {
	all := slices.Concat(g.Scenarios, g.Others)
	slices.SortStableFunc(all, func(a, b *Scenario) int { return r.position(a) - r.position(b) })
	return all
}

// position is where the run has the scenario.
func (r *Results) position(s *Scenario) int {
	return slices.IndexFunc(r.Scenarios, func(t Scenario) bool { return t.Name == s.Name })
}

// Groups sorts scenarios by their conditions. A given one that nothing else has
// the conditions of is shown beside the first group of its set and clock.
func (r *Results) Groups(scenarios []*Scenario) []Group {
	var groups []Group
	var alone []*Scenario
	place := func(s *Scenario) bool {
		i := slices.IndexFunc(groups, func(g Group) bool { return g.Scenarios[0].Conditions() == s.Conditions() })
		if i >= 0 {
			groups[i].Scenarios = append(groups[i].Scenarios, s)
		}
		return i >= 0
	}
	for _, s := range scenarios {
		if s.Kind != Given && !place(s) {
			groups = append(groups, Group{Scenarios: []*Scenario{s}})
		}
	}
	for _, s := range scenarios {
		if s.Kind == Given && !place(s) {
			alone = append(alone, s)
		}
	}
	for _, s := range alone {
		i := slices.IndexFunc(groups, func(g Group) bool {
			t := g.Scenarios[0]
			return t.Set == s.Set && t.X == s.X && t.Label == s.Label && t.Clock == s.Clock && t.Memory == s.Memory
		})
		if i >= 0 {
			groups[i].Others = append(groups[i].Others, s)
		} else {
			groups = append(groups, Group{Scenarios: []*Scenario{s}})
		}
	}
	return groups
}

// Check finds what no run writes: with it no statistics can be made.
func (r *Results) Check() error {
	scenarios := map[string]*Scenario{}
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		if scenarios[s.Name] != nil {
			return fmt.Errorf("two scenarios are called %q", s.Name)
		}
		scenarios[s.Name] = s
	}
	type turn struct {
		scenario string
		round    int
	}
	turns := map[turn]bool{}
	for i := range r.Boots {
		b := &r.Boots[i]
		s := scenarios[b.Scenario]
		if s == nil {
			return fmt.Errorf("boot %d is of %q, which is no scenario of the run", i, b.Scenario)
		}
		t := turn{b.Scenario, b.Round}
		if turns[t] {
			return fmt.Errorf("%q was booted twice in round %d", b.Scenario, b.Round)
		}
		turns[t] = true
		for _, at := range s.Expect {
			if _, ok := b.Times[at]; b.OK && !ok {
				return fmt.Errorf("%q, round %d: the boot counts as good without %s", b.Scenario, b.Round, at)
			}
		}
		if _, failed := b.Times[vmtest.Failed]; b.OK && failed {
			return fmt.Errorf("%q, round %d: the boot counts as good with %s", b.Scenario, b.Round, vmtest.Failed)
		}
	}
	for _, search := range r.Searches {
		if scenarios[search.Scenario] == nil {
			return fmt.Errorf("a search for the smallest memory is of %q, which is no scenario of the run", search.Scenario)
		}
	}
	return nil
}

// Merge joins runs into one. They must have been made on one and the same host,
// by the same version of the program, and scenarios of a name must be the same; an
// error counts the runs from 1. Rounds go on counting from run to run: boots of
// different runs are no pairs.
func Merge(runs ...*Results) (*Results, error) {
	if len(runs) == 0 {
		return nil, errors.New("no results to join")
	}
	merged := &Results{Format: Format, Host: runs[0].Host, Started: runs[0].Started, Tool: runs[0].Tool, Complete: true}
	rounds := 0
	var why []string
	for i, r := range runs {
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("results %d: %w", i+1, err)
		}
		// The memory that a kernel finds differs a little from boot to boot of it.
		host := r.Host
		host.Memory = merged.Host.Memory
		if err := differs("host: ", merged.Host, host); err != nil {
			return nil, fmt.Errorf("results 1 and %d: %w", i+1, err)
		}
		if r.Tool != merged.Tool {
			return nil, fmt.Errorf("results 1 and %d: tool: %q and %q", i+1, merged.Tool, r.Tool)
		}
		for _, s := range r.Scenarios {
			if have := merged.Scenario(s.Name); have == nil {
				merged.Scenarios = append(merged.Scenarios, s)
			} else if err := differs(fmt.Sprintf("scenario %q: ", s.Name), *have, s); err != nil {
				return nil, fmt.Errorf("results %d: %w", i+1, err)
			}
		}
		next := rounds
		for _, b := range r.Boots {
			b.Round += rounds
			next = max(next, b.Round)
			merged.Boots = append(merged.Boots, b)
		}
		rounds = next
		for _, search := range r.Searches {
			i := slices.IndexFunc(merged.Searches, func(s MemorySearch) bool { return s.Scenario == search.Scenario })
			if i >= 0 {
				merged.Searches[i] = joinSearches(merged.Searches[i], search)
				continue
			}
			merged.Searches = append(merged.Searches, search)
		}
		for name, reason := range r.LeftOut {
			if merged.LeftOut == nil {
				merged.LeftOut = map[string]string{}
			}
			merged.LeftOut[name] = reason
		}
		merged.Started = min(merged.Started, r.Started)
		merged.Updated = max(merged.Updated, r.Updated)
		merged.Complete = merged.Complete && r.Complete
		if r.Why != "" {
			why = append(why, r.Why)
		}
	}
	// What one run left out and another one has is not left out.
	maps.DeleteFunc(merged.LeftOut, func(name, _ string) bool { return merged.Scenario(name) != nil })
	merged.Why = strings.Join(why, "; ")
	return merged, nil
}

// joinSearches believes the search that asks for more memory.
func joinSearches(a, b MemorySearch) MemorySearch {
	return MemorySearch{
		Scenario: a.Scenario,
		FailsMiB: max(a.FailsMiB, b.FailsMiB),
		BootsMiB: max(a.BootsMiB, b.BootsMiB),
		Tries:    slices.Concat(a.Tries, b.Tries),
		Done:     a.Done && b.Done,
	}
}

// differs names the first member in which two structures of a type differ, as
// results.json calls it, with both values.
func differs(what string, a, b any) error {
	field, u, v, ok := firstDifference(a, b)
	if !ok {
		return nil
	}
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return fmt.Errorf("%s%s: %#v and %#v", what, name, u, v)
}

// firstDifference finds the first field in which two structs of a type differ.
func firstDifference(a, b any) (field reflect.StructField, u, v any, ok bool) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if u, v := x.Field(i).Interface(), y.Field(i).Interface(); !reflect.DeepEqual(u, v) {
			return x.Type().Field(i), u, v, true
		}
	}
	return field, nil, nil, false
}
