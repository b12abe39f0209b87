package compress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// suffixes tells the formats of the samples in testdata, which the usual tools
// made from small.txt.
var suffixes = map[string]Format{
	".zst": Zstd, ".xz": XZ, ".gz": Gzip, ".lz4": LZ4, ".lzma": LZMA, ".bz2": Bzip2, ".lzo": LZO,
}

// checked are the formats in which every damage to data shows.
var checked = map[Format]bool{Zstd: true, XZ: true, Gzip: true, Bzip2: true, LZO: true}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// samples gives the packed samples by format, and what they hold.
func samples(t testing.TB) (map[Format][]byte, []byte) {
	t.Helper()
	packed := make(map[Format][]byte)
	for suffix, f := range suffixes {
		packed[f] = readFile(t, filepath.Join("testdata", "small"+suffix))
	}
	return packed, readFile(t, "testdata/small.txt")
}

// unpack reads one segment and gives what it holds and what follows it.
func unpack(f Format, data []byte) (got, rest []byte, err error) {
	in := bufio.NewReader(bytes.NewReader(data))
	r, err := NewReader(f, in)
	if err != nil {
		return nil, nil, err
	}
	if got, err = io.ReadAll(r); err != nil {
		return got, nil, err
	}
	if err := r.Close(); err != nil {
		return got, nil, err
	}
	rest, err = io.ReadAll(in)
	return got, rest, err
}

// runTool runs a filter. Without the tool the test is skipped, in CI it fails.
func runTool(t testing.TB, in []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, stderr.Bytes())
	}
	return out.Bytes()
}

// noise gives n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// prose gives n bytes that do.
func prose(n int) []byte {
	var b bytes.Buffer
	rng := rand.New(rand.NewPCG(3, 4))
	for b.Len() < n {
		fmt.Fprintf(&b, "/usr/lib/modules/%d/kernel/%x.ko\n", rng.IntN(9), rng.IntN(5000))
	}
	return b.Bytes()[:n]
}

func TestParseFormat(t *testing.T) {
	for _, f := range Writable {
		if got, err := ParseFormat(string(f)); got != f || err != nil {
			t.Errorf("ParseFormat(%q) = %q, %v", f, got, err)
		}
	}
	for _, s := range []string{"", "lzo", "ZSTD"} {
		if got, err := ParseFormat(s); err == nil {
			t.Errorf("ParseFormat(%q) = %q, want an error", s, got)
		}
	}
}

func TestDetect(t *testing.T) {
	packed, _ := samples(t)
	for f, b := range packed {
		if got, ok := Detect(b); got != f || !ok {
			t.Errorf("Detect of %s = %q, %t", f, got, ok)
		}
	}
	for _, tt := range []struct {
		head string
		want Format
		ok   bool
	}{
		{"\x1f\x9e", Gzip, true},
		{"070701", None, true},
		{"070702", None, true},
		{"070707", None, true},
		{"", "", false},
		{"\x1f", "", false},
		{"\x00\x00", "", false},
		{"0708", "", false},
		{"\x50\x2a\x4d\x18", "", false}, // a skippable zstd frame: the kernel knows it not
	} {
		if got, ok := Detect([]byte(tt.head)); got != tt.want || ok != tt.ok {
			t.Errorf("Detect(%q) = %q, %t, want %q, %t", tt.head, got, ok, tt.want, tt.ok)
		}
	}
}

// tails are what may follow a segment.
var tails = map[string]string{
	"nothing": "",
	"padding": strings.Repeat("\x00", 513),
	"cpio":    "070701" + strings.Repeat("0", 104),
	"zstd":    "\x28\xb5\x2f\xfd tail",
	"bzip2":   "BZh9 tail",
	"xz":      "\xfd7zXZ\x00 tail",
	"gzip":    "\x1f\x8b\x08\x08 tail",
	"junk":    "\xff\xff\xff\xff tail",
}

// TestSegmentEnd reads the samples with something behind them: all of the
// segment and nothing else must be taken.
func TestSegmentEnd(t *testing.T) {
	packed, want := samples(t)
	for f, b := range packed {
		for name, tail := range tails {
			got, rest, err := unpack(f, append(bytes.Clone(b), tail...))
			if err != nil {
				t.Errorf("%s before %s: %v", f, name, err)
				continue
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s before %s: unpacked data differ", f, name)
			}
			if string(rest) != tail {
				t.Errorf("%s before %s: rest is %q", f, name, rest)
			}
		}
	}
}

// TestPlainReader takes a reader that is not buffered.
func TestPlainReader(t *testing.T) {
	packed, want := samples(t)
	for f, b := range packed {
		r, err := NewReader(f, io.MultiReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: unpacked data differ, error %v", f, err)
		}
	}
}

// TestTools reads what the tools write with the options that change the
// structure of their output.
func TestTools(t *testing.T) {
	inputs := map[string][]byte{
		"empty": {},
		"prose": prose(1 << 20),
		"noise": noise(300 << 10),
		"zeros": make([]byte, 2<<20),
		"large": append(make([]byte, 8<<20), prose(1<<20)...), // more than one lz4 block
	}
	for _, tt := range []struct {
		format Format
		tool   string
		args   []string
	}{
		{Zstd, "zstd", []string{"-q", "-c"}},
		{Zstd, "zstd", []string{"-q", "-c", "-19", "--no-check"}},
		{Zstd, "zstd", []string{"-q", "-c", "-1", "--long=27"}},
		{Zstd, "zstd", []string{"-q", "-c", "-T2"}},
		{XZ, "xz", []string{"-c", "-1", "--check=crc32"}},
		{XZ, "xz", []string{"-c", "-0", "--check=none"}},
		{XZ, "xz", []string{"-c", "-0", "--check=crc64", "-T2", "--block-size=200000"}},
		{XZ, "xz", []string{"-c", "-9", "--check=sha256"}},
		{Gzip, "gzip", []string{"-c", "-9"}},
		{Gzip, "gzip", []string{"-c", "-1", "-n"}},
		{LZ4, "lz4", []string{"-q", "-l", "-c", "-1"}},
		{LZ4, "lz4", []string{"-q", "-l", "-c", "-9"}},
		{LZMA, "xz", []string{"-c", "-1", "--format=lzma"}},
		{Bzip2, "bzip2", []string{"-c", "-1"}},
		{Bzip2, "bzip2", []string{"-c", "-9"}},
		{LZO, "lzop", []string{"-c"}},
		{LZO, "lzop", []string{"-c", "-9"}},
		{LZO, "lzop", []string{"-c", "-F"}}, // no checksums
		{LZO, "lzop", []string{"-c", "--crc32"}},
	} {
		t.Run(strings.Join(append([]string{tt.tool}, tt.args...), " "), func(t *testing.T) {
			for name, want := range inputs {
				packed := runTool(t, want, tt.tool, tt.args...)
				got, rest, err := unpack(tt.format, append(packed, "070701"...))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if !bytes.Equal(got, want) || string(rest) != "070701" {
					t.Errorf("%s: got %d bytes, want %d; rest %q", name, len(got), len(want), rest)
				}
			}
		})
	}
}

// TestWriter packs, twice, and unpacks by our own reader and by the tool.
func TestWriter(t *testing.T) {
	tools := map[Format][]string{
		Zstd: {"zstd", "-dc"}, XZ: {"xz", "-dc"}, Gzip: {"gzip", "-dc"}, LZ4: {"lz4", "-dc"}, None: {"cat"},
	}
	for _, f := range Writable {
		t.Run(string(f), func(t *testing.T) {
			for name, want := range map[string][]byte{
				"empty": {}, "prose": prose(1 << 20), "large": append(noise(200<<10), make([]byte, 9<<20)...),
			} {
				var packed [2]bytes.Buffer
				for i, chunk := range []int{1 << 20, 32 << 10} {
					w, err := NewWriter(f, &packed[i])
					if err != nil {
						t.Fatal(err)
					}
					// io.Copy would use ReadFrom, whose calls differ.
					for b := want; len(b) > 0; b = b[min(chunk, len(b)):] {
						if _, err := w.Write(b[:min(chunk, len(b))]); err != nil {
							t.Fatal(err)
						}
					}
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(packed[0].Bytes(), packed[1].Bytes()) {
					t.Errorf("%s: bytes depend on the sizes of the writes", name)
				}
				if got, _, err := unpack(f, packed[0].Bytes()); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: reader gives %d bytes, want %d, error %v", name, len(got), len(want), err)
				}
				got := runTool(t, packed[0].Bytes(), tools[f][0], tools[f][1:]...)
				if !bytes.Equal(got, want) {
					t.Errorf("%s: %v gives %d bytes, want %d", name, tools[f], len(got), len(want))
				}
			}
		})
	}
	for _, f := range []Format{LZMA, Bzip2, LZO, ""} {
		if _, err := NewWriter(f, io.Discard); err == nil {
			t.Errorf("NewWriter(%q) gives no error", f)
		}
	}
}

// TestTruncated cuts every sample at every byte.
func TestTruncated(t *testing.T) {
	packed, want := samples(t)
	for f, b := range packed {
		for n := range b {
			got, _, err := unpack(f, b[:n])
			if f == LZ4 && n == 4 {
				// A magic without blocks is what the tool writes for no data.
				if err != nil || len(got) != 0 {
					t.Errorf("%s: empty frame gives %d bytes, error %v", f, len(got), err)
				}
				continue
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %d of %d bytes: error %v, want unexpected EOF", f, n, len(b), err)
			}
			if !bytes.HasPrefix(want, got) {
				t.Errorf("%s: %d of %d bytes: wrong data before the error", f, n, len(b))
			}
		}
	}
}

// TestDamaged changes every byte of every sample.
func TestDamaged(t *testing.T) {
	packed, want := samples(t)
	for f, b := range packed {
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 0x55
			got, _, err := unpack(f, bad)
			if checked[f] && err == nil && !bytes.Equal(got, want) {
				t.Errorf("%s: byte %d changed: other data without an error", f, i)
			}
		}
	}
}

// TestHostile asks for too much; the memory taken must stay far below it.
func TestHostile(t *testing.T) {
	for _, tt := range []struct {
		name   string
		format Format
		data   string
		want   string
	}{
		{"window of 1 GiB", Zstd, "\x28\xb5\x2f\xfd\x00\xa0\x01\x00\x00", "window size exceeded"},
		{"content of 2^60 bytes in one piece", Zstd, "\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00", ""},
		{"reserved block type", Zstd, "\x28\xb5\x2f\xfd\x00\x00\x07\x00\x00", "reserved block type"},
		{"dictionary of 1 GiB", XZ, "\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x24\x00\x00\x00\x00\x00\x00\x00\x00", "larger than"},
		{"x86 filter", XZ, "\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x16\x00\x00\x00\x00\x00", "filters other"},
		{"dictionary of 2 GiB", LZMA, "\x5d\x00\x00\x00\x80\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00", "dictionary size"},
		{"block of 256 MiB", LZO, string(readFile(t, "testdata/small.lzo")[:lzopHeaderLen(t)]) + "\x10\x00\x00\x00\x00\x00\x00\x01", "larger than"},
		{"empty packed block", LZO, string(readFile(t, "testdata/small.lzo")[:lzopHeaderLen(t)]) + "\x00\x00\x10\x00\x00\x00\x00\x00", "bad packed size"},
		{"block of 8 MiB, cut", LZ4, "\x02\x21\x4c\x18\x00\x00\x80\x00", "unexpected EOF"},
		{"old method", Gzip, "\x1f\x9e\x08\x00\x00\x00\x00\x00\x00\x00", "invalid header"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := unpack(tt.format, []byte(tt.data))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 32<<20 {
				t.Errorf("took %d bytes", got)
			}
		})
	}
}

// lzopHeaderLen gives the length of the header of testdata/small.lzo.
func lzopHeaderLen(t *testing.T) int {
	t.Helper()
	b := bytes.NewReader(readFile(t, "testdata/small.lzo"))
	in := bufio.NewReader(b)
	if _, err := newLZOReader(&input{source: in}); err != nil {
		t.Fatal(err)
	}
	return int(b.Size()) - b.Len() - in.Buffered()
}

// checkSegment is what FuzzCompress asserts: whatever the bytes are, there is
// data or an error that names the format, and what is left is the input's end.
func checkSegment(t *testing.T, data []byte) (f Format, err error) {
	f, ok := Detect(data)
	if !ok || f == None {
		return "", nil
	}
	const limit = 16 << 20
	in := bufio.NewReader(bytes.NewReader(data))
	r, err := NewReader(f, in)
	if err == nil {
		defer r.Close()
		_, err = io.CopyN(io.Discard, r, limit)
	}
	switch {
	case errors.Is(err, io.EOF):
		rest, restErr := io.ReadAll(in)
		if restErr != nil || !bytes.HasSuffix(data, rest) || len(rest) > len(data)-2 {
			t.Errorf("%s: rest of %d bytes is not the input's end", f, len(rest))
		}
		return f, nil
	case err != nil && !strings.Contains(err.Error(), "read "+string(f)):
		t.Errorf("%s: error without the format: %v", f, err)
	}
	return f, err
}

func FuzzCompress(f *testing.F) {
	packed, _ := samples(f)
	for _, b := range packed {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkSegment(t, data) })
}

// TestFuzzSeeds proves that each seed of FuzzCompress is read to its end.
func TestFuzzSeeds(t *testing.T) {
	packed, _ := samples(t)
	for f, b := range packed {
		if got, err := checkSegment(t, b); got != f || err != nil {
			t.Errorf("%s: checkSegment = %q, %v", f, got, err)
		}
	}
}
