package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/vmtest"
)

func TestEntry(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path("file"), 0o600|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path("file"), path("again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var s unix.Stat_t
	if err := unix.Lstat(path("file"), &s); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]vmtest.Entry{
		path("file"): {Mode: unix.S_IFREG | 0o4600, Size: 4, NLink: 2, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("text")))},
		path("link"): {Mode: unix.S_IFLNK | 0o777, Size: 7, NLink: 1, Target: "nowhere"},
		path("fifo"): {Mode: unix.S_IFIFO | 0o600, NLink: 1},
		"/dev/null":  {Mode: unix.S_IFCHR | 0o666, NLink: 1, Major: 1, Minor: 3},
	} {
		got, err := entry(name)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Dir(name) == dir && (got.UID != s.Uid || got.GID != s.Gid || got.MTime < s.Mtim.Sec) {
			t.Errorf("%s: owner %d:%d, time %d; want %d:%d, %d", name, got.UID, got.GID, got.MTime, s.Uid, s.Gid, s.Mtim.Sec)
		}
		got.UID, got.GID, got.MTime, got.Nsec = 0, 0, 0, 0
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := entry(path("none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error = %v, want %v", err, os.ErrNotExist)
	}
}

func TestCachedGrowth(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 12345), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := cachedGrowth(name)
	if err != nil {
		t.Fatal(err)
	}
	if n := got.(map[string]int64)["bytes"]; n != 12345 {
		t.Errorf("%d bytes read, want 12345", n)
	}
}

func TestMeminfo(t *testing.T) {
	total, err := meminfo("MemTotal")
	if err != nil || total < 1000 {
		t.Errorf("MemTotal = %d kB, %v", total, err)
	}
	if _, err := meminfo("Mem"); err == nil {
		t.Error("no error for a key that is not there")
	}
}

func TestUnknownCheck(t *testing.T) {
	if _, err := new(guest).check("nonsense", ""); err == nil {
		t.Error("no error for an unknown check")
	}
}

func TestReport(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{{nil, ""}, {errors.New(`say "no"`), `say "no"`}} {
		var b bytes.Buffer
		g := &guest{events: bufio.NewWriter(&b)}
		g.done.Checks = map[string]json.RawMessage{"a": json.RawMessage("[1]")}
		g.report(test.err)
		var got struct {
			Event string
			vmtest.Done
		}
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%v: %q", err, b.String())
		}
		if got.Event != vmtest.EventDone || got.OK != (test.err == nil) || got.Error != test.want {
			t.Errorf("event %q, ok %v, error %q; want %q and the error %q", got.Event, got.OK, got.Error, vmtest.EventDone, test.want)
		}
		if got.Mountinfo == "" || got.MemAvailableKB == 0 || got.MemUsableKB < got.MemAvailableKB || string(got.Checks["a"]) != "[1]" {
			t.Errorf("done = %+v; want mounts, memory and the check", got.Done)
		}
	}
}
