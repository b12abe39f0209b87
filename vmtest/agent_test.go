package vmtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAgent runs the script that reports a booted Debian on a system made of
// files.
func TestAgent(t *testing.T) {
	const mountinfo = `22 1 254:1 / / ro,noatime shared:1 - ext4 /dev/vda1 ro
40 22 7:0 / /mnt/a\040"b\134 ro,relatime shared:9 master:2 - erofs /dev/loop0 ro,dax=always
41 22 0:30 / /erofs rw - tmpfs erofs rw
`
	const record = `{"backend":"loop","attempts":[{"backend":"loop","error":"a \"b\""}],"phases":[]}`
	for _, test := range []struct {
		name   string
		files  map[string]string
		change func(*Done) // from what a plain boot reports
	}{
		{"plain boot", nil, func(*Done) {}},
		{"record cut short", map[string]string{"run/initoverlayfs/boot.json": record[:20]}, func(*Done) {}},
		{
			"overlay boot",
			map[string]string{
				"sys/fs/erofs/features/x": "", "sys/fs/erofs/loop0/y": "",
				"run/initoverlayfs/boot.json": record + "\n",
				"run/initramfs/fsck-root":     "", "run/initramfs/fsck.log": "clean\ttab\x01\n",
			},
			func(d *Done) {
				d.Record, d.ErofsSysfs = json.RawMessage(record), []string{"loop0"}
				d.Fsck = "initramfs-tools fsck-root\nclean\ttab\x01"
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{
				"proc/1/mountinfo": mountinfo,
				"proc/uptime":      "17.25 10.00\n",
				// Requests, merged ones, sectors and more.
				"sys/class/block/vda/stat":  "     100        2      500    9 0 0 0 0 0 0 0\n",
				"sys/class/block/vda1/stat": "90 2 400 9 0 0 0 0 0 0 0\n",
				"proc/zoneinfo":             "Node 0, zone DMA32\n  pagesets\n    cpu: 0\n              count: 299\n              high:  4\n    cpu: 1\n              count: 2\n",
				"proc/vmstat":               "pgpgin 300\npgpgout 1\npgfault 20\npgmajfault 3\n",
				"proc/9/comm":               "(udev-worker)\n",
				"proc/meminfo":              "MemTotal:         210752 kB\nMemFree:           1 kB\nMemAvailable:     175484 kB\nCached:    21000 kB\nSwapCached:  1 kB\nShmem:    800 kB\nShmemHugePages:   2 kB\n",
			}
			for name, text := range test.files {
				files[name] = text
			}
			for name, text := range files {
				name = filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// No systemd answers: what it would say is empty. And nothing waits.
			bin := t.TempDir()
			for _, name := range []string{"systemctl", "sleep"} {
				if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("sh", "agent/vmtest-agent.sh", "--print")
			cmd.Env = append(os.Environ(), "VMTEST_ROOT="+root, "PATH="+bin+":"+os.Getenv("PATH"))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got Done
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v: %q", err, out)
			}
			want := Done{
				OK: true, UptimeS: 17.25, MemAvailableKB: 175484, CachedKB: 21000, ShmemKB: 800, MemSamplesKB: []int64{175484, 175484, 175484},
				MemPerCPUKB: []int64{1204, 1204, 1204}, MemUsableKB: 176688, MemTotalKB: 210752, Record: json.RawMessage("null"), Mountinfo: strings.TrimSuffix(mountinfo, "\n"),
				ErofsMounts: []string{`40 22 7:0 / /mnt/a\040"b\134 ro,relatime shared:9 master:2 - erofs /dev/loop0 ro,dax=always`},
				ErofsSysfs:  []string{}, FailedUnits: []string{}, RootOptions: "ro,noatime",
				ReadKB: 300, Disks: map[string]DiskReads{"vda": {100, 250}, "vda1": {90, 200}}, Faults: 20, MajorFaults: 3,
			}
			test.change(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("done event (-want +got):\n%s", diff)
			}
		})
	}
}
