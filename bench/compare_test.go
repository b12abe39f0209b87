package bench

import (
	"reflect"
	"strings"
	"testing"

	"initoverlayfs/vmtest"
)

func TestComparable(t *testing.T) {
	base := Scenario{Set: "standard", Clock: Wall, Kernel: "6.1", KernelSHA: "aaaa", CPUs: 2, MemoryMiB: 1024, Storage: "emmc"}
	tests := []struct {
		change func(*Scenario)
		want   string // in the error; "": they may be compared
	}{
		{func(*Scenario) {}, ""},
		{func(s *Scenario) { s.Kind, s.Backend, s.BootBytes, s.TreeSHA = Ours, "loop", 7, "x" }, ""},
		{func(s *Scenario) { s.Kernel, s.KernelSHA = "6.12", "bbbb" }, "kernel 6.1 (aaaa) and 6.12 (bbbb)"},
		{func(s *Scenario) { s.KernelSHA = "bbbb" }, "kernel 6.1 (aaaa) and 6.1 (bbbb)"},
		{func(s *Scenario) { s.Clock = Instructions }, "clock wall and instructions"},
		{func(s *Scenario) { s.CPUs = 4 }, "number of CPUs 2 and 4"},
		{func(s *Scenario) { s.MemoryMiB = 512 }, "memory in MiB 1024 and 512"},
		{func(s *Scenario) { s.Storage = "nvme" }, "storage emmc and nvme"},
		{func(s *Scenario) { s.Firmware = true }, "firmware false and true"},
		{func(s *Scenario) { s.Memory = true }, "memory probe false and true"},
		{func(s *Scenario) { s.Set = "bloat" }, "set standard and bloat"},
		{func(s *Scenario) { s.X = 64 }, "point of the sweep 0 and 64"},
		{func(s *Scenario) { s.Label = "xz" }, "label of the point  and xz"},
	}
	for _, tt := range tests {
		a, b := base, base
		a.Name, b.Name = "a", "b"
		tt.change(&b)
		r := &Results{Scenarios: []Scenario{a, b}}
		err := Comparable(r, &a, &b)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), `"a" and "b" cannot be compared: `+tt.want) {
			t.Errorf("Comparable = %v, want %q", err, tt.want)
		}
		if _, ratioErr := r.Ratio(&a, &b, MemUsable); (ratioErr == nil) != (err == nil) {
			t.Errorf("Ratio = %v, Comparable %v", ratioErr, err)
		}
	}
}

func TestConditionsHaveNames(t *testing.T) {
	members := reflect.TypeFor[Conditions]()
	for i := range members.NumField() {
		if name := members.Field(i).Name; conditionNames[name] == "" {
			t.Errorf("messages have no name for %s", name)
		}
	}
	if got, want := len(conditionNames), members.NumField(); got != want {
		t.Errorf("%d names of %d members", got, want)
	}
}

func TestGroups(t *testing.T) {
	r := &Results{Scenarios: []Scenario{
		{Name: "theirs", Kind: Given, KernelSHA: "other", CPUs: 1},
		{Name: "plain", Kind: Plain, KernelSHA: "k", CPUs: 1},
		{Name: "block", Kind: Ours, KernelSHA: "k", CPUs: 1},
		{Name: "two CPUs", Kind: Ours, KernelSHA: "k", CPUs: 2},
		{Name: "same kernel", Kind: Given, KernelSHA: "k", CPUs: 1},
		{Name: "another clock", Kind: Given, Clock: Instructions},
	}}
	var all []*Scenario
	for i := range r.Scenarios {
		all = append(all, &r.Scenarios[i])
	}
	var got []string
	for _, g := range r.Groups(all) {
		line := ""
		for _, s := range g.All(r) {
			line += s.Name + ","
		}
		line += " without ratios:"
		for _, s := range g.Others {
			line += s.Name + ","
		}
		got = append(got, line)
	}
	want := "theirs,plain,block,same kernel, without ratios:theirs,\ntwo CPUs, without ratios:\nanother clock, without ratios:"
	if got := strings.Join(got, "\n"); got != want {
		t.Errorf("groups:\n%s\nwant:\n%s", got, want)
	}
}

func goodRun() *Results {
	return &Results{
		Format: Format, Started: "2026-01-02T00:00:00Z", Updated: "2026-01-02T01:00:00Z", Complete: true, Tool: "1",
		Host:      Host{CPU: "one", Cores: 2, Kernel: "6.1", Memory: 1000, QEMU: "10", Accel: "tcg"},
		Scenarios: []Scenario{{Name: "a", BootBytes: 5, Expect: []vmtest.Milestone{vmtest.MultiUser}}, {Name: "b"}},
		Boots: []Boot{
			{Scenario: "a", Round: 1, OK: true, Times: map[vmtest.Milestone]float64{vmtest.MultiUser: 1}},
			{Scenario: "b", Round: 1, OK: true}, {Scenario: "a", Round: 2},
		},
		Searches: []MemorySearch{{Scenario: "a", FailsMiB: 96, BootsMiB: 112, Tries: []MemoryTrial{{MiB: 96}}, Done: true}},
	}
}

func TestCheck(t *testing.T) {
	if err := goodRun().Check(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		spoil func(*Results)
		want  string
	}{
		{func(r *Results) { r.Scenarios[1].Name = "a" }, `two scenarios are called "a"`},
		{func(r *Results) { r.Boots[1].Scenario = "c" }, `boot 1 is of "c"`},
		{func(r *Results) { r.Boots[2].Round = 1 }, `"a" was booted twice in round 1`},
		{func(r *Results) { r.Boots[0].Times = nil }, `"a", round 1: the boot counts as good without multi_user_s`},
		{func(r *Results) { r.Boots[0].Times[vmtest.Failed] = 1 }, `"a", round 1: the boot counts as good with failed_s`},
		{func(r *Results) { r.Searches[0].Scenario = "c" }, `smallest memory is of "c"`},
	}
	for _, tt := range tests {
		r := goodRun()
		tt.spoil(r)
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Check = %v, want %q", err, tt.want)
		}
		if _, err := Merge(r); err == nil {
			t.Errorf("Merge takes what Check refuses: %s", tt.want)
		}
	}
}

func TestMerge(t *testing.T) {
	first, second := goodRun(), goodRun()
	second.Started, second.Updated = "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"
	second.Complete, second.Why = false, "interrupted"
	second.Host.Memory++
	first.LeftOut = map[string]string{"c": "no", "d": "not here"}
	second.Scenarios = append(second.Scenarios[:1], Scenario{Name: "c"})
	second.Boots[1].Scenario = "c"
	second.Searches[0] = MemorySearch{Scenario: "a", FailsMiB: 112, BootsMiB: 128, Tries: []MemoryTrial{{MiB: 112}}, Done: true}
	r, err := Merge(first, second)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Errorf("what was joined: %v", err)
	}
	var got []string
	for _, s := range r.Scenarios {
		got = append(got, s.Name)
	}
	for _, b := range r.Boots {
		got = append(got, b.Scenario+string(rune('0'+b.Round)))
	}
	got = append(got, r.Started, r.Updated, r.Why)
	if got, want := strings.Join(got, " "), "a b c a1 b1 a2 a3 c3 a4 2026-01-01T00:00:00Z 2026-01-03T00:00:00Z interrupted"; got != want {
		t.Errorf("joined: %s; want %s", got, want)
	}
	if len(r.LeftOut) != 1 || r.LeftOut["d"] != "not here" {
		t.Errorf("left out of the joined run: %v", r.LeftOut)
	}
	if r.Complete || first.Boots[0].Round != 1 || second.Boots[0].Round != 1 {
		t.Error("the joined run counts as complete, or the runs were changed")
	}
	if s := r.Searches; len(s) != 1 || s[0].FailsMiB != 112 || s[0].BootsMiB != 128 || len(s[0].Tries) != 2 || !s[0].Done {
		t.Errorf("joined searches: %+v", s)
	}
}

func TestMergeRefuses(t *testing.T) {
	tests := []struct {
		change func(*Results)
		want   string
	}{
		{func(r *Results) { r.Host.CPU = "another" }, `results 1 and 2: host: cpu: "one" and "another"`},
		{func(r *Results) { r.Host.Cores = 4 }, "host: cores: 2 and 4"},
		{func(r *Results) { r.Host.Kernel = "6.2" }, `host: kernel: "6.1" and "6.2"`},
		{func(r *Results) { r.Host.QEMU = "7" }, `host: qemu: "10" and "7"`},
		{func(r *Results) { r.Host.Accel = "kvm" }, `host: accel: "tcg" and "kvm"`},
		{func(r *Results) { r.Tool = "2" }, `tool: "1" and "2"`},
		{func(r *Results) { r.Scenarios[0].BootBytes = 6 }, `results 2: scenario "a": boot_bytes: 5 and 6`},
		{func(r *Results) { r.Scenarios[1].Append = []string{"x"} }, `scenario "b": append: []string(nil) and []string{"x"}`},
	}
	for _, tt := range tests {
		second := goodRun()
		tt.change(second)
		if _, err := Merge(goodRun(), second); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Merge = %v, want %q", err, tt.want)
		}
	}
	if _, err := Merge(); err == nil {
		t.Error("Merge of nothing is no error")
	}
}
