package kmod_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder/kmod"
)

// kernels finds the kernels that are installed here. Without any, or without
// kmod's own tools, there is nothing to compare with.
func kernels(t *testing.T) (dirs []string) {
	t.Helper()
	dirs, err := filepath.Glob("/lib/modules/*/modules.dep")
	if err != nil {
		t.Fatal(err)
	}
	_, errModinfo := exec.LookPath("modinfo")
	_, errModprobe := exec.LookPath("modprobe")
	if len(dirs) == 0 || errModinfo != nil || errModprobe != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs an installed kernel and modinfo and modprobe")
		}
		t.Skip("needs an installed kernel and modinfo and modprobe")
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, stderr.Bytes())
	}
	return string(out)
}

// The closure over real dependencies must be that of the modules' own depends=
// lines, which modinfo reads from the modules themselves, and each must be of
// an earlier place than its user.
func TestClosureLikeModinfo(t *testing.T) {
	for _, dir := range kernels(t) {
		kver := filepath.Base(dir)
		x, err := kmod.Open(dir, kver)
		if err != nil {
			t.Fatal(err)
		}
		var files []string
		for line := range strings.Lines(readFile(t, filepath.Join(dir, "modules.dep"))) {
			file, _, _ := strings.Cut(line, ":")
			files = append(files, filepath.Join(dir, file))
		}
		depends := map[string][]string{}
		name := ""
		var deps []string
		for line := range strings.Lines(output(t, "modinfo", files...)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			switch key {
			case "filename":
				deps = nil
			case "depends":
				deps = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
			case "name":
				name = kmod.Normalize(value)
				depends[name] = deps
			}
		}
		if len(depends) < len(files)*9/10 {
			t.Fatalf("kernel %s: modinfo tells of %d modules of %d", kver, len(depends), len(files))
		}
		noSoft := func(string, string) bool { return true }
		for name := range depends {
			want := map[string]bool{}
			var visit func(string)
			visit = func(n string) {
				n = kmod.Normalize(n)
				if x.Builtin(n) || want[n] {
					return
				}
				want[n] = true
				for _, d := range depends[n] {
					visit(d)
				}
			}
			visit(name)
			list, err := x.Closure(noSoft, name)
			if err != nil {
				t.Errorf("kernel %s: %v", kver, err)
				continue
			}
			place := map[string]int{}
			for i, m := range list {
				place[m.Name] = i
			}
			if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(place))); diff != "" {
				t.Errorf("kernel %s: Closure(%s) (-modinfo +got):\n%s", kver, name, diff)
			}
			for _, m := range list {
				for _, d := range depends[m.Name] {
					d = kmod.Normalize(d)
					if i, ok := place[d]; ok && (i >= place[m.Name] || !slices.Contains(m.After, d)) {
						t.Errorf("kernel %s: Closure(%s): %s needs %s and is after %v", kver, name, m.Name, d, m.After)
					}
				}
			}
		}
		t.Logf("kernel %s: %d modules compared", kver, len(depends))
	}
}

// With soft dependencies, what modprobe would load must be in the closure. It
// may be longer: modprobe honours only the first line of a module that has
// several.
func TestClosureLikeModprobe(t *testing.T) {
	for _, dir := range kernels(t) {
		kver := filepath.Base(dir)
		x, err := kmod.Open(dir, kver)
		if err != nil {
			t.Fatal(err)
		}
		compared := 0
		for _, name := range []string{
			"erofs", "overlay", "ext4", "xfs", "btrfs", "vfat", "f2fs", "loop", "nd_pmem", "nd_e820", "virtio_pci",
			"virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ahci", "xhci_pci", "ohci_pci", "uhci_hcd", "usb_storage", "uas",
			"sdhci_pci", "sdhci_acpi", "mmc_block", "dm_verity",
		} {
			if !x.Has(name) || x.Builtin(name) {
				continue
			}
			list, err := x.Closure(nil, name)
			if err != nil {
				t.Errorf("kernel %s: %v", kver, err)
				continue
			}
			var missing []string
			for line := range strings.Lines(output(t, "modprobe", "-S", kver, "--show-depends", name)) {
				f := strings.Fields(line)
				if len(f) < 2 || f[0] != "insmod" {
					continue
				}
				want, _, _ := strings.Cut(filepath.Base(f[1]), ".")
				want = kmod.Normalize(want)
				if !slices.ContainsFunc(list, func(m kmod.Module) bool { return m.Name == want }) {
					missing = append(missing, want)
				}
			}
			if len(missing) > 0 {
				t.Errorf("kernel %s: Closure(%s) lacks %v, which modprobe loads", kver, name, missing)
			}
			compared++
		}
		t.Logf("kernel %s: %d modules compared", kver, compared)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
