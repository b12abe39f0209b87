package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/vmtest"
)

// boot makes one boot. The error is one of the harness: a guest that did not
// boot is a result.
func (r *runner) boot(ctx context.Context, j job, m vmtest.Machine) (Boot, error) {
	res, err := r.o.guest(ctx, m)
	if res == nil {
		return Boot{}, err
	}
	var failed *vmtest.BootError
	if err != nil && !errors.As(err, &failed) {
		return Boot{}, err
	}
	if failed != nil {
		// The folder gets another name.
		err = &vmtest.BootError{Kind: failed.Kind, Detail: failed.Detail}
	}
	b := measured(j, res, err)
	b.PhysicalKB = int64(m.MemoryMiB) << 10
	if want := r.results.Host; b.OK && (string(res.Accel) != want.Accel || res.QEMU != want.QEMU) {
		return Boot{}, fmt.Errorf("it ran under %s of QEMU %s, the run began with %s of %s", res.Accel, res.QEMU, want.Accel, want.QEMU)
	}
	if !b.OK {
		b.Log, err = r.keepLog(res.LogDir, j)
		if err != nil {
			return Boot{}, err
		}
	}
	return b, nil
}

// keepLog gives the folder of a failed boot's logs a name that is known again.
func (r *runner) keepLog(dir string, j job) (string, error) {
	if dir == "" {
		return "", nil
	}
	name := fmt.Sprintf("%s-%d", fileName(j.Name), j.round)
	path := filepath.Join(r.o.Dir, "logs", name)
	if err := errors.Join(os.RemoveAll(path), os.Rename(dir, path)); err != nil {
		return "", fmt.Errorf("keep the logs: %w", err)
	}
	return filepath.Join("logs", name), nil
}

// fileCharacters are those that need no thought in a path.
const fileCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-"

// fileName makes a name of a scenario's.
func fileName(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !strings.ContainsRune(fileCharacters, rune(c)) {
			b[i] = '_'
		}
	}
	return string(b)
}

// measured turns what a boot showed into a result. It is good only if the boot
// was, if each milestone that is expected was reached, in order, and if what
// booted is what the scenario says.
func measured(j job, res *vmtest.Result, bootErr error) Boot {
	b := Boot{
		Scenario: j.Name, Round: j.round, OK: true, Times: res.Times, WallS: res.Wall.Seconds(), Log: res.LogDir,
	}
	if j.Clock == Wall {
		b.HostTimes = res.HostTimes
	}
	if res.StatsError == nil {
		b.Disks = diskReads(res.Disks)
	}
	if d := res.Done; d != nil {
		b.MemAvailableKB, b.MemUsableKB, b.MemTotalKB = d.MemAvailableKB, d.MemUsableKB, d.MemTotalKB
		b.Faults, b.MajorFaults = d.Faults, d.MajorFaults
	}
	b.Memory = memorySamples(res)
	fail := func(err error) Boot {
		b.OK, b.Error = false, err.Error()
		return b
	}
	if res.Done != nil {
		record, err := res.Done.BootRecord()
		if err != nil {
			return fail(err)
		}
		if record != nil {
			b.Phases, b.Modules = record.Phases, record.Modules
		}
	}
	switch {
	case bootErr != nil:
		return fail(bootErr)
	case res.StatsError != nil:
		return fail(res.StatsError)
	}
	if err := j.check(res); err != nil {
		return fail(err)
	}
	b.Log = ""
	return b
}

// check compares a boot with what the scenario says of it.
func (s *Scenario) check(res *vmtest.Result) error {
	last := 0.0
	for _, m := range s.Expect {
		t, ok := res.Times[m]
		switch {
		case !ok:
			return fmt.Errorf("milestone %s was not reached", m)
		case t < last:
			return fmt.Errorf("milestone %s at %.6f s lies before the one that precedes it, at %.6f s", m, t, last)
		}
		last = t
	}
	switch {
	case s.Kind == Ours && res.Handover == nil:
		return errors.New("storage-init did not say what it handed over")
	case s.Kind == Ours && string(res.Handover.Backend) != s.Backend:
		return fmt.Errorf("it booted through %s", res.Handover.Backend)
	case s.Kind != Ours && res.Handover != nil:
		return fmt.Errorf("storage-init booted it, through %s", res.Handover.Backend)
	case s.Memory && len(memorySamples(res)) < 3:
		return errors.New("the memory probe has not reported")
	}
	return nil
}

func diskReads(stats map[string]map[string]vmtest.BlockStats) map[string]map[string]DiskReads {
	if len(stats) == 0 {
		return nil
	}
	disks := map[string]map[string]DiskReads{}
	for name, at := range stats {
		disks[name] = map[string]DiskReads{}
		for milestone, s := range at {
			disks[name][milestone] = DiskReads{Bytes: s.Bytes, Requests: s.Requests}
		}
	}
	return disks
}

// memorySamples are those of the probe and, as the last, the agent's.
func memorySamples(res *vmtest.Result) []MemorySample {
	if res.Done == nil || len(res.Memory) == 0 {
		return res.Memory
	}
	return append(slices.Clone(res.Memory), res.Done.Memory())
}
