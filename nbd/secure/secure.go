// Package secure turns the plain connection of an NBD client or server into an encrypted one, where STARTTLS asks for it: by X.509 certificates
// (crypto/tls, TLS 1.2 and 1.3) or by a pre-shared key (package psk, TLS 1.3).
//
// Files are named as GnuTLS programs name them: a folder with ca-cert.pem, ca-crl.pem, server-cert.pem, server-key.pem, client-cert.pem
// and client-key.pem, or a file of identity:hexkey lines as psktool writes it. They are read once, by [NewServer] and [NewClient].
//
// Who negotiates in plain text before must not have read further than the end of that: bytes that came before the encryption, and are taken for
// ones that came through it, are how connections are attacked. A caller that has any such bytes left ends the connection in place of calling Upgrade.
package secure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/internal/within"
	"github.com/imgtool/imgtool/nbd/psk"
)

// Peer says who is at the other end of an encrypted connection.
type Peer struct {
	Identity string               // the PSK identity, or the common name of the verified certificate; "" where the peer gave none
	TLS      *tls.ConnectionState // nil with PSK
}

// ServerConfig says how a server proves itself, and what it wants of clients.
type ServerConfig struct {
	// Certificates is a folder with server-cert.pem and server-key.pem. Without it and without PSKFile it is the first of the folders where nbdkit
	// looks that has server-cert.pem: of the superuser /etc/pki/nbdkit, of others ~/.pki/nbdkit and ~/.config/pki/nbdkit.
	Certificates string
	PSKFile      string // not together with Certificates or VerifyClient
	VerifyClient bool   // clients must show a certificate that an authority in ca-cert.pem signed, and that ca-crl.pem, where there is one, does not revoke
}

// Server upgrades the connections of a server. It may be used by any number of goroutines.
type Server struct {
	config *tls.Config // nil with PSK
	keys   psk.Lookup
}

// NewServer reads what c names. The error is fs.ErrNotExist where c names nothing and no default folder has a certificate.
func NewServer(c ServerConfig) (*Server, error) {
	if c.PSKFile != "" {
		if c.Certificates != "" || c.VerifyClient {
			return nil, errors.New("tls: a server uses certificates or pre-shared keys, not both")
		}
		keys, err := readPSK(c.PSKFile)
		if err != nil {
			return nil, err
		}
		return &Server{keys: func(identity string) (psk.Key, bool) {
			key, ok := keys[identity]
			return psk.Key{Secret: key}, ok
		}}, nil
	}
	config, err := serverConfig(c)
	if err != nil {
		return nil, err
	}
	return &Server{config: config}, nil
}

// Upgrade makes the handshake on conn, within ctx. It never closes conn; the connection that it returns does. The deadlines of conn are gone afterwards.
// After an error nothing but Close is left to do with conn.
func (s *Server) Upgrade(ctx context.Context, conn net.Conn) (net.Conn, Peer, error) {
	if s.config == nil {
		secured, identity, err := psk.Server(ctx, conn, s.keys)
		if err != nil {
			return nil, Peer{}, err
		}
		return secured, Peer{Identity: identity}, nil
	}
	return handshake(ctx, conn, tls.Server(conn, s.config))
}

// ClientConfig says how a client proves itself, and what it wants of the server.
type ClientConfig struct {
	// Certificates is a folder with ca-cert.pem, without which the system's authorities count, and with client-cert.pem and client-key.pem,
	// without which the client shows no certificate. Without it and without PSKFile it is the first of the folders where libnbd looks that has
	// ca-cert.pem: of the superuser /etc/pki/libnbd, of others ~/.pki/libnbd and ~/.config/pki/libnbd.
	Certificates string
	PSKFile      string
	Identity     string // PSK identity; "": the name of the user, as libnbd has it
	Hostname     string // that the server's certificate must be for; "" takes the address's, and "localhost" where that is a Unix socket's
	NoVerify     bool   // any certificate of the server will do
}

// Client upgrades the connections of a client. It may be used by any number of goroutines.
type Client struct {
	config   *tls.Config // nil with PSK; a copy of it gets the server's name
	hostname string
	identity string
	key      []byte
}

// NewClient reads what c names.
func NewClient(c ClientConfig) (*Client, error) {
	if c.PSKFile != "" {
		if c.Certificates != "" {
			return nil, errors.New("tls: a client uses certificates or a pre-shared key, not both")
		}
		identity := c.Identity
		if identity == "" {
			var err error
			if identity, err = userName(); err != nil {
				return nil, block.WithHint(fmt.Errorf("tls: no identity is given, and the user's name is not known: %w", err), "name the identity in the URI: nbds://IDENTITY@HOST")
			}
		}
		keys, err := readPSK(c.PSKFile)
		if err != nil {
			return nil, err
		}
		key, ok := keys[identity]
		if !ok {
			return nil, block.WithHint(fmt.Errorf("tls: %s has no key for identity %q", c.PSKFile, identity), "name another identity in the URI: nbds://IDENTITY@HOST")
		}
		return &Client{hostname: c.Hostname, identity: identity, key: key}, nil
	}
	config, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	return &Client{config: config, hostname: c.Hostname}, nil
}

// Upgrade makes the handshake on conn, within ctx. host is the name or the address that was dialled, "" for a Unix socket. It never closes conn; the
// connection that it returns does. The deadlines of conn are gone afterwards. After an error nothing but Close is left to do with conn.
//
// In TLS 1.3 the client is done before the server has judged the client's certificate or key: the first Read tells of a refusal.
func (c *Client) Upgrade(ctx context.Context, conn net.Conn, host string) (net.Conn, Peer, error) {
	if c.hostname != "" {
		host = c.hostname
	}
	if c.config == nil {
		secured, err := psk.Client(ctx, conn, c.identity, psk.Key{Secret: c.key}, host)
		if err != nil {
			return nil, Peer{}, c.keyHint(err)
		}
		return secured, Peer{}, nil
	}
	host, _, _ = strings.Cut(host, "%") // certificates are for addresses without zones
	if host == "" {
		host = "localhost"
	}
	config := c.config.Clone()
	config.ServerName = host
	secured, peer, err := handshake(ctx, conn, tls.Client(conn, config))
	return secured, peer, serverHint(err, host)
}

// keyHint adds to the error of a handshake that the server has ended what the reason may be: servers do not tell a wrong key from a wrong identity.
func (c *Client) keyHint(err error) error {
	var told *psk.AlertError
	if errors.As(err, &told) && told.Err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return block.WithHint(err, fmt.Sprintf("the server may have no key for identity %q, or another one, or may want certificates", c.identity))
	}
	return err
}

// serverHint adds to the error of a client's handshake what may be done about it.
func serverHint(err error, host string) error {
	var (
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &name) && len(name.Certificate.DNSNames)+len(name.Certificate.IPAddresses) == 0:
		return block.WithHint(err, "the certificate names no host but in its common name, which does not count: sign one with dns_name or ip_address")
	case errors.As(err, &name):
		return block.WithHint(err, fmt.Sprintf("the certificate is not for %q: name the host it is for with tls-hostname", host))
	case errors.As(err, &unknown):
		return block.WithHint(err, "put the certificate of the server's authority into ca-cert.pem of the folder that tls-certificates names")
	}
	return err
}

// handshake makes the handshake of secured, which stands on conn.
func handshake(ctx context.Context, conn net.Conn, secured *tls.Conn) (net.Conn, Peer, error) {
	// HandshakeContext would close conn when ctx ends.
	if err := within.Do(ctx, conn, secured.Handshake); err != nil {
		return nil, Peer{}, fmt.Errorf("tls: handshake: %w", err)
	}
	state := secured.ConnectionState()
	peer := Peer{TLS: &state}
	if len(state.VerifiedChains) > 0 {
		peer.Identity = state.VerifiedChains[0][0].Subject.CommonName
	}
	return secured, peer, nil
}
