package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"initoverlayfs": main})
}

const testKernel = "6.1.0-9-amd64"

// TestScripts runs testdata/script. Each script finds in its environment
//
//	KVER       the version of a kernel
//	MODULES    its module directory, with its configuration
//	INITRAMFS  an initramfs of the kind initramfs-tools
//	STATIC     a storage-init that does nothing
//	DYNAMIC    one that needs a dynamic linker
//	TOOLLESS   a PATH that has nothing but the command itself
//	BZIMAGE    the begin of a kernel that unpacks itself to 16 to 48 MiB
//	QEMU       a program that behaves as if it were QEMU, see fakeQEMU
func TestScripts(t *testing.T) {
	for _, tool := range []string{"mkfs.erofs", "fakeroot", "mke2fs", "mtype", "sfdisk", "qemu-img", "grub-mkimage"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	modules := writeKernel(t, dir)
	env := []string{
		"KVER=" + testKernel,
		"MODULES=" + modules,
		"INITRAMFS=" + write("source.img", sourceArchive(t), 0o600),
		"STATIC=" + write("static", emptyProgram(t, false), 0o755),
		"DYNAMIC=" + write("dynamic", emptyProgram(t, true), 0o755),
		"BZIMAGE=" + write("bzImage", bzImage(), 0o644),
		"QEMU=" + write("qemu", []byte(fakeQEMU), 0o755),
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			programs, _, _ := strings.Cut(e.Getenv("PATH"), string(os.PathListSeparator))
			e.Vars = append(e.Vars, append(env, "TOOLLESS="+programs)...)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fails": fails, "digest": digest},
		Condition: func(name string) (bool, error) {
			if name != "installed" { // initoverlayfs itself, on this machine
				return false, fmt.Errorf("unknown condition %s", name)
			}
			_, err := os.Stat("/usr/lib/initoverlayfs/storage-init")
			return err == nil, nil
		},
	})
}

// fails STATUS PROGRAM ARGUMENT...: the program must end with this status, say
// why in one line "initoverlayfs: error: ...", and print nothing.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails STATUS PROGRAM ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("ended with %v, want status %d", err, want)
	}
	if got := strings.Count(ts.ReadFile("stderr"), "initoverlayfs: error: "); got != 1 {
		ts.Fatalf("%d error lines, want 1", got)
	}
	if out := ts.ReadFile("stdout"); out != "" && !strings.HasPrefix(out, "{") {
		ts.Fatalf("it printed %q", out)
	}
}

// digest FILE... compares files: all have the same content.
func digest(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: digest FILE FILE...")
	}
	same := true
	for _, name := range args[1:] {
		same = same && ts.ReadFile(name) == ts.ReadFile(args[0])
	}
	if same == neg {
		ts.Fatalf("the same content: %t", same)
	}
}

func writeKernel(t *testing.T, root string) string {
	t.Helper()
	k := kmodtest.Kernel{Version: testKernel}
	for _, m := range []string{"erofs", "overlay", "loop", "ext4", "vfat", "nls_cp437", "nls_ascii", "virtio_pci", "virtio_blk", "nd_pmem", "nd_e820"} {
		k.Modules = append(k.Modules, kmodtest.Module{File: "kernel/" + m + ".ko"})
	}
	modules := kmodtest.Write(t, root, k)
	config := "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\nCONFIG_EROFS_FS_ZIP=y\n" +
		"CONFIG_FS_DAX=y\nCONFIG_RD_ZSTD=y\nCONFIG_RD_GZIP=y\n"
	if err := os.WriteFile(filepath.Join(modules, "config"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return modules
}

// sourceArchive is a gzip-compressed initramfs with what tells its generator.
func sourceArchive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := compress.NewWriter(compress.Gzip, &b)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.NewWriter(z)
	const dir, file = cpio.TypeDir | 0o755, cpio.TypeRegular | 0o755
	for i, e := range []struct {
		name string
		mode uint32
		body string
	}{
		{"conf", dir, ""},
		{"conf/initramfs.conf", file, "MODULES=most\n"},
		{"dev", dir, ""},
		{"dev/console", cpio.TypeChar | 0o600, ""},
		{"init", file, "#!/bin/sh\n"},
		{"sbin", dir, ""},
		{"sbin/run-init", file, "klibc"},
		{"scripts", dir, ""},
		{"scripts/functions", file, strings.Repeat("a shell function\n", 5000)},
	} {
		h := cpio.Header{
			Name: e.name, Ino: uint32(i + 1), Mode: e.mode, NLink: 1, MTime: 1_700_000_000, Size: int64(len(e.body)),
			RDevMajor: 5, RDevMinor: 1,
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// emptyProgram is the least that is an ELF executable for amd64.
func emptyProgram(t *testing.T, dynamic bool) []byte {
	t.Helper()
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56,
	}
	if dynamic {
		h.Phnum = 1
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	if err := binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_INTERP)}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bzImage is the header of a kernel for amd64.
func bzImage() []byte {
	b := make([]byte, 0x400)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint64(b[0x258:], 16<<20) // preferred address
	binary.LittleEndian.PutUint32(b[0x260:], 32<<20-4096)
	return b
}

// fakeQEMU writes what a guest would write to its two serial ports, which are
// the file descriptors 3 and 4; with source.img it is a plain boot. It puts its arguments into the file that
// QEMU_ARGS names, and boots badly if QEMU_FAILS is set.
const fakeQEMU = `#!/bin/sh
case $* in *-version*) echo "QEMU emulator version 10.0.0"; exit;; esac
printf '%s\n' "$@" >"$QEMU_ARGS"
echo '<6>[    1.500000] Run /init as init process' >&3
if [ -n "$QEMU_FAILS" ]; then
	echo '<3>[    1.600000] storage-init: fatal: no image on /dev/vda1' >&3
	echo '<6>[    1.700000] reboot: Restarting system' >&3
	exit
fi
case $* in
*source.img*) ;;
*) echo '<6>[    2.000000] storage-init: handover backend=block image=x verified=none us=2000000' >&3 ;;
esac
echo '<30>[    2.250000] systemd[1]: Hello.' >&3
echo '<30>[    9.000000] systemd[1]: Reached target multi-user.target' >&3
echo '{"event":"done","ok":true,"mem_available_kb":4711,"record":{"backend":"block"}}' >&4
`

// An interrupted build leaves nothing.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	source := filepath.Join(dir, "source.img")
	if err := os.WriteFile(source, sourceArchive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }}
	if got := run(ctx, a, []string{"image", "create", source, filepath.Join(dir, "image")}); got != exitFailure {
		t.Errorf("status %d, want %d", got, exitFailure)
	}
	if _, err := os.Stat(filepath.Join(dir, "image")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("image: %v, want that there is none", err)
	}
	if !strings.Contains(stderr.String(), "initoverlayfs: error: ") || stdout.Len() > 0 {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}
