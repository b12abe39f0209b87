package dracut_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBootfsFound runs the script as dracut does, with stand-ins for the two
// functions of dracut that it calls.
func TestBootfsFound(t *testing.T) {
	text, err := os.ReadFile("81initoverlayfs/bootfs-found.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "initoverlayfs.conf")
	script := `
getarg() { printf '%s' "$CMDLINE"; }
label_uuid_to_dev() { printf '%s/%s' "$LINKS" "$1"; }
` + strings.ReplaceAll(string(text), "/etc/initoverlayfs.conf", conf)
	if strings.Count(script, conf) != 1 {
		t.Fatal("the script reads no configuration")
	}
	for _, test := range []struct {
		bootfs, cmdline, link string
		want                  bool
	}{
		{"UUID=b5e07a4f", "", "UUID=b5e07a4f", true},
		{`UUID="b5e07a4f"`, "", "UUID=b5e07a4f", true},
		{"UUID=B5E07A4F", "", "UUID=b5e07a4f", true},
		{"UUID=0A1B-2C3D", "", "UUID=0A1B-2C3D", true}, // FAT
		{"PARTUUID=B5E07A4F-01", "", "PARTUUID=b5e07a4f-01", true},
		{"LABEL=boot", "", "LABEL=boot", true},
		{`LABEL="two words"`, "", "LABEL=two words", true},
		{"PARTLABEL=Boot", "", "PARTLABEL=Boot", true},
		{"/dev/null", "", "", true},
		{"", "", "", true}, // nothing to wait for
		{"UUID=b5e07a4f", "LABEL=other", "LABEL=other", true},

		{"UUID=b5e07a4f", "", "UUID=b5e07a4e", false},
		{"LABEL=Boot", "", "LABEL=boot", false},
		{"/dev/nonexistent", "", "", false},
		{"UUID=b5e07a4f", "LABEL=other", "UUID=b5e07a4f", false},
	} {
		links := t.TempDir()
		if test.link != "" {
			if err := os.WriteFile(filepath.Join(links, test.link), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		lines := "backend loop\nfs /x\n"
		if test.bootfs != "" {
			lines += "bootfs " + test.bootfs + "\n"
		}
		if err := os.WriteFile(conf, []byte(lines+"timeout 3\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", script)
		cmd.Env = append(os.Environ(), "CMDLINE="+test.cmdline, "LINKS="+links)
		out, err := cmd.CombinedOutput()
		if (err == nil) != test.want || len(out) > 0 {
			t.Errorf("bootfs %s, command line %s, with %s: %v, %s; want found %v", test.bootfs, test.cmdline, test.link, err, out, test.want)
		}
	}
}

// A full tree is as dracut is configured: the module is not in it unless it is
// asked for, and then it does nothing.
func TestModuleLeavesFullTreesAlone(t *testing.T) {
	const script = `
instmods() { echo "instmods $*"; }
inst_simple() { echo "inst_simple $*"; }
inst_hook() { echo "inst_hook $*"; }
inst_multiple() { echo "inst_multiple $*"; }
dfatal() { echo "dfatal $*"; }
. 81initoverlayfs/module-setup.sh
status=0
check || status=$?
echo "check $status"
depends
installkernel
install
`
	for _, test := range []struct {
		env  string
		want string
	}{
		{"INITOVERLAYFS_CONF=", "check 255\n"},
		// And what is asked for in vain is no mini-initramfs without it.
		{"INITOVERLAYFS_CONF=/nonexistent", "dfatal initoverlayfs: /nonexistent or "},
	} {
		cmd := exec.Command("bash", "-c", script)
		cmd.Env = append(os.Environ(), test.env, "initdir="+t.TempDir(), "dracutbasedir="+t.TempDir())
		out, err := cmd.Output()
		if alone := test.env == "INITOVERLAYFS_CONF="; alone && (err != nil || string(out) != test.want) ||
			!alone && (err == nil || !strings.Contains(string(out), test.want)) {
			t.Errorf("%s: %v, %q; want %q", test.env, err, out, test.want)
		}
	}
}
