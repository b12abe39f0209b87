package kmod

import "strings"

// match reports whether name fits the shell pattern as fnmatch(3) without
// flags has it, which is how modprobe matches aliases: '*' and '?' match '/'
// too, brackets hold ranges and begin with '!' or '^' to negate, and a
// backslash takes the next byte as it is.
func match(pattern, name string) bool {
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
