package boots

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"initoverlayfs/bench/floor"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest"
)

// BenchmarkStorageInit counts the instructions, in millions, from the kernel's
// start of /init to the hand-over, through persistent memory and with signed
// modules: no part of that waits for anything. Beside the sum are the share of
// loading modules, by the boot record, and the kernel's own part before, with
// this mini-initramfs and with one whose init does nothing.
//
//	INITOVERLAYFS_VM=1 go test ./vmtest/boots -run '^$' -bench StorageInit
func BenchmarkStorageInit(b *testing.B) {
	build := spec{config: "backend pmem\n", compress: compress.Zstd}.build(b)
	const perSecond = 1000 // one instruction is one nanosecond; in millions
	var total, ours, modules, before, least float64
	var runs float64
	var names []string
	for b.Loop() {
		m := build.machine(b)
		m.ICount = true
		build.attach(b, &m, bootconf.Pmem)
		r := build.boot(b, m, bootconf.Pmem)
		start, end := r.Times[vmtest.KernelToInit], r.Times[vmtest.HandedOver]
		total += (end - start) * perSecond
		before += start * perSecond
		ours += float64(r.Handover.US) / 1000
		record := build.checkRecord(b, r, bootconf.Pmem)
		for _, p := range record.Phases {
			if strings.HasPrefix(p.Name, "modules ") {
				modules += float64(p.EndUS-p.StartUS) / 1000
			}
		}
		names = record.Modules
		least += emptyBoot(b, build) * perSecond
		runs++
	}
	b.ReportMetric(total/runs, "Minstr")
	b.ReportMetric(ours/runs, "storage-init-Minstr") // without the start of the process
	b.ReportMetric(modules/runs, "modules-Minstr")
	b.ReportMetric(before/runs, "kernel-Minstr")
	b.ReportMetric(least/runs, "kernel-floor-Minstr")
	b.ReportMetric(0, "ns/op") // of the host, which says nothing here
	b.Logf("%d bytes, modules %v", build.Mini.Size, names)
}

// BenchmarkFloor counts the same for storage-init and for a C program that makes
// only the system calls that cannot be avoided, with the modules that storage-init
// has loaded: package floor. It fails where storage-init needs more than 1.05
// times as much. The second CPU has instructions for SHA-256, so half of the work
// that both have in common is gone, and the start of Go counts for more: 1.08.
//
//	INITOVERLAYFS_VM=1 go test ./vmtest/boots -run '^$' -bench Floor
func BenchmarkFloor(b *testing.B) {
	for _, test := range []struct {
		cpu  string
		most float64
	}{{"qemu64", 1.05}, {"max", 1.08}} {
		b.Run(test.cpu, func(b *testing.B) { benchmarkFloor(b, test.cpu, test.most) })
	}
}

func benchmarkFloor(b *testing.B, cpu string, most float64) {
	pair := newPair(b)
	pair.machine.CPU, pair.machine.ICount = cpu, true
	var ours, least, runs float64
	for b.Loop() {
		o, l := pair.boot(b)
		ours += o
		least += l
		runs++
	}
	b.ReportMetric(ours/runs, "storage-init-Minstr")
	b.ReportMetric(least/runs, "floor-Minstr")
	b.ReportMetric(ours/least, "ratio")
	b.ReportMetric(0, "ns/op")
	if ours > most*least {
		b.Errorf("storage-init needs %.3f times the floor; the most is %.2f", ours/least, most)
	}
}

// BenchmarkParallel times the same with several CPUs, in milliseconds of the
// guest's clock, which runs with the host's: storage-init, which loads modules side
// by side, beside the C program, which loads one after the other. How much that
// can gain depends on the host's cores as well, so it fails at nothing.
//
//	INITOVERLAYFS_VM=1 go test ./vmtest/boots -run '^$' -bench Parallel -benchtime 10x
func BenchmarkParallel(b *testing.B) {
	for _, cpus := range []int{1, 2, 4} {
		b.Run(strconv.Itoa(cpus), func(b *testing.B) {
			pair := newPair(b)
			pair.machine.CPUs = cpus
			var ours, serial []float64
			for b.Loop() {
				o, s := pair.boot(b)
				ours, serial = append(ours, o), append(serial, s)
			}
			slices.Sort(ours)
			slices.Sort(serial)
			middle := len(ours) / 2
			b.ReportMetric(ours[middle], "storage-init-ms")
			b.ReportMetric(serial[middle], "serial-ms")
			b.ReportMetric(ours[middle]/serial[middle], "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// pair boots storage-init and the floor with the same modules.
type pair struct {
	build   *build
	machine vmtest.Machine // of storage-init
}

func newPair(b *testing.B) *pair {
	p := &pair{build: spec{config: "backend pmem\n", compress: compress.Zstd}.build(b)}
	p.machine = p.build.machine(b)
	p.build.attach(b, &p.machine, bootconf.Pmem)
	return p
}

// boot boots both and gives the times from "Run /init" to the hand-over, in
// milliseconds: where a nanosecond is an instruction, in millions of them.
func (p *pair) boot(b *testing.B) (ours, least float64) {
	took := func(r *vmtest.Result) float64 {
		return (r.Times[vmtest.HandedOver] - r.Times[vmtest.KernelToInit]) * 1000
	}
	r := p.build.boot(b, p.machine, bootconf.Pmem)
	ours = took(r)
	record := p.build.checkRecord(b, r, bootconf.Pmem)

	path := filepath.Join(b.TempDir(), "floor.img")
	err := floor.Build(b.Context(), path, floor.Options{Mini: p.build.mini, Modules: record.Modules, Backend: bootconf.Pmem})
	if errors.Is(err, floor.ErrNoCompiler) && os.Getenv("CI") != "true" {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	m := p.machine
	m.Initrd, m.Append = path, []string{"vmtest.check=exists:" + marker}
	m.Expect = []vmtest.Milestone{vmtest.KernelToInit, vmtest.HandedOver, vmtest.InitfsInit}
	if r, err = run(b, m); err != nil {
		b.Fatalf("%v\n%s", err, r.Console)
	}
	if here := checked[bool](b, r, "exists"); !here {
		b.Errorf("the floor's tree has no %s: it is another image's", marker)
	}
	return ours, took(r)
}

// emptyBoot boots an init that does nothing but exit, and gives the time at which
// the kernel starts it, in seconds.
func emptyBoot(tb testing.TB, b *build) float64 {
	tb.Helper()
	program := []byte{
		0xb8, 60, 0, 0, 0, // mov $60,%eax (exit)
		0x31, 0xff, // xor %edi,%edi
		0x0f, 0x05, // syscall
	}
	const base, headers = 0x400000, 64 + 56
	var init bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
			Filesz: headers + uint64(len(program)), Memsz: headers + uint64(len(program)), Align: 0x1000,
		},
		program,
	} {
		if err := binary.Write(&init, binary.LittleEndian, part); err != nil {
			tb.Fatal(err)
		}
	}
	path := filepath.Join(tb.TempDir(), "floor.img")
	var archive bytes.Buffer
	if err := archiveOf(&archive, "init", init.String()); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
	m := b.machine(tb)
	m.Initrd, m.ICount, m.LogParent = path, true, tb.TempDir()
	b.attach(tb, &m, bootconf.Pmem)
	r, err := run(tb, m)
	start, ok := r.Times[vmtest.KernelToInit]
	if !errors.Is(err, vmtest.ErrPanic) || !ok {
		tb.Fatalf("error = %v; want the panic of an init that exits\n%s", err, r.Console)
	}
	return start
}
