package bootentry

import (
	"cmp"
	"strings"
)

// CompareVersions orders versions as the UAPI version format specification
// (https://uapi-group.org/specifications/specs/version_format_specification/)
// says, and systemd-boot does; it is negative where a is the older one.
func CompareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, meaningless), strings.TrimLeftFunc(b, meaningless)
		for _, mark := range []string{"~", "-", "^", "."} {
			// Only what a tilde begins is older than nothing.
			if mark == "-" && (a == "" || b == "") {
				return cmp.Compare(len(a), len(b))
			}
			restA, isA := strings.CutPrefix(a, mark)
			restB, isB := strings.CutPrefix(b, mark)
			if isA && !isB {
				return -1
			} else if isB && !isA {
				return 1
			}
			a, b = restA, restB
		}
		numberA, numberB := leading(&a, digit), leading(&b, digit)
		if numberA == "" || numberB == "" {
			// Letters, and the end, are older than digits.
			if c := cmp.Compare(len(numberA), len(numberB)); c != 0 {
				return c
			}
			if c := strings.Compare(leading(&a, letter), leading(&b, letter)); c != 0 {
				return c
			}
			continue
		}
		// Numbers may be longer than any integer.
		numberA, numberB = strings.TrimLeft(numberA, "0"), strings.TrimLeft(numberB, "0")
		if c := cmp.Or(cmp.Compare(len(numberA), len(numberB)), strings.Compare(numberA, numberB)); c != 0 {
			return c
		}
	}
}

// leading cuts from s what it begins with of a kind of characters.
func leading(s *string, kind func(rune) bool) string {
	rest := strings.TrimLeftFunc(*s, kind)
	cut := (*s)[:len(*s)-len(rest)]
	*s = rest
	return cut
}

func digit(r rune) bool  { return r >= '0' && r <= '9' }
func letter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

func meaningless(r rune) bool {
	return !digit(r) && !letter(r) && !strings.ContainsRune("~-^.", r)
}
