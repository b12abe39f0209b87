package disks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// tinyTree is an initramfs whose init is the guest.
func tinyTree(t *testing.T) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	guest, err := os.ReadFile(filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tiny.cpio")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	const folder = cpio.TypeDir | 0o755
	for i, e := range []struct {
		name string
		mode uint32
		body string
	}{
		{".", folder, ""}, {"dev", folder, ""}, {"dev/console", cpio.TypeChar | 0o600, ""},
		{"init", cpio.TypeRegular | 0o755, string(guest)}, {"proc", folder, ""}, {"run", folder, ""}, {"sys", folder, ""},
	} {
		h := &cpio.Header{Name: e.name, Ino: uint32(i + 1), Mode: e.mode, NLink: 1, MTime: 1_700_000_000, Size: int64(len(e.body))}
		if e.mode&cpio.TypeMask == cpio.TypeChar {
			h.RDevMajor, h.RDevMinor = 5, 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// board is a folder that `disk --embedded` wrote.
type board struct {
	Region   struct{ Size int64 }
	Manifest *bootconf.Manifest

	dir string
}

func makeBoard(t *testing.T, backend bootconf.Backend) *board {
	t.Helper()
	kernel := fixtures.OpenKernel(t, debianKernel)
	b := &board{dir: filepath.Join(t.TempDir(), "board")}
	out := run(t, command(t, "disk", "--embedded", "--output", b.dir, "--kver", kernel.Version, "--kernel", kernel.Image,
		"--initramfs", tinyTree(t), "--modules-dir", kernel.Modules, "--backend", string(backend), "--json",
		"--append", followed(t)+" initoverlayfs.timeout=2 initoverlayfs.on_failure=reboot:0"))
	if err := json.Unmarshal(out, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// machine is the guest that the generated arguments of QEMU describe.
func (b *board) machine(t *testing.T) vmtest.Machine {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "qemu.args"))
	if err != nil {
		t.Fatal(err)
	}
	m := vmtest.Machine{Accel: vmtest.TCG, Timeout: 4 * time.Minute}
	args := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(args)%2 != 0 {
		t.Fatalf("qemu.args: %q", args)
	}
	for ; len(args) > 0; args = args[2:] {
		switch value := args[1]; args[0] {
		case "-m":
			if m.MemoryMiB, err = strconv.Atoi(value); err != nil {
				t.Fatal(err)
			}
		case "-kernel":
			m.Kernel = filepath.Join(b.dir, value)
		case "-initrd":
			m.Initrd = filepath.Join(b.dir, value)
		case "-append":
			m.Append = strings.Fields(strings.Trim(value, `"`))
		case "-device":
			m.Extra = append(m.Extra, "-device", strings.Replace(value, "file=", "file="+b.dir+"/", 1))
		default:
			t.Fatalf("qemu.args: unknown argument %s", args[0])
		}
	}
	return m
}

// TestEmbedded boots what is written for a board, with the image at the address
// that is written there, by its own arguments of QEMU.
func TestEmbedded(t *testing.T) {
	for _, test := range []struct {
		backend bootconf.Backend
		least   fixtures.Boots
	}{
		{bootconf.Pmem, fixtures.Some},
		{bootconf.PmemDAX, fixtures.All},
	} {
		t.Run(string(test.backend), func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			b := makeBoard(t, test.backend)
			m := b.machine(t)
			m.Expect = []vmtest.Milestone{vmtest.KernelToInit, vmtest.HandedOver, vmtest.InitfsInit}
			r, err := vmtest.Run(t.Context(), m)
			if err != nil {
				t.Fatalf("%v\n%s", err, endOfConsole(r.LogDir))
			}
			record, err := r.Done.BootRecord()
			if err != nil || record == nil || record.Backend != test.backend || record.ImageUUID != b.Manifest.Image.UUID {
				t.Errorf("record %+v, %v; want %s from the image %s", record, err, test.backend, b.Manifest.Image.UUID)
			}
			t.Logf("handover %.2f s, wall %.0f s", r.Times[vmtest.HandedOver], r.Wall.Seconds())
		})
	}
}

// TestEmbeddedElsewhere loads the image beside the region that the kernel was
// told of.
func TestEmbeddedElsewhere(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.Some)
	b := makeBoard(t, bootconf.Pmem)
	m := b.machine(t)
	for i, arg := range m.Extra {
		if file, _, ok := strings.Cut(arg, ",addr="); ok {
			m.Extra[i] = fmt.Sprintf("%s,addr=%#x,force-raw=on", file, 300<<20)
		}
	}
	r, err := vmtest.Run(t.Context(), m)
	if !errors.Is(err, vmtest.ErrFatal) {
		t.Fatalf("error = %v, want a fatal error of storage-init", err)
	}
	if want := "no pmem device with an EROFS image"; !strings.Contains(r.Fatal, want) && !strings.Contains(r.Fatal, "not an EROFS image") {
		t.Errorf("fatal line %q, want %q in it", r.Fatal, want)
	}
}
