package bench

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// records gives the entries of an archive by name, with the format of their
// segments and what they hold.
func records(t *testing.T, path string) (names []string, formats map[string]compress.Format, bodies map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	formats, bodies = map[string]compress.Format{}, map[string][]byte{}
	r := cpio.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, formats, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		formats[h.Name] = r.Format()
		if bodies[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// segment appends an archive of files in a format.
func segment(t *testing.T, out *bytes.Buffer, format compress.Format, files map[string]string, order ...string) {
	t.Helper()
	packed, err := compress.NewWriter(format, out)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.NewWriter(packed)
	for i, name := range order {
		h := &cpio.Header{Name: name, Ino: uint32(i + 1), Mode: cpio.TypeRegular | 0o644, NLink: 1, Size: int64(len(files[name]))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	out.Write(make([]byte, -out.Len()&511))
}

func TestRepack(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"kernel/x86/microcode/AuthenticAMD.bin": "microcode", "etc/early": "stored", "init": "#!", "usr/bin/tool": "tool",
	}
	var source bytes.Buffer
	segment(t, &source, compress.None, files, "kernel/x86/microcode/AuthenticAMD.bin", "etc/early")
	segment(t, &source, compress.Gzip, files, "init", "usr/bin/tool")
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, source.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	const fill = fillingFile + 1000
	if err := repack(t.Context(), in, out, compress.LZ4, Filling{Bytes: fill, Random: true}); err != nil {
		t.Fatal(err)
	}
	names, formats, bodies := records(t, out)
	want := []string{
		"kernel/x86/microcode/AuthenticAMD.bin", "etc/early", "init", "usr/bin/tool",
		fillingPath, fillingPath + "/00000", fillingPath + "/00001",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Fatalf("entries (-want +got):\n%s", diff)
	}
	for name, text := range files {
		if got := string(bodies[name]); got != text {
			t.Errorf("%s holds %q, want %q", name, got, text)
		}
	}
	if got := formats[names[0]]; got != compress.None {
		t.Errorf("the microcode is in a segment of format %s; the kernel finds it in an uncompressed one only", got)
	}
	for _, name := range names[1:] {
		if got := formats[name]; got != compress.LZ4 {
			t.Errorf("%s is in a segment of format %s, want lz4", name, got)
		}
	}
	if got := len(bodies[fillingPath+"/00000"]) + len(bodies[fillingPath+"/00001"]); got != fill {
		t.Errorf("the filling has %d bytes, want %d", got, fill)
	}
}

func TestRepackFails(t *testing.T) {
	dir := t.TempDir()
	var source bytes.Buffer
	segment(t, &source, compress.Gzip, map[string]string{"init": "#!"}, "init")
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, source.Bytes()[:20], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := repack(t.Context(), in, out, compress.Zstd, Filling{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error = %v, want that the archive is cut short", err)
	}
	if left, _ := filepath.Glob(out + "*"); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

func TestParseFilling(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Filling
	}{
		{"0", Filling{}}, {"64M", Filling{64 << 20, true}}, {"1G-text", Filling{1 << 30, false}},
	} {
		if got, err := ParseFilling(test.in); err != nil || got != test.want {
			t.Errorf("ParseFilling(%q) = %+v, %v; want %+v", test.in, got, err, test.want)
		}
	}
	for _, bad := range []string{"", "5", "M", "-1M", "17G", "1Gtext", "1.5G", "64K"} {
		if got, err := ParseFilling(bad); err == nil {
			t.Errorf("ParseFilling(%q) = %+v without an error", bad, got)
		}
	}
}

// TestFilling holds the filling to its kind: random bytes stay what they are,
// text becomes less than half.
func TestFilling(t *testing.T) {
	for _, f := range []Filling{{1 << 20, true}, {1 << 20, false}} {
		var packed bytes.Buffer
		w, err := compress.NewWriter(compress.LZ4, &packed)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range f.files() {
			if file.Body == nil {
				continue
			}
			if _, err := io.Copy(w, file.Body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		ratio := float64(packed.Len()) / float64(f.Bytes)
		if f.Random && ratio < 1 || !f.Random && (ratio < 0.2 || ratio > 0.5) {
			t.Errorf("filling %+v becomes %.2f of itself", f, ratio)
		}
	}
}
