package systemd

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

//go:embed testdata/disks.sh
var disksScript []byte

const (
	bootKey  = "the key of the boot partition"
	luksUUID = "1a5e0000-0000-4000-8000-000000000001"
	mdUUID   = "1a5e0000:00004000:80000000:00000002"
)

// system is a distribution's own, in which initoverlayfs is installed for the
// occasion.
type system struct {
	tree, kernel string // fixtures
	full         string // path of the full tree's archive; empty: a command line makes it
}

// pair is what an installation in a system published.
type pair struct {
	kernel      fixtures.Kernel
	mini, image string
	conf        bootconf.Config
	backend     bootconf.Backend // that is to serve
}

// install runs the verb in the system, with this configuration and further lines
// for dracut's.
func (s system) install(t *testing.T, conf, dracutConf string) pair {
	t.Helper()
	if os.Geteuid() != 0 {
		notHere(t, "only root can run dracut in another system")
	}
	binary, err := program()
	if err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	kernel, tree := fixtures.OpenKernel(t, s.kernel), fixtures.Path(t, s.tree)
	shared := t.TempDir()
	for name, text := range map[string]string{"conf": conf, "dracut": dracutConf, "key": bootKey} {
		if err := os.WriteFile(filepath.Join(shared, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s.full != "" {
		run(t, exec.Command("cp", s.full, filepath.Join(shared, "full")))
	}
	run(t, exec.Command("cp", "-r", filepath.Dir(binary), filepath.Join(repository, "dracut/81initoverlayfs"), shared))
	run(t, exec.Command(filepath.Join(repository, "vmtest/fixtures/chroot.sh"), tree, kernel.Modules, shared, "sh", "-euc", `
		cd /mnt
		cp -r 81initoverlayfs /usr/lib/dracut/modules.d/
		cp dracut /etc/dracut.conf.d/test.conf
		cp conf /etc/initoverlayfs.conf
		install -m 600 key /etc/boot.key
		[ ! -e full ] || cp full "/boot/initrd.img-$1"
		before=$(cd /boot && find . -type f -exec sha256sum {} +)
		bin/initoverlayfs install "$1" --no-entries --image-compress lz4hc,9
		[ "$before" = "$(cd /boot && find . -type f ! -path './initoverlayfs/*' -exec sha256sum {} +)" ]
		cp "/boot/initoverlayfs/$1/1"/* .`, "-", kernel.Version))
	p := pair{
		kernel: kernel, backend: bootconf.Loop,
		mini:  filepath.Join(shared, "initramfs-"+kernel.Version+".img"),
		image: filepath.Join(shared, "initoverlayfs-"+kernel.Version+".img"),
	}
	if p.conf, err = builder.MiniConfig(p.mini); err != nil {
		t.Fatal(err)
	}
	m, err := builder.ReadManifest(filepath.Join(shared, "initoverlayfs-"+kernel.Version+".json"))
	if err != nil || len(m.Mini.Modules) != 0 {
		t.Errorf("the manifest is %+v, %v; want one without modules of ours", m, err)
	}
	return p
}

// stored is the pair for boot filesystems on LVM, LUKS and MD: dracut of Debian 12
// makes all of it, as it is configured there.
var stored struct {
	sync.Once
	pair
}

func storedPair(t *testing.T) pair {
	t.Helper()
	stored.Do(func() {
		s := system{"generator-bookworm", "kernel-6.1", filepath.Join(fixtures.Path(t, "storage-6.1"), "full.img")}
		p := s.install(t, "bootfs LABEL=boot\nbootfstype ext4\nbackend loop\ninitoverlayfs_init false\n",
			// What the virtual machine has, so that it takes less of its time.
			`hostonly=no
			compress="zstd -1"
			omit_dracutmodules+=" kernel-modules kernel-modules-extra qemu btrfs i18n "
			add_drivers+=" virtio_blk virtio_pci ext4 dm_crypt raid1 xts aes_generic sha256_generic "
			install_items+=" /etc/boot.key "
			`)
		dir, err := os.MkdirTemp(work, "stored-")
		if err != nil {
			t.Fatal(err)
		}
		run(t, exec.Command("cp", p.mini, p.image, dir))
		p.mini, p.image = filepath.Join(dir, filepath.Base(p.mini)), filepath.Join(dir, filepath.Base(p.image))
		stored.pair = p
	})
	if stored.mini == "" {
		t.Fatal("there is no pair")
	}
	return stored.pair
}

// disks makes disks with the boot filesystem of a layout, the image on it.
func (p pair) disks(t *testing.T, layout string, n int) []vmtest.Drive {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixtures.Path(t, "storage-6.1"), "disks.img"))
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.NewBuffer(append(text, make([]byte, -len(text)&3)...))
	w := cpio.NewWriter(b)
	for name, body := range map[string][]byte{"disks.sh": disksScript, "boot.key": []byte(bootKey)} {
		h := cpio.Header{Name: name, Mode: cpio.TypeRegular | 0o755, NLink: 1, Size: int64(len(body))}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "disks.img")
	if err := os.WriteFile(initrd, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	m := vmtest.Machine{
		Kernel: p.kernel.Image, Initrd: initrd,
		Append: []string{"rdinit=/disks.sh", "layout=" + layout, "path=" + p.conf.FS},
		Drives: []vmtest.Drive{{Path: p.image, Snapshot: true}},
	}
	for i := range n {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("disk%d.img", i))
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(192<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		m.Drives = append(m.Drives, vmtest.Drive{Path: path})
	}
	r, err := vmtest.Run(context.Background(), m)
	if err != nil {
		t.Fatalf("%s: %v\n%s", layout, err, r.Console)
	}
	for i := range m.Drives {
		m.Drives[i].Snapshot = true
	}
	return m.Drives[1:]
}

// plainDisk makes a disk whose filesystem has the image.
func (p pair) plainDisk(t *testing.T) []vmtest.Drive {
	t.Helper()
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "boot.img")
	if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(p.conf.FS)), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("cp", p.image, filepath.Join(tree, p.conf.FS)))
	args := []string{"-q", "-t", "ext4", "-L", "boot", "-d", tree}
	if p.conf.Bootfs.Kind == bootconf.TagUUID {
		args = append(args, "-U", p.conf.Bootfs.Value)
	}
	run(t, exec.Command("mke2fs", append(args, path, "192M")...))
	return []vmtest.Drive{{Path: path, Snapshot: true}}
}

// machine boots the pair to multi-user.target.
func (p pair) machine(t *testing.T, disks []vmtest.Drive, words ...string) vmtest.Machine {
	return vmtest.Machine{
		Kernel: p.kernel.Image, Initrd: p.mini,
		Append: append([]string{
			"root=LABEL=root", "rw", "systemd.log_target=kmsg", "systemd.show_status=no",
			// Where the CPU is emulated udev may take half a minute for what is there.
			"initoverlayfs.timeout=180",
		}, words...),
		Drives: append(slices.Clip(disks), vmtest.Drive{Path: fixtures.Path(t, rootDisk), Snapshot: true}),
		Expect: []vmtest.Milestone{vmtest.HandedOver, vmtest.MultiUser},
		// Two systemd in a row, and dracut's shell scripts in both.
		Timeout: 10 * time.Minute,
	}
}

// boots checks a boot to multi-user.target through a mini-initramfs with systemd,
// whose boot filesystem is on the device of this name.
func (p pair) boots(t *testing.T, m vmtest.Machine, device string) {
	t.Helper()
	r, err := vmtest.Run(context.Background(), m)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Console)
	}
	record, err := r.Done.BootRecord()
	if err != nil || record == nil {
		t.Fatalf("the booted system has the record %v, %v", record, err)
	}
	want := []bootconf.Attempt{{Backend: p.backend}}
	if record.ImageUUID != p.conf.ImageUUID.String() || !slices.Equal(record.Attempts, want) || len(record.Phases) == 0 {
		t.Errorf("the record is %+v, want image %s by %s", record, p.conf.ImageUUID, p.backend)
	}
	if len(r.Done.ErofsMounts) > 0 || len(r.Done.ErofsSysfs) > 0 {
		t.Errorf("an EROFS is still mounted: %q %q", r.Done.ErofsMounts, r.Done.ErofsSysfs)
	}
	if !strings.Contains(r.Done.Mountinfo, " / / ") || !strings.Contains(r.Done.Mountinfo, " - ext4 ") {
		t.Errorf("no root filesystem in %q", r.Done.Mountinfo)
	}
	if len(r.Done.FailedUnits) > 0 {
		t.Errorf("failed units %q", r.Done.FailedUnits)
	}
	for _, line := range []string{
		"EXT4-fs (" + device + "): mounted filesystem",
		"Starting initoverlayfs-switch-root.service",
		"Stopped systemd-udev-trigger.service", // the full tree asks for all devices again
	} {
		if !strings.Contains(r.Console, line) {
			t.Errorf("the console has no line %q", line)
		}
	}
	t.Logf("handover %.2f s, multi-user %.2f s, usable %d of %d kB", r.Times[vmtest.HandedOver], r.Times[vmtest.MultiUser],
		r.Done.MemUsableKB, r.Done.MemTotalKB)
}

// TestSystemdMini boots from boot filesystems that storage-init alone does not
// reach, through a mini-initramfs with systemd.
func TestSystemdMini(t *testing.T) {
	for _, test := range []struct {
		layout string
		least  fixtures.Boots
		disks  int
		device string
		words  []string
	}{
		{"luks", fixtures.Some, 1, "dm-1", []string{
			"rd.luks.uuid=" + luksUUID, "rd.luks.key=" + luksUUID + "=/etc/boot.key", "rd.lvm.lv=vg/boot",
		}},
		{"md", fixtures.All, 2, "md127", []string{"rd.md.uuid=" + mdUUID}},
	} {
		t.Run(test.layout, func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			p := storedPair(t)
			p.boots(t, p.machine(t, p.disks(t, test.layout, test.disks), test.words...), test.device)
		})
	}
}

// TestSystemdMiniFails lets the image be another one than the configured: the
// emergency action follows, and nothing else.
func TestSystemdMiniFails(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	p := storedPair(t)
	m := p.machine(t, p.disks(t, "md", 2), "rd.md.uuid="+mdUUID, "initoverlayfs.timeout=3", "rd.shell=0", "rd.emergency=poweroff",
		"initoverlayfs.image_uuid=01010101-0101-4101-8101-010101010101")
	m.FatalGrace = 2 * time.Minute
	r, err := vmtest.Run(context.Background(), m)
	if err == nil || r == nil {
		t.Fatalf("the boot with a wrong image_uuid succeeds: %+v", r)
	}
	defer os.RemoveAll(r.LogDir)
	const want = "no image after 3 s: loop: /dev/md127: "
	if !strings.Contains(r.Fatal, want) || strings.Contains(r.Fatal, "on_failure") {
		t.Errorf("fatal: %s\nwant: %s", r.Fatal, want)
	}
	for _, line := range []string{"initoverlayfs.service: Triggering OnFailure= dependencies", "Reached target emergency.target", "reboot: Power down"} {
		if !strings.Contains(r.Console, line) {
			t.Errorf("the console has no line %q\n%s", line, r.Console)
		}
	}
	for _, line := range []string{"Starting initoverlayfs-cleanup.service", "Starting initoverlayfs-switch-root.service", "Switching root"} {
		if strings.Contains(r.Console, line) {
			t.Errorf("after the failure: %q", line)
		}
	}
	if r.Done != nil || r.TimedOut {
		t.Errorf("the boot ends with %+v, timed out: %v", r.Done, r.TimedOut)
	}
}

// TestConfigurationOfC uses a file as the C project's installer writes it, with
// its command lines for dracut, in Debian 12.
func TestConfigurationOfC(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	text, err := os.ReadFile("../../install/testdata/c-systemd.conf")
	if err != nil {
		t.Fatal(err)
	}
	p := system{"generator-bookworm", "kernel-6.1", ""}.install(t, string(text), `compress="zstd -1"`+"\n")
	p.boots(t, p.machine(t, p.plainDisk(t)), "vda")
}

// TestSystemdMiniOfOthers is the same module under dracut and systemd of later
// releases of Debian.
func TestSystemdMiniOfOthers(t *testing.T) {
	for _, s := range []struct{ name, tree, kernel string }{
		{"trixie", "generator-trixie", "kernel-6.12"},
		{"sid", "generator-sid", "kernel-sid"},
	} {
		t.Run(s.name, func(t *testing.T) {
			fixtures.RequireBoots(t, fixtures.All)
			p := system{tree: s.tree, kernel: s.kernel}.install(t,
				"bootfs LABEL=boot\nbootfstype ext4\nbackend auto:file,loop\ninitoverlayfs_init false\ninitoverlayfs_builder dracut -N\n",
				`compress="zstd -1"`+"\n")
			p.backend = bootconf.File
			p.boots(t, p.machine(t, p.plainDisk(t)), "vda")
		})
	}
}
