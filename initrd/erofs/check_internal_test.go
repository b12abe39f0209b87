package erofs

import (
	"bytes"
	"strings"
	"testing"

	"initoverlayfs/initrd/lz4hc"
)

// Blocks that decode well, but whose ends the kernel's decoder refuses.
func TestCheckBlockEnd(t *testing.T) {
	literals := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
	for _, test := range []struct {
		name  string
		block []byte
		want  string
	}{
		{"only literals", append([]byte{0x50}, literals(5)...), ""},
		{"long literals", append([]byte{0xf0, 5}, literals(20)...), ""},
		{"good end", append(append([]byte{0x12, 'a', 1, 0}, 0xc0), literals(12)...), ""},
		{"match into the last literals", append(append([]byte{0x1f, 'a', 1, 0, 20}, 0x40), literals(4)...), "match up to byte 40 of 44"},
		{"late match", append(append([]byte{0x10, 'a', 1, 0}, 0x60), literals(6)...), "match at byte 1 of 11"},
		{"a match last", []byte{0x1f, 'a', 1, 0, 20, 0}, "match at byte 1 of 40"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dst := make([]byte, 100)
			n, err := lz4hc.Decode(dst, test.block)
			if err != nil {
				t.Fatal(err)
			}
			err = checkBlockEnd(test.block, n)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
