package builder

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/builder/kmod/kmodtest"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// program writes the least file that is an ELF executable, with an interpreter
// or without.
func program(t *testing.T, machine elf.Machine, dynamic bool) string {
	t.Helper()
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56,
	}
	p := elf.Prog64{Type: uint32(elf.PT_INTERP)}
	if dynamic {
		h.Phnum = 1
	}
	var b bytes.Buffer
	for _, part := range []any{h, p} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "storage-init")
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// buildOptions are those of a build that works, in a folder of its own.
func buildOptions(t *testing.T, kernel kmodtest.Kernel, source string, settings ...string) Options {
	t.Helper()
	modules := kmodtest.Write(t, t.TempDir(), kernel)
	if err := os.WriteFile(filepath.Join(modules, "config"), []byte(configText+"CONFIG_RD_XZ=y\nCONFIG_RD_GZIP=y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := Options{
		KernelVersion: kernel.Version,
		Arch:          "amd64",
		Source:        Source{Archive: source},
		ModulesDir:    modules,
		OutputDir:     filepath.Join(t.TempDir(), "out"),
		StorageInit:   program(t, elf.EM_X86_64, false),
		Config:        bootconf.Default(),
		Producer:      native{},
		Image:         testLayouts()["lz4"],
		Compress:      compress.Zstd,
		Storage:       []string{"virtio"},
		ToolVersion:   "test",
		Warn:          func(s string) { t.Errorf("warning: %s", s) },
	}
	o.Image.TempDir = t.TempDir()
	for _, s := range settings {
		key, value, _ := strings.Cut(s, " ")
		if err := o.Config.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// sourceArchive is a tree of initramfs-tools behind a segment with microcode.
func sourceArchive(t *testing.T) string {
	t.Helper()
	early := newArchive(t)
	early.dirs("kernel", "kernel/x86", "kernel/x86/microcode")
	early.file("kernel/x86/microcode/GenuineIntel.bin", "microcode")
	a := newArchive(t)
	generators["initramfs-tools with busybox"].make(a)
	path := a.save()
	main, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(early.save())
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z, err := compress.NewWriter(compress.Gzip, &packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(main); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	first = append(first, make([]byte, -len(first)&511)...)
	if err := os.WriteFile(path, append(first, packed.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readOutput(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for _, name := range namesIn(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	return files
}

func TestBuild(t *testing.T) {
	source := sourceArchive(t)
	o := buildOptions(t, oldKernel(), source, "backend auto:loop,ram", "bootfs LABEL=boot", "timeout 7")
	m, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	files := readOutput(t, o.OutputDir)
	image, mini := files["initoverlayfs-6.1.0-9-amd64.img"], files["initramfs-6.1.0-9-amd64.img"]
	if len(files) != 3 || len(image) == 0 || len(mini) == 0 {
		t.Fatalf("output: %q", namesIn(t, o.OutputDir))
	}

	reason := "the original refuses a root that is not a ramfs or tmpfs"
	want := &bootconf.Manifest{
		Format: 1, KernelVersion: "6.1.0-9-amd64", Arch: "amd64", ToolVersion: "test",
		Source: bootconf.ManifestSource{Path: "initramfs.img", SHA256: fileDigest(t, source), Kind: "initramfs-tools"},
		Image: bootconf.ManifestImage{
			File: "initoverlayfs-6.1.0-9-amd64.img", Size: int64(len(image)), UUID: m.Image.UUID, SHA256: digestOf(image),
			Features: m.Image.Features,
		},
		Mini: bootconf.ManifestMini{
			File: "initramfs-6.1.0-9-amd64.img", Size: int64(len(mini)), SHA256: digestOf(mini), Modules: m.Mini.Modules,
		},
		Changes: []bootconf.Change{{Path: "usr/sbin/run-init", Reason: reason}, {Path: "usr/sbin/switch_root", Reason: reason}},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	read, err := ReadManifest(filepath.Join(o.OutputDir, "initoverlayfs-6.1.0-9-amd64.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, read); diff != "" {
		t.Errorf("manifest in the file (-want +got):\n%s", diff)
	}
	if len(m.Mini.Modules) == 0 || !strings.Contains(strings.Join(m.Mini.Modules, "\n"), "loop,ram /lib/modules/loop.ko") {
		t.Errorf("modules: %q", m.Mini.Modules)
	}

	config, err := MiniConfig(filepath.Join(o.OutputDir, m.Mini.File))
	if err != nil {
		t.Fatal(err)
	}
	wantConfig := o.Config
	wantConfig.FS = "/initoverlayfs-6.1.0-9-amd64.img"
	wantConfig.ImageSize = int64(len(image))
	if wantConfig.ImageUUID, err = bootconf.ParseUUID(m.Image.UUID); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantConfig, config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if !bytes.Contains(mini[:1024], []byte("microcode")) {
		t.Error("the mini-initramfs does not begin with the microcode")
	}

	again := o
	again.OutputDir = filepath.Join(t.TempDir(), "out")
	again.Image.TempDir = t.TempDir()
	if _, err := Build(context.Background(), again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(files, readOutput(t, again.OutputDir)); diff != "" {
		t.Errorf("two builds differ:\n%s", diff)
	}
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return digestOf(data)
}

func TestBuildEmbedded(t *testing.T) {
	o := buildOptions(t, oldKernel(), sourceArchive(t), "backend embedded")
	m, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	files := readOutput(t, o.OutputDir)
	r := cpio.NewReader(bytes.NewReader(files[m.Mini.File]))
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("no %s: %v", bootconf.EmbeddedPath, err)
		}
		if "/"+h.Name != bootconf.EmbeddedPath {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, files[m.Image.File]) {
			t.Error("the embedded image is not the image")
		}
		return
	}
}

func TestBuildAuto(t *testing.T) {
	tests := []struct {
		name   string
		kernel kmodtest.Kernel
		layout string
		want   string
	}{
		{"compressed", oldKernel(), "lz4", "auto:pmem,block,loop,ram"},
		{"uncompressed", oldKernel(), "uncompressed", "auto:pmem-dax,pmem,block,loop,ram"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := buildOptions(t, test.kernel, sourceArchive(t), "backend auto")
			o.Image.Compress = testLayouts()[test.layout].Compress
			m, err := Build(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			config, err := MiniConfig(filepath.Join(o.OutputDir, m.Mini.File))
			if err != nil {
				t.Fatal(err)
			}
			if got := bootconf.FormatBackends(config.Backends, config.Auto); got != test.want {
				t.Errorf("backends %s, want %s", got, test.want)
			}
			if m.Image.DAX != o.Image.Compress.DAX() {
				t.Errorf("dax = %t", m.Image.DAX)
			}
		})
	}
}

func TestBuildWarnsOfUnknownTree(t *testing.T) {
	a := newArchive(t)
	generators["unknown"].make(a)
	a.file("missing/parent", "dropped")
	o := buildOptions(t, oldKernel(), a.save(), "backend block")
	var warnings []string
	o.Warn = func(s string) { warnings = append(warnings, s) }
	m, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if m.Source.Kind != bootconf.KindUnknown || m.Changes == nil || len(m.Changes) != 0 {
		t.Errorf("kind %s, changes %v", m.Source.Kind, m.Changes)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "hand-over") || !strings.Contains(warnings[1], "missing/parent") {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestBuildFails(t *testing.T) {
	source := sourceArchive(t)
	tests := []struct {
		name     string
		settings []string
		edit     func(o *Options)
		want     string
	}{
		{"file on 6.1", []string{"backend file"}, nil, "CONFIG_EROFS_FS_BACKED_BY_FILE"},
		{"compressed DAX", []string{"backend pmem-dax"}, nil, "uncompressed"},
		{"no modules", nil, func(o *Options) { o.ModulesDir = "/nonexistent" }, "/nonexistent"},
		{"version", nil, func(o *Options) { o.KernelVersion = "../6.1" }, "kernel version"},
		{"no program", nil, func(o *Options) { o.StorageInit = "/nonexistent" }, "/nonexistent"},
		{"dynamic program", nil, func(o *Options) { o.StorageInit = program(t, elf.EM_X86_64, true) }, "not static"},
		{"other program", nil, func(o *Options) { o.StorageInit = program(t, elf.EM_AARCH64, false) }, "EM_AARCH64"},
		{"architecture", nil, func(o *Options) { o.Arch = "pdp11" }, "pdp11"},
		{"source", nil, func(o *Options) { o.Source.Archive = "/nonexistent" }, "/nonexistent"},
		{"source is no archive", nil, func(o *Options) { o.Source.Archive = o.StorageInit }, "segment 0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			settings := test.settings
			if settings == nil {
				settings = []string{"backend block"}
			}
			o := buildOptions(t, oldKernel(), source, settings...)
			if err := os.MkdirAll(o.OutputDir, 0o755); err != nil {
				t.Fatal(err)
			}
			old := filepath.Join(o.OutputDir, miniName(o.KernelVersion))
			if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			if test.edit != nil {
				test.edit(&o)
			}
			_, err := Build(context.Background(), o)
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not contain %q", err, test.want)
			}
			if diff := cmp.Diff(map[string][]byte{filepath.Base(old): []byte("old")}, readOutput(t, o.OutputDir)); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if got := namesIn(t, o.Image.TempDir); len(got) > 0 {
				t.Errorf("left behind in the folder for temporary files: %q", got)
			}
		})
	}
}

func TestReadManifestRefuses(t *testing.T) {
	good := bootconf.Manifest{Format: 1}
	good.Image.File, good.Mini.File = "image", "mini"
	tests := map[string]struct {
		edit func(m *bootconf.Manifest)
		want string
	}{
		"format":    {func(m *bootconf.Manifest) { m.Format = 2 }, "format 2"},
		"path":      {func(m *bootconf.Manifest) { m.Image.File = "../image" }, "../image"},
		"no name":   {func(m *bootconf.Manifest) { m.Mini.File = "" }, "bad file name"},
		"this same": {func(*bootconf.Manifest) {}, ""},
	}
	for name, test := range tests {
		m := good
		test.edit(&m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "manifest")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = ReadManifest(path)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v does not contain %q", name, err, test.want)
		}
	}
}

func TestFindStorageInit(t *testing.T) {
	if got, err := FindStorageInit(program(t, elf.EM_X86_64, false), "amd64"); err != nil {
		t.Errorf("FindStorageInit(named) = %q, %v", got, err)
	}
	// Neither beside the test program nor, on a machine without an
	// installation, in the system.
	_, err := FindStorageInit("", runtime.GOARCH)
	var missing *HintedError
	if _, installed := os.Stat("/usr/lib/initoverlayfs/storage-init"); installed != nil && !errors.As(err, &missing) {
		t.Errorf("FindStorageInit(\"\") error %v, want one with a hint", err)
	}
}
