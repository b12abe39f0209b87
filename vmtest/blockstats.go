package vmtest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
)

// BlockStats is what a guest has read from a drive until some moment, as QEMU
// counts it: what its firmware and its boot loader read is in it.
type BlockStats struct {
	Bytes    int64 `json:"bytes"`
	Requests int64 `json:"requests"`
}

// AtEnd is the moment, beside the milestones, for which Result.Disks has what
// was read: the end of the guest.
const AtEnd = "end"

// statistics asks QEMU what was read from the drives, at milestones and at the
// end. It holds a guest that has ended until the last numbers are there.
type statistics struct {
	drives map[string]string // QEMU's id to the drive's name
	conn   net.Conn

	mutex   sync.Mutex
	pending []string // moments that have come and were not asked about
	wake    chan struct{}

	// armed is closed once QEMU waits at the end of the guest, finished when the
	// statistics have ended: seen has them, or err says why they are not there.
	armed    chan struct{}
	finished chan struct{}
	seen     map[string]map[string]BlockStats
	err      error
}

// newStatistics gives the file that QEMU gets, too.
func newStatistics(drives []Drive) (*statistics, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp of QEMU")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	s := &statistics{
		drives: map[string]string{}, conn: conn, wake: make(chan struct{}, 1),
		armed: make(chan struct{}), finished: make(chan struct{}), seen: map[string]map[string]BlockStats{},
	}
	for i, d := range drives {
		if d.Bus == SDHCI {
			continue // QEMU does not count what is read from a card
		}
		s.drives[driveID(i)] = d.name(i)
		s.seen[d.name(i)] = map[string]BlockStats{}
	}
	return s, theirs, nil
}

// hangUp ends the connection; nothing is lost by it but what did not come yet.
func (s *statistics) hangUp() { _ = s.conn.Close() }

// abandoned says whether QEMU waits at the end of the guest for somebody who tells
// it to quit, and nobody does any more.
func (s *statistics) abandoned() bool {
	select {
	case <-s.finished:
	default:
		return false
	}
	select {
	case <-s.armed:
		return s.err != nil
	default:
		return false
	}
}

// at asks for the numbers of a moment that has just come. It does not wait. A
// moment that comes again takes the place of the earlier one.
func (s *statistics) at(moment string) {
	s.mutex.Lock()
	if !slices.Contains(s.pending, moment) {
		s.pending = append(s.pending, moment)
	}
	s.mutex.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// follow serves until the guest has ended. It closes the connection.
func (s *statistics) follow() {
	defer close(s.finished)
	s.err = s.serve()
}

func (s *statistics) serve() error {
	q, err := newQMP(s.conn, qmpTimeout)
	if err != nil {
		return err
	}
	defer q.close()
	// By a command, and not by an argument: without somebody who tells it to quit
	// QEMU shall not wait.
	if err := q.execute("set-action", map[string]string{"shutdown": "pause"}, nil); err != nil {
		return err
	}
	close(s.armed)
	for {
		select {
		case <-s.wake:
			s.mutex.Lock()
			moments := s.pending
			s.pending = nil
			s.mutex.Unlock()
			if err := s.ask(q, moments); err != nil {
				return err
			}
		case event := <-q.events:
			// A reset is one, too, for QEMU was told not to reboot.
			if event != "SHUTDOWN" {
				continue
			}
			if err := s.ask(q, []string{AtEnd}); err != nil {
				return err
			}
			if err := q.execute("quit", nil, nil); !errors.Is(err, errQMPClosed) {
				return err
			}
			return nil // it was quicker to end than to answer
		case <-q.ended:
			return fmt.Errorf("qmp: before the end of the guest: %w", q.err)
		}
	}
}

// ask notes the numbers of now for the moments.
func (s *statistics) ask(q *qmp, moments []string) error {
	var answer []struct {
		Device string `json:"device"`
		Stats  struct {
			Bytes    *int64 `json:"rd_bytes"`
			Requests *int64 `json:"rd_operations"`
		} `json:"stats"`
	}
	if err := q.execute("query-blockstats", nil, &answer); err != nil {
		return err
	}
	missing := maps.Clone(s.drives)
	for _, d := range answer {
		name, ok := missing[d.Device]
		if !ok {
			continue // of the firmware, or a drive that the caller added by itself
		}
		if d.Stats.Bytes == nil || d.Stats.Requests == nil {
			return fmt.Errorf("qmp: query-blockstats: drive %s: no rd_bytes or rd_operations", name)
		}
		delete(missing, d.Device)
		for _, moment := range moments {
			s.seen[name][moment] = BlockStats{*d.Stats.Bytes, *d.Stats.Requests}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("qmp: query-blockstats: not in the answer: %v", slices.Sorted(maps.Values(missing)))
	}
	return nil
}

// result gives the numbers of the moments that count in the end.
func (s *statistics) result(times map[Milestone]float64) (map[string]map[string]BlockStats, error) {
	if s.err != nil {
		return nil, s.err
	}
	for _, moments := range s.seen {
		maps.DeleteFunc(moments, func(moment string, _ BlockStats) bool {
			_, reached := times[Milestone(moment)]
			return !reached && moment != AtEnd
		})
	}
	return s.seen, nil
}
