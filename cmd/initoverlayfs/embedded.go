package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// Granularities of memory, in bytes.
const (
	// pmemAlign is that of a region: both its address and its size.
	pmemAlign = bootconf.RegionHead
	// memoryBlock is that of memory which is given back as RAM. A region begins
	// pmemAlign below a block, as its first bytes do not come back.
	memoryBlock = bootconf.MemoryBlock
	// memoryRoom stays free behind the region: a boot loader runs, and QEMU puts
	// the initramfs, at the memory's end.
	memoryRoom = 64 << 20
)

// board is what differs between the machines of two architectures.
type board struct {
	base int64  // default address of the memory
	boot string // U-Boot's command to boot the kernel
	arch string // mkimage's name
	// least is the lowest offset of a region in the memory: QEMU puts an
	// initramfs at the 128th MiB of an arm64 guest.
	least int64
	// kernelEnd gives where a running kernel ends, and where its file is loaded.
	kernelEnd func(head []byte, base int64) (end, load int64, err error)
}

var boards = map[string]board{
	"amd64": {boot: "zboot", arch: "x86", kernelEnd: bzImageEnd},
	"arm64": {base: 1 << 30, boot: "booti", arch: "arm64", least: 256 << 20, kernelEnd: arm64ImageEnd},
}

// bzImageEnd reads the header of Documentation/arch/x86/boot.rst. The kernel
// unpacks itself, from the address that it prefers on, over what is there; the
// file is loaded behind that.
func bzImageEnd(head []byte, base int64) (end, load int64, err error) {
	const magic, preferred, initSize = 0x202, 0x258, 0x260
	if len(head) < initSize+4 || string(head[magic:magic+4]) != "HdrS" {
		return 0, 0, errors.New("not a bzImage")
	}
	le := binary.LittleEndian
	end = int64(le.Uint64(head[preferred:])) + int64(le.Uint32(head[initSize:]))
	end = (end + pmemAlign - 1) / pmemAlign * pmemAlign
	return end, end, nil
}

// arm64ImageEnd reads the header of Documentation/arch/arm64/booting.rst.
func arm64ImageEnd(head []byte, base int64) (end, load int64, err error) {
	const imageSize, magic = 16, 56
	if len(head) < magic+4 || string(head[magic:magic+4]) != "ARM\x64" {
		return 0, 0, errors.New("not an arm64 Image, which booti needs; unpack it")
	}
	load = base + pmemAlign
	end = load + int64(binary.LittleEndian.Uint64(head[imageSize:]))
	return (end + pmemAlign - 1) / pmemAlign * pmemAlign, load, nil
}

// embeddedJSON is the file embedded.json, and the document of `disk --embedded
// --json`. Addresses are hexadecimal.
type embeddedJSON struct {
	Format        int                `json:"format"`
	Arch          string             `json:"arch"`
	KernelVersion string             `json:"kernel_version"`
	Backend       string             `json:"backend"`
	MemoryBase    string             `json:"memory_base"`
	MemoryMiB     int                `json:"memory_mib"`
	Region        memoryPart         `json:"region"` // reserved for the image
	Kernel        memoryPart         `json:"kernel"`
	Initrd        memoryPart         `json:"initrd"`
	Image         memoryPart         `json:"image"`
	Reserve       string             `json:"reserve,omitempty"` // the kernel's word that reserves the region
	Cmdline       string             `json:"cmdline"`
	Manifest      *bootconf.Manifest `json:"manifest"`
}

// memoryPart is a file, or nothing, in memory.
type memoryPart struct {
	File    string `json:"file,omitempty"`
	Address string `json:"address"`
	Size    int64  `json:"size"` // bytes

	at int64
}

func part(file string, at, size int64) memoryPart {
	return memoryPart{File: file, Address: fmt.Sprintf("%#x", at), Size: size, at: at}
}

func (p *memoryPart) end() int64 { return p.at + p.Size }

// embedded writes the folder of `disk --embedded`.
func (a *app) embedded(ctx context.Context, f *diskFlags, p *pflag.FlagSet) (err error) {
	b, base, load, err := f.planEmbedded(a, p)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(filepath.Clean(f.output)), ".initoverlayfs-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	f.build.OutputDir = filepath.Join(work, "out")
	m, err := builder.Build(ctx, f.build)
	if err != nil {
		return err
	}
	doc := embeddedJSON{
		Format: 1, Arch: f.build.Arch, KernelVersion: m.KernelVersion,
		Backend:    bootconf.FormatBackends(f.build.Config.Backends, f.build.Config.Auto),
		MemoryBase: fmt.Sprintf("%#x", base), MemoryMiB: f.memoryMiB, Manifest: m,
	}
	kernel, err := os.Stat(f.kernel)
	if err != nil {
		return err
	}
	if err := doc.place(b, headOf(f.kernel), kernel.Size(), base, load); err != nil {
		return err
	}
	if at := doc.Region.at + pmemAlign; at%memoryBlock != 0 {
		a.warn("the region can not be given back whole as RAM: %s is not %d MiB below a multiple of %d MiB",
			doc.Region.Address, pmemAlign>>20, memoryBlock>>20)
	}
	if f.build.Arch == "amd64" {
		doc.Reserve = fmt.Sprintf("memmap=%dM!%dM", doc.Region.Size>>20, doc.Region.at>>20)
	}
	doc.Cmdline = strings.TrimSpace(doc.Reserve + " " + f.appendWords)
	if err := doc.write(ctx, b, f.build.OutputDir, f.kernel, f.build.Epoch); err != nil {
		return err
	}
	// An empty folder may be there, which os.Rename would refuse.
	if err := unix.Rename(f.build.OutputDir, f.output); err != nil {
		return fmt.Errorf("write %s: %w", f.output, err)
	}
	if f.asJSON {
		return a.printJSON(doc)
	}
	_, err = io.WriteString(a.stdout, doc.readme())
	return err
}

// planEmbedded checks everything that can be checked before the build.
func (f *diskFlags) planEmbedded(a *app, p *pflag.FlagSet) (b board, base, load int64, err error) {
	for _, name := range []string{
		"root", "previous", "boot", "bootloader", "systemd-boot", "entry-token", "menu-timeout", "size-esp", "size-boot", "size-root", "format",
	} {
		if p.Changed(name) {
			return b, 0, 0, usageErrorf("--%s does not go with --embedded", name)
		}
	}
	b, ok := boards[f.build.Arch]
	if !ok {
		return b, 0, 0, fmt.Errorf("--embedded does not know the architecture %s", f.build.Arch)
	}
	base, load = b.base, -1
	for _, flag := range []struct {
		name, value string
		to          *int64
	}{{"memory-base", f.memBase, &base}, {"load-address", f.loadAddress, &load}} {
		if flag.value == "" {
			continue
		}
		n, err := strconv.ParseInt(flag.value, 0, 64)
		if err != nil || n < 0 || n%pmemAlign != 0 {
			return b, 0, 0, usageErrorf("--%s: %s is not a multiple of 2 MiB", flag.name, flag.value)
		}
		*flag.to = n
	}
	switch {
	case f.memoryMiB <= 0:
		return b, 0, 0, usageErrorf("--memory: %d MiB", f.memoryMiB)
	case strings.ContainsAny(f.appendWords, "'\n"):
		return b, 0, 0, usageErrorf("--append: a U-Boot script cannot hold quotes or more than one line")
	case f.layout.blobs != "":
		return b, 0, 0, usageErrorf("--blobs: the image must hold its data")
	}
	if !p.Changed("backend") {
		must(p.Set("backend", string(bootconf.Pmem)))
	}
	if err := f.builderOptions(a, p); err != nil {
		return b, 0, 0, err
	}
	for _, backend := range f.build.Config.Backends {
		if backend != bootconf.Pmem && backend != bootconf.PmemDAX {
			return b, 0, 0, usageErrorf("--backend: --embedded takes pmem or pmem-dax, not %s", backend)
		}
	}
	if !p.Changed("storage") {
		f.build.Storage = []string{"memmap"}
	}
	for _, file := range []string{f.kernel, f.initramfs} {
		if err := checkRegular(file); err != nil {
			return b, 0, 0, err
		}
	}
	if _, _, err := b.kernelEnd(headOf(f.kernel), base); err != nil {
		return b, 0, 0, fmt.Errorf("kernel %s: %w", f.kernel, err)
	}
	return b, base, load, checkNewFolder(f.output)
}

// headOf reads the begin of a file; what cannot be read is missing.
func headOf(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, _ := io.ReadFull(f, head) // a short file has a short head
	return head[:n]
}

// checkNewFolder makes sure that a folder can come to be at path, or is there
// and empty.
func checkNewFolder(path string) error {
	switch entries, err := os.ReadDir(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("write %s: the folder is not empty", path)
	}
	_, err := os.Stat(filepath.Dir(filepath.Clean(path)))
	return err
}

// place gives everything its place in memory: the kernel, its file if that is
// not in its place, the initramfs, and then the region, which begins at load, or
// if that is negative at the first address that suits.
func (doc *embeddedJSON) place(b board, head []byte, kernelSize, base, load int64) error {
	kernelEnd, at, err := b.kernelEnd(head, base)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	m := doc.Manifest
	up := func(n, to int64) int64 { return (n + to - 1) / to * to }
	doc.Kernel = part("vmlinuz-"+m.KernelVersion, at, kernelSize)
	doc.Initrd = part(m.Mini.File, up(max(kernelEnd, doc.Kernel.end()), pmemAlign), m.Mini.Size)
	end := base + int64(doc.MemoryMiB)<<20
	if load < 0 {
		load = up(max(doc.Initrd.end(), base+b.least)+pmemAlign, memoryBlock) - pmemAlign
	}
	doc.Image = part(m.Image.File, load, m.Image.Size)
	doc.Region = part("", load, up(doc.Image.end(), memoryBlock)-load)
	switch {
	case load < doc.Initrd.end():
		return hinted{
			fmt.Errorf("the image at %s lies over the kernel and its initramfs, which end at %#x", doc.Image.Address, doc.Initrd.end()),
			"leave --load-address out, or choose a higher one",
		}
	case doc.Region.end()+memoryRoom > end:
		return hinted{
			fmt.Errorf("%d MiB of memory from %#x on are too little: the image's region ends at %#x, and %d MiB behind it stay free",
				doc.MemoryMiB, base, doc.Region.end(), memoryRoom>>20),
			fmt.Sprintf("--memory %d would do", (doc.Region.end()+memoryRoom-base)>>20),
		}
	}
	return nil
}

// write adds the files of the folder to those of the build.
func (doc *embeddedJSON) write(ctx context.Context, b board, dir, kernel string, epoch int64) error {
	in, err := os.Open(kernel)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := writeSynced(filepath.Join(dir, doc.Kernel.File), in); err != nil {
		return err
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{
		"embedded.json": string(text) + "\n",
		"README.txt":    doc.readme(),
		"boot.cmd":      doc.script(b),
	}
	if doc.Arch == "amd64" {
		files["qemu.args"] = doc.qemu()
	} else {
		files["pmem-region.dtsi"] = doc.deviceTree()
	}
	for name, text := range files {
		if err := writeSynced(filepath.Join(dir, name), strings.NewReader(text)); err != nil {
			return err
		}
	}
	mkimage, err := exec.LookPath("mkimage")
	if err != nil {
		return nil // boot.cmd says how to make boot.scr
	}
	cmd := exec.CommandContext(ctx, mkimage, b.scriptArgs(filepath.Join(dir, "boot.cmd"), filepath.Join(dir, "boot.scr"))...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch, 10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkimage: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func writeSynced(path string, from io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	return f.Sync()
}

func (b *board) scriptArgs(from, to string) []string {
	return []string{"-A", b.arch, "-O", "linux", "-T", "script", "-C", "none", "-n", "initoverlayfs", "-d", from, to}
}

// script is for U-Boot.
func (doc *embeddedJSON) script(b board) string {
	var s strings.Builder
	fmt.Fprintf(&s, "# Boots Linux %s with its initial filesystem in memory.\n", doc.KernelVersion)
	fmt.Fprintf(&s, "# mkimage %s\n", strings.Join(b.scriptArgs("boot.cmd", "boot.scr"), " "))
	s.WriteString("# devtype, devnum, distro_bootpart and prefix say where the files are; U-Boot's\n# distro boot sets them before it runs boot.scr.\n")
	fmt.Fprintf(&s, "setenv bootargs '%s'\n", doc.Cmdline)
	for _, p := range []struct {
		memoryPart
		size string
	}{{doc.Kernel, "kernel_size"}, {doc.Initrd, "initrd_size"}, {doc.Image, "image_size"}} {
		fmt.Fprintf(&s, "if load ${devtype} ${devnum}:${distro_bootpart} %s ${prefix}%s; then\n\tsetenv %s ${filesize}\nelse\n\texit 1\nfi\n", p.Address, p.File, p.size)
	}
	if b.boot == "zboot" {
		fmt.Fprintf(&s, "zboot %s ${kernel_size} %s ${initrd_size}\n", doc.Kernel.Address, doc.Initrd.Address)
	} else {
		s.WriteString("# The device tree must have the region; see pmem-region.dtsi.\n")
		fmt.Fprintf(&s, "%s %s %s:${initrd_size} ${fdt_addr_r}\n", b.boot, doc.Kernel.Address, doc.Initrd.Address)
	}
	return s.String()
}

// qemu has QEMU's arguments, as xargs reads them, with paths in the folder.
func (doc *embeddedJSON) qemu() string {
	quoted := `"` + strings.ReplaceAll(doc.Cmdline, `"`, `"'"'"`) + `"`
	return strings.Join([]string{
		"-m", strconv.Itoa(doc.MemoryMiB),
		"-kernel", doc.Kernel.File,
		"-initrd", doc.Initrd.File,
		"-append", quoted,
		"-device", "loader,file=" + doc.Image.File + ",addr=" + doc.Image.Address + ",force-raw=on",
	}, "\n") + "\n"
}

// deviceTree is the node by which a kernel that has no memmap= finds the region.
func (doc *embeddedJSON) deviceTree() string {
	cells := func(n int64) string { return fmt.Sprintf("%#x %#x", n>>32, n&0xffffffff) }
	return fmt.Sprintf(`/*
 * The region that holds the image. It must not be in a memory node: the kernel
 * takes no persistent memory out of what it uses as RAM. The cells are those of a
 * root node with #address-cells = <2> and #size-cells = <2>.
 */
/ {
	pmem@%x {
		compatible = "pmem-region";
		reg = <%s %s>;
		volatile;
	};
};
`, doc.Region.at, cells(doc.Region.at), cells(doc.Region.Size))
}

// readme says what is where.
func (doc *embeddedJSON) readme() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Linux %s, its initial filesystem in memory (%s)\n\n", doc.KernelVersion, doc.Backend)
	for _, p := range []memoryPart{doc.Kernel, doc.Initrd, doc.Image} {
		fmt.Fprintf(&s, "%-12s %s  %d bytes\n", p.Address, p.File, p.Size)
	}
	fmt.Fprintf(&s, "\nreserved: %d MiB at %s of %d MiB from %s on\n", doc.Region.Size>>20, doc.Region.Address, doc.MemoryMiB, doc.MemoryBase)
	fmt.Fprintf(&s, "words for the kernel: %s\n", doc.Cmdline)
	s.WriteString("\nboot.cmd loads and boots them from U-Boot (boot.scr, if it is there, is its compiled form).\n")
	if doc.Arch == "amd64" {
		s.WriteString("In this folder `xargs -a qemu.args qemu-system-x86_64` boots them in QEMU.\n")
	} else {
		s.WriteString("The device tree needs the node in pmem-region.dtsi.\n")
	}
	return s.String()
}
