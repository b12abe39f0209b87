package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// logged writes a log in sectors of 512 bytes. Data is a letter, repeated.
type logged struct {
	sector, sectors, flags, text uint64
	body                         string
}

func logOf(entries ...logged) []byte {
	word := binary.LittleEndian.AppendUint64
	pad := func(b []byte, from int) []byte { return append(b, make([]byte, from+512-len(b))...) }
	b := word(word(word(nil, logMagic), logVersion), uint64(len(entries)))
	b = pad(binary.LittleEndian.AppendUint32(b, 512), 0)
	for _, e := range entries {
		from := len(b)
		b = word(word(word(word(b, e.sector), e.sectors), e.flags), e.text)
		if Flags(e.flags)&Mark != 0 {
			b = append(b, e.body...)
		}
		b = pad(b, from)
		if Flags(e.flags)&(Mark|Discard) == 0 {
			b = append(b, bytes.Repeat([]byte(e.body), int(e.sectors)*512)...)
		}
	}
	return b
}

func readLog(t *testing.T, raw []byte) *Log {
	t.Helper()
	l, err := ReadLog(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestReadLog(t *testing.T) {
	l := readLog(t, logOf(
		logged{sector: 8, sectors: 2, body: "a"},
		logged{flags: uint64(Flush)},
		logged{flags: uint64(Mark), text: 5, body: "hello"},
		logged{sector: 9, sectors: 1, flags: uint64(FUA | Metadata), body: "b"},
		logged{sector: 8, sectors: 4, flags: uint64(Discard)},
	))
	want := []Entry{
		{Offset: 4096, Bytes: 1024},
		{Flags: Flush},
		{Flags: Mark, Text: "hello"},
		{Offset: 4608, Bytes: 512, Flags: FUA | Metadata},
		{Offset: 4096, Bytes: 2048, Flags: Discard},
	}
	if diff := cmp.Diff(want, l.Entries, cmpopts.IgnoreUnexported(Entry{})); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	for i, want := range []string{strings.Repeat("a", 1024), "", "", strings.Repeat("b", 512), strings.Repeat("\x00", 2048)} {
		if got, err := l.Data(l.Entries[i]); err != nil || string(got) != want {
			t.Errorf("data of entry %d = %q, %v, want %q", i, got, err, want)
		}
	}
	if l := readLog(t, logOf()); len(l.Entries) != 0 {
		t.Errorf("entries of an empty log: %v", l.Entries)
	}
}

func TestReadLogErrors(t *testing.T) {
	good := logOf(logged{sector: 8, sectors: 2, body: "a"}, logged{flags: uint64(Mark), text: 5, body: "hello"})
	set := func(at int, value uint64) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], value)
		return b
	}
	for _, test := range []struct {
		name, want string
		raw        []byte
		short      bool
	}{
		{"empty", "superblock", nil, true},
		{"magic", "magic 0x1 at 0", set(0, 1), false},
		{"version", "version 2 at 8", set(8, 2), false},
		{"sector size", "sectors of 513 bytes at 24", set(24, 513), false},
		{"no sector size", "sectors of 0 bytes at 24", set(24, 0), false},
		{"huge count", "18446744073709551615 entries in", set(16, 1<<64-1), true},
		{"one entry too many", "entry 2 at 2560", set(16, 3), true},
		{"flags", "entry 0 at 512: unknown flags 0x20", set(512+16, 32), false},
		{"sector", "beyond the end of any disk", set(512, 1<<63), false},
		{"sectors", "beyond the end of any disk", set(512+8, 1<<63), false},
		{"data", "bytes of data, 1536 are left", set(512+8, 1<<32), true},
		{"text", "a text of 481 bytes in a sector of 512", set(2048+24, 481), false},
		{"cut", "entry 1 at 2048", good[:2048+headerSize+4], true},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ReadLog(bytes.NewReader(test.raw), int64(len(test.raw)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q in it", err, test.want)
			}
			if got := errors.Is(err, io.ErrUnexpectedEOF); got != test.short {
				t.Errorf("error %v is one of a short log: %v, want %v", err, got, test.short)
			}
		})
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add(logOf(logged{sector: 8, sectors: 2, body: "a"}, logged{flags: uint64(Flush)}))
	f.Add(logOf(logged{flags: uint64(Mark), text: 5, body: "hello"}, logged{sector: 1, sectors: 1 << 40, flags: uint64(Discard)}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := ReadLog(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		for _, e := range l.Entries {
			if e.Flags&Discard != 0 {
				continue // may be as large as a disk
			}
			if data, err := l.Data(e); err != nil || int64(len(data)) != e.Bytes && e.IsWrite() {
				t.Errorf("data of %+v: %d bytes, %v", e, len(data), err)
			}
		}
	})
}

func TestEpochs(t *testing.T) {
	write := logged{sector: 0, sectors: 1, body: "w"}
	flush, both := logged{flags: uint64(Flush)}, logged{sectors: 1, flags: uint64(Flush), body: "f"}
	for _, test := range []struct {
		name    string
		entries []logged
		want    []Epoch
	}{
		{"none", nil, []Epoch{{0, 0}}},
		{"no flush", []logged{write}, []Epoch{{0, 1}}},
		{"flushes", []logged{write, write, flush, write, flush}, []Epoch{{0, 2}, {3, 4}, {5, 5}}},
		{"a flush with data", []logged{write, both, write}, []Epoch{{0, 1}, {1, 3}}},
	} {
		if diff := cmp.Diff(test.want, readLog(t, logOf(test.entries...)).Epochs()); diff != "" {
			t.Errorf("%s: epochs (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	before := bytes.Repeat([]byte("."), 16<<10)
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// The second write is that of 512 bytes and a block and 512 bytes.
	l := readLog(t, logOf(
		logged{sector: 0, sectors: 1, body: "a"}, logged{sector: 7, sectors: 10, body: "b"},
		logged{sector: 8, sectors: 8, flags: uint64(Discard)}, logged{flags: uint64(Flush)}, logged{sector: 30, sectors: 8, body: "c"},
	))
	content := func() string {
		t.Helper()
		p := make([]byte, len(before))
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		// A letter for each sector.
		var s []byte
		for at := 0; at < len(p); at += 512 {
			s = append(s, p[at])
		}
		return strings.ReplaceAll(string(s), "\x00", "0")
	}
	apply := func(i int, keep func() bool) {
		t.Helper()
		if err := d.Apply(l, l.Entries[i], keep); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		if got := content(); got != want+strings.Repeat(".", len(before)/512-len(want)) {
			t.Errorf("disk = %s, want %s", got, want)
		}
	}
	first, err := d.Digest(0, int64(len(before)))
	if err != nil {
		t.Fatal(err)
	}
	apply(0, nil)
	apply(3, nil)
	depth := d.Depth()
	apply(1, nil)
	check("a......bbbbbbbbbb")
	apply(2, nil)
	check("a......b00000000b")
	if err := d.Undo(depth); err != nil {
		t.Fatal(err)
	}
	check("a")
	n := 0
	apply(1, func() bool { n++; return n != 2 })
	check("a......b........b")
	if n != 3 {
		t.Errorf("the write has %d blocks, want 3", n)
	}
	out := filepath.Join(t.TempDir(), "copy")
	if err := d.Copy(out, 3584, 1024); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != strings.Repeat("b", 512)+strings.Repeat(".", 512) {
		t.Errorf("copy = %q, %v", got, err)
	}
	if err := d.Undo(0); err != nil {
		t.Fatal(err)
	}
	if again, err := d.Digest(0, int64(len(before))); err != nil || again != first {
		t.Errorf("digest = %x, %v, want %x", again, err, first)
	}
	if err := d.Apply(l, l.Entries[4], nil); err == nil || !strings.Contains(err.Error(), "the disk has 16384") {
		t.Errorf("write beyond the end: error = %v", err)
	}
}
