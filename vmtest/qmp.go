package vmtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	qmpTimeout = 10 * time.Second // for the greeting, and for each answer
	maxQMPLine = 1 << 20          // bytes of a message; QEMU's longest here have some KiB
)

// qmp speaks QEMU's machine protocol: one JSON object a line. Commands are sent
// one at a time; events come at any time.
type qmp struct {
	conn    net.Conn
	timeout time.Duration

	events  chan string     // names of the events that came
	answers chan qmpMessage // all else
	stop    chan struct{}   // nobody waits for answers any more
	ended   chan struct{}   // no more messages come; err says why
	err     error
}

type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"` // the greeting
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

var errQMPClosed = errors.New("QEMU has closed the connection")

// newQMP takes the connection over: it waits for QEMU's greeting and makes it
// ready for commands. Where that fails the connection is closed.
func newQMP(conn net.Conn, timeout time.Duration) (*qmp, error) {
	q := &qmp{
		conn: conn, timeout: timeout,
		// An event that nobody takes would keep answers back. QEMU sends a
		// handful of them.
		events: make(chan string, 64), answers: make(chan qmpMessage),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go q.read()
	greeting, err := q.answer()
	switch {
	case err != nil:
		err = fmt.Errorf("qmp: greeting: %w", err)
	case greeting.QMP == nil:
		err = errors.New("qmp: the first message is no greeting")
	default:
		err = q.execute("qmp_capabilities", nil, nil)
	}
	if err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// read sorts messages into answers and events until the connection ends.
func (q *qmp) read() {
	defer close(q.ended)
	in := bufio.NewReaderSize(q.conn, maxQMPLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			q.err = fmt.Errorf("a message of more than %d bytes", maxQMPLine)
			return
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
			q.err = errQMPClosed
			return
		case err != nil:
			q.err = err
			return
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			q.err = fmt.Errorf("message %.100q: %w", line, err)
			return
		}
		if m.Event != "" {
			select {
			case q.events <- m.Event:
			default:
				q.err = errors.New("events that nobody expects")
				return
			}
			continue
		}
		select {
		case q.answers <- m:
		case <-q.stop:
			q.err = errQMPClosed
			return
		}
	}
}

// answer waits for the next message that is not an event.
func (q *qmp) answer() (qmpMessage, error) {
	timer := time.NewTimer(q.timeout)
	defer timer.Stop()
	select {
	case m := <-q.answers:
		return m, nil
	case <-q.ended:
		return qmpMessage{}, q.err
	case <-timer.C:
		return qmpMessage{}, fmt.Errorf("no answer within %v", q.timeout)
	}
}

// execute sends a command and decodes what it returns into result, unless that
// is nil. After an error the connection is of no use.
func (q *qmp) execute(command string, arguments, result any) error {
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	if err := q.conn.SetWriteDeadline(time.Now().Add(q.timeout)); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, q.lastWords(err))
	}
	m, err := q.answer()
	switch {
	case err != nil:
		return fmt.Errorf("qmp: %s: %w", command, err)
	case m.Error != nil:
		return fmt.Errorf("qmp: %s: %s: %s", command, m.Error.Class, m.Error.Desc)
	case m.Return == nil:
		return fmt.Errorf("qmp: %s: an answer without a result", command)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	return nil
}

// lastWords is why a command could not be sent: where QEMU has closed the
// connection, what it said before that says more than err does.
func (q *qmp) lastWords(err error) error {
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if _, ended := q.answer(); ended != nil {
		return ended
	}
	return err
}

// close ends the connection. It is called once.
func (q *qmp) close() {
	close(q.stop)
	_ = q.conn.Close() // nothing is lost by it
	<-q.ended
}
