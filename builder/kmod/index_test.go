package kmod

import "testing"

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"crc32c-intel":       "crc32c_intel",
		"usb:v13FDp[0-9]-in": "usb:v13FDp[0-9]_in",
		"plain":              "plain",
	} {
		if got := Normalize(in); got != want {
			t.Errorf("Normalize(%q) = %q; want %q", in, got, want)
		}
	}
}
