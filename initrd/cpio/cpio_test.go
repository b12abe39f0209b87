package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	other "github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	uroot "github.com/u-root/u-root/pkg/cpio"

	"initoverlayfs/initrd/compress"
)

// entry is a header with its body. Size and NLink are filled in when 0.
type entry struct {
	Header
	body string
}

func file(name, body string) entry {
	return entry{Header{Name: name, Mode: TypeRegular | 0o644, MTime: 100}, body}
}

func link(name string, ino uint32, body string) entry {
	e := file(name, body)
	e.Ino, e.NLink = ino, 2
	return e
}

func dir(name string, mtime int64) entry {
	return entry{Header{Name: name, Mode: TypeDir | 0o755, MTime: mtime}, ""}
}

func symlink(name, target string) entry {
	return entry{Header{Name: name, Mode: TypeSymlink | 0o777, MTime: 100}, target}
}

func device(name string, kind, major, minor uint32) entry {
	return entry{Header{Name: name, Mode: kind | 0o600, MTime: 100, RDevMajor: major, RDevMinor: minor}, ""}
}

// newc writes an archive.
func newc(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		h.NLink = max(h.NLink, 1)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pack(t testing.TB, f compress.Format, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := compress.NewWriter(f, &b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pad(n int) []byte { return make([]byte, n) }

func align4(b []byte) []byte { return append(b, pad(-len(b)&3)...) }

// readAll reads an initramfs into entries.
func readAll(data []byte) (got []entry, err error) {
	r := NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return got, err
		}
		got = append(got, entry{*h, string(body)})
	}
}

func names(entries []entry) (s []string) {
	for _, e := range entries {
		s = append(s, fmt.Sprintf("%d:%s", e.Segment, e.Name))
	}
	return s
}

var equateEntries = cmp.AllowUnexported(entry{})

// sample has every type of file.
func sample() []entry {
	return []entry{
		dir(".", 1), dir("dev", 2), device("dev/console", TypeChar, 5, 1), device("dev/sda", TypeBlock, 8, 0xfffff),
		device("fifo", TypeFIFO, 0, 0), device("socket", TypeSocket, 0, 0),
		link("one", 7, ""), link("two", 7, "shared"), file("empty", ""), file("odd", "12345"),
		symlink("link", "odd"),
		{Header{Name: "suid", Mode: TypeRegular | 0o4755, UID: 1000, GID: math.MaxUint32, MTime: math.MaxUint32, DevMajor: 3, DevMinor: 4}, "x"},
	}
}

// TestWriterOracles reads our archive with three other readers.
func TestWriterOracles(t *testing.T) {
	archive := newc(t, sample()...)
	want, err := readAll(archive)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i].Offset = 0 // the others do not tell
	}

	t.Run("u-root", func(t *testing.T) {
		var got []entry
		r := uroot.Newc.Reader(bytes.NewReader(archive))
		err := uroot.ForEachRecord(r, func(rec uroot.Record) error {
			e := entry{Header: Header{
				Name: rec.Name, Ino: uint32(rec.Ino), Mode: uint32(rec.Mode), UID: uint32(rec.UID), GID: uint32(rec.GID),
				NLink: uint32(rec.NLink), MTime: int64(rec.MTime), Size: int64(rec.FileSize),
				DevMajor: uint32(rec.Major), DevMinor: uint32(rec.Minor),
				RDevMajor: uint32(rec.Rmajor), RDevMinor: uint32(rec.Rminor),
			}}
			if rec.FileSize > 0 {
				body, err := io.ReadAll(io.NewSectionReader(rec, 0, int64(rec.FileSize)))
				if err != nil {
					return err
				}
				e.body = string(body)
			}
			got = append(got, e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, equateEntries); d != "" {
			t.Errorf("ours (-) and u-root's reader (+) differ:\n%s", d)
		}
	})

	t.Run("cavaliergopher", func(t *testing.T) {
		r := other.NewReader(bytes.NewReader(archive))
		for _, e := range want {
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			text := string(body)
			if h.Linkname != "" {
				text, h.Size = h.Linkname, int64(len(h.Linkname))
			}
			type summary struct {
				Name         string
				Mode         uint32
				Uid, GID     int
				MTime, Size  int64
				Inode, Links int64
				Body         string
			}
			// Its header has no device numbers.
			got := summary{h.Name, uint32(h.Mode), h.Uid, h.Guid, h.ModTime.Unix(), h.Size, h.Inode, int64(h.Links), text}
			want := summary{e.Name, e.Mode, int(e.UID), int(e.GID), e.MTime, e.Size, int64(e.Ino), int64(e.NLink), e.body}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("ours (-) and its reader (+) differ:\n%s", d)
			}
		}
		if h, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("Next = %v, %v, want io.EOF", h, err)
		}
	})

	t.Run("GNU cpio", func(t *testing.T) {
		out := string(runTool(t, archive, "", "cpio", "-itvn", "--quiet"))
		for _, want := range []string{
			"drwxr-xr-x   1 0        0               0 Jan  1  1970 dev\n",
			"crw-------   1 0        0          5,   1 Jan  1  1970 dev/console\n",
			"prw-------   1 0        0               0 Jan  1  1970 fifo\n",
			"lrwxrwxrwx   1 0        0               3 Jan  1  1970 link -> odd\n",
			"-rw-r--r--   2 0        0               6 Jan  1  1970 two\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("listing lacks %q:\n%s", want, out)
			}
		}
		if got, want := strings.Count(out, "\n"), len(want); got != want {
			t.Errorf("listing has %d lines, want %d", got, want)
		}
	})
}

// runTool runs a command in dir with stdin. Without the tool the test is
// skipped, in CI it fails.
func runTool(t testing.TB, in []byte, dir, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, stderr.Bytes())
	}
	return out.Bytes()
}

// TestGNUArchives reads what GNU cpio writes of a tree with hard links, whose
// data it puts behind the last name.
func TestGNUArchives(t *testing.T) {
	tmp := t.TempDir()
	for name, body := range map[string]string{"a": "shared", "d/big": strings.Repeat("big ", 50000), "z": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tmp, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(body), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"d/b", "m"} {
		if err := os.Link(filepath.Join(tmp, "a"), filepath.Join(tmp, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(tmp, "d/link")); err != nil {
		t.Fatal(err)
	}
	list := []byte(".\na\nd\nd/b\nd/big\nd/link\nm\nz\n")
	for _, format := range []string{"newc", "crc"} {
		t.Run(format, func(t *testing.T) {
			archive := runTool(t, list, tmp, "cpio", "-o", "--quiet", "-H", format)
			tree, store := mustTree(t, archive)
			a := tree.Lookup("a")
			if a == nil || store.bodies[a.Ref] != "shared" || a.NLink != 3 || a != tree.Lookup("d/b") || a != tree.Lookup("m") {
				t.Errorf("hard links: got %+v", a)
			}
			if n := tree.Resolve("d/link"); n != a {
				t.Errorf("Resolve(d/link) = %+v, want the node of a", n)
			}
			if n := tree.Lookup("d/big"); n == nil || store.bodies[n.Ref] != strings.Repeat("big ", 50000) || n.Mode != TypeRegular|0o640 {
				t.Errorf("d/big: got %+v", n)
			}
			if len(tree.Dropped) > 0 {
				t.Errorf("dropped: %q", tree.Dropped)
			}
			if format == "crc" {
				i := bytes.Index(archive, []byte("shared"))
				archive[i] ^= 1
				_, err := readAll(archive)
				checkPlace(t, err, "checksum is")
			}
		})
	}
	for _, format := range []string{"odc", "bin"} {
		archive := runTool(t, list, tmp, "cpio", "-o", "--quiet", "-H", format)
		_, err := readAll(archive)
		want := map[string]string{"odc": "only newc is supported", "bin": "junk"}[format]
		checkPlace(t, err, want)
	}
}

// checkPlace wants an *Error with a text.
func checkPlace(t *testing.T, err error, want string) *Error {
	t.Helper()
	var placed *Error
	switch {
	case err == nil:
		t.Errorf("no error, want %q", want)
		return nil
	case !errors.As(err, &placed):
		t.Errorf("error without a place: %v", err)
		return nil
	case !strings.Contains(err.Error(), want):
		t.Errorf("error is %q, want %q", err, want)
	}
	return placed
}

func TestSegments(t *testing.T) {
	one, two := newc(t, file("one", "1")), newc(t, file("two", "22"))
	zstd := pack(t, compress.Zstd, two)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tt := range []struct {
		name string
		data []byte
		want []string
		err  string
	}{
		{"one archive", one, []string{"0:one"}, ""},
		{"leading NULs", join(pad(4), one), []string{"0:one"}, ""},
		{"trailing NULs", join(one, pad(511)), []string{"0:one"}, ""},
		{"two plain archives", join(one, pad(512), two), []string{"0:one", "1:two"}, ""},
		{"two archives in one stream", pack(t, compress.Gzip, join(one, pad(32), two, pad(9))), []string{"0:one", "0:two"}, ""},
		{"plain, padding, zstd", join(one, pad(64), zstd, pad(3)), []string{"0:one", "1:two"}, ""},
		{"zstd frames at any offset", join(zstd, zstd, pad(1), zstd), []string{"0:two", "1:two", "2:two"}, ""},
		{"zstd, plain", join(align4(bytes.Clone(zstd)), one), []string{"0:two", "1:one"}, ""},
		{"every writable format", join(
			align4(pack(t, compress.XZ, one)), align4(pack(t, compress.LZ4, one)), pad(4),
			align4(pack(t, compress.Gzip, one)), align4(bytes.Clone(zstd)), one,
		), []string{"0:one", "1:one", "2:one", "3:two", "4:one"}, ""},
		{"NULs between records", join(one[:120], pad(8), one[120:]), []string{"0:one"}, ""},

		{"empty", nil, nil, "segment 0 (unknown), offset 0: empty initramfs: unexpected EOF"},
		{"NULs alone", pad(100), nil, "empty initramfs: unexpected EOF"},
		{"junk behind", join(one, []byte("junk")), []string{"0:one"}, "segment 1 (unknown), offset 0: input byte 244: junk"},
		{"junk in a stream", pack(t, compress.Zstd, join(one, []byte("junk"))), []string{"0:one"}, "segment 0 (zstd), offset 244: no cpio record but byte 0x6a"},
		{"misaligned behind plain", join(one, pad(1), zstd), []string{"0:one"}, "not divisible by four"},
		{"misaligned plain", join(pad(2), one), nil, "not divisible by four"},
		{"misaligned in a stream", pack(t, compress.Zstd, join(one, pad(2), one)), []string{"0:one"}, "segment 0 (zstd), offset 246: record at an offset"},
		{"stream without an archive", pack(t, compress.Zstd, pad(8)), nil, "segment 0 (zstd), offset 8: segment without an archive"},
		{"empty stream", pack(t, compress.Gzip, nil), nil, "segment without an archive"},
		{"no trailer before a stream", join(one[:120], zstd), []string{"0:one"}, "segment 0 (none), offset 120: no cpio record"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(tt.data)
			if d := cmp.Diff(tt.want, names(got)); d != "" {
				t.Errorf("entries (-want +got):\n%s", d)
			}
			if tt.err != "" {
				checkPlace(t, err, tt.err)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPlace checks segment, format and offset of entries.
func TestPlace(t *testing.T) {
	early := newc(t, dir("kernel", 1), file("kernel/x", "microcode"))
	data := slices.Concat(early, pad(20), pack(t, compress.Zstd, newc(t, dir("etc", 1), file("etc/x", "y"))))
	r := NewReader(bytes.NewReader(data))
	var got []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(h.Segment, " ", r.Format(), " ", h.Offset, " ", h.Name))
	}
	want := []string{"0 none 0 kernel", "0 none 120 kernel/x", "1 zstd 0 etc", "1 zstd 116 etc/x"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// patch replaces the i-th number of the first header.
func patch(archive []byte, i int, digits string) []byte {
	b := bytes.Clone(archive)
	copy(b[6+8*i:], digits)
	return b
}

// TestHostileRecords damages records; all must give an error, with its place.
func TestHostileRecords(t *testing.T) {
	one := newc(t, file("one", "1"))
	raw := func(name string) []byte { // a name that the writer is not asked to check
		return newc(t, entry{Header{Name: name, Mode: TypeRegular}, ""})
	}
	const (
		mode, size, rmajor, rminor, nameSize = 1, 6, 9, 10, 11
	)
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"magic", append([]byte("070703"), one[6:]...), `bad cpio magic "070703"`},
		{"odc", append([]byte("070707"), one[6:]...), "only newc is supported"},
		{"bad hex", patch(one, size, "0000000g"), `bad number "0000000g"`},
		{"negative", patch(one, size, "-0000001"), "bad number"},
		{"0x", patch(one, size, "0x000001"), "bad number"},
		{"spaces", patch(one, size, "       1"), "bad number"},
		{"huge size", patch(one, size, "ffffffff"), "unexpected EOF"},
		{"no name", patch(one, nameSize, "00000000"), "bad name size 0"},
		{"huge name", patch(one, nameSize, "ffffffff"), "bad name size"},
		{"name over PATH_MAX", patch(one, nameSize, "00001001"), "bad name size 4097"},
		{"name at PATH_MAX", patch(one, nameSize, "00001000"), "unexpected EOF"},
		{"open name", patch(one, nameSize, "00000003"), "not closed by NUL"},
		{"mode", patch(one, mode, "000181a4"), "bad mode"},
		{"huge symlink", patch(patch(one, mode, "0000a1ff"), size, "00001001"), "symlink of 4097 bytes"},
		{"major", patch(patch(one, mode, "00002180"), rmajor, "00001000"), "bad device number"},
		{"minor", patch(patch(one, mode, "00006180"), rminor, "00100000"), "bad device number"},
		{"empty name", slices.Concat(patch(one, nameSize, "00000001")[:110], pad(2)), "empty name"},
		{"..", raw("a/../../etc"), `name "a/../../etc" leaves`},
		{".. alone", raw(".."), "leaves"},
		{"/..", raw("/../x"), "leaves"},
		{"no trailer", one[:120], "archive without TRAILER!!!: unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, f := range []compress.Format{compress.None, compress.Zstd} {
				data := tt.data
				if f != compress.None {
					data = pack(t, f, data)
				}
				_, err := readAll(data)
				if placed := checkPlace(t, err, tt.want); placed != nil && placed.Format != f {
					t.Errorf("error of segment in format %q, want %q", placed.Format, f)
				}
			}
		})
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a", "a"}, {"/a", "a"}, {"./a", "a"}, {"//a//b/", "a/b"}, {".", "."}, {"/", "."}, {"./", "."},
		{"a/./b", "a/b"}, {"..a", "..a"}, {"./TRAILER!!!", "TRAILER!!!"},
		{strings.Repeat("a/", 2047) + "a", strings.Repeat("a/", 2047) + "a"},
	} {
		got, err := readAll(newc(t, entry{Header{Name: tt.in, Mode: TypeDir}, ""}))
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if len(got) != 1 || got[0].Name != tt.want {
			t.Errorf("%q is read as %q, want %q", tt.in, names(got), tt.want)
		}
	}
}

// TestTruncated cuts an initramfs of two segments at every byte, in every
// compression that this package or a tool can write. The cut shows everywhere
// but between the segments.
func TestTruncated(t *testing.T) {
	early := newc(t, dir("kernel", 1), file("kernel/x", "microcode"))
	late := newc(t, dir("etc", 1), file("etc/x", "text"), symlink("etc/y", "x"))
	tools := map[compress.Format][]string{
		compress.LZMA:  {"xz", "-c", "--format=lzma"},
		compress.Bzip2: {"bzip2", "-c"},
		compress.LZO:   {"lzop", "-c"},
	}
	for _, f := range []compress.Format{
		compress.None, compress.Zstd, compress.XZ, compress.Gzip, compress.LZ4, compress.LZMA, compress.Bzip2, compress.LZO,
	} {
		t.Run(string(f), func(t *testing.T) {
			var packed []byte
			if tool := tools[f]; tool != nil {
				packed = runTool(t, late, "", tool[0], tool[1:]...)
			} else {
				packed = pack(t, f, late)
			}
			data := slices.Concat(early, pad(8), packed)
			if got, err := readAll(data); err != nil || len(got) != 5 {
				t.Fatalf("whole: %q, %v", names(got), err)
			}
			for n := range data {
				got, err := readAll(data[:n])
				if len(early) <= n && n <= len(early)+8 {
					if err != nil || len(got) != 2 {
						t.Errorf("%d bytes, between segments: %q, %v", n, names(got), err)
					}
					continue
				}
				if placed := checkPlace(t, err, ""); placed == nil || !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%d of %d bytes: error %v, want unexpected EOF", n, len(data), err)
				} else if want := min(1, n/(len(early)+9)); placed.Segment != want {
					t.Errorf("%d of %d bytes: segment %d, want %d", n, len(data), placed.Segment, want)
				}
			}
		})
	}
}

// TestLimit reads a bomb: NULs and a body without end, both well packed.
func TestLimit(t *testing.T) {
	one := newc(t, file("one", strings.Repeat("\x00", 1<<20)))
	for name, data := range map[string][]byte{
		"body": one,
		"NULs": slices.Concat(newc(t, file("a", "")), pad(1<<20)),
	} {
		r := NewReaderLimit(bytes.NewReader(pack(t, compress.Zstd, data)), 1<<20)
		var err error
		for err == nil {
			_, err = r.Next()
		}
		checkPlace(t, err, "more bytes than the limit allows")
		if _, again := r.Next(); !errors.Is(again, err) {
			t.Errorf("%s: the error does not stay: %v", name, again)
		}
		if _, again := r.Read(make([]byte, 1)); !errors.Is(again, err) {
			t.Errorf("%s: the error does not stay: %v", name, again)
		}
	}
}

func TestWriterErrors(t *testing.T) {
	ok := Header{Name: "a", Mode: TypeRegular, Size: 3}
	for _, tt := range []struct {
		name string
		do   func(w *Writer) error
		want string
	}{
		{"negative size", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a", Size: -1}) }, "does not fit"},
		{"large size", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a", Size: 1 << 32}) }, "does not fit"},
		{"negative time", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a", MTime: -1}) }, "does not fit"},
		{"late time", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a", MTime: 1 << 32}) }, "does not fit"},
		{"no name", func(w *Writer) error { return w.WriteHeader(&Header{}) }, "bad name"},
		{"trailer", func(w *Writer) error { return w.WriteHeader(&Header{Name: trailer}) }, "bad name"},
		{"long name", func(w *Writer) error { return w.WriteHeader(&Header{Name: strings.Repeat("a", 4096)}) }, "too long"},
		{"NUL in name", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a\x00b"}) }, "bad name"},
		{"short body", func(w *Writer) error { return errors.Join(w.WriteHeader(&ok), w.Close()) }, "3 bytes of its body are missing"},
		{"short body, next", func(w *Writer) error { return errors.Join(w.WriteHeader(&ok), w.WriteHeader(&ok)) }, "missing"},
		{"long body", func(w *Writer) error {
			_, err := w.Write([]byte("1234"))
			return errors.Join(w.WriteHeader(&ok), err)
		}, "longer than its size"},
		{"after Close", func(w *Writer) error { return errors.Join(w.Close(), w.WriteHeader(&ok)) }, "closed"},
	} {
		if err := tt.do(NewWriter(io.Discard)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q", tt.name, err, tt.want)
		}
	}
}
