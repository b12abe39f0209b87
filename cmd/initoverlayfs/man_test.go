package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var manDir = flag.String("man", "", "`DIR` into which TestManPages writes the manual pages, for make man")

// Each verb has a manual page, made of what its --help says, and mandoc finds
// nothing wrong with it. The pages of a release are made by this test, too: the
// program need not carry what writes them.
func TestManPages(t *testing.T) {
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	}
	a := &app{getenv: os.Getenv}
	seconds, err := a.sourceDateEpoch()
	if err != nil {
		t.Fatal(err)
	}
	date := time.Unix(seconds, 0).UTC().Format(time.DateOnly)
	root := a.rootCommand()
	root.InitDefaultVersionFlag()
	var pages []string
	walk(root, func(cmd *cobra.Command) {
		path := filepath.Join(dir, pageName(cmd)+".1")
		if err := os.WriteFile(path, []byte(manPage(cmd, date)), 0o644); err != nil {
			t.Fatal(err)
		}
		pages = append(pages, path)
	})
	if len(pages) < 8 {
		t.Errorf("there are only %q", pages)
	}
	lint(t, pages...)
}

// The pages that are written by hand are as clean.
func TestManSources(t *testing.T) {
	pages, err := filepath.Glob("../../man/*.[1-8]")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	lint(t, pages...)
}

// What a page says of a command, and that mandoc's silence means something.
func TestManPage(t *testing.T) {
	parent := &cobra.Command{Use: "tool", Short: "The tool"}
	parent.PersistentFlags().BoolP("quiet", "q", false, "say nothing")
	cmd := &cobra.Command{Use: "verb FILE", Short: "Do it", Long: "Do it with \\ to\n.file.", Run: func(*cobra.Command, []string) {}}
	cmd.Flags().String("to", "there", "write into `DIR`")
	cmd.Flags().String("secret", "", "not for everybody")
	_ = cmd.Flags().MarkHidden("secret")
	parent.AddCommand(cmd)
	want := `.TH TOOL\-VERB 1 2001-02-03 initoverlayfs
.SH NAME
tool\-verb \- do it
.SH SYNOPSIS
.nf
tool verb FILE [flags]
.fi
.SH DESCRIPTION
Do it with \e to
\&.file.
.SH OPTIONS
.TP
\fB\-q\fR, \fB\-\-quiet\fR
say nothing
.TP
\fB\-\-to\fR \fIDIR\fR
write into DIR (default there)
.SH SEE ALSO
.BR tool (1)
`
	if got := manPage(cmd, "2001-02-03"); got != want {
		t.Errorf("the page is\n%s\nwant\n%s", got, want)
	}
	if _, err := exec.LookPath("mandoc"); err == nil {
		bad := filepath.Join(t.TempDir(), "bad.1")
		if err := os.WriteFile(bad, []byte(".TH BAD 1 2001-02-03\n.nonsense\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if complaints := mandoc(t, bad); complaints == "" {
			t.Error("mandoc accepts a macro that does not exist")
		}
	}
}

// walk visits a command and those below it that are not hidden.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			walk(sub, visit)
		}
	}
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage gives the page of a command in roff's man macros.
func manPage(cmd *cobra.Command, date string) string {
	var p strings.Builder
	name := roff(pageName(cmd))
	fmt.Fprintf(&p, ".TH %s 1 %s initoverlayfs\n", strings.ToUpper(name), date)
	fmt.Fprintf(&p, ".SH NAME\n%s \\- %s\n", name, roff(strings.ToLower(cmd.Short[:1])+cmd.Short[1:]))
	fmt.Fprintf(&p, ".SH SYNOPSIS\n.nf\n%s\n.fi\n", roff(synopsis(cmd)))
	description := cmd.Long
	if description == "" {
		description = cmd.Short + "."
	}
	fmt.Fprintf(&p, ".SH DESCRIPTION\n%s\n", roff(strings.ReplaceAll(description, "\n\n", "\n.PP\n")))

	var options strings.Builder
	option := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		options.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(&options, "\\fB\\-%s\\fR, ", f.Shorthand)
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(&options, "\\fB\\-\\-%s\\fR", roff(f.Name))
		if value != "" {
			fmt.Fprintf(&options, " \\fI%s\\fR", roff(value))
		}
		if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "false" && f.DefValue != "[]" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&options, "\n%s\n", roff(usage))
	}
	cmd.InheritedFlags().VisitAll(option)
	cmd.NonInheritedFlags().VisitAll(option)
	if options.Len() > 0 {
		fmt.Fprintf(&p, ".SH OPTIONS\n%s", options.String())
	}
	if !cmd.HasParent() {
		p.WriteString(".SH EXIT STATUS\n0 on success, 1 on failure, 2 where the command line was not understood.\n")
	}
	if cmd.Example != "" {
		fmt.Fprintf(&p, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	if others := seeAlso(cmd); len(others) > 0 {
		fmt.Fprintf(&p, ".SH SEE ALSO\n%s\n", strings.Join(others, "\n"))
	}
	return p.String()
}

func synopsis(cmd *cobra.Command) string {
	if cmd.Runnable() && cmd.HasParent() {
		return cmd.UseLine()
	}
	return cmd.CommandPath() + " COMMAND"
}

// seeAlso refers to the command above and to those below.
func seeAlso(cmd *cobra.Command) []string {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, ".BR "+roff(pageName(cmd.Parent()))+" (1)")
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			pages = append(pages, ".BR "+roff(pageName(sub))+" (1)")
		}
	}
	if !cmd.HasParent() {
		pages = append(pages, ".BR initoverlayfs.conf (5)", ".BR storage\\-init (8)")
	}
	for i, page := range pages[:max(0, len(pages)-1)] {
		pages[i] = page + " ,"
	}
	return pages
}

// roff protects a text from being read as macros.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if (strings.HasPrefix(line, ".") && line != ".PP") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// lint fails the test if mandoc has something to say about manual pages.
func lint(t *testing.T, pages ...string) {
	t.Helper()
	_, err := exec.LookPath("mandoc")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	if complaints := mandoc(t, pages...); complaints != "" {
		t.Errorf("mandoc says\n%s", complaints)
	}
}

func mandoc(t *testing.T, pages ...string) string {
	t.Helper()
	out, err := exec.Command("mandoc", append([]string{"-Tlint", "-Wwarning"}, pages...)...).CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatalf("mandoc: %v", err)
	}
	return string(out)
}
