package bootentry

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const hookScript = "../dracut/hooks/grub.d/09_initoverlayfs"

// hookGrub is "initoverlayfs hook grub" for the script: of the pairs of this
// test, in the test's /boot.
func hookGrub(args []string) int {
	d, err := ReadGrubDefaults(os.Getenv, func(path string) bool { _, err := os.Stat(path); return err == nil })
	if err == nil && !slices.Equal(args, []string{"hook", "grub"}) {
		err = fmt.Errorf("arguments %q", args)
	}
	if err == nil {
		err = GrubMenu(os.Stdout, d, twoKernels)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "initoverlayfs: error:", err)
		return 1
	}
	return 0
}

// fakeLib stands for GRUB's shell functions.
const fakeLib = `
prepare_grub_to_access_device() { echo "insmod fake"; echo "set root='$1'"; }
make_system_path_relative_to_its_root() { echo "/@$1"; }
uses_abstraction() { [ "$1 $2" = "$LVM lvm" ]; }
`

// runHook runs the script with a library and with programs in PATH, and gives its
// output. It must succeed: grub-mkconfig ends when a script fails.
func runHook(t *testing.T, lib, bin string, env ...string) (stdout, stderr string) {
	t.Helper()
	share := t.TempDir()
	if lib != "" {
		write(t, filepath.Join(share, "grub-mkconfig_lib"), lib)
	}
	cmd := exec.Command("/bin/sh", hookScript)
	cmd.Env = append([]string{
		"pkgdatadir=" + share, "PATH=" + bin, "GRUB_DEVICE=/dev/vda2", "GRUB_DEVICE_BOOT=/dev/vda1",
		"GRUB_CMDLINE_LINUX=a", "GRUB_CMDLINE_LINUX_DEFAULT=b",
	}, env...)
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", hookScript, err, problems.String(), out.String())
	}
	return out.String(), problems.String()
}

// bin makes a folder with a program "initoverlayfs": a shell script, or this test.
func bin(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "initoverlayfs")
	if script != "" {
		write(t, file, "#!/bin/sh\nPATH=/usr/bin:/bin\n"+script)
		if err := os.Chmod(file, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, file); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestHookScript(t *testing.T) {
	t.Run("what it passes", func(t *testing.T) {
		stdout, stderr := runHook(t, fakeLib, bin(t, `echo "$*"; env | grep ^INITOVERLAYFS | sort; echo; echo`), "LVM=/dev/vda2")
		want := "hook grub\nINITOVERLAYFS_GRUB_BOOT_PATH=/@/boot\nINITOVERLAYFS_GRUB_PREPARE=insmod fake\nINITOVERLAYFS_GRUB_ROOT_LVM=true\nINITOVERLAYFS_GRUB_ROOT_PATH=/@/\n"
		if stdout != want || stderr != "" {
			t.Errorf("printed %q and %q; want %q", stdout, stderr, want)
		}
	})
	t.Run("/boot of its own", func(t *testing.T) {
		// grub-mkrelpath prints nothing for the top of a filesystem.
		stdout, stderr := runHook(t, strings.ReplaceAll(fakeLib, `echo "/@$1"`, "echo"), bin(t, `env | grep ^INITOVERLAYFS_GRUB_BOOT`))
		if want := "INITOVERLAYFS_GRUB_BOOT_PATH=/\n"; !strings.Contains(stdout, want) || stderr != "" {
			t.Errorf("printed %q and %q; want %q", stdout, stderr, want)
		}
	})
	t.Run("a menu", func(t *testing.T) {
		stdout, stderr := runHook(t, fakeLib, bin(t, ""), "GRUB_FS=btrfs")
		if strings.Count(stdout, "menuentry '") != 4 || stderr != "" {
			t.Errorf("printed %q and %q; want four entries", stdout, stderr)
		}
		for _, want := range []string{"\tset root='/dev/vda1'\n", " root=/dev/vda2 ro rootflags=subvol=@/ a b\n"} {
			if strings.Count(stdout, want) != 4 {
				t.Errorf("%q is not in each entry:\n%s", want, stdout)
			}
		}
		checkScript(t, stdout, true)
	})
	const told = "09_initoverlayfs: the boot menu has no entries of initoverlayfs\n"
	for name, tt := range map[string]struct{ lib, bin, told string }{
		"the program fails":       {fakeLib, bin(t, "echo half; echo why >&2; exit 1"), "why\n" + told},
		"the program cannot know": {strings.ReplaceAll(fakeLib, "echo", ": echo"), bin(t, ""), told},
		"no library":              {"", bin(t, "echo x"), told},
		"a broken library":        {"fi", bin(t, "echo x"), told},
		"no program":              {fakeLib, t.TempDir(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr := runHook(t, tt.lib, tt.bin)
			if stdout != "" || !strings.HasSuffix(stderr, tt.told) || (stderr == "") != (tt.told == "") {
				t.Errorf("printed %q and %q; want nothing, and an error that ends in %q", stdout, stderr, tt.told)
			}
		})
	}
}

// The real grub-mkconfig, in a folder that stands for /etc and with a grub-probe
// that knows a machine's disks, makes a menu in which our entries come first.
func TestHookInGrubMkconfig(t *testing.T) {
	if os.Geteuid() != 0 {
		notHere(t, "grub-mkconfig is for root only")
	}
	mkconfig := program(t, "grub-mkconfig")
	etc, share := t.TempDir(), t.TempDir()
	probe := filepath.Join(share, "grub-probe")
	write(t, probe, `#!/bin/sh
for word; do
	case $word in
	--target=device | device) echo /dev/vda2 ;;
	--target=fs_uuid) echo 8f1b0b64-6c33-4a5d-a5d1-2f0c6d1c4b11 ;;
	--target=fs) echo ext2 ;;
	--target=partmap) echo gpt ;;
	--target=compatibility_hint) echo hd0,gpt2 ;;
	--target=partuuid) echo c0ffee00-01 ;;
	esac
done
`)
	copyOf := func(file, to string, edit ...string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			notHere(t, err.Error())
		}
		changed := strings.NewReplacer(edit...).Replace(string(text))
		if len(edit) > 0 && changed == string(text) {
			t.Fatalf("%s has nothing of %q", file, edit)
		}
		write(t, to, changed)
		if err := os.Chmod(to, 0o755); err != nil {
			t.Fatal(err)
		}
		return to
	}
	if err := os.Chmod(probe, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"grub.d", "default"} {
		if err := os.Mkdir(filepath.Join(etc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A system with two scripts of GRUB's, ours, and a command line.
	script := copyOf(mkconfig, filepath.Join(share, "grub-mkconfig"),
		`sysconfdir="/etc"`, `sysconfdir="`+etc+`"`, `grub_probe="${sbindir}/grub-probe"`, `grub_probe="`+probe+`"; export grub_probe`)
	copyOf("/usr/share/grub/grub-mkconfig_lib", filepath.Join(share, "grub-mkconfig_lib"))
	copyOf("/etc/grub.d/00_header", filepath.Join(etc, "grub.d/00_header"))
	copyOf("/etc/grub.d/10_linux", filepath.Join(etc, "grub.d/10_linux"))
	copyOf(hookScript, filepath.Join(etc, "grub.d/09_initoverlayfs"))
	write(t, filepath.Join(etc, "default/grub"),
		"GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_TERMINAL=console\nGRUB_DISTRIBUTOR=\"Debian's\"\nGRUB_CMDLINE_LINUX='console=ttyS0 dyndbg=\\\"file a.c +p\\\"'\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n")

	mkmenu := func(bin string) string {
		t.Helper()
		config := filepath.Join(t.TempDir(), "grub.cfg")
		cmd := exec.Command("/bin/sh", script, "-o", config) // it runs grub-script-check itself
		cmd.Env = append(os.Environ(), "pkgdatadir="+share, "PATH="+bin+":"+os.Getenv("PATH"), "LC_ALL=C")
		run(t, cmd)
		menu, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		checkScript(t, string(menu), true)
		return string(menu)
	}
	menu := mkmenu(bin(t, ""))
	var entries []string
	var linux []string
	for line := range strings.Lines(menu) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "menuentry '") {
			entries = append(entries, line)
		}
		if strings.HasPrefix(line, "linux\t") {
			_, args, _ := strings.Cut(strings.TrimPrefix(line, "linux\t"), " ")
			linux = append(linux, args)
		}
	}
	if len(entries) < 4 || !strings.HasPrefix(entries[0], `menuentry 'Debian'\''s GNU/Linux, with Linux 6.1.0-10-amd64 (initoverlayfs)' --class debian_s --class gnu-linux `) {
		t.Fatalf("the entries are %q", entries)
	}
	// Debian's own entries are there where this machine has kernels: the command
	// lines are the same.
	want := `root=/dev/vda2 ro console=ttyS0 dyndbg=\"file a.c +p\" quiet`
	for i, args := range linux {
		if !strings.HasPrefix(args, want) && !strings.Contains(args, "single") {
			t.Errorf("entry %d has the command line %q; want %q", i, args, want)
		}
	}
	t.Logf("%d entries, of which 4 are ours", len(entries))

	without := mkmenu(bin(t, "exit 1"))
	if strings.Contains(without, "initoverlayfs-") {
		t.Errorf("a menu without our program has entries of ours:\n%s", without)
	}
	section := "### BEGIN " + filepath.Join(etc, "grub.d/09_initoverlayfs") + " ###\n"
	if !strings.Contains(without, section+"### END") {
		t.Errorf("our section is not empty:\n%s", without)
	}
}
