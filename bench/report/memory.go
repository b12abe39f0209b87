package report

import (
	"fmt"
	"slices"

	"initoverlayfs/bench"
)

// memory shows what the guests had at milestones and at multi-user.target, and the
// smallest memory that boots.
func (m *maker) memory() error {
	s := section{Title: "Memory"}
	list := m.scenarios(func(s *bench.Scenario) bool { return standard(s) && s.Clock == bench.Wall })
	for i, g := range m.Groups(list) {
		if err := m.memoryAtEnd(&s, g, i > 0); err != nil {
			return err
		}
	}
	m.samples(&s)
	if err := m.searches(&s); err != nil {
		return err
	}
	m.doc.add(s)
	return nil
}

func (m *maker) memoryAtEnd(s *section, g bench.Group, again bool) error {
	metrics := []bench.Metric{bench.MemUsed, bench.MemUsable, bench.MemAvailable, bench.MemTotal}
	t := table{Title: "At multi-user.target, by the guest: MiB, median (quartiles)", Head: []string{"", "boots"}}
	if g.Scenarios[0].Memory {
		t.Title += ", with the memory probe"
	} else if again {
		t.Title += ": " + m.conditions(g)
	}
	for _, metric := range metrics {
		t.Head = append(t.Head, metric.Title)
	}
	t.Head = append(t.Head, bench.PageFaults.Title, bench.MajorPageFaults.Title)
	var rows []bar
	for _, sc := range g.All(m.Results) {
		row := []string{sc.Series, m.bootCount(sc)}
		some := false
		if sum := m.Summary(sc, bench.MemUsed); sum.N > 0 && !again {
			rows = append(rows, bar{sc.Series, []part{{sum.Median / 1024, m.looks[sc.Series].color}}})
		}
		for _, metric := range metrics {
			sum := m.Summary(sc, metric)
			some = some || sum.N > 0
			row = append(row, mebibytes(sum))
		}
		for _, metric := range []bench.Metric{bench.PageFaults, bench.MajorPageFaults} {
			text := "-"
			if sum := m.Summary(sc, metric); sum.N > 0 {
				some = true
				text = fmt.Sprintf("%.0f", sum.Median)
			}
			row = append(row, text)
		}
		if some {
			t.Rows = append(t.Rows, row)
		}
	}
	s.addTable(t)
	return s.memoryBars(capital(bench.MemUsed.Title), "Median; less is better.", rows)
}

func mebibytes(s bench.Summary) string {
	if s.N == 0 {
		return "-"
	}
	return spread(s, 1, 1024)
}

// samples shows what the memory probe saw.
func (m *maker) samples(s *section) {
	var moments []string
	for i := range m.Boots {
		for _, sample := range m.Boots[i].Memory {
			if m.Boots[i].OK && !slices.Contains(moments, sample.At) {
				moments = append(moments, sample.At)
			}
		}
	}
	if len(moments) == 0 {
		return
	}
	fields := []struct {
		title string
		value func(*bench.MemorySample) int64
	}{
		{"available", func(s *bench.MemorySample) int64 { return s.AvailableKB }},
		{"cached", func(s *bench.MemorySample) int64 { return s.CachedKB }},
		{"shmem", func(s *bench.MemorySample) int64 { return s.ShmemKB }},
	}
	t := table{Title: "What /proc/meminfo had at milestones: MiB, median (quartiles)", Head: []string{"", "boots"}}
	for _, at := range moments {
		for _, f := range fields {
			t.Head = append(t.Head, at+": "+f.title)
		}
	}
	for i := range m.Scenarios {
		sc := &m.Scenarios[i]
		row := []string{sc.Name, m.bootCount(sc)}
		some := false
		for _, at := range moments {
			for _, f := range fields {
				sum := m.Summary(sc, bench.Sampled(at, f.title, false, f.value))
				some = some || sum.N > 0
				row = append(row, mebibytes(sum))
			}
		}
		if some {
			t.Rows = append(t.Rows, row)
		}
	}
	s.addTable(t)
}

// searches shows the smallest memory that boots.
func (m *maker) searches(s *section) error {
	t := table{Title: "Smallest memory that boots, beside the persistent memory: MiB", Head: []string{"", "boots with", "fails with", "boots made"}}
	var rows []bar
	for _, search := range m.Searches {
		sc := m.Scenario(search.Scenario)
		row := []string{sc.Series, number(search.BootsMiB), number(search.FailsMiB), fmt.Sprintf("%d", len(search.Tries))}
		if !search.Done {
			row[3] += ", not finished"
		}
		t.Rows = append(t.Rows, row)
		if search.BootsMiB > 0 {
			rows = append(rows, bar{sc.Series, []part{{float64(search.BootsMiB), m.looks[sc.Series].color}}})
		}
	}
	s.addTable(t)
	return s.memoryBars(smallestTitle, "Less is better.", rows)
}

const smallestTitle = "Smallest memory that boots"

// memoryBars draws one bar of MiB for each row, if there are rows.
func (s *section) memoryBars(title, note string, rows []bar) error {
	if len(rows) == 0 {
		return nil
	}
	picture, err := barPlot(title, "MiB", rows, func(v float64) string { return fmt.Sprintf("%.0f", v) })
	s.Figures = append(s.Figures, figure{Title: title, SVG: picture, Note: note})
	return err
}

func number(n int) string {
	if n == 0 {
		return "none found"
	}
	return fmt.Sprintf("%d", n)
}
