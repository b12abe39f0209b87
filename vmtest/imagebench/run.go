package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A maker is a program that makes an image: what it is called in tables, and its
// command line without options.
type maker struct {
	name    string
	command func(options []string, input, out string) []string
}

// ours is initoverlayfs with a level and features.
func (b *bench) ours(level, features setting, pclusterBytes int, input string) contender {
	m := maker{"initoverlayfs", func(options []string, input, out string) []string {
		return append(append([]string{b.initoverlayfs, "image", "create", "--mkfs", "native"}, options...), input, out)
	}}
	return contender{
		maker: m, label: level.name + features.name, input: input, check: true,
		options: fmt.Sprintf("%s %s --pcluster %d", level.options, features.options, pclusterBytes),
	}
}

func (b *bench) mkfsNew() maker {
	return mkfs("mkfs.erofs 1.9", filepath.Join(b.newUtils, "mkfs.erofs"))
}

// mkfsOld is the machine's own; Debian 12 has 1.5.
func (b *bench) mkfsOld() maker { return mkfs("mkfs.erofs 1.5", "mkfs.erofs") }

func mkfs(name, program string) maker {
	return maker{name, func(options []string, input, out string) []string {
		return append(append([]string{program, "--quiet"}, options...), out, input)
	}}
}

func mksquashfs() maker {
	return maker{"mksquashfs", func(options []string, input, out string) []string {
		return append([]string{"mksquashfs", input, out, "-noappend", "-no-progress", "-quiet"}, options...)
	}}
}

// copyFile makes a copy and waits until it is on the disk.
func copyFile() maker {
	return maker{"cp and fsync", func(_ []string, input, out string) []string {
		return []string{"sh", "-c", `cp -- "$1" "$2" && sync -- "$2"`, "sh", input, out}
	}}
}

// A contender is a maker with its options and its input.
type contender struct {
	maker
	label   string // in tables, in place of the options
	options string // words
	input   string
	check   bool // with fsck.erofs
}

func (c contender) args(out string) []string {
	return c.command(strings.Fields(c.options), c.input, out)
}

func (c contender) String() string {
	return strings.TrimSpace(c.name + " " + cmp.Or(c.label, c.options))
}

// summary is what the runs of a contender took.
type summary struct {
	contender
	seconds          []float64
	cpu, peak, bytes float64 // medians; of the peak, the maximum
}

func (s summary) wall() float64 { return median(s.seconds) }

// compare runs the contenders in turns and gives a summary of each, in their
// order. The input is named so in the results.
func (b *bench) compare(ctx context.Context, input string, runs int, contenders ...contender) ([]summary, error) {
	all := make([][]result, len(contenders))
	for run := range runs {
		for i, c := range contenders {
			r, err := b.make(ctx, c, run == 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", input, c, err)
			}
			r.Section, r.Input, r.Program, r.Options, r.Run = b.section, input, c.name, c.options, run+1
			b.say("%s: run %d of %d: %s: %d bytes, %.2f s, %.0f MB of memory", input, run+1, runs, c, r.Bytes, r.Seconds, float64(r.PeakBytes)/(1<<20))
			all[i] = append(all[i], r)
			b.results = append(b.results, r)
		}
	}
	summaries := make([]summary, len(contenders))
	for i, c := range contenders {
		summaries[i] = summarize(c, all[i])
	}
	return summaries, nil
}

func summarize(c contender, results []result) summary {
	s := summary{contender: c}
	var cpu, bytes []float64
	for _, r := range results {
		s.seconds = append(s.seconds, r.Seconds)
		s.peak = max(s.peak, float64(r.PeakBytes))
		cpu, bytes = append(cpu, r.CPUSeconds), append(bytes, float64(r.Bytes))
	}
	s.cpu, s.bytes = median(cpu), median(bytes)
	return s
}

// make runs a contender once. Its image is removed.
func (b *bench) make(ctx context.Context, c contender, first bool) (result, error) {
	out := filepath.Join(b.work, "image")
	r, err := b.measure(ctx, c.args(out)...)
	if err != nil {
		return r, err
	}
	info, err := os.Stat(out)
	if err != nil {
		return r, err
	}
	r.Bytes = info.Size()
	if c.check && first {
		// It reads back all contents, with another's decoder.
		if err := b.command(ctx, filepath.Join(b.newUtils, "fsck.erofs"), "--extract", out).run(); err != nil {
			return r, err
		}
	}
	return r, os.Remove(out)
}

// measure runs a program to its end, with nothing left to be written before.
func (b *bench) measure(ctx context.Context, args ...string) (result, error) {
	unix.Sync()
	cmd := b.command(ctx, args...)
	start := time.Now()
	err := cmd.run()
	elapsed := time.Since(start)
	if err != nil {
		return result{}, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return result{}, errors.ErrUnsupported
	}
	return result{
		Seconds:    elapsed.Seconds(),
		CPUSeconds: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
		PeakBytes:  usage.Maxrss << 10,
	}, nil
}

// A command is killed with the context. Its error has the end of what it said.
type command struct{ *exec.Cmd }

func (b *bench) command(ctx context.Context, args ...string) command {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+b.work)
	cmd.WaitDelay = 5 * time.Second
	return command{cmd}
}

func (c command) run() error {
	_, err := c.output()
	return err
}

func (c command) output() (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(stdout.String()+stderr.String()), "\n")
		return "", fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, strings.Join(lines[max(0, len(lines)-3):], "; "))
	}
	return strings.TrimSpace(stdout.String()), nil
}

var versionPattern = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

// describe prints what is measured with what, and fails early where a program
// or a version is not the one that the tables name.
func (b *bench) describe() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	newest, err := versionOf(filepath.Join(b.newUtils, "mkfs.erofs"), "--version")
	if err != nil {
		return err
	}
	old, err := versionOf("mkfs.erofs", "--version")
	if err != nil {
		return err
	}
	squashfs, err := versionOf("mksquashfs", "-version")
	if err != nil {
		return err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(b.out, "Linux %s, %d processors, load %s; mkfs.erofs %s and %s, mksquashfs %s\n",
		unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), strings.Fields(string(load))[0], newest, old, squashfs)
	return err
}

func versionOf(program, option string) (string, error) {
	// Some know how to tell it, but not that this is no failure.
	text, err := exec.Command(program, option).CombinedOutput()
	version := versionPattern.FindString(string(text))
	if version == "" {
		return "", errors.Join(fmt.Errorf("%s %s tells no version", program, option), err)
	}
	return version, nil
}
