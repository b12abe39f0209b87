package powercut

import (
	"cmp"
	"slices"
	"strings"
)

// LoaderEntry is an entry of a boot loader's menu, as the Boot Loader
// Specification (UAPI.1) has it.
type LoaderEntry struct {
	ID        string // name of the file, .conf included
	Title     string
	Version   string
	SortKey   string
	MachineID string
	Linux     string
	Initrds   []string
	Options   string
}

// ParseLoaderEntry reads an entry. What it does not know is passed over, as a
// boot loader does.
func ParseLoaderEntry(id, text string) LoaderEntry {
	e := LoaderEntry{ID: id}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.IndexAny(line, " \t")
		if i < 0 || line[0] == '#' {
			continue
		}
		value := strings.TrimSpace(line[i:])
		switch line[:i] {
		case "title":
			e.Title = value
		case "version":
			e.Version = value
		case "sort-key":
			e.SortKey = value
		case "machine-id":
			e.MachineID = value
		case "linux":
			e.Linux = value
		case "initrd":
			e.Initrds = append(e.Initrds, value)
		case "options":
			e.Options = strings.TrimSpace(e.Options + " " + value)
		}
	}
	return e
}

// SortLoaderEntries puts entries into the order of systemd-boot's menu. The
// first is the default one.
func SortLoaderEntries(entries []LoaderEntry) {
	slices.SortStableFunc(entries, func(a, b LoaderEntry) int {
		keyless := func(e LoaderEntry) int {
			if e.SortKey == "" {
				return 1
			}
			return 0
		}
		order := cmp.Compare(keyless(a), keyless(b))
		if order == 0 && a.SortKey != "" {
			order = cmp.Or(strings.Compare(a.SortKey, b.SortKey), strings.Compare(a.MachineID, b.MachineID),
				CompareVersions(b.Version, a.Version))
		}
		return cmp.Or(order, CompareVersions(b.ID, a.ID))
	})
}

// CompareVersions orders versions by the rules of the Version Format
// Specification (UAPI.10): negative where a is the older one.
func CompareVersions(a, b string) int {
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	letter := func(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
	skip := func(s string) string {
		for s != "" && !digit(s[0]) && !letter(s[0]) && !strings.ContainsAny(s[:1], "~-^.") {
			s = s[1:]
		}
		return s
	}
	prefix := func(s string, in func(byte) bool) (head, rest string) {
		n := 0
		for n < len(s) && in(s[n]) {
			n++
		}
		return s[:n], s[n:]
	}
	has := func(s, sign string) int {
		if strings.HasPrefix(s, sign) {
			return 1
		}
		return 0
	}
	for {
		a, b = skip(a), skip(b)
		// A tilde is older even than the end.
		if x, y := has(a, "~"), has(b, "~"); x+y > 0 {
			if x != y {
				return y - x
			}
			a, b = a[1:], b[1:]
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		// What a sign begins is older than what goes on without one.
		signs := false
		for _, sign := range []string{"-", "^", "."} {
			x, y := has(a, sign), has(b, sign)
			if x != y {
				return y - x
			}
			if x == 1 {
				a, b, signs = a[1:], b[1:], true
				break
			}
		}
		if signs {
			continue
		}
		var x, y string
		if digit(a[0]) || digit(b[0]) {
			x, a = prefix(a, digit)
			y, b = prefix(b, digit)
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if order := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); order != 0 {
				return order
			}
			continue
		}
		x, a = prefix(a, letter)
		y, b = prefix(b, letter)
		if order := strings.Compare(x, y); order != 0 {
			return order
		}
	}
}
