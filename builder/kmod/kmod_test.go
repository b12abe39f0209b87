package kmod_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/builder/kmod/kmodtest"
)

const crc32cFeature = "cpu:type:x86,ven*fam*mod*:feature:*0094*"

// kernel has one module for each thing that a closure has to get right.
var kernel = kmodtest.Kernel{
	Version: "1.2.3-test",
	Modules: []kmodtest.Module{
		{File: "kernel/fs/erofs/erofs.ko.xz", Deps: []string{"kernel/lib/libcrc32c.ko"}, Aliases: []string{"fs-erofs"}},
		{File: "kernel/lib/libcrc32c.ko", Pre: []string{"crc32c"}},
		{File: "kernel/crypto/crc32c_generic.ko.zst", Aliases: []string{"crypto-crc32c", "crc32c"}},
		{File: "kernel/arch/x86/crypto/crc32c-intel.ko.gz", Aliases: []string{"crypto-crc32c", "crc32c", crc32cFeature}},
		{File: "kernel/fs/ext4.ko", Deps: []string{"kernel/fs/jbd2.ko"}, Pre: []string{"crypto-crc32c", "absent"}, Post: []string{"later"}},
		{File: "kernel/fs/jbd2.ko", Pre: []string{"crypto-crc32c"}},
		{File: "kernel/later.ko"},
		// Soft dependencies in a circle, one of which runs against a real one.
		{File: "kernel/a.ko", Pre: []string{"b"}},
		{File: "kernel/b.ko", Deps: []string{"kernel/a.ko"}, Pre: []string{"c"}},
		{File: "kernel/c.ko", Pre: []string{"b"}},
		// Needed for one CPU by one path and for the others by another.
		{File: "kernel/fast.ko", Deps: []string{"kernel/base.ko", "kernel/simd.ko"}, Aliases: []string{"sum", "cpu:type:x86,ven*fam*mod*:feature:*0081*"}},
		{File: "kernel/slow.ko", Deps: []string{"kernel/base.ko"}, Aliases: []string{"sum"}},
		{File: "kernel/base.ko"},
		{File: "kernel/simd.ko"},
		{File: "kernel/user.ko", Pre: []string{"sum"}},
		// More than one feature, and a choice of accelerated modules.
		{File: "kernel/sse.ko", Aliases: []string{"hash", "digest", "cpu:type:x86,ven*fam*mod*:feature:*0001*", "cpu:type:x86,ven*fam*mod*:feature:*0002*"}},
		{File: "kernel/plain.ko", Aliases: []string{"hash"}},
		{File: "kernel/neon.ko", Aliases: []string{"mix", "cpu:type:*:feature:*,0004,*"}},
		{File: "kernel/usbdisk.ko", Aliases: []string{"usb:v13FDp3940d0[0-2]*dc*dsc*dp*ic*isc*ip*in*"}},
		{File: "kernel/broken.ko", Deps: []string{"kernel/gone.ko"}},
		{File: "kernel/self.ko", Deps: []string{"kernel/loop-a.ko"}},
		{File: "kernel/loop-a.ko", Deps: []string{"kernel/loop-b.ko"}},
		{File: "kernel/loop-b.ko", Deps: []string{"kernel/loop-a.ko"}},
		{File: "kernel/hasbuiltin.ko", Deps: []string{"kernel/virtio-ring.ko"}},
	},
	Builtin: []string{"kernel/lib/hash.ko", "kernel/drivers/virtio/virtio_pci.ko", "kernel/virtio-ring.ko"},
	Modinfo: []string{"mixer.alias=mix", "ghost.alias=only-builtin", "ghost.license=GPL"},
}

func open(t *testing.T, k kmodtest.Kernel) *kmod.Index {
	t.Helper()
	x, err := kmod.Open(kmodtest.Write(t, t.TempDir(), k), k.Version)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestClosure(t *testing.T) {
	all := func(name string, after ...string) kmod.Module {
		return kmod.Module{Name: name, After: after, Requests: []int{0}}
	}
	onCPU := func(name, feature string, without bool, after ...string) kmod.Module {
		return kmod.Module{Name: name, After: after, CPUFeature: feature, CPUWithout: without, Requests: []int{0}}
	}
	for _, test := range []struct {
		names string
		want  []kmod.Module
	}{
		{"simd", []kmod.Module{all("simd")}},
		{"virtio-pci", nil},
		{"only-builtin", nil},
		{"hasbuiltin", []kmod.Module{all("hasbuiltin")}},
		{"fs-erofs", []kmod.Module{
			onCPU("crc32c_generic", "0094", true), onCPU("crc32c_intel", "0094", false),
			all("libcrc32c", "crc32c_generic", "crc32c_intel"), all("erofs", "libcrc32c"),
		}},
		{"erofs ext4", []kmod.Module{
			{Name: "crc32c_generic", CPUFeature: "0094", CPUWithout: true, Requests: []int{0, 1}},
			{Name: "crc32c_intel", CPUFeature: "0094", Requests: []int{0, 1}},
			{Name: "jbd2", After: []string{"crc32c_generic", "crc32c_intel"}, Requests: []int{1}}, {Name: "libcrc32c", After: []string{"crc32c_generic", "crc32c_intel"}, Requests: []int{0}},
			{Name: "erofs", After: []string{"libcrc32c"}, Requests: []int{0}}, {Name: "ext4", After: []string{"crc32c_generic", "crc32c_intel", "jbd2"}, Requests: []int{1}},
		}},
		// What is asked for by its own name has no condition.
		{"libcrc32c crc32c-intel", []kmod.Module{
			{Name: "crc32c_generic", CPUFeature: "0094", CPUWithout: true, Requests: []int{0}},
			{Name: "crc32c_intel", Requests: []int{0, 1}},
			{Name: "libcrc32c", After: []string{"crc32c_generic", "crc32c_intel"}, Requests: []int{0}},
		}},
		{"user", []kmod.Module{
			all("base"), onCPU("simd", "0081", false),
			onCPU("fast", "0081", false, "base", "simd"), onCPU("slow", "0081", true, "base"),
			all("user", "fast", "slow"),
		}},
		{"hash", []kmod.Module{all("plain")}},
		{"digest", []kmod.Module{all("sse")}},
		{"mix", []kmod.Module{onCPU("neon", "0004", false)}},
	} {
		t.Run(test.names, func(t *testing.T) {
			names := strings.Fields(test.names)
			x := open(t, kernel)
			got, err := x.Closure(nil, names...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("Closure(%v) (-want +got):\n%s", names, diff)
			}
		})
	}
}

// A circle of soft dependencies must end, from wherever it is entered, with
// every real dependency before its user.
func TestClosureCircles(t *testing.T) {
	x := open(t, kernel)
	for _, name := range []string{"a", "b", "c"} {
		done := make(chan []kmod.Module, 1)
		go func() {
			list, err := x.Closure(nil, name)
			if err != nil {
				t.Error(err)
			}
			done <- list
		}()
		select {
		case list := <-done:
			place := map[string]int{}
			for i, m := range list {
				place[m.Name] = i
			}
			if len(place) != 3 || place["a"] >= place["b"] {
				t.Errorf("Closure(%s) = %v; want a before b, and c", name, list)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("Closure(%s) does not end", name)
		}
	}
}

func TestClosureSkip(t *testing.T) {
	got, err := open(t, kernel).Closure(func(module, softdep string) bool {
		return module == "user" && softdep == "sum"
	}, "user")
	if err != nil || len(got) != 1 || got[0].Name != "user" {
		t.Errorf("Closure(skip, user) = %v, %v; want user alone", got, err)
	}
}

func TestClosureErrors(t *testing.T) {
	x := open(t, kernel)
	for _, test := range []struct {
		names    []string
		notFound bool
		want     []string
	}{
		{[]string{"simd", "nowhere", "neither"}, true, []string{"1.2.3-test", "nowhere", "neither"}},
		{[]string{"broken"}, true, []string{"1.2.3-test", "broken", "gone"}},
		{[]string{"self"}, false, []string{"1.2.3-test", "loop_", "depends on itself"}},
	} {
		_, err := x.Closure(nil, test.names...)
		if err == nil {
			t.Errorf("Closure(%v) has no error", test.names)
			continue
		}
		if errors.Is(err, kmod.ErrNotFound) != test.notFound {
			t.Errorf("Closure(%v): error %q: is ErrNotFound: %t", test.names, err, !test.notFound)
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Closure(%v): error %q does not name %q", test.names, err, want)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	root := t.TempDir()
	dir := kmodtest.Write(t, root, kernel)
	bad := kmodtest.Write(t, root, kmodtest.Kernel{Version: "2-bad"})
	if err := os.WriteFile(filepath.Join(bad, "modules.dep"), []byte("a.ko:\n../../../evil.ko:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(root, "lib/modules/3-empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ dir, kver, want string }{
		{filepath.Join(filepath.Dir(dir), "9-none"), "9-none", "there are 1.2.3-test, 2-bad"},
		{bad, "2-bad", "modules.dep of kernel 2-bad: line 2"},
		{empty, "3-empty", "has no modules.dep"},
	} {
		if _, err := kmod.Open(test.dir, test.kver); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Open(%s) error = %v; want %q in it", test.kver, err, test.want)
		}
	}
}

func TestMatch(t *testing.T) {
	x := open(t, kernel)
	for _, test := range []struct {
		alias   string
		want    []string
		builtin bool
	}{
		{"crypto-crc32c", []string{"crc32c_generic", "crc32c_intel"}, false},
		{"crypto_crc32c", []string{"crc32c_generic", "crc32c_intel"}, false},
		{"usb:v13FDp3940d0190dc00dsc00dp00ic08isc06ip50in00", []string{"usbdisk"}, false},
		{"usb:v13FDp3940d0390dc00dsc00dp00ic08isc06ip50in00", nil, false},
		{"mix", []string{"neon"}, true},
		{"only-builtin", nil, true},
		{"", nil, false},
	} {
		got, builtin := x.Match(test.alias)
		if diff := cmp.Diff(test.want, got); diff != "" || builtin != test.builtin {
			t.Errorf("Match(%q) builtin = %t, want %t; modules (-want +got):\n%s", test.alias, builtin, test.builtin, diff)
		}
	}
}

// storage-init compares these with what sysfs has, letter by letter.
func TestDeviceAliases(t *testing.T) {
	k := kernel
	k.Modules = append(slices.Clone(k.Modules), kmodtest.Module{
		File:    "kernel/sd-mod.ko",
		Aliases: []string{"scsi:t-0x00*", "fs-sd", "block-major-8-*", "cpu:type:*", "dmi:bvn a*", "acpi*:INT-33BB:*"},
	})
	x := open(t, k)
	for module, want := range map[string][]string{
		"sd-mod": {"scsi:t-0x00*", "acpi*:INT-33BB:*"}, "erofs": nil, "nowhere": nil,
	} {
		if diff := cmp.Diff(want, x.DeviceAliases(module)); diff != "" {
			t.Errorf("DeviceAliases(%s) (-want +got):\n%s", module, diff)
		}
	}
}

func TestRead(t *testing.T) {
	for _, absolute := range []bool{false, true} {
		k := kernel
		k.Absolute = absolute
		x := open(t, k)
		for _, m := range k.Modules {
			name, _, _ := strings.Cut(filepath.Base(m.File), ".")
			got, err := x.Read(name)
			if err != nil {
				t.Errorf("absolute %t: %v", absolute, err)
			} else if !bytes.Equal(got, kmodtest.ELF(m)) {
				t.Errorf("absolute %t: Read(%s) differs from what was packed", absolute, name)
			}
		}
		if _, err := x.Read("virtio_pci"); !errors.Is(err, kmod.ErrNotFound) {
			t.Errorf("Read of a built-in module: %v; want ErrNotFound", err)
		}
	}
}

func TestReadErrors(t *testing.T) {
	dir := kmodtest.Write(t, t.TempDir(), kernel)
	x, err := kmod.Open(dir, kernel.Version)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ file, content, module string }{
		{"kernel/simd.ko", "text", "simd"},
		{"kernel/fs/erofs/erofs.ko.xz", "\xfd7zXZ\x00\x00", "erofs"},
		{"kernel/crypto/crc32c_generic.ko.zst", "\x28\xb5\x2f\xfd", "crc32c_generic"},
		{"kernel/arch/x86/crypto/crc32c-intel.ko.gz", "", "crc32c_intel"},
	} {
		file := filepath.Join(dir, test.file)
		if err := os.WriteFile(file, []byte(test.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Read(test.module); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("Read(%s) of a bad file: error = %v; want one that names %s", test.module, err, file)
		}
	}
}

func TestFirmware(t *testing.T) {
	module := kmodtest.ELF(kmodtest.Module{
		File:     "kernel/x.ko",
		Firmware: []string{"b/two.bin", "a.bin", "b/two.bin", "../../etc/shadow", "/etc/shadow"},
		Signed:   true,
	})
	got, err := kmod.Firmware(module)
	if diff := cmp.Diff([]string{"a.bin", "b/two.bin"}, got); err != nil || diff != "" {
		t.Errorf("Firmware: %v (-want +got):\n%s", err, diff)
	}
	if _, err := kmod.Firmware([]byte("\x7fELF")); err == nil {
		t.Error("Firmware of a truncated module has no error")
	}
}

func TestStripSignature(t *testing.T) {
	bare := kmodtest.ELF(kmodtest.Module{File: "kernel/x.ko"})
	twice := kmodtest.Sign(kmodtest.Sign(bare))
	const magic = "~Module signature appended~\n"
	// A signature of the older kind, which also names the signer and the key.
	x509 := append(bytes.Clone(bare), "signerkeysig"...)
	x509 = append(x509, 1, 4, 1, 6, 3, 0, 0, 0)
	x509 = append(binary.BigEndian.AppendUint32(x509, 3), magic...)
	for _, test := range []struct {
		name     string
		in, want []byte
	}{
		{"none", bare, bare},
		{"PKCS#7", kmodtest.Sign(bare), bare},
		{"X.509", x509, bare},
		{"only the last", twice, kmodtest.Sign(bare)},
		{"magic inside", append([]byte(magic), bare...), append([]byte(magic), bare...)},
	} {
		got, err := kmod.StripSignature(test.in)
		if err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%s: StripSignature = %d bytes, %v; want %d bytes", test.name, len(got), err, len(test.want))
		}
	}
	for name, bad := range map[string][]byte{
		"only magic": []byte(magic),
		"too long":   append([]byte("\x7fELF\x00\x00\x02\x00\x00\x00\x00\x00\xff\xff\xff\xff"), magic...),
		"whole file": append([]byte("\x7fELF\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x04"), magic...),
	} {
		if got, err := kmod.StripSignature(bad); err == nil {
			t.Errorf("%s: StripSignature = %q without an error", name, got)
		}
	}
}
