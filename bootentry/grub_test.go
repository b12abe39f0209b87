package bootentry

import (
	"bytes"
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// debianGrub is what the hook's script and grub-mkconfig set on a Debian whose
// root and /boot are one ext4 filesystem.
var debianGrub = map[string]string{
	"INITOVERLAYFS_GRUB_PREPARE":     "insmod part_gpt\ninsmod ext2\nset root='hd0,gpt2'\nsearch --no-floppy --fs-uuid --set=root 8f1b0b64-6c33-4a5d-a5d1-2f0c6d1c4b11",
	"INITOVERLAYFS_GRUB_BOOT_PATH":   "/boot",
	"INITOVERLAYFS_GRUB_ROOT_PATH":   "/",
	"GRUB_DISTRIBUTOR":               "Debian",
	"GRUB_DEVICE":                    "/dev/vda2",
	"GRUB_DEVICE_UUID":               "8f1b0b64-6c33-4a5d-a5d1-2f0c6d1c4b11",
	"GRUB_DEVICE_PARTUUID":           "c0ffee00-01",
	"GRUB_FS":                        "ext2",
	"GRUB_CMDLINE_LINUX":             "console=ttyS0",
	"GRUB_CMDLINE_LINUX_DEFAULT":     "quiet",
	"GRUB_EARLY_INITRD_LINUX_STOCK":  "intel-uc.img microcode.cpio",
	"GRUB_DISABLE_LINUX_PARTUUID":    "",
	"GRUB_SAVEDEFAULT":               "",
	"GRUB_EARLY_INITRD_LINUX_CUSTOM": "",
	"INITOVERLAYFS_GRUB_ROOT_LVM":    "",
	"GRUB_DISABLE_LINUX_UUID":        "",
	"GRUB_GFXPAYLOAD_LINUX":          "",
}

var debianFiles = []string{
	"/dev/vda2", "/dev/disk/by-uuid/8f1b0b64-6c33-4a5d-a5d1-2f0c6d1c4b11", "/dev/disk/by-partuuid/c0ffee00-01",
}

var twoKernels = []GrubKernel{
	{Version: "6.1.0-9-amd64", Linux: "/boot/vmlinuz-6.1.0-9-amd64", Mini: "/boot/initoverlayfs/6.1.0-9-amd64/0123456789ab/initramfs-6.1.0-9-amd64.img"},
	{
		Version: "6.1.0-10-amd64", Linux: "/boot/vmlinuz-6.1.0-10-amd64", Plain: "/boot/initrd.img-6.1.0-10-amd64",
		Mini:     "/boot/initoverlayfs/6.1.0-10-amd64/0123456789ab/initramfs-6.1.0-10-amd64.img",
		Previous: "/boot/initoverlayfs/6.1.0-10-amd64/ba9876543210/initramfs-6.1.0-10-amd64.img",
	},
}

// defaults reads an environment with changes.
func defaults(t testing.TB, files []string, changes map[string]string) (*GrubDefaults, error) {
	t.Helper()
	environment := maps.Clone(debianGrub)
	for name, value := range changes {
		if _, known := environment[name]; !known {
			t.Fatalf("%s is in no documentation", name)
		}
		environment[name] = value
	}
	return ReadGrubDefaults(
		func(name string) string {
			value, known := environment[name]
			if !known {
				t.Errorf("ReadGrubDefaults asks for %s, which is in no documentation", name)
			}
			return value
		},
		func(path string) bool { return slices.Contains(files, path) })
}

func grubMenu(t testing.TB, d *GrubDefaults, kernels []GrubKernel) string {
	t.Helper()
	var b bytes.Buffer
	if err := GrubMenu(&b, d, kernels); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGrubMenu(t *testing.T) {
	d, err := defaults(t, debianFiles, nil)
	if err != nil {
		t.Fatal(err)
	}
	menu := grubMenu(t, d, twoKernels)
	s := readScenario(t, "testdata/grub.txtar")
	if *update {
		s.set(t, "grub", []string{"debian.cfg"}, map[string]string{"debian.cfg": menu})
	} else if diff := cmp.Diff(s.folder("grub")["debian.cfg"], menu); diff != "" {
		t.Errorf("menu (-want +got):\n%s", diff)
	}
	checkScript(t, menu, true)

	var ids []string
	for _, m := range regexp.MustCompile(`--id '([^']*)'`).FindAllStringSubmatch(menu, -1) {
		ids = append(ids, m[1])
	}
	want := []string{"initoverlayfs-6.1.0-10-amd64", "initoverlayfs-6.1.0-10-amd64-plain", "initoverlayfs-6.1.0-10-amd64-previous", "initoverlayfs-6.1.0-9-amd64"}
	if !slices.Equal(ids, want) {
		t.Errorf("IDs %q; want %q", ids, want)
	}

	for _, k := range []GrubKernel{{}, {Version: "6", Linux: "/l"}, {Version: "6", Mini: "/m"}, {Linux: "/l", Mini: "/m"}} {
		var b bytes.Buffer
		if err := GrubMenu(&b, d, append(slices.Clone(twoKernels), k)); err == nil || b.Len() > 0 {
			t.Errorf("GrubMenu of %+v: %v, and %d bytes", k, err, b.Len())
		}
	}
	if err := GrubMenu(failingWriter{}, d, twoKernels); err == nil {
		t.Error("an error of the writer was lost")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("full") }

// The order of kernels is that of versions; candidates come before the release.
func TestGrubMenuOrder(t *testing.T) {
	var kernels []GrubKernel
	for _, v := range []string{"6.2.0-rc3", "6.1.0-9", "6.2.0", "6.10.0", "6.2.0-rc10"} {
		kernels = append(kernels, GrubKernel{Version: v, Linux: "/l", Mini: "/m"})
	}
	menu := grubMenu(t, &GrubDefaults{}, kernels)
	var got []string
	for _, m := range regexp.MustCompile(`--id 'initoverlayfs-([^']*)'`).FindAllStringSubmatch(menu, -1) {
		got = append(got, m[1])
	}
	if want := []string{"6.10.0", "6.2.0", "6.2.0-rc10", "6.2.0-rc3", "6.1.0-9"}; !slices.Equal(got, want) {
		t.Errorf("kernels %q; want %q", got, want)
	}
}

func TestReadGrubDefaults(t *testing.T) {
	const uuid, partuuid = "UUID=8f1b0b64-6c33-4a5d-a5d1-2f0c6d1c4b11", "PARTUUID=c0ffee00-01"
	none := []string{"/dev/vda2"}
	for name, tt := range map[string]struct {
		changes map[string]string
		files   []string
		want    func(*GrubDefaults)
	}{
		"Debian":                     {nil, debianFiles, func(*GrubDefaults) {}},
		"PARTUUID is off":            {map[string]string{"GRUB_DISABLE_LINUX_PARTUUID": "true", "GRUB_DISABLE_LINUX_UUID": "true"}, debianFiles, func(d *GrubDefaults) { d.Root = "/dev/vda2" }},
		"PARTUUID":                   {map[string]string{"GRUB_DISABLE_LINUX_PARTUUID": "false", "GRUB_DISABLE_LINUX_UUID": "true"}, debianFiles, func(d *GrubDefaults) { d.Root = partuuid }},
		"UUID before PARTUUID":       {map[string]string{"GRUB_DISABLE_LINUX_PARTUUID": "false"}, debianFiles, func(*GrubDefaults) {}},
		"without UUID":               {map[string]string{"GRUB_DEVICE_UUID": ""}, debianFiles, func(d *GrubDefaults) { d.Root = partuuid }},
		"without either":             {map[string]string{"GRUB_DEVICE_UUID": "", "GRUB_DEVICE_PARTUUID": ""}, debianFiles, func(d *GrubDefaults) { d.Root = "/dev/vda2" }},
		"a chroot without /dev/disk": {nil, none, func(d *GrubDefaults) { d.Root = "/dev/vda2" }},
		"LVM": {
			map[string]string{"INITOVERLAYFS_GRUB_ROOT_LVM": "true", "GRUB_DEVICE": "/dev/mapper/vg-root"},
			append([]string{"/dev/mapper/vg-root"}, debianFiles...), func(d *GrubDefaults) { d.Root = "/dev/mapper/vg-root" },
		},
		"btrfs": {
			map[string]string{"GRUB_FS": "btrfs", "INITOVERLAYFS_GRUB_ROOT_PATH": "/@rootfs", "INITOVERLAYFS_GRUB_BOOT_PATH": "/@rootfs/boot"},
			debianFiles, func(d *GrubDefaults) {
				d.BootPath, d.Args = "/@rootfs/boot", "rootflags=subvol=@rootfs console=ttyS0 quiet"
			},
		},
		"btrfs without a subvolume": {map[string]string{"GRUB_FS": "btrfs"}, debianFiles, func(*GrubDefaults) {}},
		"another filesystem":        {map[string]string{"INITOVERLAYFS_GRUB_ROOT_PATH": "/sub"}, debianFiles, func(*GrubDefaults) {}},
		"Ubuntu":                    {map[string]string{"GRUB_DISTRIBUTOR": "Ubuntu"}, debianFiles, func(d *GrubDefaults) { d.OS, d.Classes[0] = "Ubuntu", "ubuntu" }},
		"Linux Mint":                {map[string]string{"GRUB_DISTRIBUTOR": "Linux-Mint 21"}, debianFiles, func(d *GrubDefaults) { d.OS, d.Classes[0] = "Linux-Mint 21 GNU/Linux", "linux_mint" }},
		"nobody":                    {map[string]string{"GRUB_DISTRIBUTOR": ""}, debianFiles, func(d *GrubDefaults) { d.OS, d.Classes = "GNU/Linux", d.Classes[1:] }},
		"wishes":                    {map[string]string{"GRUB_SAVEDEFAULT": "true", "GRUB_GFXPAYLOAD_LINUX": "keep"}, debianFiles, func(d *GrubDefaults) { d.SaveDefault, d.GfxPayload = true, "keep" }},
		"no arguments":              {map[string]string{"GRUB_CMDLINE_LINUX": "", "GRUB_CMDLINE_LINUX_DEFAULT": ""}, debianFiles, func(d *GrubDefaults) { d.Args = "" }},
		"early archives": {
			map[string]string{"GRUB_EARLY_INITRD_LINUX_CUSTOM": "mine.img"}, append([]string{"/boot/mine.img", "/boot/microcode.cpio"}, debianFiles...),
			func(d *GrubDefaults) { d.Early = []string{"/boot/microcode.cpio", "/boot/mine.img"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := &GrubDefaults{
				OS: "Debian GNU/Linux", Classes: []string{"debian", "gnu-linux", "gnu", "os"},
				Prepare: debianGrub["INITOVERLAYFS_GRUB_PREPARE"], BootPath: "/boot", Root: uuid, Args: "console=ttyS0 quiet",
			}
			tt.want(want)
			got, err := defaults(t, tt.files, tt.changes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkScript(t, grubMenu(t, got, twoKernels), true)
		})
	}
	for name, changes := range map[string]map[string]string{
		"09_initoverlayfs": {"INITOVERLAYFS_GRUB_PREPARE": ""},
		"BOOT_PATH":        {"INITOVERLAYFS_GRUB_BOOT_PATH": ""},
		"ZFS":              {"GRUB_FS": "zfs"},
		"GRUB_DEVICE":      {"GRUB_DEVICE": ""},
	} {
		if d, err := defaults(t, debianFiles, changes); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %+v, %v; want an error with %q", changes, d, err, name)
		}
	}
}

// Arguments are GRUB's words as long as they stay in the command; what would not
// is taken for what it says.
func TestGrubWords(t *testing.T) {
	for args, want := range map[string]string{
		"":                               "",
		"  ro  quiet ":                   "ro  quiet",
		"a=b,c:d/e.f+g@h%i~j^k":          "a=b,c:d/e.f+g@h%i~j^k",
		`dyndbg=\"file a.c +p\"`:         `dyndbg=\"file a.c +p\"`,
		`dyndbg="file a.c  +p" x`:        `dyndbg="file a.c  +p" x`,
		"'a;b' $vt_handoff":              "'a;b' $vt_handoff",
		`x="$y"`:                         `x="$y"`,
		`x=a#b`:                          `x=a#b`,
		"a;reboot":                       "'a;reboot'",
		"a\nreboot":                      "a reboot",
		"a | b & c":                      "a '|' b '&' c",
		"a } menuentry x {":              "a '}' menuentry x '{'",
		"a # b":                          "a '#' b",
		"#a":                             "'#a'",
		"it's":                           `'it'\''s'`,
		`"open`:                          `'"open'`,
		`a\`:                             `'a\'`,
		`"a\`:                            `'"a\'`,
		"${x}":                           "'${x}'",
		"$(x) a":                         "'$(x)' a",
		"a $":                            "a '$'",
		`"$ "`:                           `'"$' '"'`,
		"a\x01b":                         "'a b'",
		"ä":                              "ä",
		"'a\tb'":                         "'a\tb'",
		"a=<b>":                          "'a=<b>'",
		"modprobe.blacklist=a,b quiet":   "modprobe.blacklist=a,b quiet",
		`memmap=64M\$512M rd.break`:      `memmap=64M\$512M rd.break`,
		"memmap=64M$512M":                "memmap=64M$512M", // as Debian's own entry has it
		"memmap=64M!512M systemd.unit=*": "memmap=64M!512M systemd.unit=*",
	} {
		got := grubWords(args)
		if got != want {
			t.Errorf("grubWords(%q) = %q; want %q", args, got, want)
		}
		menu := grubMenu(t, &GrubDefaults{OS: "x", Root: "r", Args: got}, twoKernels[:1])
		if lines := strings.Count(menu, "\n"); lines != 7 {
			t.Errorf("the menu with %q has %d lines:\n%s", args, lines, menu)
		}
		checkScript(t, menu, true)
	}
}

// Titles, versions and paths come from files that anybody may have named.
func TestGrubMenuHostile(t *testing.T) {
	for _, s := range []string{
		"it's", "''", "a'; reboot; echo 'b", "}\nmenuentry x {", "$(reboot)", "`reboot`", `\`, `"`, "# x", "a b", "", "\x00", "ü", "a\\'b",
	} {
		d := &GrubDefaults{OS: s, Classes: []string{s}, Root: s, GfxPayload: s, Early: []string{s}}
		k := GrubKernel{Version: "6" + s, Linux: "/" + s, Plain: "/p" + s, Mini: "/m" + s, Previous: "/o" + s}
		menu := grubMenu(t, d, []GrubKernel{k})
		checkScript(t, menu, true)
		// What is between quotes taken away, what is left is always the same.
		bare := strings.ReplaceAll(menu, `'\''`, "")
		bare = regexp.MustCompile(`'[^']*'`).ReplaceAllString(bare, "Q")
		for _, word := range []string{"reboot", "`", "$", ";", "#", `"`, "\\"} {
			if strings.Contains(bare, word) {
				t.Errorf("with %q %q is outside of quotes:\n%s", s, word, menu)
			}
		}
		if n := strings.Count(bare, "menuentry"); n != 3 || strings.Count(bare, "{") != 3 || strings.Count(bare, "}") != 3 {
			t.Errorf("with %q there are %d entries:\n%s", s, n, menu)
		}
	}
}

// The check itself tells right from wrong.
func TestCheckScript(t *testing.T) {
	checkScript(t, "menuentry 'a' {\n\techo\tb\n}\n", true)
	checkScript(t, "menuentry 'a {\n\techo\tb\n}\n", false)
	checkScript(t, "menuentry 'a' {\n\techo\t<b>\n}\n", false)
}

// checkScript has GRUB's own parser read a menu.
func checkScript(t testing.TB, menu string, good bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "grub.cfg")
	write(t, file, menu)
	out, err := exec.Command(program(t, "grub-script-check"), file).CombinedOutput()
	if (err == nil) != good {
		t.Errorf("grub-script-check: %v: %s\n%s", err, out, menu)
	}
}
