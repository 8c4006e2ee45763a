// Package nbd makes a block device of what an NBD server exports.
//
// [Dial] takes an NBD URI and returns a [*Device]; [Start] does so for a server that is started for the purpose. Package nbd/client is the protocol step by
// step, nbd/server the other side.
package nbd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/mdlayher/vsock"
)

// Options say how to connect. The zero value is right for most.
type Options struct {
	// Connections is how many there are at most; 0 is DefaultConnections. Only a server that allows it gets more than one, and not before so many calls
	// wait at a time that they keep those that there are busy.
	Connections int
	// ReadOnly never writes: the device has no Caps.Write.
	ReadOnly bool
	// Bitmaps are qemu:dirty-bitmap contexts to ask for, as block.Map names them.
	Bitmaps []string
	// Retries is how often a lost connection is made again for one call before the call fails; 0 is DefaultRetries, negative none.
	Retries int
	// AllowLocalFiles lets the URI name files (tls-certificates, tls-psk-file), as text from elsewhere should not.
	AllowLocalFiles bool
	// Log is told of connections that are lost and made again; nil is silence.
	Log *slog.Logger
}

// Defaults of Options.
const (
	DefaultConnections = 4
	DefaultRetries     = 5
)

// Device is an export as a block device. Lost connections are made again, and requests that were in flight sent again: reads, and changes as well.
// A server may still be at work on the first of them when it has answered the second, because it has not noticed that the connection is gone; what is
// written after that to the same place is then overwritten. NBD has no means against this; who cannot have it turns Retries off. Nor can a change be taken
// back when its context ends: the server may carry it out later, and with it, where that is larger, all of the minimum blocks that it touches.
//
// What a server has acknowledged and not yet flushed may be lost when it dies, and from outside a server that was started again looks like one whose
// connection broke. So the first Flush after all connections from before such a write were lost returns [ErrUnflushed], once.
type Device struct {
	block.Device
	export *export
}

// Dial connects to the export that an NBD URI names.
func Dial(ctx context.Context, uri string, o Options) (*Device, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	return DialURI(ctx, u, o)
}

// DialURI is Dial for a URI that is taken apart already.
func DialURI(ctx context.Context, u URI, o Options) (*Device, error) {
	d, err := NewDialer(u, o.AllowLocalFiles)
	if err != nil {
		return nil, err
	}
	return open(ctx, d, o)
}

// Close implements block.Device. It waits for calls in flight, but not for a server that is not there.
func (d *Device) Close() error {
	d.export.links.cancel()
	return d.Device.Close()
}

// Export returns what the server has told of the export.
func (d *Device) Export() client.ExportInfo { return d.export.info }

// Dialer makes connections to the server that a URI names, for who speaks the protocol himself.
type Dialer struct {
	uri   URI
	tls   *secure.Client // nil without TLS
	child *server        // that StartDialer has started; else nil
	name  string         // of the server and its export, for people
}

// NewDialer reads the files that the URI names, which it may only with localFiles.
func NewDialer(u URI, localFiles bool) (*Dialer, error) {
	d := &Dialer{uri: u, name: u.String()}
	if !u.TLS {
		return d, nil
	}
	c, err := u.secure(localFiles)
	if err != nil {
		return nil, err
	}
	d.tls, err = secure.NewClient(c)
	return d, err
}

// Conn connects, reads the greeting and, of nbds, encrypts the connection: without encryption there is none.
func (d *Dialer) Conn(ctx context.Context, c client.Config) (*client.Conn, error) {
	if d.child != nil {
		return d.connChild(ctx, c)
	}
	return d.connect(ctx, c)
}

func (d *Dialer) connect(ctx context.Context, c client.Config) (*client.Conn, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	n, err := client.New(ctx, conn, c)
	if err != nil || d.tls == nil {
		return n, err
	}
	if err := n.StartTLS(ctx, d.tls, d.host()); err != nil {
		n.Close()
		if hint := new(block.Hint); errors.As(err, &hint) {
			return nil, err // which says better what to do
		}
		return nil, block.WithHint(err, "nbds never goes on without encryption")
	}
	return n, nil
}

// Advise adds to an error of the first option on a connection what may be behind it: in TLS 1.3 a client is done before the server has judged it, so that a
// refusal comes later, or only the end of the connection.
func (d *Dialer) Advise(err error) error {
	var broken *net.OpError // alerts too
	ended := errors.As(err, &broken) && !broken.Timeout() || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if d.tls == nil || !ended {
		return err
	}
	return block.WithHint(err, "the server may want another certificate, or one at all: client-cert.pem and client-key.pem in the folder that tls-certificates names")
}

// host is the name that the server's certificate is for; "" of a server that has no name.
func (d *Dialer) host() string {
	if d.uri.Network != "tcp" {
		return ""
	}
	host, _, _ := net.SplitHostPort(d.uri.Address)
	return host
}

func (d *Dialer) dial(ctx context.Context) (net.Conn, error) {
	if d.uri.Network != "vsock" {
		address := d.uri.Address
		if d.uri.Network == "unix" && strings.HasPrefix(address, "@") {
			address = "./" + address // package net takes a bare @ for the abstract namespace, which a URI calls %00
		}
		return new(net.Dialer).DialContext(ctx, d.uri.Network, address)
	}
	cid, port, err := vsockAddress(d.uri.Address)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := vsock.Dial(cid, port, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// vsockAddress takes cid:port apart.
func vsockAddress(text string) (cid, port uint32, err error) {
	c, p, _ := strings.Cut(text, ":")
	cid64, err1 := strconv.ParseUint(c, 10, 32)
	port64, err2 := strconv.ParseUint(p, 10, 32)
	return uint32(cid64), uint32(port64), cmp.Or(err1, err2)
}
