package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// median is the middle value, or the mean of the two in the middle; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// A target is a ratio of two figures, or a figure, that must not be exceeded.
type target struct {
	what        string
	value, most float64
	unit        string
}

func (t target) met() bool { return t.value <= t.most }

func (t target) String() string {
	verdict := "missed"
	if t.met() {
		verdict = "met"
	}
	return fmt.Sprintf("%s: %.4f%s, target <= %.4g%s: %s", t.what, t.value, t.unit, t.most, t.unit, verdict)
}

// A table has a title, a header and rows, in columns; the first is text, the
// others are figures.
type table struct {
	title string
	rows  [][]string // the first is the header
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer, targets ...target) error {
	if _, err := fmt.Fprintf(w, "\n%s\n\n", t.title); err != nil {
		return err
	}
	// Text is aligned to the left: it is padded here.
	width := 0
	for _, row := range t.rows {
		width = max(width, len(row[0]))
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range t.rows {
		fmt.Fprintf(tw, "%-*s\t%s\t\n", width, row[0], strings.Join(row[1:], "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for i, t := range targets {
		if i == 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintln(w, t); err != nil {
			return err
		}
	}
	return nil
}

// The cells.

func bytesCell(n float64) string   { return strconv.FormatFloat(n, 'f', 0, 64) }
func mibCell(n float64) string     { return strconv.FormatFloat(n/(1<<20), 'f', 1, 64) }
func secondsCell(s float64) string { return strconv.FormatFloat(s, 'f', 2, 64) }

// ratio is a to b; without b, which then was not measured, no target is met.
func ratio(a, b float64) float64 {
	if b == 0 {
		return math.Inf(1)
	}
	return a / b
}

func ratioCell(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return strconv.FormatFloat(a/b, 'f', 3, 64)
}

func spreadCell(values []float64) string {
	if len(values) == 0 {
		return "-"
	}
	return secondsCell(slices.Min(values)) + "-" + secondsCell(slices.Max(values))
}
