// Package psk is TLS 1.3 with external pre-shared keys (RFC 8446, modes psk_dhe_ke and psk_ke), which crypto/tls does not offer. It does that and nothing
// else: no certificates, no resumption, no 0-RTT, no renegotiation, no older versions. It interoperates with GnuTLS.
package psk

import (
	"context"
	"net"
)

// Lookup returns the key for an identity, and whether there is one.
type Lookup func(identity string) (key []byte, ok bool)

// Server makes the server's side of the handshake on conn, within ctx, and returns the encrypted connection and the client's identity.
func Server(ctx context.Context, conn net.Conn, keys Lookup) (net.Conn, string, error) {
	panic("psk: not built")
}

// Client makes the client's side of the handshake on conn, within ctx. host is sent as the server's name where it is one.
func Client(ctx context.Context, conn net.Conn, identity string, key []byte, host string) (net.Conn, error) {
	panic("psk: not built")
}
