package builder

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

// elfProgram is an ELF file that has nothing but what it is linked to.
func elfProgram(t *testing.T, interpreter, runpath string, needed ...string) string {
	t.Helper()
	strs := []byte{0}
	name := func(s string) uint64 {
		at := len(strs)
		strs = append(append(strs, s...), 0)
		return uint64(at)
	}
	var dynamic []elf.Dyn64
	for _, n := range needed {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: name(n)})
	}
	if runpath != "" {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_RUNPATH), Val: name(runpath)})
	}
	dynamic = append(dynamic, elf.Dyn64{})
	dynstr, dynsec := name(".dynstr"), name(".dynamic")
	const header, program, section = 64, 56, 64
	at := uint64(header + program + 3*section)
	dynamicAt := at + uint64(len(interpreter)) + 1
	stringsAt := dynamicAt + uint64(16*len(dynamic))
	var b bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Phoff: header, Shoff: header + program, Ehsize: header,
			Phentsize: program, Phnum: 1, Shentsize: section, Shnum: 3, Shstrndx: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_INTERP), Off: at, Filesz: uint64(len(interpreter)) + 1},
		elf.Section64{},
		elf.Section64{Name: uint32(dynstr), Type: uint32(elf.SHT_STRTAB), Off: stringsAt, Size: uint64(len(strs))},
		elf.Section64{Name: uint32(dynsec), Type: uint32(elf.SHT_DYNAMIC), Off: dynamicAt, Size: uint64(16 * len(dynamic)), Link: 1, Entsize: 16},
		append([]byte(interpreter), 0),
		dynamic,
		strs,
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// systemdTree is the archive of a tree with systemd, on one /usr.
func systemdTree(t *testing.T) string {
	a := newArchive(t)
	const multiarch = "usr/lib/x86_64-linux-gnu"
	a.dirs("usr", "usr/bin", "usr/lib", "usr/lib/systemd", multiarch, "usr/lib64", "etc")
	a.link("lib", "usr/lib")
	a.link("lib64", "usr/lib64")
	a.link("bin", "usr/bin")
	a.link("init", "usr/lib/systemd/systemd")
	a.file("usr/lib/systemd/systemd", elfProgram(t, "/lib64/ld.so.2", "$ORIGIN/../x:/usr/lib/systemd", "libcore.so", "libc.so.6", "libmissing.so"))
	a.file("usr/lib/systemd/libcore.so", elfProgram(t, "", "", "libc.so.6", "libloop.so"))
	a.file("usr/lib/systemd/systemd-journald", elfProgram(t, "/lib64/ld.so.2", "", "libc.so.6"))
	a.file("usr/bin/udevadm", "\x7fELF and then nothing that makes sense")
	a.file("usr/bin/bash", elfProgram(t, "/lib64/ld.so.2", ""))
	a.file(multiarch+"/libc.so.6", strings.Repeat("no ELF ", 1000))
	a.file(multiarch+"/libloop.so.1.2", elfProgram(t, "", "", "libloop.so"))
	a.link(multiarch+"/libloop.so", "libloop.so.1.2")
	a.link("usr/lib64/ld.so.2", "../../"+multiarch+"/ld.so")
	a.file(multiarch+"/ld.so", "loader")
	a.file("etc/other", strings.Repeat("other ", 5000))
	return a.save()
}

// orderedPaths gives the names of what has a place, in order.
func orderedPaths(t *testing.T, source string, b BootFiles) []string {
	t.Helper()
	tree, contents := treeOf(t, source)
	order, err := b.order(tree, contents)
	if err != nil {
		t.Fatal(err)
	}
	paths := make([]string, len(order))
	seen := map[*cpio.Node]bool{}
	err = tree.Walk(func(path string, n *cpio.Node) error {
		if place := order[n]; place > 0 && !seen[n] {
			seen[n] = true
			paths[place-1] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestBootFilesOrder(t *testing.T) {
	source := systemdTree(t)
	const multiarch = "usr/lib/x86_64-linux-gnu"
	for _, test := range []struct {
		name string
		b    BootFiles
		want []string
	}{
		{"init", BootFiles{Init: true}, []string{
			"init", "usr/lib/systemd/systemd",
			"lib64", "usr/lib64", "usr/lib64/ld.so.2", multiarch + "/ld.so",
			"usr", "usr/lib", "usr/lib/systemd", "usr/lib/systemd/libcore.so",
			multiarch, multiarch + "/libc.so.6",
			multiarch + "/libloop.so", multiarch + "/libloop.so.1.2",
			"usr/lib/systemd/systemd-journald",
			"usr/bin", "usr/bin/udevadm",
		}},
		{"none", BootFiles{}, []string{}},
		{"a list", BootFiles{Paths: []string{"/bin/bash", "/not/there", "/bin/bash", "/etc/../etc/other"}}, []string{
			"bin", "usr/bin", "usr/bin/bash", "etc", "etc/other",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, orderedPaths(t, source, test.b)); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
	a := newArchive(t)
	a.dirs("bin")
	a.file("init", "#! /bin/sh -e\nexec true\n")
	a.file("bin/sh", "#!/init\n")
	if diff := cmp.Diff([]string{"init", "bin", "bin/sh"}, orderedPaths(t, a.save(), BootFiles{Init: true})); diff != "" {
		t.Errorf("scripts (-want +got):\n%s", diff)
	}
}

// The choice of boot files is a part of an image's identity, and changes nothing
// in the tree.
func TestBootFilesImage(t *testing.T) {
	source := systemdTree(t)
	tree, contents := treeOf(t, source)
	want := entriesOfTree(t, tree, contents.Open)
	list := BootFiles{Paths: []string{"/etc/other"}}
	uuids := map[bootconf.UUID]int{}
	for i, b := range []BootFiles{{}, {Init: true}, list, {Paths: []string{"/etc/other", "/init"}}} {
		for name, o := range testLayouts() {
			if name != "lz4hc" {
				continue
			}
			o.BootFiles = b
			image, out := createNative(t, Source{Archive: source}, o)
			again, second := createNative(t, Source{Archive: source}, o)
			if diff := cmp.Diff(want, entriesOfImage(t, out)); diff != "" {
				t.Errorf("image (-archive +image):\n%s", diff)
			}
			if other, ok := uuids[image.UUID]; ok || again.UUID != image.UUID {
				t.Errorf("images %d and %d have the UUIDs %s and %s", i, other, image.UUID, again.UUID)
			}
			uuids[image.UUID] = i
			first, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if same, err := os.ReadFile(second); err != nil || !bytes.Equal(first, same) {
				t.Errorf("the second image of %+v differs, %v", b, err)
			}
			// It begins with what is the first, or else that is compressed.
			plain := bytes.HasPrefix(first[4096:], bytes.Repeat([]byte("other "), 600))
			if want := slices.Contains(b.Paths, "/etc/other"); plain != want {
				t.Errorf("with %+v, /etc/other lies in front: %t, want %t", b, plain, want)
			}
		}
	}
}

func TestBootFilesRefused(t *testing.T) {
	source := systemdTree(t)
	o := DefaultImageOptions()
	o.BootFiles.Paths = []string{"/not/there"}
	out := filepath.Join(t.TempDir(), "image")
	_, err := CreateImage(context.Background(), Source{Archive: source}, out, native{}, o, 0)
	if err == nil || !strings.Contains(err.Error(), "names no file") {
		t.Errorf("a list without a file: %v", err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("there is an image")
	}
	for _, b := range []BootFiles{o.BootFiles, {Init: true}} {
		o.BootFiles = b
		if _, err := (mkfsErofs{}).Begin(context.Background(), o); err == nil || !strings.Contains(err.Error(), "mkfs.erofs does not") {
			t.Errorf("mkfs.erofs and %+v: %v", b, err)
		}
	}
}

func TestParseBootFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", "# of one boot\n/init\r\n\n/usr/bin/with space\n")
	for _, test := range []struct {
		value string
		want  BootFiles
	}{
		{"init", BootFiles{Init: true}},
		{"none", BootFiles{}},
		{good, BootFiles{Paths: []string{"/init", "/usr/bin/with space"}}},
	} {
		got, err := ParseBootFiles(test.value)
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("ParseBootFiles(%q): %v (-want +got):\n%s", test.value, err, diff)
		}
	}
	for _, test := range []struct{ value, want string }{
		{"", "no such file"},
		{filepath.Join(dir, "missing"), "no such file"},
		{write("relative", "/init\nusr/bin\n"), `relative:2: "usr/bin" is not an absolute path`},
		{write("zero", "/a\x00b\n"), "zero:1: "},
		{write("empty", "# nothing\n"), "names no path"},
		{write("long", strings.Repeat("/x", 100_000)), "long: "},
	} {
		if b, err := ParseBootFiles(test.value); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("ParseBootFiles(%q) = %v, %v; want %q", test.value, b, err, test.want)
		}
	}
}
