package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"initoverlayfs/builder"
	"initoverlayfs/vmtest"
)

// Options say what is measured, and how often.
type Options struct {
	Dir     string // of the run: its results, inputs and logs
	Tool    Tool
	Version string // of the tool

	KernelVersion, Kernel, ModulesDir string
	Initramfs                         string // what all scenarios are made of
	RootDisk                          string // disk image with the real root
	RootTree                          string // the same as a directory or tar, for disks that firmware boots; empty: no such
	Given                             []System
	Busybox                           string // static, for the scenario erofs-initramfs; empty: the one in PATH

	Sets   []string // see SetNames
	Series []string // see SeriesNames
	Bloat  []Filling
	// Storages are the classes of storage of the set storage.
	Storages []vmtest.Storage
	Append   []string // further words of each kernel command line

	// Rounds is how often each scenario is booted; sweeps have half as many.
	Rounds int
	// Until, if not 0, goes on until the 95 % interval of each ratio that the
	// report draws is no wider than it to either side (0.02 is 2 %), or MaxRounds
	// are done.
	Until     float64
	MaxRounds int
	// Budget, if not 0, is when no further boot begins.
	Budget time.Duration
	// MemoryStepMiB is how far the search for the least memory goes.
	MemoryStepMiB int

	Accel       vmtest.Accel
	QEMU        string
	GuestCPU    string // QEMU's name of the model; empty: vmtest's choice
	MemoryMiB   int
	CPUs        int
	BootTimeout time.Duration

	// Progress is told what happens.
	Progress func(format string, args ...any)

	// guest boots; nil: vmtest.Run. Tests have guests that are none.
	guest func(context.Context, vmtest.Machine) (*vmtest.Result, error)
}

// ErrIncomplete says that a run ended before everything was booted. The results
// have what was; the same call goes on there.
var ErrIncomplete = errors.New("the run is not complete")

// Run makes a run, or goes on with the one in the folder, and gives all its
// results. With ErrIncomplete they are those so far.
func Run(ctx context.Context, o Options) (*Results, error) {
	if err := o.checkInputs(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o777); err != nil {
		return nil, err
	}
	unlock, err := lock(o.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if o.guest == nil {
		o.guest = vmtest.Run
	}
	began := time.Now()
	p := &planner{o: &o}
	p.in = &inputs{o: &o, dir: filepath.Join(o.Dir, "inputs"), progress: o.Progress, made: map[string]error{}, sums: digests{}, images: map[string]string{}}
	if err := p.in.belong(); err != nil {
		return nil, err
	}
	host, err := o.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.plan(ctx); err != nil {
		return nil, err
	}
	r := &runner{o: &o, planner: p, began: began, took: map[string]time.Duration{}}
	if err := r.open(host); err != nil {
		return nil, err
	}
	err = r.run(ctx)
	if closeErr := r.close(); err == nil {
		err = closeErr
	}
	return r.results, err
}

// lock keeps a second run out of the folder.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another run works there: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // which gives the lock back
}

// host tells what the run is made on.
func (o *Options) host(ctx context.Context) (Host, error) {
	h := Host{Cores: runtime.NumCPU(), GuestCPU: o.GuestCPU}
	h.CPU = procField("/proc/cpuinfo", "model name")
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(release))
	}
	if _, err := fmt.Sscanf(procField("/proc/meminfo", "MemTotal"), "%d", &h.Memory); err != nil {
		return h, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	m := vmtest.Machine{Kernel: o.Kernel, Accel: o.Accel, QEMU: o.QEMU}
	accel, _, err := m.ResolveAccel(ctx)
	if err != nil {
		return h, err
	}
	o.Accel, h.Accel = accel, string(accel)
	h.QEMU, err = m.Version(ctx)
	return h, err
}

// procField gives the value of the first line of a file below /proc that begins
// with the name.
func procField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// runner makes the boots of a plan.
type runner struct {
	o       *Options
	planner *planner
	results *Results
	began   time.Time

	mu       sync.Mutex
	machines map[string]machine // by scenario
	took     map[string]time.Duration
	left     int // boots
	width    int // of them at once
}

type machine struct {
	vmtest.Machine
	cleanup func()
}

// open reads the results of the same run, or begins new ones.
func (r *runner) open(host Host) error {
	now := time.Now().UTC().Format(time.RFC3339)
	r.machines = map[string]machine{}
	fresh := &Results{Format: Format, Host: host, Started: now, Updated: now, Tool: r.o.Version}
	for _, st := range r.planner.stages {
		for _, p := range st.scenarios {
			fresh.Scenarios = append(fresh.Scenarios, p.Scenario)
		}
	}
	old, err := Read(r.o.resultsPath())
	switch {
	case errors.Is(err, os.ErrNotExist):
		r.results = fresh
		return r.save()
	case err != nil:
		return err
	case old.Host != host:
		return fmt.Errorf("%s is a run on another machine: %s", r.o.resultsPath(), difference(old.Host, host))
	}
	// More scenarios and rounds may have been asked for; those that were there
	// must be the same.
	for _, s := range fresh.Scenarios {
		if was := old.Scenario(s.Name); was == nil {
			old.Scenarios = append(old.Scenarios, s)
		} else if !reflect.DeepEqual(*was, s) {
			return fmt.Errorf("%s has another scenario %q: %s", r.o.resultsPath(), s.Name, difference(*was, s))
		}
	}
	r.results = old
	for i := range old.Boots {
		r.note(&old.Boots[i])
	}
	if n := len(old.Boots); n > 0 {
		r.o.Progress("going on with the run of %s: %d boots are there", old.Started, n)
	}
	return nil
}

// difference tells the first field in which two structs of a type differ.
func difference(a, b any) string {
	field, u, v, ok := firstDifference(a, b)
	if !ok {
		return "no difference"
	}
	return fmt.Sprintf("%s is %v there and %v here", field.Name, u, v)
}

// save replaces the results, which are whole at any time.
func (r *runner) save() error {
	r.results.LeftOut = r.planner.leftOut
	text, err := json.MarshalIndent(r.results, "", " ")
	if err != nil {
		return err
	}
	return builder.WriteFile(r.o.resultsPath(), 0o644, func(f *os.File) error {
		_, err := f.Write(append(text, '\n'))
		return err
	})
}

func (r *runner) close() error {
	for _, m := range r.machines {
		if m.cleanup != nil {
			m.cleanup()
		}
	}
	return r.save()
}

// job is one boot that is to be made.
type job struct {
	*planned
	round int
}

// errBudget ends a run.
var errBudget = errors.New("budget")

func (r *runner) run(ctx context.Context) error {
	r.results.Complete, r.results.Why = false, ""
	err := r.stages(ctx)
	switch {
	case err == nil:
		r.results.Complete = true
		return nil
	case errors.Is(err, errBudget):
		r.results.Why = "the budget of " + r.o.Budget.String() + " was used up"
	case ctx.Err() != nil:
		r.results.Why = "it was interrupted"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", ErrIncomplete, r.results.Why)
}

func (r *runner) stages(ctx context.Context) error {
	pending := r.pending()
	r.left = len(pending)
	for _, st := range r.planner.stages {
		jobs := slices.DeleteFunc(slices.Clone(pending), func(j job) bool { return j.Set != st.set })
		// What counts instructions does not mind a neighbour.
		width := 1
		if len(jobs) > 0 && jobs[0].Clock == Instructions {
			width = min(runtime.NumCPU(), 4)
		}
		if err := r.all(ctx, jobs, width); err != nil {
			return err
		}
	}
	if slices.Contains(r.o.Sets, leastMemory) {
		if err := r.searches(ctx); err != nil {
			return err
		}
	}
	return r.narrow(ctx)
}

// pending are the boots that are not there yet, round by round.
func (r *runner) pending() []job {
	var jobs []job
	for _, st := range r.planner.stages {
		most := 0
		for _, p := range st.scenarios {
			most = max(most, p.rounds)
		}
		for round := 1; round <= most; round++ {
			for _, p := range st.scenarios {
				if round <= p.rounds && !r.has(p.Name, round) {
					jobs = append(jobs, job{p, round})
				}
			}
		}
	}
	return jobs
}

func (r *runner) has(scenario string, round int) bool {
	return slices.ContainsFunc(r.results.Boots, func(b Boot) bool { return b.Scenario == scenario && b.Round == round })
}

// narrow makes further rounds of the stages whose intervals are too wide.
func (r *runner) narrow(ctx context.Context) error {
	if r.o.Until == 0 {
		return nil
	}
	for {
		var jobs []job
		for _, st := range r.planner.stages {
			if st.scenarios[0].Clock == Instructions || r.narrowEnough(st) {
				continue
			}
			for _, p := range st.scenarios {
				if p.rounds < r.o.MaxRounds && !p.Memory {
					p.rounds++
					if !r.has(p.Name, p.rounds) {
						jobs = append(jobs, job{p, p.rounds})
					}
				}
			}
		}
		if len(jobs) == 0 {
			return nil
		}
		r.left = len(jobs)
		if err := r.all(ctx, jobs, 1); err != nil {
			return err
		}
	}
}

// narrowEnough compares each of ours with each plain one at the same point.
func (r *runner) narrowEnough(st stage) bool {
	for _, ours := range st.scenarios {
		for _, plain := range st.scenarios {
			if ours.Kind != Ours || plain.Kind != Plain || Comparable(r.results, &ours.Scenario, &plain.Scenario) != nil {
				continue
			}
			metric := GuestTime(ours.until, ours.Clock)
			if ours.Firmware {
				metric = HostTime(ours.until)
			}
			ratio, err := r.results.Ratio(&ours.Scenario, &plain.Scenario, metric)
			if err != nil || ratio.CI == nil || (ratio.CI.High-ratio.CI.Low)/2 > r.o.Until {
				return false
			}
		}
	}
	return true
}

// all makes boots, so many at once.
func (r *runner) all(ctx context.Context, jobs []job, width int) error {
	r.width = width
	queue := make(chan job)
	errs := make(chan error, width)
	for range width {
		go func() {
			var first error
			for j := range queue {
				if first == nil {
					first = r.one(ctx, j)
				}
			}
			errs <- first
		}()
	}
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	var err error
	for range width {
		err = errors.Join(err, <-errs)
	}
	return err
}

// wholeRounds are those in which a guest also reports its memory, behind the last
// milestone, and QEMU what was read. That takes as long as half a boot, and says
// the same each time. Of those whose clock counts instructions one is enough.
const wholeRounds = 3

// one makes one boot and keeps it, unless it was interrupted.
func (r *runner) one(ctx context.Context, j job) error {
	if err := r.mayBegin(ctx); err != nil {
		return err
	}
	r.announce(j)
	m, err := r.machine(ctx, j.planned)
	if err != nil {
		return fmt.Errorf("%s: %w", j.Name, err)
	}
	whole := wholeRounds
	if j.Clock == Instructions {
		whole = 1
	}
	if j.round > whole && !j.Memory {
		m.Until, m.BlockStats = j.until, false
	}
	b, err := r.boot(ctx, j, m)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", j.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !b.OK {
		r.o.Progress("failed: %s, round %d: %s", j.Name, j.round, b.Error)
	}
	r.results.Boots = append(r.results.Boots, b)
	r.results.Updated = time.Now().UTC().Format(time.RFC3339)
	r.note(&b)
	r.left--
	return r.save()
}

func (r *runner) mayBegin(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if r.o.Budget > 0 && time.Since(r.began) > r.o.Budget {
		return errBudget
	}
	return nil
}

// note remembers how long a boot of a scenario takes.
func (r *runner) note(b *Boot) {
	r.took[b.Scenario] = time.Duration(b.WallS * float64(time.Second))
}

// announce tells what begins, and when the boots that are left will have ended
// if they take as long as those before.
func (r *runner) announce(j job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf("%s, round %d; %d left", j.Name, j.round, r.left)
	if len(r.took) > 0 {
		var sum time.Duration
		for _, d := range r.took {
			sum += d
		}
		mean := sum / time.Duration(len(r.took))
		rest := mean * time.Duration(r.left) / time.Duration(r.width)
		text += fmt.Sprintf(", about %s, until %s", rest.Round(time.Second), time.Now().Add(rest).Format("15:04"))
	}
	r.o.Progress("%s", text)
}

// machine gives the guest of a scenario, which is made once.
func (r *runner) machine(ctx context.Context, p *planned) (vmtest.Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.machines[p.Name]; ok {
		return m.Machine, nil
	}
	m, cleanup, err := r.o.Tool.Machine(ctx, p.args...)
	if err != nil {
		return m, err
	}
	m.LogParent = filepath.Join(r.o.Dir, "logs")
	if err := os.MkdirAll(m.LogParent, 0o777); err != nil {
		return m, err
	}
	for i := range m.Drives {
		m.Drives[i].Throttle(p.storage)
	}
	m.Expect, m.Until = p.Expect, ""
	if p.until != vmtest.MultiUser {
		m.Until = p.until
	}
	m.BlockStats = p.Clock == Wall && m.Until == ""
	r.machines[p.Name] = machine{m, cleanup}
	return m, nil
}

// belong refuses inputs of another run: those that lie there were made of these
// files by this program.
func (in *inputs) belong() error {
	want := ""
	for _, path := range []string{in.o.Kernel, in.o.Initramfs} {
		sum, err := in.sums.of(path)
		if err != nil {
			return err
		}
		want += sum + "\n"
	}
	if self, err := os.Executable(); err == nil {
		sum, err := in.sums.of(self)
		if err != nil {
			return err
		}
		want += sum + "\n"
	}
	path := filepath.Join(in.dir, "made-of")
	if got, err := os.ReadFile(path); err == nil && string(got) != want {
		return fmt.Errorf("%s was made of another kernel or initramfs, or by another build of this program; remove %s, or choose another folder",
			in.dir, in.o.Dir)
	}
	if err := os.MkdirAll(in.dir, 0o777); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(want), 0o666)
}
