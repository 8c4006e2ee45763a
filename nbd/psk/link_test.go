package psk

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// link is a connection in memory. Writes never block. When both ends wait for each other, which no end could ever leave, both are told that it is over: a test
// of what a changed length does needs no clock.
type link struct {
	mu      sync.Mutex
	changed sync.Cond
	pending [2][]byte // for each end
	closed  [2]bool
	waiting [2]bool
	dead    bool
}

// end is one of the two ends.
type end struct {
	*link
	side int
	// change, where it is set, gets what this end receives and its position in the stream, and returns what this end sees of it. Less ends the stream.
	change func(data []byte, at int) []byte
	at     int
	cut    bool // by change
	last   bool // nothing more comes after what is pending
}

func newLink() (a, b *end) {
	l := &link{}
	l.changed.L = &l.mu
	return &end{link: l}, &end{link: l, side: 1}
}

func (e *end) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.pending[e.side]) == 0 {
		switch {
		case e.closed[e.side]:
			return 0, net.ErrClosed
		case e.closed[1-e.side], e.dead, e.cut, e.last:
			return 0, io.EOF
		}
		if other := 1 - e.side; e.waiting[other] && len(e.pending[other]) == 0 {
			e.dead = true
			e.changed.Broadcast()
			continue
		}
		e.waiting[e.side] = true
		e.changed.Wait()
		e.waiting[e.side] = false
	}
	if e.cut {
		return 0, io.EOF
	}
	n := copy(p, e.pending[e.side])
	e.pending[e.side] = e.pending[e.side][n:]
	if e.change != nil {
		seen := e.change(p[:n], e.at)
		e.at += n
		e.cut = len(seen) < n
		n = copy(p, seen)
		if n == 0 {
			return 0, io.EOF
		}
	}
	return n, nil
}

func (e *end) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed[e.side] || e.closed[1-e.side] {
		return 0, io.ErrClosedPipe
	}
	e.pending[1-e.side] = append(e.pending[1-e.side], p...)
	e.changed.Broadcast()
	return len(p), nil
}

func (e *end) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed[e.side] = true
	e.changed.Broadcast()
	return nil
}

// take returns what is on its way to this end, and removes it.
func (e *end) take() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	data := e.pending[e.side]
	e.pending[e.side] = nil
	return data
}

// put adds to what is on its way to this end.
func (e *end) put(data ...[]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range data {
		e.pending[e.side] = append(e.pending[e.side], d...)
	}
	e.changed.Broadcast()
}

// cutWhenEmpty ends what this end receives behind what is on its way.
func (e *end) cutWhenEmpty() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = true
	e.changed.Broadcast()
}

func (e *end) LocalAddr() net.Addr              { return nil }
func (e *end) RemoteAddr() net.Addr             { return nil }
func (e *end) SetDeadline(time.Time) error      { return nil }
func (e *end) SetReadDeadline(time.Time) error  { return nil }
func (e *end) SetWriteDeadline(time.Time) error { return nil }

// linked returns a connection between alice and a server that knows her, over a link.
func linked(t testing.TB) (client, server *Conn, clientEnd, serverEnd *end) {
	t.Helper()
	clientEnd, serverEnd = newLink()
	key := Key{Secret: secret}
	client, server, cerr, serr := meet(t, defaults(), defaults(), key, only("alice", key), clientEnd, serverEnd)
	if cerr != nil || serr != nil {
		t.Fatalf("client: %v, server: %v", cerr, serr)
	}
	return client, server, clientEnd, serverEnd
}
