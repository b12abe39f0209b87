package lz4hc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/pierrec/lz4/v4"
)

var levels = []struct {
	name  string
	level Level
}{{"fast", Fast}, {"default", Default}, {"max", Max}}

func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// periodic repeats n random bytes.
func periodic(n, period int, seed uint64) []byte {
	b := random(min(n, period), seed)
	for len(b) < n {
		b = append(b, b[:min(len(b), n-len(b))]...)
	}
	return b
}

// letters gives n random letters of an alphabet.
func letters(n, alphabet int, seed uint64) []byte {
	b := random(n, seed)
	for i := range b {
		b[i] = 'a' + b[i]%byte(alphabet)
	}
	return b
}

// program looks like machine code and tables: pieces seen before, near and far,
// some changed in one byte, with new bytes between.
func program(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := random(16, seed)
	for len(b) < n {
		if r.IntN(3) == 0 {
			for range 1 + r.IntN(8) {
				b = append(b, byte(r.Uint32()))
			}
			continue
		}
		far := 1 + r.IntN(min(len(b), 1<<(4+r.IntN(14))))
		at := len(b) - far
		for range 3 + r.IntN(1<<(2+r.IntN(5))) {
			b = append(b, b[at])
			at++
		}
	}
	return b[:n]
}

// fibonacci is a string whose every part is repeated, but never evenly.
func fibonacci(n int) []byte {
	a, b := []byte("b"), []byte("a")
	for len(b) < n {
		a, b = b, slices.Concat(b, a)
	}
	return b[:n]
}

// deBruijn has each string of order letters once, of an alphabet, in the order of
// its Lyndon words.
func deBruijn(alphabet, order int) []byte {
	var out []byte
	a := make([]byte, order+1)
	var walk func(t, p int)
	walk = func(t, p int) {
		if t > order {
			if order%p == 0 {
				out = append(out, a[1:p+1]...)
			}
			return
		}
		a[t] = a[t-p]
		walk(t+1, p)
		for j := a[t-p] + 1; int(j) < alphabet; j++ {
			a[t] = j
			walk(t+1, t)
		}
	}
	walk(1, 1)
	return out
}

// rules walks through a block and gives the first rule of the specification that
// it breaks.
func rules(block []byte, size int) error {
	length := func(i *int, n int) int {
		if n == 15 {
			for block[*i] == 255 {
				n += 255
				*i++
			}
			n += int(block[*i])
			*i++
		}
		return n
	}
	matchEnd := 0
	for i, o := 0, 0; ; {
		token := int(block[i])
		i++
		n := length(&i, token>>4)
		i, o = i+n, o+n
		if i == len(block) {
			switch {
			case token&15 != 0:
				return fmt.Errorf("last token has a match length")
			case o != size:
				return fmt.Errorf("content of %d bytes, want %d", o, size)
			case matchEnd > 0 && o-matchEnd < 5:
				return fmt.Errorf("ends with %d literals", o-matchEnd)
			}
			return nil
		}
		offset := int(binary.LittleEndian.Uint16(block[i:]))
		i += 2
		if offset == 0 || offset > o {
			return fmt.Errorf("offset %d at %d", offset, o)
		}
		if o+12 > size {
			return fmt.Errorf("match at %d of %d", o, size)
		}
		o += 4 + length(&i, token&15)
		matchEnd = o
	}
}

// split encodes src as a writer of blocks does and checks each block.
func split(t testing.TB, e *Encoder, src []byte, size int) (blocks [][]byte, total int) {
	t.Helper()
	e.Reset(src)
	back := make([]byte, min(MaxInput, len(src)+64)) // a decoder may want to write ahead
	for p := 0; p < len(src); {
		dst := bytes.Repeat([]byte{0xA5}, size+1)
		in, out := e.Encode(dst[:size], p)
		if in == 0 && out == 0 {
			n := min(size, len(src)-p)
			p += n
			total += n
			continue
		}
		if in <= out || in > len(src)-p || in > MaxInput || out > size {
			t.Fatalf("Encode(%d bytes, %d of %d) = %d, %d", size, p, len(src), in, out)
		}
		if dst[size] != 0xA5 || !bytes.Equal(dst[out:size], bytes.Repeat([]byte{0xA5}, size-out)) {
			t.Fatalf("Encode(%d bytes, %d) = %d, %d wrote beyond the block", size, p, in, out)
		}
		block, want := dst[:out], src[p:p+in]
		if err := rules(block, in); err != nil {
			t.Fatalf("block of %d bytes for input %d to %d: %v", out, p, p+in, err)
		}
		if n, err := Decode(back, block); err != nil || !bytes.Equal(back[:n], want) {
			t.Fatalf("Decode: %d bytes, %v; want the input %d to %d", n, err, p, p+in)
		}
		if n, err := Decode(back[:in], block); err != nil || !bytes.Equal(back[:n], want) {
			t.Fatalf("Decode into %d bytes: %d bytes, %v", in, n, err)
		}
		clear(back[:in])
		if n, err := lz4.UncompressBlock(block, back); err != nil || !bytes.Equal(back[:n], want) {
			t.Fatalf("lz4.UncompressBlock: %d bytes, %v; want the input %d to %d", n, err, p, p+in)
		}
		blocks = append(blocks, block)
		p += in
		total += out
	}
	return blocks, total
}

var inputs = []struct {
	name  string
	data  []byte
	least float64 // ratio that every level reaches with blocks of 64 KiB
}{
	{"zeros", make([]byte, 3<<20), 240},
	{"period 2", periodic(1<<20, 2, 1), 240},
	{"period 3", periodic(1<<20, 3, 1), 240},
	{"period 7", periodic(1<<20, 7, 1), 240},
	{"period 1000", periodic(1<<20, 1000, 1), 160},
	{"period 60000", periodic(1<<20, 60000, 1), 14},
	{"period 65535", periodic(1<<20, 65535, 1), 1},
	{"period 65536", periodic(1<<20, 65536, 1), 1},
	{"random", random(1<<20, 1), 1},
	{"two letters", letters(1<<20, 2, 1), 2.6},
	{"four letters", letters(1<<20, 4, 1), 1.9},
	{"program", program(1<<20, 1), 2.2},
	{"random, then program", slices.Concat(random(100_001, 2), program(300_000, 2)), 1.5},
	{"program, then random", slices.Concat(program(100_001, 2), random(300_000, 2)), 1.15},
	{"fibonacci", fibonacci(200_000), 20},
	{"de Bruijn, 2", deBruijn(2, 17), 2},
	{"de Bruijn, 16", deBruijn(16, 4), 1},
	{"runs", runs(200_000, 1), 30},
	{"random, twice", slices.Concat(random(50_000, 2), random(50_000, 2)), 1.5},
}

func TestRoundTrip(t *testing.T) {
	for _, l := range levels {
		e := NewEncoder(l.level)
		for _, in := range inputs {
			t.Run(l.name+"/"+in.name, func(t *testing.T) {
				for _, size := range []int{4096, 65536, 1 << 20} {
					_, total := split(t, e, in.data, size)
					ratio := float64(len(in.data)) / float64(total)
					if size == 65536 && ratio < in.least {
						t.Errorf("ratio %.3f with blocks of %d, want at least %.1f", ratio, size, in.least)
					}
				}
			})
		}
	}
}

// The sizes at which the length fields and the rules for a block's end change.
func TestBoundarySizes(t *testing.T) {
	var sizes []int
	for n := range 41 {
		sizes = append(sizes, n)
	}
	for k := range 5 {
		for d := -13; d <= 13; d++ {
			sizes = append(sizes, 15+255*(k+1)+d)
		}
	}
	for _, l := range levels {
		e := NewEncoder(l.level)
		for _, n := range sizes {
			for literals := range 3 {
				// n literals, a match, and the other way round
				literals = []int{0, 14, 270}[literals]
				split(t, e, slices.Concat(random(n, 3), make([]byte, 40)), 4096)
				split(t, e, slices.Concat(random(literals, 3), make([]byte, n), random(literals/9, 4)), 4096)
				split(t, e, slices.Concat(random(literals, 3), make([]byte, n)), 4096)
			}
		}
	}
}

func TestEmptyAndTiny(t *testing.T) {
	e := NewEncoder(Max)
	for n := range 13 {
		e.Reset(make([]byte, n))
		for start := range n + 1 {
			if in, out := e.Encode(make([]byte, 64), start); in != 0 || out != 0 {
				t.Errorf("Encode(64 bytes, %d of %d) = %d, %d, want 0, 0: no match can begin", start, n, in, out)
			}
		}
	}
}

// longestMatches gives the length of the longest match at each position.
func longestMatches(src []byte) []int {
	longest := make([]int, len(src))
	for i := range src {
		for j := max(0, i-65535); j < i; j++ {
			k := 0
			for i+k < len(src) && src[i+k] == src[j+k] {
				k++
			}
			longest[i] = max(longest[i], k)
		}
	}
	return longest
}

// leastSize gives the smallest size of a block for the first n bytes, by trying
// every parse.
func leastSize(n int, longest []int) int {
	field := func(n int) int {
		size := 0
		for n -= 15; n >= 0; n -= 255 {
			size++
		}
		return size
	}
	least := make([]int, n+1) // from a token at this position on
	for i := n; i >= 0; i-- {
		least[i] = 1 + n - i + field(n-i)
		for m := i; m <= n-12; m++ {
			for k := 4; k <= longest[m] && m+k <= n-5; k++ {
				least[i] = min(least[i], 1+m-i+field(m-i)+2+field(k-4)+least[m+k])
			}
		}
	}
	return least[0]
}

// No encoder may put more into a block than this one does, nor the same into a
// smaller one.
func TestOptimal(t *testing.T) {
	type input struct {
		data  []byte
		every int // step of the sizes of blocks
	}
	var list []input
	for seed := range uint64(40) {
		list = append(list,
			input{letters(13+int(seed%30), 2, seed), 1},
			input{letters(20+int(seed), 3, seed), 1},
			input{letters(90, 6, seed), 3},
			input{program(100, seed), 5})
	}
	for seed := range uint64(2) {
		list = append(list,
			input{program(300, seed), 1},
			input{slices.Concat(random(int(260+seed), seed), program(300, seed)), 37},
			input{slices.Concat(program(100, seed), make([]byte, 280), program(100, seed)), 37},
			// single matches in literals, at the steps of a run's length
			input{slices.Concat(random(255, seed), random(5, seed), random(int(250+seed), seed+100), random(4, seed), random(200, seed+200)), 13})
	}
	e := NewEncoder(Max)
	blocks := 0
	for _, in := range list {
		n := len(in.data)
		least, longest := make([]int, n+1), longestMatches(in.data)
		for p := range least {
			least[p] = leastSize(p, longest)
		}
		for size := 0; size <= n+n/200+10; size += in.every {
			want, wantSize := 0, 0
			for p := range least {
				if least[p] <= size {
					want, wantSize = p, least[p]
				}
			}
			if want <= wantSize {
				want, wantSize = 0, 0
			} else {
				blocks++
			}
			e.Reset(in.data)
			got, gotSize := e.Encode(make([]byte, size), 0)
			if got != want || gotSize != wantSize {
				t.Fatalf("Encode(%d bytes) of %x = %d, %d, want %d, %d", size, in.data, got, gotSize, want, wantSize)
			}
		}
	}
	if blocks < 1000 {
		t.Errorf("compared %d blocks that pay, want 1000", blocks)
	}
}

func TestEverySmallBlock(t *testing.T) {
	data := program(2000, 5)
	for _, l := range levels {
		e := NewEncoder(l.level)
		paid := 0
		for size := 1; size <= 300; size++ {
			blocks, _ := split(t, e, data, size)
			paid += len(blocks)
		}
		if paid < 1000 {
			t.Errorf("%s: %d blocks, want 1000", l.name, paid)
		}
	}
}

// A level takes the time it takes to make smaller blocks.
func TestLevelsDiffer(t *testing.T) {
	data := program(1<<20, 7)
	var sizes []int
	for _, l := range levels {
		_, total := split(t, NewEncoder(l.level), data, 65536)
		sizes = append(sizes, total)
	}
	if sizes[0] <= sizes[1] || sizes[1] < sizes[2] {
		t.Errorf("sizes of fast, default and max = %d, want them to fall", sizes)
	}
}

// What an encoder did before makes no difference.
func TestDeterministic(t *testing.T) {
	data := inputs[len(inputs)-3].data
	for _, l := range levels {
		want, _ := split(t, NewEncoder(l.level), data, 16384)
		used := NewEncoder(l.level)
		split(t, used, program(1<<20, 9), 65536)
		got, _ := split(t, used, data, 16384)
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: an encoder that was used before gives other blocks", l.name)
		}
	}
}

// An encoder goes on after 2 GiB of input, where the places in its tables begin
// anew.
func TestManyBlocks(t *testing.T) {
	data := program(200_000, 13)
	want, _ := split(t, NewEncoder(Max), data, 4096)
	e := NewEncoder(Max)
	split(t, e, data, 4096)
	e.finder.base = math.MaxInt32 - MaxInput - 50_000
	got, _ := split(t, e, data, 4096)
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Error("blocks differ from those of a new encoder")
	}
	if e.finder.base > 1<<20 {
		t.Errorf("base = %d, want it to have begun anew", e.finder.base)
	}
}

// A block begins anew: it may be decoded without those before it, whatever the
// starts were.
func TestStartsAnywhere(t *testing.T) {
	data := program(300_000, 11)
	e, fresh := NewEncoder(Max), NewEncoder(Max)
	e.Reset(data)
	got, want := make([]byte, 8192), make([]byte, 8192)
	for _, start := range []int{0, 10_000, 5_000, 5_001, 299_000, 0, 299_999, 300_000} {
		fresh.Reset(data[start:])
		in, out := e.Encode(got, start)
		wantIn, wantOut := fresh.Encode(want, 0)
		if in != wantIn || out != wantOut || !bytes.Equal(got[:out], want[:out]) {
			t.Errorf("Encode at %d = %d, %d, want %d, %d as for an input that begins there", start, in, out, wantIn, wantOut)
		}
	}
}

// That a small block did not pay says nothing of a larger one, nor of one that
// begins before.
func TestOtherSizeAfterFailure(t *testing.T) {
	data := slices.Concat(program(2000, 12), random(3000, 12), program(2000, 12))
	for _, size := range []int{1, 5, 20, 100} {
		for start := 0; start < len(data); start += 100 {
			e, fresh := NewEncoder(Fast), NewEncoder(Fast)
			e.Reset(data)
			fresh.Reset(data)
			dst := make([]byte, 4096)
			e.Encode(dst[:size], start)
			before := max(0, start-2000)
			in, out := e.Encode(dst, before)
			if wantIn, wantOut := fresh.Encode(dst, before); in != wantIn || out != wantOut {
				t.Fatalf("Encode(4096 bytes, %d) after %d bytes at %d = %d, %d, want %d, %d", before, size, start, in, out, wantIn, wantOut)
			}
			in, out = e.Encode(dst, start)
			if wantIn, wantOut := fresh.Encode(dst, start); in != wantIn || out != wantOut {
				t.Fatalf("Encode(4096 bytes, %d) after %d bytes = %d, %d, want %d, %d", start, size, in, out, wantIn, wantOut)
			}
		}
	}
}

// The lz4 command reads our blocks in a legacy frame: a magic number, then each
// block after its size.
func TestLZ4Command(t *testing.T) {
	lz4, err := exec.LookPath("lz4")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, l := range levels {
		for _, in := range inputs {
			blocks, _ := split(t, NewEncoder(l.level), in.data, 65536)
			frame := binary.LittleEndian.AppendUint32(nil, 0x184C2102)
			var want []byte
			back := make([]byte, MaxInput)
			for _, b := range blocks {
				frame = append(binary.LittleEndian.AppendUint32(frame, uint32(len(b))), b...)
				n, err := Decode(back, b)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, back[:n]...)
			}
			if len(blocks) == 0 {
				continue
			}
			cmd := exec.Command(lz4, "-dc")
			cmd.Stdin = bytes.NewReader(frame)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s/%s: lz4 -dc of %d blocks: %d bytes, %v %s; want %d bytes", l.name, in.name, len(blocks), len(got), err, stderr.Bytes(), len(want))
			}
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add([]byte("abcabcabcabcabcabcabcabc"), uint16(20), byte(0), byte(0))
	f.Add(program(3000, 1), uint16(700), byte(10), byte(1))
	f.Add(slices.Concat(random(300, 1), make([]byte, 600), random(300, 1)), uint16(400), byte(3), byte(2))
	encoders := []*Encoder{NewEncoder(Fast), NewEncoder(Default), NewEncoder(Max)}
	f.Fuzz(func(t *testing.T, data []byte, size uint16, repeat, level byte) {
		data = bytes.Repeat(data, 1+int(repeat)%8)
		// a few blocks, as each costs some time whatever its size
		split(t, encoders[int(level)%len(encoders)], data, max(1+int(size), len(data)/16))
	})
}

func BenchmarkEncode(b *testing.B) {
	list := []struct {
		name string
		data []byte
	}{
		{"program", program(8<<20, 1)},
		{"zeros", make([]byte, 16<<20)},
		{"period3", periodic(16<<20, 3, 1)},
		{"period7", periodic(16<<20, 7, 1)},
		{"period1000", periodic(16<<20, 1000, 1)},
		{"period60000", periodic(16<<20, 60000, 1)},
		{"period65536", periodic(16<<20, 65536, 1)},
		{"letters2", letters(4<<20, 2, 1)},
		{"letters4", letters(4<<20, 4, 1)},
		{"runs", runs(8<<20, 1)},
		{"fibonacci", fibonacci(16 << 20)},
		{"debruijn2", deBruijn(2, 22)},
		{"debruijn16", deBruijn(16, 5)},
		{"random", random(16<<20, 1)},
	}
	for _, l := range levels {
		for _, in := range list {
			b.Run(l.name+"/"+in.name, func(b *testing.B) {
				e := NewEncoder(l.level)
				dst := make([]byte, 65536)
				b.SetBytes(int64(len(in.data)))
				b.ReportAllocs()
				var total int
				for b.Loop() {
					total = 0
					e.Reset(in.data)
					for p := 0; p < len(in.data); {
						n, out := e.Encode(dst, p)
						if n == 0 {
							n = min(4096, len(in.data)-p)
							out = n
						}
						p += n
						total += out
					}
				}
				b.ReportMetric(float64(len(in.data))/float64(total), "ratio")
			})
		}
	}
}

// runs gives runs of the same few bytes with random lengths, the hardest for
// trees of suffixes.
func runs(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, 0, n)
	for len(b) < n {
		b = append(b, bytes.Repeat([]byte{byte(r.IntN(2))}, 1+r.IntN(1000))...)
	}
	return b[:n]
}

// Peers take blocks of 64 KiB of input and give blocks of any size; ours do the
// same here, with the whole input of the block known to fit.
func BenchmarkPeer(b *testing.B) {
	data := program(4<<20, 1)
	const part = 64 << 10
	dst := make([]byte, lz4.CompressBlockBound(part))
	peers := []struct {
		name  string
		block func(src []byte) (int, error)
	}{
		{"pierrec hc level 9", func(src []byte) (int, error) {
			c := lz4.CompressorHC{Level: lz4.Level9}
			return c.CompressBlock(src, dst)
		}},
	}
	for _, l := range levels {
		e := NewEncoder(l.level)
		peers = append(peers, struct {
			name  string
			block func(src []byte) (int, error)
		}{l.name, func(src []byte) (int, error) {
			e.Reset(src)
			in, out := e.Encode(dst, 0)
			if in != len(src) {
				return 0, fmt.Errorf("%d of %d bytes", in, len(src))
			}
			return out, nil
		}})
	}
	var first, firstSize float64 // of the peer
	for _, p := range peers {
		b.Run(p.name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			total := 0
			for b.Loop() {
				total = 0
				for src := range slices.Chunk(data, part) {
					n, err := p.block(src)
					if err != nil {
						b.Fatal(err)
					}
					total += n
				}
			}
			ns := float64(b.Elapsed()) / float64(b.N)
			if first == 0 {
				first, firstSize = ns, float64(total)
			}
			b.ReportMetric(ns/first, "time/peer")
			b.ReportMetric(float64(total)/firstSize, "size/peer")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	data := program(200_000, 1)
	e := NewEncoder(Max)
	e.Reset(data)
	block, back := make([]byte, 65536), make([]byte, MaxInput)
	in, out := e.Encode(block, 0)
	b.SetBytes(int64(in))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(back[:in], block[:out]); err != nil {
			b.Fatal(err)
		}
	}
}
