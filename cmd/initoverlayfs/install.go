package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"initoverlayfs/builder"
	"initoverlayfs/install"
)

// machineFlags say which machine's boot files are meant.
type machineFlags struct {
	sysroot, config   string
	bootDir, imageDir string
	noEntries         bool
}

func (m *machineFlags) add(p *pflag.FlagSet) {
	p.StringVar(&m.sysroot, "sysroot", "", "root `DIR` of the machine, if it is not the running one")
	p.StringVar(&m.config, "config", "", "configuration `FILE` (default "+install.ConfigPath+" of the machine)")
	p.StringVar(&m.bootDir, "boot-dir", "", "`DIR` that the boot loader reads (default: /efi, /boot/efi or /boot with loader entries, else /boot)")
	p.StringVar(&m.imageDir, "image-dir", "", "`DIR` of the images (default: that of the boot loader)")
	p.BoolVar(&m.noEntries, "no-entries", false, "leave the boot loader's menu alone")
}

func (m *machineFlags) options(a *app) install.Options {
	return install.Options{
		Sysroot: m.sysroot, ConfigFile: m.config, BootDir: m.bootDir, ImageDir: m.imageDir, NoEntries: m.noEntries,
		Build:    builder.Options{Arch: runtime.GOARCH, ToolVersion: toolVersion()},
		Progress: func(s string) { a.progress("%s", s) },
		Warn:     func(s string) { a.warn("%s", s) },
	}
}

// installedKeys are the keys of storage-init that install finds by itself.
var installedKeys = []string{"fs", "fstype", "device"}

func (a *app) installCommand() *cobra.Command {
	var m machineFlags
	var layout layoutFlags
	var initramfs, workDir, storageInit, modulesDir, compression string
	var storage []string
	var hostOnly, keepModules, force, asJSON bool
	values := make([]string, len(configFlags))
	cmd := &cobra.Command{
		Use:   "install VERSION",
		Short: "Make the pair of an installed kernel and let it be booted",
		Long: "Turn the initramfs that the distribution made for a kernel into a pair, publish it\n" +
			"beside that one, and give it a boot entry before the plain one. Without an\n" +
			"initramfs the distribution's generator makes one.\n\n" +
			"Each pair has a folder of its own, initoverlayfs/VERSION/NUMBER below the boot\n" +
			"loader's. Nothing is overwritten: until the new pair is whole and durable, the\n" +
			"machine boots what it booted before. The pair before it is kept, with an entry.\n" +
			"How storage-init finds the image is taken from what is mounted.",
		Args: cobra.ExactArgs(1),
	}
	p := cmd.Flags()
	m.add(p)
	p.StringVar(&initramfs, "initramfs", "", "initramfs `FILE` to convert (default: the distribution's)")
	p.StringVar(&workDir, "work-dir", "", "`DIR` in which the pair is made (default /var/tmp)")
	p.StringVar(&storageInit, "storage-init", "", "the `PROGRAM` that becomes PID 1 (default: beside this one, or in /usr/lib/initoverlayfs)")
	p.StringVar(&modulesDir, "modules-dir", "", "`DIR` of the kernel's modules (default /lib/modules/VERSION)")
	p.StringVar(&compression, "compress", builder.AutoFormat, compressUsage)
	p.StringSliceVar(&storage, "storage", nil, "`DRIVERS` of the boot device: "+strings.Join(builder.StorageNames(), ", ")+" (default all)")
	p.BoolVar(&hostOnly, "hostonly", false, "take the drivers of this machine's boot filesystem")
	p.BoolVar(&keepModules, keepModulesFlag, false, keepModulesUsage)
	layout.add(p, "VERSION")
	for i, c := range configFlags {
		if !slices.Contains(installedKeys, c.key) {
			p.StringVar(&values[i], c.flag, "", c.usage)
		}
	}
	p.BoolVar(&force, "force", false, "make a new pair even if nothing has changed")
	p.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("hostonly", "storage")

	cmd.RunE = a.verb(func(ctx context.Context, args []string) error {
		o := m.options(a)
		o.KernelVersion, o.Initramfs, o.WorkDir, o.Force = args[0], initramfs, workDir, force
		for i, c := range configFlags {
			if p.Changed(c.flag) {
				o.Settings = append(o.Settings, [2]string{c.key, values[i]})
			}
		}
		var err error
		b := &o.Build
		if b.Producer, b.Image, err = layout.options(); err != nil {
			return err
		}
		if p.Changed("image-compress") {
			o.Compression = &b.Image.Compress
		}
		if b.Compress, err = builder.ParseFormat(compression); err != nil {
			return usageErrorf("--compress: %v", err)
		}
		if b.Epoch, err = a.sourceDateEpoch(); err != nil {
			return err
		}
		b.StorageInit, b.ModulesDir, b.Storage, b.HostOnly = storageInit, modulesDir, storage, hostOnly
		b.KeepCompressedModules = keepModules
		r, err := install.Install(ctx, o)
		if err != nil {
			return err
		}
		if asJSON {
			return a.printJSON(r)
		}
		return a.printInstalled(r)
	})
	return cmd
}

func (a *app) printInstalled(r *install.Result) error {
	what := "up to date"
	if r.New {
		what = "installed"
	}
	text := fmt.Sprintf("kernel %s  generation %d %s", r.KernelVersion, r.Current, what)
	if r.Previous != 0 {
		text += fmt.Sprintf(", %d is kept", r.Previous)
	}
	text += "\n"
	for _, g := range r.Generations {
		if g.Number == r.Current {
			text += fmt.Sprintf("%s  %d bytes\n", g.Mini, r.Manifest.Mini.Size)
			if g.Image != "" {
				text += fmt.Sprintf("%s  %d bytes, UUID %s\n", g.Image, r.Manifest.Image.Size, g.ImageUUID)
			}
		}
	}
	for _, e := range r.Entries {
		text += "entry " + e + "\n"
	}
	_, err := fmt.Fprint(a.stdout, text)
	return err
}

func (a *app) removeCommand() *cobra.Command {
	var m machineFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "remove (VERSION | --all)",
		Short: "Remove the pairs of a kernel, and their boot entries",
		Long: "Remove all that install made for a kernel: boot entries, mini-initramfs, images.\n" +
			"The plain initramfs and its entry stay.",
		Args: cobra.MaximumNArgs(1),
	}
	m.add(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "of all kernels")
	cmd.RunE = a.verb(func(ctx context.Context, args []string) error {
		o := m.options(a)
		if all == (len(args) == 1) {
			return usageErrorf("remove: give a kernel's version, or --all")
		}
		if !all {
			return a.remove(ctx, o, args)
		}
		// As long as there are some: a machine may have several boot folders.
		for {
			kernels, err := install.Kernels(o)
			if err != nil || len(kernels) == 0 {
				return err
			}
			if err := a.remove(ctx, o, kernels); err != nil {
				return err
			}
		}
	})
	return cmd
}

func (a *app) remove(ctx context.Context, o install.Options, kernels []string) error {
	for _, kver := range kernels {
		o.KernelVersion = kver
		if err := install.Remove(ctx, o); err != nil {
			return err
		}
		a.progress("removed the pairs of kernel %s", kver)
	}
	return nil
}

func (a *app) freezeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    install.FreezeVerb + " DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: a.verb(func(_ context.Context, args []string) error {
			return install.FreezeThaw(args[0])
		}),
	}
}
