package report

import (
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/bench"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

var (
	update = flag.Bool("update", false, "write the golden files anew")
	show   = flag.String("show", "", "write a report of made-up results into this folder, to be looked at")
)

// small is the least that has something of everything: wins, losses, what is not
// shown, too few boots, failures, another kernel, instructions, sweeps, memory.
func small() *bench.Results {
	r := &bench.Results{
		Format: bench.Format, Started: "2026-03-01T20:00:00Z", Updated: "2026-03-01T21:00:00Z", Tool: "0.1.0", Why: "interrupted",
		Host: bench.Host{CPU: "Example CPU", Cores: 2, Kernel: "6.1.0", Memory: 8 << 20, QEMU: "10.0.2", Accel: "tcg", GuestCPU: "qemu64"},
	}
	add := func(s bench.Scenario, boots ...[]float64) { // each Run /init, first message, multi-user
		s.Kernel, s.CPUs, s.MemoryMiB, s.Storage = "6.1.0-25", 2, 1024, "emmc"
		if s.KernelSHA == "" {
			s.KernelSHA = strings.Repeat("a", 64)
		}
		if s.Set == "" {
			s.Set = "standard"
		}
		if s.Clock == "" {
			s.Clock = bench.Wall
		}
		if s.Series == "" {
			s.Series = s.Name
		}
		s.KernelBytes = 8_000_000
		s.Expect = []vmtest.Milestone{vmtest.MultiUser}
		r.Scenarios = append(r.Scenarios, s)
		for i, times := range boots {
			b := bench.Boot{Scenario: s.Name, Round: i + 1, OK: len(times) == 3, Times: map[vmtest.Milestone]float64{}}
			for j, at := range []vmtest.Milestone{vmtest.KernelToInit, vmtest.InitfsInit, vmtest.MultiUser} {
				if j < len(times) {
					b.Times[at] = times[j]
				}
			}
			if s.Firmware {
				b.HostTimes = map[vmtest.Milestone]float64{vmtest.KernelStart: 5}
				for at, seconds := range b.Times {
					b.HostTimes[at] = 5 + seconds
				}
			}
			if !b.OK {
				b.Error, b.Log = "timed out without multi_user_s", "logs/1"
			}
			r.Boots = append(r.Boots, b)
		}
	}
	// around gives n boots, of which each takes a hundredth longer than the last.
	around := func(n int, init, message, end float64) (boots [][]float64) {
		for i := range n {
			f := 1 + float64(i)/100
			boots = append(boots, []float64{init * f, message * f, end * f})
		}
		return boots
	}
	add(bench.Scenario{Name: "plain zstd", Kind: bench.Plain, Firmware: true, BootBytes: 40_600_000}, around(8, 3.3, 3.5, 18)...)
	add(bench.Scenario{Name: "plain lz4", Kind: bench.Plain, Firmware: true, BootBytes: 55_000_000}, around(8, 2.3, 2.5, 17)...)
	add(bench.Scenario{Name: "block", Kind: bench.Ours, Backend: "block", Firmware: true, BootBytes: 8_900_000, ImageBytes: 48_000_000}, around(8, 1.7, 2.1, 16)...)
	add(bench.Scenario{Name: "loop", Kind: bench.Ours, Backend: "loop", Firmware: true, BootBytes: 9_300_000, ImageBytes: 48_000_000},
		append(around(7, 1.7, 2.2, 17.5), []float64{0.001, 999999})...)
	undecided := around(8, 1.7, 2.3, 17)
	for i := range undecided {
		undecided[i][2] += float64(i%3 - 1)
	}
	add(bench.Scenario{Name: "file", Kind: bench.Ours, Backend: "file", Firmware: true, BootBytes: 9_300_000, ImageBytes: 48_000_000}, undecided...)
	add(bench.Scenario{Name: "ram", Kind: bench.Ours, Backend: "ram", Firmware: true, BootBytes: 9_300_000, ImageBytes: 48_000_000}, around(3, 1.7, 2.9, 15)...)
	add(bench.Scenario{Name: "given", Kind: bench.Given, Firmware: true, KernelSHA: strings.Repeat("b", 64), BootBytes: 30_000_000}, around(8, 2, 3, 14)...)
	add(bench.Scenario{Name: "plain lz4, counted", Series: "plain lz4", Kind: bench.Plain, Set: "instructions", Clock: bench.Instructions, BootBytes: 55_000_000}, around(2, 2.3, 2.41, 7.5)...)
	add(bench.Scenario{Name: "block, counted", Series: "block", Kind: bench.Ours, Set: "instructions", Clock: bench.Instructions, BootBytes: 8_900_000, ImageBytes: 48_000_000}, around(2, 1.75, 2.14, 7.3)...)
	for i, label := range []string{"0 MB", "256 MB"} {
		x := float64(i) * 256e6
		add(bench.Scenario{Name: "plain lz4 @ bloat=" + label, Series: "plain lz4", Kind: bench.Plain, Set: "bloat", X: x, Label: label, BootBytes: 55_000_000 + int64(x)},
			around(6, 2.3+3*float64(i), 2.5+3*float64(i), 17+3*float64(i))...)
		add(bench.Scenario{Name: "block @ bloat=" + label, Series: "block", Kind: bench.Ours, Set: "bloat", X: x, Label: label, BootBytes: 8_900_000, ImageBytes: 48_000_000 + int64(x)},
			around(6, 1.7, 2.1, 17)...)
	}
	add(bench.Scenario{Name: "plain lz4 @ storage=emmc", Series: "plain lz4", Kind: bench.Plain, Set: "storage", X: 1e8, Label: "emmc", Firmware: true, BootBytes: 55_000_000}, around(6, 2.3, 2.5, 17)...)
	add(bench.Scenario{Name: "block @ storage=emmc", Series: "block", Kind: bench.Ours, Set: "storage", X: 1e8, Label: "emmc", Firmware: true, BootBytes: 8_900_000, ImageBytes: 48_000_000}, around(6, 1.7, 2.1, 15)...)
	add(bench.Scenario{Name: "block @ compress=zstd", Series: "block", Kind: bench.Ours, Set: "compress", Label: "zstd", BootBytes: 8_900_000, ImageBytes: 48_000_000}, around(1, 1.7, 2.1, 17)...)
	add(bench.Scenario{Name: "block @ compress=none", Series: "block", Kind: bench.Ours, Set: "compress", Label: "none", BootBytes: 9_900_000, ImageBytes: 48_000_000}, []float64{1})
	add(bench.Scenario{Name: "block, probed", Series: "block", Kind: bench.Ours, Memory: true}, around(1, 50, 60, 70)...)
	probed := &r.Boots[len(r.Boots)-1]
	probed.Memory = []bench.MemorySample{
		{At: "init", AvailableKB: 900 * 1024, CachedKB: 30 * 1024, ShmemKB: 1024, TotalKB: 1000 * 1024},
		{At: "multi-user", AvailableKB: 800 * 1024, CachedKB: 90 * 1024, ShmemKB: 2048, TotalKB: 1000 * 1024},
	}
	for i := range r.Boots {
		b := &r.Boots[i]
		switch b.Scenario {
		case "block":
			b.Phases = []bootconf.Phase{{Name: "setup", StartUS: 1_700_000, EndUS: 1_710_000}, {Name: "modules block", StartUS: 1_710_000, EndUS: 1_900_000}}
			b.Disks = map[string]map[string]bench.DiskReads{
				"image": {"initfs_init_s": {Bytes: 5_000_000, Requests: 90}, "multi_user_s": {Bytes: 24_000_000, Requests: 400}},
				"boot":  {"kernel_start_s": {Bytes: 8_900_000, Requests: 80}, "end": {Bytes: 8_900_000, Requests: 80}},
			}
			b.PhysicalKB, b.MemUsableKB, b.MemAvailableKB, b.MemTotalKB, b.Faults = 1<<20, 820*1024, 790*1024, 960*1024, 31000
		case "plain lz4":
			b.PhysicalKB, b.MemUsableKB, b.MemAvailableKB, b.MemTotalKB, b.Faults, b.MajorFaults = 1<<20, 800*1024, 770*1024, 960*1024, 32000, 12
		}
	}
	for _, s := range []bench.Scenario{{Series: "plain lz4", Kind: bench.Plain}, {Series: "block", Kind: bench.Ours}} {
		s.Name = s.Series + " (least-memory)"
		s.Set, s.Clock = "least-memory", bench.Wall
		r.Scenarios = append(r.Scenarios, s)
	}
	r.LeftOut = map[string]string{"loop @ storage=sd": "no root tree is given"}
	r.Searches = []bench.MemorySearch{
		{Scenario: "plain lz4 (least-memory)", FailsMiB: 224, BootsMiB: 240, Tries: make([]bench.MemoryTrial, 8), Done: true},
		{Scenario: "block (least-memory)", FailsMiB: 96, Tries: make([]bench.MemoryTrial, 3)},
	}
	return r
}

// write gives the texts of a report.
func write(t *testing.T, r *bench.Results) (markdown, page string) {
	t.Helper()
	dir := t.TempDir()
	if err := Write(dir, r); err != nil {
		t.Fatal(err)
	}
	var texts [2]string
	for i, name := range []string{MarkdownName, HTMLName} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(text)
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Errorf("%d files in the folder, want 2: %v", len(files), files)
	}
	return texts[0], texts[1]
}

func TestGolden(t *testing.T) {
	got, _ := write(t, small())
	const path = "testdata/report.md"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("report.md; see it, then go test -update (-want +got):\n%s", diff)
	}
}

// A report does not change from one writing to the next.
func TestWriteIsReproducible(t *testing.T) {
	markdown, page := write(t, realistic(6))
	again, pageAgain := write(t, realistic(6))
	if markdown != again || page != pageAgain {
		t.Error("two reports of the same results differ")
	}
}

func TestHeadline(t *testing.T) {
	markdown, page := write(t, small())
	headline, _, _ := strings.Cut(markdown, "\n## The standard set")
	for _, want := range []string{
		"- **multi-user.target from power-on, seconds of emulation (TCG)**: block is faster than plain lz4; loop is slower than plain lz4; no difference shown for file; too few boots to tell for ram.",
		"- block is 0.95 (0.95-0.95) of plain lz4, N=8: faster",
		"- loop is 1.02 (1.02-1.02) of plain lz4, N=7, 1 left out: slower",
		"- file against plain lz4: no difference shown, 1.00 (0.96-1.02), N=8",
		"- ram against plain lz4: too few boots to tell (estimate 0.909, pairs from 0.909 to 0.909, N=3, 5 left out)",
		"- **First init message, CPU work in instructions**: too few boots to tell for block.",
		"- **Memory taken at multi-user**: block has less than plain lz4.",
		"- **multi-user.target from power-on, seconds of emulation (TCG), storage emmc**: block is faster than plain lz4.",
		"- block is 0.91 (0.91-0.91) of plain lz4, N=6: faster",
		"- **Smallest memory that boots**: plain lz4 240 MiB.",
		"- loop: 1 of 8 boots failed",
		"- **Accelerator**: none: TCG emulates",
		"- **QEMU**: 10.0.2, guest CPU qemu64",
		"- **Incomplete**: the run ended before it had made all boots: interrupted",
	} {
		if !strings.Contains(headline, want) {
			t.Errorf("the headline lacks %q:\n%s", want, headline)
		}
	}
	for class, text := range map[string]string{"win": "block is 0.95", "loss": "loop is 1.02", "none": "file against", "few": "ram against", "failed": "loop: 1 of 8"} {
		if !strings.Contains(page, `<li class="`+class+`">`+text) {
			t.Errorf("the page has no %q of class %s", text, class)
		}
	}
}

// A milestone that two sets count in instructions is told once, by the set that
// comes first.
func TestHeadlineOnce(t *testing.T) {
	f := &faker{random: rand.New(rand.NewPCG(1, 2))}
	f.Results = *realistic(1)
	for _, thing := range things {
		s := f.scenario(thing, "instructions-full", bench.Instructions)
		s.Name, s.Firmware = s.Name+" (instructions-full)", false
		f.boot(s, thing, 1, 1e9, 0).HostTimes = nil
	}
	markdown, _ := write(t, &f.Results)
	const said = "- **First init message, CPU work in instructions**"
	if n := strings.Count(markdown, said); n != 1 {
		t.Errorf("%q is there %d times", said, n)
	}
}

// What boots that failed have noted is in neither file, only why they failed.
func TestFailuresAreNamed(t *testing.T) {
	good, _ := write(t, small())
	r := small()
	for i := range r.Boots {
		if b := &r.Boots[i]; !b.OK {
			for at := range b.Times {
				b.Times[at] = 123456
				b.HostTimes = maps.Clone(b.Times)
			}
			b.MemUsableKB, b.Phases = 1<<50, []bootconf.Phase{{Name: "wild", EndUS: 1 << 40}}
			b.Disks = map[string]map[string]bench.DiskReads{"wild": {"wild_s": {Bytes: 1 << 50}}}
			b.Memory = []bench.MemorySample{{At: "wild", AvailableKB: 1 << 50}}
		}
	}
	wild, page := write(t, r)
	if diff := cmp.Diff(good, wild); diff != "" {
		t.Errorf("what failed boots have noted changes the report (-want +got):\n%s", diff)
	}
	for _, text := range []string{wild, page} {
		for _, want := range []string{"loop: 1 of 8 boots failed", "round 8: timed out without multi", "7 of 8, 1 failed", "block @ compress=none: none of 1 boot was good"} {
			if !strings.Contains(strings.ReplaceAll(text, `\`, ""), want) {
				t.Errorf("no %q in\n%.300s", want, text)
			}
		}
	}
}

func TestOtherKernelHasNoRatio(t *testing.T) {
	markdown, _ := write(t, small())
	if want := `No ratio is given for given, which is only shown beside the others: "plain zstd" and "given" cannot be compared: kernel 6.1.0-25 (aaaaaaaaaaaa) and 6.1.0-25 (bbbbbbbbbbbb).`; !strings.Contains(markdown, want) {
		t.Errorf("the report lacks %q", want)
	}
	if !strings.Contains(markdown, "| given | 8 | ") {
		t.Error("the given one is not shown")
	}
	if strings.Contains(markdown, "of given,") || strings.Contains(markdown, "than given") || strings.Contains(markdown, "| given |\n") {
		t.Error("something is compared with the given one")
	}
}

// The probe costs time: the times of a boot with it are not shown.
func TestProbedTimesAreNotShown(t *testing.T) {
	markdown, page := write(t, small())
	for _, text := range []string{markdown, page} {
		for _, never := range []string{"50.00", "60.00", "70.00"} {
			if strings.Contains(text, never) {
				t.Errorf("the report has %s, a time of a probed boot", never)
			}
		}
		if !strings.Contains(text, "init: available") {
			t.Error("the report lacks what the probe saw")
		}
	}
}

// The page is well-formed, is there for itself, and so are its plots.
func TestPage(t *testing.T) {
	_, page := write(t, realistic(6))
	checkXML(t, "the page", strings.Replace(page, "<!doctype html>", "", 1))
	for _, never := range []string{"src=", "href", "url(", "@import", "<script", "<link", "<img", "<iframe", "<object", "javascript:", "ZgotmplZ", "NaN", "Inf"} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %q", never)
		}
	}
	namespace := `xmlns="http://www.w3.org/2000/svg"`
	if rest := strings.ReplaceAll(page, namespace, ""); strings.Contains(rest, "//") {
		at := strings.Index(rest, "//")
		t.Errorf("the page names another place: %q", rest[max(0, at-40):at+40])
	}
	plots := regexp.MustCompile(`(?s)<svg .*?</svg>`).FindAllString(page, -1)
	for _, plot := range plots {
		checkXML(t, "a plot", plot)
		if !strings.Contains(plot, "currentColor") {
			t.Errorf("a plot has no colour of the page: %.200s", plot)
		}
	}
	for _, title := range []string{
		"Where the time goes", "Where the instructions go", "ratio to plain lz4", "Smallest memory that boots",
		"multi-user.target from power-on", "First init message from the kernel&#39;s start",
	} {
		if !regexp.MustCompile(`<figcaption><b>[^<]*` + regexp.QuoteMeta(title)).MatchString(page) {
			t.Errorf("the page has no plot %q", title)
		}
	}
	for _, axis := range []string{"added content", "storage (logarithmic)", "compression", "CPUs"} {
		if !strings.Contains(page, ">"+axis+"</text>") {
			t.Errorf("no plot has the axis %q", axis)
		}
	}
}

func checkXML(t *testing.T, what, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	elements := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if _, ok := token.(xml.StartElement); ok {
			elements++
		}
	}
	if elements < 3 {
		t.Errorf("%s has %d elements", what, elements)
	}
}

// Whatever names and reasons there are, they stay text.
func TestHostileNames(t *testing.T) {
	const hostile = "</td></svg><script>alert(\"1\")</script>&amp; | `x` *y* [a](http://evil)\n\n# big\x00\x1b[31m\xff</style>"
	r := small()
	names := map[string]string{}
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		names[s.Name] = fmt.Sprint(s.Name, hostile)
		s.Name, s.Series, s.Backend, s.Kernel, s.Storage = names[s.Name], s.Series+hostile, hostile, hostile, hostile
		s.Set += hostile
		if s.Label != "" {
			s.Label += hostile
		}
	}
	for i := range r.Boots {
		b := &r.Boots[i]
		b.Scenario = names[b.Scenario]
		if b.Error != "" {
			b.Error, b.Log = hostile, hostile
		}
		for j := range b.Phases {
			b.Phases[j].Name = hostile
		}
		for j := range b.Memory {
			b.Memory[j].At += hostile
		}
		if b.OK {
			b.Times[vmtest.Milestone(hostile)] = 1
			b.Disks = map[string]map[string]bench.DiskReads{hostile: {hostile: {Bytes: 1}}}
		}
	}
	for i := range r.Searches {
		r.Searches[i].Scenario = names[r.Searches[i].Scenario]
	}
	r.LeftOut = map[string]string{hostile: hostile}
	r.Host = bench.Host{CPU: hostile, Kernel: hostile, QEMU: hostile, Accel: hostile}
	r.Tool, r.Why, r.Started = hostile, hostile, hostile
	markdown, page := write(t, r)

	checkXML(t, "the page", strings.Replace(page, "<!doctype html>", "", 1))
	if strings.Contains(page, "<script") || strings.Contains(page, "</style>&") || strings.ContainsAny(page, "\x00\x1b") {
		t.Error("a name became a part of the page")
	}
	if got, want := strings.Count(page, "</svg>"), strings.Count(page, "<svg "); got != want || want == 0 {
		t.Errorf("%d ends of %d plots", got, want)
	}
	if !strings.Contains(page, "&lt;script&gt;alert(") {
		t.Error("the page does not show the name")
	}
	for line := range strings.Lines(markdown) {
		if strings.Contains(line, "<") || strings.HasPrefix(line, "# big") || strings.ContainsAny(line, "\x00\x1b") || strings.Contains(strings.ReplaceAll(line, "\\`", ""), "`") {
			t.Errorf("a name became a part of the Markdown: %q", line)
		}
	}
	// Every row of a table has as many cells as its head.
	cells := 0
	for line := range strings.Lines(markdown) {
		n := strings.Count(strings.ReplaceAll(strings.ReplaceAll(line, `\\`, ""), `\|`, ""), "|")
		switch {
		case !strings.HasPrefix(line, "|"):
			cells = 0
		case cells == 0:
			cells = n
		case n != cells:
			t.Errorf("a row of %d cells below a head of %d: %q", n, cells, line)
		}
	}
}

// What there is no data for is left out.
func TestNothingIsShownEmpty(t *testing.T) {
	tests := []struct {
		name     string
		results  *bench.Results
		sections []string
	}{
		{"nothing", &bench.Results{Format: bench.Format}, []string{"How to read this"}},
		{"no boots", func() *bench.Results { r := small(); r.Boots, r.Searches = nil, nil; return r }(),
			[]string{"What came out", "The standard set", "CPU work, in instructions", "Left out", "How to read this"}},
		{"all failed", func() *bench.Results {
			r := small()
			r.Searches = nil
			for i := range r.Boots {
				r.Boots[i].OK, r.Boots[i].Error = false, "no"
			}
			return r
		}(), []string{"What came out", "The standard set", "CPU work, in instructions", "Sweeps", "Content that the boot does not need", "Speed of the storage", "Compression of the mini-initramfs", "Failures", "Left out", "How to read this"}},
		{"only plain", func() *bench.Results {
			r := small()
			r.Searches, r.LeftOut = nil, nil
			r.Scenarios = r.Scenarios[:1]
			r.Boots = r.Boots[:2]
			return r
		}(), []string{"What came out", "The standard set", "How to read this"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			markdown, page := write(t, tt.results)
			checkXML(t, "the page", strings.Replace(page, "<!doctype html>", "", 1))
			var got []string
			for _, heading := range regexp.MustCompile(`(?m)^##+ (.*)$`).FindAllStringSubmatch(markdown, -1) {
				got = append(got, heading[1])
			}
			if diff := cmp.Diff(tt.sections, got); diff != "" {
				t.Errorf("sections (-want +got):\n%s", diff)
			}
			if tt.name != "only plain" && strings.Contains(page, "<svg") {
				t.Error("the page has a plot")
			}
			if strings.Contains(page, "<tbody>\n</tbody>") {
				t.Error("the page has an empty table")
			}
		})
	}
}

// A series has the same colour in every plot, and no other of ours has it.
func TestSeriesKeepTheirColor(t *testing.T) {
	r := realistic(6)
	m := &maker{Results: r, looks: map[string]look{}}
	m.chooseLooks()
	seen := map[string]string{}
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		l := m.looks[s.Series]
		key := fmt.Sprint(hex(l.color), l.dash)
		if other, ok := seen[key]; ok && other != s.Series {
			t.Errorf("%s and %s look alike", s.Series, other)
		}
		seen[key] = s.Series
		if (l.color == grey) == (s.Kind == bench.Ours) {
			t.Errorf("%s, %s, has the colour %s", s.Series, s.Kind, hex(l.color))
		}
	}
}

func TestLayOut(t *testing.T) {
	tests := []struct {
		name        string
		w           sweep
		want        []float64
		logarithmic bool
	}{
		{"numbers", sweep{places: []place{{0, "0"}, {64, "64"}, {256, "256"}}}, []float64{0, 64, 256}, false},
		{"far apart", sweep{places: []place{{4, "4"}, {16, "16"}, {64, "64"}}}, []float64{4, 16, 64}, true},
		{"names", sweep{places: []place{{0, "zstd"}, {0, "none"}}}, []float64{0, 1}, false},
		{"no limit", sweep{set: "storage", places: []place{{20, "SD"}, {80, "eMMC"}, {0, "unthrottled"}}}, []float64{20, 80, 320}, true},
		{"one", sweep{set: "storage", places: []place{{0, "unthrottled"}}}, []float64{0}, false},
	}
	for _, tt := range tests {
		places, logarithmic := layOut(&tt.w)
		var got []float64
		for _, p := range places {
			got = append(got, p.x)
		}
		if !slices.Equal(got, tt.want) || logarithmic != tt.logarithmic {
			t.Errorf("%s: %v, %v; want %v, %v", tt.name, got, logarithmic, tt.want, tt.logarithmic)
		}
	}
}

// Points that differ in more than where they lie are in plots of their own.
func TestLayers(t *testing.T) {
	w := sweep{set: "bloat", places: []place{{0, "0MiB"}, {64, "64MiB"}, {256, "256MiB"}, {256, "256MiB-text"}, {1024, "1024MiB-text"}}}
	var got []string
	for _, l := range w.layers() {
		line := l.layer + ":"
		for _, p := range l.places {
			line += " " + p.label
		}
		got = append(got, line)
	}
	want := []string{": 0MiB 64MiB 256MiB", "text: 0MiB 256MiB-text 1024MiB-text"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	if whole := (&sweep{places: []place{{0, "zstd"}, {1, "none"}}}).layers(); len(whole) != 1 || len(whole[0].places) != 2 {
		t.Errorf("a sweep over names has %d layers", len(whole))
	}
}

func TestNumberTicks(t *testing.T) {
	for want, axis := range map[string][2]float64{
		"0 5 10 15 20":             {0, 21.9},
		"0.96 0.98 1.00 1.02 1.04": {0.9501, 1.045},
		"0 50 100 150 200":         {-0.0001, 240},
		"-1.0 -0.5 0.0 0.5 1.0":    {-1, 1},
	} {
		var labels []string
		for _, tick := range (numberTicks{}).Ticks(axis[0], axis[1]) {
			labels = append(labels, tick.Label)
		}
		if got := strings.Join(labels, " "); got != want {
			t.Errorf("ticks of %v: %s, want %s", axis, got, want)
		}
	}
}

// Results that cannot be, and a folder that is not there, leave nothing behind.
func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	r := small()
	r.Boots[0].Scenario = "nobody"
	if err := Write(dir, r); err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("Write = %v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("a report of impossible results: %v", files)
	}
	if err := Write(filepath.Join(dir, "not there"), small()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Write into no folder = %v", err)
	}
}

// A page of the size of a real run, to be looked at with -show.
func TestShow(t *testing.T) {
	dir := *show
	if dir == "" {
		dir = t.TempDir()
	}
	if err := Write(dir, realistic(20)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, HTMLName))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2<<20 {
		t.Errorf("the page has %d bytes", info.Size())
	}
}
