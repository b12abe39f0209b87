package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

// newNoise gives random bytes, the same for the same seed.
func newNoise(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

// words gives text that compresses to about a third, without long repetitions.
type words struct {
	random *rand.Rand
	rest   []byte
}

const (
	vocabulary = 4096
	letters    = "etaoinshrdlucmfwypvbgkqjxz"
)

func newWords(seed uint64) io.Reader { return &words{random: rand.New(rand.NewPCG(seed, 0))} }

func (w *words) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(w.rest) == 0 {
			// Few words are frequent.
			word := w.random.IntN(1 + w.random.IntN(vocabulary))
			w.rest = append(w.rest, ' ')
			for k := word + 1; k > 0; k /= 7 {
				w.rest = append(w.rest, letters[(k*31+word)%len(letters)])
			}
		}
		k := copy(p[n:], w.rest)
		w.rest = w.rest[k:]
		n += k
	}
	return n, nil
}

// writeFile writes so many bytes of an endless reader.
func writeFile(path string, from io.Reader, bytes int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.CopyN(f, from, bytes)
	return err
}

// writeMix fills a directory with about so many bytes in files of all sizes, a
// quarter of it in one file. Every other one is random, the rest is text; no two
// are equal.
func writeMix(dir string, bytes int64) error {
	sizes := []int64{bytes / 4}
	steps := []int64{700, 5_000, 3_000, 40_000, 12_000, 300_000, 90_000, 2_000_000, 6_000_000}
	for left := bytes - sizes[0]; left > 0; {
		size := min(left, steps[len(sizes)%len(steps)])
		sizes = append(sizes, size)
		left -= size
	}
	for i, size := range sizes {
		name := filepath.Join(dir, strconv.Itoa(i%64), strconv.Itoa(i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		from := newWords(uint64(i))
		if i%2 == 1 {
			from = newNoise(uint64(i))
		}
		if err := writeFile(name, from, size); err != nil {
			return err
		}
	}
	return nil
}

// writeSmall fills a directory with small files, each of one line of its own.
func writeSmall(dir string, files int) error {
	for i := range files {
		name := filepath.Join(dir, strconv.Itoa(i/1000), strconv.Itoa(i))
		if i%1000 == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
		}
		if err := writeFile(name, newWords(uint64(i)), int64(200+i%1800)); err != nil {
			return err
		}
	}
	return nil
}
