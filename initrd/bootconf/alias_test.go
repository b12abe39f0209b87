package bootconf

import "testing"

func TestMatchAlias(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"?", "", false},
		{"abc", "abc", true},
		{"abc", "abcd", false},
		{"abcd", "abc", false},
		{"a*", "a", true},
		{"a*", "a/b", true},
		{"*b*d", "abcbd", true},
		{"*b*d", "abcbde", false},
		{"a*b*c", "aXbXbXc", true},
		{"pci:v00001AF4d00001042sv*sd*bc*sc*i*", "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc80i00", true},
		{"pci:v*d*sv*sd*bc0Csc03i30*", "pci:v00008086d000031A8sv00000000sd00000000bc0Csc03i30", true},
		{"pci:v*d*sv*sd*bc0Csc03i20*", "pci:v00008086d000031A8sv00000000sd00000000bc0Csc03i30", false},
		{"d0[0-2]*x", "d01yx", true},
		{"d0[0-2]*x", "d03yx", false},
		{"[!0-2]", "3", true},
		{"[^0-2]", "1", false},
		{"[]a]", "]", true},
		{"[a-]", "-", true},
		{"[a-c-e]", "-", true},
		{"[ab", "[ab", true},
		{"[ab", "a", false},
		{`a\*b`, "a*b", true},
		{`a\*b`, "axb", false},
		{`a\`, `a\`, true},
	} {
		if got := MatchAlias(test.pattern, test.name); got != test.want {
			t.Errorf("MatchAlias(%q, %q) = %t; want %t", test.pattern, test.name, got, test.want)
		}
	}
}

func TestAliasBus(t *testing.T) {
	for pattern, want := range map[string]string{
		"pci:v*d*": "pci", "scsi:t-0x00*": "scsi", "of:N*T*Cvirtio,mmio": "platform", "platform:e820_pmem*": "platform",
		"acpi*:INT33BB:*": "acpi",
	} {
		a := Alias{Pattern: pattern}
		if got := a.Bus(); got != want {
			t.Errorf("Alias{%q}.Bus() = %q; want %q", pattern, got, want)
		}
	}
}
