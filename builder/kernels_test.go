package builder

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest/fixtures"
)

// What real kernels need, for every backend and bootfs type that they serve.
func TestRealKernels(t *testing.T) {
	for _, test := range []struct {
		fixture string
		refused []bootconf.Backend
		// most modules for a raw partition on virtio: each is paid for at boot
		most int
	}{
		{"kernel-6.1", []bootconf.Backend{bootconf.File}, 11},
		{"kernel-6.12", nil, 5},
		{"kernel-sid", nil, 5},
	} {
		t.Run(test.fixture, func(t *testing.T) {
			kernel := fixtures.OpenKernel(t, test.fixture)
			x, err := kmod.Open(kernel.Modules, kernel.Version)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(kernel.Config)
			if err != nil {
				t.Fatal(err)
			}
			depends := map[string][]string{}
			for _, b := range bootconf.AutoOrder {
				if err := CheckBackend(b, x, text); (err != nil) != slices.Contains(test.refused, b) {
					t.Errorf("CheckBackend(%s) = %v", b, err)
				}
				if slices.Contains(test.refused, b) {
					continue
				}
				types := []string{""}
				if b.OnBootfs() {
					types = []string{"ext4", "xfs", "btrfs", "vfat"}
				}
				for _, fs := range types {
					o := MiniOptions{
						Modules: x, KernelConfig: text, Compress: compress.Zstd, ImageCompressed: b != bootconf.PmemDAX,
						Config: config(t, "backend "+string(b), "bootfstype "+fs), Storage: []string{"virtio"},
					}
					modules, err := planModules(&o)
					if err != nil {
						t.Errorf("%s %s: %v", b, fs, err)
						continue
					}
					if b == bootconf.Block && len(modules) > test.most {
						t.Errorf("%s: %d modules; want at most %d: %v", b, len(modules), test.most, moduleLines(modules))
					}
					checkLoadable(t, x, modules, depends)
				}
			}
			for _, s := range StorageNames() {
				o := MiniOptions{
					Modules: x, KernelConfig: text, Compress: compress.Zstd,
					Config: config(t, "backend block"), Storage: []string{s},
				}
				modules, err := planModules(&o)
				if err != nil {
					// Not every kernel has every driver, but it must be that.
					if !strings.Contains(err.Error(), "for storage "+s) {
						t.Errorf("storage %s: %v", s, err)
					}
					continue
				}
				checkLoadable(t, x, modules, depends)
			}
		})
	}
}

// checkLoadable compares the order with what the modules themselves say that
// they depend on, and proves that all of it is there. depends keeps what was
// read: unpacking takes long.
func checkLoadable(t *testing.T, x *kmod.Index, modules []bootconf.Module, depends map[string][]string) {
	t.Helper()
	checkOrder(t, modules)
	listed := map[string]bool{}
	for _, m := range modules {
		listed[m.Name()] = true
	}
	for _, m := range modules {
		if _, ok := depends[m.Name()]; !ok {
			data, err := x.Read(m.Name())
			if err != nil {
				t.Fatal(err)
			}
			_, rest, ok := bytes.Cut(data, []byte("\x00depends="))
			if !ok {
				t.Fatalf("%s has no depends=", m.Path)
			}
			value, _, _ := bytes.Cut(rest, []byte{0})
			depends[m.Name()] = strings.FieldsFunc(kmod.Normalize(string(value)), func(r rune) bool { return r == ',' })
		}
		for _, dep := range depends[m.Name()] {
			if listed[dep] && !slices.Contains(m.After, dep) {
				t.Errorf("%s depends on %s, and does not wait for it: %v", m.Path, dep, m.After)
			} else if !listed[dep] && !x.Builtin(dep) {
				t.Errorf("%s depends on %s, which is not in the list", m.Path, dep)
			}
		}
	}
}

// The size that is promised for Linux 6.1, less what storage-init itself takes.
func TestModuleBytes(t *testing.T) {
	kernel := fixtures.OpenKernel(t, "kernel-6.1")
	x, err := kmod.Open(kernel.Modules, kernel.Version)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "storage-init")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config []string
		most   int
	}{
		{[]string{"backend block"}, 240_000},
		{[]string{"backend loop", "bootfstype ext4"}, 800_000},
	} {
		o := MiniOptions{
			Modules: x, Config: config(t, test.config...), Storage: []string{"virtio"},
			StorageInit: program, Compress: compress.Zstd,
		}
		var b bytes.Buffer
		modules, err := WriteMini(&b, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %d modules, %d bytes", test.config, len(modules), b.Len())
		if b.Len() > test.most {
			t.Errorf("%v: %d bytes; want at most %d", test.config, b.Len(), test.most)
		}
	}
}

func realKernel(t *testing.T, fixture string) (*kmod.Index, []byte) {
	t.Helper()
	kernel := fixtures.OpenKernel(t, fixture)
	x, err := kmod.Open(kernel.Modules, kernel.Version)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(kernel.Config)
	if err != nil {
		t.Fatal(err)
	}
	return x, text
}

// without is a kernel's module directory that lacks a file which its lists name.
func without(t *testing.T, kernel fixtures.Kernel, folder, name string) *kmod.Index {
	t.Helper()
	dir := t.TempDir()
	// Everything is a link, but for the folders on the way.
	for at := "."; ; {
		if err := os.MkdirAll(filepath.Join(dir, at), 0o755); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(kernel.Modules, at))
		if err != nil {
			t.Fatal(err)
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(folder, at), "/"), "/")
		for _, e := range entries {
			if e.Name() == next || at == folder && e.Name() == name {
				continue
			}
			if err := os.Symlink(filepath.Join(kernel.Modules, at, e.Name()), filepath.Join(dir, at, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if at == folder {
			break
		}
		at = filepath.Join(at, next)
	}
	x, err := kmod.Open(dir, kernel.Version)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Signed modules bring what computes their digest faster, in front.
func TestAccelerate(t *testing.T) {
	plan := func(t *testing.T, fixture string, change func(*MiniOptions)) []bootconf.Module {
		t.Helper()
		x, text := realKernel(t, fixture)
		o := MiniOptions{
			Modules: x, KernelConfig: text, Compress: compress.Zstd, Config: config(t, "backend pmem"), Storage: []string{"virtio"},
		}
		change(&o)
		modules, err := planModules(&o)
		if err != nil {
			t.Fatal(err)
		}
		plain := moduleLines(modules)
		if modules, err = o.accelerate(modules); err != nil {
			t.Fatal(err)
		}
		if len(modules) > len(plain) {
			for _, m := range modules[1:] {
				if !slices.Contains(m.After, modules[0].Name()) {
					t.Errorf("%s does not wait for the first module", m.Path)
				}
			}
		}
		return modules
	}
	for fixture, want := range map[string]string{
		"kernel-6.1":  "- sha256_ssse3.ko cpu=0089,009C,0125 optional",
		"kernel-6.12": "- sha256_ssse3.ko cpu=0089,009C,0125,013D optional",
	} {
		t.Run(fixture, func(t *testing.T) {
			if got := moduleLines(plan(t, fixture, func(*MiniOptions) {}))[0]; got != want {
				t.Errorf("the first module is %q, want %q", got, want)
			}
		})
	}
	for name, change := range map[string]func(*MiniOptions){
		"stripped": func(o *MiniOptions) { o.StripSignatures = true },
		"not verified": func(o *MiniOptions) {
			o.KernelConfig = bytes.ReplaceAll(o.KernelConfig, []byte("CONFIG_MODULE_SIG=y"), nil)
		},
		"asked for": func(o *MiniOptions) { o.ExtraModules = []string{"sha256_ssse3"} },
		"not installed": func(o *MiniOptions) {
			o.Modules = without(t, fixtures.OpenKernel(t, "kernel-6.1"), "kernel/arch/x86/crypto", "sha256-ssse3.ko")
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, line := range moduleLines(plan(t, "kernel-6.1", change)) {
				if strings.Contains(line, "optional") {
					t.Errorf("there is %q", line)
				}
			}
		})
	}
	t.Run("few bytes", func(t *testing.T) {
		x, _ := realKernel(t, "kernel-6.1")
		o := MiniOptions{Modules: x}
		modules := []bootconf.Module{{Path: "/lib/modules/libcrc32c.ko"}}
		got, err := o.accelerate(modules)
		if err != nil || len(got) != 1 {
			t.Errorf("accelerate = %v, %v; want the one module", got, err)
		}
	})
}
