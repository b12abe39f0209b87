package install

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestMakeWork leaves what others use, and what is not of this kind.
func TestMakeWork(t *testing.T) {
	parent := t.TempDir()
	for _, dir := range []string{workPattern + "stale/sub", workPattern + "used", "other", "target"} {
		if err := os.MkdirAll(filepath.Join(parent, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(parent, workPattern+"file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", filepath.Join(parent, workPattern+"link")); err != nil {
		t.Fatal(err)
	}
	used, err := lockFolder(filepath.Join(parent, workPattern+"used"))
	if err != nil || used == nil {
		t.Fatalf("lock a folder: %v, %v", used, err)
	}
	defer used.Close()

	dir, remove, err := makeWork(parent)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := lockFolder(dir); f != nil || err != nil {
		t.Errorf("the new folder is not locked: %v, %v", f, err)
	}
	want := []string{workPattern + "file", workPattern + "link", workPattern + "used", "other", "target"}
	check := func(want []string) {
		t.Helper()
		entries, err := os.ReadDir(parent)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("there is %q, want %q", got, want)
		}
	}
	check(append([]string{filepath.Base(dir)}, want...))
	remove()
	check(want)
	if f, err := lockFolder(dir); f != nil || err != nil {
		t.Errorf("lock a folder that is gone: %v, %v", f, err)
	}
}
