package bootconf

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var moduleLines = []struct {
	line string
	want Module
}{
	{"- /lib/modules/crc32c_generic.ko", Module{Path: "/lib/modules/crc32c_generic.ko"}},
	{"pmem,pmem-dax /lib/modules/nd_pmem.ko", Module{Uses: []Backend{Pmem, PmemDAX}, Path: "/lib/modules/nd_pmem.ko"}},
	{"loop /m/loop.ko max_loop=0 max_part=8", Module{Uses: []Backend{Loop}, Path: "/m/loop.ko", Options: "max_loop=0 max_part=8"}},
	{"- /m/a.ko cpu=0094", Module{Path: "/m/a.ko", CPUFeature: "0094"}},
	{"- /m/a.ko cpu=!0094 x=1", Module{Path: "/m/a.ko", CPUFeature: "0094", CPUWithout: true, Options: "x=1"}},
	{"- /m/a.ko cpu=0089,009C", Module{Path: "/m/a.ko", CPUFeature: "0089,009C"}},
	{"- /m/a.ko cpu=0089 for=b optional x=1", Module{Path: "/m/a.ko", CPUFeature: "0089", Drivers: []string{"b"}, Optional: true, Options: "x=1"}},
	{"- /m/a.ko after=b,c", Module{Path: "/m/a.ko", After: []string{"b", "c"}}},
	{"- /m/a.ko for=b after=c optional x=1", Module{Path: "/m/a.ko", Drivers: []string{"b"}, After: []string{"c"}, Optional: true, Options: "x=1"}},
	{"- /m/a.ko optional", Module{Path: "/m/a.ko", Optional: true}},
	{`ram /m/a.ko x="a b"`, Module{Uses: []Backend{RAM}, Path: "/m/a.ko", Options: `x="a b"`}},
}

func TestModuleRoundTrip(t *testing.T) {
	var text string
	var want []Module
	for _, m := range moduleLines {
		if got := m.want.String(); got != m.line {
			t.Errorf("String() = %q, want %q", got, m.line)
		}
		text += m.line + "\n"
		want = append(want, m.want)
	}
	got, err := ParseModules(text)
	if err != nil {
		t.Fatalf("ParseModules: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ParseModules (-want +got):\n%s", diff)
	}
}

func TestParseModulesErrors(t *testing.T) {
	for _, line := range []string{
		"x", "-", "- ", "- m.ko", "0 - /m.ko", " - /m.ko",
		"disk /m.ko", "block, /m.ko", " /m.ko", "auto /m.ko",
		"- /m.ko cpu=", "- /m.ko cpu=!", "- /m.ko cpu=94", "- /m.ko cpu=00g4", "- /m.ko cpu=00094", "- /m.ko cpu=0094,", "- /m.ko cpu=0094,94",
	} {
		got, err := ParseModules("- /good.ko\n" + line + "\n")
		if err == nil {
			t.Errorf("ParseModules(%q) = %v, want an error", line, got)
		} else if !strings.HasPrefix(err.Error(), "line 2: ") {
			t.Errorf("ParseModules(%q) = %v, want an error that names line 2", line, err)
		}
	}
}

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"/lib/modules/nd-pmem.ko":  "nd_pmem",
		"/lib/modules/loop.ko.xz":  "loop",
		"/crc32c-intel-test.ko.gz": "crc32c_intel_test",
		"/erofs":                   "erofs",
	} {
		m := Module{Path: path}
		if got := m.Name(); got != want {
			t.Errorf("Name of %s = %q, want %q", path, got, want)
		}
	}
}

func TestModuleNeededBy(t *testing.T) {
	everyone, some := Module{}, Module{Uses: []Backend{Pmem, Loop}}
	for _, b := range AutoOrder {
		if !everyone.NeededBy(b) {
			t.Errorf("a module without uses is not needed by %s", b)
		}
		if got, want := some.NeededBy(b), b == Pmem || b == Loop; got != want {
			t.Errorf("NeededBy(%s) = %v, want %v", b, got, want)
		}
	}
}

var moduleSeeds = []string{
	"", "\n\n", "- /a", "- /a  x ", "- /a cpu=0001 cpu=0002", "- /a cpu= cpu=0001", "- /a cpu=!", "ram,ram /\r\n",
}

func TestModuleSeeds(t *testing.T) {
	parsed := 0
	for _, text := range moduleSeeds {
		if checkModulesFixedPoint(t, text) {
			parsed++
		}
	}
	for _, m := range moduleLines {
		if !checkModulesFixedPoint(t, m.line) {
			t.Errorf("%q was not parsed", m.line)
		}
	}
	if want := 6; parsed != want {
		t.Errorf("%d of the seeds were parsed, want %d", parsed, want)
	}
}

func FuzzParseModules(f *testing.F) {
	for _, text := range moduleSeeds {
		f.Add(text)
	}
	for _, m := range moduleLines {
		f.Add(m.line)
	}
	f.Fuzz(func(t *testing.T, text string) { checkModulesFixedPoint(t, text) })
}

// checkModulesFixedPoint reports whether text was parsed and so compared.
func checkModulesFixedPoint(t *testing.T, text string) bool {
	first, err := ParseModules(text)
	if err != nil {
		return false
	}
	var written strings.Builder
	for i := range first {
		written.WriteString(first[i].String() + "\n")
	}
	second, err := ParseModules(written.String())
	if err != nil {
		t.Fatalf("ParseModules(%q), written as %q: %v", text, written.String(), err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("ParseModules(%q) and what is read from its lines (-first +second):\n%s", text, diff)
	}
	return true
}
