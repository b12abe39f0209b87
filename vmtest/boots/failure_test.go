package boots

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/vmtest"
	"initoverlayfs/vmtest/fixtures"
)

// failure is what a boot that must fail shows.
type failure struct {
	words    []string // in the fatal line
	timeoutS float64  // after which storage-init gives up, the least and, with two seconds more, the most
	policy   string   // that is followed
}

// rebootSoon has a guest that waits for disks not wait for its countdown as well.
const rebootSoon = bootconf.CmdlinePrefix + "on_failure=reboot:1"

// slackS is by how much storage-init may overrun a time, in seconds.
const slackS = 2

// boot boots the machine and holds the failure against what is expected.
func (f failure) boot(tb testing.TB, m vmtest.Machine) {
	tb.Helper()
	m.ICount = true // so that the guest's clock does not depend on the host's load
	// Where no disk is waited for, no time is, either.
	m.SkipIdle = len(m.Drives) == 0
	m.FatalGrace = time.Minute
	m.LogParent = tb.TempDir()
	r, err := run(tb, m)
	if !errors.Is(err, vmtest.ErrFatal) {
		tb.Fatalf("error = %v, want %v; console:\n%s", err, vmtest.ErrFatal, r.Console)
	}
	if n := strings.Count(ourLines(r), bootconf.LogPrefix+"fatal: "); n != 1 {
		tb.Errorf("%d fatal lines, want one:\n%s", n, ourLines(r))
	}
	for _, w := range append(f.words, "(on_failure "+f.policy+")") {
		if !strings.Contains(r.Fatal, w) {
			tb.Errorf("fatal line %q lacks %q", r.Fatal, w)
		}
	}
	if r.Done != nil || r.Handover != nil {
		tb.Error("the full tree was started")
	}
	failed := r.Times[vmtest.Failed]
	if after := failed - r.Times[vmtest.KernelToInit]; after < f.timeoutS || after > f.timeoutS+slackS {
		tb.Errorf("failed %.3f s after init began, want %.0f to %.0f", after, f.timeoutS, f.timeoutS+slackS)
	}
	tb.Logf("%s", r.Fatal)

	policy, err := bootconf.ParseFailurePolicy(f.policy)
	if err != nil {
		tb.Fatal(err)
	}
	if r.Reset != (policy.Action == bootconf.Reboot) || r.Halted != (policy.Action == bootconf.Halt) || (r.Panic != "") != (policy.Action == bootconf.Panic) {
		tb.Errorf("reset %v, halted %v, panic %q; the policy is %s", r.Reset, r.Halted, r.Panic, policy)
	}
	if policy.Action == bootconf.Panic && r.Killed {
		tb.Error("the kernel did not reboot after its panic")
	}
	if policy.Action == bootconf.Reboot {
		countdown := float64(policy.Seconds)
		if after := r.LastS - failed; after < countdown || after > countdown+slackS || r.Killed {
			tb.Errorf("reset %.3f s after the failure (killed: %v), want %v", after, r.Killed, countdown)
		}
	}
}

// rewrite makes another mini-initramfs of a build's. change gives the new body
// of a file, or nil to leave it out.
func (b *build) rewrite(tb testing.TB, change func(name string, body []byte) []byte) string {
	tb.Helper()
	in, err := os.Open(b.mini)
	if err != nil {
		tb.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(tb.TempDir(), "initramfs.img")
	out, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer out.Close()
	r, w := cpio.NewReader(in), cpio.NewWriter(out)
	changed := false
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			tb.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		if h.Mode&cpio.TypeMask == cpio.TypeRegular {
			was := string(body)
			body = change(h.Name, body)
			changed = changed || string(body) != was
			if body == nil {
				continue
			}
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		tb.Fatal(err)
	}
	if !changed {
		tb.Fatal("nothing was changed in the mini-initramfs")
	}
	return path
}

// shortImage is the image without its last part. Partitions are whole MiB, so
// that is more than one.
func (b *build) shortImage(tb testing.TB) (path string, size int64) {
	tb.Helper()
	image, err := os.ReadFile(b.image)
	if err != nil {
		tb.Fatal(err)
	}
	size = int64(len(image)) - 3<<20
	path = filepath.Join(tb.TempDir(), "short.img")
	if err := os.WriteFile(path, image[:size], 0o600); err != nil {
		tb.Fatal(err)
	}
	return path, size
}

// TestFailures boots into each failure, with each policy.
func TestFailures(t *testing.T) {
	t.Parallel()
	loop := spec{config: "backend loop\n" + onBootLabel}
	block := spec{config: "backend block\non_failure halt\ntimeout 3\n"}
	const key = bootconf.CmdlinePrefix

	// arrange makes the machine and what is in the fatal line besides the
	// words that are known before.
	tests := []struct {
		name    string
		spec    spec
		arrange func(t *testing.T, b *build) (m vmtest.Machine, words []string)
		failure failure
	}{
		{
			"no image file", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t, key+"on_failure=reboot:2", key+"timeout=1")
				part := b.filePartition("boot")
				part.Files = map[string]string{"/other.img": b.image}
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, part)))
				return m, []string{"open " + b.conf.FS + ": no such file"}
			},
			failure{words: []string{"/dev/vda1"}, timeoutS: 1, policy: "reboot:2"},
		},
		{
			"image file of another build", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				other := spec{tree: noInitTree, config: loop.config}.build(t)
				// Only the UUID tells them apart.
				m := b.machine(t, key+"on_failure=halt", key+"timeout=1", key+"image_size="+strconv.FormatInt(other.conf.ImageSize, 10))
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, other.filePartition("boot"))))
				return m, []string{b.conf.FS, "the image has UUID " + other.Image.UUID + ", image_uuid says " + b.Image.UUID}
			},
			failure{words: []string{"/dev/vda1"}, timeoutS: 1, policy: "halt"},
		},
		{
			"truncated file", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				// The kernel reboots at once after its panic.
				m := b.machine(t, key+"on_failure=panic", key+"timeout=0", "panic=-1")
				path, size := b.shortImage(t)
				part := b.filePartition("boot")
				part.Files[b.conf.FS] = path
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, part)))
				return m, []string{b.conf.FS, "the image has " + strconv.FormatInt(size, 10) + " bytes, image_size says " + strconv.FormatInt(b.conf.ImageSize, 10)}
			},
			failure{words: []string{"/dev/vda1"}, timeoutS: 0, policy: "panic"},
		},
		{
			"truncated partition", block,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t, key+"bootfs=PARTLABEL=short")
				path, _ := b.shortImage(t)
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, disk.Partition{Label: "short", Image: path})))
				return m, []string{"bytes, the image " + strconv.FormatInt(b.conf.ImageSize, 10)}
			},
			failure{words: []string{"/dev/vda1", "the device has "}, timeoutS: 3, policy: "halt"},
		},
		{
			"partition of another build", block,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				other := spec{tree: noInitTree, config: loop.config}.build(t)
				m := b.machine(t, key+"bootfs=/dev/vda1", key+"on_failure=reboot:0")
				m.Drives = append(m.Drives, drive(vmtest.VirtioBlk, bootDisk(t, other.imagePartition())))
				return m, []string{"the image has UUID " + other.Image.UUID}
			},
			failure{words: []string{"/dev/vda1"}, timeoutS: 3, policy: "reboot:0"},
		},
		{
			"no device", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				return b.machine(t), nil // default timeout and policy
			},
			failure{words: []string{"no image after 30 s", "no device LABEL=boot"}, timeoutS: 30, policy: "reboot:10"},
		},
		{
			"no device, panic=", block,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				return b.machine(t, "panic=4"), nil
			},
			failure{words: []string{"no image after 3 s", "block: no device with an EROFS image"}, timeoutS: 3, policy: "reboot:4"},
		},
		{
			"no bootfs", spec{config: "backend loop\ntimeout 2\n"},
			func(t *testing.T, b *build) (vmtest.Machine, []string) { return b.machine(t), nil },
			failure{words: []string{"no image: loop: bootfs is not set"}, timeoutS: 0, policy: "reboot:10"},
		},
		{
			"corrupt module", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t)
				m.Initrd = b.rewrite(t, func(name string, body []byte) []byte {
					if name == "lib/modules/erofs.ko" {
						body[len(body)/2] ^= 1 // against its signature
					}
					return body
				})
				return m, nil
			},
			failure{words: []string{"load module /lib/modules/erofs.ko: "}, timeoutS: 0, policy: "reboot:10"},
		},
		{
			"module of another kernel", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				other := fixtures.OpenKernel(t, "kernel-6.12")
				index, err := kmod.Open(other.Modules, other.Version)
				if err != nil {
					t.Fatal(err)
				}
				module, err := index.Read("erofs")
				if err != nil {
					t.Fatal(err)
				}
				m := b.machine(t, key+"on_failure=reboot:1")
				m.Initrd = b.rewrite(t, func(name string, body []byte) []byte {
					if name == "lib/modules/erofs.ko" {
						return module
					}
					return body
				})
				return m, nil
			},
			failure{words: []string{"load module /lib/modules/erofs.ko: it is not for this kernel"}, timeoutS: 0, policy: "reboot:1"},
		},
		{
			"no module", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t)
				m.Initrd = b.rewrite(t, func(name string, body []byte) []byte {
					if name == "lib/modules/overlay.ko" {
						return nil
					}
					return body
				})
				return m, nil
			},
			failure{words: []string{"load module /lib/modules/overlay.ko: open: no such file"}, timeoutS: 0, policy: "reboot:10"},
		},
		{
			"no init in the image", spec{tree: noInitTree, config: "backend embedded\n"},
			func(t *testing.T, b *build) (vmtest.Machine, []string) { return b.machine(t), nil },
			failure{words: []string{"init /init of the image: no such file", "init /sbin/init of the image: no such file"}, timeoutS: 0, policy: "reboot:10"},
		},
		{
			"init that cannot be executed", block,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t, key+"init=/big")
				b.attach(t, &m, bootconf.Block)
				return m, nil
			},
			failure{words: []string{"init /big of the image: permission denied"}, timeoutS: 0, policy: "halt"},
		},
		{
			"no configuration", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t, key+"on_failure=reboot:3")
				m.Initrd = b.rewrite(t, func(name string, body []byte) []byte {
					if "/"+name == bootconf.ConfigPath {
						return nil
					}
					return body
				})
				return m, nil
			},
			failure{words: []string{"read " + bootconf.ConfigPath + ": no such file"}, timeoutS: 0, policy: "reboot:3"},
		},
		{
			"bad value", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				return b.machine(t, key+"timeout=soon"), nil
			},
			failure{words: []string{"kernel command line: initoverlayfs.timeout: bad timeout \"soon\""}, timeoutS: 0, policy: "reboot:10"},
		},
		{
			"bad identity", loop,
			func(t *testing.T, b *build) (vmtest.Machine, []string) {
				m := b.machine(t)
				m.Initrd = b.rewrite(t, func(name string, body []byte) []byte {
					if "/"+name != bootconf.ConfigPath {
						return body
					}
					return []byte(strings.ReplaceAll(string(body), "image_uuid ", "#"))
				})
				return m, nil
			},
			failure{words: []string{bootconf.ConfigPath + ": image_uuid is not set"}, timeoutS: 0, policy: "reboot:10"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m, words := test.arrange(t, test.spec.build(t))
			f := test.failure
			f.words = append(words, f.words...)
			f.boot(t, m)
		})
	}
}
