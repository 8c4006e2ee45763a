package server

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// maxInFlight is how many requests of one connection are worked on at a time.
const maxInFlight = 64

// conn is one connection. One goroutine reads from it; whoever has a reply writes.
type conn struct {
	server *Server
	id     int64
	since  time.Time
	plain  net.Conn // as accepted
	ctx    context.Context
	cancel context.CancelCauseFunc // cuts the connection

	in       input
	out      output
	batch    batch
	memory   memory
	slots    chan struct{}  // holds one for each request in flight that a goroutine works on
	working  sync.WaitGroup // those goroutines
	small    pace           // of requests of up to inlineLimit bytes
	bulk     pace           // of longer ones
	sparse   sparseness
	progress atomic.Int64 // changes while bytes come or go
	counters

	transmitting atomic.Bool
	reading      atomic.Bool // the reading goroutine waits for the client, or is about to
	draining     atomic.Bool // Shutdown was called

	// What was negotiated. It does not change in transmission.
	structured, extended bool
	contexts             []metaContext
	exp                  *export

	mu     sync.Mutex
	nc     net.Conn // plain, or what TLS made of it
	client Client   // guarded by mu but for the goroutine that reads, which alone changes it
}

func newConn(ctx context.Context, s *Server, nc net.Conn) *conn {
	c := &conn{server: s, since: time.Now(), plain: nc, client: Client{Addr: nc.RemoteAddr()}, slots: make(chan struct{}, maxInFlight)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.small.init(smallTime)
	c.bulk.init(bulkTime)
	c.memory.init(&s.budget, s.config.ConnMemory)
	c.attach(nc)
	return c
}

// attach makes nc what is read from and written to, and forgets what was read ahead.
func (c *conn) attach(nc net.Conn) {
	c.mu.Lock()
	c.nc = nc
	c.mu.Unlock()
	c.in.init(c, nc)
	c.out.init(c, nc)
}

// serve runs the connection from the greeting to the end, and closes it.
func (c *conn) serve() error {
	cut := context.AfterFunc(c.ctx, func() { c.plain.Close() })
	idle := c.watch()
	err := c.handshake()
	if err == nil {
		err = c.transmit()
	}
	if errors.Is(err, errLeft) {
		err = nil // and the connection closes as TLS wants it, after the export
	} else {
		c.cancel(err)
		err = context.Cause(c.ctx) // the first reason
	}
	c.working.Wait()
	idle()
	cut()
	if c.exp != nil {
		err = errors.Join(err, c.exp.close())
	}
	c.cancel(nil)
	c.nc.Close()
	c.in.release()
	c.dropBatch()
	return err
}

var (
	// errLeft ends a connection whose client has left as it should.
	errLeft = errors.New("client left")
	errIdle = errors.New("nothing came from the client, and nothing could be sent, for the idle timeout")
)

// watch ends the connection when nothing moves for the idle timeout, or for up to a quarter longer. Requests that are worked on count as movement as
// long as their replies can be sent. The function that it returns ends the watch.
func (c *conn) watch() (stop func()) {
	limit := c.server.config.IdleTimeout
	if limit <= 0 {
		return func() {}
	}
	const looks = 4 // in the time of the limit
	var mu sync.Mutex
	var timer *time.Timer
	step := max(limit/looks, time.Millisecond)
	last, still, stopped := c.progress.Load(), 0, false
	check := func() {
		mu.Lock()
		defer mu.Unlock()
		still++
		if now := c.progress.Load(); now != last || !c.out.stuck() && !(c.reading.Load() && len(c.slots) == 0) {
			last, still = now, 0
		}
		switch {
		case stopped:
		case still >= looks:
			c.cancel(errIdle)
		default:
			timer.Reset(step)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(step, check)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// drain makes the connection end soon.
func (c *conn) drain() {
	c.draining.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetReadDeadline(time.Now().Add(shutdownGrace)) // what has no deadlines is cut when Shutdown's context ends
}

// lift lets a connection that drains read on, to the end of a request whose beginning it has; lower ends that.
func (c *conn) lift() { _ = c.nc.SetReadDeadline(time.Time{}) }

func (c *conn) lower() { _ = c.nc.SetReadDeadline(time.Now()) }

// drained reports whether err of reading only says that a connection that drains has heard its client for long enough.
func (c *conn) drained(err error) bool {
	return c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded)
}

// update changes what Stats tells of the client.
func (c *conn) update(change func(*Client)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.client)
}

// inFlight returns how many requests are being worked on.
func (c *conn) inFlight() int64 {
	n := int64(len(c.slots))
	if n == 0 && c.transmitting.Load() && !c.reading.Load() {
		n = 1 // by the reading goroutine itself
	}
	return n
}

func (c *conn) stats() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ClientStats{
		ID: c.id, Identity: c.client.Identity, Export: c.client.Export, Since: c.since, Secure: c.client.Secure, BytesIn: c.counters.in.Load(),
		BytesOut: c.counters.out.Load(),
	}
	if c.client.Addr != nil {
		s.Addr = c.client.Addr.String()
	}
	for i := range wire.CmdBlockStatus + 1 {
		s.Requests += c.commands[i].count.Load()
	}
	return s
}
