package lz4hc

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pierrec/lz4/v4"
)

func TestDecode(t *testing.T) {
	tests := []struct {
		name  string
		block string
		size  int // of dst
		want  string
		err   error
		at    string // of the error
	}{
		{name: "no content", block: "\x00", size: 9},
		{name: "nothing", block: "", size: 9, err: io.ErrUnexpectedEOF, at: "offset 0:"},
		{name: "nothing wanted", block: "", size: 0},
		{name: "literals", block: "\x30abc", size: 9, want: "abc"},
		{name: "exact", block: "\x30abc", size: 3, want: "abc"},
		{name: "partial literals", block: "\x30abc", size: 2, want: "ab"},
		{name: "literals break off", block: "\x30ab", size: 9, want: "ab", err: io.ErrUnexpectedEOF, at: "offset 0:"},
		{name: "partial before the break", block: "\x30ab", size: 2, want: "ab"},
		{name: "15 literals", block: "\xf0\x00abcdefghijklmno", size: 20, want: "abcdefghijklmno"},
		{name: "270 literals", block: "\xf0\xff\x00" + strings.Repeat("x", 270), size: 300, want: strings.Repeat("x", 270)},
		{name: "length breaks off", block: "\xf0\xff\xff", size: 20, err: io.ErrUnexpectedEOF, at: "offset 0:"},
		{name: "match", block: "\x10a\x01\x00\x50bcdef", size: 20, want: "aaaaabcdef"},
		{name: "match of period 3", block: "\x34abc\x03\x00\x50bcdef", size: 20, want: "abcabcabcabbcdef"[:11] + "bcdef"},
		{name: "partial match", block: "\x10a\x01\x00\x50bcdef", size: 3, want: "aaa"},
		{name: "long match", block: "\x1fa\x01\x00\xff\x01\x50bcdef", size: 400, want: strings.Repeat("a", 1+4+15+256) + "bcdef"},
		{name: "ends with a match", block: "\x10a\x01\x00", size: 20, want: "aaaaa", err: io.ErrUnexpectedEOF, at: "offset 4:"},
		{name: "offset breaks off", block: "\x10a\x01", size: 20, want: "a", err: io.ErrUnexpectedEOF, at: "offset 0:"},
		{name: "match length breaks off", block: "\x1fa\x01\x00\xff", size: 20, want: "a", err: io.ErrUnexpectedEOF, at: "offset 0:"},
		{name: "offset 0", block: "\x10a\x00\x00\x50bcdef", size: 20, want: "a", err: errZeroOffset, at: "offset 0:"},
		{name: "before the content", block: "\x10a\x02\x00\x50bcdef", size: 20, want: "a", err: errFarOffset, at: "offset 0:"},
		{name: "before the content, later", block: "\x10a\x01\x00\x10b\x07\x00\x50bcdef", size: 20, want: "aaaaab", err: errFarOffset, at: "offset 4:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dst := bytes.Repeat([]byte{0xA5}, tt.size+32)
			n, err := Decode(dst[:tt.size:tt.size], []byte(tt.block))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.at) {
				t.Errorf("error %q does not name %q", err, tt.at)
			}
			if diff := cmp.Diff(tt.want, string(dst[:n])); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			if !bytes.Equal(dst[tt.size:], bytes.Repeat([]byte{0xA5}, 32)) {
				t.Error("wrote beyond dst")
			}
		})
	}
}

// Every shorter dst gets a prefix, and every block that breaks off is told.
func TestDecodePartial(t *testing.T) {
	for name, data := range map[string][]byte{
		"program": program(3000, 3),
		"zeros":   make([]byte, 3000),
		"period":  periodic(3000, 9, 1),
	} {
		e := NewEncoder(Max)
		e.Reset(data)
		block := make([]byte, 4096)
		in, out := e.Encode(block, 0)
		if in != len(data) {
			t.Fatalf("%s: Encode = %d, %d, want all %d bytes", name, in, out, len(data))
		}
		block = block[:out]
		for size := range in + 1 {
			dst := make([]byte, size)
			if n, err := Decode(dst, block); n != size || err != nil || !bytes.Equal(dst, data[:size]) {
				t.Fatalf("%s: Decode into %d bytes: %d, %v", name, size, n, err)
			}
		}
		dst := make([]byte, in)
		for size := range out {
			n, err := Decode(dst, block[:size])
			// A block cut behind literals is a block.
			if err == nil && n == in || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: Decode of %d of %d bytes: %d, %v", name, size, out, n, err)
			}
			if !bytes.Equal(dst[:n], data[:n]) {
				t.Fatalf("%s: Decode of %d of %d bytes: other bytes", name, size, out)
			}
		}
	}
}

// What another decoder takes we take, with the same bytes, and the other way
// round; whatever is in the block, nothing is written behind dst.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x10a\x01\x00\x50bcdef"), uint16(10))
	f.Add([]byte("\x1fa\x01\x00\xff\x01\x50bcdef"), uint16(300))
	f.Add([]byte("\xf0\xff\x00"+strings.Repeat("x", 270)), uint16(100))
	e := NewEncoder(Max)
	block := make([]byte, 4096)
	data := program(3000, 4)
	e.Reset(data)
	_, out := e.Encode(block, 0)
	f.Add([]byte("\x10a\x01\x00"), uint16(10))
	f.Add(block[:out], uint16(3000))
	f.Fuzz(func(t *testing.T, block []byte, size uint16) {
		const guard = 32
		dst := bytes.Repeat([]byte{0xA5}, int(size)+guard)
		n, err := Decode(dst[:size], block)
		if !bytes.Equal(dst[size:], bytes.Repeat([]byte{0xA5}, guard)) {
			t.Fatal("wrote beyond dst")
		}
		if n < 0 || n > int(size) || err == nil && n < int(size) && len(block) == 0 {
			t.Fatalf("Decode = %d, %v", n, err)
		}
		full := make([]byte, 1<<16)
		m, fullErr := Decode(full, block)
		if k := min(n, m); !bytes.Equal(dst[:k], full[:k]) {
			t.Fatal("a shorter dst changes the bytes")
		}
		other := make([]byte, 1<<16)
		k, otherErr := lz4.UncompressBlock(block, other)
		if otherErr != nil || k == len(other) || len(block) == 0 {
			return
		}
		// The other decoder lets a block end with a match.
		if !bytes.Equal(full[:m], other[:k]) || fullErr != nil && !errors.Is(fullErr, io.ErrUnexpectedEOF) {
			t.Fatalf("Decode = %d, %v; the other decoder gives %d bytes", m, fullErr, k)
		}
	})
}
