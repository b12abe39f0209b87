package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
	"initoverlayfs/builder/kmod"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
)

// diskFlags are the flags of the disk verb.
type diskFlags struct {
	build builder.Options
	pairFlags
	output               string
	kernel, initramfs    string
	root, previous       string
	bootOn, loader       string
	defaultEntry         string
	loaderFile, token    string
	appendWords          string
	menuTimeout          int
	sizeESP, sizeBoot    string
	sizeRoot, format     string
	asJSON               bool
	embedded             bool
	loadAddress, memBase string
	memoryMiB            int
}

// pairFlags become options of the builder.
type pairFlags struct {
	values   []string // of configFlags
	compress string
	layout   layoutFlags
}

// Where --boot puts the image.
const (
	onExt4 = "ext4" // a file on a boot partition
	onESP  = "esp"  // a file on the EFI system partition
	onRaw  = "raw"  // a partition of its own
)

// Boot loaders of --bootloader.
const (
	loaderSystemd = "systemd-boot"
	loaderGrub    = "grub"
	loaderNone    = "none"
)

// menuRoles are the entries of the menu, in its order.
var menuRoles = []string{"pair", "plain", "previous"}

// efiNames has the names of an architecture in UEFI, by Go's names.
var efiNames = map[string]string{
	"386": "ia32", "amd64": "x64", "arm": "arm", "arm64": "aa64", "loong64": "loongarch64", "riscv64": "riscv64",
}

// placedFlags are the keys of configFlags that the disk decides by itself.
var placedFlags = []string{"bootfs", "bootfstype", "bootfs-hint", "fs", "device", "fstype"}

func (a *app) diskCommand() *cobra.Command {
	f := diskFlags{build: builder.Options{ToolVersion: toolVersion()}}
	cmd := &cobra.Command{
		Use:   "disk --output FILE --kver VERSION --kernel FILE --initramfs FILE --root DIR|TAR",
		Short: "Make a bootable disk image",
		Long: "Make a disk image that UEFI firmware boots: an EFI system partition with\n" +
			"systemd-boot or GRUB, the kernel, our mini-initramfs and the unchanged initramfs; the image\n" +
			"on a boot partition, on the EFI system partition or as a partition of its own; and\n" +
			"the root filesystem, an ext4 with what --root holds. The menu has our pair first,\n" +
			"the unchanged initramfs second, and the pair of --previous third.\n\n" +
			"Neither root nor a loop device is needed. A tar keeps its owners, device nodes and\n" +
			"extended attributes (under fakeroot, if not root); a directory is taken as it is.\n" +
			"The disk appears complete or not at all.\n\n" +
			"With --embedded, --output is a folder, and it gets what a board needs that has the\n" +
			"image in memory which the boot loader has filled: the files, their addresses, the\n" +
			"words for the kernel and a U-Boot script.",
		Args: cobra.NoArgs,
	}
	p := cmd.Flags()
	f.add(p)
	for _, name := range []string{"output", "kver", "kernel", "initramfs"} {
		must(cmd.MarkFlagRequired(name))
	}
	cmd.RunE = a.verb(func(ctx context.Context, _ []string) error {
		if f.embedded {
			return a.embedded(ctx, &f, p)
		}
		return a.disk(ctx, &f, p)
	})
	return cmd
}

func (f *diskFlags) add(p *pflag.FlagSet) {
	o := &f.build
	p.StringVar(&f.output, "output", "", "`FILE` to write; with --embedded a folder")
	p.StringVar(&o.KernelVersion, "kver", "", "`VERSION` of the kernel, as uname -r gives it")
	p.StringVar(&f.kernel, "kernel", "", "kernel `FILE`")
	p.StringVar(&f.initramfs, "initramfs", "", "initramfs `FILE` to convert, and to keep as the second entry")
	p.StringVar(&f.root, "root", "", "`DIR` or tar archive with the root filesystem")
	p.StringVar(&f.previous, "previous", "", "`DIR` of an earlier build, which becomes the third entry")
	p.StringVar(&f.bootOn, "boot", "", "`PLACE` of the image: ext4 (a boot partition), esp or raw (default: as the backend\nneeds it, else ext4)")
	p.StringVar(&f.loader, "bootloader", loaderSystemd, "`LOADER`: systemd-boot, grub, or none for the entries alone")
	p.StringVar(&f.loaderFile, "systemd-boot", "", "`FILE` of systemd-boot (default: the distribution's)")
	p.StringVar(&f.token, "entry-token", "linux", "`NAME` that the boot entries begin with")
	p.StringVar(&f.defaultEntry, "default", "", "`ENTRY` that is booted unless one is chosen: pair, plain or previous (default: the first)")
	p.IntVar(&f.menuTimeout, "menu-timeout", 3, "`SECONDS` that the menu waits")
	p.StringVar(&f.appendWords, "append", "", "further `WORDS` of the kernel command line, of every entry")
	p.StringVar(&f.sizeESP, "size-esp", "", "`SIZE` of the EFI system partition, with M or G (default: three times what it holds, at least 256M)")
	p.StringVar(&f.sizeBoot, "size-boot", "", "`SIZE` of the boot partition, or of each partition with an image (default: three times what it\nholds, at least 256M; of an image: its own)")
	p.StringVar(&f.sizeRoot, "size-root", "", "`SIZE` of the root partition (default: a quarter more than it holds)")
	p.StringVar(&f.format, "format", disk.Raw, "`FORMAT` of the disk: raw or qcow2 (by qemu-img)")
	p.BoolVar(&f.asJSON, "json", false, "print JSON")

	p.BoolVar(&f.embedded, "embedded", false, "write what a board with the image in reserved memory needs")
	p.IntVar(&f.memoryMiB, "memory", 512, "`MIB` of memory that the board has (--embedded)")
	p.StringVar(&f.memBase, "memory-base", "", "`ADDRESS` of the board's memory (--embedded; default 0, arm64 0x40000000)")
	p.StringVar(&f.loadAddress, "load-address", "", "`ADDRESS` of the image in memory (--embedded; default: the lowest that suits)")

	p.StringVar(&o.ModulesDir, "modules-dir", "", "`DIR` of the kernel's modules (default /lib/modules/VERSION)")
	p.StringVar(&o.KernelConfig, "kernel-config", "", "the kernel's configuration `FILE` (default: config beside the modules, or in boot)")
	p.StringArrayVar(&o.FirmwareDirs, "firmware-dir", nil, "`DIR` of firmware (default: those beside the modules)")
	p.StringVar(&o.StorageInit, "storage-init", "", "the `PROGRAM` that becomes PID 1 (default: beside this one, or in /usr/lib/initoverlayfs)")
	f.values = make([]string, len(configFlags))
	for i, c := range configFlags {
		if !slices.Contains(placedFlags, c.flag) {
			usage := c.usage
			if c.flag == "backend" {
				usage = "`BACKEND`: block, loop, file, ram, embedded or auto:LIST; with --embedded pmem or pmem-dax\n" +
					"(default: block if the image is a partition, else file if the kernel can, and loop; pmem)"
			}
			p.StringVar(&f.values[i], c.flag, "", usage)
		}
	}
	p.StringArrayVar(&o.Modules, "module", nil, "further `MODULE` to load at every boot")
	p.StringSliceVar(&o.Storage, "storage", nil, "`DRIVERS` of the boot device, as of build (default all)")
	p.StringVar(&f.compress, "compress", builder.AutoFormat, compressUsage)
	p.StringVar(&o.Arch, "arch", runtime.GOARCH, "`ARCH` of the kernel, as Go names it")
	f.layout.add(p, "that of --kver")
	must(p.MarkHidden("blobs")) // refused, and said why
}

// diskPlan is what is decided before the long work.
type diskPlan struct {
	f                  *diskFlags
	backends           []bootconf.Backend
	bootOn, bootfstype string
	loader             string     // file of systemd-boot
	grub               *grubTools // nil: it is another boot loader
	seed               string
	previous           *bootconf.Manifest
	sizes              map[string]int64 // bytes, by the flag's name
	work               string
}

// Labels of the partitions; DerivedUUID knows them, too.
const (
	espLabel      = "esp"
	bootLabel     = "boot"
	imageLabel    = "initoverlayfs"
	previousLabel = "initoverlayfs-previous"
	rootLabel     = "root"
)

// diskJSON is the document of `disk --json`.
type diskJSON struct {
	Output     string             `json:"output"`
	Format     string             `json:"format"`
	Size       int64              `json:"size"` // bytes of the disk, not of the file
	Partitions []diskPartition    `json:"partitions"`
	Entries    []diskEntry        `json:"entries"` // in the menu's order
	Manifest   *bootconf.Manifest `json:"manifest"`
}

type diskPartition struct {
	Label    string `json:"label"`
	Type     string `json:"type"`
	PartUUID string `json:"partuuid"`
	Offset   int64  `json:"offset"` // bytes
	Size     int64  `json:"size"`   // bytes
	FSType   string `json:"fstype"`
	FSUUID   string `json:"fsuuid,omitempty"`
}

type diskEntry struct {
	File    string `json:"file"`
	Title   string `json:"title"`
	Options string `json:"options"`

	linux, initrd string
}

func (a *app) disk(ctx context.Context, f *diskFlags, p *pflag.FlagSet) (err error) {
	plan, err := a.planDisk(ctx, f, p)
	if err != nil {
		return err
	}
	if plan.work, err = os.MkdirTemp(filepath.Dir(f.output), ".initoverlayfs-disk-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(plan.work)) }()

	f.build.OutputDir = filepath.Join(plan.work, "pair")
	m, err := builder.Build(ctx, f.build)
	if err != nil {
		return err
	}
	a.progress("making the disk")
	spec, entries, err := plan.spec(ctx, m)
	if err != nil {
		return err
	}
	parts, err := disk.Create(ctx, f.output, spec)
	if err != nil {
		return err
	}
	doc := diskJSON{Output: f.output, Format: f.format, Entries: entries, Manifest: m}
	for _, p := range parts {
		fsType := p.FS
		if p.Image != "" {
			fsType = "erofs"
		}
		doc.Partitions = append(doc.Partitions, diskPartition{
			Label: p.Label, Type: strings.ToLower(p.Type), PartUUID: strings.ToLower(p.GUID),
			Offset: p.Offset, Size: p.Size, FSType: fsType, FSUUID: p.FSUUID,
		})
		doc.Size = p.Offset + p.Size + 1<<20 // the table's copy
	}
	if f.asJSON {
		return a.printJSON(doc)
	}
	return a.printDisk(doc)
}

func (a *app) printDisk(doc diskJSON) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %d MiB, %s\n", doc.Output, doc.Size>>20, doc.Format)
	for _, p := range doc.Partitions {
		fmt.Fprintf(&b, "%-24s%-7s%6d MiB  PARTUUID=%s\n", p.Label, p.FSType, p.Size>>20, p.PartUUID)
	}
	for _, e := range doc.Entries {
		fmt.Fprintf(&b, "%s\n    %s\n", e.Title, e.Options)
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// planDisk checks everything that can be checked before the long work.
func (a *app) planDisk(ctx context.Context, f *diskFlags, p *pflag.FlagSet) (*diskPlan, error) {
	plan := &diskPlan{f: f, sizes: map[string]int64{}}
	for _, name := range []string{"load-address", "memory", "memory-base"} {
		if p.Changed(name) {
			return nil, usageErrorf("--%s goes with --embedded", name)
		}
	}
	switch {
	case f.root == "":
		return nil, usageErrorf("--root is missing")
	case !slices.Contains([]string{loaderSystemd, loaderGrub, loaderNone}, f.loader):
		return nil, usageErrorf("--bootloader: unknown boot loader %q; it is %s, %s or %s", f.loader, loaderSystemd, loaderGrub, loaderNone)
	case f.format != disk.Raw && f.format != disk.QCOW2:
		return nil, usageErrorf("--format: unknown format %q; it is %s or %s", f.format, disk.Raw, disk.QCOW2)
	case f.token == "" || strings.ContainsAny(f.token, "/ \t\n") || strings.HasPrefix(f.token, "."):
		return nil, usageErrorf("--entry-token: %q is not a name", f.token)
	case f.defaultEntry != "" && !slices.Contains(menuRoles, f.defaultEntry):
		return nil, usageErrorf("--default: unknown entry %q; it is %s", f.defaultEntry, strings.Join(menuRoles, ", "))
	case f.defaultEntry == menuRoles[2] && f.previous == "":
		return nil, usageErrorf("--default: the disk has no previous pair without --previous")
	case f.menuTimeout < 0:
		return nil, usageErrorf("--menu-timeout: %d is negative", f.menuTimeout)
	case strings.ContainsAny(f.appendWords, "\n"):
		return nil, usageErrorf("--append: has more than one line")
	case f.layout.blobs != "":
		return nil, usageErrorf("--blobs: a disk takes images whose data is their own")
	}
	for name, value := range map[string]string{"size-esp": f.sizeESP, "size-boot": f.sizeBoot, "size-root": f.sizeRoot} {
		if value == "" {
			continue
		}
		var err error
		if plan.sizes[name], err = parseSize(value); err != nil {
			return nil, usageErrorf("--%s: %v", name, err)
		}
	}
	if err := plan.chooseBackends(a, p); err != nil {
		return nil, err
	}
	if disk.Root[f.build.Arch] == "" || f.loader != loaderNone && efiNames[f.build.Arch] == "" {
		return nil, fmt.Errorf("no disk is known for the architecture %s", f.build.Arch)
	}
	if err := a.checkDiskInputs(plan); err != nil {
		return nil, err
	}
	if err := plan.findPrevious(); err != nil {
		return nil, err
	}
	if f.previous == "" {
		a.progress("no --previous: the disk has no third entry")
	}
	return plan, plan.identify(ctx)
}

// chooseBackends settles the backends, where the image lies, and the options of
// the builder.
func (plan *diskPlan) chooseBackends(a *app, p *pflag.FlagSet) error {
	f := plan.f
	if err := f.builderOptions(a, p); err != nil {
		return err
	}
	plan.bootOn = f.bootOn
	if !slices.Contains([]string{"", onExt4, onESP, onRaw}, f.bootOn) {
		return usageErrorf("--boot: unknown place %q; it is %s, %s or %s", f.bootOn, onExt4, onESP, onRaw)
	}
	c := &f.build.Config
	if !p.Changed("backend") {
		backend := "block"
		if f.bootOn != onRaw {
			backend = "loop"
			if f.canMountFiles() {
				backend = "auto:file,loop"
			}
		}
		if err := c.Set("backend", backend); err != nil {
			return err
		}
	}
	plan.backends = c.Backends
	fileNeeded := slices.ContainsFunc(c.Backends, bootconf.Backend.OnBootfs)
	partitionNeeded := slices.Contains(c.Backends, bootconf.Block)
	switch {
	case c.Auto && slices.Equal(c.Backends, bootconf.AutoOrder):
		return usageErrorf("--backend: a disk takes a backend by name, or auto:LIST")
	case slices.Contains(c.Backends, bootconf.Pmem) || slices.Contains(c.Backends, bootconf.PmemDAX):
		return hinted{
			errors.New("no disk has its image in persistent memory"),
			"write the files for a board that has it so with --embedded",
		}
	case fileNeeded && partitionNeeded:
		return usageErrorf("--backend: block needs the image as a partition, the others as a file")
	case partitionNeeded && f.bootOn != "" && f.bootOn != onRaw:
		return usageErrorf("the backend block needs --boot raw")
	case fileNeeded && f.bootOn == onRaw:
		return usageErrorf("--boot raw needs the backend block")
	case plan.bootOn != "":
	case partitionNeeded:
		plan.bootOn = onRaw
	case fileNeeded:
		plan.bootOn = onExt4
	default: // the image is in the mini-initramfs
		plan.bootOn = onESP
	}
	plan.bootfstype = map[string]string{onExt4: "ext4", onESP: "vfat"}[plan.bootOn]
	if plan.bootfstype != "" {
		return c.Set("bootfstype", plan.bootfstype)
	}
	return nil
}

// builderOptions reads the flags that are the builder's.
func (f *diskFlags) builderOptions(a *app, p *pflag.FlagSet) (err error) {
	o := &f.build
	o.Source = builder.Source{Archive: f.initramfs}
	o.Config = bootconf.Default()
	for i, c := range configFlags {
		if p.Lookup(c.flag) == nil || !p.Changed(c.flag) {
			continue
		}
		if err := o.Config.Set(c.key, f.values[i]); err != nil {
			return usageErrorf("--%s: %v", c.flag, err)
		}
	}
	if o.Compress, err = builder.ParseFormat(f.compress); err != nil {
		return usageErrorf("--compress: %v", err)
	}
	if usesDAX(o.Config) && p.Changed("backend") {
		if err := f.layout.forDAX(p); err != nil {
			return err
		}
	}
	if o.Producer, o.Image, err = f.layout.options(); err != nil {
		return err
	}
	if o.Epoch, err = a.sourceDateEpoch(); err != nil {
		return err
	}
	if len(o.Storage) == 0 {
		o.Storage = []string{"all"}
	}
	o.Progress = func(s string) { a.progress("%s", s) }
	o.Warn = func(s string) { a.warn("%s", s) }
	return nil
}

// canMountFiles reports whether the kernel mounts an image on a file. The build
// itself says what is wrong with the modules.
func (f *diskFlags) canMountFiles() bool {
	dir := firstOf(f.build.ModulesDir, filepath.Join("/lib/modules", f.build.KernelVersion))
	index, err := kmod.Open(dir, f.build.KernelVersion)
	if err != nil {
		return false
	}
	var config []byte
	if f.build.KernelConfig != "" {
		config, err = os.ReadFile(f.build.KernelConfig)
	} else {
		config, err = builder.FindKernelConfig(dir, f.build.KernelVersion)
	}
	return err == nil && builder.CheckBackend(bootconf.File, index, config) == nil
}

// checkDiskInputs makes sure that the files and programs are there.
func (a *app) checkDiskInputs(plan *diskPlan) error {
	f := plan.f
	if err := checkNewFile(f.output); err != nil {
		return err
	}
	files := []string{f.kernel, f.initramfs}
	switch f.loader {
	case loaderGrub:
		var err error
		if plan.grub, err = findGrub(f.build.Arch); err != nil {
			return err
		}
	case loaderSystemd:
		plan.loader = f.loaderFile
		if plan.loader == "" {
			plan.loader = "/usr/lib/systemd/boot/efi/systemd-boot" + efiNames[f.build.Arch] + ".efi"
			if _, err := os.Stat(plan.loader); err != nil {
				return hinted{err, "install systemd-boot-efi (Debian) or systemd-boot-unsigned (Fedora), or name the file with --systemd-boot"}
			}
		}
		files = append(files, plan.loader)
	}
	for _, file := range files {
		if err := checkRegular(file); err != nil {
			return err
		}
	}
	if err := disk.CheckTree(f.root); err != nil {
		return err
	}
	return disk.CheckFormat(f.format)
}

func checkRegular(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	return err
}

// checkNewFile makes sure that a file can come to be at path, which is not
// something that is in use as something else.
func checkNewFile(path string) error {
	info, err := os.Lstat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("write %s: in the way is something that is not a regular file", path)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	if info, err = os.Stat(filepath.Dir(path)); err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("write %s: %s is not a folder", path, filepath.Dir(path))
	}
	return nil
}

// findPrevious reads the build of --previous and makes sure that this disk can
// boot it.
func (plan *diskPlan) findPrevious() error {
	f := plan.f
	if f.previous == "" {
		return nil
	}
	m, err := (&bootFlags{dir: f.previous, kver: f.build.KernelVersion}).readManifest()
	if err != nil {
		return err
	}
	config, err := builder.MiniConfig(filepath.Join(f.previous, m.Mini.File))
	if err != nil {
		return err
	}
	if err := checkRegular(filepath.Join(f.previous, m.Image.File)); err != nil {
		return err
	}
	suits := func(b bootconf.Backend) bool {
		switch b {
		case bootconf.Embedded:
			return true
		case bootconf.Block:
			return plan.bootOn == onRaw
		}
		return b.OnBootfs() && plan.bootOn != onRaw
	}
	switch {
	case len(m.Image.Blobs) > 0:
		return fmt.Errorf("the build in %s has its data in blobs", f.previous)
	case !slices.ContainsFunc(config.Backends, suits):
		return hinted{
			fmt.Errorf("the build in %s has the backend %s, which does not suit --boot %s",
				f.previous, bootconf.FormatBackends(config.Backends, config.Auto), plan.bootOn),
			"build it with --backend block for raw, and with loop for the others",
		}
	case plan.bootfstype != "" && firstOf(config.BootfsType, "ext4") != plan.bootfstype && config.Backends[0] != bootconf.Embedded:
		return hinted{
			fmt.Errorf("the build in %s has the drivers for %s, not for %s", f.previous, firstOf(config.BootfsType, "ext4"), plan.bootfstype),
			"build it with --bootfstype " + plan.bootfstype,
		}
	}
	plan.previous = m
	return nil
}

// identify derives the disk's seed from all that goes into it, and tells the
// builder where the image will be.
func (plan *diskPlan) identify(ctx context.Context) error {
	f := plan.f
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s\n", f.build.KernelVersion, f.build.Arch, plan.bootOn, f.token, f.appendWords)
	for _, path := range []string{f.kernel, f.initramfs} {
		digest, err := digestOf(path)
		if err != nil {
			return err
		}
		fmt.Fprintln(h, digest)
	}
	if plan.previous != nil {
		fmt.Fprintln(h, plan.previous.Mini.SHA256)
	}
	digest, err := disk.TreeDigest(ctx, f.root)
	if err != nil {
		return err
	}
	fmt.Fprintln(h, digest)
	plan.seed = hex.EncodeToString(h.Sum(nil))
	c := &f.build.Config
	if err := c.Set("bootfs", plan.bootfs(imageLabel)); err != nil || plan.bootOn == onRaw {
		return err
	}
	return c.Set("fs", plan.folder(plan.current())+"/initoverlayfs-"+f.build.KernelVersion+".img")
}

func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// bootfs gives the tag by which storage-init finds the image; label is that of
// the image's partition, where it has one.
func (plan *diskPlan) bootfs(label string) string {
	switch plan.bootOn {
	case onRaw:
		return "PARTLABEL=" + label
	case onESP:
		return "PARTUUID=" + plan.partUUID(1, espLabel)
	}
	return "PARTUUID=" + plan.partUUID(2, bootLabel)
}

func (plan *diskPlan) partUUID(number int, label string) string {
	return disk.DerivedUUID(plan.seed, fmt.Sprintf("partition %d %s", number, label))
}

// folder has the files of a pair, where the verb install would put them.
func (plan *diskPlan) folder(generation int) string {
	return fmt.Sprintf("/initoverlayfs/%s/%d", plan.f.build.KernelVersion, generation)
}

// current is the number of the new pair.
func (plan *diskPlan) current() int {
	if plan.previous != nil {
		return 2
	}
	return 1
}

// pair is a mini-initramfs and an image, with their places on the disk.
type pair struct {
	*bootconf.Manifest
	dir    string // on this machine
	folder string // on the boot file system
	label  string // of the image's partition
}

func (p *pair) onHost(file string) string { return filepath.Join(p.dir, file) }
func (p *pair) onDisk(file string) string { return p.folder + "/" + file }

// spec describes the disk for the finished pair.
func (plan *diskPlan) spec(ctx context.Context, m *bootconf.Manifest) (disk.Spec, []diskEntry, error) {
	f := plan.f
	pairs := []pair{{m, f.build.OutputDir, plan.folder(plan.current()), imageLabel}}
	if plan.previous != nil {
		pairs = append(pairs, pair{plan.previous, f.previous, plan.folder(1), previousLabel})
	}
	kernel := "/" + f.token + "/" + m.KernelVersion + "/linux"
	plain := "/" + f.token + "/" + m.KernelVersion + "/initrd.img"
	esp := map[string]string{kernel: f.kernel, plain: f.initramfs}
	images := map[string]string{}
	var partitions []disk.Partition // of images
	for _, p := range pairs {
		esp[p.onDisk(p.Mini.File)] = p.onHost(p.Mini.File)
		esp[p.onDisk("initoverlayfs-"+p.KernelVersion+".json")] = p.onHost("initoverlayfs-" + p.KernelVersion + ".json")
		image := p.onHost(p.Image.File)
		switch plan.bootOn {
		case onESP:
			if !slices.Equal(plan.backends, []bootconf.Backend{bootconf.Embedded}) {
				esp[p.onDisk(p.Image.File)] = image
			}
		case onExt4:
			images[p.onDisk(p.Image.File)] = image
		case onRaw:
			partitions = append(partitions, disk.Partition{Label: p.label, Type: disk.Image, Image: image})
		}
	}
	if plan.bootOn == onExt4 {
		partitions = append(partitions, disk.Partition{Label: bootLabel, Type: disk.XBOOTLDR, FS: "ext4", FSLabel: bootLabel, Files: images})
	}
	parts := slices.Concat(
		[]disk.Partition{{Label: espLabel, Type: disk.EFISystem, FS: "vfat", FSLabel: "ESP", Files: esp}},
		partitions,
		[]disk.Partition{{Label: rootLabel, Type: disk.Root[f.build.Arch], FS: "ext4", FSLabel: rootLabel, Tree: f.root}})
	// The entries name the root by what it is going to have.
	rootFS := &parts[len(parts)-1]
	rootFS.FSUUID = disk.DerivedUUID(plan.seed, "root filesystem")
	serial := strings.ToUpper(disk.DerivedUUID(plan.seed, "serial number"))
	parts[0].FSUUID = serial[:4] + "-" + serial[4:8]

	entries, err := plan.entries(esp, pairs, kernel, plain, rootFS.FSUUID)
	if err != nil {
		return disk.Spec{}, nil, err
	}
	if err := plan.addLoader(ctx, esp, entries, parts[0].FSUUID); err != nil {
		return disk.Spec{}, nil, err
	}
	if err := plan.setSizes(parts); err != nil {
		return disk.Spec{}, nil, err
	}
	return disk.Spec{Seed: plan.seed, Epoch: f.build.Epoch, Format: f.format, Partitions: parts}, entries, nil
}

// addLoader adds the boot loader and its configuration to the files of the EFI
// system partition, which has this serial number.
func (plan *diskPlan) addLoader(ctx context.Context, esp map[string]string, entries []diskEntry, serial string) (err error) {
	f := plan.f
	program, config := plan.loader, "/loader/loader.conf"
	text := "timeout " + strconv.Itoa(f.menuTimeout) + "\n"
	chosen := max(0, slices.Index(menuRoles, f.defaultEntry))
	if f.defaultEntry != "" {
		text += "default " + entries[chosen].File + "\n"
	}
	switch {
	case f.loader == loaderNone:
		return nil
	case plan.grub != nil:
		if program, err = plan.grub.make(ctx, plan.work, serial); err != nil {
			return err
		}
		config, text = grubMenuPath, grubMenu(entries, chosen, f.menuTimeout)
	}
	host := filepath.Join(plan.work, filepath.Base(config))
	esp[config] = host
	esp["/EFI/BOOT/BOOT"+strings.ToUpper(efiNames[f.build.Arch])+".EFI"] = program
	return os.WriteFile(host, []byte(text), 0o600)
}

// entries adds the menu to the files of the EFI system partition, and gives it
// in its order: ours, the unchanged initramfs, the previous pair.
func (plan *diskPlan) entries(esp map[string]string, pairs []pair, kernel, plain, rootUUID string) ([]diskEntry, error) {
	f := plan.f
	kver := f.build.KernelVersion
	options := strings.TrimSpace(f.appendWords)
	hasRoot := false
	for word := range bootconf.Words(options) {
		hasRoot = hasRoot || strings.HasPrefix(word, "root=")
	}
	if !hasRoot {
		options = strings.TrimSpace("root=UUID=" + rootUUID + " rw " + options)
	}
	// It is the distribution's to replace and to remove, so nothing in it says
	// that it is ours.
	name := f.token + "-" + kver + ".conf"
	text := fmt.Appendf(nil, "title Linux %s\nversion %s\nlinux %s\ninitrd %s\noptions %s\n", kver, kver, kernel, plain, options)
	dir := filepath.Join(plan.work, "loader", "entries")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		return nil, err
	}
	menu := bootentry.Plan{
		Boot: plan.work, Version: kver, Plain: bootentry.ParseBLS(name, text), Initrd: pairs[0].onDisk(pairs[0].Mini.File),
	}
	if len(pairs) > 1 {
		menu.Previous = pairs[1].onDisk(pairs[1].Mini.File)
	}
	written, err := bootentry.WriteBLS(menu)
	if err != nil {
		return nil, err
	}
	names := []string{name}
	for _, name := range written.Names {
		e, err := bootentry.ReadBLS(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if role, _, _ := e.Ours(); role == bootentry.Current {
			names = slices.Insert(names, 0, name)
			continue
		}
		// The pair was made for another place. Behind a "--" words are init's.
		moved := bytes.Replace(e.Format(), []byte("options "), []byte("options "+plan.moved(pairs[1])+" "), 1)
		if err := os.WriteFile(filepath.Join(dir, name), moved, 0o600); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	var list []diskEntry
	for _, name := range names {
		host := filepath.Join(dir, name)
		esp["/loader/entries/"+name] = host
		e, err := bootentry.ReadBLS(host)
		if err != nil {
			return nil, err
		}
		list = append(list, diskEntry{name, e.Get("title"), e.Get("options"), e.Get("linux"), e.Get("initrd")})
	}
	return list, nil
}

// moved has the words that tell a pair's storage-init where its image is now.
func (plan *diskPlan) moved(p pair) string {
	words := bootconf.CmdlinePrefix + "bootfs=" + plan.bootfs(p.label)
	if plan.bootOn != onRaw {
		words += " " + bootconf.CmdlinePrefix + "fs=" + p.onDisk(p.Image.File)
	}
	return words
}

// setSizes sets the sizes of the partitions. Those that a machine updates get
// room for more than they hold.
func (plan *diskPlan) setSizes(parts []disk.Partition) error {
	const least = 256 << 20
	for i := range parts {
		p := &parts[i]
		flag := "size-boot"
		switch p.Label {
		case espLabel:
			flag = "size-esp"
		case rootLabel:
			flag = "size-root"
		}
		if p.Size = plan.sizes[flag]; p.Size > 0 {
			continue
		}
		if len(p.Files) == 0 {
			continue // as large as its content needs
		}
		for _, host := range p.Files {
			info, err := os.Stat(host)
			if err != nil {
				return err
			}
			p.Size += 3 * info.Size()
		}
		p.Size = max(p.Size, least)
	}
	return nil
}

// parseSize reads a number of bytes, or of the unit that follows it.
func parseSize(s string) (int64, error) {
	number, shift := strings.TrimRight(s, "KMG"), 0
	if unit := s[len(number):]; unit != "" {
		shift = map[string]int{"K": 10, "M": 20, "G": 30}[unit]
		if shift == 0 {
			return 0, fmt.Errorf("bad size %q", s)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("bad size %q", s)
	}
	return n << shift, nil
}
