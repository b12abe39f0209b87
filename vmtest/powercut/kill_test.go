package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// bootBytes is the size of a boot partition with room for three pairs.
const bootBytes = 24 << 20

// pairs is a machine that has two pairs and runs the first, so that the second
// makes room when a third comes.
type pairs struct {
	*scratch
	plain         []string // listing without anything of ours
	before, after string   // what the default entry boots, and would with the third
}

func newPairs(t *testing.T) *pairs {
	t.Helper()
	p := &pairs{scratch: newScratch(t, bootBytes)}
	unmount := p.mount(t)
	p.plain = p.listing(t)
	p.mustBoot(t, "before", "plain")
	uuids := make([]string, 4)
	for n := 1; n <= 3; n++ {
		mustRun(t, p.install(t, n))
		var err error
		if uuids[n], err = p.bootable(t); err != nil || slices.Contains(uuids[:n], uuids[n]) {
			t.Fatalf("pairs %q, %v", uuids, err)
		}
		p.mustBeClean(t, fmt.Sprintf("with pair %d", n))
		switch n {
		case 1:
			p.writeRecord(t, uuids[1])
		case 2:
			p.keep(t)
		}
	}
	unmount()
	p.before, p.after = uuids[2], uuids[3]
	return p
}

// writeRecord tells that the machine was booted from an image.
func (m *scratch) writeRecord(t *testing.T, uuid string) {
	t.Helper()
	path := filepath.Join(m.root, bootconf.RecordPath)
	record := bootconf.Record{Backend: bootconf.File, ImageUUID: uuid, Verified: "none"}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, record.AppendJSON(nil), 0o644); err != nil {
		t.Fatal(err)
	}
}

// recover makes sure that what was cut short, and then again at its begin, can
// be done after all, and leaves nothing.
func (p *pairs) recover(t *testing.T, when string, allowed ...string) {
	t.Helper()
	if status, _ := run(t, p.install(t, 3, inject("mkdirat", "signal=SIGKILL", 1)...)); status == 0 {
		t.Errorf("%s: the second run was not killed", when)
	}
	p.mustBoot(t, when+", and then again", allowed...)
	mustRun(t, p.install(t, 3))
	p.mustBoot(t, when+", installed again", p.after)
	p.mustBeClean(t, when+", installed again")
	mustRun(t, p.remove(t))
	if got := p.listing(t); !slices.Equal(got, p.plain) {
		t.Errorf("%s: after remove there is\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(p.plain, "\n"))
	}
}

// traced are the system calls that change files, in groups.
var traced = []string{"fsync", "renameat,renameat2", "mkdirat", "unlinkat", "copy_file_range", "pwrite64", "ioctl"}

// inject is strace with a fault at the n-th of some system calls.
func inject(calls, fault string, n int) []string {
	return []string{
		"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls,
		"-e", "inject=" + calls + ":" + fault + ":when=" + strconv.Itoa(n),
	}
}

// step is the distance of the faults that are tried.
func step(t *testing.T) int {
	t.Helper()
	wanted, err := fixtures.Wanted()
	if err != nil {
		t.Fatal(err)
	}
	return map[fixtures.Boots]int{fixtures.None: 100, fixtures.Some: 4, fixtures.All: 1}[wanted]
}

// mostFaults bounds a test whose program never comes to its end.
const mostFaults = 500

// TestKill kills install and remove at system calls that change files.
func TestKill(t *testing.T) {
	tool(t, "strace")
	p := newPairs(t)
	step := step(t)
	kills := 0
	for _, calls := range traced {
		for n := 1; ; n += step {
			unmount := p.mount(t)
			when := fmt.Sprintf("install killed at %s %d", calls, n)
			status, _ := run(t, p.install(t, 3, inject(calls, "signal=SIGKILL", n)...))
			if status == 0 {
				unmount()
				break
			}
			kills++
			p.mustBoot(t, when, p.before, p.after)
			p.recover(t, when, p.before, p.after)
			unmount()
			if n > mostFaults {
				t.Fatalf("%s: it never ends", when)
			}
		}
	}
	if kills < len(traced)-2 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("install: %d kills", kills)

	kills = 0
	for n := 1; ; n += step {
		unmount := p.mount(t)
		when := fmt.Sprintf("remove killed at unlinkat %d", n)
		status, _ := run(t, p.remove(t, inject("unlinkat", "signal=SIGKILL", n)...))
		if status == 0 {
			unmount()
			break
		}
		kills++
		p.mustBoot(t, when, p.before, "plain")
		p.recover(t, when, p.before, "plain")
		unmount()
	}
	if kills == 0 {
		t.Error("remove was never killed")
	}
	t.Logf("remove: %d kills", kills)
}

// TestKillAnywhere kills install at any time.
func TestKillAnywhere(t *testing.T) {
	p := newPairs(t)
	unmount := p.mount(t)
	start := time.Now()
	mustRun(t, p.install(t, 3))
	whole := time.Since(start)
	unmount()
	random := rand.New(rand.NewPCG(3, 4))
	kills, tries := 0, max(40/step(t), 2)
	for range tries {
		unmount := p.mount(t)
		after := time.Duration(random.Int64N(int64(whole)))
		ctx, cancel := context.WithTimeout(t.Context(), after)
		cmd := p.install(t, 3)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			select {
			case <-ctx.Done():
				_ = cmd.Process.Kill() // it may have ended
			case <-ended:
			}
		}()
		if err := cmd.Wait(); err != nil {
			kills++
		}
		close(ended)
		cancel()
		when := fmt.Sprintf("install killed after %v", after)
		p.mustBoot(t, when, p.before, p.after)
		p.recover(t, when, p.before, p.after)
		unmount()
	}
	if kills == 0 {
		t.Error("install was never killed")
	}
	t.Logf("%d of %d were killed, in runs of %v", kills, tries, whole)
}
