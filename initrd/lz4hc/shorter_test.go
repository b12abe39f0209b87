package lz4hc

import (
	"bytes"
	"testing"
)

func TestShorter(t *testing.T) {
	inputs := map[string][]byte{
		"program":  program(400_000, 1),
		"letters":  letters(200_000, 4, 2),
		"periodic": periodic(2_000_000, 100, 3),
		"mixed":    append(program(30_000, 4), random(30_000, 5)...),
		"short":    program(5000, 6),
	}
	compared := 0
	for name, src := range inputs {
		again, e := NewEncoder(Default), NewEncoder(Default)
		for _, size := range []int{4096, 16 << 10, 64 << 10} {
			e.Reset(src)
			dst, want, got := make([]byte, size), make([]byte, size), make([]byte, size)
			for _, start := range []int{0, 1000, 3333} {
				_, out := e.Encode(dst, start)
				if out == 0 {
					continue
				}
				for _, capacity := range []int{out, out - 1, out &^ 4095, out / 2, 100, 5, 0} {
					again.Reset(src)
					wantIn, wantOut := again.Encode(want[:capacity], start)
					gotIn, gotOut := e.Shorter(got[:capacity], start)
					if gotIn != wantIn || gotOut != wantOut || !bytes.Equal(got[:gotOut], want[:wantOut]) {
						t.Errorf("%s at %d: %d bytes in a block of %d for %d, want %d in %d", name, start, gotIn, gotOut, capacity, wantIn, wantOut)
					}
					compared++
				}
			}
		}
	}
	if compared < 200 {
		t.Errorf("only %d blocks were compared", compared)
	}
}
