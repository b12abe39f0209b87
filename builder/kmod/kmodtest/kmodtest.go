// Package kmodtest makes module directories for tests.
package kmodtest

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Module is one module to make.
type Module struct {
	File     string   // below the module directory, such as kernel/fs/foo.ko.xz
	Deps     []string // files, all that are needed, as modules.dep has them
	Pre      []string // soft dependencies
	Post     []string
	Aliases  []string
	Firmware []string
	Signed   bool
}

// Kernel is one kernel's modules.
type Kernel struct {
	Version  string
	Modules  []Module
	Builtin  []string // files, as modules.builtin has them
	Modinfo  []string // NAME.KEY=VALUE, as modules.builtin.modinfo has them
	Absolute bool     // modules.dep has absolute paths, as it once had
}

// Write makes the module directory of k below root and returns its path.
func Write(t testing.TB, root string, k Kernel) string {
	t.Helper()
	dir := filepath.Join(root, "lib/modules", k.Version)
	prefix := ""
	if k.Absolute {
		prefix = "/lib/modules/" + k.Version + "/"
	}
	var dep, soft, alias strings.Builder
	for _, m := range k.Modules {
		write(t, filepath.Join(dir, m.File), Pack(t, m.File, ELF(m)))
		name, _, _ := strings.Cut(filepath.Base(m.File), ".")
		name = strings.ReplaceAll(name, "-", "_")
		dep.WriteString(prefix + m.File + ":")
		for _, d := range m.Deps {
			dep.WriteString(" " + prefix + d)
		}
		dep.WriteString("\n")
		if m.Pre != nil || m.Post != nil {
			fmt.Fprintf(&soft, "softdep %s pre: %s post: %s\n", name, strings.Join(m.Pre, " "), strings.Join(m.Post, " "))
		}
		for _, a := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, name)
		}
	}
	write(t, filepath.Join(dir, "modules.dep"), []byte(dep.String()))
	write(t, filepath.Join(dir, "modules.softdep"), []byte("# Soft dependencies\n"+soft.String()))
	write(t, filepath.Join(dir, "modules.alias"), []byte("# Aliases\n"+alias.String()))
	write(t, filepath.Join(dir, "modules.builtin"), []byte(strings.Join(k.Builtin, "\n")+"\n"))
	write(t, filepath.Join(dir, "modules.builtin.modinfo"), []byte(strings.Join(k.Modinfo, "\x00")+"\x00"))
	return dir
}

// ELF makes the module's file as Index.Read returns it: a relocatable object
// with nothing but a .modinfo section.
func ELF(m Module) []byte {
	info := []byte("license=GPL\x00")
	for _, f := range m.Firmware {
		info = append(info, "firmware="+f+"\x00"...)
	}
	info = append(info, "description="+filepath.Base(m.File)+"\x00"...)
	names := "\x00.modinfo\x00.shstrtab\x00"
	const headerBytes, sectionBytes = 64, 64
	infoAt := uint64(headerBytes + 3*sectionBytes)
	namesAt := infoAt + uint64(len(info))
	header := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: headerBytes, Ehsize: headerBytes, Shentsize: sectionBytes, Shnum: 3, Shstrndx: 2,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = 1
	var b bytes.Buffer
	for _, part := range []any{
		header,
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: infoAt, Size: uint64(len(info)), Addralign: 1},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names)), Addralign: 1},
		info,
		[]byte(names),
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err) // the parts are all of fixed size
		}
	}
	if m.Signed {
		return Sign(b.Bytes())
	}
	return b.Bytes()
}

// Sign appends what looks like a signature to a module.
func Sign(module []byte) []byte {
	signature := bytes.Repeat([]byte{0x30, 0x82}, 300)
	b := append(bytes.Clone(module), signature...)
	b = append(b, 0, 0, 2, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(signature)))
	return append(b, "~Module signature appended~\n"...)
}

// Pack compresses data as a file of this name is.
func Pack(t testing.TB, file string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch ext := filepath.Ext(file); ext {
	case ".ko":
		return data
	case ".gz":
		w := gzip.NewWriter(&b)
		if _, err = w.Write(data); err == nil {
			err = w.Close()
		}
	case ".xz":
		var w *xz.Writer
		if w, err = xz.NewWriter(&b); err == nil {
			if _, err = w.Write(data); err == nil {
				err = w.Close()
			}
		}
	case ".zst":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&b); err == nil {
			if _, err = w.Write(data); err == nil {
				err = w.Close()
			}
		}
	default:
		t.Fatalf("unknown compression %q", ext)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, file string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
