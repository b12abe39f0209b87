package bootentry

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	for _, versions := range [][]string{
		{"~1", "", "a", "b"},
		{"122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1"},
		{"6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-56-amd64~initoverlayfs", "6.1.0-56-amd64", "6.1.0-56-amd64.initoverlayfs", "6.12.0"},
		{"6.8.5-300.fc40.x86_64", "6.8.5-301.fc40.x86_64", "6.9.0-0.rc1.fc41.x86_64", "6.10.0"},
		{"99999999999999999999", "100000000000000000000"},
	} {
		for i, a := range versions {
			for j, b := range versions {
				if got, want := sign(CompareVersions(a, b)), sign(i-j); got != want {
					t.Errorf("CompareVersions(%q, %q) = %d; want %d", a, b, got, want)
				}
			}
		}
	}
	for _, equal := range [][2]string{{"1_2", "1+2"}, {"007", "7"}, {"ä1", "1"}, {"", ""}} {
		if got := CompareVersions(equal[0], equal[1]); got != 0 {
			t.Errorf("CompareVersions(%q, %q) = %d; want 0", equal[0], equal[1], got)
		}
	}
}

func sign(i int) int {
	switch {
	case i < 0:
		return -1
	case i > 0:
		return 1
	}
	return 0
}

// systemd has the comparison, too: its program says what systemd-boot would.
func TestCompareVersionsAsSystemd(t *testing.T) {
	analyze := program(t, "systemd-analyze")
	random := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		var s strings.Builder
		for range random.IntN(6) {
			s.WriteString([]string{"0", "1", "10", "a", "b", "B", "~", "-", "^", ".", "+", "_"}[random.IntN(12)])
		}
		return s.String()
	}
	pairs := [][2]string{{"6.1.0-56-amd64", "6.1.0-56-amd64.initoverlayfs"}, {"6.1.0-56-amd64~initoverlayfs", "6.1.0-56-amd64"}}
	for range 100 {
		pairs = append(pairs, [2]string{word(), word()})
	}
	// One shell for all of them: a process each would take seconds.
	var script strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&script, "\"$0\" compare-versions -- '%s' '%s' >/dev/null; echo $?\n", p[0], p[1])
	}
	got := strings.Fields(run(t, exec.Command("sh", "-c", script.String(), analyze)))
	if len(got) != len(pairs) {
		t.Fatalf("%d answers for %d pairs", len(got), len(pairs))
	}
	seen := map[string]int{}
	for i, p := range pairs {
		want, ok := map[string]int{"0": 0, "11": 1, "12": -1}[got[i]]
		if !ok {
			t.Fatalf("systemd-analyze compare-versions %q %q: exit status %s", p[0], p[1], got[i])
		}
		if c := sign(CompareVersions(p[0], p[1])); c != want {
			t.Errorf("CompareVersions(%q, %q) = %d; systemd says %d", p[0], p[1], c, want)
		}
		seen[got[i]]++
	}
	if seen["0"] == 0 || seen["11"] == 0 || seen["12"] == 0 {
		t.Errorf("the pairs were not of each kind: %v", seen)
	}
}

func FuzzCompareVersions(f *testing.F) {
	for _, s := range []string{"", "~", "6.1.0-56-amd64", "a1^2", "..", "-\xff"} {
		f.Add(s, "6.1.0")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := CompareVersions(a, b), CompareVersions(b, a); sign(x) != -sign(y) {
			t.Errorf("CompareVersions(%q, %q) = %d, the other way round %d", a, b, x, y)
		}
		if x := CompareVersions(a, a); x != 0 {
			t.Errorf("CompareVersions(%q, %q) = %d", a, a, x)
		}
	})
}
