package report

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"initoverlayfs/bench"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// faker makes up results of boots that behave as boots do: the machine drifts
// from round to round, files are read before the kernel starts, content that is
// unpacked costs time.
type faker struct {
	bench.Results
	random *rand.Rand
}

// thing is what is booted.
type thing struct {
	series  string
	kind    bench.Kind
	backend string
	boot    float64 // MB that the boot loader reads
	image   float64 // MB
	unpack  float64 // seconds before Run /init
	storage float64 // seconds in storage-init
	full    float64 // factor from the handover on: reading on demand costs
}

var things = []thing{
	{"plain zstd", bench.Plain, "", 40.7, 0, 1.6, 0, 1},
	{"plain lz4", bench.Plain, "", 55.1, 0, 0.6, 0, 1},
	{"squash-erofs", bench.Squash, "", 62, 0, 0.5, 0, 1.06},
	{"erofs-initramfs", bench.ErofsInitramfs, "", 59.9, 0, 0.1, 0.25, 1.01},
	{"block", bench.Ours, "block", 9.0, 48.3, 0.02, 0.3, 1.008},
	{"loop", bench.Ours, "loop", 9.4, 48.3, 0.03, 0.42, 1.03},
	{"ram", bench.Ours, "ram", 9.4, 48.3, 0.03, 0.95, 1.05},
	{"pmem", bench.Ours, "pmem", 57.3, 48.3, 0.02, 0.25, 1},
	{"pmem-dax", bench.Ours, "pmem-dax", 143, 134, 0.02, 0.24, 0.985},
}

func realistic(rounds int) *bench.Results {
	f := &faker{random: rand.New(rand.NewPCG(7, 11))}
	f.Results = bench.Results{
		Format: bench.Format, Started: "2026-03-01T20:00:00Z", Updated: "2026-03-02T05:12:44Z", Tool: "0.1.0", Complete: true,
		Host: bench.Host{CPU: "Example CPU 5950X", Cores: 2, Kernel: "6.1.0-25-amd64", Memory: 8_104_000, QEMU: "10.0.2", Accel: "tcg"},
	}
	for _, t := range things {
		s := f.scenario(t, "standard", bench.Wall)
		for round := 1; round <= rounds; round++ {
			f.boot(s, t, round, 150, 0)
		}
	}
	s := f.scenario(thing{series: "theirs", kind: bench.Given, boot: 31}, "standard", bench.Wall)
	s.Kernel, s.KernelSHA = "6.12.9", strings.Repeat("b", 64)
	for round := 1; round <= rounds; round++ {
		f.boot(s, thing{boot: 31, unpack: 1.1, full: 0.95}, round, 150, 0)
	}
	for _, t := range things {
		s := f.scenario(t, "instructions", bench.Instructions)
		s.Name, s.Firmware = s.Name+" (instructions)", false
		for round := 1; round <= 3; round++ {
			b := f.boot(s, t, round, 1e9, 0)
			b.HostTimes = nil
			for at := range b.Times {
				b.Times[at] *= 0.42
			}
		}
	}
	f.sweep("bloat", []float64{0, 64e6, 256e6, 1024e6, 1024e6 + 1}, func(x float64) string {
		if x > 1024e6 {
			return "1024MB-text"
		}
		return fmt.Sprintf("%.0fMB", x/1e6)
	},
		func(t *thing, x float64) (float64, float64) {
			if t.kind == bench.Ours {
				return 150, 0.05 * x / 256e6
			}
			t.boot += x / 1e6
			return 150, 2.7 * x / 256e6
		})
	f.sweep("storage", []float64{20e6, 80e6, 250e6, 0}, func(x float64) string {
		return map[float64]string{20e6: "SD card", 80e6: "eMMC", 250e6: "UFS", 0: "unthrottled"}[x]
	}, func(t *thing, x float64) (float64, float64) {
		if x == 0 {
			return 5000, 0
		}
		if t.backend == "block" {
			return x / 1e6, 26 / (x / 1e6) // what it reads on demand
		}
		return x / 1e6, 0
	})
	f.sweep("compress", []float64{0, 0, 0}, nil, func(t *thing, x float64) (float64, float64) { return 150, 0 })
	f.sweep("cpus", []float64{1, 2, 4}, func(x float64) string { return fmt.Sprintf("%g", x) }, func(t *thing, x float64) (float64, float64) {
		return 150, 4 / x
	})
	for i := range f.Scenarios {
		if s := &f.Scenarios[i]; s.Set == "standard" && s.Clock == bench.Wall && s.Kind != bench.Given {
			boots := 240
			if s.Kind == bench.Ours {
				boots = 112
			}
			f.Searches = append(f.Searches, bench.MemorySearch{Scenario: s.Name, FailsMiB: boots - 16, BootsMiB: boots, Tries: make([]bench.MemoryTrial, 9), Done: true})
		}
	}
	return &f.Results
}

func (f *faker) scenario(t thing, set string, clock bench.Clock) *bench.Scenario {
	f.Scenarios = append(f.Scenarios, bench.Scenario{
		Name: t.series, Series: t.series, Kind: t.kind, Backend: t.backend, Set: set, Clock: clock,
		Kernel: "6.1.0-25-amd64", KernelSHA: strings.Repeat("a", 64), CPUs: 2, MemoryMiB: 1024, Storage: "emmc", Firmware: true,
		BootBytes: int64(t.boot * 1e6), KernelBytes: 8_100_000, ImageBytes: int64(t.image * 1e6),
		Expect: []vmtest.Milestone{vmtest.KernelToInit, vmtest.InitfsInit, vmtest.MultiUser},
	})
	return &f.Scenarios[len(f.Scenarios)-1]
}

func (f *faker) sweep(set string, xs []float64, label func(float64) string, change func(*thing, float64) (speed, extra float64)) {
	names := []string{"none", "lz4", "zstd"}
	for i, x := range xs {
		for _, t := range things {
			if t.series != "plain lz4" && t.series != "plain zstd" && t.series != "block" && t.series != "pmem-dax" && t.series != "loop" {
				continue
			}
			name := names[i%len(names)]
			if label != nil {
				name = label(x)
			}
			speed, extra := change(&t, x)
			s := f.scenario(t, set, bench.Wall)
			s.Name, s.X, s.Label = fmt.Sprintf("%s @ %s=%s", t.series, set, name), x, name
			for round := 1; round <= 7; round++ {
				f.boot(s, t, round, speed, extra)
			}
		}
	}
}

// boot makes up a boot from storage of so many MB a second, which takes longer by
// extra seconds.
func (f *faker) boot(s *bench.Scenario, t thing, round int, speed, extra float64) *bench.Boot {
	drift := 1 + 0.04*float64(round%7)/7
	noise := func(seconds float64) float64 { return seconds * drift * (1 + 0.02*f.random.NormFloat64()) }
	if s.Clock == bench.Instructions {
		drift = 1
		noise = func(seconds float64) float64 { return seconds * (1 + 0.001*f.random.NormFloat64()) }
	}
	b := bench.Boot{Scenario: s.Name, Round: round, OK: true, Times: map[vmtest.Milestone]float64{}, HostTimes: map[vmtest.Milestone]float64{}}
	start := noise(5.2) + t.boot/speed
	at := 0.0
	b.HostTimes[vmtest.KernelStart] = start
	b.Times[vmtest.KernelStart] = 0
	reach := func(m vmtest.Milestone, seconds float64) {
		at += noise(seconds)
		b.Times[m], b.HostTimes[m] = at, start+at
	}
	reach(vmtest.KernelToInit, 1.75+t.unpack+extra*0.8)
	if t.kind == bench.Ours {
		begin := at
		reach(vmtest.HandedOver, t.storage)
		us := func(part float64) int64 { return int64(1e6 * (begin + part*(at-begin))) }
		b.Phases = []bootconf.Phase{
			{Name: "setup", StartUS: us(0), EndUS: us(0.1)}, {Name: "modules " + t.backend, StartUS: us(0.1), EndUS: us(0.8)},
			{Name: "image", StartUS: us(0.8), EndUS: us(0.9)}, {Name: "overlay", StartUS: us(0.9), EndUS: us(0.97)}, {Name: "record", StartUS: us(0.97), EndUS: us(1)},
		}
	}
	reach(vmtest.InitfsInit, 0.3*t.full)
	reach(vmtest.SwitchRoot, 3.9*t.full)
	reach(vmtest.MultiUser, 9.4*t.full+extra*0.2)
	b.WallS = start + at + 1
	b.PhysicalKB, b.MemTotalKB, b.MemAvailableKB, b.MemUsableKB = 1<<20, 983_744, int64(noise(780_000)), int64(noise(800_000))
	b.Faults, b.MajorFaults = int64(noise(31000)), int64(noise(400))
	b.Disks = map[string]map[string]bench.DiskReads{
		"root": {"switch_root_s": {Bytes: 6e6, Requests: 300}, "multi_user_s": {Bytes: int64(noise(91e6)), Requests: 3100}},
		"boot": {"kernel_start_s": {Bytes: int64(t.boot * 1e6), Requests: 90}},
	}
	if t.backend == "block" {
		b.Disks["image"] = map[string]bench.DiskReads{"handover_s": {Bytes: 2e5, Requests: 11}, "switch_root_s": {Bytes: int64(noise(25e6)), Requests: 900}, "multi_user_s": {Bytes: int64(noise(26e6)), Requests: 930}}
	}
	if s.Set == "standard" && (s.Series == "loop" && round == 4 || s.Series == "ram" && round%6 == 5) {
		b.OK, b.Error, b.Log = false, "timed out after 2m0s without multi_user_s; last line: \"A start job is running for dev-vda1.device\"", fmt.Sprintf("failed/%s-%d", s.Name, round)
		delete(b.Times, vmtest.MultiUser)
		b.Times[vmtest.InitfsInit] = 1e6 // wild, to be seen in no figure
	}
	f.Boots = append(f.Boots, b)
	return &f.Boots[len(f.Boots)-1]
}
