package builder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// MiniOptions say what goes into a mini-initramfs.
type MiniOptions struct {
	Modules *kmod.Index
	// KernelConfig is the text of the kernel's build configuration, or empty if
	// it is not known. Then what the kernel has is told by its modules and its
	// version, and some things are taken on trust.
	KernelConfig []byte
	// Config is what storage-init is told; image_uuid and image_size are set.
	Config bootconf.Config
	// ImageCompressed tells that mounting the image takes a decompressor.
	ImageCompressed bool
	// Storage names driver sets; see StorageNames. A backend that reads a disk
	// needs one, "none", or Hostonly.
	Storage []string
	// Hostonly takes the drivers below this machine's own boot device.
	Hostonly bool
	// HostDevice is the boot device for Hostonly, MAJOR:MINOR. Empty: the one
	// that Config.Bootfs names.
	HostDevice string
	// Sysfs is where sysfs is mounted. Empty: /sys.
	Sysfs string
	// ExtraModules are names or aliases that every boot loads as well.
	ExtraModules []string
	// StripSignatures drops the signatures of modules: a kernel without lockdown
	// loads them faster, and calls itself tainted.
	StripSignatures bool
	// FirmwareDirs are searched in this order for the firmware that the modules
	// name. What is in none of them is left out, as modules name much that no
	// one machine needs.
	FirmwareDirs []string
	// StorageInit is the file of the program, static.
	StorageInit string
	// Early is what EarlySegment returned, or empty.
	Early []byte
	// Image is the image for the embedded backend, and nil without it.
	Image *io.SectionReader
	// Compress is the compression of all but Early and Image.
	Compress compress.Format
	// Epoch is the time of all files, in seconds.
	Epoch int64
}

// WriteMini writes a mini-initramfs and returns its modules in load order. The
// bytes depend on the options, and the files they name, alone.
//
// The file is a row of segments: Early as it is, the embedded image uncompressed,
// and then all else compressed. An error about the kernel names all that it
// lacks; nothing is written then.
func WriteMini(w io.Writer, o MiniOptions) ([]bootconf.Module, error) {
	if err := o.Config.Check(); err != nil {
		return nil, fmt.Errorf("mini-initramfs: configuration: %w", err)
	}
	if embedded := slices.Contains(o.Config.Backends, bootconf.Embedded); embedded != (o.Image != nil) {
		return nil, errors.New("mini-initramfs: the embedded backend and an image to embed need each other")
	}
	modules, err := planModules(&o)
	if err != nil {
		return nil, err
	}
	if modules, err = o.accelerate(modules); err != nil {
		return nil, err
	}
	files, err := o.files(modules)
	if err != nil {
		return nil, err
	}
	if err := o.writeSegments(w, files); err != nil {
		return nil, fmt.Errorf("write mini-initramfs: %w", err)
	}
	return modules, nil
}

// file is one entry of the mini-initramfs.
type file struct {
	mode         uint32
	major, minor uint32 // of a device node
	data         []byte
}

// files returns the entries by their paths, without a leading slash.
func (o *MiniOptions) files(modules []bootconf.Module) (map[string]file, error) {
	program, err := os.ReadFile(o.StorageInit)
	if err != nil {
		return nil, fmt.Errorf("mini-initramfs: storage-init: %w", err)
	}
	var list strings.Builder
	for _, m := range modules {
		list.WriteString(m.String() + "\n")
	}
	var devices strings.Builder
	for _, a := range aliases(o.Modules, modules) {
		devices.WriteString(a.String() + "\n")
	}
	const directory, regular = cpio.TypeDir | 0o755, cpio.TypeRegular | 0o644
	files := map[string]file{
		"init": {mode: cpio.TypeRegular | 0o755, data: program},
		// The kernel opens the console for PID 1 before PID 1 can mount /dev.
		"dev/console": {mode: cpio.TypeChar | 0o600, major: 5, minor: 1},
		"dev/kmsg":    {mode: cpio.TypeChar | 0o644, major: 1, minor: 11},
		"proc":        {mode: directory},
		"run":         {mode: directory},
		"sys":         {mode: directory},
		"lib/modules": {mode: directory},
		strings.TrimPrefix(bootconf.ConfigPath, "/"):  {mode: regular, data: []byte(o.Config.Format())},
		strings.TrimPrefix(bootconf.ModulesPath, "/"): {mode: regular, data: []byte(list.String())},
		strings.TrimPrefix(bootconf.AliasesPath, "/"): {mode: regular, data: []byte(devices.String())},
	}
	returning, err := o.returnModules(modules)
	if err != nil {
		return nil, err
	}
	for i, name := range returning {
		data, err := o.readModule(name)
		if err != nil {
			return nil, fmt.Errorf("mini-initramfs: %w", err)
		}
		path := fmt.Sprintf("%s/%02d-%s.ko", bootconf.ReturnModulesDir, i, name)
		files[strings.TrimPrefix(path, "/")] = file{mode: regular, data: data}
	}
	for _, m := range modules {
		data, err := o.Modules.Read(m.Name())
		if err != nil {
			return nil, fmt.Errorf("mini-initramfs: %w", err)
		}
		firmware, err := kmod.Firmware(data)
		if err != nil {
			return nil, fmt.Errorf("mini-initramfs: firmware of %s: %w", m.Path, err)
		}
		for _, name := range firmware {
			blob, err := o.firmware(name)
			if err != nil {
				return nil, fmt.Errorf("mini-initramfs: firmware of %s: %w", m.Path, err)
			}
			if blob != nil {
				files["lib/firmware/"+name] = file{mode: regular, data: blob}
			}
		}
		if o.StripSignatures {
			if data, err = kmod.StripSignature(data); err != nil {
				return nil, fmt.Errorf("mini-initramfs: %s: %w", m.Path, err)
			}
		}
		files[strings.TrimPrefix(m.Path, "/")] = file{mode: regular, data: data}
	}
	for _, name := range slices.Collect(maps.Keys(files)) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			files[dir] = file{mode: directory}
		}
	}
	return files, nil
}

// returnDrivers give a region that memmap= has set aside back as RAM. The
// region's own driver is nd_e820.
var returnDrivers = []string{"dax_pmem", "kmem"}

// returnModules are what the return of the image's memory needs besides the
// modules of the boot, in load order: none where the image is in no such region,
// or the kernel cannot do it.
func (o *MiniOptions) returnModules(modules []bootconf.Module) ([]string, error) {
	has := func(name string) bool {
		return slices.ContainsFunc(modules, func(m bootconf.Module) bool { return m.Name() == name })
	}
	lacks := func(name string) bool { return !o.Modules.Has(name) }
	switch {
	case !o.Config.ReturnMemory || !slices.ContainsFunc(o.Config.Backends, bootconf.Backend.InMemory):
		return nil, nil
	case !has("nd_e820") && !o.Modules.Builtin("nd_e820") || slices.ContainsFunc(returnDrivers, lacks):
		return nil, nil
	}
	closure, err := o.Modules.Closure(skipSoftdep, returnDrivers...)
	if err != nil {
		return nil, fmt.Errorf("mini-initramfs: %w", err)
	}
	var names []string
	for _, m := range closure {
		if _, err := o.Modules.Read(m.Name); errors.Is(err, fs.ErrNotExist) {
			return nil, nil // of a package that is not installed
		}
		if !has(m.Name) {
			names = append(names, m.Name)
		}
	}
	return names, nil
}

// readModule gives the file of a module as the mini-initramfs has it.
func (o *MiniOptions) readModule(name string) ([]byte, error) {
	data, err := o.Modules.Read(name)
	if err == nil && o.StripSignatures {
		data, err = kmod.StripSignature(data)
	}
	return data, err
}

// firmwareFormats are how the kernel finds firmware, in its order.
var firmwareFormats = []struct {
	ext    string
	format compress.Format
}{{"", compress.None}, {".zst", compress.Zstd}, {".xz", compress.XZ}}

// firmware returns a firmware file unpacked, or nil if there is none.
func (o *MiniOptions) firmware(name string) ([]byte, error) {
	for _, dir := range o.FirmwareDirs {
		for _, packed := range firmwareFormats {
			f, err := os.Open(filepath.Join(dir, name+packed.ext))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			data, err := readAll(f, packed.format)
			return data, errors.Join(err, f.Close())
		}
	}
	return nil, nil
}

func readAll(r io.Reader, format compress.Format) ([]byte, error) {
	if format == compress.None {
		return io.ReadAll(r)
	}
	u, err := compress.NewReader(format, r)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(u)
	return data, errors.Join(err, u.Close())
}

func (o *MiniOptions) writeSegments(w io.Writer, files map[string]file) error {
	if _, err := w.Write(o.Early); err != nil {
		return err
	}
	if o.Image != nil {
		// Uncompressed, as the image is compressed in itself.
		if err := o.writeImage(w); err != nil {
			return err
		}
	}
	z, err := compress.NewWriter(o.Compress, w)
	if err != nil {
		return err
	}
	c := cpio.NewWriter(z)
	for i, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		h := cpio.Header{
			Name: name, Ino: uint32(i + 1), Mode: f.mode, NLink: 1, MTime: o.Epoch, Size: int64(len(f.data)),
			RDevMajor: f.major, RDevMinor: f.minor,
		}
		if f.mode&cpio.TypeMask == cpio.TypeDir {
			h.NLink = 2
		}
		if err := c.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := c.Write(f.data); err != nil {
			return err
		}
	}
	if err := errors.Join(c.Close(), z.Close()); err != nil {
		return err
	}
	if o.Compress == compress.LZ4 {
		// The kernel takes what comes next for the length of another block, unless
		// that is zero: another archive may be put behind this one.
		_, err := w.Write(make([]byte, 4))
		return err
	}
	return nil
}

func (o *MiniOptions) writeImage(w io.Writer) error {
	counted := &countingWriter{w: w}
	c := cpio.NewWriter(counted)
	err := c.WriteHeader(&cpio.Header{
		Name: strings.TrimPrefix(bootconf.EmbeddedPath, "/"), Ino: 1, Mode: cpio.TypeRegular | 0o444, NLink: 1,
		MTime: o.Epoch, Size: o.Image.Size(),
	})
	if err != nil {
		return err
	}
	if _, err := io.Copy(c, io.NewSectionReader(o.Image, 0, o.Image.Size())); err != nil {
		return fmt.Errorf("embedded image: %w", err)
	}
	if err := c.Close(); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, padding(counted.n)))
	return err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
