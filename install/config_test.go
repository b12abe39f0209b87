package install

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

const fedoraOmitted = "bash systemd-initrd i18n kernel-modules-extra rootfs-block dracut-systemd usrmount fs-lib " +
	"microcode_ctl-fw_dir_override shutdown nss-softokn"

// TestConfigOfC reads files as the C project's installer writes them.
func TestConfigOfC(t *testing.T) {
	boot := bootconf.Default()
	boot.Bootfs = bootconf.Tag{Kind: bootconf.TagUUID, Value: "b5e07a4f-3f5a-4e0c-9c63-0a1b2c3d4e5f"}
	boot.BootfsHint, boot.BootfsType = "/dev/vda2", "ext4"
	compression := builder.ImageCompression{Algorithm: "lz4hc", Level: 11}
	for _, test := range []struct {
		file  string
		want  Config
		notes int
	}{
		{"c-systemd.conf", Config{
			Boot: boot, Builder: `dracut -M -o "initoverlayfs fcoe"`, Systemd: true, Compression: &compression,
			MiniBuilder: `dracut -M -m "kernel-modules udev-rules initoverlayfs systemd base" -o "` + fedoraOmitted + `"`,
		}, 0},
		{"c-direct.conf", Config{Boot: boot, Builder: `dracut -M -o "initoverlayfs fcoe"`, Compression: &compression}, 1},
	} {
		got, err := readConfig(filepath.Join("testdata", test.file))
		if err != nil {
			t.Errorf("%s: %v", test.file, err)
			continue
		}
		if len(got.notes) != test.notes {
			t.Errorf("%s: notes %q, want %d", test.file, got.notes, test.notes)
		}
		got.set, got.text, got.notes = nil, "", nil
		if diff := cmp.Diff(test.want, *got, cmp.AllowUnexported(Config{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.file, diff)
		}
	}
}

func TestConfigLines(t *testing.T) {
	for _, test := range []struct {
		line, refused string
	}{
		{`bootfs UUID="b5e07a4f-3f5a-4e0c-9c63-0a1b2c3d4e5f"`, ""},
		{"bootfs /dev/mapper/fedora-boot", ""},
		{"bootfs_hint ", ""}, // blkid has found nothing
		{"erofs_compression -z lz4", ""},
		{"keep_compressed_modules true", ""},
		{"keep_compressed_modules maybe", `line 2: keep_compressed_modules: bad value "maybe"`},
		{"initoverlayfs_init true", ""},
		{"fs /boot/initoverlayfs-V.img", ""},
		{"fstype erofs", ""},
		{"erofs_compression -zlzma", `line 2: erofs_compression: bad image compression "lzma"`},
		{"erofs_compression -zlz4hc,11 -C65536", `line 2: erofs_compression: bad image compression "lz4hc,11 -C65536"`},
		{"fstype ext4", `line 2: fstype: image type "ext4" is not supported`},
		{"initoverlayfs_init yes", `line 2: initoverlayfs_init: bad value "yes"`},
		{"initrd_builder", "line 2: initrd_builder: no value"},
		{"roothash 0", "line 2: roothash: unknown key"},
	} {
		path := filepath.Join(t.TempDir(), "initoverlayfs.conf")
		if err := os.WriteFile(path, []byte("# a comment\n"+test.line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := readConfig(path)
		if test.refused == "" && err != nil || test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)) {
			t.Errorf("%q: %v; want %q", test.line, err, test.refused)
		}
	}
}

// TestConfigModes tells when the mini-initramfs has systemd.
func TestConfigModes(t *testing.T) {
	for _, test := range []struct {
		lines []string
		want  bool
	}{
		{nil, false},
		{[]string{"initrd_builder dracut"}, true},
		{[]string{"initoverlayfs_init false"}, true},
		{[]string{"initoverlayfs_init true"}, false},
		{[]string{"initoverlayfs_init true", "initrd_builder dracut"}, false},
		{[]string{"initrd_builder dracut", "initoverlayfs_init false"}, true},
	} {
		path := filepath.Join(t.TempDir(), "initoverlayfs.conf")
		if err := os.WriteFile(path, []byte(strings.Join(test.lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig(path)
		if err != nil || c.Systemd != test.want || slices.Contains(test.lines, "initoverlayfs_init true") && c.MiniBuilder != "" {
			t.Errorf("%q: %+v, %v; want systemd %v", test.lines, c, err, test.want)
		}
	}
}
