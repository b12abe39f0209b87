package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fileOf makes a sparse file of so many bytes.
func fileOf(t *testing.T, name string, size int64) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

// The arguments that every machine has, in their order, around its own.
const (
	base  = "-nodefaults -nographic -no-reboot -machine q35,sata=off,smbus=off"
	ports = "-add-fd fd=3,set=3 -chardev file,id=console,path=/dev/fdset/3,append=on -serial chardev:console" +
		" -add-fd fd=4,set=4 -chardev file,id=events,path=/dev/fdset/4,append=on -serial chardev:events -kernel K"
	words = "console=ttyS0 printk.time=1 console_msg_format=syslog printk.devkmsg=on vmtest.events=ttyS1 no_timer_check"
	tcg   = " -accel tcg -cpu qemu64"
	small = " -m 1024 -smp 1 "
)

// throttled is a drive that had limits before.
func throttled(s Storage) Drive {
	d := Drive{Path: "a", Name: s.Name, BPSRead: 1, BPSWrite: 1, IOPSRead: 1, IOPSWrite: 1}
	d.Throttle(s)
	return d
}

func TestArgs(t *testing.T) {
	pmem := fileOf(t, "odd", 5<<20+1)
	even := fileOf(t, "even,comma", 6<<20)
	for _, test := range []struct {
		name string
		m    Machine
		want string
	}{
		{"least", Machine{Accel: TCG}, base + tcg + small + ports + " -append <" + words + ">"},
		{"kvm", Machine{Accel: KVM, MemoryMiB: 256, CPUs: 2, Initrd: "I", Append: []string{"a", "b=c"}},
			base + " -accel kvm -cpu host -m 256 -smp 2 " + ports + " -initrd I -append <" + words + " a b=c>"},
		{"model", Machine{Accel: TCG, CPU: "max", MaxMemoryMiB: 4096, Extra: []string{"-S"}},
			base + " -accel tcg -cpu max -m 1024,maxmem=4096M -smp 1 " + ports + " -append <" + words + "> -S"},
		{"icount", Machine{Accel: TCG, ICount: true},
			base + tcg + " -icount shift=0,sleep=on" + small + ports + " -append <" + words + ">"},
		{"icount without waits", Machine{Accel: TCG, ICount: true, SkipIdle: true},
			base + tcg + " -icount shift=0,sleep=off" + small + ports + " -append <" + words + ">"},
		{"memmap", Machine{Accel: TCG, Pmem: []Pmem{{Path: pmem}, {Path: pmem, SizeMiB: 8}, {Path: pmem, AddrMiB: 600}}},
			base + tcg + small + ports + " -append <" + words + " memmap=6M!512M memmap=8M!518M memmap=6M!600M>" +
				" -device loader,file=" + pmem + ",addr=0x20000000,force-raw=on" +
				" -device loader,file=" + pmem + ",addr=0x20600000,force-raw=on" +
				" -device loader,file=" + pmem + ",addr=0x25800000,force-raw=on"},
		{"virtio-pmem", Machine{Accel: TCG, Pmem: []Pmem{{Path: even, Virtio: true}}},
			base + tcg + " -m 1024,maxmem=1030M -smp 1 " + ports + " -append <" + words + ">" +
				" -object memory-backend-file,id=pmem0,mem-path=" + strings.ReplaceAll(even, ",", ",,") + ",size=6M,share=off" +
				" -device virtio-pmem-pci,memdev=pmem0"},
		{"virtio-blk", Machine{Accel: TCG, Drives: []Drive{{Path: "a,b", Snapshot: true, Serial: "x"}, {Path: "c", Format: "qcow2", ReadOnly: true}}},
			base + tcg + small + ports + " -append <" + words + ">" +
				" -drive if=none,id=drive0,file=a,,b,format=raw,snapshot=on -device virtio-blk-pci,drive=drive0,serial=x" +
				" -drive if=none,id=drive1,file=c,format=qcow2,readonly=on -device virtio-blk-pci,drive=drive1"},
		{"write log", Machine{Accel: TCG, Drives: []Drive{{Path: "a", WriteLog: "b,c"}}},
			base + tcg + small + ports + " -append <" + words + ">" +
				" -drive if=none,id=drive0,file=a,format=blklogwrites,log.driver=file,log.filename=b,,c,log-super-update-interval=1" +
				" -device virtio-blk-pci,drive=drive0"},
		{"virtio-scsi", Machine{Accel: TCG, Drives: []Drive{{Path: "a", Bus: VirtioSCSI, WWN: 0x5000c500a0b0c0d0}, {Path: "b", Bus: VirtioSCSI, SCSIAddr: true, SCSITarget: 3, SCSILUN: 2}}},
			base + tcg + small + ports + " -append <" + words + "> -device virtio-scsi-pci,id=vscsi" +
				" -drive if=none,id=drive0,file=a,format=raw -device scsi-hd,bus=vscsi.0,scsi-id=0,lun=0,drive=drive0,wwn=0x5000c500a0b0c0d0" +
				" -drive if=none,id=drive1,file=b,format=raw -device scsi-hd,bus=vscsi.0,scsi-id=3,lun=2,drive=drive1"},
		{"others", Machine{Accel: TCG, Drives: []Drive{
			{Path: "a", Bus: NVMe, BPSRead: 1000, BPSWrite: 2000, IOPSRead: 30, IOPSWrite: 40},
			{Path: "b", Bus: AHCI}, {Path: "c", Bus: AHCI, Serial: "s"}, {Path: "d", Bus: USBStorage}, {Path: "e", Bus: SDHCI},
		}},
			base + tcg + small + ports + " -append <" + words + ">" +
				" -drive if=none,id=drive0,file=a,format=raw,throttling.bps-read=1000,throttling.bps-write=2000,throttling.iops-read=30,throttling.iops-write=40" +
				" -device nvme,drive=drive0,serial=drive0" +
				" -device ich9-ahci,id=ahci -drive if=none,id=drive1,file=b,format=raw -device ide-hd,bus=ahci.0,drive=drive1" +
				" -drive if=none,id=drive2,file=c,format=raw -device ide-hd,bus=ahci.1,drive=drive2,serial=s" +
				" -device qemu-xhci,id=xhci -drive if=none,id=drive3,file=d,format=raw -device usb-storage,bus=xhci.0,drive=drive3" +
				" -device sdhci-pci -drive if=none,id=drive4,file=e,format=raw -device sd-card,drive=drive4"},
		{"statistics", Machine{Accel: TCG, BlockStats: true}, base + tcg + small + strings.TrimSuffix(ports, " -kernel K") +
			" -chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control -kernel K -append <" + words + ">"},
		{"storage", Machine{Accel: TCG, Drives: []Drive{throttled(SDCard), throttled(Unthrottled)}},
			base + tcg + small + ports + " -append <" + words + ">" +
				" -drive if=none,id=drive0,file=a,format=raw,throttling.bps-total=20000000,throttling.iops-total=1000 -device virtio-blk-pci,drive=drive0" +
				" -drive if=none,id=drive1,file=a,format=raw -device virtio-blk-pci,drive=drive1"},
		{"firmware", Machine{Accel: TCG, Firmware: &Firmware{Code: "C,", Vars: "V"}, Drives: []Drive{{Path: "a", Snapshot: true}}},
			base + tcg + small + strings.TrimSuffix(ports, " -kernel K") +
				" -drive if=pflash,format=raw,unit=0,readonly=on,file=C,, -drive if=pflash,format=raw,unit=1,file=V" +
				" -drive if=none,id=drive0,file=a,format=raw,snapshot=on -device virtio-blk-pci,drive=drive0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.m.Kernel = "K"
			args, err := test.m.Args()
			if err != nil {
				t.Fatal(err)
			}
			for i, a := range args {
				if strings.Contains(a, " ") {
					args[i] = "<" + a + ">"
				}
			}
			split := func(s string) []string { return strings.Split(strings.ReplaceAll(s, " -", "\n-"), "\n") }
			if diff := cmp.Diff(split(test.want), split(strings.Join(args, " "))); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
		})
	}
}

func TestArgsErrors(t *testing.T) {
	odd := fileOf(t, "odd", 5<<20+1)
	drive := func(d Drive) Machine { d.Path = "d"; return Machine{Drives: []Drive{d}} }
	for _, test := range []struct {
		m    Machine
		want string
	}{
		{Machine{Accel: Auto}, `accelerator "auto" is not decided`},
		{Machine{Accel: KVM, ICount: true}, "instruction counting needs"},
		{Machine{Arch: "vax"}, `architecture "vax"`},
		{Machine{Pmem: []Pmem{{Path: odd, Virtio: true}}}, "not a multiple of 2097152"},
		{Machine{Pmem: []Pmem{{Path: odd, SizeMiB: 4}}}, "6 MiB image in a region of 4 MiB"},
		{Machine{Pmem: []Pmem{{Path: odd, AddrMiB: 511}}}, "not a multiple of 2 MiB"},
		{Machine{Pmem: []Pmem{{Path: odd}}, MemoryMiB: 516}, "do not fit in a guest of 516 MiB"},
		{Machine{Pmem: []Pmem{{Path: odd + "x"}}}, "no such file"},
		{Machine{Pmem: []Pmem{{Path: fileOf(t, "empty", 0)}}}, "empty image"},
		{drive(Drive{Bus: "mfm"}), `unknown bus "mfm"`},
		{drive(Drive{Snapshot: true, ReadOnly: true}), "both a snapshot and read-only"},
		{drive(Drive{Bus: AHCI, ReadOnly: true}), "cannot be read-only"},
		{drive(Drive{WriteLog: "l", Snapshot: true}), "a raw disk which is written"},
		{drive(Drive{WriteLog: "l", ReadOnly: true}), "a raw disk which is written"},
		{drive(Drive{WriteLog: "l", Format: "qcow2"}), "a raw disk which is written"},
		{drive(Drive{BPSTotal: 1, BPSWrite: 1}), "both in total and by direction"},
		{drive(Drive{IOPSTotal: 1, IOPSRead: 1}), "both in total and by direction"},
		{Machine{ICount: true, Drives: []Drive{throttled(EMMC)}}, "throttling follows the host's clock"},
		{Machine{ICount: true, Drives: []Drive{throttled(Unthrottled)}}, ""},
		{Machine{Drives: []Drive{{Name: "root"}, {Name: "root"}}}, `a second one with the name "root"`},
		{Machine{Drives: []Drive{{Name: "drive1"}, {}}}, `a second one with the name "drive1"`},
		{drive(Drive{WWN: 1}), "virtio-blk has no WWN"},
		{drive(Drive{Bus: NVMe, SCSIAddr: true}), "nvme has no SCSI address"},
		{drive(Drive{Serial: "123456789012345678901"}), "longer than 20"},
		{Machine{Drives: []Drive{{Bus: SDHCI}, {Bus: SDHCI}}}, "more than one SD card"},
		{Machine{Drives: make([]Drive, 7)}, ""},
		{Machine{Firmware: &Firmware{Code: "C"}}, "without code or variables"},
		{Machine{Firmware: &Firmware{Code: "C", Vars: "V"}}, "without a disk"},
		{Machine{Firmware: &Firmware{Code: "C", Vars: "V"}, Append: []string{"x"}}, "from the disk"},
		{Machine{Firmware: &Firmware{Code: "C", Vars: "V"}, Drives: make([]Drive, 1), Pmem: []Pmem{{Path: odd}}}, "does not pass memmap="},
		{Machine{Drives: []Drive{{Bus: AHCI}, {Bus: AHCI}, {Bus: AHCI}, {Bus: AHCI}, {Bus: AHCI}, {Bus: AHCI}, {Bus: AHCI}}}, "more than 6 AHCI"},
	} {
		test.m.Kernel = "K"
		if test.m.Accel == "" {
			test.m.Accel = TCG
		}
		_, err := test.m.Args()
		if test.want == "" {
			if err != nil {
				t.Errorf("error = %v, want none", err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error = %v, want %q in it", err, test.want)
		}
	}
	m := Machine{Accel: TCG}
	if _, err := m.Args(); err == nil {
		t.Error("no error without a kernel")
	}
}

func TestParseStorage(t *testing.T) {
	for _, want := range Storages {
		if got, err := ParseStorage(want.Name); err != nil || got != want {
			t.Errorf("ParseStorage(%q) = %+v, %v; want %+v", want.Name, got, err, want)
		}
	}
	if _, err := ParseStorage("tape"); err == nil || !strings.Contains(err.Error(), `"tape"; it is one of unthrottled, nvme, emmc, sdcard`) {
		t.Errorf("error = %v, want the names", err)
	}
}

func TestShellQuote(t *testing.T) {
	got := shellQuote([]string{"a", "b c", "it's", "", "x=/y,z"})
	want := "a \\\n\t'b c' \\\n\t'it'\\''s' \\\n\t'' \\\n\tx=/y,z"
	if got != want {
		t.Errorf("shellQuote = %s, want %s", got, want)
	}
}
