package vmtest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Accel is QEMU's way to run guest code.
type Accel string

// The accelerators. The zero Accel is Auto.
const (
	Auto Accel = "auto" // KVM if a real boot proves that it works, else TCG
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// ParseAccel reads auto, kvm or tcg.
func ParseAccel(s string) (Accel, error) {
	switch a := Accel(s); a {
	case Auto, KVM, TCG:
		return a, nil
	}
	return "", fmt.Errorf("unknown accelerator %q; it is auto, kvm or tcg", s)
}

// Machine describes a guest and what is expected of its boot. The zero value
// of every field but Kernel, or Firmware, is usable.
type Machine struct {
	Arch string // a Go architecture name; empty: amd64
	QEMU string // the emulator; empty: the architecture's, found in PATH

	// Firmware, if set, boots the first drive by what is on it. Initrd and
	// Append are then not used: see ConsoleWords for the words that the disk's
	// boot entries need. Kernel only serves to prove KVM, and without it Auto is
	// TCG.
	Firmware *Firmware

	Kernel string
	Initrd string // empty: none
	// Append has the words of the kernel command line that follow the
	// console's and the events' own.
	Append []string

	MemoryMiB    int // 0: 1024
	MaxMemoryMiB int // for virtio-pmem; 0: enough for what is attached
	CPUs         int // 0: 1

	Accel Accel
	CPU   string // QEMU's CPU model; empty: host under KVM, the fastest under TCG
	// ICount makes one guest nanosecond one instruction (TCG only), so that
	// what it computes takes the same time in each boot. While the guest has
	// nothing to do, its clock goes with the host's.
	ICount bool
	// SkipIdle has the clock of such a guest jump to the next timer instead.
	// Timeouts are then exact and cost nothing. It is for guests without disks: a
	// disk answers when the host has read it, and until then the guest can jump by
	// whole seconds.
	SkipIdle bool

	Drives []Drive
	// BlockStats asks QEMU at each milestone, and at the end, what the guest has
	// read from its drives: Result.Disks.
	BlockStats bool
	Pmem       []Pmem
	Extra      []string // further arguments of QEMU, the last

	// Timeout bounds the whole run on the host's clock; 0: five minutes.
	Timeout time.Duration
	// FatalGrace is how long the guest may follow its failure policy after
	// storage-init has reported a fatal error; 0: fifteen seconds.
	FatalGrace time.Duration
	// Expect has the milestones without which a boot has failed.
	Expect []Milestone
	// Until ends the guest as soon as this milestone and those of Expect were
	// reached: nothing else is expected of it then. For measurements; what a boot
	// is to prove takes its done event. Not with BlockStats, which are those of a
	// guest that ends by itself.
	Until Milestone

	// LogParent is the folder in which Run makes the folder of its logs;
	// empty: the one for temporary files.
	LogParent string
	Keep      bool // keeps the logs of a boot that succeeded, too

	// OnLine, if set, is called with each console line as it arrives, OnEvent
	// with each event. They are called one at a time.
	OnLine  func(Line)
	OnEvent func(Event)
}

// Bus is the hardware by which a guest sees a drive.
type Bus string

// The buses. The zero Bus is VirtioBlk.
const (
	VirtioBlk  Bus = "virtio-blk"
	VirtioSCSI Bus = "virtio-scsi"
	NVMe       Bus = "nvme"
	AHCI       Bus = "ahci"
	USBStorage Bus = "usb-storage"
	// SDHCI takes one card a machine, and its image's size must be a power of
	// two.
	SDHCI Bus = "sdhci"
)

// Buses lists every bus.
var Buses = []Bus{VirtioBlk, VirtioSCSI, NVMe, AHCI, USBStorage, SDHCI}

// Drive is a disk of the guest.
type Drive struct {
	// Name is what the drive is called in Result.Disks; empty: driveN, the first
	// drive 0. Names are unique.
	Name     string
	Path     string
	Format   string // QEMU's name; empty: raw
	Bus      Bus
	Snapshot bool // the guest's writes are thrown away
	ReadOnly bool // the guest is refused writes; not with Snapshot or AHCI
	// WriteLog is a file that gets, beside the disk, every write and flush of
	// the guest in their order; package powercut reads it. Run makes it anew.
	// The disk is raw and is written. Empty: no log.
	WriteLog string

	Serial string // at most 20 characters; NVMe always has one
	WWN    uint64 // of a virtio-scsi or AHCI disk; 0: none
	// SCSITarget and SCSILUN place a virtio-scsi disk; without SCSIAddr disks
	// get targets in order.
	SCSIAddr            bool
	SCSITarget, SCSILUN int

	// Throttling in bytes and in requests a second; 0: none. A total excludes the
	// two limits that it is the sum of. See Storage for how exact it is.
	BPSRead, BPSWrite, BPSTotal    int64
	IOPSRead, IOPSWrite, IOPSTotal int64
}

func driveID(i int) string { return "drive" + strconv.Itoa(i) }

// name gives the name of the drive with index i.
func (d *Drive) name(i int) string {
	if d.Name != "" {
		return d.Name
	}
	return driveID(i)
}

// throttled says whether QEMU delays requests.
func (d *Drive) throttled() bool {
	return d.BPSRead|d.BPSWrite|d.BPSTotal|d.IOPSRead|d.IOPSWrite|d.IOPSTotal != 0
}

// PmemAlign is the granularity of persistent memory in bytes: both the
// address and the size of a region are its multiples.
const PmemAlign = 2 << 20

// Pmem is an image that the guest sees as persistent memory.
type Pmem struct {
	Path string
	// Virtio makes it a virtio-pmem device, which needs no guest memory. The
	// guest's writes are thrown away. The image's size must be a multiple of
	// PmemAlign for Args; Run lengthens a copy where it is not. Otherwise the image is loaded into guest memory that
	// memmap=SIZE!ADDR takes away from the kernel.
	Virtio bool
	// AddrMiB is where a memmap region begins; 0: 512 or behind the previous
	// one.
	AddrMiB int
	// SizeMiB is the size of a memmap region; 0: that of the image, rounded up
	// to PmemAlign.
	SizeMiB int
}

const (
	defaultMemoryMiB = 1024
	defaultPmemMiB   = 512
)

// Args gives QEMU's arguments. It looks at the sizes of persistent memory
// images and at nothing else of the host. The accelerator must be KVM or TCG.
//
// The arguments expect the console's pipe as file descriptor 3, the events' as
// 4, and with BlockStats a socket as 5, on which QEMU is asked.
func (m *Machine) Args() ([]string, error) {
	a, err := m.arch()
	if err != nil {
		return nil, err
	}
	switch {
	case m.Firmware != nil:
		if err := m.checkFirmware(); err != nil {
			return nil, err
		}
	case m.Kernel == "":
		return nil, fmt.Errorf("qemu: no kernel")
	}
	accel, err := m.accelArgs(a)
	if err != nil {
		return nil, err
	}
	if m.Until != "" && m.BlockStats {
		return nil, fmt.Errorf("qemu: block statistics are those of a guest that ends by itself")
	}
	pmem, memmap, extraMiB, err := m.pmemArgs()
	if err != nil {
		return nil, err
	}
	drives, err := m.driveArgs()
	if err != nil {
		return nil, err
	}

	args := []string{"-nodefaults", "-nographic", "-no-reboot", "-machine", a.machine}
	args = append(args, accel...)
	memory := strconv.Itoa(m.memoryMiB())
	switch {
	case m.MaxMemoryMiB > 0:
		memory += ",maxmem=" + strconv.Itoa(m.MaxMemoryMiB) + "M"
	case extraMiB > 0:
		memory += ",maxmem=" + strconv.Itoa(m.memoryMiB()+extraMiB) + "M"
	}
	args = append(args, "-m", memory, "-smp", strconv.Itoa(max(m.CPUs, 1)))
	// QEMU opens a file to append to without truncating it, which a descriptor
	// that it was given would refuse.
	args = append(args,
		"-add-fd", "fd=3,set=3", "-chardev", "file,id=console,path=/dev/fdset/3,append=on", "-serial", "chardev:console",
		"-add-fd", "fd=4,set=4", "-chardev", "file,id=events,path=/dev/fdset/4,append=on")
	args = append(args, a.eventsDevice...)
	if m.BlockStats {
		args = append(args, "-chardev", "socket,id=qmp,fd=5", "-mon", "chardev=qmp,mode=control")
	}
	if m.Firmware != nil {
		args = append(args, m.Firmware.args()...)
	} else {
		args = append(args, m.kernelArgs(a, memmap)...)
	}
	args = append(args, pmem...)
	args = append(args, drives...)
	return append(args, m.Extra...), nil
}

// kernelArgs hand the guest its kernel without a boot loader.
func (m *Machine) kernelArgs(a arch, memmap []string) []string {
	args := []string{"-kernel", m.Kernel}
	if m.Initrd != "" {
		args = append(args, "-initrd", m.Initrd)
	}
	return append(args, "-append", strings.Join(slices.Concat(a.consoleWords(), memmap, m.Append), " "))
}

func (m *Machine) memoryMiB() int {
	if m.MemoryMiB > 0 {
		return m.MemoryMiB
	}
	return defaultMemoryMiB
}

func (m *Machine) accelArgs(a arch) ([]string, error) {
	cpu := m.CPU
	switch {
	case m.Accel == KVM && m.ICount:
		return nil, fmt.Errorf("qemu: instruction counting needs the accelerator tcg")
	case m.Accel == KVM && cpu == "":
		cpu = "host"
	case m.Accel == TCG && cpu == "":
		cpu = a.tcgCPU
	case m.Accel != KVM && m.Accel != TCG:
		return nil, fmt.Errorf("qemu: accelerator %q is not decided", m.Accel)
	}
	args := []string{"-accel", string(m.Accel), "-cpu", cpu}
	if m.ICount {
		sleep := "on"
		if m.SkipIdle {
			sleep = "off"
		}
		args = append(args, "-icount", "shift=0,sleep="+sleep)
	}
	return args, nil
}

// pmemArgs gives the arguments and kernel command line words of the persistent
// memory, and how much of it lies outside the guest's ordinary memory.
func (m *Machine) pmemArgs() (args, words []string, extraMiB int, err error) {
	const alignMiB = PmemAlign >> 20
	next := defaultPmemMiB
	for i, p := range m.Pmem {
		info, err := os.Stat(p.Path)
		if err != nil {
			return nil, nil, 0, fmt.Errorf("qemu: persistent memory: %w", err)
		}
		if info.Size() == 0 {
			return nil, nil, 0, fmt.Errorf("qemu: persistent memory %s: empty image", p.Path)
		}
		sizeMiB := int((info.Size()+PmemAlign-1)/PmemAlign) * alignMiB
		if p.Virtio {
			if info.Size()%PmemAlign != 0 {
				// QEMU would lengthen the file itself.
				return nil, nil, 0, fmt.Errorf("qemu: virtio-pmem %s: size %d is not a multiple of %d",
					p.Path, info.Size(), PmemAlign)
			}
			id := "pmem" + strconv.Itoa(i)
			args = append(args,
				"-object", fmt.Sprintf("memory-backend-file,id=%s,mem-path=%s,size=%dM,share=off", id, escape(p.Path), sizeMiB),
				"-device", fmt.Sprintf("virtio-pmem-pci,memdev=%s", id))
			extraMiB += sizeMiB
			continue
		}
		if p.SizeMiB != 0 {
			if p.SizeMiB < sizeMiB {
				return nil, nil, 0, fmt.Errorf("qemu: persistent memory %s: %d MiB image in a region of %d MiB",
					p.Path, sizeMiB, p.SizeMiB)
			}
			sizeMiB = p.SizeMiB
		}
		addr := p.AddrMiB
		if addr == 0 {
			addr = next
		}
		next = addr + sizeMiB
		switch {
		case addr%alignMiB != 0 || sizeMiB%alignMiB != 0:
			return nil, nil, 0, fmt.Errorf("qemu: persistent memory %s: %d MiB at %d MiB is not a multiple of %d MiB",
				p.Path, sizeMiB, addr, alignMiB)
		case next > m.memoryMiB():
			return nil, nil, 0, fmt.Errorf("qemu: persistent memory %s: %d MiB at %d MiB do not fit in a guest of %d MiB",
				p.Path, sizeMiB, addr, m.memoryMiB())
		}
		args = append(args, "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", escape(p.Path), int64(addr)<<20))
		words = append(words, fmt.Sprintf("memmap=%dM!%dM", sizeMiB, addr))
	}
	return args, words, extraMiB, nil
}

// driveArgs gives the arguments of the drives and of the controllers they
// hang on.
func (m *Machine) driveArgs() ([]string, error) {
	var args []string
	onBus := map[Bus]int{}
	names := map[string]bool{}
	for i, d := range m.Drives {
		name := d.name(i)
		if names[name] {
			return nil, fmt.Errorf("qemu: drive %s: a second one with the name %q", d.Path, name)
		}
		names[name] = true
		if m.ICount && d.throttled() {
			return nil, fmt.Errorf("qemu: drive %s: throttling follows the host's clock, which instruction counting leaves", d.Path)
		}
		bus := d.Bus
		if bus == "" {
			bus = VirtioBlk
		}
		if err := d.check(bus); err != nil {
			return nil, err
		}
		n := onBus[bus]
		onBus[bus]++
		id := driveID(i)

		var controller, device string
		switch bus {
		case VirtioBlk:
			device = "virtio-blk-pci,drive=" + id
		case VirtioSCSI:
			controller = "virtio-scsi-pci,id=vscsi"
			target, lun := n, 0
			if d.SCSIAddr {
				target, lun = d.SCSITarget, d.SCSILUN
			}
			device = fmt.Sprintf("scsi-hd,bus=vscsi.0,scsi-id=%d,lun=%d,drive=%s", target, lun, id)
		case NVMe:
			device = "nvme,drive=" + id
			if d.Serial == "" {
				d.Serial = id // QEMU refuses a controller without one
			}
		case AHCI:
			if n == ahciPorts {
				return nil, fmt.Errorf("qemu: drive %s: more than %d AHCI disks", d.Path, ahciPorts)
			}
			controller = "ich9-ahci,id=ahci"
			device = fmt.Sprintf("ide-hd,bus=ahci.%d,drive=%s", n, id)
		case USBStorage:
			controller = "qemu-xhci,id=xhci"
			device = "usb-storage,bus=xhci.0,drive=" + id
		case SDHCI:
			if n > 0 {
				return nil, fmt.Errorf("qemu: drive %s: more than one SD card", d.Path)
			}
			controller = "sdhci-pci"
			device = "sd-card,drive=" + id
		}
		if controller != "" && n == 0 {
			args = append(args, "-device", controller)
		}
		if d.Serial != "" && bus != SDHCI {
			device += ",serial=" + escape(d.Serial)
		}
		if d.WWN != 0 {
			device += fmt.Sprintf(",wwn=%#x", d.WWN)
		}
		args = append(args, "-drive", d.options(id), "-device", device)
	}
	return args, nil
}

const (
	ahciPorts    = 6
	maxSerialLen = 20 // of virtio-blk, NVMe and ATA identification
)

func (d *Drive) check(bus Bus) error {
	switch {
	case !slices.Contains(Buses, bus):
		return fmt.Errorf("qemu: drive %s: unknown bus %q", d.Path, bus)
	case d.Snapshot && d.ReadOnly:
		return fmt.Errorf("qemu: drive %s: both a snapshot and read-only", d.Path)
	case d.WriteLog != "" && (d.Snapshot || d.ReadOnly || d.Format != ""):
		return fmt.Errorf("qemu: drive %s: a log of writes is that of a raw disk which is written", d.Path)
	case bus == AHCI && d.ReadOnly:
		return fmt.Errorf("qemu: drive %s: an AHCI disk cannot be read-only", d.Path)
	case d.WWN != 0 && bus != VirtioSCSI && bus != AHCI:
		return fmt.Errorf("qemu: drive %s: %s has no WWN", d.Path, bus)
	case d.SCSIAddr && bus != VirtioSCSI:
		return fmt.Errorf("qemu: drive %s: %s has no SCSI address", d.Path, bus)
	case d.BPSTotal != 0 && d.BPSRead|d.BPSWrite != 0, d.IOPSTotal != 0 && d.IOPSRead|d.IOPSWrite != 0:
		return fmt.Errorf("qemu: drive %s: throttled both in total and by direction", d.Path)
	case len(d.Serial) > maxSerialLen:
		return fmt.Errorf("qemu: drive %s: serial %q is longer than %d", d.Path, d.Serial, maxSerialLen)
	}
	return nil
}

// options gives the value of -drive.
func (d *Drive) options(id string) string {
	format := d.Format
	if format == "" {
		format = "raw"
	}
	if d.WriteLog != "" {
		format = "blklogwrites"
	}
	s := fmt.Sprintf("if=none,id=%s,file=%s,format=%s", id, escape(d.Path), format)
	if d.WriteLog != "" {
		// The number of entries is brought up to date with each of them.
		s += ",log.driver=file,log.filename=" + escape(d.WriteLog) + ",log-super-update-interval=1"
	}
	if d.Snapshot {
		s += ",snapshot=on"
	}
	if d.ReadOnly {
		s += ",readonly=on"
	}
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{"bps-read", d.BPSRead}, {"bps-write", d.BPSWrite}, {"bps-total", d.BPSTotal},
		{"iops-read", d.IOPSRead}, {"iops-write", d.IOPSWrite}, {"iops-total", d.IOPSTotal},
	} {
		if limit.value > 0 {
			s += fmt.Sprintf(",throttling.%s=%d", limit.name, limit.value)
		}
	}
	return s
}

// escape protects a value in QEMU's option lists, where a comma ends it.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
