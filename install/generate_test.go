package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// newInstallation is a run whose machine is a folder, in which command lines
// work all the same.
func newInstallation(t *testing.T) *installation {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a mount namespace takes root")
	}
	root := t.TempDir()
	boot := filepath.Join(root, "boot")
	for _, dir := range []string{boot, filepath.Join(boot, "efi"), filepath.Join(root, "modules")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(boot, "initramfs.img"), []byte("published"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(root, "storage-init")
	if err := os.WriteFile(program, emptyProgram(t), 0o755); err != nil {
		t.Fatal(err)
	}
	return &installation{
		o: &Options{KernelVersion: kver, Build: builder.Options{
			Arch: "amd64", StorageInit: program, ModulesDir: filepath.Join(root, "modules"),
		}},
		config: &Config{}, bootDir: boot, imageDir: boot, work: t.TempDir(),
		progress: func(string) {}, warn: func(s string) { t.Errorf("warning: %s", s) },
	}
}

// archiveCommand gives a command that writes a small archive to its last argument.
func archiveCommand(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
set -e
for out; do :; done
mkdir -p "$(dirname '` + dir + `/tree/` + name + `')"
printf '%s' '` + text + `' >'` + dir + `/tree/` + name + `'
cd '` + dir + `/tree'
find . -mindepth 1 | sed 's,^\./,,' | cpio -o -H newc --quiet >"$out"
`
	path := filepath.Join(dir, "builder")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunBuilder(t *testing.T) {
	i := newInstallation(t)
	published := filepath.Join(i.bootDir, "initramfs.img")
	out := filepath.Join(i.work, "out.img")
	good := archiveCommand(t, "file", "text")
	args := filepath.Join(i.work, "args")
	for _, test := range []struct {
		name, command string
		want          string // of the error; empty: none
	}{
		{"good", good, ""},
		{"with arguments", "VALUE=1 " + good + ` -o "initoverlayfs fcoe"`, ""},
		{"told the kernel and the output", `both() { printf '%s\n' "$@" >` + args + `; ` + good + ` "$@"; }; both`, ""},
		{"fails", "echo the reason >&2; exit 3; :", "exit status 3: the reason"},
		{"writes nothing", "true", "has made no archive"},
		{"no archive", `write() { for out; do :; done; echo text >"$out"; }; write`, "has made no archive"},
		{"names its own output", "echo overwritten >" + published + " && " + good, "Read-only file system"},
		{"removes what is published", "rm -f " + published + " && " + good, "Read-only file system"},
		{"writes a folder below", "mkdir " + i.bootDir + "/efi/x && " + good, "Read-only file system"},
		{"not found", "/nonexistent/dracut", "not found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			err := i.runBuilder(context.Background(), test.command, out)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v; want %q", err, test.want)
			}
			if text, err := os.ReadFile(published); err != nil || string(text) != "published" {
				t.Errorf("what was published is %q, %v", text, err)
			}
		})
	}
	text, err := os.ReadFile(args)
	if want := "--force\n--kver\n" + kver + "\n" + out + "\n"; err != nil || string(text) != want {
		t.Errorf("a command line was followed by %q, %v; want %q", text, err, want)
	}
	// Afterwards, and for everybody else, the folder is writable.
	if err := os.WriteFile(filepath.Join(i.bootDir, "more"), nil, 0o644); err != nil {
		t.Error(err)
	}
	i.m.sysroot = "/elsewhere"
	if err := i.runBuilder(context.Background(), good, out); err == nil {
		t.Error("a command line of this system makes an archive for another one")
	}
}

func TestSystemdMini(t *testing.T) {
	i := newInstallation(t)
	conf := bootconf.Default()
	conf.Bootfs = bootconf.Tag{Kind: bootconf.TagLabel, Value: "boot"}
	conf.ImageUUID, conf.ImageSize = bootconf.UUID{1}, 4096
	for _, test := range []struct {
		name, command string
		want          string
	}{
		// What dracut's module does.
		{"good", archiveCommand(t, "etc/initoverlayfs.conf", conf.Format()), ""},
		{"told the files", `[ -x "$INITOVERLAYFS_STORAGE_INIT" ] && grep -qx 'bootfs LABEL=boot' "$INITOVERLAYFS_CONF" && ` +
			archiveCommand(t, "etc/initoverlayfs.conf", conf.Format()), ""},
		{"without the module", archiveCommand(t, "etc/fstab", "x"), "without storage-init and its configuration"},
		{"another configuration", archiveCommand(t, "etc/initoverlayfs.conf", "timeout 3\n"), "without storage-init and its configuration"},
		{"fails", "false", "exit status 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i.config.MiniBuilder = test.command
			out, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			err = i.systemdMini(context.Background(), conf, out)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v; want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := builder.MiniConfig(out.Name()); err != nil || got.Format() != conf.Format() {
				t.Errorf("the mini-initramfs has the configuration %q, %v", got.Format(), err)
			}
		})
	}
}
