package nbd

import (
	"context"
	"net"
)

// Dial connects to the server and says nothing, for who speaks every byte himself.
func (d *Dialer) Dial(ctx context.Context) (net.Conn, error) { return d.dial(ctx) }

// Secure reports whether the URI asks for TLS.
func (d *Dialer) Secure() bool { return d.tls != nil }

// Upgrade makes the client's side of the TLS handshake on a connection of Dial that the server has agreed to encrypt. It must not be called without
// Secure.
func (d *Dialer) Upgrade(ctx context.Context, conn net.Conn) (net.Conn, error) {
	c, _, err := d.tls.Upgrade(ctx, conn, d.host())
	return c, err
}
