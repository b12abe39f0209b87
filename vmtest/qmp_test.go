package vmtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const qmpGreeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}`

// serveQMP stands for QEMU: it greets, and answers each command with the lines
// that answer gives; without any it closes the connection.
func serveQMP(t *testing.T, conn net.Conn, greeting string, answer func(command string) []string) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		defer conn.Close()
		fmt.Fprintln(conn, greeting)
		in := bufio.NewScanner(conn)
		for in.Scan() {
			var c struct{ Execute string }
			if err := json.Unmarshal(in.Bytes(), &c); err != nil {
				t.Errorf("command %q: %v", in.Text(), err)
				return
			}
			lines := answer(c.Execute)
			if len(lines) == 0 {
				return
			}
			for _, line := range lines {
				fmt.Fprintln(conn, line)
			}
		}
	}()
}

const qmpOK = `{"return": {}}`

func TestQMP(t *testing.T) {
	for _, test := range []struct {
		name     string
		greeting string
		answers  map[string][]string // of commands; others are answered with qmpOK
		want     string              // in the error; empty: none
	}{
		{"good", qmpGreeting, nil, ""},
		{"an event before the answer", qmpGreeting, map[string][]string{"stop": {`{"event": "STOP", "timestamp": {}}`, qmpOK}}, ""},
		{"not JSON", "hello", nil, `greeting: message "hello`},
		{"no greeting", qmpOK, nil, "the first message is no greeting"},
		{"too long", strings.Repeat("x", maxQMPLine+1), nil, "greeting: a message of more than 1048576 bytes"},
		{"refused", qmpGreeting, map[string][]string{"stop": {`{"error": {"class": "CommandNotFound", "desc": "no such"}}`}}, "stop: CommandNotFound: no such"},
		{"no result", qmpGreeting, map[string][]string{"stop": {`{"id": 1}`}}, "stop: an answer without a result"},
		{"another type", qmpGreeting, map[string][]string{"stop": {`{"return": "x"}`}}, "stop: json: cannot unmarshal"},
		{"cut short", qmpGreeting, map[string][]string{"stop": {`{"return": `}}, "stop: message"},
		{"closed early", qmpGreeting, map[string][]string{"qmp_capabilities": nil}, "qmp_capabilities: QEMU has closed the connection"},
		{"closed later", qmpGreeting, map[string][]string{"stop": nil}, "stop: QEMU has closed the connection"},
		{"events without end", qmpGreeting, map[string][]string{"stop": strings.Split(strings.Repeat(`{"event":"X"}`+"\n", 100), "\n")}, "stop: events that nobody expects"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			serveQMP(t, theirs, test.greeting, func(command string) []string {
				if lines, ok := test.answers[command]; ok {
					return lines
				}
				return []string{qmpOK}
			})
			q, err := newQMP(ours, 5*time.Second)
			if err == nil {
				var result struct{}
				err = q.execute("stop", nil, &result)
				q.close()
			}
			if (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q", err, test.want)
			}
		})
	}
}

// TestQMPSilence proves that a QEMU that does not answer is not waited for
// without end.
func TestQMPSilence(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if _, err := newQMP(ours, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "greeting: no answer within 50ms") {
		t.Errorf("error = %v, want that of a greeting that does not come", err)
	}
	// The command is not taken, either.
	ours, theirs = net.Pipe()
	defer theirs.Close()
	go fmt.Fprintln(theirs, qmpGreeting)
	if _, err := newQMP(ours, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "qmp_capabilities: write") {
		t.Errorf("error = %v, want that of a command that nobody takes", err)
	}
}

// TestQMPLastWords proves that a command that could not be sent is blamed on
// what QEMU said before it closed the connection.
func TestQMPLastWords(t *testing.T) {
	for _, test := range []struct{ name, last, want string }{
		{"garbage", "x\n", `stop: message "x`},
		{"nothing", "", "stop: QEMU has closed the connection"},
		{"an answer nobody asked for", qmpOK + "\n", "stop: write"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, theirs, err := newStatistics(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			fmt.Fprintln(theirs, qmpGreeting+"\n"+qmpOK)
			q, err := newQMP(s.conn, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer q.close()
			// Closed with something unread, a socket reports a reset.
			if _, err := bufio.NewReader(theirs).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(theirs, test.last)
			theirs.Close()
			if err := q.execute("stop", nil, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want %q", err, test.want)
			}
		})
	}
}

// blockStats is an answer to query-blockstats.
func blockStats(drives ...string) string {
	return `{"return": [` + strings.Join(drives, ",") + `]}`
}

func driveStats(id string, bytes, requests int64) string {
	return fmt.Sprintf(`{"device": %q, "stats": {"rd_bytes": %d, "rd_operations": %d, "wr_bytes": 7}}`, id, bytes, requests)
}

func TestStatistics(t *testing.T) {
	const shutdown = `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`
	firmware := driveStats("pflash0", 1, 1)
	for _, test := range []struct {
		name  string
		first string // answer at the milestone
		last  string // answer at the end
		quit  []string
		want  string // in the error
	}{
		{"good", blockStats(firmware, driveStats("drive0", 10, 1), driveStats("drive1", 20, 2)),
			blockStats(driveStats("drive1", 40, 4), driveStats("drive0", 30, 3), firmware), []string{qmpOK}, ""},
		{"ends without an answer", blockStats(driveStats("drive0", 10, 1), driveStats("drive1", 20, 2)),
			blockStats(driveStats("drive1", 40, 4), driveStats("drive0", 30, 3)), nil, ""},
		{"does not quit", blockStats(driveStats("drive0", 10, 1), driveStats("drive1", 20, 2)),
			blockStats(driveStats("drive1", 40, 4), driveStats("drive0", 30, 3)), []string{`{"error": {"class": "C", "desc": "D"}}`}, "quit: C: D"},
		{"a drive is missing", blockStats(driveStats("drive0", 10, 1)), "", nil, "not in the answer: [drive1]"},
		{"a drive is missing at the end", blockStats(driveStats("drive0", 10, 1), driveStats("drive1", 20, 2)),
			blockStats(driveStats("drive1", 40, 4)), nil, "not in the answer: [root]"},
		{"a number is missing", blockStats(`{"device": "drive0", "stats": {"rd_bytes": 1}}`), "", nil, "drive root: no rd_bytes or rd_operations"},
		{"closed before the end", blockStats(driveStats("drive0", 10, 1), driveStats("drive1", 20, 2)), "", nil, "closed the connection"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, theirs, err := newStatistics([]Drive{{Name: "root"}, {}, {Bus: SDHCI}})
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.FileConn(theirs)
			if err := errors.Join(err, theirs.Close()); err != nil {
				t.Fatal(err)
			}
			queries := 0
			serveQMP(t, conn, qmpGreeting, func(command string) []string {
				switch command {
				case "query-blockstats":
					if queries++; queries == 1 {
						return []string{test.first, shutdown}
					}
					if test.last == "" {
						return nil
					}
					return []string{test.last}
				case "quit":
					return test.quit
				}
				return []string{qmpOK}
			})
			s.at(string(KernelToInit))
			s.at(string(InitfsInit)) // which was taken back later
			s.at(string(KernelToInit))
			s.follow()
			got, err := s.result(map[Milestone]float64{KernelToInit: 1})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || got != nil {
					t.Errorf("%v, error %v; want none, and %q", got, err, test.want)
				}
				if test.name == "does not quit" && !s.abandoned() {
					t.Error("QEMU is not known to be abandoned")
				}
				return
			}
			want := map[string]map[string]BlockStats{
				"root":   {string(KernelToInit): {10, 1}, AtEnd: {30, 3}},
				"drive1": {string(KernelToInit): {20, 2}, AtEnd: {40, 4}},
			}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("error %v, statistics (-want +got):\n%s", err, diff)
			}
			if s.abandoned() {
				t.Error("QEMU is thought to be abandoned")
			}
		})
	}
}
