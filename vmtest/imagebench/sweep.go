package main

import (
	"context"
	"fmt"
)

// sweep makes images of releases of one source tree with each size of physical
// clusters, and of squashfs's blocks.
func (b *bench) sweep(ctx context.Context) error {
	files, bytes, err := count(b.sources)
	if err != nil {
		return err
	}
	t := table{title: fmt.Sprintf("Three releases of a source tree, %d files and directories of %.1f MB, one run;\n"+
		"initoverlayfs: level max, all fragments; mkfs.erofs 1.9: -zlz4hc,12 -Eall-fragments,dedupe; mksquashfs: -comp lz4 -Xhc;\n"+
		"ratios of initoverlayfs to mkfs.erofs", files, float64(bytes)/1e6)}
	t.add("pcluster or block", "initoverlayfs", "wall s", "mkfs.erofs", "wall s", "size ratio", "wall ratio", "mksquashfs", "wall s")
	for kib := 4; kib <= 1024; kib *= 2 {
		var contenders []contender
		if kib <= 256 {
			contenders = append(contenders,
				b.ours(levelMax, allFragments, kib<<10, b.sources),
				contender{
					maker: b.mkfsNew(), options: fmt.Sprintf("-zlz4hc,12 -C%d -Eall-fragments,dedupe", kib<<10),
					input: b.sources, check: true,
				})
		}
		if kib >= 16 {
			contenders = append(contenders, contender{maker: mksquashfs(), options: fmt.Sprintf("-comp lz4 -Xhc -b %dK", kib), input: b.sources})
		}
		s, err := b.compare(ctx, "sources", 1, contenders...)
		if err != nil {
			return err
		}
		row := []string{fmt.Sprintf("%d KiB", kib), "-", "-", "-", "-", "-", "-", "-", "-"}
		if kib <= 256 {
			copy(row[1:], []string{
				bytesCell(s[0].bytes), secondsCell(s[0].wall()), bytesCell(s[1].bytes), secondsCell(s[1].wall()),
				ratioCell(s[0].bytes, s[1].bytes), ratioCell(s[0].wall(), s[1].wall()),
			})
		}
		if kib >= 16 {
			last := s[len(s)-1]
			copy(row[7:], []string{bytesCell(last.bytes), secondsCell(last.wall())})
		}
		t.add(row...)
	}
	return t.print(b.out)
}
