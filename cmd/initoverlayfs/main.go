// The initoverlayfs command makes, inspects and boots an initial filesystem
// that is read on demand from an EROFS image.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
)

// The rules for messages:
//
// Standard output has what was asked for: the result, or with --json one JSON
// document. Everything else goes to standard error, one line each:
// "initoverlayfs: ..." is progress and is left out with --quiet,
// "initoverlayfs: warning: ..." is something to know although it went on,
// "initoverlayfs: error: ..." is why it did not, and the only line of its kind.
// "hint: ..." below an error says what to do. Messages begin in lower case and
// have no full stop.

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// version is set by the linker for releases.
var version = ""

// gcPercent is how much may be garbage. Images of large trees are also made on
// small machines.
const gcPercent = 25

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	status := run(ctx, &app{
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
	}, os.Args[1:])
	stop()
	os.Exit(status)
}

// app is what a run of the command gets from outside, so that it can also run
// inside a test.
type app struct {
	stdout, stderr io.Writer
	getenv         func(string) string

	quiet   bool
	started bool // the command line was understood
}

// run executes a command line and returns the exit status.
func run(ctx context.Context, a *app, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(a.stderr, "initoverlayfs: error: %v\n", err)
	var usage *usageError
	if !a.started || errors.As(err, &usage) {
		fmt.Fprintf(a.stderr, "hint: see `%s --help`\n", cmd.CommandPath())
		return exitUsage
	}
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) {
		fmt.Fprintf(a.stderr, "hint: %s\n", hinter.Hint())
	}
	return exitFailure
}

// rootCommand is the whole of the command line.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "initoverlayfs",
		Short:         "Boot from an initial filesystem that is read on demand",
		Version:       toolVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageErrorf("no command given")
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "print no progress")
	root.AddCommand(a.buildCommand(), a.imageCommand(), a.bootCommand(), a.benchCommand(), a.diskCommand(),
		a.installCommand(), a.removeCommand(), a.statusCommand(), a.verifyCommand(), a.hookCommand(), a.freezeCommand())
	return root
}

// verb marks the point from which an error is no longer one of usage.
func (a *app) verb(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return fn(cmd.Context(), args)
	}
}

func (a *app) progress(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, "initoverlayfs: "+format+"\n", args...)
	}
}

func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, "initoverlayfs: warning: "+format+"\n", args...)
}

// sourceDateEpoch reads the variable of reproducible builds; 0 when unset.
func (a *app) sourceDateEpoch() (int64, error) {
	s := a.getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("bad SOURCE_DATE_EPOCH %q; it is a number of seconds", s)
	}
	return n, nil
}

// usageError is a command line that asks for something that does not exist.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// hinted adds a hint to an error.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }
func (e hinted) Hint() string  { return e.hint }

// toolVersion is the release, else the commit that the build knows.
func toolVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		revision, modified := "", ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = "+changes"
			}
		}
		if len(revision) >= 12 {
			return "git-" + revision[:12] + modified
		}
	}
	return "unreleased"
}

func (a *app) printJSON(doc any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}
