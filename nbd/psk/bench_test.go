package psk

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// unixPair returns the two ends of a connection over a Unix socket, as NBD has them.
func unixPair(b *testing.B) (client, server net.Conn) {
	b.Helper()
	l, err := net.Listen("unix", b.TempDir()+"/s")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// standard returns a connection of crypto/tls, which chooses AES-128 as this package does where the processor has it.
func standard(b *testing.B) (client, server net.Conn) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	cconn, sconn := unixPair(b)
	s := tls.Server(sconn, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	c := tls.Client(cconn, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return c, s
}

// own returns a connection of this package.
func own(s *suite) func(b *testing.B) (client, server net.Conn) {
	return func(b *testing.B) (net.Conn, net.Conn) {
		cconn, sconn := unixPair(b)
		c := with([]*suite{s}, nil, nil)
		key := Key{Secret: secret, Hash: s.hash}
		client, server, cerr, serr := meet(b, c, c, key, only("alice", key), cconn, sconn)
		if cerr != nil || serr != nil {
			b.Fatal(cerr, serr)
		}
		return client, server
	}
}

// BenchmarkStream sends in one direction.
func BenchmarkStream(b *testing.B) {
	for _, kind := range []struct {
		name string
		dial func(b *testing.B) (net.Conn, net.Conn)
	}{{"plain", unixPair}, {"crypto-tls", standard}, {"aes128", own(aes128)}, {"aes256", own(aes256)}, {"chacha20", own(chacha20)}} {
		for _, size := range []int{4 << 10, 256 << 10, 1 << 20} {
			b.Run(kind.name+"/"+sizeName(size), func(b *testing.B) {
				client, server := kind.dial(b)
				buf, got := make([]byte, size), make([]byte, size)
				done := make(chan error)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					for range b.N {
						if _, err := io.ReadFull(server, got); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
				for range b.N {
					if _, err := client.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

func sizeName(n int) string {
	if n >= 1<<20 {
		return "1MiB"
	} else if n >= 256<<10 {
		return "256KiB"
	}
	return "4KiB"
}

// BenchmarkHandshake makes connections, both sides of them.
func BenchmarkHandshake(b *testing.B) {
	for _, kind := range []struct {
		name string
		dial func(b *testing.B) (net.Conn, net.Conn)
	}{{"crypto-tls", standard}, {"psk", own(aes128)}} {
		b.Run(kind.name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				client, server := kind.dial(b)
				client.Close()
				server.Close()
			}
		})
	}
}
