package bootconf

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var wordsTests = []struct {
	cmdline string
	want    []string
}{
	{"", nil},
	{"  \t\n ", nil},
	{"a", []string{"a"}},
	{" a  b\tc\n", []string{"a", "b", "c"}},
	{`a="b c" d`, []string{"a=b c", "d"}},
	{`"a=b c" d`, []string{"a=b c", "d"}},
	{`a="b c`, []string{"a=b c"}},
	{`a="`, []string{"a="}},
	{`""`, []string{""}},
	{`a""b`, []string{"ab"}},
	{`a="" b`, []string{"a=", "b"}},
	{"a\x00b", []string{"a", "b"}},
	{"a=\xff\xfe", []string{"a=\xff\xfe"}},
}

func TestWords(t *testing.T) {
	for _, test := range wordsTests {
		if diff := cmp.Diff(test.want, slices.Collect(Words(test.cmdline))); diff != "" {
			t.Errorf("Words(%q) (-want +got):\n%s", test.cmdline, diff)
		}
		checkWords(t, test.cmdline)
	}
}

func TestWordsStops(t *testing.T) {
	n := 0
	for word := range Words("a b c") {
		n++
		if word == "b" {
			break
		}
	}
	if n != 2 {
		t.Errorf("the loop saw %d words before its break, want 2", n)
	}
}

func FuzzWords(f *testing.F) {
	for _, test := range wordsTests {
		f.Add(test.cmdline)
	}
	f.Fuzz(checkWords)
}

// checkWords compares Words with a second way to the same: words and quoted
// stretches in turn, by the quotes first.
func checkWords(t *testing.T, cmdline string) {
	const separator, mark = "\x00", "\x01"
	if strings.Contains(cmdline, mark) {
		return // the mark is ours
	}
	var b strings.Builder
	for i, part := range strings.Split(cmdline, `"`) {
		if i > 0 {
			b.WriteString(mark) // a word can be empty quotes
		}
		if i%2 == 0 {
			part = strings.NewReplacer(" ", separator, "\t", separator, "\n", separator).Replace(part)
		} else {
			part = strings.ReplaceAll(part, separator, "\x02")
		}
		b.WriteString(part)
	}
	var want []string
	for word := range strings.SplitSeq(b.String(), separator) {
		if word != "" {
			want = append(want, strings.ReplaceAll(strings.ReplaceAll(word, mark, ""), "\x02", separator))
		}
	}
	if strings.Contains(cmdline, "\x02") {
		return // ambiguous with the stand-in for a quoted separator
	}
	if diff := cmp.Diff(want, slices.Collect(Words(cmdline))); diff != "" {
		t.Errorf("Words(%q) (-want +got):\n%s", cmdline, diff)
	}
}
