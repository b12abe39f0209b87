package report

import (
	"fmt"
	"image/color"
	"maps"
	"slices"
	"strings"

	"initoverlayfs/bench"
	"initoverlayfs/vmtest"
)

// leastMemory is the set of the scenarios that are only searched for their least
// memory.
const leastMemory = "least-memory"

// swept says that the scenario is a point on an axis.
func swept(s *bench.Scenario) bool { return s.Label != "" || s.X != 0 }

// standard says that it is part of no sweep and of no search.
func standard(s *bench.Scenario) bool { return !swept(s) && s.Set != leastMemory }

const standardTitle = "The standard set"

// maker makes a document of results.
type maker struct {
	*bench.Results
	looks map[string]look // by series
	doc   document
}

func newDocument(r *bench.Results) (*document, error) {
	m := &maker{Results: r, looks: map[string]look{}}
	m.chooseLooks()
	m.doc.Title = "Boot benchmark"
	m.facts()
	standardSet := m.Groups(m.scenarios(func(s *bench.Scenario) bool { return standard(s) && !s.Memory }))
	wall := slices.DeleteFunc(slices.Clone(standardSet), func(g bench.Group) bool { return clock(g) == bench.Instructions })
	instructions := slices.DeleteFunc(standardSet, func(g bench.Group) bool { return clock(g) != bench.Instructions })
	for _, step := range []func() error{
		func() error { return m.headline(wall, instructions) },
		func() error { return m.times(wall) },
		func() error { return m.cpuWork(instructions) },
		func() error { return m.ratios(slices.Concat(wall, instructions)) },
		func() error { m.phases(slices.Concat(wall, instructions)); return nil },
		func() error { m.disks(wall); return nil },
		m.memory,
		m.sweeps,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	m.failures()
	m.leftOut()
	m.method()
	return &m.doc, nil
}

// chooseLooks gives each series its look: ours have hues, what they are compared
// with is grey and dashed.
func (m *maker) chooseLooks() {
	ours, others := 0, 0
	for i := range m.Scenarios {
		s := &m.Scenarios[i]
		if _, ok := m.looks[s.Series]; ok {
			continue
		}
		if s.Kind == bench.Ours {
			l := look{color: hues[ours%len(hues)], glyph: filledGlyphs[ours%len(filledGlyphs)]}
			if ours >= len(hues) {
				l.dash = dashes[ours/len(hues)%len(dashes)]
			}
			m.looks[s.Series] = l
			ours++
		} else {
			m.looks[s.Series] = look{color: grey, dash: dashes[others%len(dashes)], glyph: hollowGlyphs[others%len(hollowGlyphs)]}
			others++
		}
	}
}

func (m *maker) scenarios(keep func(*bench.Scenario) bool) []*bench.Scenario {
	var list []*bench.Scenario
	for i := range m.Scenarios {
		if keep(&m.Scenarios[i]) {
			list = append(list, &m.Scenarios[i])
		}
	}
	return list
}

func clock(g bench.Group) bench.Clock { return g.Scenarios[0].Clock }

func ours(list []*bench.Scenario) []*bench.Scenario {
	return slices.DeleteFunc(slices.Clone(list), func(s *bench.Scenario) bool { return s.Kind != bench.Ours })
}

func theirs(list []*bench.Scenario) []*bench.Scenario {
	return slices.DeleteFunc(slices.Clone(list), func(s *bench.Scenario) bool { return s.Kind == bench.Ours })
}

// emulated says that times of a clock are those of an emulated machine.
func (m *maker) emulated() bool { return m.Host.Accel != "kvm" }

// seconds is what wall time is called.
func (m *maker) seconds() string {
	if m.emulated() {
		return "seconds of emulation (" + strings.ToUpper(m.Host.Accel) + ")"
	}
	return "seconds"
}

func (m *maker) unit(c bench.Clock) string {
	if c == bench.Instructions {
		return "billions of guest instructions"
	}
	return m.seconds()
}

func (m *maker) facts() {
	add := func(name, format string, args ...any) {
		m.doc.Facts = append(m.doc.Facts, fact{name, fmt.Sprintf(format, args...)})
	}
	h := m.Host
	add("Machine", "%s, %s, %.1f GiB, Linux %s", h.CPU, count(h.Cores, "core"), float64(h.Memory)/(1<<20), h.Kernel)
	if m.emulated() {
		add("Accelerator", "none: %s emulates the processor, so seconds are those of an emulated machine, in which code that runs once costs more than on a real one", strings.ToUpper(h.Accel))
	} else {
		add("Accelerator", "KVM: the guest runs on the processor itself")
	}
	if h.GuestCPU == "" {
		add("QEMU", "%s", h.QEMU)
	} else {
		add("QEMU", "%s, guest CPU %s", h.QEMU, h.GuestCPU)
	}
	add("Run", "%s to %s, initoverlayfs %s", m.Started, m.Updated, m.Tool)
	if !m.Complete {
		why := ""
		if m.Why != "" {
			why = ": " + m.Why
		}
		add("Incomplete", "the run ended before it had made all boots%s", why)
	}
	failed := 0
	for i := range m.Boots {
		if !m.Boots[i].OK {
			failed++
		}
	}
	text := count(len(m.Boots), "boot")
	if failed > 0 {
		text += fmt.Sprintf(", of which %d failed; no figure below has the times of these", failed)
	}
	add("Boots", "%s", text)
}

// conditions says what a group has in common.
func (m *maker) conditions(g bench.Group) string {
	s := g.Scenarios[0]
	kernel := s.Kernel
	if kernel == "" {
		kernel = "of unknown version"
	}
	text := fmt.Sprintf("kernel %s, %s, %d MiB, storage %s", kernel, count(s.CPUs, "CPU"), s.MemoryMiB, s.Storage)
	if s.Firmware {
		text += ", started by firmware and boot loader"
	} else {
		text += ", kernel and initramfs handed over by QEMU at no cost"
	}
	return text
}

// beside says why scenarios are shown without a ratio.
func (m *maker) beside(g bench.Group) []string {
	var lines []string
	for _, s := range g.Others {
		if err := bench.Comparable(m.Results, g.Scenarios[0], s); err != nil {
			lines = append(lines, fmt.Sprintf("No ratio is given for %s, which is only shown beside the others: %v.", s.Series, err))
		}
	}
	return lines
}

// guestTimes are the milestones that boots of these scenarios have on the guest's
// clock, which begins when the kernel does.
func (m *maker) guestTimes(list []*bench.Scenario) []bench.Metric {
	times := func(b *bench.Boot) map[vmtest.Milestone]float64 { return b.Times }
	var metrics []bench.Metric
	for _, at := range bench.Milestones(m.bootsOf(list), times) {
		if at != vmtest.KernelStart {
			metrics = append(metrics, bench.GuestTime(at, list[0].Clock))
		}
	}
	return metrics
}

// hostTimes are the milestones on the host's clock, where firmware and boot loader
// are part of the boot.
func (m *maker) hostTimes(list []*bench.Scenario) []bench.Metric {
	list = slices.DeleteFunc(slices.Clone(list), func(s *bench.Scenario) bool { return !s.Firmware })
	times := func(b *bench.Boot) map[vmtest.Milestone]float64 { return b.HostTimes }
	var metrics []bench.Metric
	for _, at := range bench.Milestones(m.bootsOf(list), times) {
		metrics = append(metrics, bench.HostTime(at))
	}
	return metrics
}

func (m *maker) bootsOf(list []*bench.Scenario) []*bench.Boot {
	var boots []*bench.Boot
	for _, s := range list {
		boots = append(boots, m.BootsOf(s)...)
	}
	return boots
}

// mainTimes are the times by which scenarios are judged: the first message of the
// initial filesystem's init and the end of the boot, from power-on where there is
// firmware.
func (m *maker) mainTimes(list []*bench.Scenario) []bench.Metric {
	var metrics []bench.Metric
	for _, times := range [][]bench.Metric{m.hostTimes(list), m.guestTimes(list)} {
		if len(times) == 0 {
			continue
		}
		last := times[len(times)-1]
		for _, t := range times { // a milestone that is not known here may come last
			if t.Title == bench.GuestTime(vmtest.MultiUser, "").Title || t.Title == bench.HostTime(vmtest.MultiUser).Title {
				last = t
			}
		}
		metrics = append(metrics, last)
		for _, t := range times {
			if t.Name != last.Name && (t.Name == bench.GuestTime(vmtest.InitfsInit, "").Name || t.Name == bench.HostTime(vmtest.InitfsInit).Name) {
				metrics = append(metrics, t)
			}
		}
	}
	return metrics
}

// best gives the plain scenario with the best median, nil if there is none.
func (m *maker) best(list []*bench.Scenario, metric bench.Metric) *bench.Scenario {
	var best *bench.Scenario
	var bestMedian float64
	for _, s := range list {
		if s.Kind != bench.Plain {
			continue
		}
		sum := m.Summary(s, metric)
		if sum.N > 0 && (best == nil || (sum.Median < bestMedian) == metric.LowerIsBetter && sum.Median != bestMedian) {
			best, bestMedian = s, sum.Median
		}
	}
	return best
}

// against gives the ratios of ours to one scenario.
func (m *maker) against(list []*bench.Scenario, base *bench.Scenario, metric bench.Metric) ([]bench.Ratio, error) {
	var ratios []bench.Ratio
	for _, s := range ours(list) {
		r, err := m.Ratio(s, base, metric)
		if err != nil {
			return nil, err
		}
		if r.N > 0 || r.LeftOut > 0 && metric.Timed { // memory is not measured everywhere
			ratios = append(ratios, r)
		}
	}
	return ratios, nil
}

func (m *maker) headline(wall, instructions []bench.Group) error {
	s := section{Title: "What came out"}
	counted := map[string]bool{}
	for _, g := range slices.Concat(wall, instructions) {
		where := ""
		if len(wall) > 1 && clock(g) == bench.Wall {
			where = " (" + m.conditions(g) + ")"
		}
		metrics := m.mainTimes(g.Scenarios)
		if clock(g) == bench.Wall {
			metrics = append(metrics, bench.MemUsed)
		}
		for _, metric := range metrics {
			base := m.best(g.Scenarios, metric)
			if base == nil {
				continue
			}
			ratios, err := m.against(g.Scenarios, base, metric)
			if err != nil {
				return err
			}
			if len(ratios) == 0 {
				continue
			}
			// The way to multi-user.target has the first init message on it, which a
			// set of its own counts more often.
			if key := metric.Name + m.conditions(g); clock(g) == bench.Instructions {
				if counted[key] {
					continue
				}
				counted[key] = true
			}
			f := findings{Title: m.metricTitle(metric, clock(g)) + ", against the best plain initramfs, " + base.Series + where}
			var rows []estimate
			for _, r := range ratios {
				f.Items = append(f.Items, finding{r.Sentence(), class(r)})
				if r.N > 0 {
					rows = append(rows, m.estimate(r))
				}
			}
			s.Facts = append(s.Facts, fact{m.metricTitle(metric, clock(g)) + where, outcome(base, ratios)})
			s.Findings = append(s.Findings, f)
			if metric.Timed && len(rows) > 0 {
				title := m.metricTitle(metric, clock(g)) + ": ratio to " + base.Series + where
				picture, err := forestPlot(title, "ratio to "+shorten(base.Series)+": left of 1 is faster, right of 1 is slower", rows)
				if err != nil {
					return err
				}
				s.Figures = append(s.Figures, figure{Title: title, SVG: picture})
			}
		}
	}
	if len(s.Findings) == 0 && len(wall)+len(instructions) > 0 {
		s.Text = append(s.Text, "There is no round with a good boot both of ours and of a plain initramfs: nothing was compared.")
	}
	if err := m.firmwareHeadline(&s); err != nil {
		return err
	}
	var smallest []string
	for _, search := range m.Searches {
		if search.BootsMiB > 0 {
			smallest = append(smallest, fmt.Sprintf("%s %d MiB", m.Scenario(search.Scenario).Series, search.BootsMiB))
		}
	}
	if len(smallest) > 0 {
		s.Facts = append(s.Facts, fact{smallestTitle, strings.Join(smallest, ", ") + "."})
	}
	if f := m.failureCounts(); len(f.Items) > 0 {
		s.Findings = append(s.Findings, f)
	}
	m.doc.add(s)
	return nil
}

// firmwareHeadline tells of the points of sweeps that firmware and boot loader
// started: only there is the whole boot measured.
func (m *maker) firmwareHeadline(s *section) error {
	points := m.scenarios(func(s *bench.Scenario) bool { return swept(s) && s.Firmware && !s.Memory })
	for _, g := range m.Groups(points) {
		metrics := m.hostTimes(g.Scenarios)
		if len(metrics) == 0 {
			continue
		}
		metric := m.mainTimes(g.Scenarios)[0]
		base := m.best(g.Scenarios, metric)
		if base == nil {
			continue
		}
		ratios, err := m.against(g.Scenarios, base, metric)
		if err != nil {
			return err
		}
		if len(ratios) > 0 {
			at := g.Scenarios[0]
			title := fmt.Sprintf("%s, %s %s", m.metricTitle(metric, at.Clock), at.Set, at.Label)
			s.Facts = append(s.Facts, fact{title, outcome(base, ratios)})
			f := findings{Title: title + ", against the best plain initramfs, " + base.Series}
			for _, r := range ratios {
				f.Items = append(f.Items, finding{r.Sentence(), class(r)})
			}
			s.Findings = append(s.Findings, f)
		}
	}
	return nil
}

// outcome sums ratios up: who is faster, who is slower, of whom nothing is known.
func outcome(base *bench.Scenario, ratios []bench.Ratio) string {
	words := map[bench.Verdict]string{}
	var byVerdict [4][]string
	for _, r := range ratios {
		v := r.Verdict()
		byVerdict[v] = append(byVerdict[v], r.A.Series)
		words[v] = r.Word()
	}
	var parts []string
	for _, v := range []bench.Verdict{bench.Better, bench.Worse} {
		if list := byVerdict[v]; len(list) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s %s than %s", enumerate(list), verb(list, ratios[0].Metric), words[v], base.Series))
		}
	}
	if list := byVerdict[bench.NoDifference]; len(list) > 0 {
		parts = append(parts, "no difference shown for "+enumerate(list))
	}
	if list := byVerdict[bench.TooFew]; len(list) > 0 {
		parts = append(parts, "too few boots to tell for "+enumerate(list))
	}
	return strings.Join(parts, "; ") + "."
}

func enumerate(names []string) string {
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

func verb(names []string, metric bench.Metric) string {
	verbs := [2]string{"has", "have"}
	if metric.Unit == bench.Seconds || metric.Unit == bench.Gigainstr {
		verbs = [2]string{"is", "are"}
	}
	if len(names) == 1 {
		return verbs[0]
	}
	return verbs[1]
}

func (m *maker) estimate(r bench.Ratio) estimate {
	l := m.looks[r.A.Series]
	e := estimate{name: r.A.Series, text: r.Numbers(), mid: r.Estimate, color: l.color, glyph: l.glyph}
	if r.CI != nil {
		e.low, e.high = r.CI.Low, r.CI.High
	}
	switch r.Verdict() {
	case bench.TooFew:
		e.text += ", too few"
	case bench.NoDifference:
		e.text += ", not shown"
	default:
		e.text += ", " + r.Word()
	}
	return e
}

// metricTitle says on which clock a time is.
func (m *maker) metricTitle(metric bench.Metric, c bench.Clock) string {
	title := capital(metric.Title)
	switch {
	case metric.Unit == bench.Gigainstr:
		return title + ", CPU work in instructions"
	case metric.Unit != bench.Seconds:
		return title
	}
	return since(metric) + ", " + m.unit(c)
}

// since names a time with its beginning.
func since(metric bench.Metric) string {
	if metric.Unit == bench.Seconds && strings.HasPrefix(metric.Name, "guest ") {
		return capital(metric.Title) + " from the kernel's start"
	}
	return capital(metric.Title)
}

// capital begins a title with a capital letter, but not the name of a unit.
func capital(title string) string {
	word, _, _ := strings.Cut(title, " ")
	if title == "" || strings.Contains(word, ".") {
		return title
	}
	return strings.ToUpper(title[:1]) + title[1:]
}

func class(r bench.Ratio) string {
	switch r.Verdict() {
	case bench.Better:
		return "win"
	case bench.Worse:
		return "loss"
	case bench.NoDifference:
		return "none"
	}
	return "few"
}

// times shows the standard set.
func (m *maker) times(groups []bench.Group) error {
	for i, g := range groups {
		s := section{Title: standardTitle, Text: []string{m.conditions(g) + "."}}
		if i > 0 {
			s.Under, s.Title = true, standardTitle+": "+m.conditions(g)
			s.Text = nil
		}
		s.Text = append(s.Text, m.beside(g)...)
		list := g.All(m.Results)
		if err := m.waterfalls(&s, list); err != nil {
			return err
		}
		m.sizes(&s, list)
		m.timeTable(&s, "From power-on, by the host's clock", list, m.hostTimes(list))
		m.timeTable(&s, "From the kernel's start, by the guest's clock", list, m.guestTimes(list))
		m.doc.add(s)
	}
	return nil
}

// cpuWork shows what was counted in instructions.
func (m *maker) cpuWork(groups []bench.Group) error {
	for i, g := range groups {
		s := section{Title: "CPU work, in instructions", Text: []string{
			"While these guests work, a nanosecond of their clock is one instruction; while they wait for a disk, it is one of the host's. This is the figure for the work of the processor: it repeats, whatever else the machine does, and has not the time of a cache.",
			m.conditions(g) + ".",
		}}
		s.Under = i > 0
		s.Text = append(s.Text, m.beside(g)...)
		list := g.All(m.Results)
		if err := m.waterfalls(&s, list); err != nil {
			return err
		}
		if !slices.ContainsFunc(m.doc.Sections, func(s section) bool { return s.Title == standardTitle }) {
			m.sizes(&s, list) // those of the standard set are the same
		}
		m.timeTable(&s, "From the kernel's start", list, m.guestTimes(list))
		m.doc.add(s)
	}
	return nil
}

// timeTable has a row for each scenario, also for one of which every boot failed.
func (m *maker) timeTable(s *section, title string, list []*bench.Scenario, metrics []bench.Metric) {
	if len(metrics) == 0 {
		return
	}
	t := table{Title: fmt.Sprintf("%s: %s, median (quartiles)", title, m.unit(list[0].Clock)), Head: []string{"", "boots"}}
	for _, metric := range metrics {
		t.Head = append(t.Head, strings.TrimSuffix(metric.Title, " from power-on"))
	}
	for _, sc := range list {
		row := []string{sc.Series, m.bootCount(sc)}
		for _, metric := range metrics {
			row = append(row, m.cell(sc, metric))
		}
		t.Rows = append(t.Rows, row)
	}
	s.addTable(t)
}

// bootCount says how many boots there were, and how many of them failed.
func (m *maker) bootCount(s *bench.Scenario) string {
	all, failed := len(m.BootsOf(s)), len(m.Failures(s))
	if failed == 0 {
		return fmt.Sprintf("%d", all)
	}
	return fmt.Sprintf("%d of %d, %d failed", all-failed, all, failed)
}

// digits is to how many places a unit is shown.
var digits = map[bench.Unit]int{bench.Seconds: 2, bench.Gigainstr: 3, bench.Milliseconds: 1, bench.Megainstr: 1}

// cell is a median with its spread; N is said where it is not that of the row.
func (m *maker) cell(s *bench.Scenario, metric bench.Metric) string {
	sum := m.Summary(s, metric)
	if sum.N == 0 {
		return "-"
	}
	text := spread(sum, digits[metric.Unit], 1)
	if sum.N != len(m.BootsOf(s))-len(m.Failures(s)) {
		text += fmt.Sprintf(", N=%d", sum.N)
	}
	return text
}

// spread is a median and its quartiles, in a unit that is so many times the one
// of the values.
func spread(s bench.Summary, digits int, unit float64) string {
	text := fmt.Sprintf("%.*f", digits, s.Median/unit)
	if s.N > 1 {
		text += fmt.Sprintf(" (%.*f-%.*f)", digits, s.Q1/unit, digits, s.Q3/unit)
	}
	return text
}

func (m *maker) sizes(s *section, list []*bench.Scenario) {
	t := table{Title: "Files: what a boot loader reads, and the image beside it", Head: []string{"", "boots", "boot files", "of these kernel", "image", "of the image read"}}
	for _, sc := range list {
		image, read := "-", "-"
		if sc.ImageBytes > 0 {
			image = bytesText(float64(sc.ImageBytes))
			if sum := m.imageRead(sc); sum.N > 0 {
				read = fmt.Sprintf("%s, %.0f %%", bytesText(sum.Median), 100*sum.Median/float64(sc.ImageBytes))
			}
		}
		t.Rows = append(t.Rows, []string{sc.Series, m.bootCount(sc), bytesText(float64(sc.BootBytes)), bytesText(float64(sc.KernelBytes)), image, read})
	}
	s.addTable(t)
}

// imageRead is what was read, until the end of the boot, from the disk that has
// the image alone.
func (m *maker) imageRead(s *bench.Scenario) bench.Summary {
	for _, at := range []string{string(vmtest.MultiUser), "end"} {
		if sum := m.Summary(s, bench.ReadBytes("image", at)); sum.N > 0 {
			return sum
		}
	}
	return bench.Summary{}
}

// waterfalls draws the phases of each scenario's median boot: from power-on where
// there is firmware, else from the kernel's start.
func (m *maker) waterfalls(s *section, list []*bench.Scenario) error {
	metrics, host := m.hostTimes(list), true
	if len(metrics) == 0 {
		metrics, host = m.guestTimes(list), false
	}
	if len(metrics) == 0 {
		return nil
	}
	var rows []bar
	drawn := map[string]bool{}
	for _, sc := range list {
		boot := m.MedianBoot(sc, m.lastOf(sc, metrics))
		if boot == nil || host && boot.HostTimes == nil {
			continue
		}
		times := boot.Times
		if host {
			times = boot.HostTimes
		}
		row := bar{name: sc.Series}
		at := 0.0
		for _, stage := range stages {
			end, ok := times[stage.until]
			if !ok || end <= at {
				continue
			}
			if stage.until == vmtest.KernelStart && !host {
				continue
			}
			row.parts = append(row.parts, part{end - at, stage.color})
			drawn[stage.title] = true
			at = end
		}
		if at > 0 {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	clock := list[0].Clock
	title := "Where the time goes: the phases of the median boot"
	if host {
		title += ", from power-on"
	}
	digits := 1
	if clock == bench.Instructions {
		title, digits = "Where the instructions go: the phases of the median boot", 2
	}
	picture, err := barPlot(title, m.unit(clock), rows, func(v float64) string { return fmt.Sprintf("%.*f", digits, v) })
	if err != nil {
		return err
	}
	f := figure{Title: title, SVG: picture}
	for _, stage := range stages {
		if drawn[stage.title] {
			f.Legend = append(f.Legend, legendEntry{hex(stage.color), stage.title})
		}
	}
	s.Figures = append(s.Figures, f)
	return nil
}

// lastOf gives the last of the metrics that boots of s have.
func (m *maker) lastOf(s *bench.Scenario, metrics []bench.Metric) bench.Metric {
	for _, metric := range slices.Backward(metrics) {
		if m.Summary(s, metric).N > 0 {
			return metric
		}
	}
	return bench.Metric{}
}

// stages are the phases of a boot, each until a milestone.
var stages = []struct {
	until vmtest.Milestone
	title string
	color color.NRGBA
}{
	{vmtest.KernelStart, "firmware and boot loader", grey},
	{vmtest.KernelToInit, "kernel, to Run /init", hues[0]},
	{vmtest.HandedOver, "storage-init, to the handover", hues[1]},
	{vmtest.InitfsInit, "to the first init message", hues[4]},
	{vmtest.SwitchRoot, "initial filesystem, to switch root", hues[5]},
	{vmtest.MultiUser, "to multi-user.target", hues[2]},
}

// ratios has every pair of one of ours and something else.
func (m *maker) ratios(groups []bench.Group) error {
	first := true
	for _, g := range groups {
		s := section{Title: "Paired ratios", Under: !first}
		if len(groups) > 1 {
			s.Title += ": " + m.unit(clock(g)) + ", " + m.conditions(g)
		}
		metrics := slices.Concat(m.hostTimes(g.Scenarios), m.guestTimes(g.Scenarios))
		if clock(g) == bench.Wall {
			metrics = append(metrics, bench.MemUsed)
		}
		for _, metric := range metrics {
			t, err := m.ratioTable(g, metric)
			if err != nil {
				return err
			}
			s.addTable(t)
		}
		if len(s.Tables) > 0 {
			if first {
				s.Text = []string{"Ours in the rows, over what is in the columns, by rounds: estimate (95 % interval). Without an interval there are too few rounds. The plain one with the best median is marked; as it was chosen by the same boots, the ratios to it rather favour it."}
			}
			first = false
			m.doc.add(s)
		}
	}
	return nil
}

func (m *maker) ratioTable(g bench.Group, metric bench.Metric) (table, error) {
	t := table{Title: m.metricTitle(metric, clock(g)), Head: []string{""}, Wrap: true}
	best := m.best(g.Scenarios, metric)
	var bases []*bench.Scenario
	for _, s := range theirs(g.Scenarios) {
		if m.Summary(s, metric).N == 0 {
			continue
		}
		bases = append(bases, s)
		name := s.Series
		if s == best {
			name += " (best plain)"
		}
		t.Head = append(t.Head, name)
	}
	if len(bases) == 0 {
		return table{}, nil
	}
	for _, s := range ours(g.Scenarios) {
		if m.Summary(s, metric).N == 0 {
			continue
		}
		row := []string{s.Series}
		for _, base := range bases {
			r, err := m.Ratio(s, base, metric)
			if err != nil {
				return t, err
			}
			row = append(row, ratioCell(r))
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

func ratioCell(r bench.Ratio) string {
	if r.N == 0 {
		return "no pair"
	}
	text := fmt.Sprintf("%s, N=%d: %s", r.Numbers(), r.N, r.Word())
	if r.LeftOut > 0 {
		text = fmt.Sprintf("%s, N=%d, %d left out: %s", r.Numbers(), r.N, r.LeftOut, r.Word())
	}
	return text
}

// phases shows what storage-init spent its time on.
func (m *maker) phases(groups []bench.Group) {
	s := section{Title: "Inside storage-init"}
	for _, g := range groups {
		list := ours(g.All(m.Results))
		var names []string
		for _, b := range m.bootsOf(list) {
			for _, p := range b.Phases {
				if name := bench.PhaseName(p.Name); b.OK && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
		if len(names) == 0 {
			continue
		}
		unit := "milliseconds"
		if m.emulated() {
			unit += " of emulation (" + strings.ToUpper(m.Host.Accel) + ")"
		}
		if clock(g) == bench.Instructions {
			unit = "millions of instructions"
		}
		t := table{Title: fmt.Sprintf("Phases in %s, median (quartiles)", unit), Head: slices.Concat([]string{"", "boots"}, names, []string{"all"})}
		if len(groups) > 1 {
			t.Title += ": " + m.conditions(g)
		}
		for _, sc := range list {
			row := []string{sc.Series, m.bootCount(sc)}
			for _, name := range names {
				row = append(row, m.cell(sc, bench.PhaseTime(name, sc.Clock)))
			}
			t.Rows = append(t.Rows, append(row, m.cell(sc, bench.PhasesTime(sc.Clock))))
		}
		s.addTable(t)
	}
	m.doc.add(s)
}

// disks shows what was read from each disk.
func (m *maker) disks(groups []bench.Group) {
	s := section{Title: "Disk reads"}
	for _, g := range groups {
		list := g.All(m.Results)
		moments := map[vmtest.Milestone]bool{}
		ends := false
		for _, b := range m.bootsOf(list) {
			for _, disk := range b.Disks {
				for at := range disk {
					if at == "end" {
						ends = ends || b.OK
					} else if b.OK {
						moments[vmtest.Milestone(at)] = true
					}
				}
			}
		}
		columns := milestoneNames(moments)
		if ends {
			columns = append(columns, "end")
		}
		t := table{Title: "Read from each disk until a moment, as QEMU counts it: median", Head: []string{"", "disk"}}
		if len(groups) > 1 {
			t.Title += " (" + m.conditions(g) + ")"
		}
		for _, at := range columns {
			t.Head = append(t.Head, bench.MilestoneTitle(vmtest.Milestone(at)))
		}
		t.Head = append(t.Head, "requests")
		for _, sc := range list {
			for _, disk := range m.diskNames(sc) {
				row := []string{sc.Series, disk}
				requests := "-"
				for _, at := range columns {
					text := "-"
					if sum := m.Summary(sc, bench.ReadBytes(disk, at)); sum.N > 0 {
						text = bytesText(sum.Median)
						requests = fmt.Sprintf("%.0f", m.Summary(sc, bench.ReadRequests(disk, at)).Median)
					}
					row = append(row, text)
				}
				t.Rows = append(t.Rows, append(row, requests))
			}
		}
		s.addTable(t)
	}
	m.doc.add(s)
}

func milestoneNames(seen map[vmtest.Milestone]bool) []string {
	times := map[vmtest.Milestone]float64{}
	for at := range seen {
		times[at] = 0
	}
	var names []string
	boot := &bench.Boot{OK: true, Times: times}
	for _, at := range bench.Milestones([]*bench.Boot{boot}, func(b *bench.Boot) map[vmtest.Milestone]float64 { return b.Times }) {
		names = append(names, string(at))
	}
	return names
}

func (m *maker) diskNames(s *bench.Scenario) []string {
	var names []string
	for _, b := range m.BootsOf(s) {
		for name := range b.Disks {
			if b.OK && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// failureCounts says how many boots of each scenario failed.
func (m *maker) failureCounts() findings {
	f := findings{Title: "Boots that failed"}
	for i := range m.Scenarios {
		s := &m.Scenarios[i]
		if failed := len(m.Failures(s)); failed > 0 {
			f.Items = append(f.Items, finding{fmt.Sprintf("%s: %d of %s failed", s.Name, failed, count(len(m.BootsOf(s)), "boot")), "failed"})
		}
	}
	return f
}

// failures has the reason of every boot that failed.
func (m *maker) failures() {
	s := section{Title: "Failures"}
	for i := range m.Scenarios {
		sc := &m.Scenarios[i]
		failed := m.Failures(sc)
		if len(failed) == 0 {
			continue
		}
		f := findings{Title: fmt.Sprintf("%s: %d of %s failed", sc.Name, len(failed), count(len(m.BootsOf(sc)), "boot"))}
		for _, b := range failed {
			reason := b.Error
			if reason == "" {
				reason = "no reason was noted"
			}
			text := fmt.Sprintf("round %d: %s", b.Round, reason)
			if b.Log != "" {
				text += fmt.Sprintf(" (logs in %s)", b.Log)
			}
			f.Items = append(f.Items, finding{text, "failed"})
		}
		s.Findings = append(s.Findings, f)
	}
	m.doc.add(s)
}

// leftOut has the scenarios that could not be made.
func (m *maker) leftOut() {
	s := section{Title: "Left out"}
	for _, name := range slices.Sorted(maps.Keys(m.LeftOut)) {
		s.Facts = append(s.Facts, fact{name, m.LeftOut[name]})
	}
	m.doc.add(s)
}

func (m *maker) method() {
	m.doc.add(section{Title: "How to read this", Text: []string{
		"A table has the median of a scenario's good boots and in parentheses the quartiles, between which half of the boots lie. A boot that did not reach every milestone that it had to is a failure; it is counted, and no other figure has it.",
		"Scenarios were booted in rounds, one after the other, because machines drift. A ratio compares the two boots of a round, and a round in which either is missing is left out. The ratio is the Hodges-Lehmann estimate of the rounds' log ratios; its interval is that of Wilcoxon's signed-rank test at 95 %, which needs six rounds at least.",
		fmt.Sprintf("No difference is shown where the interval has 1 in it or is so wide that its end means little. That is not the same as being equal: more rounds may show one. Each interval stands for itself; of twenty, one is expected to be wrong. Where a plot has bars at its points, they are the 95 %% interval of the median; below six boots there are none. Boot files are what is read before the kernel starts; sizes are in MB of 1,000,000 bytes, memory in MiB of %d.", 1<<20),
	}})
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func bytesText(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 1e5:
		return fmt.Sprintf("%.1f kB", n/1e3)
	case n < 1e7:
		return fmt.Sprintf("%.2f MB", n/1e6)
	}
	return fmt.Sprintf("%.1f MB", n/1e6)
}
