// Package server serves block devices to NBD clients.
//
// A [Server] is given a function that opens exports, and is then given connections: Serve accepts them from a listener, ServeConn takes one.
// It speaks fixed newstyle with every option and command of the specification, structured and extended replies included. Names of what goes
// over the wire are in package nbd/wire.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
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
	// Description is for people, at most 4096 bytes.
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
	// Open opens an export for a client. It is called for INFO as well as for GO; ctx ends with the connection. An error that is none of
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
	// IdleTimeout ends connections from which nothing comes, and to which nothing can be sent, for so long; 0 is none.
	IdleTimeout time.Duration
	// ConnMemory and Memory bound what the buffers of one connection, and of all, hold together in bytes; 0 is DefaultMemory.
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

// Server serves exports to any number of connections. Its methods may be called from any goroutine.
type Server struct {
	config Config
}

// New returns a server.
func New(c Config) *Server { return &Server{config: c} }

// Serve accepts connections until ctx ends or Shutdown is called, and returns nil then, after the listener is closed. It does not wait for the
// connections: Shutdown does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { panic("server: not built") }

// ServeConn serves one connection until the client leaves, and closes it. It returns nil where the client left properly, or said nothing.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) error { panic("server: not built") }

// Shutdown stops accepting, tells clients in negotiation so, lets requests in flight end, answers further ones with ESHUTDOWN, and returns when the
// last connection has ended. Connections that are left when ctx ends are cut, and its error is returned.
func (s *Server) Shutdown(ctx context.Context) error { panic("server: not built") }

// Stats returns what the server has done and does.
func (s *Server) Stats() Stats { panic("server: not built") }
