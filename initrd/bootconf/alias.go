package bootconf

import (
	"errors"
	"strconv"
	"strings"
)

// Alias is one line of AliasesPath, `PATTERN DRIVER`: a device whose modalias
// fits the pattern is served by the driver. A mini-initramfs for many machines
// holds the drivers of all of them, and loads those of the one that it is on.
type Alias struct {
	Pattern string
	Driver  string // the module's name
}

// Bus is the name of the bus that gives devices such an alias; it is the
// alias's prefix, but for devices of a device tree. Patterns of ACPI devices
// begin with "acpi*:".
func (a *Alias) Bus() string {
	bus, _, _ := strings.Cut(a.Pattern, ":")
	bus = strings.TrimSuffix(bus, "*")
	if bus == "of" {
		return "platform"
	}
	return bus
}

// String gives the line, without its end.
func (a *Alias) String() string { return a.Pattern + " " + a.Driver }

// ParseAliases reads the lines of AliasesPath. An error names the line.
func ParseAliases(text string) ([]Alias, error) {
	var list []Alias
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		if line == "" {
			continue
		}
		pattern, driver, ok := strings.Cut(line, " ")
		if !ok || pattern == "" || driver == "" {
			return nil, Problem{n, "", errors.New("not an alias: " + strconv.Quote(line))}
		}
		list = append(list, Alias{pattern, driver})
	}
	return list, nil
}

// MatchAlias reports whether name fits the shell pattern as fnmatch(3) without
// flags has it, which is how modprobe matches aliases: '*' and '?' match '/'
// too, brackets hold ranges and begin with '!' or '^' to negate, and a
// backslash takes the next byte as it is.
func MatchAlias(pattern, name string) bool {
	// Most patterns differ from most names in the first bytes.
	if pattern == "" || name == "" {
		return strings.Trim(pattern, "*") == "" && name == ""
	}
	// back is where the pattern goes on after its last '*', and mark the
	// first byte of the name that this '*' has not swallowed yet. One such
	// pair is enough: a later '*' may always take over from an earlier one.
	p, n, back, mark := 0, 0, -1, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			p++
			back, mark = p, n
			continue
		}
		if p < len(pattern) {
			if width, ok := matchByte(pattern[p:], name[n]); ok {
				p += width
				n++
				continue
			}
		}
		if back < 0 {
			return false
		}
		mark++
		p, n = back, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchByte matches c with the first element of pattern, which is not '*', and
// returns the element's length.
func matchByte(pattern string, c byte) (width int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	case '[':
		if width, ok, closed := matchBracket(pattern, c); closed {
			return width, ok
		}
	}
	return 1, pattern[0] == c
}

// matchBracket matches c with the bracket expression that pattern begins with.
// closed is false if it has no end, and the '[' then stands for itself.
func matchBracket(pattern string, c byte) (width int, ok, closed bool) {
	i := 1
	negate := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negate {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != negate, true
		}
		low, high := pattern[i], pattern[i]
		i++
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			high = pattern[i+1]
			i += 2
		}
		ok = ok || (low <= c && c <= high)
	}
	return 0, false, false
}
