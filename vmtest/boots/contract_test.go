package boots

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// initArgs is what the tree's init was given.
type initArgs struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Mounted []string `json:"mounted"` // what it did not find mounted
}

// overlayWrite is what the overlay took.
type overlayWrite struct {
	Written int64 `json:"written_bytes"`
	Full    bool  `json:"enospc"`
	Size    int64 `json:"size_bytes"`
}

// TestContract looks at what the tree's init is handed: its arguments and
// environment, an overlay of the chosen size, and a kernel as it was.
func TestContract(t *testing.T) {
	t.Parallel()
	const (
		panicPath   = "/proc/sys/kernel/panic"
		maxLoopPath = "/sys/module/loop/parameters/max_loop"
	)
	for _, test := range []struct {
		name  string
		words []string
		argv  []string
		env   []string
		size  string // of the overlay
		panic string // the kernel's timeout
		loops string // an option of a module
		log   string // in storage-init's lines
	}{
		{
			name:  "defaults",
			argv:  []string{"/init"},
			env:   []string{"HOME=/", "SYSTEMD_IN_INITRD=lenient", "TERM=linux"},
			panic: "0",
			loops: "0", // the builder's choice
		},
		{
			name: "chosen",
			words: []string{
				"initoverlayfs.overlay_size=8M", "initoverlayfs.init=" + customInit, "initoverlayfs.nonsense=1",
				"panic=7", "loop.max_loop=3", "FOO=bar", "SYSTEMD_IN_INITRD=1", "--", "one", "two words=2",
			},
			argv:  []string{customInit, "one", "two", "words=2"},
			env:   []string{"FOO=bar", "HOME=/", "SYSTEMD_IN_INITRD=1", "TERM=linux"},
			size:  "8M",
			panic: "7",
			loops: "3",
			log:   "initoverlayfs.nonsense: unknown key, ignored",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend loop\n" + onBootLabel}.build(t)
			m := b.machine(t, test.words...)
			b.attach(t, &m, bootconf.Loop)
			r := b.boot(t, m, bootconf.Loop, "args", "overlay_write:67108864", "read:"+panicPath+":"+maxLoopPath)

			got := checked[initArgs](t, r, "args")
			slices.Sort(got.Env)
			if diff := cmp.Diff(initArgs{test.argv, test.env, nil}, got); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
			write := checked[overlayWrite](t, r, "overlay_write")
			switch half := r.Done.MemTotalKB * 1024 / 2; {
			case test.size == "8M":
				if write.Size != 8<<20 || !write.Full || write.Written > 8<<20 || write.Written < 7<<20 {
					t.Errorf("overlay = %+v, want 8 MiB that get full", write)
				}
			case write.Size < half*95/100 || write.Size > half*105/100 || write.Full || write.Written != 64<<20:
				t.Errorf("overlay = %+v, want half of the memory, %d bytes, and room in it", write, half)
			}
			read := checked[map[string]string](t, r, "read")
			if diff := cmp.Diff(map[string]string{panicPath: test.panic, maxLoopPath: test.loops}, read); diff != "" {
				t.Errorf("settings of the kernel (-want +got):\n%s", diff)
			}
			if !strings.Contains(ourLines(r), test.log) {
				t.Errorf("log lacks %q:\n%s", test.log, ourLines(r))
			}
		})
	}
}

// TestBootfsIsRoot has the image on the real root: it is copied to memory, so
// that the root is free for a check and a mount with writes.
func TestBootfsIsRoot(t *testing.T) {
	t.Parallel()
	b := spec{config: "backend loop\n" + onBootLabel}.build(t)
	m := b.machine(t, "root=LABEL=boot")
	b.attach(t, &m, bootconf.Loop)
	record := b.checkRecord(t, b.boot(t, m, bootconf.RAM), bootconf.RAM)
	if n := len(record.Attempts); n != 2 || record.Attempts[0].Backend != bootconf.Loop ||
		!strings.Contains(record.Attempts[0].Error, "/dev/vda1: it is also the real root") {
		t.Errorf("attempts = %+v, want loop refused and then ram", record.Attempts)
	}
}

// TestArchiveBehind puts another archive behind the mini-initramfs, as boot loaders
// do with several: whatever that one is packed with, the kernel unpacks both.
func TestArchiveBehind(t *testing.T) {
	t.Parallel()
	for _, format := range compress.Writable {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			b := spec{config: "backend pmem\n", compress: format}.build(t)
			const more = "nonsense 1\n"
			m := b.machine(t)
			m.Initrd = archiveBehind(t, b.mini, bootconf.ConfigPath, b.conf.Format()+more)
			b.attach(t, &m, bootconf.Pmem)
			r := b.boot(t, m, bootconf.Pmem)
			if want := "nonsense: unknown key, ignored"; !strings.Contains(ourLines(r), want) {
				t.Errorf("log lacks %q: the file is the first archive's\n%s", want, ourLines(r))
			}
		})
	}
}

// archiveBehind gives a copy of an archive with one of a single file behind it.
func archiveBehind(t *testing.T, archive, name, text string) string {
	t.Helper()
	body, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	both := bytes.NewBuffer(body)
	// Where a record of an archive that is not packed may begin.
	both.Write(make([]byte, -len(body)&3))
	if err := archiveOf(both, strings.TrimPrefix(name, "/"), text); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "both.img")
	if err := os.WriteFile(path, both.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// archiveOf writes an archive of a single file, which can be executed.
func archiveOf(out io.Writer, name, body string) error {
	w := cpio.NewWriter(out)
	h := &cpio.Header{Name: name, Ino: 1, Mode: cpio.TypeRegular | 0o755, NLink: 1, Size: int64(len(body))}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(w, body)
	return errors.Join(err, w.Close())
}
