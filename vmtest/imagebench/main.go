// Command imagebench measures images and their making side by side with
// mkfs.erofs and mksquashfs in one run, and prints tables with the ratios.
//
//	imagebench [flags] SECTION...
//
// The sections:
//
//	size         two initramfs archives: bytes, wall time, peak memory
//	random       256 MB of random data, beside a copy of it
//	random-mkfs  the same with the machine's own mkfs.erofs, which takes minutes
//	memory       peak memory for growing trees
//	sweep        three releases of a source tree with each size of pclusters
//	reads        cold reads of the mounted image (root only)
//
// Programs are run one after the other, those to be compared in turns; every
// figure but one that says otherwise is the median of -runs runs. Files lie in
// -work, which has to be on the disk that is meant. What is told as met or
// missed is computed from the figures that are printed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

type section struct {
	name string
	run  func(*bench, context.Context) error
}

var sections = []section{
	{"size", (*bench).size},
	{"random", (*bench).random},
	{"random-mkfs", (*bench).randomMkfs},
	{"memory", (*bench).memory},
	{"sweep", (*bench).sweep},
	{"reads", (*bench).reads},
}

func main() {
	b := bench{out: os.Stdout, progress: os.Stderr, start: time.Now()}
	flag.StringVar(&b.initoverlayfs, "initoverlayfs", "bin/initoverlayfs", "the program `FILE`")
	flag.StringVar(&b.newUtils, "erofs-utils", "", "`DIR` with mkfs.erofs and fsck.erofs 1.9; the machine's own are the older ones")
	flag.StringVar(&b.dracut, "dracut", "", "initramfs archive `FILE` of dracut")
	flag.StringVar(&b.initramfsTools, "initramfs-tools", "", "initramfs archive `FILE` of initramfs-tools")
	flag.StringVar(&b.sources, "sources", "", "`DIR` with releases of a source tree")
	flag.StringVar(&b.work, "work", "out/bench-image", "`DIR` for temporary files, emptied before and removed after")
	flag.IntVar(&b.runs, "runs", 3, "runs of each program")
	results := flag.String("json", "", "`FILE` for the result of every run")
	flag.Parse()
	names := flag.Args()
	for _, name := range names {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			fmt.Fprintf(os.Stderr, "imagebench: error: there is no section %s\n", name)
			os.Exit(2)
		}
	}
	if len(names) == 0 || b.runs < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := b.run(ctx, names, *results)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "imagebench: error:", err)
		os.Exit(1)
	}
}

type bench struct {
	initoverlayfs, newUtils         string // programs
	dracut, initramfsTools, sources string // inputs
	work                            string
	runs                            int
	out, progress                   io.Writer
	start                           time.Time
	results                         []result
	section                         string // that is running
}

// A result is one run of a program.
type result struct {
	Section    string  `json:"section"`
	Input      string  `json:"input"`
	Program    string  `json:"program"`
	Options    string  `json:"options"`
	Run        int     `json:"run"` // from 1
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds,omitempty"`
	PeakBytes  int64   `json:"peak_bytes,omitempty"` // of memory
	Bytes      int64   `json:"bytes"`                // of the image; of what was read from it, in the section reads
}

func (b *bench) run(ctx context.Context, names []string, results string) (err error) {
	if b.work, err = filepath.Abs(b.work); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.writeResults(results), os.RemoveAll(b.work)) }()
	if err := b.describe(); err != nil {
		return err
	}
	for _, s := range sections {
		if !slices.Contains(names, s.name) {
			continue
		}
		if err := errors.Join(os.RemoveAll(b.work), os.MkdirAll(b.work, 0o755)); err != nil {
			return err
		}
		b.section = s.name
		start := time.Now()
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		b.say("took %.0f s", time.Since(start).Seconds())
	}
	_, err = fmt.Fprintf(b.out, "\nAll took %.1f minutes.\n", time.Since(b.start).Minutes())
	return err
}

// writeResults writes what was measured, also where something failed then.
func (b *bench) writeResults(path string) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (b *bench) say(format string, args ...any) {
	elapsed := time.Since(b.start).Round(time.Second)
	fmt.Fprintf(b.progress, "imagebench: %6s %s: %s\n", elapsed, b.section, fmt.Sprintf(format, args...))
}
