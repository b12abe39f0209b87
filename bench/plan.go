package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/memprobe"
)

// planned is a scenario with what it takes to boot it.
type planned struct {
	Scenario
	args    []string // of the verb boot
	until   vmtest.Milestone
	storage vmtest.Storage
	rounds  int
}

// stage are the scenarios that are booted in turn, and how often.
type stage struct {
	set       string
	scenarios []*planned
}

// set is a group of scenarios that can be asked for.
type set struct {
	name, about string
	plan        func(p *planner, ctx context.Context) error
}

// Sets in the order in which they run.
var sets = []set{
	{"instructions", "what the CPU has to do until the first init message", (*planner).instructions},
	{"instructions-full", "the same to multi-user.target", (*planner).instructionsFull},
	{"standard", "every scenario to multi-user.target", (*planner).standard},
	{"storage", "speed of the disk, with firmware and boot loader reading from it", (*planner).storage},
	{"bloat", "size of the tree, to the first init message", (*planner).bloat},
	{"bloat-instructions", "the same in instructions", (*planner).bloatInstructions},
	{"pcluster", "largest compressed cluster of the image, in instructions", (*planner).pcluster},
	{"compress", "compressor of the mini-initramfs, in instructions", (*planner).compressor},
	{"cpus", "number of CPUs", (*planner).cpus},
	{"memory", "memory of the guest", (*planner).memory},
	{"probe", "memory in use at each milestone", (*planner).probe},
	{leastMemory, "the smallest memory that boots, by bisection", nil},
}

const leastMemory = "least-memory"

// SetNames lists the sets.
func SetNames() []string {
	var names []string
	for _, s := range sets {
		names = append(names, s.name)
	}
	return names
}

// SetsHelp says what each set is, a line each.
func SetsHelp() string {
	var b strings.Builder
	for _, s := range sets {
		fmt.Fprintf(&b, "  %-19s %s\n", s.name, s.about)
	}
	return b.String()
}

// planner lays out the scenarios of a run and makes what they boot.
type planner struct {
	o       *Options
	in      *inputs
	series  []series
	stages  []stage
	leftOut map[string]string
}

func (p *planner) plan(ctx context.Context) error {
	var err error
	if p.series, err = p.o.chosen(); err != nil {
		return err
	}
	for _, s := range sets {
		if !slices.Contains(p.o.Sets, s.name) || s.plan == nil {
			continue
		}
		p.stages = append(p.stages, stage{set: s.name})
		if err := s.plan(p, ctx); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		if len(p.stages[len(p.stages)-1].scenarios) == 0 {
			p.stages = p.stages[:len(p.stages)-1]
		}
	}
	return nil
}

// point is a place on a sweep's axis.
type point struct {
	x     float64
	label string
}

// options of one scenario beyond its series.
type variation struct {
	variant  variant
	flags    []string // of the build
	point    *point
	until    vmtest.Milestone
	clock    Clock
	cpus     int
	memory   int // MiB
	storage  vmtest.Storage
	firmware bool
	rounds   int
	noRoot   bool
}

// add adds a scenario to the current stage. One that this kernel or this machine
// cannot have is left out, with the reason; an error is everything else.
func (p *planner) add(ctx context.Context, s series, v variation) error {
	st := &p.stages[len(p.stages)-1]
	v.until = cmp.Or(v.until, vmtest.MultiUser)
	v.clock = cmp.Or(v.clock, Wall)
	sc := Scenario{
		Name: s.name, Series: s.name, Kind: s.kind, Backend: string(s.backend), Set: st.set,
		Clock: v.clock, CPUs: cmp.Or(v.cpus, p.o.CPUs), MemoryMiB: cmp.Or(v.memory, p.o.MemoryMiB),
		Storage: cmp.Or(v.storage.Name, vmtest.Unthrottled.Name), Firmware: v.firmware,
		Append: append([]string(nil), p.o.Append...), Expect: s.expected(v.until), Memory: v.variant.probe,
	}
	if st.set != "standard" {
		sc.Name += " (" + st.set + ")"
	}
	if v.point != nil {
		sc.X, sc.Label = v.point.x, v.point.label
		sc.Name = s.name + " @ " + st.set + "=" + v.point.label
	}
	args, err := p.arguments(ctx, s, &sc, v)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		p.leave(sc.Name, err)
		return nil
	}
	st.scenarios = append(st.scenarios, &planned{
		Scenario: sc, args: args, until: v.until, storage: v.storage, rounds: cmp.Or(v.rounds, p.o.Rounds),
	})
	return nil
}

func (p *planner) leave(name string, err error) {
	p.o.Progress("left out: %s: %v", name, err)
	if p.leftOut == nil {
		p.leftOut = map[string]string{}
	}
	p.leftOut[name] = err.Error()
}

func (p *planner) arguments(ctx context.Context, s series, sc *Scenario, v variation) ([]string, error) {
	o := p.o
	var args []string
	if v.firmware {
		sum, err := p.in.sums.of(o.Kernel)
		if err != nil {
			return nil, err
		}
		sc.Kernel, sc.KernelSHA = o.KernelVersion, sum
		disk, err := p.firmwareDisk(ctx, s, sc, v)
		if err != nil {
			return nil, err
		}
		args = []string{"--disk", disk, "--kernel", o.Kernel}
	} else {
		var err error
		if args, err = s.arguments(ctx, p.in, sc, v.variant, v.flags...); err != nil {
			return nil, err
		}
		if !v.noRoot {
			args = append(args, s.rootArguments(o)...)
		}
		words := o.Append
		if v.variant.probe {
			words = append([]string{memprobe.InitWord(s.kind == Ours)}, words...)
		}
		if len(words) > 0 {
			args = append(args, "--append", strings.Join(words, " "))
		}
	}
	args = append(args, "--memory", strconv.Itoa(sc.MemoryMiB), "--cpus", strconv.Itoa(sc.CPUs),
		"--accel", string(o.Accel), "--timeout", o.BootTimeout.String())
	if o.QEMU != "" {
		args = append(args, "--qemu", o.QEMU)
	}
	if o.GuestCPU != "" {
		args = append(args, "--cpu", o.GuestCPU)
	}
	if v.clock == Instructions {
		args = append(args, "--icount")
	}
	return args, nil
}

// firmwareDisk gives the disk of a series, and what its boot loader has to read.
func (p *planner) firmwareDisk(ctx context.Context, s series, sc *Scenario, v variation) (string, error) {
	// The files are the same as without firmware.
	if _, err := s.arguments(ctx, p.in, sc, v.variant, v.flags...); err != nil {
		return "", err
	}
	switch {
	case s.kind == Plain:
		return p.in.disk(ctx, "", variant{format: s.format})
	case s.kind == Ours && slices.Contains([]bootconf.Backend{bootconf.Block, bootconf.Loop, bootconf.File}, s.backend):
		return p.in.disk(ctx, s.backend, variant{})
	}
	return "", errors.New("it is not booted from a disk by firmware")
}

func (p *planner) standard(ctx context.Context) error {
	for _, s := range p.some(func(s series) bool { return s.kind != Nothing }) {
		if err := p.add(ctx, s, variation{}); err != nil {
			return err
		}
	}
	return nil
}

// intervalRounds are the fewest of which a ratio has an interval. Where they cost
// seconds there are so many, unless one round was asked for.
const intervalRounds = 6

func (p *planner) instructions(ctx context.Context) error {
	for _, s := range p.series {
		v := variation{clock: Instructions, until: vmtest.InitfsInit, noRoot: true, rounds: max(intervalRounds, p.o.Rounds)}
		if p.o.Rounds == 1 {
			v.rounds = 1
		}
		if s.kind == Nothing {
			v.until = vmtest.KernelToInit
		}
		if err := p.add(ctx, s, v); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) instructionsFull(ctx context.Context) error {
	for _, s := range p.some(func(s series) bool { return s.kind != Nothing }) {
		if err := p.add(ctx, s, variation{clock: Instructions, rounds: p.sweepRounds()}); err != nil {
			return err
		}
	}
	return nil
}

// some gives those series of the run that fit.
func (p *planner) some(fits func(s series) bool) []series {
	return slices.DeleteFunc(slices.Clone(p.series), func(s series) bool { return !fits(s) })
}

// contenders are the series that sweeps compare: the plain ones and those that
// read on demand.
func contender(s series) bool {
	return s.kind == Plain && s.format != "none" && s.format != "gzip" && s.format != "" || slices.Contains(onDemand, s.backend)
}

func (p *planner) storage(ctx context.Context) error {
	if p.o.RootTree == "" {
		p.leave("storage", errors.New("no root tree is given, of which disks could be made"))
		return nil
	}
	for _, model := range p.o.Storages {
		for _, s := range p.some(func(s series) bool { return contender(s) && !s.backend.InMemory() }) {
			pt := point{float64(model.BPS), model.Name}
			if err := p.add(ctx, s, variation{storage: model, firmware: true, point: &pt, rounds: p.sweepRounds()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepRounds is how often the points of a sweep are booted: there are many of
// them.
func (p *planner) sweepRounds() int { return max(1, p.o.Rounds/2) }

func bloatPoint(f Filling) *point {
	label := strconv.FormatInt(f.Bytes>>20, 10) + "MiB"
	if f.Bytes > 0 && !f.Random {
		label += "-text"
	}
	return &point{float64(f.Bytes), label}
}

func (p *planner) bloat(ctx context.Context) error {
	for _, f := range p.o.Bloat {
		for _, s := range p.some(contender) {
			v := variation{
				variant: variant{fill: f}, point: bloatPoint(f), until: vmtest.InitfsInit, noRoot: true,
				memory: p.o.bloatMemory(), rounds: p.sweepRounds(),
			}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// bloatMemory is enough for the archive and what it is unpacked to.
func (o *Options) bloatMemory() int {
	most := int64(0)
	for _, f := range o.Bloat {
		most = max(most, f.Bytes)
	}
	return o.MemoryMiB + int(3*most>>20)
}

func (p *planner) bloatInstructions(ctx context.Context) error {
	for _, f := range []Filling{{}, {Bytes: 256 << 20, Random: true}} {
		for _, s := range p.some(contender) {
			v := variation{
				variant: variant{fill: f}, point: bloatPoint(f), until: vmtest.InitfsInit, noRoot: true,
				memory: p.o.MemoryMiB + 1024, clock: Instructions, rounds: min(2, p.sweepRounds()),
			}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *planner) pcluster(ctx context.Context) error {
	for _, size := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for _, s := range p.some(func(s series) bool { return s.backend == bootconf.Pmem }) {
			label := strconv.Itoa(size>>10) + "KiB"
			v := variation{
				flags: []string{"--pcluster", strconv.Itoa(size)}, point: &point{float64(size), label},
				until: vmtest.InitfsInit, noRoot: true, clock: Instructions, rounds: 1,
			}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *planner) compressor(ctx context.Context) error {
	for i, format := range []string{"none", "lz4", "zstd", "gzip", "xz"} {
		for _, s := range p.some(func(s series) bool { return s.backend.InMemory() || s.backend == bootconf.Block }) {
			v := variation{
				flags: []string{"--compress", format}, point: &point{float64(i), format},
				until: vmtest.InitfsInit, noRoot: true, clock: Instructions, rounds: 1,
			}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *planner) cpus(ctx context.Context) error {
	for _, n := range []int{1, 2, 4} {
		for _, s := range p.some(contender) {
			v := variation{cpus: n, point: &point{float64(n), strconv.Itoa(n)}, rounds: p.sweepRounds()}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *planner) memory(ctx context.Context) error {
	for _, mib := range []int{192, 384, 768, 1536} {
		for _, s := range p.some(contender) {
			v := variation{memory: mib, point: &point{float64(mib), strconv.Itoa(mib) + "MiB"}, rounds: p.sweepRounds()}
			if err := p.add(ctx, s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *planner) probe(ctx context.Context) error {
	for _, s := range p.some(func(s series) bool { return contender(s) || s.kind == Ours }) {
		if err := p.add(ctx, s, variation{variant: variant{probe: true}, rounds: 1}); err != nil {
			return err
		}
	}
	return nil
}

// checkInputs refuses what no scenario could do without.
func (o *Options) checkInputs() error {
	for _, f := range []struct{ flag, path string }{
		{"kernel", o.Kernel}, {"initramfs", o.Initramfs}, {"rootdisk", o.RootDisk},
	} {
		if f.path == "" {
			return fmt.Errorf("--%s is missing", f.flag)
		}
		if _, err := sizeOf(f.path); err != nil {
			return err
		}
	}
	for _, name := range o.Sets {
		if !slices.Contains(SetNames(), name) {
			return fmt.Errorf("unknown set %q; there are %s", name, strings.Join(SetNames(), ", "))
		}
	}
	return nil
}

// resultsPath is where a run keeps its results.
func (o *Options) resultsPath() string { return filepath.Join(o.Dir, ResultsName) }
