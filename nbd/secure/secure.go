// Package secure turns the plain connection of an NBD client or server into an encrypted one, where STARTTLS asks for it: by X.509 certificates
// (crypto/tls, TLS 1.2 and 1.3) or by a pre-shared key (package psk, TLS 1.3).
//
// Files are named as GnuTLS programs name them: a folder with ca-cert.pem, ca-crl.pem, server-cert.pem, server-key.pem, client-cert.pem
// and client-key.pem, or a file of identity:hexkey lines as psktool writes it.
package secure

import (
	"context"
	"crypto/tls"
	"net"
)

// Peer says who is at the other end of an encrypted connection.
type Peer struct {
	Identity string               // the PSK identity, or the common name of the verified certificate; "" where the peer gave none
	TLS      *tls.ConnectionState // nil with PSK
}

// ServerConfig says how a server proves itself, and what it wants of clients. One of Certificates and PSKFile is set.
type ServerConfig struct {
	Certificates string // folder
	PSKFile      string
	VerifyClient bool // clients must show a certificate that ca-cert.pem signed
}

// Server upgrades the connections of a server. It may be used by any number of goroutines.
type Server struct{}

// NewServer reads what c names.
func NewServer(c ServerConfig) (*Server, error) { panic("secure: not built") }

// Upgrade makes the handshake on conn, within ctx. It never closes conn; the connection that it returns does.
func (s *Server) Upgrade(ctx context.Context, conn net.Conn) (net.Conn, Peer, error) {
	panic("secure: not built")
}

// ClientConfig says how a client proves itself, and what it wants of the server.
type ClientConfig struct {
	Certificates string // folder; "" with an empty PSKFile: the folders where GnuTLS programs look, and the system's authorities
	PSKFile      string
	Identity     string // PSK identity; "": the name of the user, as libnbd has it
	Hostname     string // that the server's certificate must be for; "" takes the address's
	NoVerify     bool   // any certificate of the server will do
}

// Client upgrades the connections of a client. It may be used by any number of goroutines.
type Client struct{}

// NewClient reads what c names.
func NewClient(c ClientConfig) (*Client, error) { panic("secure: not built") }

// Upgrade makes the handshake on conn, within ctx. host is the name or the address that was dialled, "" for a Unix socket.
func (c *Client) Upgrade(ctx context.Context, conn net.Conn, host string) (net.Conn, Peer, error) {
	panic("secure: not built")
}
