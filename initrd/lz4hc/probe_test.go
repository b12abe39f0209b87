package lz4hc

import (
	"slices"
	"testing"
)

func TestHopeless(t *testing.T) {
	tests := []struct {
		name  string
		src   []byte
		start int
		size  int
		want  bool
	}{
		{"random", random(300_000, 21), 0, 65536, true},
		{"random, from the middle", random(300_000, 21), 123_457, 65536, true},
		{"random, small blocks", random(300_000, 21), 1, 4096, true},
		{"random, the end", random(100_000, 21), 80_000, 65536, true},
		{"random, too little to tell", random(4000, 21), 0, 65536, false},
		{"zeros", make([]byte, 300_000), 0, 65536, false},
		{"two letters", letters(300_000, 2, 21), 0, 65536, false},
		{"period 7", periodic(300_000, 7, 21), 0, 65536, false},
		{"period 30000", periodic(300_000, 30_000, 21), 0, 65536, false},
		{"period 70000", periodic(300_000, 70_000, 21), 0, 65536, true},
		{"random with zeros between", slices.Concat(random(2000, 21), make([]byte, 40), random(3000, 22)), 0, 65536, false},
		{"random, a cell twice", slices.Concat(random(4096, 23), random(4096, 23), random(50_000, 24)), 0, 8192, false},
		{"random, 500 bytes again", slices.Concat(random(8000, 25), random(8000, 25)[7000:7500], random(8000, 26)), 0, 8192, false},
		{"program", program(300_000, 21), 5000, 65536, false},
		{"random, then program in the block", slices.Concat(random(50_000, 21), program(50_000, 21)), 0, 65536, false},
		{"random, then program behind the block", slices.Concat(random(50_000, 21), program(50_000, 21)), 0, 4096, true},
	}
	for _, tt := range tests {
		var p probe
		p.reset(0)
		if got := p.hopeless(tt.src, tt.start, tt.size); got != tt.want {
			t.Errorf("%s: hopeless at %d for %d bytes = %t, want %t", tt.name, tt.start, tt.size, got, tt.want)
		}
	}
	// as a writer goes on
	var p probe
	p.reset(0)
	src := slices.Concat(random(1<<20, 22), program(1<<20, 22))
	told := 0
	for start := 0; start < len(src); start += 4096 {
		if p.hopeless(src, start, 65536) {
			told++
		}
	}
	// 65536 bytes before the program there is something to gain.
	if want := (1<<20 - 65536) / 4096; told < want || told > want+1 {
		t.Errorf("%d starts are hopeless, want %d", told, want)
	}
}

func BenchmarkHopeless(b *testing.B) {
	src := random(16<<20, 1)
	e := NewEncoder(Fast)
	dst := make([]byte, 65536)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		e.Reset(src)
		for start := 0; start < len(src); start += 4096 {
			if in, _ := e.Encode(dst, start); in != 0 {
				b.Fatalf("a block of %d random bytes", in)
			}
		}
	}
}
