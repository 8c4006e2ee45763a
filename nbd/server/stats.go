package server

import (
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
	Memory      int64 // bytes that buffers of requests in flight hold
	Requests    map[wire.Command]CommandStats
	Clients     []ClientStats // that are there, the oldest first
}

// CommandStats counts one command.
type CommandStats struct {
	Count  int64
	Errors int64         // answered with an error
	Bytes  int64         // that they were about
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
