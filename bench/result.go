// Package bench measures boots: scenarios side by side, round by round, in one
// run on one machine. Package bench/report shows what came out.
//
// A run is a folder. Its results.json has the plan and every boot that was made,
// good or not; it is written anew after each boot, so that a run that was
// interrupted goes on where it was.
package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// Format is the version of results.json.
const Format = 1

// ResultsName is the file of a run's folder that has everything.
const ResultsName = "results.json"

// Results is one run.
type Results struct {
	Format  int    `json:"format"`
	Host    Host   `json:"host"`
	Started string `json:"started"` // RFC 3339, UTC
	Updated string `json:"updated"` // of the last boot
	Tool    string `json:"tool"`    // version of this program
	// LeftOut has the scenarios that could not be made, with the reasons.
	LeftOut   map[string]string `json:"left_out,omitempty"`
	Complete  bool              `json:"complete"`
	Why       string            `json:"why,omitempty"` // it ended before it was complete: interrupted, budget
	Scenarios []Scenario        `json:"scenarios"`
	Boots     []Boot            `json:"boots"` // in the order in which they were made
	// Searches has the smallest memory with which each scenario boots.
	Searches []MemorySearch `json:"searches,omitempty"`
}

// Host is what runs of one comparison must have in common.
type Host struct {
	CPU    string `json:"cpu"` // model name
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Memory int64  `json:"memory_kb"`
	QEMU   string `json:"qemu"`
	Accel  string `json:"accel"` // kvm or tcg
	// GuestCPU is QEMU's model of the guest's CPU; empty: vmtest's choice.
	GuestCPU string `json:"guest_cpu,omitempty"`
}

// Clock is what a scenario's times are counted in.
type Clock string

// The clocks.
const (
	// Wall is seconds of a clock: the guest's printk clock since the kernel
	// began, or the host's since QEMU was started, as the member says.
	Wall Clock = "wall"
	// Instructions is billions of guest instructions (QEMU -icount).
	Instructions Clock = "instructions"
)

// Scenario is one thing that is booted again and again.
type Scenario struct {
	// Name is unique in the run. Of a sweep it is "SERIES @ SWEEP=LABEL".
	Name string `json:"name"`
	// Series is the name without what a sweep varies: "block", "plain lz4".
	Series string `json:"series"`
	// Kind is plain, squash, erofs-initramfs, given or ours.
	Kind    Kind   `json:"kind"`
	Backend string `json:"backend,omitempty"` // of ours
	Set     string `json:"set"`               // "standard", or the name of a sweep: bloat, storage, ...
	// X is where the scenario lies on its sweep's axis, in the axis's unit
	// (bytes, bytes a second, CPUs, MiB); Label says it for people.
	X     float64 `json:"x,omitempty"`
	Label string  `json:"label,omitempty"`

	Clock     Clock    `json:"clock"`
	Kernel    string   `json:"kernel"`                // version
	KernelSHA string   `json:"kernel_sha256"`         // of the file
	TreeSHA   string   `json:"tree_sha256,omitempty"` // of the initramfs from which it was made
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memory_mib"` // beside the persistent memory
	Storage   string   `json:"storage"`    // unthrottled, emmc, ...
	Firmware  bool     `json:"firmware"`   // firmware and boot loader read from the disk
	Append    []string `json:"append,omitempty"`

	// BootBytes is what a boot loader must read: kernel and initramfs.
	BootBytes   int64 `json:"boot_bytes"`
	KernelBytes int64 `json:"kernel_bytes"`
	// ImageBytes is the size of the image beside the mini-initramfs.
	ImageBytes int64 `json:"image_bytes,omitempty"`

	// Expect has the milestones without which a boot has failed.
	Expect []vmtest.Milestone `json:"expect"`
	// Memory says that the tree carries a probe, which reports the memory at
	// milestones and costs time; its times are not shown.
	Memory bool `json:"memory,omitempty"`
}

// Kind is what sort of thing a scenario boots.
type Kind string

// The kinds.
const (
	Plain          Kind = "plain"           // the initramfs as it is, in some compression
	Squash         Kind = "squash"          // dracut's own module
	ErofsInitramfs Kind = "erofs-initramfs" // an EROFS image inside an uncompressed initramfs
	Given          Kind = "given"           // kernel, initramfs and disk that the user named
	Ours           Kind = "ours"
	// Nothing is an initramfs without anything: what the kernel itself takes to
	// its first program.
	Nothing Kind = "nothing"
)

// Boot is one boot of a scenario.
type Boot struct {
	Scenario string `json:"scenario"`
	Round    int    `json:"round"` // from 1
	OK       bool   `json:"ok"`
	// Error says why it failed. The times of such a boot are kept to be looked
	// at; no statistic has them.
	Error string `json:"error,omitempty"`
	Log   string `json:"log,omitempty"` // folder of the logs of a failed boot

	// Times of milestones on the guest's printk clock: seconds, or of the clock
	// Instructions billions of instructions.
	Times map[vmtest.Milestone]float64 `json:"times"`
	// HostTimes of the same milestones are seconds since QEMU was started, so
	// they have what firmware and boot loader took. Absent with Instructions.
	HostTimes map[vmtest.Milestone]float64 `json:"host_times,omitempty"`
	WallS     float64                      `json:"wall_s"` // of all of QEMU

	Phases  []bootconf.Phase `json:"phases,omitempty"` // of storage-init
	Modules []string         `json:"modules,omitempty"`
	// Disks has what was read from each disk of the machine as QEMU counts it,
	// by the name that the scenario gives it (boot, root, image, disk), at each
	// milestone and under "end" at the end.
	Disks map[string]map[string]DiskReads `json:"disks,omitempty"`

	// PhysicalKB is the memory of the machine, with what is set aside in it for an
	// image.
	PhysicalKB int64 `json:"physical_kb,omitempty"`
	// At multi-user.target, by the guest.
	MemAvailableKB int64 `json:"mem_available_kb,omitempty"`
	MemUsableKB    int64 `json:"mem_usable_kb,omitempty"`
	MemTotalKB     int64 `json:"mem_total_kb,omitempty"`
	Faults         int64 `json:"faults,omitempty"`
	MajorFaults    int64 `json:"major_faults,omitempty"`
	// Memory has what the probe saw at milestones.
	Memory []MemorySample `json:"memory,omitempty"`
}

// DiskReads is what was read from a disk until some moment.
type DiskReads struct {
	Bytes    int64 `json:"bytes"`
	Requests int64 `json:"requests"`
}

// MemorySample is what /proc/meminfo said at a milestone.
type MemorySample = vmtest.MemorySample

// MemorySearch is a bisection over the guest's memory.
type MemorySearch struct {
	Scenario string `json:"scenario"`
	// FailsMiB is the largest size below that failed, BootsMiB the smallest that
	// booted, twice; 0: none was found.
	FailsMiB int           `json:"fails_mib"`
	BootsMiB int           `json:"boots_mib"`
	Tries    []MemoryTrial `json:"tries"`
	Done     bool          `json:"done"`
}

// MemoryTrial is one boot of a bisection.
type MemoryTrial struct {
	MiB   int    `json:"mib"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// Scenario gives the scenario of a name, nil if there is none.
func (r *Results) Scenario(name string) *Scenario {
	i := slices.IndexFunc(r.Scenarios, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Scenarios[i]
}

// Read reads the results.json at path.
func Read(path string) (*Results, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Results)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("%s: format %d; this program knows %d", path, r.Format, Format)
	}
	return r, nil
}
