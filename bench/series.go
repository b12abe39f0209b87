package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest"
)

// System is one that the user puts beside ours.
type System struct {
	Name, Kernel, Initramfs string
	Disk                    string // with its real root; empty: the run's
	Squash                  bool   // it is dracut's own read-only image
}

// ParseSystem reads NAME=KERNEL,INITRAMFS[,DISK].
func ParseSystem(s string) (System, error) {
	name, rest, ok := strings.Cut(s, "=")
	files := strings.Split(rest, ",")
	if !ok || name == "" || len(files) < 2 || len(files) > 3 || slices.Contains(files, "") {
		return System{}, fmt.Errorf("bad system %q; it is NAME=KERNEL,INITRAMFS[,DISK]", s)
	}
	if !validName(name) || slices.ContainsFunc(seriesNames(), func(n string) bool { return n == name }) {
		return System{}, fmt.Errorf("bad system %q: the name %q is taken, or has other characters than a-z, 0-9, '.', '_' and '-'", s, name)
	}
	g := System{Name: name, Kernel: files[0], Initramfs: files[1]}
	if len(files) == 3 {
		g.Disk = files[2]
	}
	return g, nil
}

func validName(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// series is a way to boot the tree.
type series struct {
	name    string
	kind    Kind
	format  compress.Format  // of plain; empty: as the initramfs is
	backend bootconf.Backend // of ours
	given   *System
}

const plainPrefix = "plain-"

// allSeries are those that every run can have.
func allSeries() []series {
	list := []series{{name: string(Nothing), kind: Nothing}, {name: "plain", kind: Plain}}
	for _, f := range []compress.Format{compress.Zstd, compress.LZ4, compress.Gzip, compress.None} {
		list = append(list, series{name: plainPrefix + string(f), kind: Plain, format: f})
	}
	list = append(list, series{name: string(ErofsInitramfs), kind: ErofsInitramfs})
	for _, b := range []bootconf.Backend{
		bootconf.Block, bootconf.Loop, bootconf.File, bootconf.Pmem, bootconf.PmemDAX, bootconf.Embedded, bootconf.RAM,
	} {
		list = append(list, series{name: string(b), kind: Ours, backend: b})
	}
	return list
}

func seriesNames() []string {
	var names []string
	for _, s := range allSeries() {
		names = append(names, s.name)
	}
	return names
}

// SeriesNames lists what can be booted without naming files.
func SeriesNames() []string { return seriesNames() }

// chosen gives the series that were asked for, the given systems last.
func (o *Options) chosen() ([]series, error) {
	all := allSeries()
	var list []series
	for _, name := range o.Series {
		i := slices.IndexFunc(all, func(s series) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown scenario %q; there are %s", name, strings.Join(seriesNames(), ", "))
		}
		list = append(list, all[i])
	}
	for i := range o.Given {
		kind := Given
		if o.Given[i].Squash {
			kind = Squash
		}
		list = append(list, series{name: o.Given[i].Name, kind: kind, given: &o.Given[i]})
	}
	return list, nil
}

// arguments are those of the verb boot for a series, and what the scenario
// records of its files.
func (s series) arguments(ctx context.Context, in *inputs, sc *Scenario, v variant, flags ...string) ([]string, error) {
	o := in.o
	args := []string{"--kernel", o.Kernel, "--kver", o.KernelVersion}
	var initrd string
	switch s.kind {
	case Plain:
		v.format = s.format
		archive, err := in.archive(ctx, v)
		if err != nil {
			return nil, err
		}
		initrd = archive
		args = append(args, "--backend", "plain", "--initramfs", archive)
	case Given, Squash:
		initrd = s.given.Initramfs
		args = []string{"--kernel", s.given.Kernel, "--backend", "plain", "--initramfs", initrd}
	case Nothing:
		var err error
		if initrd, err = in.nothing(); err != nil {
			return nil, err
		}
		args = append(args, "--backend", "plain", "--initramfs", initrd)
	case ErofsInitramfs:
		var err error
		if initrd, err = in.erofsInitramfs(ctx); err != nil {
			return nil, err
		}
		args = append(args, "--backend", "plain", "--initramfs", initrd)
	case Ours:
		dir, err := in.build(ctx, s.backend, v, flags...)
		if err != nil {
			return nil, err
		}
		m, err := in.manifest(dir)
		if err != nil {
			return nil, err
		}
		initrd = dir + "/" + m.Mini.File
		if s.backend != bootconf.Embedded {
			sc.ImageBytes = m.Image.Size
		}
		args = append(args, "--dir", dir, "--backend", string(s.backend))
	}
	var err error
	if sc.KernelBytes, err = sizeOf(args[1]); err != nil {
		return nil, err
	}
	if sc.BootBytes, err = sizeOf(args[1], initrd); err != nil {
		return nil, err
	}
	if sc.KernelSHA, err = in.sums.of(args[1]); err != nil {
		return nil, err
	}
	sc.Kernel = o.KernelVersion
	if s.given != nil {
		sc.Kernel = ""
		sc.TreeSHA, err = in.sums.of(initrd)
	} else {
		sc.TreeSHA, err = in.sums.of(o.Initramfs)
	}
	return args, err
}

// rootArguments give the guest its real root.
func (s series) rootArguments(o *Options) []string {
	if s.given != nil && s.given.Disk != "" {
		return []string{"--rootdisk", s.given.Disk}
	}
	return []string{"--rootdisk", o.RootDisk}
}

// expected are the milestones without which a boot of the series has failed.
func (s series) expected(until vmtest.Milestone) []vmtest.Milestone {
	list := []vmtest.Milestone{vmtest.KernelToInit}
	if s.kind == Nothing {
		return list
	}
	if s.kind == Ours {
		list = append(list, vmtest.HandedOver)
	}
	list = append(list, vmtest.InitfsInit)
	if until != vmtest.InitfsInit {
		list = append(list, until)
	}
	return list
}
