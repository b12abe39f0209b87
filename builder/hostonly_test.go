package builder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
)

// sysTree makes a sysfs. A path that ends with "/" is a directory, "PATH -> T"
// a link to T below the root, "PATH = TEXT" a file.
func sysTree(t *testing.T, lines ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, line := range lines {
		path, target, link := strings.Cut(line, " -> ")
		path, text, _ := strings.Cut(path, " = ")
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			if err = os.MkdirAll(filepath.Join(root, target), 0o755); err == nil {
				err = os.Symlink(filepath.Join(root, target), full)
			}
		case strings.HasSuffix(line, "/"):
			err = os.MkdirAll(full, 0o755)
		default:
			err = os.WriteFile(full, []byte(text+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostModules(t *testing.T) {
	const pci = "devices/pci0000:00"
	bridge := []string{
		"devices/pci0000:00/modalias = pci:v0000sd00bc06sc04i00",
		"devices/pci0000:00/driver -> bus/pci/drivers/pcieport",
	}
	for _, test := range []struct {
		name string
		sys  []string
		want []string
		err  string
	}{
		{
			name: "partition of a virtio disk",
			sys: slices.Concat(bridge, []string{
				"dev/block/8:1 -> " + pci + "/04.0/virtio1/block/vda/vda1",
				pci + "/04.0/virtio1/block/vda/vda1/partition = 1",
				pci + "/04.0/driver -> bus/pci/drivers/virtio-pci",
				"bus/pci/drivers/virtio-pci/module -> module/virtio_pci",
				pci + "/04.0/virtio1/driver -> bus/virtio/drivers/virtio_blk",
				"bus/virtio/drivers/virtio_blk/module -> module/virtio_blk",
				pci + "/04.0/unbound/modalias = pci:v0000sd00bc01sc08i02",
			}),
			want: []string{"virtio_blk", "virtio_pci"},
		},
		{
			name: "drivers of the running kernel that are no modules",
			sys: slices.Concat(bridge, []string{
				"dev/block/8:1 -> " + pci + "/04.0/virtio1/block/vda",
				pci + "/04.0/driver -> bus/pci/drivers/virtio-pci",
				pci + "/04.0/modalias = pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00",
				pci + "/04.0/virtio1/driver -> bus/virtio/drivers/virtio_blk",
				pci + "/04.0/virtio1/modalias = virtio:d00000002v00001AF4",
			}),
			want: []string{"virtio_blk", "virtio_pci"},
		},
		{
			name: "a module of another name serves it now",
			sys: []string{
				"dev/block/8:1 -> " + pci + "/05.0/block/x",
				pci + "/05.0/driver -> bus/pci/drivers/old",
				"bus/pci/drivers/old/module -> module/old_nvme",
				pci + "/05.0/modalias = pci:v00001234d00001001sv00001AF4sd00000002bc01sc08i02",
			},
			want: []string{"nvme"},
		},
		{
			name: "built into the kernel to boot",
			sys: []string{
				"dev/block/8:1 -> " + pci + "/05.0/host0/target/0:0:0:0/block/sda",
				pci + "/05.0/driver -> bus/pci/drivers/ahci",
				"bus/pci/drivers/ahci/module -> module/ahci",
				pci + "/05.0/host0/target/0:0:0:0/driver -> bus/scsi/drivers/sd",
				pci + "/05.0/host0/target/0:0:0:0/modalias = scsi:t-0x00",
			},
			want: []string{"sd_mod", "ahci"},
		},
		{
			name: "NVMe behind a subsystem",
			sys: []string{
				"dev/block/8:1 -> devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p2",
				"devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p2/partition = 2",
				"devices/virtual/nvme-subsystem/nvme-subsys0/nvme0 -> " + pci + "/06.0/nvme/nvme0",
				pci + "/06.0/driver -> bus/pci/drivers/nvme",
				"bus/pci/drivers/nvme/module -> module/nvme",
			},
			want: []string{"nvme"},
		},
		{
			name: "a supplier, and a circle of them",
			sys: []string{
				"dev/block/8:1 -> devices/platform/mmc/block/mmcblk0",
				"devices/platform/mmc/supplier:platform:clock -> devices/virtual/devlink/clock--mmc",
				"devices/virtual/devlink/clock--mmc/supplier -> devices/platform/clock",
				"devices/platform/clock/driver -> bus/platform/drivers/clock",
				"bus/platform/drivers/clock/module -> module/loop",
				"devices/platform/clock/supplier:platform:mmc -> devices/virtual/devlink/mmc--clock",
				"devices/virtual/devlink/mmc--clock/supplier -> devices/platform/mmc",
			},
			want: []string{"loop"},
		},
		{
			name: "no module for a driver",
			sys: []string{
				"dev/block/8:1 -> " + pci + "/05.0/block/x",
				pci + "/05.0/driver -> bus/pci/drivers/odd",
				"bus/pci/drivers/odd/module -> module/odd_disk",
				pci + "/05.0/modalias = pci:v00004321",
			},
			err: "kernel 6.1.0-9-amd64 has neither the module odd_disk",
		},
		{
			name: "device mapper",
			sys: []string{
				"dev/block/8:1 -> devices/virtual/block/dm-0",
				"devices/virtual/block/dm-0/dm/name = root",
			},
			err: "it is made of others (dm)",
		},
		{
			name: "partition of a RAID",
			sys: []string{
				"dev/block/8:1 -> devices/virtual/block/md0/md0p1",
				"devices/virtual/block/md0/md0p1/partition = 1",
				"devices/virtual/block/md0/md/level = raid1",
			},
			err: "it is made of others (md)",
		},
		{name: "no such device", sys: []string{"devices/", "dev/block/"}, err: "block device 8:1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := MiniOptions{Modules: index(t, oldKernel()), Hostonly: true, HostDevice: "8:1", Sysfs: sysTree(t, test.sys...)}
			got, err := o.hostModules()
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("hostModules() = %v, %v; want an error with %q", got, err, test.err)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Errorf("hostModules(): %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestPlanModulesHostonly(t *testing.T) {
	o := MiniOptions{
		Modules: index(t, oldKernel()), Compress: compress.Zstd, Config: config(t, "backend block"),
		Hostonly: true, HostDevice: "259:0",
		Sysfs: sysTree(t,
			"dev/block/259:0 -> devices/pci/1/nvme/nvme0/nvme0n1",
			"devices/pci/1/driver -> bus/pci/drivers/nvme",
			"bus/pci/drivers/nvme/module -> module/nvme"),
	}
	modules, err := planModules(&o)
	if err != nil {
		t.Fatal(err)
	}
	if lines := moduleLines(modules); !slices.Contains(lines, "block nvme.ko") || len(lines) != 6 {
		t.Errorf("modules = %v; want those of every boot and nvme", lines)
	}
	// A pmem backend reads no disk: nothing of this machine is looked at.
	o.Config, o.Sysfs = config(t, "backend pmem"), "/nonexistent"
	if _, err := planModules(&o); err != nil {
		t.Error(err)
	}
}

func TestFindDevice(t *testing.T) {
	dev := t.TempDir()
	links := filepath.Join(dev, "disk/by-label")
	if err := os.MkdirAll(links, 0o755); err != nil {
		t.Fatal(err)
	}
	// The label is written as udev does it, and what it names is no disk.
	if err := os.Symlink("/dev/null", filepath.Join(links, `a\x20b\x2fc`)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		tag  string
		want string
	}{
		{"LABEL=a b/c", "is not a block device"},
		{"LABEL=other", "no such file"},
		{"/dev/null", "is not a block device"},
	} {
		tag, err := bootconf.ParseTag(test.tag)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := findDevice(dev, tag); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("findDevice(%s): error = %v; want %q in it", test.tag, err, test.want)
		}
	}
	if _, err := findDevice(dev, bootconf.Tag{}); err == nil {
		t.Error("findDevice without a tag has no error")
	}
	// A disk of this machine, if it has any.
	blocks, _ := filepath.Glob("/sys/class/block/*")
	for _, b := range blocks {
		numbers, err := os.ReadFile(filepath.Join(b, "dev"))
		if err != nil {
			continue
		}
		path := "/dev/" + filepath.Base(b)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		got, err := findDevice("/dev", bootconf.Tag{Kind: bootconf.TagPath, Value: path})
		if want := strings.TrimSpace(string(numbers)); err != nil || got != want {
			t.Errorf("findDevice(%s) = %q, %v; want %q as sysfs has it", path, got, err, want)
		}
	}
}

func TestUdevName(t *testing.T) {
	for in, want := range map[string]string{
		"root": "root", "EFI system": `EFI\x20system`, "a/b": `a\x2fb`, "größe": "größe", "#+-.:=@_": "#+-.:=@_", `\`: `\x5c`,
	} {
		if got := udevName(in); got != want {
			t.Errorf("udevName(%q) = %q; want %q", in, got, want)
		}
	}
}
