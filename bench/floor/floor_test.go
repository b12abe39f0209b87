package floor_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/bench/floor"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

const (
	uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	conf = "backend pmem\nimage_uuid " + uuid + "\nimage_size 4096\ninit /odd \"init\n"
	list = "- /lib/modules/a.ko x=1\n- /lib/modules/b-b.ko\n"
)

// writeMini writes a mini-initramfs of these files, and gives its path.
func writeMini(t *testing.T, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mini.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := compress.NewWriter(compress.Zstd, f)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.NewWriter(z)
	for name, body := range files {
		h := &cpio.Header{Name: strings.TrimPrefix(name, "/"), Ino: 1, Mode: cpio.TypeRegular | 0o644, NLink: 1, Size: int64(len(body))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func requireCompiler(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(floor.Compiler); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestBuild(t *testing.T) {
	requireCompiler(t)
	mini := writeMini(t, map[string]string{
		"/init": "storage-init", "/lib/modules/a.ko": "A", "/lib/modules/b-b.ko": "B",
		bootconf.ConfigPath: conf, bootconf.ModulesPath: list, bootconf.AliasesPath: "",
	})
	out := filepath.Join(t.TempDir(), "floor.img")
	o := floor.Options{Mini: mini, Modules: []string{"b_b", "a"}, Backend: bootconf.PmemDAX}
	if err := floor.Build(t.Context(), out, o); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := cpio.NewReader(f)
	files := map[string]string{}
	var format compress.Format
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], format = string(body), r.Format()
	}
	init := files["init"]
	delete(files, "init")
	want := map[string]string{"lib/modules/a.ko": "A", "lib/modules/b-b.ko": "B", "lower": "", "overlay": "", "sysroot": ""}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if format != compress.Zstd {
		t.Errorf("the archive is packed with %s, the mini-initramfs with zstd", format)
	}

	program, err := elf.NewFile(strings.NewReader(init))
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("init needs a dynamic linker")
	}
	for _, text := range []string{
		"/lib/modules/a.ko\x00", "x=1\x00", "/lib/modules/b-b.ko\x00", "/odd \"init\x00", "dax=always\x00",
		"<6>storage-init: handover backend=pmem-dax image=" + uuid + " verified=none us=0\n",
	} {
		if !bytes.Contains([]byte(init), []byte(text)) {
			t.Errorf("init has no %q", text)
		}
	}
}

func TestBuildFails(t *testing.T) {
	good := map[string]string{bootconf.ConfigPath: conf, bootconf.ModulesPath: list}
	for _, test := range []struct {
		name    string
		files   map[string]string
		modules []string
		backend bootconf.Backend
		want    string
	}{
		{"backend", good, nil, bootconf.Block, "backend block has none"},
		{"module", good, []string{"c"}, bootconf.Pmem, "there is no module c"},
		{"configuration", map[string]string{bootconf.ConfigPath: "timeout x\n"}, nil, bootconf.Pmem, bootconf.ConfigPath},
		{"list", map[string]string{bootconf.ModulesPath: "what\n"}, nil, bootconf.Pmem, bootconf.ModulesPath},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "floor.img")
			o := floor.Options{Mini: writeMini(t, test.files), Modules: test.modules, Backend: test.backend}
			err := floor.Build(t.Context(), out, o)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", err, test.want)
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a file: %v", err)
			}
		})
	}
	t.Run("compiler", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		o := floor.Options{Mini: writeMini(t, good), Backend: bootconf.Pmem}
		if err := floor.Build(t.Context(), filepath.Join(t.TempDir(), "floor.img"), o); !errors.Is(err, floor.ErrNoCompiler) {
			t.Errorf("error = %v, want %v", err, floor.ErrNoCompiler)
		}
	})
}
