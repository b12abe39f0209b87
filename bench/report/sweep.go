package report

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"

	"initoverlayfs/bench"
)

// sweepTitles says what a sweep varies, and what its axis is called.
var sweepTitles = map[string]struct{ title, axis string }{
	"bloat":              {"Content that the boot does not need", "added content"},
	"bloat-instructions": {"Content that the boot does not need", "added content"},
	"storage":            {"Speed of the storage", "storage"},
	"pcluster":           {"Size of the physical clusters", "largest physical cluster"},
	"compress":           {"Compression of the mini-initramfs", "compression"},
	"cpus":               {"Number of CPUs", "CPUs"},
	"memory":             {"Memory of the machine", "memory"},
}

// sweep is the scenarios of a set that lie on an axis, on one clock.
type sweep struct {
	set    string
	clock  bench.Clock
	places []place
	series []string
	list   []*bench.Scenario
	layer  string // which part of a sweep it is, if it is a part
}

// suffixed is a label that says more than where the point lies: "64MiB-text".
var suffixed = regexp.MustCompile(`^[0-9.]+ *[A-Za-z]*-(.+)$`)

// layers takes a sweep apart whose points differ not only in where they lie, so
// that each plot has one line for a series. The point at 0 belongs to each.
func (w *sweep) layers() []*sweep {
	var layers []*sweep
	of := func(name string) *sweep {
		i := slices.IndexFunc(layers, func(l *sweep) bool { return l.layer == name })
		if i < 0 {
			i = len(layers)
			part := *w
			part.layer, part.places = name, nil
			layers = append(layers, &part)
		}
		return layers[i]
	}
	for _, p := range w.places {
		name := ""
		if found := suffixed.FindStringSubmatch(p.label); found != nil {
			name = found[1]
		}
		l := of(name)
		l.places = append(l.places, p)
	}
	for _, l := range layers {
		if first := layers[0].places[0]; l != layers[0] && first.x == 0 {
			l.places = slices.Insert(l.places, 0, first)
		}
	}
	return layers
}

func (m *maker) sweeps() error {
	var all []*sweep
	for _, s := range m.scenarios(func(s *bench.Scenario) bool { return swept(s) && !s.Memory }) {
		i := slices.IndexFunc(all, func(w *sweep) bool { return w.set == s.Set && w.clock == s.Clock })
		if i < 0 {
			i = len(all)
			all = append(all, &sweep{set: s.Set, clock: s.Clock})
		}
		all[i].add(s)
	}
	first := true
	for _, w := range all {
		slices.SortStableFunc(w.places, func(a, b place) int { return cmp.Compare(w.rank(a), w.rank(b)) })
		s, err := m.sweep(w)
		if err != nil {
			return err
		}
		if s.empty() {
			continue
		}
		if first {
			m.doc.add(section{Title: "Sweeps", Text: []string{"In each of these one thing is varied. Ratios compare scenarios at the same point only."}})
			first = false
		}
		m.doc.add(s)
	}
	return nil
}

func (w *sweep) add(s *bench.Scenario) {
	w.list = append(w.list, s)
	if p := placeOf(s); !slices.Contains(w.places, p) {
		w.places = append(w.places, p)
	}
	if !slices.Contains(w.series, s.Series) {
		w.series = append(w.series, s.Series)
	}
}

// rank is where a point comes: storage without a limit is faster than any other.
func (w *sweep) rank(p place) float64 {
	if w.unlimited(p) {
		return math.Inf(1)
	}
	return p.x
}

func (w *sweep) unlimited(p place) bool { return w.set == "storage" && p.x == 0 }

func placeOf(s *bench.Scenario) place {
	label := s.Label
	if label == "" {
		label = fmt.Sprintf("%g", s.X)
	}
	return place{s.X, label}
}

// at gives the scenario of a series at a point, nil if there is none.
func (w *sweep) at(series string, p place) *bench.Scenario {
	i := slices.IndexFunc(w.list, func(s *bench.Scenario) bool { return s.Series == series && placeOf(s) == p })
	if i < 0 {
		return nil
	}
	return w.list[i]
}

func (m *maker) sweep(w *sweep) (section, error) {
	if len(m.bootsOf(w.list)) == 0 {
		return section{}, nil
	}
	about, ok := sweepTitles[w.set]
	if !ok {
		about.title, about.axis = "Sweep: "+w.set, w.set
	}
	s := section{Title: about.title, Under: true}
	if w.clock == bench.Instructions {
		s.Title += ", CPU work in instructions"
	}
	for _, metric := range m.mainTimes(w.list) {
		t := m.sweepTable(w, metric)
		if len(t.Rows) == 0 {
			continue
		}
		s.addTable(t)
		for _, layer := range w.layers() {
			f, err := m.sweepFigure(layer, metric, about.axis)
			if err != nil {
				return s, err
			}
			if f.SVG != "" {
				s.Figures = append(s.Figures, f)
			}
		}
		t, err := m.sweepRatios(w, metric)
		if err != nil {
			return s, err
		}
		s.addTable(t)
	}
	s.addTable(sweepSizes(w, "Boot files", func(s *bench.Scenario) int64 { return s.BootBytes }))
	s.addTable(sweepSizes(w, "Image", func(s *bench.Scenario) int64 { return s.ImageBytes }))
	for _, g := range m.Groups(w.list) {
		for _, line := range m.beside(g) {
			if !slices.Contains(s.Text, line) {
				s.Text = append(s.Text, line)
			}
		}
	}
	for _, sc := range w.list {
		if boots, failed := len(m.BootsOf(sc)), len(m.Failures(sc)); boots > 0 && failed == boots {
			s.Text = append(s.Text, fmt.Sprintf("%s: none of %s was good, so the point is missing.", sc.Name, count(boots, "boot")))
		}
	}
	return s, nil
}

func (w *sweep) head() []string {
	head := []string{""}
	for _, p := range w.places {
		head = append(head, p.label)
	}
	return head
}

// rows has a row for each series and a cell for each point; rows without any
// cell are left out.
func (w *sweep) rows(text func(*bench.Scenario) string) [][]string {
	var rows [][]string
	for _, series := range w.series {
		row, some := []string{series}, false
		for _, p := range w.places {
			cell := "-"
			if s := w.at(series, p); s != nil {
				if t := text(s); t != "" {
					cell, some = t, true
				}
			}
			row = append(row, cell)
		}
		if some {
			rows = append(rows, row)
		}
	}
	return rows
}

func (m *maker) sweepTable(w *sweep, metric bench.Metric) table {
	some := false
	rows := w.rows(func(s *bench.Scenario) string {
		sum := m.Summary(s, metric)
		all, failed := len(m.BootsOf(s)), len(m.Failures(s))
		if all == 0 {
			return ""
		}
		some = some || sum.N > 0
		text := "-"
		if sum.N > 0 {
			text = fmt.Sprintf("%s, N=%d", spread(sum, digits[metric.Unit], 1), sum.N)
		}
		if failed > 0 {
			text += fmt.Sprintf(", %d failed", failed)
		}
		return text
	})
	if !some {
		return table{}
	}
	return table{Title: m.metricTitle(metric, w.clock) + ", median (quartiles)", Head: w.head(), Rows: rows}
}

// sweepRatios compares ours with the best plain one of each point.
func (m *maker) sweepRatios(w *sweep, metric bench.Metric) (table, error) {
	var failure error
	rows := w.rows(func(s *bench.Scenario) string {
		if s.Kind != bench.Ours {
			return ""
		}
		same := slices.DeleteFunc(slices.Clone(w.list), func(o *bench.Scenario) bool { return o.Conditions() != s.Conditions() })
		base := m.best(same, metric)
		if base == nil {
			return ""
		}
		r, err := m.Ratio(s, base, metric)
		if err != nil {
			failure = err
			return ""
		}
		return ratioCell(r) + against(r) + base.Series
	})
	return table{Title: m.metricTitle(metric, w.clock) + ": ratio to the best plain initramfs of the point", Head: w.head(), Rows: rows, Wrap: true}, failure
}

// against joins a verdict to what was compared with.
func against(r bench.Ratio) string {
	switch r.Verdict() {
	case bench.Better, bench.Worse:
		return " than "
	}
	return ", against "
}

// sweepSizes has the sizes, if the points differ in them.
func sweepSizes(w *sweep, title string, size func(*bench.Scenario) int64) table {
	vary := false
	seen := map[string]int64{}
	rows := w.rows(func(s *bench.Scenario) string {
		n := size(s)
		if before, ok := seen[s.Series]; ok && before != n {
			vary = true
		}
		seen[s.Series] = n
		if n == 0 {
			return ""
		}
		return bytesText(float64(n))
	})
	if !vary {
		return table{}
	}
	return table{Title: title, Head: w.head(), Rows: rows}
}

func (m *maker) sweepFigure(w *sweep, metric bench.Metric, axis string) (figure, error) {
	places, logarithmic := layOut(w)
	var lines []line
	var most int
	for _, series := range w.series {
		l := line{name: series, look: m.looks[series]}
		for i, p := range w.places {
			s := w.at(series, p)
			if s == nil {
				continue
			}
			if sum := m.Summary(s, metric); sum.N > 0 {
				at := point{places[i].x, sum.Median, sum.Median, sum.Median}
				if sum.CI != nil {
					at.low, at.high = sum.CI.Low, sum.CI.High
				}
				l.points = append(l.points, at)
			}
		}
		if len(l.points) > 0 {
			lines = append(lines, l)
			most = max(most, len(l.points))
		}
	}
	if most < 2 {
		return figure{}, nil // one point is no sweep: the table has it
	}
	if logarithmic {
		axis += " (logarithmic)"
	}
	title := since(metric)
	if w.layer != "" {
		title += ": " + w.layer
	}
	picture, err := linePlot(title, axis, m.unit(w.clock), places, logarithmic, lines)
	return figure{Title: title, SVG: picture}, err
}

// layOut finds where the points of a sweep lie: where X says, on a logarithmic
// axis if they are far apart, or side by side if X says nothing. Storage without
// a limit has none that could be drawn: it is the last.
func layOut(w *sweep) (places []place, logarithmic bool) {
	places = slices.Clone(w.places)
	distinct := true
	for i := 1; i < len(places); i++ {
		distinct = distinct && places[i].x != places[i-1].x
	}
	if !distinct {
		for i := range places {
			places[i].x = float64(i)
		}
		return places, false
	}
	last := len(places) - 1
	if last > 0 && w.unlimited(places[last]) {
		places[last].x = 4 * places[last-1].x
	}
	low, high := places[0].x, places[last].x
	return places, len(places) > 2 && low > 0 && high/low >= 16
}
