// Package psk is TLS 1.3 with external pre-shared keys (RFC 8446, modes psk_dhe_ke and psk_ke), which crypto/tls does not offer. It does that and nothing
// else: no certificates, no resumption, no 0-RTT, no renegotiation, no older versions.
//
// [Client] and [Server] make the handshake on a connection and return a [*Conn]. Both sides prove that they have the key, and with psk_dhe_ke, which is
// taken wherever the peer knows it, who learns the key later cannot read what was recorded earlier. Keys must be random, of 16 bytes or more: a word from a
// dictionary can be found out by whoever pretends to be a server. Who has a key can play either part: two sides that both serve and connect need a key each.
//
// This is the project's own protocol code, on the ciphers and curves of the standard library and of golang.org/x/crypto. The key schedule is checked
// against RFC 8448; whole connections against GnuTLS and OpenSSL as clients and as servers, for every suite, group and mode; each handshake message
// with every truncation and with every byte changed; records replayed, reordered, cut and flooded; and fuzz targets for the server, the client and the
// messages. No one outside the project has audited it.
package psk

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"errors"
	"fmt"
	"net"

	"github.com/imgtool/imgtool/nbd/internal/within"
)

// Key is a pre-shared key.
type Key struct {
	Secret []byte
	// Hash is what the key is bound to: crypto.SHA256, which 0 stands for, or crypto.SHA384. Peers that have no notion of it mean SHA-256. A
	// key of SHA-384 goes with TLS_AES_256_GCM_SHA384 alone, one of SHA-256 with the other suites.
	Hash crypto.Hash
}

// check returns the key with its hash named.
func (k Key) check() (Key, error) {
	if k.Hash == 0 {
		k.Hash = crypto.SHA256
	}
	if k.Hash != crypto.SHA256 && k.Hash != crypto.SHA384 {
		return k, fmt.Errorf("tls: a pre-shared key is bound to SHA-256 or SHA-384, not to %v", k.Hash)
	}
	if len(k.Secret) == 0 {
		return k, errors.New("tls: the pre-shared key is empty")
	}
	return k, nil
}

// Lookup returns the key for an identity, which may be any bytes, and whether there is one. It is called from many goroutines.
type Lookup func(identity string) (key Key, ok bool)

// config is what one side offers, or takes, best first.
type config struct {
	suites []*suite
	groups []group
	modes  []mode
}

// defaults is what Client and Server do.
func defaults() *config {
	return &config{
		suites: []*suite{aes128, chacha20, aes256},
		groups: []group{{x25519, ecdh.X25519()}, {secp256r1, ecdh.P256()}},
		modes:  []mode{pskDHE, pskOnly},
	}
}

// Server makes the server's side of the handshake on conn, within ctx, and returns the encrypted connection and the client's identity.
// A client with an identity that is unknown and one with the wrong key are refused alike.
//
// It never closes conn; after an error nothing but Close is left to do with it. The deadlines of conn are gone afterwards.
func Server(ctx context.Context, conn net.Conn, keys Lookup) (*Conn, string, error) {
	return defaults().server(ctx, conn, keys)
}

func (c *config) server(ctx context.Context, conn net.Conn, keys Lookup) (*Conn, string, error) {
	s := serverHandshake{config: c, conn: newConn(conn), keys: keys}
	if err := within.Do(ctx, conn, func() error { return s.conn.handshake(s.run) }); err != nil {
		return nil, "", fmt.Errorf("tls: handshake: %w", err)
	}
	return s.conn, s.identity, nil
}

// Client makes the client's side of the handshake on conn, within ctx. host is sent as the server's name where it is one; it plays no part in the proof.
//
// A server finds out whether the client has the key from the first message, so that a refusal is an error here. Who has not got the key cannot pretend to be
// the server. It never closes conn; after an error nothing but Close is left to do with it. The deadlines of conn are gone afterwards.
func Client(ctx context.Context, conn net.Conn, identity string, key Key, host string) (*Conn, error) {
	return defaults().client(ctx, conn, identity, key, host)
}

func (c *config) client(ctx context.Context, conn net.Conn, identity string, key Key, host string) (*Conn, error) {
	key, err := key.check()
	if err != nil {
		return nil, err
	}
	if len(identity) == 0 || len(identity) > maxIdentity {
		return nil, fmt.Errorf("tls: the identity has %d bytes: between 1 and %d are possible", len(identity), maxIdentity)
	}
	h := clientHandshake{config: c, conn: newConn(conn), identity: identity, key: key, host: host}
	if err := within.Do(ctx, conn, func() error { return h.conn.handshake(h.run) }); err != nil {
		return nil, fmt.Errorf("tls: handshake: %w", err)
	}
	return h.conn, nil
}
