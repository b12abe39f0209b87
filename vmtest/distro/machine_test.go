package distro

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "distro", &work)) }

// debian is a Debian on a disk, and what its programs and we can say of it.
type debian struct {
	path  string // of the disk
	esp   disk.Partition
	share string // folder that is /run/host inside
}

const mib = 1 << 20

// newDebian puts the tree of a fixture onto a disk, ready for its first kernel.
func newDebian(t *testing.T, tree string) *debian {
	t.Helper()
	if os.Geteuid() != 0 {
		notHere(t, "only root can enter another Debian")
	}
	for _, tool := range []string{"mcopy", "mkfs.vfat", "unshare", "chroot"} {
		if _, err := exec.LookPath(tool); err != nil {
			notHere(t, err.Error())
		}
	}
	words, err := vmtest.ConsoleWords("")
	if err != nil {
		t.Fatal(err)
	}
	d := &debian{path: filepath.Join(t.TempDir(), "disk.img"), share: t.TempDir()}
	parts, err := disk.Create(t.Context(), d.path, disk.Spec{Seed: tree, Partitions: []disk.Partition{
		{Label: "esp", Type: disk.EFISystem, FS: "vfat", Size: 320 * mib},
		{Label: "boot", Type: disk.LinuxFilesystem, FS: "ext4", FSLabel: "boot", Size: 640 * mib},
		{Label: "root", Type: disk.Root["amd64"], FS: "ext4", FSLabel: "root", Size: 3072 * mib, Tree: fixtures.Path(t, tree)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	d.esp = parts[0]
	// What an installer of the distribution would have left.
	d.run(t, `
printf '%s\n' 'LABEL=root / ext4 defaults 0 1' 'LABEL=boot /boot ext4 x-systemd.device-timeout=10min 0 2' \
	'PARTLABEL=esp /boot/efi vfat umask=0077,x-systemd.device-timeout=10min 0 2' >/etc/fstab
mkdir -p /etc/kernel
echo debian >/etc/kernel/entry-token
if [ -d /etc/dracut.conf.d ]; then echo 'compress="zstd -1"' >/etc/dracut.conf.d/quick.conf; fi
echo 'root=LABEL=root ro `+strings.Join(words, " ")+`' >/etc/kernel/cmdline`)
	return d
}

// run runs a shell script in the Debian and gives what it printed.
func (d *debian) run(t *testing.T, script string) string {
	t.Helper()
	out, err := d.try(t, script)
	if err != nil {
		t.Fatalf("%v\n%s\nof\n%s", err, out, script)
	}
	return out
}

func (d *debian) try(t *testing.T, script string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private",
		"./enter.sh", d.path, fmt.Sprintf("%d:%d", d.esp.Offset, d.esp.Size), d.share)
	cmd.Stdin = strings.NewReader(script)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%.0f s: %s", time.Since(began).Seconds(), strings.TrimSpace(script))
	return string(out), err
}

// give puts a file into the folder that is /run/host inside.
func (d *debian) give(t *testing.T, path, name string) {
	t.Helper()
	if out, err := exec.Command("cp", "-rL", path, filepath.Join(d.share, name)).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// lines gives what a script prints, as lines.
func (d *debian) lines(t *testing.T, script string) []string {
	t.Helper()
	return strings.Fields(d.run(t, script))
}

// ours are the files of the whole machine that bear our name, but for what
// vmtest has put there.
func (d *debian) ours(t *testing.T) []string {
	t.Helper()
	found := d.lines(t, `find / -xdev -name '*initoverlayfs*' ! -path '/var/lib/dpkg/*'
find /boot /boot/efi -xdev -name '*initoverlayfs*'
grep -rlis --exclude=grub.cfg initoverlayfs /boot/efi/loader /boot/grub /etc || true
# Until it is written the next time the menu has comments with the name of each
# script that took part.
if [ -e /boot/grub/grub.cfg ] && grep -v '^###' /boot/grub/grub.cfg | grep -iq initoverlayfs; then echo /boot/grub/grub.cfg; fi`)
	slices.Sort(found)
	return slices.DeleteFunc(slices.Compact(found), func(path string) bool {
		return strings.HasPrefix(path, "/usr/local/lib/initoverlayfs") || strings.HasSuffix(path, "/vmtest-agent.service")
	})
}

var linuxVersion = regexp.MustCompile(`Linux version (\S+) `)

// choose makes an entry the one that systemd-boot takes; without a name it takes
// its first.
func (d *debian) choose(t *testing.T, entry string) {
	t.Helper()
	text := "timeout 0\n"
	if entry != "" {
		text += "default " + entry + "\n"
	}
	d.run(t, "printf '"+text+"' >/boot/efi/loader/loader.conf")
}

// boot boots the disk by its firmware to multi-user.target. It gives the boot's
// record, nil after a plain one.
func (d *debian) boot(t *testing.T, kver string) *bootconf.Record {
	t.Helper()
	firmware, err := vmtest.FindFirmware("")
	if err != nil {
		notHere(t, err.Error())
	}
	r, err := vmtest.Run(t.Context(), vmtest.Machine{
		Firmware:  firmware,
		Kernel:    fixtures.OpenKernel(t, "kernel-6.1").Image,
		Drives:    []vmtest.Drive{{Path: d.path, Snapshot: true}},
		MemoryMiB: 1024,
		Timeout:   15 * time.Minute,
		Expect:    []vmtest.Milestone{vmtest.KernelToInit, vmtest.MultiUser},
	})
	if err != nil {
		t.Fatalf("boot of kernel %s: %v\n%s", kver, err, tail(r))
	}
	if found := linuxVersion.FindStringSubmatch(r.Console); found == nil || found[1] != kver {
		t.Errorf("the kernel is %q, want %s", found, kver)
	}
	record, err := r.Done.BootRecord()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.Done.Mountinfo, " / / ") || len(r.Done.ErofsMounts) > 0 {
		t.Errorf("mounts of the booted system:\n%s", r.Done.Mountinfo)
	}
	what := "plain"
	if record != nil {
		what = string(record.Backend)
	}
	t.Logf("booted kernel %s, %s, multi-user at %.1f s, fsck %q", kver, what, r.Times[vmtest.MultiUser], r.Done.Fsck)
	return record
}

func tail(r *vmtest.Result) string {
	if r == nil {
		return ""
	}
	lines := strings.Split(r.Console, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// makeDeb makes our package for Debian in a version and gives its path.
func makeDeb(t *testing.T, version string) string {
	t.Helper()
	return makePackage(t, "deb", version, "initoverlayfs_"+version+"_amd64.deb")
}

// makePackage makes one by the target of the Makefile, unless it is there.
func makePackage(t *testing.T, target, version, name string) string {
	t.Helper()
	out := filepath.Join(work, target+"-"+version)
	path := filepath.Join(out, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.CommandContext(t.Context(), "make", "-C", "../..", target, "OUT="+out, "VERSION="+version)
	// A make that runs this test has put its own flags there.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "MAKE") || strings.HasPrefix(s, "MFLAGS") })
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, text.Bytes())
	}
	return path
}
