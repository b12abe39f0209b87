package distro

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// packagedKernel is a kernel as its distribution's archive has it.
type packagedKernel struct {
	version string
	install string // command that installs its packages
	purge   string
}

// kernelOf gives a Debian the kernel packages of a suite.
func kernelOf(t *testing.T, d *debian, suite string) packagedKernel {
	t.Helper()
	dir := fixtures.Path(t, "debian-kernel-"+suite)
	found, err := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("kernel packages in %s: %q, %v", dir, found, err)
	}
	name, _, _ := strings.Cut(filepath.Base(found[0]), "_")
	d.give(t, dir, suite)
	return packagedKernel{
		version: strings.TrimPrefix(name, "linux-image-"),
		install: "dpkg -i /run/host/" + suite + "/*.deb",
		purge:   "dpkg -P " + name,
	}
}

// From the installation of our package on, a kernel package alone yields a pair
// that boots; so does the next one; and when our package goes, nothing stays.
func TestDebian(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	for _, test := range []struct {
		tree     string
		kind     string // of the full tree
		kernels  []string
		backends []bootconf.Backend // of each kernel
		all      bool
	}{
		{"debian-dracut.tar", bootconf.KindDracutSystemd, []string{"bookworm", "bookworm-backports"},
			[]bootconf.Backend{bootconf.Loop, bootconf.File}, false},
		{"debian-initramfs-tools.tar", bootconf.KindInitramfsTools, []string{"bookworm", "bookworm-backports"},
			[]bootconf.Backend{bootconf.Loop, bootconf.File}, true},
		{"debian-sid.tar", bootconf.KindDracutSystemd, []string{"sid"}, []bootconf.Backend{bootconf.File}, true},
	} {
		t.Run(strings.TrimSuffix(test.tree, ".tar"), func(t *testing.T) {
			if test.all {
				fixtures.RequireBoots(t, fixtures.All)
			}
			d := newDebian(t, test.tree)
			d.run(t, "bootctl install --no-variables")
			d.give(t, makeDeb(t, "0.0.1"), "ours.deb")
			d.run(t, "dpkg -i /run/host/ours.deb; echo 'image_dir /boot' >>/etc/initoverlayfs.conf")

			var kernels []packagedKernel
			for i, suite := range test.kernels {
				k := kernelOf(t, d, suite)
				kernels = append(kernels, k)
				t.Log(d.run(t, k.install))
				d.wantPair(t, k, test.kind)
				d.choose(t, "")
				wantRecord(t, d.boot(t, k.version), test.backends[i])
				if wanted, _ := fixtures.Wanted(); wanted < fixtures.All {
					return
				}
				d.choose(t, d.entry(t, k, ""))
				wantRecord(t, d.boot(t, k.version), "")
			}
			if len(kernels) > 1 {
				old := kernels[0]
				d.choose(t, d.entry(t, old, ".initoverlayfs"))
				wantRecord(t, d.boot(t, old.version), test.backends[0])
				// It goes, and its pair with it.
				d.run(t, old.purge)
				for _, path := range d.ours(t) {
					if strings.Contains(path, old.version) {
						t.Errorf("%s is left of the kernel that was removed", path)
					}
				}
				d.run(t, "initoverlayfs verify")
			}

			d.run(t, "dpkg -r initoverlayfs; test -s /boot/initrd.img-"+kernels[len(kernels)-1].version)
			d.choose(t, "")
			wantRecord(t, d.boot(t, kernels[len(kernels)-1].version), "")
			d.run(t, "dpkg -P initoverlayfs")
			if left := d.ours(t); len(left) > 0 {
				t.Errorf("left after the purge: %q", left)
			}
		})
	}
}

// entry is the file of a kernel's boot entry; suffix tells ours from the plain.
func (d *debian) entry(t *testing.T, k packagedKernel, suffix string) string {
	t.Helper()
	name := "debian-" + k.version + suffix + ".conf"
	if found := d.run(t, "cat /boot/efi/loader/entries/"+name); !strings.Contains(found, "initrd") {
		t.Fatalf("the entry %s is\n%s", name, found)
	}
	return name
}

// wantPair checks that a kernel has a pair, whole and listed.
func (d *debian) wantPair(t *testing.T, k packagedKernel, kind string) {
	t.Helper()
	d.run(t, "initoverlayfs verify")
	manifest := d.run(t, "cat /boot/efi/initoverlayfs/"+k.version+"/*/initoverlayfs-"+k.version+".json")
	var m bootconf.Manifest
	if err := json.Unmarshal([]byte(manifest), &m); err != nil {
		t.Fatalf("%v: %s", err, manifest)
	}
	if m.Source.Kind != kind || m.KernelVersion != k.version {
		t.Errorf("the pair is of a tree of the kind %s for kernel %s; want %s, %s", m.Source.Kind, m.KernelVersion, kind, k.version)
	}
	t.Log(d.run(t, "initoverlayfs status; ls -R /boot/efi/initoverlayfs /boot/initoverlayfs; head -50 /boot/efi/loader/entries/*"))
}

// wantRecord checks what a boot has left: the record of a backend, or with "" none.
func wantRecord(t *testing.T, r *bootconf.Record, backend bootconf.Backend) {
	t.Helper()
	switch {
	case backend == "" && r != nil:
		t.Errorf("a plain boot left the record %+v", r)
	case backend != "" && (r == nil || r.Backend != backend):
		t.Errorf("the record of the boot is %+v; want backend %s", r, backend)
	}
}

// GRUB's menu, which the distribution's own script writes, has our pair first, the
// plain initramfs second and the pair before ours third, and both boot.
func TestGRUB(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	d := newDebian(t, "debian-initramfs-tools.tar")
	d.give(t, makeDeb(t, "0.0.1"), "ours.deb")
	k := kernelOf(t, d, "bookworm")
	d.run(t, `
mkdir -p /boot/grub /boot/efi/EFI/BOOT
printf '%s\n' GRUB_DEFAULT=0 GRUB_TIMEOUT=0 GRUB_DISTRIBUTOR=Debian "GRUB_CMDLINE_LINUX='$(cat /etc/kernel/cmdline)'" >/etc/default/grub
printf '%s\n' 'insmod part_gpt' 'insmod ext2' 'search --no-floppy --label boot --set=root' 'configfile ($root)/grub/grub.cfg' >/tmp/start.cfg
grub-mkstandalone -O x86_64-efi -o /boot/efi/EFI/BOOT/BOOTX64.EFI boot/grub/grub.cfg=/tmp/start.cfg
grub-mkconfig -o /boot/grub/grub.cfg
dpkg -i /run/host/ours.deb`)
	t.Log(d.run(t, k.install))
	first := d.grubMenu(t)
	d.run(t, "initoverlayfs verify; initoverlayfs install --force --image-compress lz4hc,3 "+k.version)
	menu := d.grubMenu(t)
	if len(first) < 2 || len(menu) < 3 || !strings.Contains(menu[0], "/initoverlayfs/"+k.version+"/2/") ||
		menu[1] != first[1] || menu[1] != "/initrd.img-"+k.version || menu[2] != first[0] {
		t.Errorf("the menu has %q and later %q; want ours, the plain one, and then the former as the third", first, menu)
	}
	wantRecord(t, d.boot(t, k.version), bootconf.Loop)
	for i, backend := range []bootconf.Backend{1: "", 2: bootconf.Loop} {
		if i > 0 {
			d.run(t, fmt.Sprintf("sed -i 's/^GRUB_DEFAULT=.*/GRUB_DEFAULT=%d/' /etc/default/grub; grub-mkconfig -o /boot/grub/grub.cfg", i))
			wantRecord(t, d.boot(t, k.version), backend)
		}
	}
	d.run(t, "dpkg -P initoverlayfs")
	if menu := d.grubMenu(t); len(menu) == 0 || menu[0] != "/initrd.img-"+k.version {
		t.Errorf("after the purge the menu begins with %q", menu)
	}
	if left := d.ours(t); len(left) > 0 {
		t.Errorf("left after the purge: %q", left)
	}
}

// grubMenu gives the initramfs archives of GRUB's menu in order, without the
// submenu of other ways to boot.
func (d *debian) grubMenu(t *testing.T) []string {
	t.Helper()
	return d.lines(t, `grub-script-check /boot/grub/grub.cfg
sed '/^submenu/,/^}/d' /boot/grub/grub.cfg | awk '$1 == "initrd" { print $NF }' `)
}

// Installed, upgraded, removed and purged, our package leaves a Debian as it
// was, and touches no pair on an upgrade.
func TestPackage(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	d := newDebian(t, "debian-initramfs-tools.tar")
	d.give(t, makeDeb(t, "0.0.1"), "first.deb")
	d.give(t, makeDeb(t, "0.0.2"), "second.deb")
	const list = `find / -xdev ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' ! -path '/tmp/*' ! -path '/var/cache/*' ! -path '/run/*' | sort`
	before := d.run(t, list)

	if out := d.run(t, "dpkg -i /run/host/first.deb"); !strings.Contains(out, "initoverlayfs install ") {
		t.Errorf("the installation does not say how to go on: %s", out)
	}
	if got := d.run(t, "initoverlayfs --version; dpkg --audit; dpkg --verify initoverlayfs"); got != "initoverlayfs version 0.0.1\n" {
		t.Errorf("the installed program says %q", got)
	}
	for _, path := range []string{
		"/usr/share/man/man1/initoverlayfs-install.1.gz", "/usr/share/man/man5/initoverlayfs.conf.5.gz",
		"/usr/share/bash-completion/completions/initoverlayfs", "/usr/lib/dracut/modules.d/81initoverlayfs/module-setup.sh",
		"/usr/share/doc/initoverlayfs/copyright",
	} {
		if got := d.run(t, "dpkg -S "+path); !strings.HasPrefix(got, "initoverlayfs: ") {
			t.Errorf("%s belongs to %q", path, got)
		}
	}

	// A pair of a kernel that has no real tree: what counts is that it stays.
	pair := `mkdir -p /boot/efi/initoverlayfs/1.0/1; echo mini >/boot/efi/initoverlayfs/1.0/1/initramfs-1.0.img
echo '{"format":1,"kernel_version":"1.0","current":1}' >/boot/efi/initoverlayfs/1.0/installed.json`
	d.run(t, pair+"\necho '# changed' >>/etc/initoverlayfs.conf")
	if out := d.run(t, "dpkg -i /run/host/second.deb; initoverlayfs --version; cat /boot/efi/initoverlayfs/1.0/1/*; tail -n 1 /etc/initoverlayfs.conf"); !strings.HasSuffix(out, "initoverlayfs version 0.0.2\nmini\n# changed\n") {
		t.Errorf("the upgrade ends with %s", out)
	}

	d.run(t, "dpkg -r initoverlayfs")
	left := strings.Join(d.ours(t), "\n")
	if strings.Contains(left, "/boot/") || !strings.Contains(left, "/etc/initoverlayfs.conf") {
		t.Errorf("left after the removal:\n%s", left)
	}
	// The hooks that dpkg keeps until the purge are silent.
	if out := d.run(t, "run-parts --report --arg=1.0 --arg=/boot/vmlinuz-1.0 --regex initoverlayfs /etc/kernel/postinst.d; /etc/kernel/postrm.d/initoverlayfs 1.0; /etc/grub.d/09_initoverlayfs"); out != "" {
		t.Errorf("hooks without their program say %q", out)
	}
	d.run(t, "dpkg -P initoverlayfs")
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(d.run(t, list), "\n")); diff != "" {
		t.Errorf("files of the Debian (-before +after the purge):\n%s", diff)
	}
}

// lintian has nothing to object to.
func TestLintian(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	if _, err := exec.LookPath("lintian"); err != nil {
		notHere(t, err.Error())
	}
	out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", makeDeb(t, "0.0.1")).CombinedOutput()
	if err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

// Fedora's package has the programs and what its kernel-install and dracut call,
// nothing of Debian's, and takes back what it has published before it goes.
func TestRPM(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	if _, err := exec.LookPath("rpm"); err != nil {
		notHere(t, err.Error())
	}
	path := makePackage(t, "rpm", "0.0.1", "initoverlayfs-0.0.1-1.x86_64.rpm")
	out, err := exec.Command("rpm", "-qp", "--list", "--scripts", path).CombinedOutput()
	if err != nil {
		t.Fatalf("rpm: %v\n%s", err, out)
	}
	for _, want := range []string{
		"/usr/bin/initoverlayfs\n", "/usr/lib/initoverlayfs/storage-init\n", "/etc/initoverlayfs.conf\n",
		"/usr/lib/kernel/install.d/95-initoverlayfs.install\n", "/usr/lib/dracut/modules.d/81initoverlayfs/module-setup.sh\n",
		"/usr/share/licenses/initoverlayfs/LICENSE\n", "/usr/share/man/man8/storage-init.8.gz\n",
		"remove | 0) initoverlayfs remove --all",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the package lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "/etc/kernel/") || strings.Contains(string(out), "/etc/initramfs") {
		t.Errorf("the package has hooks of Debian's:\n%s", out)
	}
}
