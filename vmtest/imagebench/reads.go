package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the random order reads, of all files of the tree: about as many blocks as
// the image has clusters. With more, most would be in memory already.
const (
	randomReads = 1000
	readBytes   = 4096
)

// reads compares what the kernel takes to read images of the same tree, ours and
// that of mkfs.erofs, with nothing of them in memory. They are mounted as
// storage-init mounts them: on a loop device that reads the file directly.
func (b *bench) reads(ctx context.Context) error {
	if os.Geteuid() != 0 {
		_, err := fmt.Fprintln(b.out, "\nCold reads were not measured: only root mounts images.")
		return err
	}
	tree := filepath.Join(b.work, "dracut")
	if _, _, err := b.unpack(ctx, b.dracut, tree); err != nil {
		return err
	}
	blocks, err := randomBlocks(tree, randomReads)
	if err != nil {
		return err
	}
	orders := []order{
		{"sequential", readAll},
		{"random", func(dir string) error { return readBlocks(dir, blocks) }},
	}
	for _, variant := range []struct {
		name       string
		contenders []contender
	}{
		{"all features", []contender{
			{maker: b.mkfsNew(), options: mkfsAll, input: tree}, b.ours(levelMax, allFeatures, pclusterBytes, b.dracut),
			b.ours(levelMax, allFragments, pclusterBytes, b.dracut),
		}},
		{"no features", []contender{
			{maker: b.mkfsNew(), options: mkfsNone, input: tree}, b.ours(levelMax, noFeatures, pclusterBytes, b.dracut),
		}},
	} {
		if err := b.compareReads(ctx, variant.name, variant.contenders, orders); err != nil {
			return fmt.Errorf("%s: %w", variant.name, err)
		}
	}
	return nil
}

// order is an order of reading.
type order struct {
	name string
	read func(dir string) error
}

func (b *bench) compareReads(ctx context.Context, variant string, contenders []contender, orders []order) error {
	var images []string
	var bytes []float64
	for i, c := range contenders {
		image := filepath.Join(b.work, fmt.Sprint("image", i))
		if err := b.command(ctx, c.args(image)...).run(); err != nil {
			return err
		}
		info, err := os.Stat(image)
		if err != nil {
			return err
		}
		images, bytes = append(images, image), append(bytes, float64(info.Size()))
	}
	t := table{title: fmt.Sprintf("Cold reads of the dracut tree's image, %s, pclusters of 64 KiB, %d runs in turns;\n"+
		"sequential: every file; random: %d times %d bytes; ratios to the first row of each", variant, b.readRuns(), randomReads, readBytes)}
	t.add("", "order", "bytes", "wall s", "spread", "ratio", "MB read", "ratio")
	var targets []target
	for _, o := range orders {
		seconds, read := make([][]float64, len(images)), make([][]float64, len(images))
		for run := range b.readRuns() {
			for i, image := range images {
				r, err := b.readCold(ctx, image, o.read)
				if err != nil {
					return fmt.Errorf("%s: %w", contenders[i], err)
				}
				r.Section, r.Input, r.Run = b.section, o.name, run+1
				r.Program, r.Options = contenders[i].name, contenders[i].options
				b.say("%s, %s: run %d of %d: %s: %.2f s, %.1f MB read", variant, o.name, run+1, b.readRuns(), contenders[i], r.Seconds, float64(r.Bytes)/1e6)
				b.results = append(b.results, r)
				seconds[i], read[i] = append(seconds[i], r.Seconds), append(read[i], float64(r.Bytes))
			}
		}
		for i, c := range contenders {
			t.add(c.String(), o.name, bytesCell(bytes[i]),
				secondsCell(median(seconds[i])), spreadCell(seconds[i]), ratioCell(median(seconds[i]), median(seconds[0])),
				fmt.Sprintf("%.1f", median(read[i])/1e6), ratioCell(median(read[i]), median(read[0])))
		}
		for i, c := range contenders[1:] {
			targets = append(targets, target{c.label + ", " + o.name + ", wall time", ratio(median(seconds[i+1]), median(seconds[0])), 1, ""})
		}
	}
	return t.print(b.out, targets...)
}

// readRuns: reading takes a fraction of what writing takes, and scatters more.
func (b *bench) readRuns() int { return 3 * b.runs }

// readCold mounts an image, reads it and gives the time and the bytes that were
// read from its file.
func (b *bench) readCold(ctx context.Context, image string, read func(dir string) error) (r result, err error) {
	if err := dropCaches(image); err != nil {
		return r, err
	}
	device, err := b.command(ctx, "losetup", "--find", "--show", "--read-only", "--direct-io=on", image).output()
	if err != nil {
		return r, err
	}
	// What was begun is undone also when the context has ended.
	defer func() {
		err = errors.Join(err, b.command(context.WithoutCancel(ctx), "losetup", "--detach", device).run())
	}()
	dir := filepath.Join(b.work, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	if err := unix.Mount(device, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		return r, fmt.Errorf("mount %s on %s: %w", image, dir, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	before, err := bytesRead(device)
	if err != nil {
		return r, err
	}
	start := time.Now()
	if err := read(dir); err != nil {
		return r, err
	}
	r.Seconds = time.Since(start).Seconds()
	after, err := bytesRead(device)
	r.Bytes = after - before
	return r, errors.Join(err, ctx.Err())
}

// dropCaches makes the next reader of a file wait for the disk.
func dropCaches(path string) error {
	unix.Sync()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("fadvise %s: %w", path, err)
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// bytesRead tells what was read from a block device since it was made; see
// Documentation/block/stat.rst.
func bytesRead(device string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	if err != nil {
		return 0, err
	}
	return sectorsRead(string(text))
}

func sectorsRead(stat string) (int64, error) {
	fields := strings.Fields(stat)
	if len(fields) < 3 {
		return 0, fmt.Errorf("block statistics %q are too short", stat)
	}
	sectors, err := strconv.ParseInt(fields[2], 10, 64)
	return sectors * 512, err
}

// readAll reads every file in the order of the directories.
func readAll(dir string) error {
	buf := make([]byte, 128<<10)
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		return err
	})
}

// A block is a stretch of readBytes, or less at the end of its file.
type block struct {
	file   string // below the root
	offset int64
}

// randomBlocks picks blocks of a tree's files, the same ones at every call;
// every block is as likely.
func randomBlocks(dir string, n int) ([]block, error) {
	var all []block
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		file, err := filepath.Rel(dir, path)
		for offset := int64(0); offset < info.Size(); offset += readBytes {
			all = append(all, block{file, offset})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is nothing to read in %s", dir)
	}
	random := rand.New(rand.NewPCG(1, 2))
	picked := make([]block, n)
	for i := range picked {
		picked[i] = all[random.IntN(len(all))]
	}
	return picked, nil
}

func readBlocks(dir string, blocks []block) error {
	files := make(map[string]*os.File)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	buf := make([]byte, readBytes)
	for _, b := range blocks {
		f := files[b.file]
		if f == nil {
			var err error
			if f, err = os.Open(filepath.Join(dir, b.file)); err != nil {
				return err
			}
			files[b.file] = f
		}
		if _, err := f.ReadAt(buf, b.offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}
