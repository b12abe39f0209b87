package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// buildFlags are the flags of the build verb that are not options of the
// builder by themselves.
type buildFlags struct {
	initramfs, root string
	config          string
	compress        string
	layout          layoutFlags
	asJSON          bool
}

// configFlags give keys of storage-init's configuration their values.
var configFlags = []struct{ flag, key, usage string }{
	{"backend", "backend", "`BACKEND`: block, loop, file, pmem, pmem-dax, embedded, ram, auto or auto:LIST (default auto)"},
	{"bootfs", "bootfs", "`TAG` of the boot filesystem: UUID=, LABEL=, PARTUUID=, PARTLABEL= or a path below /dev"},
	{"bootfstype", "bootfstype", "`TYPE` of the boot filesystem (default: any that is known, with the drivers for ext4)"},
	{"bootfs-hint", "bootfs_hint", "`DEVICE` to look at first"},
	{"fs", "fs", "`PATH` of the image on the boot filesystem (default /initoverlayfs-VERSION.img)"},
	{"device", "device", "`PATHS` or tags of the image's blobs, with commas between (default: beside the image)"},
	{"fstype", "fstype", "`TYPE` of the image: erofs"},
	{"scsi-addr", "scsi.addr", "the only LUN to look at, `HOST:CHANNEL:TARGET:LUN`"},
	{"timeout", "timeout", "`SECONDS` to wait for the device (default 30)"},
	{"return-memory", "return_memory", "yes or no: give memory that memmap= reserves for the image back after the boot (default yes)"},
	{"overlay-size", "overlay_size", "`SIZE` of the writable layer, with K, M, G or % (default 50%)"},
	{"init", "init", "`PATH` of the full tree's init (default /init, then /sbin/init)"},
	{"on-failure", "on_failure", "`POLICY`: reboot[:SECONDS], halt or panic (default reboot:10)"},
}

// A flag of all verbs that make images with names of modules that stay.
const (
	keepModulesFlag  = "keep-compressed-modules"
	keepModulesUsage = "leave compressed modules in the image as they are: it is smaller, and each boot unpacks them"
)

const compressUsage = "`ALGORITHM` of the mini-initramfs: zstd, lz4, gzip, xz or none;\nauto: the quickest that the kernel unpacks, as a rule lz4"

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	o := builder.Options{ToolVersion: toolVersion()}
	values := make([]string, len(configFlags))
	cmd := &cobra.Command{
		Use:   "build --kver VERSION (--initramfs FILE | --root DIR)",
		Short: "Turn an initramfs into a mini-initramfs and an image",
		Long: "Turn the initramfs of a kernel, or a directory, into a mini-initramfs\n" +
			"(initramfs-VERSION.img), an image (initoverlayfs-VERSION.img) and their manifest\n" +
			"(initoverlayfs-VERSION.json) in the folder --output. They appear complete or not\n" +
			"at all. Root is not needed.\n\n" +
			"The backend pmem-dax takes an uncompressed image, so it has --image-compress none.\n" +
			"The backend auto is every one that the kernel can serve, in the order pmem-dax\n" +
			"(with an uncompressed image), pmem, block, file, loop, ram.",
		Args: cobra.NoArgs,
	}
	p := cmd.Flags()
	p.StringVar(&o.KernelVersion, "kver", "", "`VERSION` of the kernel, as uname -r gives it")
	p.StringVar(&f.initramfs, "initramfs", "", "initramfs `FILE` to convert")
	p.StringVar(&f.root, "root", "", "`DIR` to convert")
	p.StringVar(&o.ModulesDir, "modules-dir", "", "`DIR` of the kernel's modules (default /lib/modules/VERSION)")
	p.StringVar(&o.KernelConfig, "kernel-config", "", "the kernel's configuration `FILE` (default: config beside the modules, or in boot)")
	p.StringArrayVar(&o.FirmwareDirs, "firmware-dir", nil, "`DIR` of firmware (default: those beside the modules)")
	p.StringVar(&o.OutputDir, "output", ".", "`DIR` to write into")
	p.StringVar(&o.Reuse, "reuse", "", "`DIR` of an earlier build, whose image is taken if this one would be the same")
	p.StringVar(&o.StorageInit, "storage-init", "", "the `PROGRAM` that becomes PID 1 (default: beside this one, or in /usr/lib/initoverlayfs)")
	p.StringVar(&f.config, "config", "", "configuration `FILE` to begin with; flags go before its values")
	for i, c := range configFlags {
		p.StringVar(&values[i], c.flag, "", c.usage)
	}
	p.StringArrayVar(&o.Modules, "module", nil, "further `MODULE` to load at every boot")
	p.StringSliceVar(&o.Storage, "storage", nil, "`DRIVERS` of the boot device: "+strings.Join(builder.StorageNames(), ", ")+" (default all)")
	p.BoolVar(&o.HostOnly, "hostonly", false, "take the drivers of this machine's boot filesystem")
	p.BoolVar(&o.StripModuleSignature, "strip-module-signatures", false,
		"load modules faster and taint the kernel, from the mini-initramfs and from the image; lockdown refuses them")
	p.BoolVar(&o.KeepCompressedModules, keepModulesFlag, false, keepModulesUsage)
	p.StringVar(&f.compress, "compress", builder.AutoFormat, compressUsage)
	p.StringVar(&o.Arch, "arch", runtime.GOARCH, "`ARCH` of the kernel, as Go names it")
	f.layout.add(p, "that of --kver")
	p.BoolVar(&f.asJSON, "json", false, "print the manifest")
	must(cmd.MarkFlagRequired("kver"))
	cmd.MarkFlagsMutuallyExclusive("initramfs", "root")
	cmd.MarkFlagsOneRequired("initramfs", "root")
	cmd.MarkFlagsMutuallyExclusive("hostonly", "storage")

	cmd.RunE = a.verb(func(ctx context.Context, _ []string) error {
		o.Source = builder.Source{Archive: f.initramfs, Dir: f.root}
		var err error
		if o.Config, err = readConfig(f.config); err != nil {
			return err
		}
		for i, c := range configFlags {
			if !p.Changed(c.flag) {
				continue
			}
			if err := o.Config.Set(c.key, values[i]); err != nil {
				return usageErrorf("--%s: %v", c.flag, err)
			}
		}
		if o.Compress, err = builder.ParseFormat(f.compress); err != nil {
			return usageErrorf("--compress: %v", err)
		}
		if usesDAX(o.Config) {
			if err := f.layout.forDAX(p); err != nil {
				return err
			}
		}
		if o.Producer, o.Image, err = f.layout.options(); err != nil {
			return err
		}
		if f.layout.boot == "auto" && f.layout.mkfs == "native" {
			o.Image.BootFiles.Init = onlyPmem(o.Config) && !o.Image.Compress.DAX()
		}
		if o.Epoch, err = a.sourceDateEpoch(); err != nil {
			return err
		}
		if !o.HostOnly && len(o.Storage) == 0 {
			o.Storage = []string{"all"}
		}
		o.Progress = func(s string) { a.progress("%s", s) }
		o.Warn = func(s string) { a.warn("%s", s) }
		m, err := builder.Build(ctx, o)
		if err != nil {
			return err
		}
		return a.printManifest(m, f.asJSON)
	})
	return cmd
}

// usesDAX reports whether pmem-dax was asked for by name; a plain auto has it
// only if the image suits it.
func usesDAX(c bootconf.Config) bool {
	plainAuto := c.Auto && slices.Equal(c.Backends, bootconf.AutoOrder)
	return slices.Contains(c.Backends, bootconf.PmemDAX) && !plainAuto
}

// onlyPmem reports whether the image is read from persistent memory in any case.
func onlyPmem(c bootconf.Config) bool {
	return !slices.ContainsFunc(c.Backends, func(b bootconf.Backend) bool { return b != bootconf.Pmem && b != bootconf.PmemDAX })
}

// readConfig reads a configuration file, in which every line must be known.
func readConfig(path string) (bootconf.Config, error) {
	c := bootconf.Default()
	if path == "" {
		return c, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if problems := c.ReadFile(string(text)); len(problems) > 0 {
		return c, fmt.Errorf("%s: %w", path, problems[0])
	}
	return c, nil
}

func (a *app) printManifest(m *bootconf.Manifest, asJSON bool) error {
	if asJSON {
		return a.printJSON(m)
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %d bytes, %d modules\n%s  %d bytes, UUID %s\n",
		m.Mini.File, m.Mini.Size, len(m.Mini.Modules), m.Image.File, m.Image.Size, m.Image.UUID)
	if r := m.Image.Region; r != nil && err == nil {
		_, err = fmt.Fprintf(a.stdout, "memory that comes back whole: %d MiB, %d MiB below a multiple of %d MiB, as %s\n",
			r.Size>>20, r.Below>>20, r.Align>>20, r.Memmap)
	}
	for _, line := range changeLines(m.Changes) {
		if err == nil {
			_, err = fmt.Fprintln(a.stdout, line)
		}
	}
	return err
}

// changeLines tells changes to people: those of one reason by their paths, or
// by their number and the folder that they have in common. The manifest has
// each.
func changeLines(changes []bootconf.Change) (lines []string) {
	const most = 4 // paths of one reason
	paths := make(map[string][]string)
	for _, c := range changes {
		paths[c.Reason] = append(paths[c.Reason], c.Path)
	}
	for _, c := range changes {
		group := paths[c.Reason]
		switch {
		case len(group) <= most:
			lines = append(lines, fmt.Sprintf("changed /%s: %s", c.Path, c.Reason))
		case c.Path == group[0]:
			lines = append(lines, fmt.Sprintf("changed %d files below /%s: %s", len(group), commonDir(group), c.Reason))
		}
	}
	return lines
}

// commonDir is the innermost folder of all these paths.
func commonDir(paths []string) string {
	common := strings.Split(path.Dir(paths[0]), "/")
	for _, p := range paths[1:] {
		parts := strings.Split(path.Dir(p), "/")
		n := 0
		for n < min(len(common), len(parts)) && common[n] == parts[n] {
			n++
		}
		common = common[:n]
	}
	return strings.Join(common, "/")
}

// must is for what only a mistake in this program can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
