package vmtest

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"

	"initoverlayfs/initrd/bootconf"
)

// The kinds of events that Run knows. A guest may send others.
const (
	EventDone      = "done"       // the last; see Done
	EventMultiUser = "multi-user" // multi-user.target was reached at uptime_s
	EventMemory    = "memory"     // how much memory there is at some moment; see MemorySample
	EventEntry     = "entry"      // one path of the tree; see Entry
	EventImage     = "image"      // one image was looked at; see ImageSeen
)

// Event is one line that a guest wrote on its second serial port.
type Event struct {
	Kind string          // the member "event"
	JSON json.RawMessage // the whole line
}

// Done is what a guest says at the end. Members that a guest does not send
// stay zero, members that are not here are ignored.
type Done struct {
	OK    bool   `json:"ok"`
	Error string `json:"error"` // why it is not OK

	UptimeS float64 `json:"uptime_s"` // seconds, as /proc/uptime has it
	// MemAvailableKB is the median of MemSamplesKB, if it has any.
	MemAvailableKB int64 `json:"mem_available_kb"`
	// CachedKB is the page cache, in which ShmemKB, tmpfs among others, is
	// contained.
	CachedKB     int64   `json:"cached_kb"`
	ShmemKB      int64   `json:"shmem_kb"`
	MemSamplesKB []int64 `json:"mem_samples_kb"`
	// MemPerCPUKB has, for each sample, the free memory in the page allocator's
	// per-CPU lists, which MemAvailable leaves out. How much lies there is
	// chance: from nothing to tens of MB.
	MemPerCPUKB []int64 `json:"mem_percpu_kb"`
	// MemUsableKB is the median of the sums of both: what two boots are to be
	// compared by.
	MemUsableKB int64 `json:"mem_usable_kb"`
	MemTotalKB  int64 `json:"mem_total_kb"`

	// What a boot has read: from all devices, a loop device's file counted twice,
	// and from each disk and partition, by its name.
	ReadKB      int64                `json:"read_kb"`
	Disks       map[string]DiskReads `json:"disks"`
	Faults      int64                `json:"faults"` // of pages, the major ones included
	MajorFaults int64                `json:"major_faults"`

	// Record is the guest's boot.json; absent or null after a plain boot.
	Record json.RawMessage `json:"record"`

	Mountinfo   string   `json:"mountinfo"`    // of PID 1
	ErofsMounts []string `json:"erofs_mounts"` // lines of Mountinfo with an EROFS
	ErofsSysfs  []string `json:"erofs_sysfs"`  // filesystems below /sys/fs/erofs
	RootOptions string   `json:"root_options"` // mount options of /
	Fsck        string   `json:"fsck"`         // how systemd-fsck-root ended; empty: it did not run
	FailedUnits []string `json:"failed_units"` // of systemd

	// Checks has what each check of the command line found.
	Checks map[string]json.RawMessage `json:"checks"`
}

// The moments of memory samples.
const (
	AtInit       = "init"        // the full tree's init starts
	AtSwitchRoot = "switch-root" // it is about to leave for the real root
	AtMultiUser  = "multi-user"  // what the done event has, of a guest that got there
)

// Memory gives what a guest that reached multi-user.target says of its memory
// there.
func (d *Done) Memory() MemorySample {
	s := MemorySample{
		At: AtMultiUser, AvailableKB: d.MemAvailableKB, CachedKB: d.CachedKB, ShmemKB: d.ShmemKB, TotalKB: d.MemTotalKB,
	}
	// The difference of medians, so that the sum is the median of the sums.
	s.PerCPUKB = d.MemUsableKB - d.MemAvailableKB
	return s
}

// MemorySample is what /proc/meminfo has at some moment.
type MemorySample struct {
	At          string `json:"at"` // AtInit, AtSwitchRoot, AtMultiUser
	AvailableKB int64  `json:"available_kb"`
	CachedKB    int64  `json:"cached_kb"`
	ShmemKB     int64  `json:"shmem_kb"`
	TotalKB     int64  `json:"total_kb"`
	// PerCPUKB is free memory beside AvailableKB; see Done.MemPerCPUKB.
	PerCPUKB int64 `json:"percpu_kb"`
}

// DiskReads is what was read from a disk.
type DiskReads struct {
	Requests int64 `json:"requests"`
	KB       int64 `json:"kb"`
}

// BootRecord gives Record decoded, nil when there is none.
func (d *Done) BootRecord() (*bootconf.Record, error) {
	if len(d.Record) == 0 || string(d.Record) == "null" {
		return nil, nil
	}
	r := new(bootconf.Record)
	if err := json.Unmarshal(d.Record, r); err != nil {
		return nil, fmt.Errorf("boot record: %w", err)
	}
	return r, nil
}

// Check decodes what the named check found into v.
func (d *Done) Check(name string, v any) error {
	raw, ok := d.Checks[name]
	if !ok {
		return fmt.Errorf("check %s: not in the done event", name)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("check %s: %w", name, err)
	}
	return nil
}

// Entry is one path of the guest's root filesystem, as the check tree_digest
// reports it.
type Entry struct {
	Path   string `json:"path"` // without leading slash, the root is "."
	Mode   uint32 `json:"mode"` // with the type bits of Linux
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	MTime  int64  `json:"mtime"` // seconds
	Nsec   int64  `json:"nsec"`  // of the time, nanoseconds
	Size   int64  `json:"size"`  // of regular files and symbolic links, else 0
	NLink  uint64 `json:"nlink"`
	Major  uint32 `json:"major"`  // of device nodes
	Minor  uint32 `json:"minor"`  // of device nodes
	SHA256 string `json:"sha256"` // of regular files; of large ones, of their Samples
	Target string `json:"target"` // of symbolic links

	Xattrs map[string][]byte `json:"xattrs,omitempty"` // by full name
	// First is the path of the file's first name in the order of a walk, where
	// that is another one.
	First string `json:"first,omitempty"`
}

// SampledBytes is the size of the files of which only samples are read.
const SampledBytes = 1 << 30

// Samples gives the offsets and lengths of the parts of such a file that are
// read: some KiB around each multiple of 16 MiB, and the end.
func Samples(size int64) iter.Seq2[int64, int64] {
	return func(yield func(offset, length int64) bool) {
		const step, half = 16 << 20, 10_000
		for at := int64(0); at < size; at += step {
			start := max(0, at-half)
			if !yield(start, min(at+half, size)-start) {
				return
			}
		}
		yield(size-half, half)
	}
}

// Append appends the entry as a line, in which nothing of it is lost.
func (e *Entry) Append(b []byte) []byte {
	b = strconv.AppendQuote(b, e.Path)
	b = fmt.Appendf(b, " %o %d:%d %d.%d %d %d %d:%d %s %q %q", e.Mode, e.UID, e.GID, e.MTime, e.Nsec, e.Size, e.NLink,
		e.Major, e.Minor, e.SHA256, e.Target, e.First)
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		b = fmt.Appendf(b, " %q=%q", name, e.Xattrs[name])
	}
	return append(b, '\n')
}

// ImagesPath is the file of the guest's initramfs that has the images for the
// check images, a JSON array of Image.
const ImagesPath = "/images.json"

// Image is one image that the check images mounts and reads.
type Image struct {
	Name    string `json:"name"`
	Device  string `json:"device"`
	Options string `json:"options"` // of the mount
	// Backward reads contents from the end, in pieces that no boundary of the
	// format has, and not from the begin.
	Backward bool `json:"backward"`
}

// ImageSeen is what a guest saw of an Image.
type ImageSeen struct {
	Name  string `json:"name"`
	Mount string `json:"mount"` // error of the mount; empty: it is mounted
	Walk  string `json:"walk"`  // error of what was read then
	// Trees has a digest of each directory of the root with all below it, under
	// its name, and of the root itself and its other files under ".".
	Trees map[string]TreeSeen `json:"trees"`
}

// TreeSeen is the digest of some entries in the order of a walk: directories
// before what they hold, by the bytes of names.
type TreeSeen struct {
	Entries int    `json:"entries"`
	SHA256  string `json:"sha256"` // of Entry.Append
}
