package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// memory measures how the peak memory of our writer grows with the tree: with
// its bytes, and with its files.
func (b *bench) memory(ctx context.Context) error {
	trees := []struct {
		name  string
		write func(dir string) error
	}{
		{"64 MiB, random and text", func(dir string) error { return writeMix(dir, 64<<20) }},
		{"256 MiB, random and text", func(dir string) error { return writeMix(dir, 256<<20) }},
		{"1 GiB, random and text", func(dir string) error { return writeMix(dir, 1<<30) }},
		{"10,000 files of about 1 KiB", func(dir string) error { return writeSmall(dir, 10_000) }},
		{"100,000 files of about 1 KiB", func(dir string) error { return writeSmall(dir, 100_000) }},
	}
	t := table{title: "Peak memory in MiB, one run; level max, level default, level default without features"}
	t.add("", "files", "MB", "max", "default", "no features")
	var peaks [][]float64 // of each tree
	for _, tree := range trees {
		dir := filepath.Join(b.work, "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := tree.write(dir); err != nil {
			return err
		}
		files, bytes, err := count(dir)
		if err != nil {
			return err
		}
		s, err := b.compare(ctx, tree.name, 1,
			b.ours(levelMax, allFeatures, pclusterBytes, dir), b.ours(levelDefault, allFeatures, pclusterBytes, dir), b.ours(levelDefault, noFeatures, pclusterBytes, dir))
		if err != nil {
			return err
		}
		row := []float64{s[0].peak, s[1].peak, s[2].peak}
		peaks = append(peaks, row)
		t.add(tree.name, fmt.Sprint(files), fmt.Sprintf("%.1f", float64(bytes)/1e6), mibCell(row[0]), mibCell(row[1]), mibCell(row[2]))
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := t.print(b.out, target{"peak memory of all trees", slices.Max(slices.Concat(peaks...)) / (1 << 20), 256, " MiB"}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(b.out, "growth at level max: %.1f MiB from 256 MiB to 1 GiB of contents, %.0f bytes a file from 10,000 to 100,000 files\n",
		(peaks[2][0]-peaks[1][0])/(1<<20), (peaks[4][0]-peaks[3][0])/90_000)
	return err
}
