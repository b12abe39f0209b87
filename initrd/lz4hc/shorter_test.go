package lz4hc

import (
	"bytes"
	"slices"
	"testing"
)

// The parse of a block is the same whatever the block's size, and trying one end
// of it leaves nothing behind for the next.
func TestShorter(t *testing.T) {
	inputs := map[string][]byte{
		"program":   program(200_000, 1),
		"letters":   letters(200_000, 4, 2),
		"periodic":  periodic(300_000, 100, 3),
		"period 1":  make([]byte, 300_000),
		"runs":      runs(200_000, 7),
		"fibonacci": fibonacci(200_000),
		"twice":     slices.Concat(program(50_000, 8), program(50_000, 8), program(50_000, 9)),
		"mixed":     append(program(30_000, 4), random(30_000, 5)...),
		"short":     program(5000, 6),
	}
	for _, l := range levels {
		compared := 0
		for name, src := range inputs {
			again, e := NewEncoder(l.level), NewEncoder(l.level)
			for _, size := range []int{4096, 16 << 10, 64 << 10} {
				e.Reset(src)
				dst, want, got := make([]byte, size), make([]byte, size), make([]byte, size)
				for _, start := range []int{0, 3333} {
					_, out := e.Encode(dst, start)
					if out == 0 {
						continue
					}
					for _, capacity := range []int{out, out - 1, out / 2, 100, 0} {
						again.Reset(src)
						wantIn, wantOut := again.Encode(want[:capacity], start)
						gotIn, gotOut := e.Shorter(got[:capacity], start)
						if gotIn != wantIn || gotOut != wantOut || !bytes.Equal(got[:gotOut], want[:wantOut]) {
							t.Errorf("%s, %s at %d: %d bytes in a block of %d for %d, want %d in %d", l.name, name, start, gotIn, gotOut, capacity, wantIn, wantOut)
						}
						compared++
					}
				}
			}
		}
		if compared < 200 {
			t.Errorf("%s: only %d blocks were compared", l.name, compared)
		}
	}
}

// The same for many sizes of a block, in falling order and again from the top.
func TestShorterFalling(t *testing.T) {
	for name, src := range map[string][]byte{
		"program":   program(2500, 1),
		"fibonacci": fibonacci(3000),
		"runs":      runs(5000, 2),
		"letters":   letters(1500, 3, 2),
	} {
		again, e := NewEncoder(Max), NewEncoder(Max)
		e.Reset(src)
		dst, want, got := make([]byte, 700), make([]byte, 700), make([]byte, 700)
		in, out := e.Encode(dst, 0)
		for size := out; size >= 0; size -= 1 + size/50 {
			again.Reset(src)
			wantIn, wantOut := again.Encode(want[:size], 0)
			gotIn, gotOut := e.Shorter(got[:size], 0)
			if gotIn != wantIn || gotOut != wantOut || !bytes.Equal(got[:gotOut], want[:wantOut]) {
				t.Fatalf("%s: %d bytes in a block of %d for %d, want %d in %d", name, gotIn, gotOut, size, wantIn, wantOut)
			}
		}
		gotIn, gotOut := e.Shorter(got[:out], 0)
		if gotIn != in || !bytes.Equal(got[:gotOut], dst[:out]) {
			t.Errorf("%s: %d bytes in a block of %d after all the shorter ones, want %d in %d", name, gotIn, gotOut, in, out)
		}
	}
}
