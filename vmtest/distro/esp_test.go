package distro

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// With the EFI system partition mounted as what it is, the whole pair goes there:
// kernel-install calls our plugin, and storage-init finds the image on vfat. It
// runs in a user-mode Linux, whose kernel has vfat. There each new process takes
// thirty times as long, and mkinitramfs starts thousands, so the initramfs is one
// that was made before.
func TestESP(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	d := newDebian(t, "debian-dracut.tar")
	k := fixtures.OpenKernel(t, "kernel-6.1")
	d.give(t, makeDeb(t, "0.0.1"), "ours.deb")
	d.give(t, fixtures.Path(t, "dracut-6.1.img"), "initrd.img-"+k.Version)
	d.give(t, k.Image, "vmlinuz-"+k.Version)
	d.give(t, k.Config, "config-"+k.Version)
	d.give(t, k.Modules, "modules")
	d.run(t, `bootctl install --no-variables
dpkg -i /run/host/ours.deb
cp /run/host/*-`+k.Version+` /boot/
mkdir -p /lib/modules
cp -r /run/host/modules /lib/modules/`+k.Version)
	out := d.runUML(t, `kernel-install add `+k.Version+` /boot/vmlinuz-`+k.Version+` /boot/initrd.img-`+k.Version+`
initoverlayfs verify
initoverlayfs status
ls -R /boot/efi/initoverlayfs`)
	t.Log(out)
	if want := fmt.Sprintf("/boot/efi/initoverlayfs/%s/1:", k.Version); !strings.Contains(out, want) {
		t.Errorf("no pair on the ESP")
	}
	d.choose(t, "")
	wantRecord(t, d.boot(t, k.Version), bootconf.Loop)
	if out := d.runUML(t, "initoverlayfs remove --all; find /boot/efi -name '*initoverlayfs*'"); out != "" {
		t.Errorf("left on the ESP: %s", out)
	}
}

// umlInit is the init of the user-mode Linux: it mounts what the machine has in
// its fstab, runs the host's script and powers off.
const umlInit = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/host "/run/modules/lib/modules/$(uname -r)"
mount -t hostfs -o %[1]s host /run/host
mount -t hostfs -o "/usr/lib/uml/modules/$(uname -r)" host "/run/modules/lib/modules/$(uname -r)"
for module in vfat nls_ascii nls_cp437 nls_iso8859-1 nls_utf8; do modprobe -d /run/modules "$module"; done
mount -o remount,rw /
mount /dev/ubda2 /boot
mount -o umask=0077 /dev/ubda1 /boot/efi
bash -eu /run/host/script </dev/null >/run/host/output 2>/run/host/errors
echo $? >/run/host/status
umount /boot/efi /boot
mount -o remount,ro /
halt -f -f -p
`

// runUML runs a script as run does, with the EFI system partition mounted, and
// gives its standard output.
func (d *debian) runUML(t *testing.T, script string) string {
	t.Helper()
	linux, err := exec.LookPath("linux.uml")
	if err != nil {
		notHere(t, err.Error())
	}
	if strings.Contains(d.share, ",") {
		t.Fatalf("the path %s has a comma", d.share)
	}
	for name, text := range map[string]string{"script": script, "init": fmt.Sprintf(umlInit, d.share)} {
		if err := os.WriteFile(filepath.Join(d.share, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	status := filepath.Join(d.share, "status")
	_ = os.Remove(status)
	d.run(t, "cp /run/host/init /usr/local/lib/initoverlayfs/uml-init")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	began := time.Now()
	console, err := exec.CommandContext(ctx, linux, "ubda="+d.path, "root=/dev/ubda3", "ro", "mem=1G",
		"init=/usr/local/lib/initoverlayfs/uml-init", "con=null", "con0=null,fd:1", "con1=null").CombinedOutput()
	t.Logf("%.0f s in user-mode Linux: %s", time.Since(began).Seconds(), strings.TrimSpace(script))
	read := func(name string) string {
		text, _ := os.ReadFile(filepath.Join(d.share, name))
		return string(text)
	}
	if got := strings.TrimSpace(read("status")); err != nil || got != "0" {
		t.Fatalf("user-mode Linux: %v, status %q\n%s%s\n%s", err, got, read("output"), read("errors"), console)
	}
	return read("output")
}
