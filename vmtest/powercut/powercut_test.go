package powercut

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/vmtest/fixtures"
)

// trial cuts the power of a scene at every moment.
type trial struct {
	*scene
	disk     *Disk
	seen     map[Digest]*look
	booted   map[Digest]outcome // by the key of a choice
	rows     []*row
	problems []string
	entries  []string // what each boots, after each change
}

// outcome is how a boot ended.
type outcome struct {
	name string // of the full tree
	err  error
}

// row is a line of the table: what the power cuts of one phase left.
type row struct {
	phase            string
	flushes, subsets int               // states tried
	distinct         int               // of them, those that no row before had
	unclean          int               // states with a finding of fsck
	defaults         [2]map[string]int // what the default entry boots, raw and replayed
	broken           int               // raw states with another entry that does not boot
}

// moment is one state to look at.
type moment struct {
	what         string
	epoch        Epoch
	flush        bool
	begins, ends [2]int // marks before the epoch's begin and before its end
}

// marked counts the marks with a prefix among the first entries of the log.
func (s *scene) marked(prefix string, entries int) int {
	n := 0
	for _, e := range s.log.Entries[:entries] {
		if e.Offset != s.marks.Offset || !e.IsWrite() {
			continue
		}
		if data, err := s.log.Data(e); err == nil && strings.HasPrefix(string(data), prefix) {
			n++
		}
	}
	return n
}

// randomSubsets is how many random subsets of an epoch are tried.
const randomSubsets = 4

// run tries every flush, and with subsets states between the flushes too: each
// write of an epoch missing, each alone, each prefix, and random blocks.
func (s *scene) run(t *testing.T, subsets bool) *trial {
	t.Helper()
	path := filepath.Join(s.dir, "replay.img")
	copyWhole(t, path, s.before)
	d, err := OpenDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	tr := &trial{scene: s, disk: d, seen: map[Digest]*look{}, booted: map[Digest]outcome{}}
	random := rand.New(rand.NewPCG(1, 2))
	apply := func(i int, keep func() bool) {
		if err := d.Apply(s.log, s.log.Entries[i], keep); err != nil {
			t.Fatal(err)
		}
	}
	for n, e := range s.log.Epochs() {
		m := moment{epoch: e}
		for i, at := range []int{e.First, e.End} {
			m.begins[i], m.ends[i] = s.marked("begin-", at), s.marked("end-", at)
		}
		if subsets {
			try := func(what string, some func(i int) (bool, func() bool)) {
				for i := e.First; i < e.End; i++ {
					if yes, keep := some(i); yes {
						apply(i, keep)
					}
				}
				m.what = fmt.Sprintf("epoch %d, entries %d to %d: %s", n, e.First, e.End, what)
				tr.try(t, m)
				if err := d.Undo(0); err != nil {
					t.Fatal(err)
				}
			}
			for w := e.First; w < e.End; w++ {
				if !s.log.Entries[w].IsWrite() {
					continue
				}
				try(fmt.Sprintf("all but %d", w), func(i int) (bool, func() bool) { return i != w, nil })
				try(fmt.Sprintf("only %d", w), func(i int) (bool, func() bool) { return i == w, nil })
				try(fmt.Sprintf("up to %d", w), func(i int) (bool, func() bool) { return i <= w, nil })
			}
			for r := range randomSubsets {
				coin := func() bool { return random.IntN(2) == 0 }
				try(fmt.Sprintf("random blocks, %d", r), func(int) (bool, func() bool) { return true, coin })
			}
		}
		for i := e.First; i < e.End; i++ {
			if change := s.marked("end-", i+1); change > s.marked("end-", i) {
				tr.changed(t, change)
			}
			apply(i, nil)
		}
		d.Forget()
		m.what, m.flush = fmt.Sprintf("flush %d, behind entry %d", n, e.End), true
		tr.try(t, m)
	}
	return tr
}

// try looks at the state of the disk and judges it.
func (tr *trial) try(t *testing.T, m moment) {
	t.Helper()
	r := tr.row(m)
	if m.flush {
		r.flushes++
	} else {
		r.subsets++
	}
	digest, err := tr.disk.Digest(tr.part.Offset, tr.part.Size)
	if err != nil {
		t.Fatal(err)
	}
	l := tr.seen[digest]
	if l == nil {
		r.distinct++
		l = tr.look(t, tr.disk)
		tr.seen[digest] = l
	}
	if l.fsck != "" {
		r.unclean++
		// Without a journal something is always half done between flushes.
		if tr.fs != "vfat" || m.flush {
			tr.wrong(m, "fsck: %s", l.fsck)
		}
	}
	for view, name := range []string{"as it is", "after a replay"} {
		got := tr.defaultOf(t, l, view)
		r.defaults[view][got.name]++
		if got.err != nil {
			tr.wrong(m, "the default entry, %s: %v", name, got.err)
			continue
		}
		// What the change that is being made leads to, or the one before it.
		// Without settling, the latter may be in the journal alone, so that a
		// boot loader sees what came before that.
		from := m.ends[0]
		if view == raw && !tr.settled {
			from = max(0, m.begins[0]-2)
		}
		want := tr.trees[from : m.begins[1]+1]
		if tr.fs == "vfat" && !m.flush {
			// It has no journal. Between two flushes a folder may have lost an
			// entry, and the next one is booted.
			want = append(slices.Clone(want), "plain")
			if tr.previous[m.ends[0]] != "" {
				want = append(want, tr.previous[m.ends[0]])
			}
		}
		if !slices.Contains(want, got.name) {
			tr.wrong(m, "the default entry, %s, boots %s, want %s", name, got.name, strings.Join(want, " or "))
		}
		if l.menu[view] == nil {
			continue
		}
		if err := l.menu[view].broken[tr.plainEntry()]; err != nil {
			tr.wrong(m, "the plain entry, %s: %v", name, err)
		}
	}
	if l.menu[raw] != nil && len(l.menu[raw].broken) > 0 {
		r.broken++
	}
}

// changed boots every entry as soon as a change is made.
func (tr *trial) changed(t *testing.T, n int) {
	t.Helper()
	m := moment{what: fmt.Sprintf("after change %d", n)}
	l := tr.look(t, tr.disk)
	view := raw
	if !tr.settled {
		view = replayed
	}
	if l.err[view] != nil {
		tr.wrong(m, "%v", l.err[view])
		return
	}
	menu := l.menu[view]
	want := map[string]string{tr.plainEntry(): "plain"}
	if tr.trees[n] != "plain" {
		want[tr.ourEntry("")] = tr.trees[n]
	}
	if tr.previous != nil && tr.previous[n] != "" {
		want[tr.ourEntry(".backup")] = tr.previous[n]
	}
	got := map[string]string{}
	for i := range menu.choices {
		c := &menu.choices[i]
		if err := menu.broken[c.ID]; err != nil {
			tr.wrong(m, "%s: %v", c.ID, err)
			continue
		}
		got[c.ID] = tr.outcomeOf(t, c, view).name
	}
	if !maps.Equal(got, want) {
		tr.wrong(m, "the entries boot %v, want %v", got, want)
	}
	tr.entries = append(tr.entries, fmt.Sprintf("after change %d: %v", n, got))
}

func (tr *trial) wrong(m moment, format string, args ...any) {
	tr.problems = append(tr.problems, m.what+": "+fmt.Sprintf(format, args...))
}

// broken is the outcome's name of what does not boot.
const broken = "nothing"

// defaultOf boots the default entry, unless the same one was booted before.
func (tr *trial) defaultOf(t *testing.T, l *look, view int) outcome {
	t.Helper()
	menu := l.menu[view]
	switch {
	case l.err[view] != nil:
		return outcome{broken, l.err[view]}
	case len(menu.choices) == 0:
		return outcome{broken, fmt.Errorf("there is none: %v", menu.broken)}
	}
	first := &menu.choices[0]
	if err := menu.broken[first.ID]; err != nil {
		return outcome{broken, fmt.Errorf("%s: %w", first.ID, err)}
	}
	return tr.outcomeOf(t, first, view)
}

// outcomeOf boots an entry of the state that was looked at last.
func (tr *trial) outcomeOf(t *testing.T, c *choice, view int) outcome {
	t.Helper()
	key := c.key()
	got, ok := tr.booted[key]
	if !ok {
		name, err := tr.boot(t, tr.disk, c, view)
		if err != nil {
			name = broken
		}
		got = outcome{name, err}
		tr.booted[key] = got
		t.Logf("booted %s, %x: tree %s, %v", c.ID, key, got.name, got.err)
	}
	return got
}

// row gives the table's line for a moment.
func (tr *trial) row(m moment) *row {
	phase := fmt.Sprintf("change %d", m.begins[1])
	switch {
	case m.begins[1] == 0:
		phase = "before"
	case m.ends[0] == m.begins[1]:
		phase = fmt.Sprintf("after %d", m.ends[0])
	}
	for _, r := range tr.rows {
		if r.phase == phase {
			return r
		}
	}
	r := &row{phase: phase, defaults: [2]map[string]int{{}, {}}}
	tr.rows = append(tr.rows, r)
	return r
}

// table is what the power cuts left.
func (tr *trial) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: %d writes and flushes, %d boots\n", tr.name, tr.fs, len(tr.log.Entries), len(tr.booted))
	fmt.Fprintf(&b, "| power cut | after a flush | between flushes | new states | fsck finds | default entry boots | after a journal replay | another entry is broken |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range tr.rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %s | %s | %d |\n", r.phase, r.flushes, r.subsets, r.distinct, r.unclean,
			counts(r.defaults[raw]), counts(r.defaults[replayed]), r.broken)
	}
	for _, line := range tr.entries {
		fmt.Fprintf(&b, "%s\n", line)
	}
	return b.String()
}

func counts(of map[string]int) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		words = append(words, fmt.Sprintf("%s: %d", name, of[name]))
	}
	return strings.Join(words, ", ")
}

// check says what went wrong and prints the table.
func (tr *trial) check(t *testing.T) {
	t.Helper()
	t.Log(tr.table())
	const most = 20
	for i, p := range tr.problems {
		if i == most {
			t.Errorf("and %d more", len(tr.problems)-most)
			break
		}
		t.Error(p)
	}
}

// TestInstall cuts the power while pairs are installed and removed, at each flush.
func TestInstall(t *testing.T) {
	for fs, least := range map[string]fixtures.Boots{"ext4": fixtures.Some, "vfat": fixtures.All} {
		t.Run(fs, func(t *testing.T) {
			fixtures.RequireBoots(t, least)
			wanted, err := fixtures.Wanted()
			if err != nil {
				t.Fatal(err)
			}
			// More changes, and what is between the flushes.
			all := wanted == fixtures.All
			s := ours(fs, all).run(t)
			t.Log(strings.Join(s.output, ""))
			s.run(t, all).check(t)
		})
	}
}

const standInEntry = "/boot" + entriesFolder + "/$TOKEN-$V.initoverlayfs.conf"

// standIn are installers made of single steps: one that does it right, and some
// that do not.
func standIn(name, fs string) workload {
	w := workload{name: name, fs: fs, trees: []string{"plain", "1", "2"}}
	dir := func(n int) string { return fmt.Sprintf("/initoverlayfs/%d", n) }
	files := func(n int) []string {
		return []string{
			"mkdir /boot" + dir(n),
			fmt.Sprintf("copy /pair/%d/image /boot%s/image", n, dir(n)), "fsync /boot" + dir(n) + "/image",
			fmt.Sprintf("copy /pair/%d/mini /boot%s/mini", n, dir(n)), "fsync /boot" + dir(n) + "/mini",
			"fsync /boot" + dir(n), "fsync /boot/initoverlayfs", "fsync /boot",
		}
	}
	entry := func(n int) []string {
		return []string{
			fmt.Sprintf("copy /pair/%d/entry /boot%s/new", n, entriesFolder), "fsync /boot" + entriesFolder + "/new",
			"rename /boot" + entriesFolder + "/new " + standInEntry, "fsync /boot" + entriesFolder,
		}
	}
	switch name {
	case "good":
		w.script = func(n int) []string { return slices.Concat(files(n), []string{"freeze /boot"}, entry(n)) }
	case "no freeze":
		w.script = func(n int) []string { return slices.Concat(files(n), entry(n)) }
	case "entry first":
		w.script = func(n int) []string { return slices.Concat(entry(n), files(n), []string{"freeze /boot"}) }
	case "in place":
		dir = func(int) string { return "/initoverlayfs/0" }
		w.script = func(n int) []string { return slices.Concat(files(n), []string{"freeze /boot"}, entry(n)) }
	}
	w.prepare = pairsOf(func(n int) string { return dir(n) })
	return w
}

// TestStandIn makes sure that what a power cut breaks is found, and that nothing
// is found where nothing breaks.
func TestStandIn(t *testing.T) {
	for _, test := range []struct {
		name    string
		least   fixtures.Boots
		subsets bool
		want    string // a problem that is found; empty: there is none
	}{
		{"good", fixtures.All, false, ""},
		// The entry's pair is not there yet.
		{"entry first", fixtures.Some, false, "missing or empty"},
		// The image that is booted is overwritten.
		{"in place", fixtures.All, false, "the default entry, "},
		// The journal has all, but its blocks get to their places in any order.
		{"no freeze", fixtures.All, true, "the default entry, "},
	} {
		t.Run(test.name, func(t *testing.T) {
			fixtures.RequireBoots(t, test.least)
			tr := standIn(test.name, "ext4").run(t).run(t, test.subsets)
			if test.want == "" {
				tr.check(t)
				return
			}
			t.Log(tr.table())
			i := slices.IndexFunc(tr.problems, func(p string) bool { return strings.Contains(p, test.want) })
			if i < 0 {
				t.Fatalf("%d problems, none with %q:\n%s", len(tr.problems), test.want, strings.Join(tr.problems, "\n"))
			}
			t.Logf("%d problems, such as: %s", len(tr.problems), tr.problems[i])
		})
	}
}
