package vmtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRunFirmware gives the guest variables of its own, which do not stay.
func TestRunFirmware(t *testing.T) {
	vars := fileOf(t, "vars.fd", 10)
	m := fakeQEMU(t, saysDone+`for word; do case $word in *unit=1*) file=${word##*file=}; echo changed >>"$file"; esac; done`)
	m.Kernel = ""
	m.Firmware = &Firmware{Code: "code.fd", Vars: vars}
	m.Drives = []Drive{{Path: "disk"}}
	m.Keep = true
	r, err := Run(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(vars); err != nil || info.Size() != 10 {
		t.Errorf("the variables were changed: %v, %v", info, err)
	}
	args, err := os.ReadFile(filepath.Join(r.LogDir, argsLog))
	if err != nil || !strings.Contains(string(args), varsCopy(r.LogDir)) {
		t.Errorf("the arguments have no copy of the variables: %v\n%s", err, args)
	}
	if _, err := os.Stat(varsCopy(r.LogDir)); !os.IsNotExist(err) {
		t.Errorf("the copy of the variables is still there: %v", err)
	}

	m.Firmware = &Firmware{Code: "code.fd", Vars: vars + "x"}
	m.LogParent = t.TempDir()
	if _, err := Run(context.Background(), m); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error = %v, want that there are no variables", err)
	}
	if left, err := os.ReadDir(m.LogParent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestConsoleWords(t *testing.T) {
	got, err := ConsoleWords("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(words, strings.Join(got, " ")); diff != "" {
		t.Errorf("words (-want +got):\n%s", diff)
	}
	if _, err := ConsoleWords("vax"); err == nil {
		t.Error("no error for an unknown architecture")
	}
	if _, err := FindFirmware("vax"); err == nil {
		t.Error("no error for the firmware of an unknown architecture")
	}
}

// A machine without a kernel cannot prove KVM.
func TestResolveAccelFirmware(t *testing.T) {
	m := Machine{Firmware: &Firmware{Code: "c", Vars: "v"}}
	accel, reason, err := m.ResolveAccel(context.Background())
	if accel != TCG || reason == "" || err != nil {
		t.Errorf("ResolveAccel = %s, %q, %v; want tcg and why", accel, reason, err)
	}
}
