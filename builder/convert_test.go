package builder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

// Trees as the generators make them, reduced to what tells them apart and to
// their switch-root programs.
var generators = map[string]struct {
	make func(a *archive)
	kind string
	// changes are the paths that hold our program after the conversion.
	changes []string
}{
	"dracut with systemd": {
		make: func(a *archive) {
			a.dirs("usr", "usr/bin", "usr/lib", "usr/lib/dracut", "usr/lib/systemd")
			a.file("usr/lib/systemd/systemd", "ELF")
			a.link("init", "usr/lib/systemd/systemd")
			a.file("usr/bin/switch_root", "ELF")
		},
		kind: bootconf.KindDracutSystemd,
	},
	"dracut": {
		make: func(a *archive) {
			a.dirs("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib/dracut")
			a.link("sbin", "usr/sbin")
			a.link("lib", "usr/lib")
			a.file("init", "#!/bin/sh")
			a.file("usr/sbin/switch_root", "ELF")
		},
		kind:    bootconf.KindDracut,
		changes: []string{"usr/sbin/switch_root"},
	},
	"old dracut": {
		make: func(a *archive) {
			a.dirs("lib", "lib/dracut", "sbin")
			a.file("init", "#!/bin/sh")
			a.file("sbin/switch_root", "ELF")
		},
		kind:    bootconf.KindDracut,
		changes: []string{"sbin/switch_root"},
	},
	"initramfs-tools with busybox": {
		make: func(a *archive) {
			a.dirs("usr", "usr/bin", "usr/sbin", "conf", "scripts")
			a.link("bin", "usr/bin")
			a.link("sbin", "usr/sbin")
			a.file("init", "#!/bin/sh")
			a.file("conf/initramfs.conf", "")
			a.file("scripts/functions", "")
			a.hardLinks("busybox", "usr/bin/busybox", "usr/bin/sh", "usr/sbin/run-init", "usr/sbin/switch_root")
		},
		kind:    bootconf.KindInitramfsTools,
		changes: []string{"usr/sbin/run-init", "usr/sbin/switch_root"},
	},
	"initramfs-tools with klibc": {
		make: func(a *archive) {
			a.dirs("bin", "sbin", "conf", "scripts")
			a.file("init", "#!/bin/sh")
			a.file("conf/initramfs.conf", "")
			a.file("scripts/functions", "")
			a.file("bin/run-init", "klibc")
			a.link("sbin/switch_root", "../bin/busybox")
		},
		kind:    bootconf.KindInitramfsTools,
		changes: []string{"bin/run-init", "sbin/switch_root"},
	},
	"mkinitcpio": {
		make: func(a *archive) {
			a.dirs("usr", "usr/bin", "hooks")
			a.link("bin", "usr/bin")
			a.link("sbin", "usr/bin")
			a.link("usr/sbin", "bin")
			a.file("init", "#!/usr/bin/ash")
			a.file("init_functions", "")
			a.file("config", "")
			a.hardLinks("busybox", "usr/bin/busybox", "usr/bin/switch_root")
		},
		kind:    bootconf.KindMkinitcpio,
		changes: []string{"usr/bin/switch_root"},
	},
	"mkinitcpio with systemd": {
		make: func(a *archive) {
			a.dirs("usr", "usr/bin", "usr/lib", "usr/lib/systemd", "hooks")
			a.file("usr/lib/systemd/systemd", "ELF")
			a.link("init", "/usr/lib/systemd/systemd")
			a.file("config", "")
			a.file("usr/bin/switch_root", "ELF")
		},
		kind: bootconf.KindMkinitcpio,
	},
	"u-root": {
		make: func(a *archive) {
			a.dirs("bbin")
			a.file("bbin/bb", "ELF")
			a.link("bbin/switch_root", "bb")
			a.link("init", "bbin/init")
		},
		kind:    bootconf.KindUroot,
		changes: []string{"bbin/switch_root"},
	},
	"unknown": {
		make: func(a *archive) {
			a.dirs("bin")
			a.file("init", "#!/bin/sh")
			a.file("bin/switch_root", "ELF")
			a.file("config", "") // hooks are missing
		},
		kind: bootconf.KindUnknown,
	},
}

func TestKindsAndChanges(t *testing.T) {
	const program = "our switch-root program"
	path := filepath.Join(t.TempDir(), "storage-init")
	if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, g := range generators {
		t.Run(name, func(t *testing.T) {
			a := newArchive(t)
			g.make(a)
			tree, contents := treeOf(t, a.save())
			if got := KindOf(tree); got != g.kind {
				t.Errorf("KindOf = %s, want %s", got, g.kind)
			}
			before := entriesOfTree(t, tree, contents.Open)
			changes, err := replaceSwitchRoot(tree, contents, g.kind, path)
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, c := range changes {
				paths = append(paths, c.Path)
				if c.Reason == "" {
					t.Errorf("%s is changed without a reason", c.Path)
				}
			}
			if diff := cmp.Diff(g.changes, paths); diff != "" {
				t.Errorf("changed paths (-want +got):\n%s", diff)
			}

			// The tree is as it was, except that our program is at the paths,
			// and that what it took the place of has fewer names.
			want := before
			for _, path := range paths {
				old := want[path]
				for name, e := range want {
					if e.Inode == old.Inode {
						e.NLink--
						want[name] = e
					}
				}
				want[path] = pathInfo{
					Mode: unix.S_IFREG | 0o755, NLink: len(paths), MTime: before[paths[0]].MTime,
					Size: int64(len(program)), SHA256: digestOf([]byte(program)), Inode: paths[0],
				}
			}
			if diff := cmp.Diff(want, entriesOfTree(t, tree, contents.Open)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

// What nothing names any more is not kept.
func TestReplaceSwitchRootDropsContents(t *testing.T) {
	a := newArchive(t)
	generators["dracut"].make(a)
	path := a.save()
	tree, contents := treeOf(t, path)
	before := len(namesIn(t, contents.dir))
	if _, err := replaceSwitchRoot(tree, contents, bootconf.KindDracut, path); err != nil {
		t.Fatal(err)
	}
	if got := len(namesIn(t, contents.dir)); got != before {
		t.Errorf("%d contents, want %d: one more and one less", got, before)
	}
}

func TestPendingFiles(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "a")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(p *pendingFiles, name string) error {
		f, err := p.create(name, privateMode)
		if err != nil {
			return err
		}
		_, err = f.WriteString("new " + name)
		return err
	}
	content := func() map[string]string {
		m := make(map[string]string)
		for _, name := range namesIn(t, dir) {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			m[name] = string(text)
		}
		return m
	}

	p := pendingFiles{dir: dir}
	for _, name := range []string{"a", "b"} {
		if err := write(&p, name); err != nil {
			t.Fatal(err)
		}
	}
	p.discard()
	if diff := cmp.Diff(map[string]string{"a": "old"}, content()); diff != "" {
		t.Errorf("after discard (-want +got):\n%s", diff)
	}
	p = pendingFiles{dir: dir}
	for _, name := range []string{"a", "b"} {
		if err := write(&p, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.publish(); err != nil {
		t.Fatal(err)
	}
	p.discard()
	if diff := cmp.Diff(map[string]string{"a": "new a", "b": "new b"}, content()); diff != "" {
		t.Errorf("after publish (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(dir, "b")); err != nil || info.Mode().Perm() != privateMode {
		t.Errorf("mode %v, %v; want %o", info.Mode(), err, privateMode)
	}

	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	p = pendingFiles{dir: dir}
	if err := write(&p, "folder"); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("a folder in the way gives %v", err)
	}
	p.discard()
	if got, want := len(namesIn(t, dir)), 3; got != want {
		t.Errorf("%d names, want %d", got, want)
	}
}

func TestUnlinkKeepsOtherNames(t *testing.T) {
	a := newArchive(t)
	a.dirs("usr", "usr/bin")
	a.hardLinks("shared", "usr/bin/one", "usr/bin/two")
	tree, contents := treeOf(t, a.save())
	n := tree.Lookup("usr/bin/one")
	if n == nil || n != tree.Lookup("usr/bin/two") || n.Type() != cpio.TypeRegular {
		t.Fatal("the names are not links to one file")
	}
	if err := unlink(contents, n); err != nil {
		t.Fatal(err)
	}
	if got := len(namesIn(t, contents.dir)); got != 1 {
		t.Errorf("%d contents after the first name went, want 1", got)
	}
	if err := unlink(contents, n); err != nil {
		t.Fatal(err)
	}
	if got := len(namesIn(t, contents.dir)); got != 0 {
		t.Errorf("%d contents after the last name went, want 0", got)
	}
}
