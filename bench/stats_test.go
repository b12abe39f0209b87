package bench

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

func TestSummarize(t *testing.T) {
	tests := []struct {
		values []float64
		want   Summary
	}{
		{nil, Summary{}},
		{[]float64{3}, Summary{N: 1, Median: 3, Q1: 3, Q3: 3, Min: 3, Max: 3}},
		{[]float64{2, 1}, Summary{N: 2, Median: 1.5, Q1: 1.25, Q3: 1.75, Min: 1, Max: 2}},
		{[]float64{5, 4, 3, 2, 1}, Summary{N: 5, Median: 3, Q1: 2, Q3: 4, Min: 1, Max: 5}},
		{[]float64{6, 5, 4, 3, 2, 1}, Summary{N: 6, Median: 3.5, Q1: 2.25, Q3: 4.75, Min: 1, Max: 6, CI: &Interval{1, 6}}},
	}
	for _, tt := range tests {
		before := slices.Clone(tt.values)
		if diff := cmp.Diff(tt.want, Summarize(tt.values)); diff != "" {
			t.Errorf("Summarize(%v) (-want +got):\n%s", tt.values, diff)
		}
		if !slices.Equal(before, tt.values) {
			t.Errorf("Summarize changed %v into %v", before, tt.values)
		}
	}
}

// The ranks between which the median lies, as tables of the sign test have them.
func TestSummarizeInterval(t *testing.T) {
	for n, k := range map[int]int{6: 1, 8: 1, 9: 2, 10: 2, 15: 4, 20: 6, 25: 8, 30: 10, 50: 18} {
		var values []float64
		for i := range n {
			values = append(values, float64(i+1))
		}
		want := &Interval{float64(k), float64(n + 1 - k)}
		if diff := cmp.Diff(want, Summarize(values).CI); diff != "" {
			t.Errorf("interval of the median of 1 to %d (-want +got):\n%s", n, diff)
		}
	}
}

// The critical values of the two-sided test at 5 %, as printed tables have them.
func TestSignedRankTail(t *testing.T) {
	for n, want := range map[int]int{
		1: -1, 5: -1, 6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 11: 10, 12: 13, 13: 17, 14: 21, 15: 25,
		16: 29, 17: 34, 18: 40, 19: 46, 20: 52, 25: 89, 30: 137, 40: 264, 50: 434,
	} {
		if got := signedRankTail(n); got != want {
			t.Errorf("signedRankTail(%d) = %d, want %d", n, got, want)
		}
	}
	for n := 1; n <= 14; n++ {
		if got, want := signedRankTail(n), enumeratedTail(n); got != want {
			t.Errorf("signedRankTail(%d) = %d; all %d signs give %d", n, got, 1<<n, want)
		}
	}
	// Where the approximation takes over, it goes on where the exact values end.
	exact, approximate := signedRankTail(exactRanks), signedRankTail(exactRanks+1)
	if step := approximate - exact; step < exactRanks/2-20 || step > exactRanks/2+20 {
		t.Errorf("from %d pairs to %d the tail grows from %d to %d", exactRanks, exactRanks+1, exact, approximate)
	}
}

func enumeratedTail(n int) int {
	counts := make([]int, n*(n+1)/2+1)
	for signs := range uint(1) << n {
		sum := 0
		for rest := signs; rest != 0; rest &= rest - 1 {
			sum += bits.TrailingZeros(rest) + 1
		}
		counts[sum]++
	}
	c, below := -1, 0
	for _, count := range counts {
		if below += count; float64(below) > tail*float64(uint(1)<<n) {
			break
		}
		c++
	}
	return c
}

// The depression scale of Hollander and Wolfe, table 3.1: the differences of nine
// patients, whose estimate and interval they print.
func TestHodgesLehmann(t *testing.T) {
	before := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	after := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29}
	var d []float64
	for i := range before {
		d = append(d, after[i]-before[i])
	}
	center, ci := hodgesLehmann(d)
	got := fmt.Sprintf("%.3f %.3f %.3f", center, ci.Low, ci.High)
	if want := "-0.460 -0.786 -0.010"; got != want {
		t.Errorf("hodgesLehmann = %s, want %s", got, want)
	}
}

// The interval has the truth in it as often as it says.
func TestRatioCoverage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const runs, n, truth = 2000, 12, 0.9
	covered := 0
	for range runs {
		r := twoScenarios()
		for round := 1; round <= n; round++ {
			machine := math.Exp(random.NormFloat64() / 3) // what both boots of a round share
			r.add("a", round, truth*machine*math.Exp(random.NormFloat64()/20))
			r.add("b", round, machine*math.Exp(random.NormFloat64()/20))
		}
		ratio := r.ratio(t)
		if ratio.CI.Low <= truth && truth <= ratio.CI.High {
			covered++
		}
	}
	if share := float64(covered) / runs; share < 0.94 || share > 0.975 {
		t.Errorf("%.3f of the intervals have the truth, want 0.95 or a little more", share)
	}
}

// testResults are results of two scenarios, a and b.
type testResults struct{ Results }

func twoScenarios() *testResults {
	return &testResults{Results{Format: Format, Scenarios: []Scenario{
		{Name: "a", Series: "a", Kind: Ours, Set: "standard", Clock: Wall},
		{Name: "b", Series: "plain", Kind: Plain, Set: "standard", Clock: Wall},
	}}}
}

func (r *testResults) add(name string, round int, seconds float64) *Boot {
	r.Boots = append(r.Boots, Boot{Scenario: name, Round: round, OK: true,
		Times: map[vmtest.Milestone]float64{vmtest.MultiUser: seconds}})
	return &r.Boots[len(r.Boots)-1]
}

func (r *testResults) ratio(t *testing.T) Ratio {
	t.Helper()
	ratio, err := r.Ratio(&r.Scenarios[0], &r.Scenarios[1], GuestTime(vmtest.MultiUser, Wall))
	if err != nil {
		t.Fatal(err)
	}
	return ratio
}

func TestRatioVerdicts(t *testing.T) {
	tests := []struct {
		name   string
		a      []float64
		want   Verdict
		says   string
		metric Metric
	}{
		{name: "win", a: []float64{9, 9.1, 9.2, 9.3, 9.4, 9.5}, want: Better, says: "a is 0.92 (0.90-0.95) of plain, N=6: faster"},
		{name: "loss", a: []float64{10.5, 10.6, 10.7, 10.8, 10.9, 11}, want: Worse, says: "a is 1.07 (1.05-1.10) of plain, N=6: slower"},
		{name: "undecided", a: []float64{9, 9.5, 10, 10.1, 10.2, 10.6}, want: NoDifference, says: "a against plain: no difference shown, 1.00 (0.90-1.06), N=6"},
		{name: "wide", a: []float64{2, 3, 4, 6, 8, 9.9}, want: NoDifference, says: "a against plain: no difference shown, 0.49 (0.20-0.99), N=6"},
		{name: "wide but far away", a: []float64{1, 1.1, 1.2, 1.5, 2, 2.2}, want: Better, says: "a is 0.15 (0.10-0.22) of plain, N=6: faster"},
		{name: "too few", a: []float64{1, 2, 1, 2, 1}, want: TooFew, says: "a against plain: too few boots to tell (estimate 0.141, pairs from 0.100 to 0.200, N=5)"},
		{name: "none", want: TooFew, says: "a against plain: no round in which both have the figure (N=0)"},
		{name: "alike", a: []float64{10, 10, 10, 10, 10, 10}, want: NoDifference, says: "a against plain: no difference shown, 1.00 (1.00-1.00), N=6"},
		{name: "close", a: []float64{9.99, 9.99, 9.99, 9.99, 9.99, 9.991}, want: Better, says: "a is 0.999 (0.999-0.999) of plain, N=6: faster"},
		{name: "higher is better", a: []float64{9, 9.1, 9.2, 9.3, 9.4, 9.5}, metric: MemUsable, want: Worse, says: "a is 0.92 (0.90-0.95) of plain, N=6: less"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := twoScenarios()
			for i, v := range tt.a {
				r.add("a", i+1, v).MemUsableKB = int64(v * 1000)
				r.add("b", i+1, 10).MemUsableKB = 10000
			}
			ratio := r.ratio(t)
			if tt.metric.Name != "" {
				var err error
				if ratio, err = r.Ratio(&r.Scenarios[0], &r.Scenarios[1], tt.metric); err != nil {
					t.Fatal(err)
				}
			}
			if got := ratio.Verdict(); got != tt.want {
				t.Errorf("Verdict of %+v = %d, want %d", ratio.CI, got, tt.want)
			}
			if got := ratio.Sentence(); got != tt.says {
				t.Errorf("Sentence = %q, want %q", got, tt.says)
			}
		})
	}
}

// Boots that never reached a milestone are in no statistic, whatever was noted of
// them; the rounds that they spoil are counted.
func TestFailedBootsAreNotAveraged(t *testing.T) {
	good := twoScenarios()
	for round := 1; round <= 10; round++ {
		good.add("a", round, 9+float64(round)/100)
		good.add("b", round, 10)
	}
	bad := &testResults{good.Results}
	bad.Boots = slices.Clone(good.Boots)
	for i, wild := range []float64{1e-9, 1e9, 0, -5, math.Inf(1), math.NaN()} {
		round := 11 + i
		b := bad.add("a", round, wild)
		*b = Boot{Scenario: "a", Round: round, Error: "timed out", Times: map[vmtest.Milestone]float64{vmtest.MultiUser: wild},
			HostTimes: b.Times, MemUsableKB: 1 << 60, MemAvailableKB: 1, MemTotalKB: 1, Faults: 1 << 40, MajorFaults: 1,
			Disks:  map[string]map[string]DiskReads{"image": {"end": {1 << 60, 1 << 60}}},
			Phases: []bootconf.Phase{{Name: "setup", EndUS: 1 << 60}},
			Memory: []MemorySample{{At: "init", AvailableKB: 1 << 60}},
		}
		bad.add("b", round, 10)
	}
	a := &bad.Scenarios[0]
	for _, m := range []Metric{
		GuestTime(vmtest.MultiUser, Wall), HostTime(vmtest.MultiUser), MemUsable, MemAvailable, MemTotal, PageFaults, MajorPageFaults,
		ReadBytes("image", "end"), ReadRequests("image", "end"), PhaseTime("setup", Wall), PhasesTime(Wall),
		Sampled("init", "available", false, func(s *MemorySample) int64 { return s.AvailableKB }),
	} {
		if diff := cmp.Diff(good.Summary(a, m), bad.Summary(a, m)); diff != "" {
			t.Errorf("failed boots change the summary of %s (-without +with):\n%s", m.Name, diff)
		}
		// The same boots are seen when they are good: the check above can fail.
		b := bad.Boots[20]
		b.OK = true
		if _, ok := m.Value(&b); !ok {
			t.Errorf("a good boot has no %s either", m.Name)
		}
	}
	want, got := good.ratio(t), bad.ratio(t)
	if got.LeftOut != 6 {
		t.Errorf("%d rounds left out, want 6", got.LeftOut)
	}
	if got.Estimate != want.Estimate || *got.CI != *want.CI || got.N != want.N {
		t.Errorf("failed boots change the ratio: %s, without them %s", got.Sentence(), want.Sentence())
	}
	if got, want := got.Sentence(), "N=10, 6 left out: faster"; !strings.HasSuffix(got, want) {
		t.Errorf("Sentence = %q, want it to end in %q", got, want)
	}
	if got := len(bad.Failures(a)); got != 6 {
		t.Errorf("%d failures, want 6", got)
	}
	if b := bad.MedianBoot(a, GuestTime(vmtest.MultiUser, Wall)); b.Round != 5 {
		t.Errorf("the median boot is of round %d, want 5", b.Round)
	}
}

// A good boot with a value that is none is left out, too.
func TestValueOfNoNumber(t *testing.T) {
	r := twoScenarios()
	m := GuestTime(vmtest.MultiUser, Wall)
	for _, v := range []float64{math.NaN(), math.Inf(-1)} {
		if got, ok := m.Value(r.add("a", 1, v)); ok {
			t.Errorf("Value of %v = %v", v, got)
		}
	}
	if _, ok := (Metric{}).Value(r.add("a", 2, 1)); ok {
		t.Error("the zero Metric has a value")
	}
	if _, ok := GuestTime(vmtest.SwitchRoot, Wall).Value(r.add("a", 3, 1)); ok {
		t.Error("a milestone that was not reached has a time")
	}
}

// A round with one boot only, or with a value without a logarithm, is no pair.
func TestRatioPairsRounds(t *testing.T) {
	r := twoScenarios()
	r.add("a", 1, 9)
	r.add("b", 2, 10)
	r.add("a", 3, 0)
	r.add("b", 3, 10)
	r.add("b", 4, 20)
	r.add("a", 4, 10)
	if got, want := r.ratio(t).Sentence(), "a against plain: too few boots to tell (estimate 0.500, pairs from 0.500 to 0.500, N=1, 3 left out)"; got != want {
		t.Errorf("Sentence = %q, want %q", got, want)
	}
}

// The times of a scenario with the memory probe are not shown; its memory is.
func TestProbedTimesHaveNoValues(t *testing.T) {
	r := twoScenarios()
	r.Scenarios[0].Memory = true
	r.add("a", 1, 9).MemUsableKB = 5
	a := &r.Scenarios[0]
	if s := r.Summary(a, GuestTime(vmtest.MultiUser, Wall)); s.N != 0 {
		t.Errorf("summary of a probed time: %+v", s)
	}
	if s := r.Summary(a, MemUsable); s.N != 1 {
		t.Errorf("summary of the memory: %+v", s)
	}
}

func TestMilestones(t *testing.T) {
	boots := []*Boot{
		{OK: true, Times: map[vmtest.Milestone]float64{vmtest.MultiUser: 1, "zebra_s": 1, "a_new_one_s": 1, vmtest.SwitchRoot: 1}},
		{OK: true, Times: map[vmtest.Milestone]float64{vmtest.KernelToInit: 1, vmtest.KernelStart: 1, vmtest.HandedOver: 1, vmtest.InitfsInit: 1}},
		{Times: map[vmtest.Milestone]float64{vmtest.Failed: 1, "never_s": 1}},
	}
	want := []vmtest.Milestone{vmtest.KernelStart, vmtest.KernelToInit, vmtest.HandedOver, vmtest.InitfsInit, vmtest.SwitchRoot, vmtest.MultiUser, "a_new_one_s", "zebra_s"}
	got := Milestones(boots, func(b *Boot) map[vmtest.Milestone]float64 { return b.Times })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Milestones (-want +got):\n%s", diff)
	}
	if got := MilestoneTitle("a_new_one_s"); got != "a new one" {
		t.Errorf("MilestoneTitle = %q", got)
	}
}

// Phases of any backend are one, and what is counted twice in a boot is added up.
func TestPhaseTime(t *testing.T) {
	b := &Boot{OK: true, Phases: []bootconf.Phase{
		{Name: "setup", StartUS: 0, EndUS: 500}, {Name: "modules pmem", StartUS: 500, EndUS: 1500},
		{Name: "modules loop", StartUS: 1500, EndUS: 4000},
	}}
	for name, want := range map[string]float64{"setup": 0.5, "modules": 3.5} {
		if got, ok := PhaseTime(name, Wall).Value(b); !ok || got != want {
			t.Errorf("PhaseTime(%s) = %v, %v; want %v", name, got, ok, want)
		}
	}
	if got, _ := PhasesTime(Wall).Value(b); got != 4 {
		t.Errorf("PhasesTime = %v, want 4", got)
	}
	if _, ok := PhaseTime("overlay", Wall).Value(b); ok {
		t.Error("a phase that was not there has a time")
	}
}
