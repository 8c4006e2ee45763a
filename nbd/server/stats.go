package server

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// Stats says what a server has done since New.
type Stats struct {
	Connections int64 // accepted
	Active      int64 // of them, still there
	Refused     int64 // of them, that never reached transmission
	BytesIn     int64 // payload of writes
	BytesOut    int64 // payload of reads; holes that were told as such do not count
	InFlight    int64 // requests that are being worked on
	Memory      int64 // bytes that buffers hold; a connection that waits for its client has none
	Requests    map[wire.Command]CommandStats
	Clients     []ClientStats // that are there, the oldest first
}

// CommandStats counts one command.
type CommandStats struct {
	Count  int64
	Errors int64         // answered with an error
	Bytes  int64         // that those answered without an error were about
	Time   time.Duration // from a request's arrival to its reply, all together
}

// ClientStats describes one connection.
type ClientStats struct {
	ID                int64  // counts up from 1
	Addr              string // "" where the connection has none
	Identity          string
	Export            string // "" before transmission, and for the default export
	Since             time.Time
	Secure            bool
	Requests          int64
	BytesIn, BytesOut int64
}

// counters are what a connection counts. Only their sum over connections is asked for often, so each has its own.
type counters struct {
	in, out  atomic.Int64
	commands [wire.CmdBlockStatus + 1]counter
}

type counter struct{ count, errors, bytes, nanos atomic.Int64 }

// add adds what other has counted.
func (c *counters) add(other *counters) {
	c.in.Add(other.in.Load())
	c.out.Add(other.out.Load())
	for i := range c.commands {
		to, from := &c.commands[i], &other.commands[i]
		to.count.Add(from.count.Load())
		to.errors.Add(from.errors.Load())
		to.bytes.Add(from.bytes.Load())
		to.nanos.Add(from.nanos.Load())
	}
}

// Stats returns what the server has done and does.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum counters
	sum.add(&s.past)
	out := Stats{
		Connections: s.lastID, Active: int64(len(s.conns)), Refused: s.refused, Memory: s.budget.used.Load(),
		Requests: map[wire.Command]CommandStats{},
	}
	for c := range s.conns {
		sum.add(&c.counters)
		out.InFlight += c.inFlight()
		out.Clients = append(out.Clients, c.stats())
	}
	slices.SortFunc(out.Clients, func(a, b ClientStats) int { return cmp.Compare(a.ID, b.ID) })
	out.BytesIn, out.BytesOut = sum.in.Load(), sum.out.Load()
	for i := range sum.commands {
		if n := &sum.commands[i]; n.count.Load() > 0 {
			out.Requests[wire.Command(i)] = CommandStats{
				Count: n.count.Load(), Errors: n.errors.Load(), Bytes: n.bytes.Load(), Time: time.Duration(n.nanos.Load()),
			}
		}
	}
	return out
}
