package main

import (
	"context"
	"os"
	"path/filepath"
)

const randomBytes = 256 << 20

// random compares the image of data that cannot be compressed with a copy of it.
func (b *bench) random(ctx context.Context) error {
	s, err := b.compareRandom(ctx, b.runs, func(dir string) contender { return b.ours(levelDefault, allFeatures, pclusterBytes, dir) })
	if err != nil {
		return err
	}
	return b.printComparison("256 MiB of random data, beside a copy of it on the same disk; ratios to the copy", s,
		target{"level default, wall time", ratio(s[1].wall(), s[0].wall()), 1.5, ""})
}

func (b *bench) randomMkfs(ctx context.Context) error {
	s, err := b.compareRandom(ctx, 1, func(dir string) contender {
		return contender{maker: b.mkfsOld(), options: "-zlz4hc,9 -C65536", input: dir}
	})
	if err != nil {
		return err
	}
	return b.printComparison("256 MiB of random data, beside a copy of it on the same disk, one run; ratios to the copy", s)
}

func (b *bench) compareRandom(ctx context.Context, runs int, other func(dir string) contender) ([]summary, error) {
	dir := filepath.Join(b.work, "random")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "random")
	if err := writeFile(file, newNoise(1), randomBytes); err != nil {
		return nil, err
	}
	return b.compare(ctx, "256 MiB random", runs, contender{maker: copyFile(), input: file}, other(dir))
}
