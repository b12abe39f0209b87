package peer

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder"
	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

func kernel() kmodtest.Kernel {
	return kmodtest.Kernel{Version: "6.1.0", Modules: []kmodtest.Module{
		{File: "kernel/fs/erofs/erofs.ko.xz", Deps: []string{"kernel/lib/libcrc32c.ko"}, Pre: []string{"crc32c"}},
		{File: "kernel/lib/libcrc32c.ko", Signed: true},
		{File: "kernel/crypto/crc32c-intel.ko", Aliases: []string{"crc32c", "crypto-crc32c", "cpu:type:x86,ven*fam*mod*:feature:*0094*"}},
		{File: "kernel/crypto/crc32c_generic.ko", Aliases: []string{"crc32c", "crypto-crc32c"}},
		{File: "kernel/drivers/block/loop.ko"},
		{File: "kernel/fs/overlayfs/overlay.ko"},
	}}
}

// program is an executable that does nothing, with or without a loader.
func program(t *testing.T, dynamic bool) []byte {
	t.Helper()
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64, Phentsize: 56,
	}
	if dynamic {
		h.Phnum = 1
	}
	var b bytes.Buffer
	for _, part := range []any{h, elf.Prog64{Type: uint32(elf.PT_INTERP)}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestErofsInitramfs(t *testing.T) {
	for _, tool := range []string{"mkfs.erofs", "fakeroot"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	tree := t.TempDir()
	busybox := filepath.Join(t.TempDir(), "busybox")
	for path, content := range map[string]string{filepath.Join(tree, "init"): "the full tree's init", busybox: string(program(t, false))} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k := kernel()
	o := Options{
		Source: builder.Source{Dir: tree}, KernelVersion: k.Version, ModulesDir: kmodtest.Write(t, t.TempDir(), k),
		Busybox: busybox, Output: filepath.Join(t.TempDir(), "initramfs.img"), TempDir: t.TempDir(),
	}
	if err := ErofsInitramfs(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	files := entries(t, o.Output)
	// Dependencies first; of crc32c the one that every CPU can run.
	want := `#!/bin/sh -e
insmod /modules/crc32c_generic.ko
insmod /modules/libcrc32c.ko
insmod /modules/loop.ko
insmod /modules/overlay.ko
insmod /modules/erofs.ko
mount -t devtmpfs devtmpfs /dev
mount -t erofs -o ro,loop /root.erofs /lower
mount -t tmpfs tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new
mount --move /dev /new/dev
export SYSTEMD_IN_INITRD=lenient
exec switch_root /new /init
`
	if diff := cmp.Diff(want, files["init"]); diff != "" {
		t.Errorf("init (-want +got):\n%s", diff)
	}
	for _, m := range k.Modules {
		name, _, _ := strings.Cut(filepath.Base(m.File), ".")
		if got, want := files["modules/"+name+".ko"], string(kmodtest.ELF(m)); name != "crc32c-intel" && got != want {
			t.Errorf("module %s has %d bytes, want %d", name, len(got), len(want))
		}
	}
	if files["bin/busybox"] != string(program(t, false)) || files["bin/sh"] != "busybox" {
		t.Errorf("busybox %q, sh %q", files["bin/busybox"], files["bin/sh"])
	}
	image, err := erofs.Open(strings.NewReader(files["root.erofs"]), int64(len(files["root.erofs"])))
	if err != nil {
		t.Fatal(err)
	}
	f, err := image.Open("init")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(f); err != nil || string(text) != "the full tree's init" {
		t.Errorf("init in the image: %q, %v", text, err)
	}
}

// What is missing is named, and no output is there then.
func TestErofsInitramfsFails(t *testing.T) {
	k := kernel()
	dir := kmodtest.Write(t, t.TempDir(), k)
	static, dynamic := filepath.Join(t.TempDir(), "static"), filepath.Join(t.TempDir(), "dynamic")
	for path, linked := range map[string]bool{static: false, dynamic: true} {
		if err := os.WriteFile(path, program(t, linked), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	good := Options{
		Source: builder.Source{Dir: t.TempDir()}, KernelVersion: k.Version, ModulesDir: dir,
		Busybox: static, Output: filepath.Join(t.TempDir(), "initramfs.img"), TempDir: t.TempDir(),
	}
	for name, test := range map[string]struct {
		edit func(o *Options)
		want string
	}{
		"modules": {func(o *Options) { o.ModulesDir = "/nonexistent" }, "/nonexistent"},
		"source":  {func(o *Options) { o.Source = builder.Source{Dir: "/nonexistent"} }, "/nonexistent"},
		"busybox": {func(o *Options) { o.Busybox = "/nonexistent" }, "/nonexistent"},
		"dynamic": {func(o *Options) { o.Busybox = dynamic }, "is not static"},
		"output":  {func(o *Options) { o.Output = "/nonexistent/initramfs.img" }, "/nonexistent"},
	} {
		o := good
		test.edit(&o)
		err := ErofsInitramfs(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
		for _, dir := range []string{filepath.Dir(good.Output), good.TempDir} {
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%s: left behind: %v, %v", name, left, err)
			}
		}
	}
}

func entries(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(body)
	}
}
