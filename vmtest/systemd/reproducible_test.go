package systemd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The same build gives the same bytes: again, in another folder, under another
// umask, and by an ordinary user.
func TestReproducible(t *testing.T) {
	first := build(t, "kernel-6.1", "initramfs-tools-6.1.img", "--backend", "auto:block,loop", "--image-compress", fastImage)
	same := func(t *testing.T, dir string) {
		t.Helper()
		entries, err := os.ReadDir(first.dir)
		if err != nil || len(entries) != 3 {
			t.Fatalf("a build has %v, %v; want three files", entries, err)
		}
		for _, e := range entries {
			if want, got := fileDigest(t, filepath.Join(first.dir, e.Name())), fileDigest(t, filepath.Join(dir, e.Name())); got != want {
				t.Errorf("%s: sha256 %s, the first time %s", e.Name(), got, want)
			}
		}
	}
	options := []string{"--backend", "auto:block,loop", "--image-compress", fastImage}
	t.Run("again", func(t *testing.T) {
		again := first
		again.dir = filepath.Join(t.TempDir(), "a", "folder")
		old := syscall.Umask(0o077)
		defer syscall.Umask(old)
		run(t, command(t, append(again.buildArgs(), options...)...))
		same(t, again.dir)
	})
	t.Run("ordinary user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("all of this is an ordinary user's work already")
		}
		const nobody = 65534
		dir, err := os.MkdirTemp(work, "nobody-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		theirs := first
		theirs.dir = filepath.Join(dir, "out")
		// Same name: the manifest has it.
		theirs.source = filepath.Join(dir, filepath.Base(first.source))
		content, err := os.ReadFile(first.source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(theirs.source, content, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := command(t, append(theirs.buildArgs(), options...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, "HOME=/nonexistent"}
		cmd.Dir = "/"
		run(t, cmd)
		same(t, theirs.dir)
	})
	t.Run("another option", func(t *testing.T) {
		// The comparison sees a difference, if there is one.
		other := build(t, "kernel-6.1", "initramfs-tools-6.1.img", "--backend", "auto:block,loop", "--image-compress", "lz4")
		if other.Image.SHA256 == first.Image.SHA256 || other.Image.UUID == first.Image.UUID || other.Mini.SHA256 == first.Mini.SHA256 {
			t.Errorf("%+v is not another image than %+v", other.Image, first.Image)
		}
	})
}
