package bootconf

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const testUUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

var parsedTestUUID = UUID{0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0}

// filledConfig has no field at its default, so that a bad value that clears one shows.
func filledConfig() Config {
	return Config{
		Backends:       []Backend{Loop, RAM},
		Auto:           true,
		Bootfs:         Tag{TagLabel, "boot"},
		BootfsHint:     "/dev/vda1",
		BootfsType:     "ext4",
		FS:             "/initoverlayfs.img",
		FSType:         "erofs",
		SCSIAddr:       "0:0:0:1",
		Devices:        []string{"/a.blob", "/b.blob"},
		ImageUUID:      parsedTestUUID,
		ImageSize:      4096,
		TimeoutSeconds: 7,
		OverlaySize:    "64M",
		Init:           "/sbin/other",
		OnFailure:      FailurePolicy{Action: Halt},
	}
}

func TestSetTakesGoodValues(t *testing.T) {
	for _, test := range []struct {
		key, value string
		change     func(*Config)
	}{
		{"backend", "block", func(c *Config) { c.Backends, c.Auto = []Backend{Block}, false }},
		{"backend", "loop", func(c *Config) { c.Backends, c.Auto = []Backend{Loop}, false }},
		{"backend", "file", func(c *Config) { c.Backends, c.Auto = []Backend{File}, false }},
		{"backend", "pmem", func(c *Config) { c.Backends, c.Auto = []Backend{Pmem}, false }},
		{"backend", "pmem-dax", func(c *Config) { c.Backends, c.Auto = []Backend{PmemDAX}, false }},
		{"backend", "embedded", func(c *Config) { c.Backends, c.Auto = []Backend{Embedded}, false }},
		{"backend", "ram", func(c *Config) { c.Backends, c.Auto = []Backend{RAM}, false }},
		{"backend", "auto", func(c *Config) {
			c.Backends, c.Auto = []Backend{PmemDAX, Pmem, Embedded, Block, File, Loop, RAM}, true
		}},
		{"backend", "auto:file,loop", func(c *Config) { c.Backends, c.Auto = []Backend{File, Loop}, true }},
		{"backend", "auto:block", func(c *Config) { c.Backends, c.Auto = []Backend{Block}, true }},
		{"bootfs", "UUID=1234-ABCD", func(c *Config) { c.Bootfs = Tag{TagUUID, "1234-ABCD"} }},
		{"bootfs", "LABEL=my boot", func(c *Config) { c.Bootfs = Tag{TagLabel, "my boot"} }},
		{"bootfs", `LABEL="boot"`, func(c *Config) { c.Bootfs = Tag{TagLabel, "boot"} }},
		{"bootfs", `LABEL="`, func(c *Config) { c.Bootfs = Tag{TagLabel, `"`} }},
		{"bootfs", `LABEL=" boot "`, func(c *Config) { c.Bootfs = Tag{TagLabel, " boot "} }},
		{"bootfs", "LABEL=a=b", func(c *Config) { c.Bootfs = Tag{TagLabel, "a=b"} }},
		{"bootfs", "PARTUUID=01234567-02", func(c *Config) { c.Bootfs = Tag{TagPartUUID, "01234567-02"} }},
		{"bootfs", "PARTLABEL=boot_a", func(c *Config) { c.Bootfs = Tag{TagPartLabel, "boot_a"} }},
		{"bootfs", "/dev/disk/by-label/x", func(c *Config) { c.Bootfs = Tag{TagPath, "/dev/disk/by-label/x"} }},
		{"bootfs_hint", "/dev/sda2", func(c *Config) { c.BootfsHint = "/dev/sda2" }},
		{"bootfstype", "xfs", func(c *Config) { c.BootfsType = "xfs" }},
		{"fs", "/boot/a b.img", func(c *Config) { c.FS = "/boot/a b.img" }},
		{"fs", "/..hidden/x..", func(c *Config) { c.FS = "/..hidden/x.." }},
		{"fstype", "erofs", func(*Config) {}},
		{"device", "/a.blob", func(c *Config) { c.Devices = []string{"/a.blob"} }},
		{"device", "PARTLABEL=a b,/dev/sda3,UUID=x", func(c *Config) { c.Devices = []string{"PARTLABEL=a b", "/dev/sda3", "UUID=x"} }},
		{"scsi.addr", "0:0:0:49476", func(c *Config) { c.SCSIAddr = "0:0:0:49476" }},
		{"image_uuid", "00000000-0000-0000-0000-000000000001", func(c *Config) { c.ImageUUID = UUID{15: 1} }},
		{"image_size", "9223372036854775807", func(c *Config) { c.ImageSize = 1<<63 - 1 }},
		{"timeout", "0", func(c *Config) { c.TimeoutSeconds = 0 }},
		{"timeout", "86400", func(c *Config) { c.TimeoutSeconds = 86400 }},
		{"overlay_size", "1048576", func(c *Config) { c.OverlaySize = "1048576" }},
		{"overlay_size", "10K", func(c *Config) { c.OverlaySize = "10K" }},
		{"overlay_size", "2g", func(c *Config) { c.OverlaySize = "2g" }},
		{"overlay_size", "100%", func(c *Config) { c.OverlaySize = "100%" }},
		{"init", "/usr/lib/systemd/systemd", func(c *Config) { c.Init = "/usr/lib/systemd/systemd" }},
		{"on_failure", "reboot", func(c *Config) { c.OnFailure = FailurePolicy{Reboot, 10} }},
		{"on_failure", "reboot:0", func(c *Config) { c.OnFailure = FailurePolicy{Reboot, 0} }},
		{"on_failure", "reboot:86400", func(c *Config) { c.OnFailure = FailurePolicy{Reboot, 86400} }},
		{"on_failure", "halt", func(c *Config) { c.OnFailure = FailurePolicy{Action: Halt} }},
		{"return_memory", "yes", func(c *Config) { c.ReturnMemory = true }},
		{"return_memory", "no", func(c *Config) { c.ReturnMemory = false }},
		{"on_failure", "panic", func(c *Config) { c.OnFailure = FailurePolicy{Action: Panic} }},
	} {
		t.Run(test.key+" "+test.value, func(t *testing.T) {
			got, want := filledConfig(), filledConfig()
			test.change(&want)
			if err := got.Set(test.key, test.value); err != nil {
				t.Fatalf("Set(%q, %q) = %v, want nil", test.key, test.value, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetRefusesBadValues(t *testing.T) {
	bad := map[string][]string{
		"backend": {"", "disk", "Block", "block,loop", "auto:", "auto:block,", "auto:auto", "auto,block", "block "},
		"bootfs": {"", "boot", "UUID", "UUID=", "LABEL=", `LABEL=""`, "ID=1", "uuid=1", "/boot", "/dev/",
			"/dev/../etc/passwd", "/dev/x/../y", "/dev/.."},
		"bootfs_hint":   {"", "sda2", "/sda2", "dev/sda2"},
		"fs":            {"", "x.img", "../x", "/../x", "/a/../b", "/a/.."},
		"fstype":        {"", "squashfs", "EROFS"},
		"device":        {"", ",", "/a,", ",/a", "/a,b", "a.blob", "/a/../b", "/dev/../a", "LABEL="},
		"scsi.addr":     {"", "0", "0:0:0", "0:0:0:0:0", "a:0:0:0", "-1:0:0:0", "+1:0:0:0", "0::0:0", "0:0:0:18446744073709551616"},
		"image_uuid":    {"", "x", testUUID + "0", testUUID[1:], strings.Replace(testUUID, "f", "g", 1), "+" + testUUID[1:]},
		"image_size":    {"", "0", "-1", "4K", "4096.0", "9223372036854775808", "0x1000"},
		"timeout":       {"", "-1", "86401", "30s", "1.5"},
		"overlay_size":  {"", "0", "0%", "101%", "%", "K", "10T", "-1", "10KK", "1e6", "1099511627776"},
		"init":          {"", "init", "./init"},
		"return_memory": {"", "Yes", "true", "0", "1"},
		"on_failure":    {"", "reboot:", "reboot:-1", "reboot:86401", "reboot:x", "halt:1", "panic:1", "Halt", "restart"},
	}
	for key, values := range bad {
		for _, value := range values {
			t.Run(key+" "+value, func(t *testing.T) {
				got, want := filledConfig(), filledConfig()
				err := got.Set(key, value)
				if err == nil {
					t.Fatalf("Set(%q, %q) = nil, want an error", key, value)
				}
				if errors.Is(err, ErrUnknownKey) {
					t.Errorf("Set(%q, %q) = %v, want what is wrong with the value", key, value, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("the configuration changed (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestSetUnknownKey(t *testing.T) {
	for _, key := range []string{"", "Backend", "bootfs ", "verify", "roothash", "signature", "fallback", "scsi_addr"} {
		got := filledConfig()
		if err := got.Set(key, "1"); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("Set(%q) = %v, want ErrUnknownKey", key, err)
		}
		if diff := cmp.Diff(filledConfig(), got); diff != "" {
			t.Errorf("Set(%q) changed the configuration (-want +got):\n%s", key, diff)
		}
	}
}

func TestDefaultsAreNotShared(t *testing.T) {
	c := Default()
	c.Backends[0] = "changed"
	if AutoOrder[0] != PmemDAX || Default().Backends[0] != PmemDAX {
		t.Error("a change of one configuration's backends reached the defaults")
	}
}

func TestReadFile(t *testing.T) {
	base := Default()
	for _, test := range []struct {
		name, text string
		want       func(*Config)
		problems   []string
	}{
		{name: "empty"},
		{name: "comments and blank lines", text: "# backend block\n\n   \n\t# x\n#fs /x"},
		{name: "several blanks", text: "timeout   \t 5  \n", want: func(c *Config) { c.TimeoutSeconds = 5 }},
		{name: "tab", text: "timeout\t5", want: func(c *Config) { c.TimeoutSeconds = 5 }},
		{name: "leading blanks", text: "  timeout 5", want: func(c *Config) { c.TimeoutSeconds = 5 }},
		{name: "CRLF", text: "timeout 5\r\nbootfs LABEL=x\r\n", want: func(c *Config) {
			c.TimeoutSeconds, c.Bootfs = 5, Tag{TagLabel, "x"}
		}},
		{name: "a value keeps its blanks and its #", text: "fs /a b#c", want: func(c *Config) { c.FS = "/a b#c" }},
		{name: "the last line counts", text: "timeout 5\ntimeout 6", want: func(c *Config) { c.TimeoutSeconds = 6 }},
		{name: "no value", text: "\nfs\n", problems: []string{`line 2: no value: "fs"`}},
		{
			name: "what is good is set in spite of what is bad",
			text: "timeout x\nverify yes\n\ntimeout 9\nfstype squashfs\n",
			want: func(c *Config) { c.TimeoutSeconds = 9 },
			problems: []string{
				`line 1: timeout: bad timeout "x"; it is a number of seconds`,
				`line 2: verify: unknown key`,
				`line 5: fstype: image type "squashfs" is not supported; it is erofs`,
			},
		},
		{
			// The sample of the C project that this configuration comes from.
			name: "keys of the C project",
			text: "bootfs UUID=a3b4\nbootfs_hint /dev/sda6\nbootfstype ext4\nfs /initoverlayfs-6.9.img\nfstype erofs\nscsi.addr 0:0:0:49476\n",
			want: func(c *Config) {
				c.Bootfs, c.BootfsHint, c.BootfsType = Tag{TagUUID, "a3b4"}, "/dev/sda6", "ext4"
				c.FS, c.SCSIAddr = "/initoverlayfs-6.9.img", "0:0:0:49476"
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, want := Default(), base
			if test.want != nil {
				test.want(&want)
			}
			problems := got.ReadFile(test.text)
			if diff := cmp.Diff(test.problems, texts(problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
			for _, p := range problems {
				if unknown := p.Key == "verify"; errors.Is(p, ErrUnknownKey) != unknown {
					t.Errorf("errors.Is(%v, ErrUnknownKey) = %v, want %v", p, !unknown, unknown)
				}
			}
		})
	}
}

func texts(problems []Problem) []string {
	var list []string
	for _, p := range problems {
		list = append(list, p.Error())
	}
	return list
}

func TestFormatRoundTrip(t *testing.T) {
	for name, want := range map[string]Config{"default": Default(), "filled": filledConfig()} {
		text := want.Format()
		got := Default()
		if problems := got.ReadFile(text); problems != nil {
			t.Errorf("%s: ReadFile(Format()) has the problems %v in\n%s", name, problems, text)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: ReadFile(Format()) (-want +got):\n%s", name, diff)
		}
	}
}

func TestFormatText(t *testing.T) {
	c := filledConfig()
	want := `backend auto:loop,ram
bootfs LABEL=boot
bootfs_hint /dev/vda1
bootfstype ext4
fs /initoverlayfs.img
fstype erofs
scsi.addr 0:0:0:1
device /a.blob,/b.blob
image_uuid ` + testUUID + `
image_size 4096
timeout 7
overlay_size 64M
init /sbin/other
on_failure halt
return_memory no
`
	if diff := cmp.Diff(want, c.Format()); diff != "" {
		t.Errorf("Format (-want +got):\n%s", diff)
	}
	d := Default()
	want = "backend auto:pmem-dax,pmem,embedded,block,file,loop,ram\nfstype erofs\n"
	if diff := cmp.Diff(want, d.Format()); diff != "" {
		t.Errorf("Format of the defaults (-want +got):\n%s", diff)
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		want   string
		change func(*Config)
	}{
		{"", func(*Config) {}},
		{"image_uuid is not set", func(c *Config) { c.ImageUUID = UUID{} }},
		{"image_size is not set", func(c *Config) { c.ImageSize = 0 }},
		{"backend is not set", func(c *Config) { c.Backends = nil }},
	} {
		c := filledConfig()
		test.change(&c)
		got := ""
		if err := c.Check(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("Check() = %q, want %q", got, test.want)
		}
	}
}

func TestReadCmdline(t *testing.T) {
	for _, test := range []struct {
		name, cmdline string
		want          func(*Config)
		problems      []string
	}{
		{name: "nothing of ours", cmdline: "BOOT_IMAGE=/vmlinuz root=/dev/vda2 ro quiet backend=block initoverlayfs"},
		{
			name: "overrides", cmdline: "initoverlayfs.backend=block ro initoverlayfs.bootfs=PARTLABEL=img initoverlayfs.timeout=1",
			want: func(c *Config) {
				c.Backends, c.Auto = []Backend{Block}, false
				c.Bootfs, c.TimeoutSeconds = Tag{TagPartLabel, "img"}, 1
			},
		},
		{
			name: "quoted value", cmdline: `initoverlayfs.bootfs="LABEL=my boot" initoverlayfs.fs=/x`,
			want: func(c *Config) { c.Bootfs, c.FS = Tag{TagLabel, "my boot"}, "/x" },
		},
		{
			name: "quoted word", cmdline: `"initoverlayfs.bootfs=LABEL=my boot"`,
			want: func(c *Config) { c.Bootfs = Tag{TagLabel, "my boot"} },
		},
		{name: "scsi.addr with prefix", cmdline: "initoverlayfs.scsi.addr=1:2:3:4", want: func(c *Config) { c.SCSIAddr = "1:2:3:4" }},
		{name: "scsi.addr without", cmdline: "scsi.addr=1:2:3:4", want: func(c *Config) { c.SCSIAddr = "1:2:3:4" }},
		{
			name: "problems", cmdline: "initoverlayfs.fs initoverlayfs.fs= initoverlayfs.verify=0 scsi.addr=1 initoverlayfs.=x",
			problems: []string{
				`initoverlayfs.fs: no value`,
				`initoverlayfs.fs: not an absolute path without ..: ""`,
				`initoverlayfs.verify: unknown key`,
				`scsi.addr: bad SCSI address "1"; it is HOST:CHANNEL:TARGET:LUN`,
				`initoverlayfs.: unknown key`,
			},
		},
		{name: "panic reboots", cmdline: "panic=5", want: policy(Reboot, 5)},
		{name: "panic reboots at once", cmdline: "panic=-1", want: policy(Reboot, 0)},
		{name: "panic halts", cmdline: "panic=0", want: policy(Halt, 0)},
		{name: "panic is bounded", cmdline: "panic=9999999", want: policy(Reboot, 86400)},
		{name: "the last panic counts", cmdline: "panic=0 panic=3", want: policy(Reboot, 3)},
		{name: "panic without a number", cmdline: "panic=x"},
		{name: "panic without a value", cmdline: "panic"},
		{name: "on_failure before panic", cmdline: "initoverlayfs.on_failure=panic panic=5", want: policy(Panic, 0)},
		{name: "on_failure after panic", cmdline: "panic=0 initoverlayfs.on_failure=reboot:1", want: policy(Reboot, 1)},
		{
			name: "a bad on_failure leaves the word to panic", cmdline: "initoverlayfs.on_failure=x panic=0", want: policy(Halt, 0),
			problems: []string{`initoverlayfs.on_failure: bad failure policy "x"; it is reboot[:SECONDS], halt or panic`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, want := Default(), Default()
			if test.want != nil {
				test.want(&want)
			}
			if diff := cmp.Diff(test.problems, texts(got.ReadCmdline(test.cmdline))); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func policy(action FailureAction, seconds int) func(*Config) {
	return func(c *Config) { c.OnFailure = FailurePolicy{action, seconds} }
}

var configSeeds = []string{
	"",
	"backend auto:loop,ram\nbootfs LABEL=a b\nfs /x\nimage_uuid " + testUUID + "\nimage_size 1\n",
	"bootfs LABEL=\"\n",
	"bootfs LABEL=\"a \"\n",
	"bootfs LABEL=\"\"a\n",
	"bootfs /dev/\x0b\n",
	"timeout +5\non_failure reboot:+0\r\noverlay_size 5%\nscsi.addr 0:0:0:0",
	"# comment\n\n key\tvalue\ninit /\xff\nbootfstype  x\u00a0y",
}

func TestConfigSeeds(t *testing.T) {
	for _, text := range configSeeds {
		checkConfigFixedPoint(t, text)
	}
}

func FuzzReadFile(f *testing.F) {
	for _, text := range configSeeds {
		f.Add(text)
	}
	f.Fuzz(checkConfigFixedPoint)
}

// checkConfigFixedPoint checks that what was read comes back from what is written.
func checkConfigFixedPoint(t *testing.T, text string) {
	first := Default()
	first.ReadFile(text)
	written := first.Format()
	second := Default()
	if problems := second.ReadFile(written); problems != nil {
		t.Errorf("ReadFile(%q).Format() = %q with the problems %v, want none", text, written, problems)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("ReadFile(%q) and what is read from its Format (-first +second):\n%s", text, diff)
	}
}
