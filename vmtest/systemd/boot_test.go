package systemd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

const rootDisk = "root-bookworm.ext4"

// document is what `boot --json` prints.
type document struct {
	OK             bool     `json:"ok"`
	Backend        string   `json:"backend"`
	KernelToInitS  *float64 `json:"kernel_to_init_s"`
	HandoverS      *float64 `json:"handover_s"`
	InitfsInitS    *float64 `json:"initfs_init_s"`
	MultiUserS     *float64 `json:"multi_user_s"`
	MemAvailableKB *int64   `json:"mem_available_kb"`
	Accel          string   `json:"accel"`
	QEMU           string   `json:"qemu"`
	Error          string   `json:"error"`
	LogDir         string   `json:"log_dir"`

	Record *bootconf.Record `json:"record"`
	Done   *vmtest.Done     `json:"done"`
}

// boot runs the verb on the root disk to multi-user.target, and checks what
// holds for every good boot.
func boot(t testing.TB, kernel fixtures.Kernel, args ...string) document {
	t.Helper()
	cmd := command(t, append([]string{"boot", "--json", "--kver", kernel.Version, "--kernel", kernel.Image}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()
	var d document
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v: %v, %v\n%s%s", cmd.Args, runErr, err, stderr.Bytes(), stdout.Bytes())
	}
	if runErr != nil || !d.OK || d.Error != "" {
		t.Fatalf("%v: %v: %s\n%s", cmd.Args, runErr, d.Error, endOfConsole(d.LogDir))
	}
	milestones := []*float64{d.KernelToInitS, d.InitfsInitS, d.MultiUserS}
	if d.Record != nil {
		milestones = slices.Insert(milestones, 1, d.HandoverS)
	}
	last := 0.0
	for i, s := range milestones {
		if s == nil || *s < last {
			t.Fatalf("milestone %d is %v after %v: %+v", i, s, last, d)
		}
		last = *s
	}
	if d.MemAvailableKB == nil || *d.MemAvailableKB <= 0 || d.Accel == "" || d.QEMU == "" || d.Done == nil {
		t.Fatalf("the document lacks something: %+v", d)
	}
	// The image is gone, and whoever says so has looked: it has seen the root.
	if len(d.Done.ErofsMounts) > 0 || len(d.Done.ErofsSysfs) > 0 {
		t.Errorf("an EROFS is still mounted: %q %q", d.Done.ErofsMounts, d.Done.ErofsSysfs)
	}
	if !strings.Contains(d.Done.Mountinfo, " / / ") || !strings.Contains(d.Done.Mountinfo, " - ext4 ") {
		t.Errorf("no root filesystem in %q", d.Done.Mountinfo)
	}
	if !hasOption(d.Done.RootOptions, "rw") {
		t.Errorf("the root is mounted with %s, want rw", d.Done.RootOptions)
	}
	t.Logf("init %.2f s, first message %.2f s, multi-user %.2f s, usable %d of %d kB, fsck %q",
		*d.KernelToInitS, *d.InitfsInitS, *d.MultiUserS, d.Done.MemUsableKB, d.Done.MemTotalKB, d.Done.Fsck)
	return d
}

func hasOption(options, option string) bool {
	return slices.Contains(strings.Split(options, ","), option)
}

// endOfConsole is for the message of a failed boot; without a console it is
// empty.
func endOfConsole(logDir string) string {
	text, err := os.ReadFile(filepath.Join(logDir, "console.log"))
	if err != nil {
		return ""
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// machine is what two boots that are compared have in common.
type machine struct {
	kernel, initramfs string
	bootDisk          bool
	// regionMiB is reserved for persistent memory, besides the memory of every
	// machine. The plain initramfs has it as RAM from the beginning.
	regionMiB int64
}

// regionKB is the memory that does not come back of a region: the begin of it.
func (m machine) regionKB() int64 {
	if m.regionMiB == 0 {
		return 0
	}
	return bootconf.RegionHead >> 10
}

// plain boots the unchanged initramfs, with an idle disk in place of a boot
// disk: one with a partition and a filesystem, which cost memory by being there.
func (m machine) plain(t *testing.T, kernel fixtures.Kernel, initramfs string) document {
	t.Helper()
	args := []string{"--backend", "plain", "--initramfs", initramfs, "--rootdisk", fixtures.Path(t, rootDisk)}
	if m.bootDisk {
		idle := filepath.Join(t.TempDir(), "idle.img")
		_, err := disk.Create(t.Context(), idle, disk.Spec{Partitions: []disk.Partition{{Label: "idle", FS: "ext4", Size: 64 << 20}}})
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--bootdisk", idle)
	}
	if m.regionMiB > 0 {
		args = append(args, "--memory", strconv.FormatInt(1024+m.regionMiB, 10))
	}
	d := boot(t, kernel, args...)
	if d.Record != nil || d.HandoverS != nil {
		t.Errorf("a plain boot has the record %v and a handover at %v", d.Record, d.HandoverS)
	}
	return d
}

// TestMultiUser boots distributions' own trees through the backends to
// multi-user.target. There the image is gone, and the memory is as after a boot
// of the unchanged initramfs.
func TestMultiUser(t *testing.T) {
	// Half of it is the code of erofs, overlay and loop, which stay loaded; the
	// rest are their caches, and the kernel's idle threads. What an image that
	// was not let go would cost is tens of MB.
	const mostKB = 1024 + 100 // 1 MB, and what two equal boots differ by
	plains := map[machine][]document{}
	for _, test := range []struct {
		name              string
		least             fixtures.Boots
		kernel, initramfs string
		backend           bootconf.Backend
		args              []string
	}{
		{"dracut", fixtures.Some, "kernel-6.1", "dracut-6.1.img", bootconf.Loop, []string{"--bootfstype", "ext4"}},
		{"dracut", fixtures.All, "kernel-6.1", "dracut-6.1.img", bootconf.Block, nil},
		{"dracut", fixtures.All, "kernel-6.1", "dracut-6.1.img", bootconf.RAM, []string{"--bootfstype", "ext4"}},
		{"dracut", fixtures.Some, "kernel-6.1", "dracut-6.1.img", bootconf.PmemDAX, []string{"--image-compress", "none"}},
		{"dracut", fixtures.All, "kernel-6.1", "dracut-6.1.img", bootconf.Pmem, nil},
		{"dracut", fixtures.All, "kernel-6.1", "dracut-6.1.img", bootconf.Embedded, nil},
		{"initramfs-tools", fixtures.Some, "kernel-6.1", "initramfs-tools-6.1.img", bootconf.Block, nil},
		{"dracut without systemd", fixtures.All, "kernel-6.1", "dracut-nosystemd-6.1.img", bootconf.Loop, nil},
		{"cloud kernel", fixtures.All, "kernel-6.12", "dracut-6.12.img", bootconf.File, []string{"--bootfstype", "ext4"}},
		{"cloud kernel", fixtures.All, "kernel-6.12", "dracut-6.12.img", bootconf.Block, nil},
		// Its modules are packed in the tree, and unpacked in the image.
		{"sid", fixtures.All, "kernel-sid", "dracut-sid.img", bootconf.Block, nil},
		{"sid", fixtures.All, "kernel-sid", "dracut-sid.img", bootconf.File, []string{"--bootfstype", "ext4"}},
	} {
		t.Run(test.name+"/"+string(test.backend), func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			root := fixtures.Path(t, rootDisk)
			args := append([]string{"--backend", string(test.backend), "--image-compress", fastImage}, test.args...)
			b := build(t, test.kernel, test.initramfs, args...)
			on := machine{kernel: test.kernel, initramfs: test.initramfs}
			switch test.backend {
			case bootconf.Pmem, bootconf.PmemDAX:
				on.regionMiB = b.Image.Region.Size >> 20
			case bootconf.Embedded:
			default:
				on.bootDisk = true
			}
			bootPlain := func() { plains[on] = append(plains[on], on.plain(t, b.kernel, b.source)) }
			var boots []document
			bootOurs := func() {
				d := boot(t, b.kernel, "--dir", b.dir, "--backend", string(test.backend), "--rootdisk", root)
				checkRecord(t, d, b.Image.UUID, test.backend)
				boots = append(boots, d)
			}
			if plains[on] == nil {
				bootPlain()
			}
			bootOurs()
			more := func() int64 { return medianUsableKB(plains[on]) - medianUsableKB(boots) - on.regionKB() }
			// Where it is close, the median of three decides.
			for more() > mostKB && len(boots) < 3 {
				for len(plains[on]) <= len(boots) {
					bootPlain()
				}
				bootOurs()
			}
			t.Logf("%d kB more in use than after a plain boot", more())
			if more() > mostKB {
				t.Errorf("%d kB more in use than after a plain boot, want at most %d", more(), mostKB)
			}
		})
	}
}

func checkRecord(t testing.TB, d document, uuid string, backend bootconf.Backend) {
	t.Helper()
	r := d.Record
	if r == nil {
		t.Fatal("the booted system has no record")
	}
	if r.Backend != backend || d.Backend != string(backend) || r.ImageUUID != uuid || r.Verified != "none" {
		t.Errorf("booted through %s (record: %s) from %s, verified=%s; want %s from %s", d.Backend, r.Backend, r.ImageUUID, r.Verified, backend, uuid)
	}
	if n := len(r.Attempts); n == 0 || r.Attempts[n-1] != (bootconf.Attempt{Backend: backend}) {
		t.Errorf("attempts %+v, want %s to have served last", r.Attempts, backend)
	}
	if len(r.Phases) == 0 || len(r.Modules) == 0 {
		t.Errorf("phases %+v, modules %q; want some", r.Phases, r.Modules)
	}
}

func medianUsableKB(documents []document) int64 {
	var usable []int64
	for _, d := range documents {
		usable = append(usable, d.Done.MemUsableKB)
	}
	slices.Sort(usable)
	return usable[len(usable)/2]
}
