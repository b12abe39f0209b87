package vmtest

import (
	"errors"
	"strings"
)

// The ways in which a boot fails; errors.Is tells them apart.
var (
	ErrStart     = errors.New("qemu failed")
	ErrPanic     = errors.New("kernel panic")
	ErrFatal     = errors.New("storage-init failed")
	ErrReset     = errors.New("guest reset without a done event")
	ErrExit      = errors.New("guest ended without a done event")
	ErrTimeout   = errors.New("timeout")
	ErrNotOK     = errors.New("guest reports failure")
	ErrMilestone = errors.New("milestone not reached")
)

// BootError is the error of a boot that failed.
type BootError struct {
	Kind   error  // one of the above, or the cause of a cancelled context
	Detail string // the line that says why, or empty
	LogDir string // folder with console.log, events.jsonl and qemu.args
}

// Error says what failed and where the logs are.
func (e *BootError) Error() string {
	var b strings.Builder
	b.WriteString("boot: " + e.Kind.Error())
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.LogDir != "" {
		b.WriteString(" (logs in " + e.LogDir + ")")
	}
	return b.String()
}

// Unwrap gives Kind.
func (e *BootError) Unwrap() error { return e.Kind }
