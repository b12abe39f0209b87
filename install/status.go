package install

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// Health says in a word how a pair is.
type Health string

// How a pair can be.
const (
	Current Health = "current" // made from what is there now
	Stale   Health = "stale"   // its source has changed since
	Missing Health = "missing" // a file of it is not there
	Unknown Health = "unknown" // its source is not there, so that nothing can be compared
)

// Status tells of one kernel.
type Status struct {
	KernelVersion string             `json:"kernel_version"`
	Health        Health             `json:"health"`
	Reason        string             `json:"reason,omitempty"` // of all but current
	Manifest      *bootconf.Manifest `json:"manifest,omitempty"`
	State         *State             `json:"state"`
	Entries       []string           `json:"entries"`
	// Booted is the generation that the running system was booted from; 0: none
	// of these.
	Booted int `json:"booted,omitempty"`
}

// Overview is the status of a machine.
type Overview struct {
	BootDir string   `json:"boot_dir"`
	Running string   `json:"running_kernel,omitempty"`
	Kernels []Status `json:"kernels"`
	// Record is that of the running system's boot, null if storage-init did not
	// boot it.
	Record *bootconf.Record `json:"record"`
}

// ReadOverview tells what is installed and how the running system was booted.
func ReadOverview(ctx context.Context, o Options) (*Overview, error) {
	kernels, err := Kernels(o)
	if err != nil {
		return nil, err
	}
	slices.Sort(kernels)
	o.KernelVersion = ""
	i, err := prepare(&o, false)
	if err != nil {
		return nil, err
	}
	v := &Overview{BootDir: i.m.name(i.bootDir), Kernels: []Status{}}
	if i.m.sysroot == "" {
		release, err := readOptional("/proc/sys/kernel/osrelease")
		if err != nil {
			return nil, err
		}
		v.Running = strings.TrimSpace(release)
	}
	if v.Record, err = i.m.bootRecord(); err != nil {
		return nil, err
	}
	for _, kver := range kernels {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		o.KernelVersion = kver
		i, err := prepare(&o, false)
		if err != nil {
			return nil, err
		}
		s, err := i.status()
		if err != nil {
			return nil, err
		}
		v.Kernels = append(v.Kernels, *s)
	}
	return v, nil
}

func (i *installation) status() (*Status, error) {
	s := &Status{KernelVersion: i.o.KernelVersion, Entries: []string{}}
	state, err := readState(i.statePath())
	if err != nil {
		s.Health, s.Reason = Missing, err.Error()
		return s, nil
	}
	s.State = state
	s.Booted = i.runningGeneration(state)
	if s.Entries, err = i.entries(); err != nil {
		return nil, err
	}
	g := state.generation(state.Current)
	for _, path := range g.files() {
		if _, err := os.Stat(i.m.path(path)); err != nil {
			s.Health, s.Reason = Missing, err.Error()
			return s, nil
		}
	}
	if s.Manifest, err = builder.ReadManifest(i.m.path(g.Manifest)); err != nil {
		s.Health, s.Reason = Missing, err.Error()
		return s, nil
	}
	s.Health, s.Reason = i.compare(g)
	return s, nil
}

// compare tells whether a pair's source has changed, as after `dracut -f` or
// `update-initramfs -u`.
func (i *installation) compare(g *Generation) (Health, string) {
	if g.Source == "" {
		return Unknown, "its initramfs was made for the occasion"
	}
	sum, err := digestFile(i.m.path(g.Source))
	switch {
	case err != nil:
		return Unknown, err.Error()
	case sum != g.SourceSHA256:
		return Stale, fmt.Sprintf("%s has changed since", g.Source)
	}
	return Current, ""
}

func parseRecord(text []byte) (*bootconf.Record, error) {
	r := new(bootconf.Record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("boot record %s: %w", bootconf.RecordPath, err)
	}
	return r, nil
}
