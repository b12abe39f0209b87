package kmod

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/initrd/compress"
)

// maxModuleBytes bounds an unpacked module. The largest that distributions
// ship without debug information, amdgpu, has some 30 MB.
const maxModuleBytes = 512 << 20

// Read returns the content of a module, which is no alias, as the kernel loads
// it: unpacked (.ko.xz, .ko.zst, .ko.gz) and with its signature.
func (x *Index) Read(module string) ([]byte, error) {
	e := x.modules[Normalize(module)]
	if e == nil {
		return nil, fmt.Errorf("kernel %s has no module %s: %w", x.kver, module, ErrNotFound)
	}
	file := e.path
	if !filepath.IsAbs(file) {
		file = filepath.Join(x.dir, file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("module %s of kernel %s: %w", module, x.kver, err)
	}
	if data, err = unpack(filepath.Ext(file), data); err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", file, err)
	}
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return nil, fmt.Errorf("module %s is not an ELF file", file)
	}
	return data, nil
}

// formats are the compressions of modules by their last extension.
var formats = map[string]compress.Format{
	".ko": compress.None, ".xz": compress.XZ, ".gz": compress.Gzip, ".zst": compress.Zstd,
}

func unpack(ext string, packed []byte) ([]byte, error) {
	format, ok := formats[ext]
	if !ok {
		return nil, fmt.Errorf("unknown compression %q", ext)
	}
	var data bytes.Buffer
	_, err := Unpack(&data, bufio.NewReader(bytes.NewReader(packed)), format)
	return data.Bytes(), err
}

// Unpack writes the module that in holds, packed in this format, and gives the
// size that it has unpacked. Bytes behind the packed data are an error: what
// loads modules may take them for more of it, or not.
func Unpack(out io.Writer, in *bufio.Reader, format compress.Format) (sizeBytes int64, err error) {
	r, err := compress.NewReader(format, in)
	if err != nil {
		return 0, err
	}
	sizeBytes, err = io.Copy(out, io.LimitReader(r, maxModuleBytes+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return 0, err
	}
	if sizeBytes > maxModuleBytes {
		return 0, fmt.Errorf("module has more than %d bytes", maxModuleBytes)
	}
	if _, err := in.ReadByte(); err == nil {
		return 0, fmt.Errorf("bytes behind the end of the %s data", format)
	} else if !errors.Is(err, io.EOF) {
		return 0, err
	}
	return sizeBytes, nil
}

// Firmware returns the firmware files that a module's .modinfo section names,
// below /lib/firmware, sorted. Many of them are alternatives, or for devices of
// which no machine has all.
func Firmware(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo of module: %w", err)
	}
	var list []string
	for s := range strings.SplitSeq(string(data), "\x00") {
		if name, ok := strings.CutPrefix(s, "firmware="); ok && filepath.IsLocal(name) {
			list = append(list, filepath.Clean(name))
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}
