package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"initoverlayfs/builder"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// plainBackend boots an unchanged initramfs, to compare with.
const plainBackend = "plain"

// bootFlags are the flags of the boot verb.
type bootFlags struct {
	dir, kver, kernel  string
	backend, initramfs string
	rootDisk, bootDisk string
	disk               string
	firmware           string
	firmwareVars       string
	bootfsType         string
	appendWords        string
	memoryMiB, cpus    int
	accel, qemu, arch  string
	cpu                string
	virtioPmem         bool
	icount             bool
	timeout            time.Duration
	console, keep      bool
	asJSON             bool
}

func (a *app) bootCommand() *cobra.Command {
	var f bootFlags
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Boot a build in QEMU and measure it",
		Long: "Boot what `build` wrote in QEMU. A disk with the image is made as the backend\n" +
			"needs it, unless --bootdisk has one. The guest must report that it is done:\n" +
			"the root disks and trees that the project's tests make do.",
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, _ []string) error { return a.boot(ctx, &f) }),
	}
	f.add(cmd.Flags())
	return cmd
}

func (f *bootFlags) add(p *pflag.FlagSet) {
	p.StringVar(&f.dir, "dir", ".", "`DIR` that build wrote")
	p.StringVar(&f.kver, "kver", "", "kernel `VERSION` of the build")
	p.StringVar(&f.kernel, "kernel", "", "kernel `FILE` (default /boot/vmlinuz-VERSION)")
	p.StringVar(&f.backend, "backend", "", "`BACKEND`, or plain for the unchanged initramfs (default, and auto: the build's)")
	p.StringVar(&f.initramfs, "initramfs", "", "initramfs `FILE` of the backend plain")
	p.StringVar(&f.rootDisk, "rootdisk", "", "disk `IMAGE` with the real root; the guest's writes are thrown away")
	p.StringVar(&f.bootDisk, "bootdisk", "", "disk `IMAGE` with the boot filesystem or the image; writes are thrown away")
	p.StringVar(&f.disk, "disk", "", "disk `IMAGE` that UEFI firmware boots, as the verb disk makes it; writes are thrown away.\nIts entries need the words by which the boot is followed; --kernel only serves to prove KVM")
	p.StringVar(&f.firmware, "firmware", "", "`FILE` of the UEFI firmware for --disk (default: the distribution's OVMF)")
	p.StringVar(&f.firmwareVars, "firmware-vars", "", "`FILE` with the firmware's variables; the guest gets a copy")
	p.StringVar(&f.bootfsType, "bootfstype", "", "`TYPE` of the boot filesystem that is made (default: the build's, else ext4)")
	p.StringVar(&f.appendWords, "append", "", "further `WORDS` of the kernel command line")
	p.IntVar(&f.memoryMiB, "memory", 1024, "`MIB` of memory that the guest can use")
	p.IntVar(&f.cpus, "cpus", 1, "`NUMBER` of CPUs")
	p.StringVar(&f.cpu, "cpu", "", "QEMU's `MODEL` of the CPU (default: host under KVM, the fastest under TCG)")
	p.StringVar(&f.accel, "accel", string(vmtest.Auto), "`ACCELERATOR`: auto, kvm or tcg")
	p.StringVar(&f.qemu, "qemu", "", "QEMU's `PROGRAM` (default: the architecture's, in PATH)")
	p.StringVar(&f.arch, "arch", "", "`ARCH` of the guest (default amd64)")
	p.BoolVar(&f.virtioPmem, "virtio-pmem", false, "give the pmem backends a virtio-pmem device instead of reserved memory")
	p.BoolVar(&f.icount, "icount", false, "make one nanosecond of the guest one instruction (tcg)")
	p.DurationVar(&f.timeout, "timeout", 5*time.Minute, "`DURATION` after which the boot has failed")
	p.BoolVar(&f.console, "console", false, "print the guest's console while it boots")
	p.BoolVar(&f.keep, "keep", false, "keep the logs of a boot that succeeded")
	p.BoolVar(&f.asJSON, "json", false, "print JSON")
}

// bootJSON is the document of `boot --json`. Times are seconds on the guest's
// printk clock.
type bootJSON struct {
	OK             bool            `json:"ok"`
	Backend        string          `json:"backend"`
	KernelToInitS  *float64        `json:"kernel_to_init_s"`
	HandoverS      *float64        `json:"handover_s"`
	InitfsInitS    *float64        `json:"initfs_init_s"`
	MultiUserS     *float64        `json:"multi_user_s"`
	MemAvailableKB *int64          `json:"mem_available_kb"`
	Accel          string          `json:"accel"`
	AccelReason    string          `json:"accel_reason,omitempty"`
	QEMU           string          `json:"qemu"`
	Record         json.RawMessage `json:"record"`
	Error          string          `json:"error"`
	WallS          float64         `json:"wall_s"`
	LogDir         string          `json:"log_dir,omitempty"`
	Done           *vmtest.Done    `json:"done,omitempty"`
}

func (a *app) boot(ctx context.Context, f *bootFlags) error {
	m, backend, cleanup, err := f.machine(ctx)
	if cleanup != nil {
		defer cleanup()
	}
	if err != nil {
		return err
	}
	if f.console {
		m.OnLine = func(l vmtest.Line) { fmt.Fprintln(a.stderr, l) }
	}
	a.progress("booting %s", backend)
	r, bootErr := vmtest.Run(ctx, m)
	if r == nil {
		return bootErr
	}
	doc := bootJSON{
		OK:            bootErr == nil,
		Backend:       backend,
		KernelToInitS: r.Time(vmtest.KernelToInit),
		HandoverS:     r.Time(vmtest.HandedOver),
		InitfsInitS:   r.Time(vmtest.InitfsInit),
		MultiUserS:    r.Time(vmtest.MultiUser),
		Accel:         string(r.Accel),
		AccelReason:   r.AccelReason,
		QEMU:          r.QEMU,
		WallS:         r.Wall.Seconds(),
		LogDir:        r.LogDir,
		Done:          r.Done,
	}
	if r.Handover != nil && r.Handover.Backend != "" {
		doc.Backend = string(r.Handover.Backend) // of auto, the one that served
	} else if f.disk != "" && bootErr == nil {
		doc.Backend = plainBackend // the entry that was chosen
	}
	if r.Done != nil {
		doc.Record = r.Done.Record
		if r.Done.MemAvailableKB > 0 {
			doc.MemAvailableKB = &r.Done.MemAvailableKB
		}
	}
	if bootErr != nil {
		doc.Error = bootErr.Error()
	}
	if f.disk != "" && bootErr != nil && r.LastS == 0 {
		words, err := vmtest.ConsoleWords(f.arch)
		if err != nil {
			return err
		}
		bootErr = hinted{bootErr, "make the disk with --append '" + strings.Join(words, " ") + "', so that the boot can be followed"}
	}
	if f.asJSON {
		err = a.printJSON(doc)
	} else {
		err = a.printBoot(doc, f.rootDisk != "" || f.disk != "")
	}
	if err != nil {
		return err
	}
	return bootErr
}

func (a *app) printBoot(doc bootJSON, withRoot bool) error {
	seconds := func(t *float64) string {
		if t == nil {
			return "not reached"
		}
		return fmt.Sprintf("%.3f s", *t)
	}
	rows := [][2]string{
		{"backend", doc.Backend},
		{"kernel to init", seconds(doc.KernelToInitS)},
	}
	if doc.Backend != plainBackend {
		rows = append(rows, [2]string{"handover", seconds(doc.HandoverS)})
	}
	rows = append(rows, [2]string{"first init message", seconds(doc.InitfsInitS)})
	if withRoot || doc.MultiUserS != nil {
		rows = append(rows, [2]string{"multi-user", seconds(doc.MultiUserS)})
	}
	if doc.MemAvailableKB != nil {
		rows = append(rows, [2]string{"memory available", fmt.Sprintf("%d kB", *doc.MemAvailableKB)})
	}
	rows = append(rows, [2]string{"accelerator", doc.Accel})
	if doc.LogDir != "" {
		rows = append(rows, [2]string{"logs", doc.LogDir})
	}
	for _, row := range rows {
		if _, err := fmt.Fprintf(a.stdout, "%-20s%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	return nil
}

// machine gives the guest that the flags ask for, and what to call, if not nil,
// when it is no longer needed.
func (f *bootFlags) machine(ctx context.Context) (m vmtest.Machine, backend string, cleanup func(), err error) {
	m = vmtest.Machine{
		Arch: f.arch, QEMU: f.qemu, Kernel: f.kernel, MemoryMiB: f.memoryMiB, CPUs: f.cpus, CPU: f.cpu,
		ICount: f.icount, Timeout: f.timeout, Keep: f.keep,
		Expect: []vmtest.Milestone{vmtest.KernelToInit, vmtest.InitfsInit},
	}
	if m.Accel, err = vmtest.ParseAccel(f.accel); err != nil {
		return m, "", nil, usageErrorf("--accel: %v", err)
	}
	if f.memoryMiB < 64 {
		return m, "", nil, usageErrorf("--memory: %d MiB boot nothing", f.memoryMiB)
	}
	switch {
	case (f.firmware == "") != (f.firmwareVars == ""):
		return m, "", nil, usageErrorf("--firmware and --firmware-vars need each other")
	case f.disk != "":
		return m, "disk", nil, f.attachDisk(&m)
	case f.firmware != "":
		return m, "", nil, usageErrorf("--firmware goes with --disk")
	}
	switch {
	case f.backend == plainBackend && f.initramfs == "":
		return m, "", nil, usageErrorf("the backend plain needs --initramfs")
	case f.backend != plainBackend && f.initramfs != "":
		return m, "", nil, usageErrorf("--initramfs goes with the backend plain only")
	}
	backend = f.backend
	if backend == plainBackend {
		m.Initrd = f.initramfs
		f.attachGivenBootDisk(&m)
	} else {
		if backend, cleanup, err = f.attachBuild(ctx, &m); err != nil {
			return m, backend, cleanup, err
		}
		m.Expect = append(m.Expect, vmtest.HandedOver)
	}
	if m.Kernel == "" {
		if f.kver == "" {
			return m, backend, cleanup, usageErrorf("neither --kernel nor --kver is given")
		}
		m.Kernel = "/boot/vmlinuz-" + f.kver
	}
	for _, file := range []string{m.Kernel, m.Initrd} {
		if _, err := os.Stat(file); err != nil {
			return m, backend, cleanup, err
		}
	}
	if f.rootDisk != "" {
		if err := f.attachRoot(&m); err != nil {
			return m, backend, cleanup, err
		}
	}
	m.Append = append(m.Append, strings.Fields(f.appendWords)...)
	return m, backend, cleanup, nil
}

// attachDisk has the firmware boot a disk, which has everything.
func (f *bootFlags) attachDisk(m *vmtest.Machine) error {
	for flag, value := range map[string]string{
		"backend": f.backend, "initramfs": f.initramfs, "rootdisk": f.rootDisk, "bootdisk": f.bootDisk, "append": f.appendWords,
	} {
		if value != "" {
			return usageErrorf("--disk has everything: it goes without --%s", flag)
		}
	}
	format, err := diskFormat(f.disk)
	if err != nil {
		return err
	}
	m.Firmware = &vmtest.Firmware{Code: f.firmware, Vars: f.firmwareVars}
	if f.firmware == "" {
		if m.Firmware, err = vmtest.FindFirmware(f.arch); err != nil {
			return hinted{err, "install ovmf (Debian) or edk2-ovmf, or name its files with --firmware and --firmware-vars"}
		}
	}
	m.Drives = append(m.Drives, vmtest.Drive{Name: "disk", Path: f.disk, Format: format, Snapshot: true})
	m.Expect = append(m.Expect, vmtest.MultiUser)
	return nil
}

// diskFormat tells a qcow2 from a raw disk.
func diskFormat(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil {
		return "", fmt.Errorf("disk %s: %w", path, err)
	}
	if string(magic) == "QFI\xfb" {
		return disk.QCOW2, nil
	}
	return disk.Raw, nil
}

// attachBuild gives the guest the mini-initramfs of the build and its image, as
// the backend needs it.
func (f *bootFlags) attachBuild(ctx context.Context, m *vmtest.Machine) (backend string, cleanup func(), err error) {
	manifest, err := f.readManifest()
	if err != nil {
		return "", nil, err
	}
	f.kver = manifest.KernelVersion
	m.Initrd = filepath.Join(f.dir, manifest.Mini.File)
	image := filepath.Join(f.dir, manifest.Image.File)
	config, err := builder.MiniConfig(m.Initrd)
	if err != nil {
		return "", nil, err
	}
	built := bootconf.FormatBackends(config.Backends, config.Auto)
	backend = f.backend
	if backend == "" || backend == "auto" {
		backend = built
	}
	list, _, err := bootconf.ParseBackends(backend)
	if err != nil {
		return "", nil, usageErrorf("--backend: %v", err)
	}
	if backend != built {
		for _, b := range list {
			if !slices.Contains(config.Backends, b) {
				return "", nil, hinted{
					fmt.Errorf("the build in %s does not have the backend %s", f.dir, b),
					"build it with --backend " + string(b),
				}
			}
		}
		m.Append = append(m.Append, bootconf.CmdlinePrefix+"backend="+backend)
	}
	if f.bootDisk != "" {
		f.attachGivenBootDisk(m)
		return backend, nil, nil
	}
	switch first := list[0]; first {
	case bootconf.Embedded:
		return backend, nil, nil
	case bootconf.Pmem, bootconf.PmemDAX:
		return backend, nil, f.attachPmem(m, image)
	default:
		cleanup, err = f.attachBootDisk(ctx, m, first, config, image)
		return backend, cleanup, err
	}
}

// attachGivenBootDisk adds the disk of --bootdisk. The real root may hold the
// image too, and is then one disk.
func (f *bootFlags) attachGivenBootDisk(m *vmtest.Machine) {
	if f.bootDisk != "" && f.bootDisk != f.rootDisk {
		m.Drives = append(m.Drives, vmtest.Drive{Name: "boot", Path: f.bootDisk, Snapshot: true})
	}
}

// readManifest finds the build of --kver, or the only one.
func (f *bootFlags) readManifest() (*bootconf.Manifest, error) {
	kver := f.kver
	if kver == "" {
		kver = "*"
	}
	found, err := filepath.Glob(filepath.Join(f.dir, "initoverlayfs-"+kver+".json"))
	if err != nil {
		return nil, err
	}
	switch {
	case len(found) == 0:
		return nil, hinted{
			fmt.Errorf("%s has no build of kernel %s", f.dir, kver),
			"make one with `initoverlayfs build`, or name its folder with --dir",
		}
	case len(found) > 1:
		return nil, usageErrorf("%s has several builds; choose one with --kver", f.dir)
	}
	return builder.ReadManifest(found[0])
}

// attachPmem adds the image as persistent memory, besides the memory that the
// guest is to have. The loader puts the initramfs at the end of the memory,
// which is why the region does not lie there. It is placed so that all but its
// begin can be given back as RAM; a guest that is too small for that gets the
// least that holds the image.
func (f *bootFlags) attachPmem(m *vmtest.Machine, image string) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	p := vmtest.Pmem{Path: image, Virtio: f.virtioPmem}
	if !p.Virtio {
		const blockMiB, headMiB, alignMiB = bootconf.MemoryBlock >> 20, bootconf.RegionHead >> 20, vmtest.PmemAlign >> 20
		p.SizeMiB = int(bootconf.RegionFor(info.Size()).Size >> 20)
		p.AddrMiB = min(512, (f.memoryMiB/2+headMiB)/blockMiB*blockMiB) - headMiB
		if p.AddrMiB < 0 {
			p.SizeMiB = int((info.Size()+vmtest.PmemAlign-1)/vmtest.PmemAlign) * alignMiB
			p.AddrMiB = f.memoryMiB / 2 / alignMiB * alignMiB
		}
		m.MemoryMiB += p.SizeMiB
	}
	m.Pmem = append(m.Pmem, p)
	return nil
}

// attachBootDisk makes a disk whose only partition is the image, or a boot
// filesystem that holds it, under the tag of the configuration or one that is
// then passed.
func (f *bootFlags) attachBootDisk(ctx context.Context, m *vmtest.Machine, backend bootconf.Backend, config bootconf.Config, image string) (cleanup func(), err error) {
	part := disk.Partition{Label: "initoverlayfs"}
	name := "image"
	if backend.OnBootfs() {
		name = "boot"
		part.FS = firstOf(f.bootfsType, config.BootfsType, "ext4")
		part.Files = map[string]string{config.FS: image}
	} else {
		part.Image = image
	}
	switch tag := config.Bootfs; tag.Kind {
	case bootconf.TagPartUUID:
		part.GUID = tag.Value
	case bootconf.TagPartLabel:
		part.Label = tag.Value
	case bootconf.TagUUID:
		part.FSUUID = tag.Value
	case bootconf.TagLabel:
		part.FSLabel = tag.Value
	case bootconf.TagPath:
		return nil, hinted{
			fmt.Errorf("no disk can be made for the boot filesystem %s", tag),
			"give the disk with --bootdisk",
		}
	}
	dir, err := os.MkdirTemp("", "initoverlayfs-boot-")
	if err != nil {
		return nil, err
	}
	cleanup = func() { _ = os.RemoveAll(dir) }
	path := filepath.Join(dir, "boot.img")
	parts, err := disk.Create(ctx, path, disk.Spec{Partitions: []disk.Partition{part}})
	if err != nil {
		return cleanup, err
	}
	m.Drives = append(m.Drives, vmtest.Drive{Name: name, Path: path, Snapshot: true})
	if config.Bootfs.IsZero() {
		m.Append = append(m.Append, bootconf.CmdlinePrefix+"bootfs=PARTUUID="+parts[0].GUID)
	}
	return cleanup, nil
}

// attachRoot adds the root disk, and root= unless the command line has it.
func (f *bootFlags) attachRoot(m *vmtest.Machine) error {
	m.Drives = append(m.Drives, vmtest.Drive{Name: "root", Path: f.rootDisk, Snapshot: true})
	m.Expect = append(m.Expect, vmtest.MultiUser)
	for word := range bootconf.Words(f.appendWords) {
		if strings.HasPrefix(word, "root=") {
			return nil
		}
	}
	uuid, err := ext4UUID(f.rootDisk)
	if err != nil {
		return hinted{err, "say where the root filesystem is with --append root=..."}
	}
	m.Append = append(m.Append, "root=UUID="+uuid.String())
	return nil
}

// ext4UUID reads the UUID of an ext4 on a whole disk; Documentation/filesystems/
// ext4 in the kernel has the superblock.
func ext4UUID(path string) (bootconf.UUID, error) {
	f, err := os.Open(path)
	if err != nil {
		return bootconf.UUID{}, err
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil && !errors.Is(err, io.EOF) {
		return bootconf.UUID{}, err
	}
	if binary.LittleEndian.Uint16(sb[0x38:]) != 0xef53 {
		return bootconf.UUID{}, fmt.Errorf("%s is not an ext4 filesystem", path)
	}
	return bootconf.UUID(sb[0x68:0x78]), nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
