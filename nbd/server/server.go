// Package server serves block devices to NBD clients.
//
// A [Server] is given a function that opens exports, and is then given connections: Serve accepts them from a listener, ServeConn takes one.
// It speaks fixed newstyle with every option and command of the specification, structured and extended replies included. Names of what goes
// over the wire are in package nbd/wire.
//
// Each connection has one goroutine that reads. While the device answers at once, that goroutine serves requests itself and sends the replies to all that
// it has read ahead with one system call; a device that lets its callers wait gets requests from many goroutines at a time. What buffers hold is bounded
// for each connection and for the server; where memory is short, requests are served in smaller pieces, and never wait for other connections. Big reads
// of files go to Unix sockets without a copy, on Linux.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

// Client says who asks for an export.
type Client struct {
	Export   string               // the name asked for; "" is the default export
	Addr     net.Addr             // of the client; nil where the connection has none
	Identity string               // with TLS: the PSK identity, or the common name of the verified certificate; else ""
	TLS      *tls.ConnectionState // with TLS by certificates; else nil
	Secure   bool                 // the connection is encrypted
}

// Export is one opened export. It serves one connection.
type Export struct {
	// Device is what is served. It must not be closed before Close of the export is called. Its size must stay as it is.
	Device block.Device
	// Name is the canonical name, where it differs from the one asked for.
	Name string
	// Description is for people. What is too long for the wire is cut off.
	Description string
	// ReadOnly refuses every change, whatever the device can do.
	ReadOnly bool
	// Depth serves the context qemu:allocation-depth.
	Depth bool
	// Bitmaps are the names of bitmaps of the device that are served as qemu:dirty-bitmap:NAME.
	Bitmaps []string
	// MultiConn says that a flush on one connection covers what was written through every other connection to the same export. It is told to
	// clients; an export that cannot be written always tells so.
	MultiConn bool
	// Close is called once, after the last call to Device. It may be nil.
	Close func() error
}

// Listing is one line of the list of exports.
type Listing struct {
	Name        string
	Description string
}

// ErrUnknownExport is what Config.Open returns for a name that there is no export of; fs.ErrNotExist means the same.
var ErrUnknownExport = errors.New("there is no such export")

// ErrRefused is what Config.Open returns for an export that this client may not have.
var ErrRefused = errors.New("refused to this client")

// Config says what a server serves, and how. Open must be set; the zero value of everything else is a good default.
type Config struct {
	// Open opens an export for a client, who has asked for it by INFO, GO, EXPORT_NAME or for its meta contexts; what was opened for one option serves
	// the next ones for the same name, so that they agree. ctx ends with the connection. An error that is none of
	// ErrUnknownExport, ErrRefused and fs.ErrNotExist is told to the client as ERR_PLATFORM, with its text.
	Open func(ctx context.Context, c Client) (*Export, error)
	// List returns the exports that a client is told of; nil refuses LIST.
	List func(ctx context.Context, c Client) ([]Listing, error)

	// TLS upgrades connections; nil is a server without TLS.
	TLS *secure.Server
	// TLSRequired refuses everything before STARTTLS.
	TLSRequired bool

	// MaxClients bounds the connections that are served at a time; the rest wait unaccepted. 0 is no limit.
	MaxClients int
	// HandshakeTimeout bounds the time from the connection to transmission; 0 is DefaultHandshakeTimeout, negative none.
	HandshakeTimeout time.Duration
	// IdleTimeout ends connections from which nothing comes, and to which less than 1 MiB can be sent, for so long; 0 is none.
	IdleTimeout time.Duration
	// ConnMemory and Memory bound what the buffers of one connection, and of all, hold together in bytes; 0 is DefaultMemory. Every connection may
	// have 64 KiB beyond that, so that it gets on.
	ConnMemory, Memory int64

	// NoStructuredReplies and NoExtendedHeaders make the server an older one, for clients with bugs and for tests.
	NoStructuredReplies, NoExtendedHeaders bool

	// Log is told of connections and of errors; nil is silence.
	Log *slog.Logger
}

// Defaults of Config.
const (
	DefaultHandshakeTimeout = 20 * time.Second
	DefaultMemory           = 32 << 20
)

// shutdownGrace is how long a connection still hears its client after Shutdown was called, so that what comes is answered rather than cut.
const shutdownGrace = 200 * time.Millisecond

// Server serves exports to any number of connections. Its methods may be called from any goroutine.
type Server struct {
	config  Config
	budget  budget
	buffers buffers
	pipes   pipes
	slots   chan struct{} // of MaxClients; nil without limit

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	ended     chan struct{} // closed and made anew whenever a connection ends
	lastID    int64
	past      counters // of connections that have ended
	refused   int64
}

// New returns a server.
func New(c Config) *Server {
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if c.ConnMemory <= 0 {
		c.ConnMemory = DefaultMemory
	}
	if c.Memory <= 0 {
		c.Memory = DefaultMemory
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, ended: make(chan struct{})}
	s.budget.limit = c.Memory
	s.pipes.init()
	if c.MaxClients > 0 {
		s.slots = make(chan struct{}, c.MaxClients)
	}
	return s
}

// Serve accepts connections until ctx ends or Shutdown is called, and returns nil then, after the listener is closed. It does not wait for the
// connections: Shutdown does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !s.listen(l) {
		return l.Close()
	}
	defer s.unlisten(l)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for pause := time.Duration(0); ; {
		if !s.takeSlot(ctx) {
			return nil
		}
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			go func() {
				defer s.giveSlot()
				_ = s.ServeConn(ctx, c) // logged there
			}()
			continue
		case ctx.Err() != nil || s.isClosing():
			s.giveSlot()
			return nil
		}
		s.giveSlot()
		if temporary, ok := err.(interface{ Temporary() bool }); !ok || !temporary.Temporary() {
			return fmt.Errorf("accepting connections on %s: %w", l.Addr(), err)
		}
		// There are no descriptors left, or the client has gone already: the next ones may have more luck.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.config.Log.Warn("no connection accepted", "listener", l.Addr(), "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// takeSlot waits until one client more may be served, and reports false where there will be none.
func (s *Server) takeSlot(ctx context.Context) bool {
	if s.slots == nil {
		return true
	}
	for {
		s.mu.Lock()
		closing, ended := s.closing, s.ended
		s.mu.Unlock()
		if closing {
			return false
		}
		select {
		case s.slots <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		case <-ended:
		}
	}
}

func (s *Server) giveSlot() {
	if s.slots != nil {
		<-s.slots
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// listen keeps l for Shutdown, and reports false after it.
func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.listeners[l] = struct{}{}
	}
	return !s.closing
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	l.Close()
}

// ServeConn serves one connection until the client leaves, and closes it. It returns nil where the client left properly, or said nothing.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	c, ok := s.join(ctx, nc)
	if !ok {
		return nc.Close()
	}
	defer s.leave(c)
	log := s.config.Log.With("client", c.id)
	log.Debug("connected", "address", addrText(nc))
	err := c.serve()
	switch {
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET): // so ends whoever is killed, or changes its mind
		log.Info("client is gone", "error", err)
	case err != nil:
		log.Warn("connection ended", "error", err)
	default:
		log.Debug("left")
	}
	return err
}

// join makes a connection one of the server's. It reports false after Shutdown.
func (s *Server) join(ctx context.Context, nc net.Conn) (*conn, bool) {
	c := newConn(ctx, s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		c.cancel(errShutdown)
		return nil, false
	}
	s.lastID++
	c.id = s.lastID
	s.conns[c] = struct{}{}
	return c, true
}

// leave forgets a connection that has ended.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.past.add(&c.counters)
	if !c.transmitting.Load() {
		s.refused++
	}
	close(s.ended)
	s.ended = make(chan struct{})
}

// Shutdown stops accepting, tells clients in negotiation so, lets requests in flight end, answers further ones with ESHUTDOWN, and returns when the
// last connection has ended. Connections that are left when ctx ends are cut, and its error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	if first {
		for c := range s.conns {
			c.drain()
		}
		close(s.ended)
		s.ended = make(chan struct{})
	}
	s.mu.Unlock()
	var cut error
	for done := ctx.Done(); ; {
		s.mu.Lock()
		left, ended := len(s.conns), s.ended
		if cut != nil {
			for c := range s.conns {
				c.cancel(errShutdown)
			}
		}
		s.mu.Unlock()
		if left == 0 {
			s.pipes.close()
			return cut
		}
		select {
		case <-ended:
		case <-done:
			cut, done = ctx.Err(), nil
		}
	}
}

// errShutdown is why a connection is cut at the end of Shutdown.
var errShutdown = fmt.Errorf("connection cut: %w", wire.ESHUTDOWN)

// addrText returns the address of the other end as text, "" where it has none.
func addrText(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
