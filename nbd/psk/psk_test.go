package psk

import (
	"bytes"
	"crypto/ecdh"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
)

// secret is the key of alice in tests.
var secret = []byte("a secret of 32 bytes for testing")

// only knows one identity.
func only(identity string, key Key) Lookup {
	return func(name string) (Key, bool) {
		return key, name == identity
	}
}

// dial returns the two ends of a connection over TCP, closed when the test ends.
func dial(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// meet makes both sides of the handshake on the two ends of a connection, and closes an end that fails.
func meet(t testing.TB, cc, sc *config, key Key, keys Lookup, cconn, sconn net.Conn) (client, server *Conn, cerr, serr error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server, _, serr = sc.server(t.Context(), sconn, keys); serr != nil {
			sconn.Close()
		}
	}()
	if client, cerr = cc.client(t.Context(), cconn, "alice", key, "localhost"); cerr != nil {
		cconn.Close()
	}
	<-done
	return client, server, cerr, serr
}

// pair returns a connection between alice and a server that knows her.
func pair(t testing.TB) (client, server *Conn) {
	t.Helper()
	cconn, sconn := dial(t)
	key := Key{Secret: secret}
	client, server, cerr, serr := meet(t, defaults(), defaults(), key, only("alice", key), cconn, sconn)
	if cerr != nil || serr != nil {
		t.Fatalf("client: %v, server: %v", cerr, serr)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// exchangeData sends random bytes in both directions at once, in writes of many lengths.
func exchangeData(t testing.TB, a, b io.ReadWriter) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var data [2][]byte
	for i := range data {
		data[i] = make([]byte, 300<<10)
		for j := range data[i] {
			data[i][j] = byte(r.Uint32())
		}
	}
	errs := make(chan error)
	send := func(w io.Writer, data []byte, sizes []int) {
		for i := 0; len(data) > 0; i++ {
			n := min(sizes[i%len(sizes)], len(data))
			if got, err := w.Write(data[:n]); err != nil || got != n {
				errs <- fmt.Errorf("write of %d: %d, %w", n, got, err)
				return
			}
			data = data[n:]
		}
		errs <- nil
	}
	receive := func(r io.Reader, data []byte) {
		got := make([]byte, len(data))
		if _, err := io.ReadFull(r, got); err != nil {
			errs <- err
		} else if !bytes.Equal(got, data) {
			errs <- fmt.Errorf("%d bytes arrive changed", len(data))
		} else {
			errs <- nil
		}
	}
	sizes := []int{1, 0, 28, maxPlaintext - 1, maxPlaintext, maxPlaintext + 1, 100 << 10, 5}
	go send(a, data[0], sizes)
	go send(b, data[1], sizes)
	go receive(b, data[0])
	go receive(a, data[1])
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestPair(t *testing.T) {
	x, p := group{x25519, ecdh.X25519()}, group{secp256r1, ecdh.P256()}
	all, modes := []group{x, p}, []mode{pskDHE, pskOnly}
	for _, s := range defaults().suites {
		for _, test := range []struct {
			name           string
			client, server config
			wrong          string
		}{
			{"all", config{groups: all, modes: modes}, config{groups: all, modes: modes}, ""},
			{"P-256", config{groups: []group{p}, modes: modes}, config{groups: all, modes: modes}, ""},
			{"retry", config{groups: all, modes: modes}, config{groups: []group{p}, modes: modes}, ""},
			{"retry the other way", config{groups: []group{p, x}, modes: modes}, config{groups: []group{x}, modes: modes}, ""},
			{"no group in common", config{groups: []group{p}, modes: modes}, config{groups: []group{x}, modes: modes}, ""},
			{"client without exchange", config{groups: all, modes: modes[1:]}, config{groups: all, modes: modes}, ""},
			{"server without exchange", config{groups: all, modes: modes}, config{groups: all, modes: modes[1:]}, ""},
			{"no mode in common", config{groups: all, modes: modes[:1]}, config{groups: all, modes: modes[1:]}, "no mode"},
		} {
			t.Run(s.name+"/"+test.name, func(t *testing.T) {
				test.client.suites, test.server.suites = defaults().suites, []*suite{s}
				key := Key{Secret: secret, Hash: s.hash}
				cconn, sconn := dial(t)
				client, server, cerr, serr := meet(t, &test.client, &test.server, key, only("alice", key), cconn, sconn)
				expect(t, "server", serr, test.wrong)
				if test.wrong != "" {
					expect(t, "client", cerr, "handshake_failure")
					return
				}
				expect(t, "client", cerr, "")
				if got := client.CipherSuite(); got != s.name {
					t.Errorf("the suite is %s", got)
				}
				exchangeData(t, client, server)
			})
		}
	}
}

// expect compares an error with a part of its text; "" is none.
func expect(t *testing.T, who string, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("%s: %v", who, err)
	case part != "" && (err == nil || !strings.Contains(err.Error(), part)):
		t.Errorf("%s: got %v, want an error with %q", who, err, part)
	}
}
