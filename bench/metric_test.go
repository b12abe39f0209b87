package bench

import "testing"

// TestMemUsed: a machine that sets memory aside for an image, and gets it back,
// has used no less for being larger.
func TestMemUsed(t *testing.T) {
	for _, test := range []struct {
		b    Boot
		want float64
		ok   bool
	}{
		{Boot{OK: true, PhysicalKB: 1000, MemUsableKB: 800}, 200, true},
		{Boot{OK: true, PhysicalKB: 1200, MemUsableKB: 990}, 210, true},
		{Boot{OK: true, MemUsableKB: 800}, 0, false},
		{Boot{OK: true, PhysicalKB: 1000}, 0, false},
		{Boot{PhysicalKB: 1000, MemUsableKB: 800}, 0, false},
	} {
		if got, ok := MemUsed.Value(&test.b); got != test.want || ok != test.ok {
			t.Errorf("%+v: %v, %v; want %v, %v", test.b, got, ok, test.want, test.ok)
		}
	}
}
