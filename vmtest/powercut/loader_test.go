package powercut

import (
	"cmp"
	"errors"
	"os/exec"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestParseLoaderEntry(t *testing.T) {
	got := ParseLoaderEntry("a.conf", "# comment\n\ntitle  A Linux \nversion 1\nsort-key\tk\nmachine-id m\nlinux /l\ninitrd /i\n"+
		"initrd /j\noptions a b\noptions c\nunknown x\narchitecture\n")
	want := LoaderEntry{
		ID: "a.conf", Title: "A Linux", Version: "1", SortKey: "k", MachineID: "m", Linux: "/l",
		Initrds: []string{"/i", "/j"}, Options: "a b c",
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
}

func TestSortLoaderEntries(t *testing.T) {
	order := func(entries ...LoaderEntry) []string {
		SortLoaderEntries(entries)
		var ids []string
		for _, e := range entries {
			ids = append(ids, e.ID)
		}
		return ids
	}
	for _, test := range []struct {
		name    string
		entries []LoaderEntry
		want    []string
	}{
		{"by name", []LoaderEntry{{ID: "t-6.1.conf"}, {ID: "t-6.1~initoverlayfs.conf"}, {ID: "t-6.1.initoverlayfs.conf"}, {ID: "t-6.2.conf"}},
			[]string{"t-6.2.conf", "t-6.1.initoverlayfs.conf", "t-6.1.conf", "t-6.1~initoverlayfs.conf"}},
		{"by version", []LoaderEntry{
			{ID: "z.conf", SortKey: "d", Version: "6.1"}, {ID: "y.conf", SortKey: "d", Version: "6.1~x"}, {ID: "x.conf", SortKey: "d", Version: "6.1.x"},
		}, []string{"x.conf", "z.conf", "y.conf"}},
		{"by key", []LoaderEntry{{ID: "9.conf"}, {ID: "b.conf", SortKey: "b"}, {ID: "a.conf", SortKey: "a", MachineID: "2"}, {ID: "0.conf", SortKey: "a", MachineID: "1"}},
			[]string{"0.conf", "a.conf", "b.conf", "9.conf"}},
	} {
		if diff := gocmp.Diff(test.want, order(test.entries...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// TestCompareVersions asks systemd, which has the rules from the same place.
func TestCompareVersions(t *testing.T) {
	versions := []string{
		"~", "~~", "^1", "1", "01", "1-1", "1^1", "1~1", "1.1", "1a", "aB", "10", "1_1", "6.1.0-56-amd64", "6.1.0-6-amd64",
		"6.12.117+deb13-cloud-amd64", "t-6.1.conf", "t-6.1.initoverlayfs.conf", "t-6.1~initoverlayfs.conf",
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		notHere(t, err.Error())
	}
	for i, a := range versions {
		for _, b := range versions[i:] {
			want := 0
			var exit *exec.ExitError
			if err := exec.Command(tool, "compare-versions", "--", a, b).Run(); errors.As(err, &exit) {
				want = map[int]int{11: 1, 12: -1}[exit.ExitCode()]
				if want == 0 {
					t.Fatalf("systemd-analyze compare-versions %q %q: %v", a, b, err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			got, back := CompareVersions(a, b), CompareVersions(b, a)
			if cmp.Compare(got, 0) != want || cmp.Compare(back, 0) != -want {
				t.Errorf("CompareVersions(%q, %q) = %d, and %d the other way round; want the signs of %d", a, b, got, back, want)
			}
		}
	}
	// An empty version is no argument of the program.
	if CompareVersions("", "~") <= 0 || CompareVersions("", "1") >= 0 || CompareVersions("", "") != 0 {
		t.Error("an empty version is not between ~ and 1")
	}
}
