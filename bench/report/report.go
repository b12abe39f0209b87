// Package report shows the results of package bench: report.md, which has every
// number, and report.html, one file that has the plots, too.
//
// Both are rendered from one document, so they cannot tell different things. What
// comes from the results is text: it is escaped where it is rendered, and only
// there.
package report

import (
	"os"
	"path/filepath"

	"initoverlayfs/bench"
	"initoverlayfs/builder"
)

// The files that Write writes.
const (
	MarkdownName = "report.md"
	HTMLName     = "report.html"
)

// Write writes the report of r into the folder dir. Each file is there whole, or
// as it was before.
func Write(dir string, r *bench.Results) error {
	if err := r.Check(); err != nil {
		return err
	}
	d, err := newDocument(r)
	if err != nil {
		return err
	}
	page, err := d.html()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{MarkdownName: d.markdown(), HTMLName: page} {
		err := builder.WriteFile(filepath.Join(dir, name), 0o644, func(f *os.File) error {
			_, err := f.WriteString(text)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// document is what both files say.
type document struct {
	Title    string
	Facts    []fact // the first lines
	Sections []section
}

type fact struct{ Name, Value string }

// section is a heading and what lies below it, in the order of the members.
type section struct {
	Title    string
	Under    bool // of the section before it
	Facts    []fact
	Text     []string
	Figures  []figure
	Findings []findings
	Tables   []table
}

func (s *section) empty() bool {
	return len(s.Facts)+len(s.Text)+len(s.Findings)+len(s.Figures)+len(s.Tables) == 0
}

// findings are what the comparisons of one metric show.
type findings struct {
	Title string
	Items []finding
}

type finding struct {
	Text  string
	Class string // win, loss, none or few
}

// table has its first column flush left, the others flush right.
type table struct {
	Title string
	Head  []string
	Rows  [][]string
	Wrap  bool // the cells have words
}

// figure is a plot. Only the page has it.
type figure struct {
	Title  string
	Note   string
	Legend []legendEntry
	SVG    string
}

type legendEntry struct{ Color, Name string }

// add appends a section, if there is anything to show in it.
func (d *document) add(s section) {
	if !s.empty() {
		d.Sections = append(d.Sections, s)
	}
}

// addTable appends a table, if it has rows.
func (s *section) addTable(t table) {
	if len(t.Rows) > 0 {
		s.Tables = append(s.Tables, t)
	}
}
