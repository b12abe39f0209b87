package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// A setting is a choice of options of initoverlayfs, and what tables call it.
type setting struct{ name, options string }

var (
	levelMax     = setting{"level max", "--image-compress lz4hc,12"}
	levelDefault = setting{"level default", "--image-compress lz4hc,9"}
	levelFast    = setting{"level fast", "--image-compress lz4"}

	// Linux 6.1 is the first that has all features, 5.14 the last that has none.
	// By default only small files are packed together; mkfs.erofs's all-fragments
	// packs all of them.
	allFeatures  = setting{"", "--kernel-version 6.1"}
	allFragments = setting{", all fragments", "--kernel-version 6.1 --image-features fragments=1099511627776"}
	noFeatures   = setting{", no features", "--kernel-version 5.14"}
)

// What they are compared with.
const (
	pclusterBytes = 64 << 10
	mkfsAll       = "-zlz4hc,12 -C65536 -Eall-fragments,dedupe"
	mkfsNone      = "-zlz4hc,12 -C65536"
)

// size compares images of two real trees. Ours are made from the archive as it
// is, those of mkfs.erofs from the tree that was unpacked before.
func (b *bench) size(ctx context.Context) error {
	for _, input := range []struct{ name, archive string }{
		{"dracut", b.dracut},
		{"initramfs-tools", b.initramfsTools},
	} {
		tree := filepath.Join(b.work, input.name)
		files, bytes, err := b.unpack(ctx, input.archive, tree)
		if err != nil {
			return err
		}
		about := fmt.Sprintf("Image of the %s archive, %d files and directories of %.1f MB", input.name, files, float64(bytes)/1e6)
		ours := func(level, features setting) contender { return b.ours(level, features, pclusterBytes, input.archive) }
		theirs := func(m maker, options string) contender {
			return contender{maker: m, options: options, input: tree, check: true}
		}

		s, err := b.compare(ctx, input.name, b.runs,
			theirs(b.mkfsNew(), mkfsAll), ours(levelMax, allFeatures), ours(levelDefault, allFeatures), ours(levelFast, allFeatures),
			ours(levelMax, allFragments))
		if err != nil {
			return err
		}
		if err := b.printComparison(about+":\npclusters of 64 KiB, all features of Linux 6.1; ratios to the first row", s,
			target{"level max, size", ratio(s[1].bytes, s[0].bytes), 1, ""},
			target{"level max, wall time", ratio(s[1].wall(), s[0].wall()), 1. / 3, ""},
			target{"level default, size", ratio(s[2].bytes, s[0].bytes), 1.01, ""},
			target{"level default, wall time", ratio(s[2].wall(), s[0].wall()), 1. / 5, ""},
		); err != nil {
			return err
		}

		s, err = b.compare(ctx, input.name, b.runs,
			theirs(b.mkfsNew(), mkfsNone), ours(levelMax, noFeatures), ours(levelDefault, noFeatures), ours(levelFast, noFeatures),
			theirs(b.mkfsOld(), mkfsNone), theirs(b.mkfsOld(), "-zlz4hc,9 -C65536"))
		if err != nil {
			return err
		}
		if err := b.printComparison(about+":\npclusters of 64 KiB, neither tail packing nor fragments nor deduplication; ratios to the first row", s); err != nil {
			return err
		}

		// All inodes are compact then.
		if s, err = b.compare(ctx, input.name, 1, theirs(b.mkfsNew(), mkfsAll+" -T0 --all-root")); err != nil {
			return err
		}
		if err := b.printComparison(about+":\nwithout times and owners, one run", s); err != nil {
			return err
		}
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
	}
	return nil
}

// printComparison prints summaries with their ratios to the first.
func (b *bench) printComparison(title string, summaries []summary, targets ...target) error {
	t := table{title: title}
	t.add("", "bytes", "ratio", "wall s", "spread", "ratio", "CPU s", "peak MiB")
	for _, s := range summaries {
		t.add(s.String(), bytesCell(s.bytes), ratioCell(s.bytes, summaries[0].bytes),
			secondsCell(s.wall()), spreadCell(s.seconds), ratioCell(s.wall(), summaries[0].wall()),
			secondsCell(s.cpu), mibCell(s.peak))
	}
	return t.print(b.out, targets...)
}

// unpack unpacks an archive into a directory and counts what is in there. An
// ordinary user gets it without device nodes and owners, which are few bytes.
func (b *bench) unpack(ctx context.Context, archive, dir string) (files int, bytes int64, err error) {
	image := filepath.Join(b.work, "unpacked")
	if err := b.command(ctx, b.initoverlayfs, "image", "create", "--mkfs", "native", "--image-compress", "none", archive, image).run(); err != nil {
		return 0, 0, err
	}
	extract := []string{b.initoverlayfs, "image", "extract", image, dir}
	if os.Geteuid() != 0 {
		b.say("not root: the unpacked tree of %s has no device nodes, and one owner", archive)
		extract = append(extract, "--no-same-owner")
	}
	if err := b.command(ctx, extract...).run(); err != nil {
		return 0, 0, err
	}
	if err := os.Remove(image); err != nil {
		return 0, 0, err
	}
	return count(dir)
}

// count gives the number of names in a directory, and the bytes of its files.
func count(dir string) (names int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		names++
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return names, bytes, err
}
