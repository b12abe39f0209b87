package install

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/bootentry"
)

// Where /boot is a folder of the root filesystem the boot loader has longer names
// for what lies there.
func TestEntriesOfFolder(t *testing.T) {
	s := newScratch(t)
	s.write("boot/loader/entries/"+token+"-"+kver+".conf",
		"title Fedora\nversion "+kver+"\nlinux /root/boot/vmlinuz-"+kver+"\ninitrd /root/boot/initrd.img-"+kver+" $tuned_initrd\ngrub_class fedora\n")
	s.install()
	if got, want := s.initrd(currentEntry), "/root/boot/initoverlayfs/V/1/initramfs-V.img"; got != want {
		t.Errorf("our entry boots %s, want %s", got, want)
	}
	i, err := prepareKernel(&s.o, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := i.plainInitrds(), []string{"/boot/initrd.img-" + kver}; !slices.Equal(got, want) {
		t.Errorf("the plain entry boots %q, want %q", got, want)
	}
}

// Entries of another system that boots the same kernel from the same folder stay.
func TestEntriesOfAnotherSystem(t *testing.T) {
	const other = "boot/loader/entries/fedcba9876543210fedcba9876543210-" + kver
	s := newScratch(t)
	theirs := strings.ReplaceAll(plainEntry, token, "fedcba9876543210fedcba9876543210")
	s.write(other+".conf", theirs)
	s.write(other+".initoverlayfs.conf", "# initoverlayfs: current "+kver+" (generated, changes are lost)\n"+theirs)
	s.install()
	file := strings.TrimPrefix(strings.ReplaceAll(other, kver, "V"), "boot/")
	s.wantFiles(append(pairFiles("1"), currentEntry, file+".conf", file+".initoverlayfs.conf")...)
}

// A kernel without an entry gets a plain one with ours, as kernel-install would
// name it.
func TestNewEntry(t *testing.T) {
	for name, tt := range map[string]struct {
		files   map[string]string
		want    map[string]string
		entries int
	}{
		"machine ID": {
			map[string]string{"etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian 12\"\n"},
			map[string]string{"title": "Debian 12", "version": kver, "machine-id": token, "sort-key": "debian", "options": "root=LABEL=x ro", "linux": "/vmlinuz-" + kver, "initrd": "/initrd.img-" + kver}, 2,
		},
		"a name": {
			map[string]string{"etc/kernel/entry-token": "mine\n", "etc/os-release": "ID=debian\nIMAGE_ID=appliance\n"},
			map[string]string{"title": "Linux", "version": kver, "machine-id": "", "sort-key": "appliance", "options": "root=LABEL=x ro", "linux": "/vmlinuz-" + kver, "initrd": "/initrd.img-" + kver}, 2,
		},
		"no command line": {map[string]string{"etc/kernel/cmdline": ""}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScratch(t)
			if err := os.Remove(filepath.Join(s.root, "boot/loader/entries", token+"-"+kver+".conf")); err != nil {
				t.Fatal(err)
			}
			s.write("etc/kernel/cmdline", "root=LABEL=x ro\n")
			for file, text := range tt.files {
				s.write(file, text)
			}
			r := s.install()
			if len(r.Entries) != tt.entries {
				t.Fatalf("entries %q, want %d", r.Entries, tt.entries)
			}
			if tt.want == nil {
				return
			}
			got := map[string]string{}
			for line := range strings.Lines(s.read(r.Entries[0])) {
				key, value, _ := strings.Cut(line, " ")
				if _, known := tt.want[key]; known {
					got[key] = strings.TrimSpace(value)
				}
			}
			for key, value := range tt.want {
				if value == "" {
					delete(tt.want, key)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("the plain entry (-want +got):\n%s", diff)
			}
		})
	}
}

// The menu is replaced whole or not at all, also behind a symbolic link.
func TestWriteGrubConfig(t *testing.T) {
	dir := t.TempDir()
	config, link := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "link.cfg")
	program := filepath.Join(t.TempDir(), "grub-mkconfig")
	if err := os.Symlink("grub.cfg", link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, script, want string }{
		// It works as the real one does.
		{"good", `[ "$1" = -o ] && umask 077 && echo new >"$2.new" && cat "$2.new" >"$2" && rm "$2.new"`, "new\n"},
		{"bad", `echo half >"$2.new"; echo half >"$2"; exit 1`, "old"},
		{"nothing", `exit 0`, "old"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(config, []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(config, 0o444); err != nil {
				t.Fatal(err)
			}
			open, err := os.Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			var frozen []string
			i := &installation{o: &Options{Freeze: func(_ context.Context, dir string) error {
				frozen = append(frozen, dir)
				return nil
			}}}
			err = i.writeGrubConfig(context.Background(), program, link)
			got, readErr := os.ReadFile(config)
			if readErr != nil || string(got) != tt.want || (err == nil) != (tt.want == "new\n") {
				t.Errorf("the menu is %q, %v; want %q; error %v", got, readErr, tt.want, err)
			}
			if (len(frozen) == 1) != (err == nil) {
				t.Errorf("frozen: %q", frozen)
			}
			info, err := os.Lstat(config)
			if err != nil || info.Mode() != 0o444 {
				t.Errorf("its mode is %v, %v", info.Mode(), err)
			}
			// Whoever reads the old one while it is replaced reads all of it.
			old := make([]byte, 10)
			if n, _ := open.Read(old); string(old[:n]) != "old" {
				t.Errorf("the old menu has become %q", old[:n])
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) != 2 {
				t.Errorf("files %v, %v; want the menu and the link", files, err)
			}
		})
	}
}

// Fedora's GRUB boots the entry that grubenv names, which is a new kernel's plain
// one until ours takes its place, once.
func TestTakeOverDefault(t *testing.T) {
	editenv, err := exec.LookPath("grub-editenv")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	const plain = token + "-" + kver
	for name, tt := range map[string]struct{ keys, saved, want string }{
		"a new kernel":     {"grub_class fedora\n", plain, plain + ".initoverlayfs"},
		"another one":      {"grub_class fedora\n", plain + "~debug", plain + "~debug"},
		"not set":          {"grub_class fedora\n", "", ""},
		"another's entry":  {"", plain, plain},
		"no grubenv there": {"grub_class fedora\n", "-", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScratch(t)
			s.write("boot/loader/entries/"+plain+".conf", plainEntry+tt.keys)
			env := filepath.Join(s.root, "boot/grub2/grubenv")
			run := func(args ...string) string {
				t.Helper()
				out, err := exec.Command(editenv, append([]string{env}, args...)...).CombinedOutput()
				if err != nil {
					t.Fatalf("grub-editenv %q: %v: %s", args, err, out)
				}
				return strings.TrimSpace(string(out))
			}
			if tt.saved == "-" {
				s.install()
				if slices.ContainsFunc(s.warned, func(w string) bool { return strings.Contains(w, "GRUB") }) {
					t.Errorf("warnings %q", s.warned)
				}
				return
			}
			s.write("boot/grub2/.keep", "")
			run("create")
			if tt.saved != "" {
				run("set", "saved_entry="+tt.saved)
			}
			s.install()
			want := ""
			if tt.want != "" {
				want = "saved_entry=" + tt.want
			}
			if got := run("list"); got != want {
				t.Errorf("grubenv has %q, want %q", got, want)
			}
			if tt.want != plain+".initoverlayfs" {
				return
			}
			// The user prefers the plain one.
			run("set", "saved_entry="+plain)
			s.source("second")
			s.install()
			if got := run("list"); got != "saved_entry="+plain {
				t.Errorf("after the user's choice grubenv has %q", got)
			}
		})
	}
}

// grub-mkconfig is run when the menu lacks a pair or has one too many, and what it
// leaves out is told.
func TestUpdateGrubConfig(t *testing.T) {
	var menu bytes.Buffer
	err := bootentry.GrubMenu(&menu, &bootentry.GrubDefaults{}, []bootentry.GrubKernel{
		{Version: kver, Linux: "/l", Plain: "/p", Mini: "/@/boot/initoverlayfs/" + kver + "/12/initramfs-" + kver + ".img", Previous: "/@/boot/initoverlayfs/" + kver + "/9/initramfs-" + kver + ".img"},
		{Version: kver + "1", Linux: "/l", Mini: "/boot/initoverlayfs/" + kver + "1/7/initramfs-" + kver + "1.img"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config, made, program := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "made"), filepath.Join(dir, "grub-mkconfig")
	if err := os.WriteFile(made, menu.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho >>"+program+".runs\ncat "+made+" >\"$2\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, before string
		generations  []int
		runs, told   bool
	}{
		{"as it shall be", menu.String(), []int{12, 9}, false, false},
		{"empty", "", []int{12, 9}, true, false},
		{"an older pair", strings.ReplaceAll(menu.String(), "/12/", "/11/"), []int{12, 9}, true, false},
		{"another order", menu.String(), []int{9, 12}, true, true},
		{"one too many", menu.String(), []int{12}, true, true},
		{"removed", menu.String(), nil, true, true},
		{"none, and none wanted", "", nil, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(config, []byte(tt.before), 0o644); err != nil {
				t.Fatal(err)
			}
			_ = os.Remove(program + ".runs")
			var told []string
			i := &installation{
				o:        &Options{KernelVersion: kver, Freeze: func(context.Context, string) error { return nil }},
				progress: func(string) {}, warn: func(s string) { told = append(told, s) },
			}
			if err := i.updateGrubConfig(context.Background(), program, config, tt.generations); err != nil {
				t.Fatal(err)
			}
			if runs := isFile(program + ".runs"); runs != tt.runs || (len(told) > 0) != tt.told {
				t.Errorf("grub-mkconfig was run: %t, want %t; warnings %q", runs, tt.runs, told)
			}
		})
	}
}
