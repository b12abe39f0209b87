package vmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	maxLogFile  = 64 << 20  // bytes kept of a log file
	keptHead    = 256 << 10 // bytes kept in memory of the console's begin
	keptTail    = 768 << 10 // and of its end
	maxEvents   = 32 << 20  // bytes of events kept in memory
	maxMemory   = 1000      // samples of the memory
	maxLine     = 64 << 10  // bytes of a console line; a longer one is cut in pieces
	maxEventLen = 8 << 20   // bytes of an event
)

// transcript keeps the begin and the end of a text.
type transcript struct {
	head, tail []byte
	dropped    int
}

func (t *transcript) add(line string) {
	if len(t.tail) == 0 && len(t.head)+len(line) < keptHead {
		t.head = append(append(t.head, line...), '\n')
		return
	}
	t.tail = append(append(t.tail, line...), '\n')
	// Trimming at twice the size moves each byte only once.
	if excess := len(t.tail) - keptTail; excess > keptTail {
		t.dropped += excess
		t.tail = append(t.tail[:0], t.tail[excess:]...)
	}
}

func (t *transcript) String() string {
	if t.dropped == 0 {
		return string(t.head) + string(t.tail)
	}
	return fmt.Sprintf("%s[%d bytes not kept]\n%s", t.head, t.dropped, t.tail)
}

// logs is the folder of one run's files.
type logs struct {
	dir     string
	console *logFile
	events  *logFile
}

type logFile struct {
	f       *os.File
	written int
	err     error
}

const (
	argsLog    = "qemu.args"
	stderrLog  = "qemu.stderr"
	consoleLog = "console.log"
	eventsLog  = "events.jsonl"
)

func newLogs(parent string) (*logs, error) {
	dir, err := os.MkdirTemp(parent, "vmtest-")
	if err != nil {
		return nil, fmt.Errorf("log folder: %w", err)
	}
	l := &logs{dir: dir}
	for _, file := range []struct {
		name string
		to   **logFile
	}{{consoleLog, &l.console}, {eventsLog, &l.events}} {
		f, err := os.Create(filepath.Join(dir, file.name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("log folder: %w", err), l.close())
		}
		*file.to = &logFile{f: f}
	}
	return l, nil
}

func (l *logFile) line(s string) {
	if l.err != nil || l.written+len(s) > maxLogFile {
		return
	}
	n, err := l.f.WriteString(s + "\n")
	l.written += n
	l.err = err
}

// close gives the first error of writing, for a log that lacks lines would
// mislead.
func (l *logs) close() error {
	var first error
	for _, f := range []*logFile{l.console, l.events} {
		if f == nil {
			continue
		}
		if err := f.f.Close(); f.err == nil {
			f.err = err
		}
		if first == nil && f.err != nil {
			first = fmt.Errorf("log: %w", f.err)
		}
	}
	return first
}

// remove takes away what a run wrote, and nothing else that may lie there.
func (l *logs) remove() error {
	for _, name := range []string{argsLog, stderrLog, consoleLog, eventsLog} {
		if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove logs: %w", err)
		}
	}
	if err := os.Remove(l.dir); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}

// shellQuote writes a command so that a shell would take it.
func shellQuote(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteString(" \\\n\t")
		}
		if a != "" && !strings.ContainsFunc(a, needsQuote) {
			b.WriteString(a)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	return b.String()
}

func needsQuote(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_=+:,./%@", r)
}
