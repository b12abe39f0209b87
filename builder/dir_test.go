package builder

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// An image of a directory has the extended attributes of its files and the
// parts of seconds of their times.
func TestDirAttributes(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, []byte("content"), 0o644), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	want := map[string]map[string][]byte{".": {}, "file": {}, "link": {}}
	set := func(path, name, value string) {
		t.Helper()
		err := unix.Lsetxattr(filepath.Join(dir, path), name, []byte(value), 0)
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTSUP):
			t.Logf("%s cannot be set here: %v", name, err)
		case err != nil:
			t.Fatal(err)
		default:
			want[path][name] = []byte(value)
		}
	}
	set(".", "user.of.directory", "")
	set("file", "user.long", strings.Repeat("long", 300))
	set("file", "system.posix_acl_access", acl)
	set("file", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	set("file", "trusted.x", "only root sees this")
	set("link", "trusted.of.link", "not of the file")
	if len(want["file"]) == 0 {
		t.Skip("this filesystem has no extended attributes")
	}
	when := time.Unix(1_600_000_000, 123_456_789)
	if err := os.Chtimes(file, when, when); err != nil {
		t.Fatal(err)
	}

	_, out := createNative(t, Source{Dir: dir}, testLayouts()["lz4"])
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	image, err := erofs.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string][]byte{}
	err = image.Walk(func(path string, ino *erofs.Inode) error {
		if path == "file" && (ino.MTime != when.Unix() || ino.MTimeNsec != uint32(when.Nanosecond())) {
			t.Errorf("time of file: %d.%09d, want %v", ino.MTime, ino.MTimeNsec, when)
		}
		xattrs, err := ino.Xattrs()
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		got[path] = xattrs
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("extended attributes (-directory +image):\n%s", diff)
	}

	skipWithoutMkfs(t)
	_, err = CreateImage(t.Context(), Source{Dir: dir}, filepath.Join(t.TempDir(), "image"), mkfsErofs{}, testLayouts()["lz4"], 0)
	if err == nil || !strings.Contains(err.Error(), "has extended attributes, which only the native producer keeps") {
		t.Errorf("mkfs.erofs: error %v, want one about extended attributes", err)
	}
}

// A file that is no longer what it was when the directory was read is an error
// that names it.
func TestDirChanges(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"longer":  func(path string) error { return os.WriteFile(path, make([]byte, 5001), 0o600) },
		"shorter": func(path string) error { return os.Truncate(path, 4999) },
		"touched": func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"replaced": func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			other := path + ".new"
			return errors.Join(os.WriteFile(other, make([]byte, 5000), 0o600),
				os.Chtimes(other, time.Time{}, info.ModTime()), os.Rename(other, path))
		},
		"removed": os.Remove,
		"a symlink": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "changing")
			if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
				t.Fatal(err)
			}
			tree, err := readTree(t.Context(), Source{Dir: dir}, native{}, testLayouts()["lz4"])
			if err != nil {
				t.Fatal(err)
			}
			defer tree.close()
			if err := tree.writer.Digest(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = tree.writeImage(t.Context(), f, 0)
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one that names %s", err, path)
			}
		})
	}
}

func TestUnseenXattrs(t *testing.T) {
	file := &cpio.Node{Mode: cpio.TypeRegular, Xattrs: map[string][]byte{"user.x": nil, "security.capability": nil, "system.posix_acl_access": nil}}
	dir := &cpio.Node{Mode: cpio.TypeDir, Children: map[string]*cpio.Node{"file": file}, Xattrs: map[string][]byte{"security.selinux": nil}}
	for _, tt := range []struct{ config, want string }{
		{"", ""},
		{"CONFIG_EROFS_FS=y\n", "4 without CONFIG_EROFS_FS_XATTR"},
		{"CONFIG_EROFS_FS_XATTR=y\n", "1 without CONFIG_EROFS_FS_POSIX_ACL, 2 without CONFIG_EROFS_FS_SECURITY"},
		{"CONFIG_EROFS_FS_XATTR=y\nCONFIG_EROFS_FS_SECURITY=y\nCONFIG_EROFS_FS_POSIX_ACL=y\n", ""},
	} {
		if got := parseKernelConfig([]byte(tt.config)).unseenXattrs(cpio.NewTree(dir)); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.config, got, tt.want)
		}
	}
}
