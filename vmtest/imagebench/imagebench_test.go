package main

import (
	"bytes"
	"compress/flate"
	"context"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{5}, 5},
		{[]float64{9, 1, 4}, 4},
		{[]float64{9, 1, 4, 2}, 3},
	} {
		before := append([]float64(nil), tt.values...)
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v; want %v", tt.values, got, tt.want)
		}
		if diff := cmp.Diff(before, tt.values); diff != "" {
			t.Errorf("median changed its argument (-want +got):\n%s", diff)
		}
	}
}

func TestTarget(t *testing.T) {
	for _, tt := range []struct {
		target
		want string
	}{
		{target{"size", 0.5, 1, ""}, "size: 0.5000, target <= 1: met"},
		{target{"size", 1, 1, ""}, "size: 1.0000, target <= 1: met"},
		{target{"size", 1.0001, 1, ""}, "size: 1.0001, target <= 1: missed"},
		{target{"time", ratio(1, 3), 1. / 3, ""}, "time: 0.3333, target <= 0.3333: met"},
		{target{"memory", 300, 256, " MiB"}, "memory: 300.0000 MiB, target <= 256 MiB: missed"},
		{target{"nothing to compare with", ratio(1, 0), 1, ""}, "nothing to compare with: +Inf, target <= 1: missed"},
	} {
		if got := tt.String(); got != tt.want {
			t.Errorf("got %q; want %q", got, tt.want)
		}
	}
}

func TestTablePrint(t *testing.T) {
	table := table{title: "Title"}
	table.add("", "bytes", "ratio")
	table.add("mkfs.erofs", bytesCell(48_209_920), ratioCell(1, 1))
	table.add("ours", bytesCell(9), ratioCell(1, 2))
	table.add("nothing", "-", ratioCell(1, 0))
	var out strings.Builder
	if err := table.print(&out, target{"size", 0.5, 1, ""}); err != nil {
		t.Fatal(err)
	}
	want := `
Title

                 bytes  ratio
  mkfs.erofs  48209920  1.000
  ours               9  0.500
  nothing            -      -

size: 0.5000, target <= 1: met
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCells(t *testing.T) {
	got := []string{mibCell(1.5 * (1 << 20)), secondsCell(1.234), spreadCell([]float64{2, 1, 3}), spreadCell(nil)}
	if diff := cmp.Diff([]string{"1.5", "1.23", "1.00-3.00", "-"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Contenders take turns; each leaves its name in a log.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	b := bench{work: dir, progress: io.Discard, section: "test"}
	writer := maker{"writer", func(options []string, input, out string) []string {
		return append([]string{"sh", "-c", `echo "$1" >>"$2"; printf "%s" "$1" >"$3"`, "sh"}, options[0], input, out)
	}}
	s, err := b.compare(context.Background(), "tree", 2,
		contender{maker: writer, options: "a", input: log}, contender{maker: writer, label: "long", options: "bbb", input: log})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(text)); !cmp.Equal(got, []string{"a", "bbb", "a", "bbb"}) {
		t.Errorf("the order is %q", got)
	}
	for i, want := range []struct {
		name  string
		bytes float64
	}{{"writer a", 1}, {"writer long", 3}} {
		if got := s[i]; got.String() != want.name || got.bytes != want.bytes || len(got.seconds) != 2 || got.wall() <= 0 || got.peak <= 0 {
			t.Errorf("summary %d: %s has %v bytes, %v s, %v of memory; want %s with %v", i, got, got.bytes, got.seconds, got.peak, want.name, want.bytes)
		}
	}
	type key struct {
		Section, Input, Program, Options string
		Run                              int
	}
	var got []key
	for _, r := range b.results {
		got = append(got, key{r.Section, r.Input, r.Program, r.Options, r.Run})
	}
	want := []key{
		{"test", "tree", "writer", "a", 1}, {"test", "tree", "writer", "bbb", 1},
		{"test", "tree", "writer", "a", 2}, {"test", "tree", "writer", "bbb", 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(dir, "image")); err == nil {
		t.Error("the last image was left")
	}
}

func TestCompareFailure(t *testing.T) {
	b := bench{work: t.TempDir(), progress: io.Discard}
	failing := maker{"failing", func([]string, string, string) []string { return []string{"sh", "-c", "echo the reason >&2; exit 3"} }}
	if _, err := b.compare(context.Background(), "tree", 1, contender{maker: failing}); err == nil || !strings.Contains(err.Error(), "exit status 3: the reason") {
		t.Errorf("got %v; want an error with the reason", err)
	}
	idle := maker{"idle", func([]string, string, string) []string { return []string{"true"} }}
	if _, err := b.compare(context.Background(), "tree", 1, contender{maker: idle}); err == nil {
		t.Error("a program that made no image: got no error")
	}
}

func TestSummarize(t *testing.T) {
	s := summarize(contender{}, []result{
		{Seconds: 3, CPUSeconds: 6, PeakBytes: 10, Bytes: 100},
		{Seconds: 1, CPUSeconds: 1, PeakBytes: 30, Bytes: 100},
		{Seconds: 2, CPUSeconds: 2, PeakBytes: 20, Bytes: 100},
	})
	if s.wall() != 2 || s.cpu != 2 || s.peak != 30 || s.bytes != 100 {
		t.Errorf("wall %v, CPU %v, peak %v, bytes %v; want 2, 2, 30, 100", s.wall(), s.cpu, s.peak, s.bytes)
	}
}

func TestSectorsRead(t *testing.T) {
	if got, err := sectorsRead("   10    2   40   5  0 0 0 0 0 0 0\n"); err != nil || got != 40*512 {
		t.Errorf("got %d, %v; want %d", got, err, 40*512)
	}
	for _, bad := range []string{"", "1 2", "1 2 x 4"} {
		if got, err := sectorsRead(bad); err == nil {
			t.Errorf("sectorsRead(%q) = %d, want an error", bad, got)
		}
	}
}

// What is generated is the same in every run, and compresses as it says.
func TestData(t *testing.T) {
	for _, tt := range []struct {
		name        string
		from        func(seed uint64) io.Reader
		least, most float64
	}{
		{"noise", newNoise, 1, 1.01},
		{"words", newWords, 0.25, 0.5},
	} {
		read := func(seed uint64) []byte {
			data := make([]byte, 1<<20)
			if _, err := io.ReadFull(tt.from(seed), data); err != nil {
				t.Fatal(err)
			}
			return data
		}
		data := read(7)
		if !bytes.Equal(data, read(7)) {
			t.Errorf("%s: two readers with one seed differ", tt.name)
		}
		if bytes.Equal(data, read(8)) {
			t.Errorf("%s: two seeds give the same", tt.name)
		}
		var packed bytes.Buffer
		w, err := flate.NewWriter(&packed, 6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := float64(packed.Len()) / float64(len(data)); got < tt.least || got > tt.most {
			t.Errorf("%s: compresses to %.3f; want %v to %v", tt.name, got, tt.least, tt.most)
		}
	}
}

func TestWriteTrees(t *testing.T) {
	mix, small := t.TempDir(), t.TempDir()
	if err := writeMix(mix, 9<<20); err != nil {
		t.Fatal(err)
	}
	if _, got, err := count(mix); err != nil || got != 9<<20 {
		t.Errorf("the mix has %d bytes, %v; want %d", got, err, 9<<20)
	}
	if err := writeSmall(small, 1500); err != nil {
		t.Fatal(err)
	}
	if got, _, err := count(small); err != nil || got != 1500+3 {
		t.Errorf("there are %d files and directories, %v; want %d", got, err, 1503)
	}
}

func TestRandomBlocks(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int64{"a/large": 40 * readBytes, "b": 1, "empty": 0} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(path, newNoise(1), size); err != nil {
			t.Fatal(err)
		}
	}
	blocks, err := randomBlocks(dir, 2000)
	if err != nil {
		t.Fatal(err)
	}
	hits := make(map[block]int)
	for _, b := range blocks {
		hits[b]++
	}
	// 41 blocks, each about 49 times.
	if len(hits) != 41 || math.Abs(float64(hits[block{"b", 0}])-2000./41) > 30 {
		t.Errorf("%d blocks were picked, that of the small file %d times; want 41, about 49", len(hits), hits[block{"b", 0}])
	}
	again, err := randomBlocks(dir, 2000)
	if err != nil || !slices.Equal(blocks, again) {
		t.Errorf("a second call gives others, %v", err)
	}
	if err := readBlocks(dir, blocks); err != nil {
		t.Error(err)
	}
	if err := readAll(dir); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := readBlocks(dir, blocks); err == nil {
		t.Error("reading a file that is not there: got no error")
	}
	if _, err := randomBlocks(t.TempDir(), 1); err == nil {
		t.Error("blocks of an empty tree: got no error")
	}
}
