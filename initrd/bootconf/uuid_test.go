package bootconf

import "testing"

func TestParseUUID(t *testing.T) {
	for _, s := range []string{
		testUUID,
		"0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0",
		"0f1e2d3c4b5a69788796a5b4c3d2e1f0",
	} {
		got, err := ParseUUID(s)
		if err != nil || got != parsedTestUUID {
			t.Errorf("ParseUUID(%q) = %v, %v; want %v", s, got, err, parsedTestUUID)
		}
	}
	if got := parsedTestUUID.String(); got != testUUID {
		t.Errorf("String() = %q, want %q", got, testUUID)
	}
	for _, s := range []string{"", "-", testUUID[:35], testUUID + "0", "0x1e2d3c4b5a69788796a5b4c3d2e1f0", "+f1e2d3c4b5a69788796a5b4c3d2e1f0"} {
		if got, err := ParseUUID(s); err == nil || !got.IsZero() {
			t.Errorf("ParseUUID(%q) = %v, %v; want the nil UUID and an error", s, got, err)
		}
	}
}

func TestUUIDIsZero(t *testing.T) {
	if !(UUID{}).IsZero() || (UUID{15: 1}).IsZero() {
		t.Error("IsZero is not true for the nil UUID alone")
	}
}
