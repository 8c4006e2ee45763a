// Package nbd makes a block device of what an NBD server exports.
//
// [Dial] takes an NBD URI and returns a [*Device]; [Start] does so for a server that is started for the purpose. Package nbd/client is the protocol step by
// step, nbd/server the other side.
package nbd

import (
	"context"
	"log/slog"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
)

// Options say how to connect. The zero value is right for most.
type Options struct {
	// Connections is how many there are at most; 0 is DefaultConnections. Only a server that allows it gets more than one.
	Connections int
	// ReadOnly never writes: the device has no Caps.Write.
	ReadOnly bool
	// Bitmaps are qemu:dirty-bitmap contexts to ask for, as block.Map names them.
	Bitmaps []string
	// Retries is how often a lost connection is made again for one call before the call fails; 0 is DefaultRetries, negative none.
	Retries int
	// NoTLSFallback and the like are not here: nbds means TLS, nbd means none.

	// AllowLocalFiles lets the URI name files (tls-certificates, tls-psk-file), as text from elsewhere should not.
	AllowLocalFiles bool
	Log             *slog.Logger
}

// Defaults of Options.
const (
	DefaultConnections = 4
	DefaultRetries     = 5
)

// Device is an export as a block device. Lost connections are made again, and requests that were in flight sent again: reads, and writes as well, of
// which a repetition does no harm as long as the call has not returned.
type Device struct {
	block.Device // placeholder
}

// Dial connects to the export that an NBD URI names.
func Dial(ctx context.Context, uri string, o Options) (*Device, error) { panic("nbd: not built") }

// Start starts a server as a child process, hands it a listening socket as systemd does (LISTEN_FDS), and connects to its default export, or to
// the export named. The server is killed with this process, and ended by Close of the device.
func Start(ctx context.Context, argv []string, export string, o Options) (*Device, error) {
	panic("nbd: not built")
}

// Export returns what the server has told of the export.
func (d *Device) Export() client.ExportInfo { panic("nbd: not built") }

// URI is an NBD URI, taken apart (doc/uri.md of the NBD project).
type URI struct {
	TLS     bool   // nbds
	Network string // tcp, unix or vsock
	Address string // host:port, a path, or cid:port
	Export  string
	User    string            // PSK identity
	Params  map[string]string // tls-certificates, tls-psk-file, tls-hostname, tls-verify-peer, tls-type
}

// ParseURI takes a URI apart, and refuses what it does not know.
func ParseURI(text string) (URI, error) { panic("nbd: not built") }

// String returns the URI as text.
func (u URI) String() string { panic("nbd: not built") }
