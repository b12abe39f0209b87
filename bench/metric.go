package bench

import (
	"maps"
	"math"
	"slices"
	"strings"

	"initoverlayfs/vmtest"
)

// Unit is what a metric is counted in.
type Unit string

// The units.
const (
	Seconds       Unit = "s"
	Gigainstr     Unit = "G instructions" // billions
	Milliseconds  Unit = "ms"
	Megainstr     Unit = "M instructions"
	Bytes         Unit = "bytes"
	Kilobytes     Unit = "kB" // of 1024 bytes, as /proc/meminfo has it
	DiskRequests  Unit = "requests"
	PageFaultUnit Unit = "faults"
)

// Metric is one figure of a boot. The zero Metric has no values.
type Metric struct {
	Name  string // identifies the metric: "guest multi_user_s"
	Title string // for people: "multi-user.target"
	Unit  Unit
	// LowerIsBetter says which way is a gain.
	LowerIsBetter bool
	// Timed says that the figure is a time, or work done until some moment: what
	// a probe in the tree disturbs.
	Timed bool

	value func(*Boot) (float64, bool)
}

// Value gives the figure of b. A boot that failed has none, whatever was noted
// before it did: this is the one place that decides what statistics may see.
func (m Metric) Value(b *Boot) (float64, bool) {
	if !b.OK || m.value == nil {
		return 0, false
	}
	v, ok := m.value(b)
	if !ok || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, false
	}
	return v, true
}

// milestones are those of which the package knows where they lie in a boot.
var milestones = []struct {
	at    vmtest.Milestone
	title string
}{
	{vmtest.KernelStart, "kernel starts"},
	{vmtest.KernelToInit, "Run /init"},
	{vmtest.HandedOver, "handover"},
	{vmtest.InitfsInit, "first init message"},
	{vmtest.SwitchRoot, "switch root"},
	{vmtest.MultiUser, "multi-user.target"},
}

// Milestones gives the milestones that good boots among these have, in the order
// of a boot; those that this package does not know come last, by name.
func Milestones(boots []*Boot, times func(*Boot) map[vmtest.Milestone]float64) []vmtest.Milestone {
	seen := map[vmtest.Milestone]bool{}
	for _, b := range boots {
		if b.OK {
			for at := range times(b) {
				seen[at] = true
			}
		}
	}
	var list []vmtest.Milestone
	for _, m := range milestones {
		if seen[m.at] {
			list = append(list, m.at)
		}
		delete(seen, m.at)
	}
	delete(seen, vmtest.Failed)
	return append(list, slices.Sorted(maps.Keys(seen))...)
}

// MilestoneTitle names a milestone for people.
func MilestoneTitle(at vmtest.Milestone) string {
	for _, m := range milestones {
		if m.at == at {
			return m.title
		}
	}
	return strings.ReplaceAll(strings.TrimSuffix(string(at), "_s"), "_", " ")
}

// GuestTime is when a milestone was reached on the guest's clock: since the
// kernel started, in the unit of the scenario's clock.
func GuestTime(at vmtest.Milestone, clock Clock) Metric {
	unit := Seconds
	if clock == Instructions {
		unit = Gigainstr
	}
	return Metric{"guest " + string(at), MilestoneTitle(at), unit, true, true,
		func(b *Boot) (float64, bool) { v, ok := b.Times[at]; return v, ok }}
}

// HostTime is when a milestone was reached on the host's clock: since the
// machine was switched on.
func HostTime(at vmtest.Milestone) Metric {
	return Metric{"host " + string(at), MilestoneTitle(at) + " from power-on", Seconds, true, true,
		func(b *Boot) (float64, bool) { v, ok := b.HostTimes[at]; return v, ok }}
}

// ReadBytes is what was read from a disk until a milestone, or until "end".
func ReadBytes(disk, at string) Metric {
	return Metric{"read " + disk + " " + at, "read from disk " + disk, Bytes, true, true,
		func(b *Boot) (float64, bool) { d, ok := b.Disks[disk][at]; return float64(d.Bytes), ok }}
}

// ReadRequests is how many requests that took.
func ReadRequests(disk, at string) Metric {
	return Metric{"requests " + disk + " " + at, "requests to disk " + disk, DiskRequests, true, true,
		func(b *Boot) (float64, bool) { d, ok := b.Disks[disk][at]; return float64(d.Requests), ok }}
}

// PhaseName is the name under which a phase is shown: what storage-init did for
// some backend counts as one phase, whichever backend it was.
func PhaseName(name string) string {
	word, _, _ := strings.Cut(name, " ")
	return word
}

// PhaseTime is how long storage-init took for the phases of a name.
func PhaseTime(name string, clock Clock) Metric {
	unit := Milliseconds
	if clock == Instructions {
		unit = Megainstr // one nanosecond of the guest is one instruction
	}
	return Metric{"phase " + name, name, unit, true, true, func(b *Boot) (float64, bool) {
		var us int64
		found := false
		for _, p := range b.Phases {
			if PhaseName(p.Name) == name {
				us += p.EndUS - p.StartUS
				found = true
			}
		}
		return float64(us) / 1000, found
	}}
}

// PhasesTime is how long all of storage-init's phases took.
func PhasesTime(clock Clock) Metric {
	m := PhaseTime("", clock)
	m.Name, m.Title = "phases", "all phases"
	m.value = func(b *Boot) (float64, bool) {
		var us int64
		for _, p := range b.Phases {
			us += p.EndUS - p.StartUS
		}
		return float64(us) / 1000, len(b.Phases) > 0
	}
	return m
}

// The figures of memory at multi-user.target. A count of 0 was not taken.
var (
	// MemUsed is what the machine has and nothing can use: how two boots are
	// compared, since one for an image in memory has a larger machine.
	MemUsed = Metric{"mem_used", "memory taken at multi-user", Kilobytes, true, false,
		func(b *Boot) (float64, bool) {
			return float64(b.PhysicalKB - b.MemUsableKB), b.PhysicalKB > 0 && b.MemUsableKB > 0
		}}
	MemAvailable = Metric{"mem_available", "available memory at multi-user", Kilobytes, false, false,
		func(b *Boot) (float64, bool) { return float64(b.MemAvailableKB), b.MemAvailableKB > 0 }}
	MemUsable = Metric{"mem_usable", "usable memory at multi-user", Kilobytes, false, false,
		func(b *Boot) (float64, bool) { return float64(b.MemUsableKB), b.MemUsableKB > 0 }}
	MemTotal = Metric{"mem_total", "total memory", Kilobytes, false, false,
		func(b *Boot) (float64, bool) { return float64(b.MemTotalKB), b.MemTotalKB > 0 }}
	PageFaults = Metric{"faults", "page faults", PageFaultUnit, true, true,
		func(b *Boot) (float64, bool) { return float64(b.Faults), b.Faults > 0 }}
	// MajorPageFaults counts those that had to wait for a disk. Where faults were
	// counted at all it may be 0.
	MajorPageFaults = Metric{"major_faults", "major faults", PageFaultUnit, true, true,
		func(b *Boot) (float64, bool) { return float64(b.MajorFaults), b.Faults > 0 }}
)

// Sampled is a figure of what the memory probe saw at a moment.
func Sampled(at, title string, lowerIsBetter bool, field func(*MemorySample) int64) Metric {
	return Metric{"sample " + at + " " + title, title, Kilobytes, lowerIsBetter, false, func(b *Boot) (float64, bool) {
		for i := range b.Memory {
			if b.Memory[i].At == at {
				return float64(field(&b.Memory[i])), true
			}
		}
		return 0, false
	}}
}
