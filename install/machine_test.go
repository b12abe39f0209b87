package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBootDir(t *testing.T) {
	for _, test := range []struct {
		name  string
		files []string // below the root
		named string
		want  string // empty: an error
	}{
		{"nothing", nil, "", ""},
		{"no loader", []string{"boot/x"}, "", "/boot"},
		{"ESP", []string{"boot/x", "boot/efi/loader/entries/x.conf"}, "", "/boot/efi"},
		{"new, ESP and extended boot partition", []string{"efi/loader/entries/x.conf", "boot/loader/entries/" + token + "-" + kver + ".conf"}, "", "/boot"},
		{"new, an entry elsewhere", []string{"efi/loader/entries/" + token + "-" + kver + ".conf", "boot/initoverlayfs/" + kver + "/x"}, "", "/efi"},
		{"pairs, and an entry elsewhere", []string{"efi/loader/entries/" + token + "-" + kver + ".conf", "boot/initoverlayfs/" + kver + "/x"}, "", "/boot"},
		{"pairs before a loader", []string{"efi/loader/entries/x.conf", "boot/initoverlayfs/" + kver + "/x"}, "", "/boot"},
		{"named", []string{"boot/efi/loader/entries/x.conf", "here/x"}, "/here", "/here"},
		{"named, not there", []string{"boot/x"}, "/here", ""},
		{"named, a file", []string{"boot/x"}, "/boot/x", ""},
		{"named, relative", []string{"boot/x"}, "boot", ""},
	} {
		root := t.TempDir()
		for _, name := range test.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			// The version is told by the name of an entry.
			if err := os.WriteFile(path, []byte("linux /x\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := machine{root}.bootDir(test.named, kver, strings.HasPrefix(test.name, "new"))
		if err != nil && test.want != "" || err == nil && got != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	release, err := lock(dir, func() { t.Error("nobody else is there") })
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan bool, 1)
	second := make(chan error, 1)
	go func() {
		release, err := lock(dir, func() { waiting <- true })
		if err == nil {
			release()
		}
		second <- err
	}()
	<-waiting
	select {
	case err := <-second:
		t.Errorf("two have the lock, %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-second; err != nil {
		t.Error(err)
	}
}
