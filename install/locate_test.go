package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
)

// onMount mounts a new filesystem, and gives the folder. A test that cannot mount
// is skipped; in CI it can.
func onMount(t *testing.T, options string, mkfs ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can mount filesystems")
		}
		t.Skip("only root can mount filesystems")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "mount")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(512 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run(append(mkfs, image)...)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if subvolume, ok := strings.CutPrefix(options, "subvol="); ok {
		run("mount", "-o", "loop", image, dir)
		run("btrfs", "subvolume", "create", filepath.Join(dir, subvolume))
		run("umount", dir)
		options = "loop," + options
	}
	run("mount", "-o", options, image, dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// What is mounted tells where storage-init finds a folder.
func TestLocate(t *testing.T) {
	const uuid = "5e1f0d3a-6b1c-4c0e-9d52-0a1b2c3d4e5f"
	for _, test := range []struct {
		fstype, options string
		mkfs            []string
		path            string
	}{
		{"ext4", "loop", []string{"mkfs.ext4", "-q", "-F", "-U", uuid}, "/folder"},
		{"xfs", "loop", []string{"mkfs.xfs", "-q", "-f", "-m", "uuid=" + uuid}, "/folder"},
		{"btrfs", "subvol=@boot", []string{"mkfs.btrfs", "-q", "-f", "-U", uuid}, "/@boot/folder"},
	} {
		t.Run(test.fstype, func(t *testing.T) {
			dir := onMount(t, test.options, test.mkfs...)
			folder, link := filepath.Join(dir, "folder"), filepath.Join(t.TempDir(), "link")
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(folder, link); err != nil {
				t.Fatal(err)
			}
			p, mounts, err := locate(link)
			if err != nil {
				t.Fatal(err)
			}
			tag, err := p.tag()
			if err != nil || tag != (bootconf.Tag{Kind: bootconf.TagUUID, Value: uuid}) || p.fstype != test.fstype ||
				p.path != test.path || p.stacked != "" || !strings.HasPrefix(p.node, "/dev/loop") {
				t.Errorf("%+v, tag %v, %v; want %s of %s %s", p, tag, err, test.path, test.fstype, uuid)
			}
			root, _, err := mountOf(mounts, "/")
			if err != nil || p.sameFilesystem(root) {
				t.Errorf("it is taken for the root, %v", err)
			}
			if own, _, err := mountOf(mounts, dir); err != nil || !p.sameFilesystem(own) {
				t.Errorf("it is not on its own filesystem, %v", err)
			}
			if err := FreezeThaw(folder); err != nil {
				t.Error(err)
			}
			// It is not frozen.
			if err := os.WriteFile(filepath.Join(folder, "file"), []byte("text"), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("proc", func(t *testing.T) {
		if _, _, err := locate("/proc"); err == nil || !strings.Contains(err.Error(), "filesystem of type proc") {
			t.Errorf("a folder without a device: %v", err)
		}
	})
}

// Images on the real root are copied to memory: a mount of it would keep its check
// out.
func TestChooseBackends(t *testing.T) {
	for _, test := range []struct {
		name    string
		machine func(s *scratch) string // moves the machine's root, and gives what is mounted where
		want    string
	}{
		{"root", func(s *scratch) string { return s.root }, "ram"},
		{"boot partition", func(s *scratch) string { return filepath.Join(s.root, "boot") }, "loop"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScratch(t)
			dir := onMount(t, "loop", "mkfs.ext4", "-q", "-F")
			target := test.machine(s)
			if out, err := exec.Command("cp", "-a", target+"/.", dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(target, 0); err != nil {
					t.Error(err)
				}
			})
			s.write("etc/initoverlayfs.conf", "storage virtio\n")
			r := s.install()
			i, err := prepareKernel(&s.o, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := i.configure(2); err != nil {
				t.Fatal(err)
			}
			if got := bootconf.FormatBackends(i.conf.Backends, i.conf.Auto); got != test.want {
				t.Errorf("backend %s, want %s", got, test.want)
			}
			if v, err := Verify(t.Context(), s.o); err != nil || !v.Boots {
				t.Errorf("%+v, %v", v, err)
			}
			if r.Manifest.Installed.FS == "" || !strings.HasSuffix(r.Manifest.Installed.FS, "/1/initoverlayfs-"+kver+".img") {
				t.Errorf("the image is at %q of its filesystem", r.Manifest.Installed.FS)
			}
		})
	}
}
