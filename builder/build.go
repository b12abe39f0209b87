// Package builder turns the initramfs that a distribution's generator made into
// a mini-initramfs and an EROFS image, and says in a manifest what it did.
package builder

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// Options are what a build is made from.
type Options struct {
	KernelVersion string
	Arch          string // as Go names it
	Source        Source
	// ModulesDir is the kernel's module directory; empty: lib/modules/V, then
	// usr/lib/modules/V.
	ModulesDir string
	// KernelConfig is the file with the kernel's build configuration; empty:
	// looked for beside the modules and in boot.
	KernelConfig string
	OutputDir    string
	StorageInit  string // the program; empty: see FindStorageInit

	// Config is the configuration of storage-init; the build sets the image's
	// identity, and FS if it is empty.
	Config bootconf.Config

	Producer Producer
	// Image says how the image is laid out; a Kernel of zero is that of
	// KernelVersion.
	Image ImageOptions
	// Reuse is a directory with an earlier build for this kernel, whose image is
	// copied if this build would make the same one; empty: none.
	Reuse string

	Compress             compress.Format // of the mini-initramfs; empty: the quickest that the kernel unpacks
	Modules              []string        // further modules
	Storage              []string        // driver sets
	HostOnly             bool            // the drivers of this machine's boot filesystem
	StripModuleSignature bool            // of the mini-initramfs and of the full tree
	// KeepCompressedModules leaves the compressed modules of the full tree as
	// they are, with their signatures; else they are stored unpacked.
	KeepCompressedModules bool
	FirmwareDirs          []string // empty: those of the system that has the modules

	// MiniBuilder, if set, makes the mini-initramfs, with everything that belongs
	// in it: what is said above of modules, drivers and compression is then its
	// own affair. The configuration has the image's identity.
	MiniBuilder func(ctx context.Context, c bootconf.Config, out *os.File) error

	// Epoch is the value of SOURCE_DATE_EPOCH, in seconds.
	Epoch       int64
	ToolVersion string

	// Progress, if set, is told what begins; Warn what is doubtful.
	Progress, Warn func(string)
}

// Names of the files that a build writes.
func miniName(kver string) string     { return "initramfs-" + kver + ".img" }
func imageName(kver string) string    { return "initoverlayfs-" + kver + ".img" }
func manifestName(kver string) string { return "initoverlayfs-" + kver + ".json" }

// Build turns a full tree into a mini-initramfs, an image and a manifest in the
// output directory. They appear when all of them are complete, the manifest
// last; a build that fails leaves the directory as it was.
func Build(ctx context.Context, o Options) (*bootconf.Manifest, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.KernelVersion == "" || strings.ContainsAny(o.KernelVersion, "/\x00") || strings.HasPrefix(o.KernelVersion, ".") {
		return nil, fmt.Errorf("bad kernel version %q", o.KernelVersion)
	}
	if o.Image.Kernel == (erofs.KernelVersion{}) {
		var err error
		if o.Image.Kernel, err = erofs.ParseKernelVersion(o.KernelVersion); err != nil {
			o.Image.Kernel = BaselineKernel
			o.Warn(fmt.Sprintf("%v; the image is made for Linux %v", err, BaselineKernel))
		}
	}
	program, err := FindStorageInit(o.StorageInit, o.Arch)
	if err != nil {
		return nil, err
	}
	mini, err := o.miniOptions(program)
	if err != nil {
		return nil, err
	}
	if slices.Contains(mini.Config.Backends, bootconf.PmemDAX) && !o.Image.Compress.DAX() {
		return nil, errors.New("backend pmem-dax needs an uncompressed image")
	}
	if err := o.checkBlobs(&mini.Config); err != nil {
		return nil, err
	}
	// What the kernel lacks is known before the long part begins.
	if err := o.checkKernel(&mini); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.OutputDir, 0o755); err != nil {
		return nil, err
	}

	o.Progress("reading " + o.Source.Path())
	tree, err := readTree(ctx, o.Source, o.Producer, o.Image)
	if err != nil {
		return nil, err
	}
	defer tree.close()
	return o.build(ctx, tree, program, mini)
}

// build converts a tree that was read.
func (o *Options) build(ctx context.Context, tree *fullTree, program string, mini MiniOptions) (*bootconf.Manifest, error) {
	kind := KindOf(tree.Tree)
	if kind == bootconf.KindUnknown {
		o.Warn("it is not known what made " + o.Source.Path() + "; its hand-over to the real root is left as it is, " +
			"and fails if it insists on a ramfs or tmpfs root")
	}
	if n := len(tree.Dropped); n > 0 {
		o.Warn(fmt.Sprintf("%d entries of %s are left out, as the kernel leaves them out; the first: %s",
			n, o.Source.Path(), tree.Dropped[0]))
	}
	if unseen := parseKernelConfig(mini.KernelConfig).unseenXattrs(tree.Tree); unseen != "" {
		o.Warn(fmt.Sprintf("kernel %s does not show extended attributes of %s: %s", o.KernelVersion, o.Source.Path(), unseen))
	}
	changes, err := replaceSwitchRoot(tree.Tree, tree.writer, kind, program)
	if err != nil {
		return nil, err
	}
	modules, err := tree.storeModules(ctx, kind, o.KernelVersion, modulesOptions{
		unpack: !o.KeepCompressedModules, strip: o.StripModuleSignature, temp: o.Image.TempDir, warn: o.Warn,
	})
	if err != nil {
		return nil, fmt.Errorf("modules of %s: %w", o.Source.Path(), err)
	}
	changes = sortedChanges(append(changes, modules...))
	files := pendingFiles{dir: o.OutputDir}
	defer files.discard()
	imageFile, err := files.create(imageName(o.KernelVersion), privateMode)
	if err != nil {
		return nil, err
	}
	miniFile, err := files.create(miniName(o.KernelVersion), privateMode)
	if err != nil {
		return nil, err
	}
	manifestFile, err := files.create(manifestName(o.KernelVersion), publicMode)
	if err != nil {
		return nil, err
	}

	image, err := o.image(ctx, tree, imageFile)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", o.Source.Path(), err)
	}

	o.Progress("making the mini-initramfs")
	mini.Config.ImageUUID = image.UUID
	mini.Config.ImageSize = image.SizeBytes
	if err := nameBlobs(&mini.Config, image.Devices); err != nil {
		return nil, err
	}
	if slices.Contains(mini.Config.Backends, bootconf.Embedded) {
		mini.Image = io.NewSectionReader(imageFile, 0, image.SizeBytes)
	}
	var loaded []bootconf.Module
	if o.MiniBuilder != nil {
		err = o.MiniBuilder(ctx, mini.Config, miniFile)
	} else {
		loaded, err = WriteMini(miniFile, mini)
	}
	if err != nil {
		return nil, err
	}
	miniInfo, err := miniFile.Stat()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(miniFile, 0, miniInfo.Size())); err != nil {
		return nil, fmt.Errorf("read %s: %w", miniFile.Name(), err)
	}

	m := &bootconf.Manifest{
		Format:        bootconf.ManifestFormat,
		KernelVersion: o.KernelVersion,
		Arch:          o.Arch,
		ToolVersion:   o.ToolVersion,
		Source: bootconf.ManifestSource{
			Path:   filepath.Base(o.Source.Path()),
			SHA256: tree.sha256,
			Kind:   kind,
		},
		Image: bootconf.ManifestImage{
			File:     imageName(o.KernelVersion),
			Size:     image.SizeBytes,
			UUID:     image.UUID.String(),
			SHA256:   image.SHA256,
			Features: image.Features(),
			DAX:      o.Image.Compress.DAX() && o.Image.BlobDir == "",
		},
		Mini: bootconf.ManifestMini{
			File:    miniName(o.KernelVersion),
			Size:    miniInfo.Size(),
			SHA256:  sum(h),
			Modules: make([]string, len(loaded)),
		},
		Changes: changes,
	}
	if o.Arch == "amd64" && slices.ContainsFunc(mini.Config.Backends, bootconf.Backend.InMemory) {
		region := bootconf.RegionFor(image.SizeBytes)
		m.Image.Region = &region
	}
	for _, d := range image.Devices {
		m.Image.Blobs = append(m.Image.Blobs, BlobName(d))
	}
	for i := range loaded {
		m.Mini.Modules[i] = loaded[i].String()
	}
	if m.Changes == nil {
		m.Changes = []bootconf.Change{} // a list in JSON, not null
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if _, err := manifestFile.Write(append(text, '\n')); err != nil {
		return nil, err
	}
	return m, files.publish()
}

// checkKernel reports what the kernel lacks for the mini-initramfs.
func (o *Options) checkKernel(mini *MiniOptions) error {
	if o.MiniBuilder == nil {
		_, err := planModules(mini)
		return err
	}
	var errs []error
	for _, b := range mini.Config.Backends {
		if b == bootconf.Embedded {
			return errors.New("backend embedded needs a mini-initramfs of our own making")
		}
		errs = append(errs, CheckBackend(b, mini.Modules, mini.KernelConfig))
	}
	return errors.Join(errs...)
}

// image puts the image of a tree into the empty file f.
func (o *Options) image(ctx context.Context, tree *fullTree, f *os.File) (Image, error) {
	if o.Reuse != "" {
		image, err := tree.copyImage(ctx, f, o.Reuse, o.KernelVersion, o.Epoch)
		if err == nil {
			o.Progress("taking the image from " + o.Reuse)
			return image, nil
		}
		o.Warn("the image in " + o.Reuse + " is not taken: " + err.Error())
	}
	o.Progress("making the image")
	if _, err := tree.writeImage(ctx, f, o.Epoch); err != nil {
		return Image{}, err
	}
	// The disk writes while the digest is computed.
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }()
	image, err := InspectImage(f)
	return image, errors.Join(err, <-synced)
}

// ReadManifest reads a manifest of a build and checks that it is one that this
// version knows.
func ReadManifest(path string) (*bootconf.Manifest, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := new(bootconf.Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", path, err)
	}
	if m.Format != bootconf.ManifestFormat {
		return nil, fmt.Errorf("manifest %s: format %d; this program knows %d", path, m.Format, bootconf.ManifestFormat)
	}
	for _, name := range []string{m.Image.File, m.Mini.File} {
		if name == "" || filepath.Base(name) != name {
			return nil, fmt.Errorf("manifest %s: bad file name %q", path, name)
		}
	}
	return m, nil
}

// MiniConfig reads the configuration that a mini-initramfs holds.
func MiniConfig(path string) (bootconf.Config, error) {
	c := bootconf.Default()
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	r := cpio.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, fmt.Errorf("%s: has no %s, so it is not a mini-initramfs", path, bootconf.ConfigPath)
		}
		if err != nil {
			return c, fmt.Errorf("read %s: %w", path, err)
		}
		if "/"+h.Name != bootconf.ConfigPath {
			continue
		}
		var text bytes.Buffer
		if _, err := io.Copy(&text, io.LimitReader(r, 1<<20)); err != nil {
			return c, fmt.Errorf("read %s: %w", path, err)
		}
		if problems := c.ReadFile(text.String()); len(problems) > 0 {
			return c, fmt.Errorf("%s: %s: %w", path, bootconf.ConfigPath, problems[0])
		}
		return c, nil
	}
}

// storageInitName is the program that becomes PID 1.
const storageInitName = "storage-init"

// FindStorageInit gives the path of the storage-init program: the one that is
// named, or else the one beside this program or in /usr/lib/initoverlayfs. It
// has to be a static executable for arch, because the mini-initramfs has no
// libraries.
func FindStorageInit(named, arch string) (string, error) {
	if named != "" {
		return named, CheckProgram(named, arch)
	}
	var tried []string
	if self, err := os.Executable(); err == nil {
		tried = append(tried, filepath.Join(filepath.Dir(self), storageInitName))
	}
	tried = append(tried, filepath.Join("/usr/lib/initoverlayfs", storageInitName))
	for _, path := range tried {
		if _, err := os.Stat(path); err == nil {
			return path, CheckProgram(path, arch)
		}
	}
	return "", &HintedError{
		fmt.Errorf("%s is not in %s", storageInitName, strings.Join(tried, ", ")),
		"build it with `make build`, or name it with --storage-init",
	}
}

var elfMachines = map[string]elf.Machine{
	"386":     elf.EM_386,
	"amd64":   elf.EM_X86_64,
	"arm":     elf.EM_ARM,
	"arm64":   elf.EM_AARCH64,
	"loong64": elf.EM_LOONGARCH,
	"ppc64le": elf.EM_PPC64,
	"riscv64": elf.EM_RISCV,
	"s390x":   elf.EM_S390,
}

// CheckProgram reports whether the program at path is a static executable for
// arch, as Go names it.
func CheckProgram(path, arch string) error {
	machine, ok := elfMachines[arch]
	if !ok {
		return fmt.Errorf("unknown architecture %q", arch)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("program %s: %w", path, err)
	}
	if f.Machine != machine {
		return fmt.Errorf("program %s is for %v, not for %s", path, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("program %s is not static", path)
		}
	}
	return nil
}

// miniOptions are those of the mini-initramfs without what only the image
// tells.
func (o *Options) miniOptions(program string) (MiniOptions, error) {
	dir := o.ModulesDir
	if dir == "" {
		dir = filepath.Join("/lib/modules", o.KernelVersion)
		if !exists(dir) {
			dir = filepath.Join("/usr/lib/modules", o.KernelVersion)
		}
	}
	index, err := kmod.Open(dir, o.KernelVersion)
	if err != nil && !exists(dir) {
		err = &HintedError{err, "install the kernel, or name the folder of its modules with --modules-dir"}
	}
	if err != nil {
		return MiniOptions{}, err
	}
	var config []byte
	if o.KernelConfig != "" {
		config, err = os.ReadFile(o.KernelConfig)
	} else {
		config, err = FindKernelConfig(dir, o.KernelVersion)
	}
	if err != nil {
		return MiniOptions{}, err
	}
	if len(config) == 0 {
		o.Warn("the configuration of kernel " + o.KernelVersion + " was not found; its version tells what it can do")
	}
	mini := MiniOptions{
		Modules:         index,
		KernelConfig:    config,
		Config:          o.Config,
		ImageCompressed: !o.Image.Compress.DAX(),
		Storage:         o.Storage,
		Hostonly:        o.HostOnly,
		ExtraModules:    o.Modules,
		StripSignatures: o.StripModuleSignature,
		FirmwareDirs:    o.FirmwareDirs,
		StorageInit:     program,
		Compress:        cmp.Or(o.Compress, quickestFormat(parseKernelConfig(config), index)),
		Epoch:           o.Epoch,
	}
	if len(mini.FirmwareDirs) == 0 {
		mini.FirmwareDirs = firmwareDirs(dir, o.KernelVersion)
	}
	if o.Config.Auto && slices.Equal(o.Config.Backends, bootconf.AutoOrder) {
		mini.Config.Backends = o.autoBackends(index, config)
	}
	if mini.Config.FS == "" && slices.ContainsFunc(mini.Config.Backends, bootconf.Backend.OnBootfs) {
		mini.Config.FS = "/" + imageName(o.KernelVersion)
	}
	if o.Source.Archive != "" {
		f, err := os.Open(o.Source.Archive)
		if err != nil {
			return MiniOptions{}, err
		}
		defer f.Close()
		if mini.Early, err = EarlySegment(f, o.Epoch); err != nil {
			return MiniOptions{}, fmt.Errorf("read %s: %w", o.Source.Archive, err)
		}
	}
	return mini, nil
}

// autoBackends are the backends of a plain `auto`: those that the kernel can
// serve and that this image suits. The embedded backend is not among them,
// because a mini-initramfs that holds the image is no longer small.
func (o *Options) autoBackends(index *kmod.Index, config []byte) []bootconf.Backend {
	return slices.DeleteFunc(slices.Clone(bootconf.AutoOrder), func(b bootconf.Backend) bool {
		if o.Image.BlobDir != "" && (!servesBlobs(b) || b == bootconf.Block && len(o.Config.Devices) == 0) {
			return true
		}
		return b == bootconf.Embedded || b == bootconf.PmemDAX && !o.Image.Compress.DAX() ||
			CheckBackend(b, index, config) != nil
	})
}

// firmwareDirs are the kernel's own, fw_path in drivers/base/firmware_loader,
// below the root that holds the modules.
func firmwareDirs(modulesDir, kver string) []string {
	lib := filepath.Dir(filepath.Dir(modulesDir))
	var dirs []string
	for _, dir := range []string{"updates/" + kver, "updates", kver, ""} {
		dirs = append(dirs, filepath.Join(lib, "firmware", dir))
	}
	return dirs
}
