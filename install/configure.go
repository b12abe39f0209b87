package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
)

// configure completes the configuration of the mini-initramfs: how storage-init
// finds the image of a generation is told by what is mounted where it goes.
func (i *installation) configure(number int) error {
	i.conf = i.config.Boot
	for _, note := range i.config.notes {
		i.warn(note)
	}
	plainAuto := i.conf.Auto && slices.Equal(i.conf.Backends, bootconf.AutoOrder)
	for _, b := range i.conf.Backends {
		if !plainAuto && !b.OnBootfs() && b != bootconf.Embedded {
			return &builder.HintedError{
				Err:    fmt.Errorf("the backend %s takes its image from a device, into which nothing is installed", b),
				Advice: "choose loop, file, ram, embedded or auto:LIST of them; `initoverlayfs disk` makes disks for the others",
			}
		}
	}
	if onlyEmbedded(i.conf.Backends) {
		return nil
	}
	if i.config.set["fs"] {
		i.warn("the key fs is not used: each pair has a path of its own; image_dir says where images go")
	}
	base := filepath.Dir(filepath.Dir(i.imageDir)) // the folder that is there
	dirs := i.generationDirs(number)
	rel, err := filepath.Rel(base, filepath.Join(dirs[len(dirs)-1], "initoverlayfs-"+i.o.KernelVersion+".img"))
	if err != nil {
		return err
	}
	p, mounts, err := locate(base)
	if err != nil {
		if !i.config.set["bootfs"] {
			return err
		}
		// It is made for another machine, and that one's boot filesystem is named.
		i.warn(fmt.Sprintf("%v; taking %s for the top of %s", err, base, i.conf.Bootfs))
		i.conf.FS = filepath.Join("/", rel)
		if plainAuto {
			i.conf.Backends, i.conf.Auto = []bootconf.Backend{bootconf.Loop}, false
		}
		return nil
	}
	i.conf.FS = filepath.Join(p.path, rel)
	if p.stacked != "" && !i.config.Systemd {
		return &builder.HintedError{
			Err: fmt.Errorf("%s lies on %s, put together by %s, which storage-init alone does not do", base, p.node, p.stacked),
			Advice: "name a folder on a plain partition with image_dir, the ESP for example, or choose systemd mode (initoverlayfs_init false in " +
				ConfigPath + ")",
		}
	}
	if !i.config.set["bootfs"] {
		if i.conf.Bootfs, err = p.tag(); err != nil {
			return err
		}
		// A loop device is of this system, not of the machine.
		if !strings.HasPrefix(p.node, "/dev/loop") && !i.config.set["bootfs_hint"] {
			i.conf.BootfsHint = p.node
		}
	}
	if !i.config.set["bootfstype"] {
		i.conf.BootfsType = p.fstype
	}
	if !plainAuto {
		return nil
	}
	return i.chooseBackends(p, mounts)
}

// chooseBackends takes what the kernel can do best on the filesystem of p.
func (i *installation) chooseBackends(p *place, mounts []mount) error {
	root, err := filepath.EvalSymlinks(i.m.path("/"))
	if err != nil {
		return err
	}
	rootMount, _, err := mountOf(mounts, root)
	if err != nil {
		return err
	}
	if p.sameFilesystem(rootMount) {
		i.progress("the images lie on the real root, which must stay free for its check: backend ram")
		i.conf.Backends, i.conf.Auto = []bootconf.Backend{bootconf.RAM}, false
		return nil
	}
	dir := i.modulesDir()
	index, err := kmod.Open(dir, i.o.KernelVersion)
	if err != nil {
		return err
	}
	config, err := builder.FindKernelConfig(dir, i.o.KernelVersion)
	if err != nil {
		return err
	}
	i.conf.Backends, i.conf.Auto = []bootconf.Backend{bootconf.Loop}, false
	if builder.CheckBackend(bootconf.File, index, config) == nil {
		i.conf.Backends, i.conf.Auto = []bootconf.Backend{bootconf.File, bootconf.Loop}, true
	}
	return nil
}

// modulesDir is the module directory of the kernel.
func (i *installation) modulesDir() string {
	if i.o.Build.ModulesDir != "" {
		return i.o.Build.ModulesDir
	}
	if dir := i.m.path("/lib/modules", i.o.KernelVersion); isDir(dir) {
		return dir
	}
	return i.m.path("/usr/lib/modules", i.o.KernelVersion)
}

// source gives the archive of the full tree.
func (i *installation) source(ctx context.Context) (*source, error) {
	var src *source
	var err error
	name, found := i.m.findSource(i.o.KernelVersion, i.plainInitrds())
	switch {
	case i.o.Initramfs != "":
		path, err := filepath.Abs(i.o.Initramfs)
		if err != nil {
			return nil, err
		}
		src = &source{path: path, name: i.m.name(path)}
	case found && i.config.Builder == "":
		src = &source{path: i.m.path(name), name: name}
	case i.config.Builder == "" && i.staged() != "":
		src = &source{path: i.staged()}
	default:
		if src, err = i.generate(ctx); err != nil {
			return nil, err
		}
	}
	return src, checkSource(src.path)
}

// staged gives the initramfs that kernel-install(8) has in its staging area;
// empty: it has none.
func (i *installation) staged() string {
	if i.o.Staging == "" {
		return ""
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(i.o.Staging), "initrd*"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[len(found)-1] // behind what is to be unpacked before it
}

// build makes the pair in the work folder.
func (i *installation) build(ctx context.Context, src *source) (*bootconf.Manifest, error) {
	b := i.o.Build
	b.KernelVersion = i.o.KernelVersion
	b.Source = builder.Source{Archive: src.path}
	b.ModulesDir = i.modulesDir()
	b.OutputDir = i.work
	b.Config = i.conf
	b.Image.Compress = i.compression()
	b.Image.TempDir = i.work
	b.Storage = i.storage()
	b.KeepCompressedModules = b.KeepCompressedModules || i.config.KeepModules
	b.Progress, b.Warn = i.progress, i.warn
	if i.config.Systemd {
		b.MiniBuilder = i.systemdMini
	}
	return builder.Build(ctx, b)
}

func (i *installation) compression() builder.ImageCompression {
	switch {
	case i.o.Compression != nil:
		return *i.o.Compression
	case i.config.Compression != nil:
		return *i.config.Compression
	}
	return builder.DefaultImageOptions().Compress
}

func (i *installation) storage() []string {
	switch {
	case i.o.Build.HostOnly:
		return nil
	case len(i.o.Build.Storage) > 0:
		return i.o.Build.Storage
	case len(i.config.Storage) > 0:
		return i.config.Storage
	}
	return []string{"all"}
}

// inputs is a digest of what a pair is made from; empty if the source is made
// anew each time, so that it cannot be told whether it would be the same.
func (i *installation) inputs(src *source) (string, error) {
	if src.name == "" {
		return "", nil
	}
	program, err := builder.FindStorageInit(i.o.Build.StorageInit, i.o.Build.Arch)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, path := range []string{src.path, program, filepath.Join(i.modulesDir(), "modules.dep")} {
		sum, err := digestFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, sum)
	}
	conf := i.conf
	conf.FS = filepath.Dir(filepath.Dir(conf.FS)) // without the generation
	b := i.o.Build
	fmt.Fprintf(h, "%q %q %q %q %v %v %q\n", b.ToolVersion, conf.Format(), i.config.text, i.storage(), b.HostOnly, b.Modules, b.Arch)
	fmt.Fprintf(h, "%v %v %v %v %v %v\n", i.compression(), b.Image.PclusterBytes, b.Image.Features, b.Compress, b.StripModuleSignature,
		b.KeepCompressedModules)
	return hex.EncodeToString(h.Sum(nil)), nil
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// workParent is where the folder of a run is made: on a disk, as there may be
// little memory.
func (i *installation) workParent() string {
	if i.o.WorkDir != "" {
		return i.o.WorkDir
	}
	if dir := "/var/tmp"; isDir(dir) {
		return dir
	}
	return os.TempDir()
}

// bootRecord reads the record of the boot of the machine, nil if it was not
// booted by storage-init.
func (m machine) bootRecord() (*bootconf.Record, error) {
	text, err := os.ReadFile(m.path(bootconf.RecordPath))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(text)
}
