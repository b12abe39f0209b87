package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"initoverlayfs/bench"
	"initoverlayfs/bench/report"
	"initoverlayfs/vmtest"
)

// benchFlags are those of a run.
type benchFlags struct {
	bench.Options
	systems, squash []string
	bloat, storage  []string
	append          string
	accel           string
	noReport        bool
}

func (a *app) benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench [run] --kver VERSION --initramfs FILE --rootdisk IMAGE",
		Short: "Measure how fast an initramfs boots, plain and from an image",
		Long: "Boot an initramfs in QEMU, as it is and through each backend, scenario after\n" +
			"scenario and round after round, and report the times with their spread.\n\n" +
			"Everything lies in the folder --output: results.json, which is written after each\n" +
			"boot, report.md and report.html. The same command goes on with a run that was\n" +
			"interrupted. Under emulation (without KVM) seconds say little about work done;\n" +
			"the set `instructions` counts it.\n\n" +
			"Sets:\n" + bench.SetsHelp() + "\n" +
			"Scenarios: " + strings.Join(bench.SeriesNames(), ", ") + ".",
		Args: cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		// `run` may be said or left out.
		ValidArgs: []string{"run"},
		RunE: a.verb(func(ctx context.Context, _ []string) error {
			return a.bench(ctx, &f)
		}),
	}
	f.add(cmd.Flags())
	must(cmd.MarkFlagRequired("kver"))
	must(cmd.MarkFlagRequired("initramfs"))
	must(cmd.MarkFlagRequired("rootdisk"))
	cmd.AddCommand(a.benchReportCommand())
	return cmd
}

func (f *benchFlags) add(p *pflag.FlagSet) {
	p.StringVarP(&f.Dir, "output", "o", "out/bench", "`DIR` of the run")
	p.StringVar(&f.KernelVersion, "kver", "", "`VERSION` of the kernel, as uname -r gives it")
	p.StringVar(&f.Kernel, "kernel", "", "kernel `FILE` (default /boot/vmlinuz-VERSION)")
	p.StringVar(&f.ModulesDir, "modules-dir", "", "`DIR` of the kernel's modules (default /lib/modules/VERSION)")
	p.StringVar(&f.Initramfs, "initramfs", "", "initramfs `FILE` of which every scenario is made")
	p.StringVar(&f.RootDisk, "rootdisk", "", "disk `IMAGE` with the real root, which has the agent in vmtest/agent;\nthe guest's writes are thrown away")
	p.StringVar(&f.RootTree, "root", "", "the same as a `DIR` or tar archive, of which the set storage makes disks")
	p.StringVar(&f.Busybox, "busybox", "", "static `PROGRAM` for the scenario erofs-initramfs (default: busybox in PATH)")
	p.StringArrayVar(&f.systems, "system", nil, "another system to put beside ours: `NAME=KERNEL,INITRAMFS[,ROOTDISK]`")
	p.StringArrayVar(&f.squash, "squash", nil, "the same for dracut's own read-only images: `NAME=KERNEL,INITRAMFS[,ROOTDISK]`")
	p.StringSliceVar(&f.Sets, "set", []string{"instructions", "standard"}, "`SETS` of scenarios")
	p.StringSliceVar(&f.Series, "scenario", nil, "`SCENARIOS` (default: all)")
	p.StringSliceVar(&f.bloat, "bloat", []string{"0", "64M", "256M", "1G", "256M-text", "1G-text"}, "`SIZES` of what the set bloat adds to the tree, of random bytes or text")
	p.StringSliceVar(&f.storage, "storage", vmtest.StorageNames(), "`CLASSES` of the disk's speed in the set storage")
	p.IntVar(&f.Rounds, "rounds", 6, "`N` boots of each scenario; sweeps have half as many")
	p.Float64Var(&f.Until, "until", 0, "go on until the 95 % intervals of all ratios are within this `FRACTION` (0.02 is 2 %)")
	p.IntVar(&f.MaxRounds, "max-rounds", 60, "with --until, at most `N` boots of each scenario")
	p.DurationVar(&f.Budget, "budget", 0, "`DURATION` after which no further boot begins")
	p.IntVar(&f.MemoryStepMiB, "memory-step", 16, "`MIB` to which the least memory is searched")
	p.StringVar(&f.append, "append", "", "further `WORDS` of each kernel command line")
	p.StringVar(&f.accel, "accel", string(vmtest.Auto), "`ACCELERATOR`: auto, kvm or tcg")
	p.StringVar(&f.QEMU, "qemu", "", "QEMU's `PROGRAM` (default: the architecture's, in PATH)")
	p.StringVar(&f.GuestCPU, "cpu", "", "QEMU's `MODEL` of the guest's CPU (default: host under KVM, the fastest under TCG)")
	p.IntVar(&f.MemoryMiB, "memory", 1024, "`MIB` of memory that each guest can use")
	p.IntVar(&f.CPUs, "cpus", 1, "`NUMBER` of CPUs")
	p.DurationVar(&f.BootTimeout, "timeout", 5*time.Minute, "`DURATION` after which a boot has failed")
	p.BoolVar(&f.noReport, "no-report", false, "measure only")
}

func (a *app) bench(ctx context.Context, f *benchFlags) error {
	o := &f.Options
	var err error
	if o.Accel, err = vmtest.ParseAccel(f.accel); err != nil {
		return usageErrorf("--accel: %v", err)
	}
	switch {
	case o.Rounds < 1 || o.MaxRounds < o.Rounds && o.Until > 0:
		return usageErrorf("--rounds and --max-rounds: there is at least one round, and no more than the most")
	case o.Until < 0 || o.Until >= 1:
		return usageErrorf("--until: %v is no fraction", o.Until)
	case o.MemoryStepMiB < 1:
		return usageErrorf("--memory-step: it is at least 1")
	case o.MemoryMiB < 64:
		return usageErrorf("--memory: %d MiB boot nothing", o.MemoryMiB)
	}
	for _, list := range []struct {
		flag   string
		values []string
		squash bool
	}{{"system", f.systems, false}, {"squash", f.squash, true}} {
		for _, s := range list.values {
			system, err := bench.ParseSystem(s)
			if err != nil {
				return usageErrorf("--%s: %v", list.flag, err)
			}
			system.Squash = list.squash
			o.Given = append(o.Given, system)
		}
	}
	if o.Kernel == "" {
		o.Kernel = "/boot/vmlinuz-" + o.KernelVersion
	}
	if len(o.Series) == 0 {
		o.Series = bench.SeriesNames()
	}
	o.Version = toolVersion()
	for _, s := range f.bloat {
		size, err := bench.ParseFilling(s)
		if err != nil {
			return usageErrorf("--bloat: %v", err)
		}
		o.Bloat = append(o.Bloat, size)
	}
	for _, name := range f.storage {
		class, err := vmtest.ParseStorage(name)
		if err != nil {
			return usageErrorf("--storage: %v", err)
		}
		o.Storages = append(o.Storages, class)
	}
	o.Append = strings.Fields(f.append)
	o.Tool = verbs{a}
	began := time.Now()
	o.Progress = func(format string, args ...any) {
		a.progress("[%s] "+format, append([]any{time.Since(began).Round(time.Second)}, args...)...)
	}
	results, runErr := bench.Run(ctx, *o)
	if results == nil || runErr != nil && !errors.Is(runErr, bench.ErrIncomplete) {
		return runErr
	}
	if !f.noReport && len(results.Boots)+len(results.Searches) > 0 {
		if err := a.writeReport(o.Dir, results); err != nil {
			return errors.Join(runErr, err)
		}
	}
	// A budget that is used up is what was asked for.
	if runErr != nil && ctx.Err() == nil {
		a.warn("%v; the same command goes on", runErr)
		return nil
	}
	if runErr != nil {
		return hinted{runErr, "the same command goes on"}
	}
	return nil
}

func (a *app) writeReport(dir string, r *bench.Results) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := report.Write(dir, r); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%s\n%s\n", filepath.Join(dir, "report.md"), filepath.Join(dir, "report.html"))
	return err
}

func (a *app) benchReportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "report DIR...",
		Short: "Write the report of one run, or of several of one machine",
		Long: "Write report.md and report.html of the results in the folders. Runs of other\n" +
			"machines, kernels or accelerators are not put together.",
		Args: cobra.MinimumNArgs(1),
		RunE: a.verb(func(_ context.Context, dirs []string) error {
			var runs []*bench.Results
			for _, dir := range dirs {
				r, err := bench.Read(filepath.Join(dir, bench.ResultsName))
				if err != nil {
					return err
				}
				runs = append(runs, r)
			}
			merged, err := bench.Merge(runs...)
			if err != nil {
				return fmt.Errorf("%s: %w", strings.Join(dirs, ", "), err)
			}
			if output == "" {
				output = dirs[0]
			}
			return a.writeReport(output, merged)
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`DIR` to write into (default: the first)")
	return cmd
}

// verbs are the command line for those that make what they boot with it.
type verbs struct{ a *app }

// Run runs a verb. What it prints is dropped, its warnings are not.
func (v verbs) Run(ctx context.Context, args ...string) error {
	inner := &app{stdout: io.Discard, stderr: v.a.stderr, getenv: v.a.getenv}
	root := inner.rootCommand()
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// Machine gives the guest that the verb boot would boot.
func (v verbs) Machine(ctx context.Context, args ...string) (vmtest.Machine, func(), error) {
	var f bootFlags
	p := pflag.NewFlagSet("boot", pflag.ContinueOnError)
	f.add(p)
	if err := p.Parse(args); err != nil {
		return vmtest.Machine{}, nil, err
	}
	m, _, cleanup, err := f.machine(ctx)
	if err != nil && cleanup != nil {
		cleanup()
		cleanup = nil
	}
	return m, cleanup, err
}
