package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"initoverlayfs/initrd/compress"
	"initoverlayfs/vmtest/fixtures"
)

// tinyELF is a kernel with nothing but notes.
func tinyELF(notes []byte) []byte {
	const ehdr, phdr = 64, 56
	le := binary.LittleEndian
	b := make([]byte, ehdr+phdr)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], ehdr) // program headers
	le.PutUint16(b[52:], ehdr)
	le.PutUint16(b[54:], phdr)
	le.PutUint16(b[56:], 1)
	p := b[ehdr:]
	le.PutUint32(p, 4) // PT_NOTE
	le.PutUint64(p[8:], ehdr+phdr)
	le.PutUint64(p[32:], uint64(len(notes)))
	le.PutUint64(p[40:], uint64(len(notes)))
	return append(b, notes...)
}

func note(name string, kind uint32, desc string) []byte {
	var b []byte
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	for _, s := range []string{name, desc} {
		b = append(b, s...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// bzImage wraps a payload.
func bzImage(payload []byte) []byte {
	const setup = 2
	b := make([]byte, (setup+1)*sectorSize+0x20)
	le := binary.LittleEndian
	b[setupSectors] = setup
	copy(b[headerMagic:], "HdrS")
	le.PutUint16(b[headerVersion:], 0x20f)
	le.PutUint32(b[payloadOffset:], 0x20)
	le.PutUint32(b[payloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "behind"...)
}

func pack(t *testing.T, format compress.Format, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := compress.NewWriter(format, &b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtract(t *testing.T) {
	entry := tinyELF(append(note("GNU\x00", 3, "build"), note("Xen\x00", 18, "\x00\x00\x00\x01")...))
	without := tinyELF(append(note("Xen\x00", 6, "linux\x00"), note("Linux\x00", 18, "1234")...))
	zstd := pack(t, compress.Zstd, entry)
	for _, test := range []struct {
		name  string
		image []byte
		want  []byte
		err   error
		text  string
	}{
		{"zstd", bzImage(zstd), entry, nil, ""},
		{"xz", bzImage(pack(t, compress.XZ, entry)), entry, nil, ""},
		{"gzip", bzImage(pack(t, compress.Gzip, entry)), entry, nil, ""},
		{"uncompressed", bzImage(entry), entry, nil, ""},
		{"xz cut short", bzImage(pack(t, compress.XZ, entry)[:100]), nil, nil, "payload: xz"},
		{"no entry", bzImage(pack(t, compress.Zstd, without)), nil, ErrNotBootable, ""},
		{"no notes", bzImage(pack(t, compress.Zstd, tinyELF(nil))), nil, ErrNotBootable, ""},
		{"note cut short", bzImage(tinyELF(note("Xen\x00", 18, "x")[:14])), nil, ErrNotBootable, ""},
		{"no kernel", bzImage(pack(t, compress.Zstd, []byte("text"))), nil, nil, "payload: "},
		{"cut short", bzImage(zstd)[:3*sectorSize+0x20+len(zstd)/2], nil, io.ErrUnexpectedEOF, ""},
		{"short header", make([]byte, 0x100), nil, io.ErrUnexpectedEOF, "header"},
		{"other file", make([]byte, 0x1000), nil, nil, "not a bzImage"},
		{"unknown compression", bzImage(make([]byte, 100)), nil, nil, "unknown compression"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			in, out := filepath.Join(t.TempDir(), "vmlinuz"), filepath.Join(dir, "vmlinux")
			if err := os.WriteFile(in, test.image, 0o600); err != nil {
				t.Fatal(err)
			}
			err := Extract(out, in)
			if test.want != nil {
				if err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(out)
				if err != nil || !bytes.Equal(got, test.want) {
					t.Errorf("%d bytes, %v; want %d", len(got), err, len(test.want))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.text) || test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("error = %v, want %v and %q", err, test.err, test.text)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestExtractDebian takes the kernels of the fixtures.
func TestExtractDebian(t *testing.T) {
	for _, name := range []string{"kernel-6.1", "kernel-6.12", "kernel-sid"} {
		t.Run(name, func(t *testing.T) {
			if err := Extract(filepath.Join(t.TempDir(), "vmlinux"), fixtures.OpenKernel(t, name).Image); err != nil {
				t.Error(err)
			}
		})
	}
}
