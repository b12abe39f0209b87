package powercut

import (
	"os"
	"testing"

	"initoverlayfs/vmtest/fixtures"
)

// work is the folder of what the tests share.
var work string

func TestMain(m *testing.M) { os.Exit(fixtures.InWorkFolder(m, "powercut", &work)) }

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
