package secure_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
)

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

// end is what one side had of an attempt to connect.
type end struct {
	conn net.Conn
	peer secure.Peer
	err  error
}

// meet upgrades both ends of a connection, and has the client send a line that the server returns. The errors are the first of each side.
func meet(t testing.TB, s *secure.Server, c *secure.Client, host string) (client, server end) {
	t.Helper()
	cconn, sconn := dial(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.conn, server.peer, server.err = s.Upgrade(t.Context(), sconn)
		if server.err == nil {
			_, server.err = io.CopyN(server.conn, server.conn, 6)
		}
		if server.err != nil {
			sconn.Close()
		}
	}()
	client.conn, client.peer, client.err = c.Upgrade(t.Context(), cconn, host)
	if client.err == nil {
		if _, client.err = io.WriteString(client.conn, "hello\n"); client.err == nil {
			line := make([]byte, 6)
			if _, client.err = io.ReadFull(client.conn, line); client.err == nil && string(line) != "hello\n" {
				t.Errorf("the echo is %q", line)
			}
		}
	}
	if client.err != nil {
		cconn.Close()
	}
	<-done
	return client, server
}

func newServer(t testing.TB, c secure.ServerConfig) *secure.Server {
	t.Helper()
	s, err := secure.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newClient(t testing.TB, c secure.ClientConfig) *secure.Client {
	t.Helper()
	s, err := secure.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
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

func TestCertificates(t *testing.T) {
	ours, other := securetest.New(t), securetest.New(t)
	named := securetest.New(t)
	named.Server(t, "disks.example")
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-24*time.Hour)
	crl := func(until time.Time, who ...string) string {
		a := securetest.New(t)
		a.Revoke(t, until, who...)
		return a.Dir
	}
	noneRevoked, serverRevoked, clientRevoked, outdated := crl(tomorrow), crl(tomorrow, "server"), crl(tomorrow, "client"), crl(yesterday)
	anonymous := ours.Copy(t, "ca-cert.pem")
	wrongUse := swapped(t)

	for _, test := range []struct {
		name                 string
		server               secure.ServerConfig
		client               secure.ClientConfig
		host                 string
		serverErr, clientErr string
		serverSees           string // the client's name
		clientSees           string
	}{
		{"plain", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir}, "localhost", "", "", "", "server"},
		{"address", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir}, "127.0.0.1", "", "", "", "server"},
		{"address with zone", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir}, "::1%lo", "", "", "", "server"},
		{"Unix socket", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir}, "", "", "", "", "server"},
		{"wrong name", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir}, "elsewhere.example", "bad certificate", "elsewhere.example", "", ""},
		{"Unix socket, wrong name", secure.ServerConfig{Certificates: named.Dir}, secure.ClientConfig{Certificates: named.Dir}, "", "bad certificate", "localhost", "", ""},
		{"Hostname", secure.ServerConfig{Certificates: named.Dir}, secure.ClientConfig{Certificates: named.Dir, Hostname: "disks.example"}, "10.0.0.1", "", "", "", "server"},
		{"Hostname wrong", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: ours.Dir, Hostname: "disks.example"}, "localhost", "bad certificate", "disks.example", "", ""},
		{"NoVerify", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: other.Dir, NoVerify: true}, "elsewhere.example", "", "", "", ""},
		{"another authority", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: other.Dir}, "localhost", "bad certificate", "unknown authority", "", ""},
		{"the system's authorities", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: t.TempDir()}, "localhost", "bad certificate", "unknown authority", "", ""},
		{"client verified", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, secure.ClientConfig{Certificates: ours.Dir}, "localhost", "", "", "client", "server"},
		{"client without certificate", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, secure.ClientConfig{Certificates: anonymous}, "localhost", "didn't provide a certificate", "certificate required", "", "server"},
		{"client without certificate, unasked", secure.ServerConfig{Certificates: ours.Dir}, secure.ClientConfig{Certificates: anonymous}, "localhost", "", "", "", "server"},
		{"client of another authority", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, secure.ClientConfig{Certificates: other.Dir, NoVerify: true}, "localhost", "unknown authority", "unknown certificate authority", "", ""},
		{"empty list", secure.ServerConfig{Certificates: noneRevoked, VerifyClient: true}, secure.ClientConfig{Certificates: noneRevoked}, "localhost", "", "", "client", "server"},
		{"server revoked", secure.ServerConfig{Certificates: serverRevoked}, secure.ClientConfig{Certificates: serverRevoked}, "localhost", "bad certificate", `the certificate of "server" was revoked`, "", ""},
		{"server revoked, NoVerify", secure.ServerConfig{Certificates: serverRevoked}, secure.ClientConfig{Certificates: serverRevoked, NoVerify: true}, "localhost", "", "", "", ""},
		{"client revoked", secure.ServerConfig{Certificates: clientRevoked, VerifyClient: true}, secure.ClientConfig{Certificates: clientRevoked}, "localhost", `the certificate of "client" was revoked`, "bad certificate", "", "server"},
		{"list out of date", secure.ServerConfig{Certificates: outdated}, secure.ClientConfig{Certificates: outdated}, "localhost", "bad certificate", "out of date", "", ""},
		{"client's certificate for a server", secure.ServerConfig{Certificates: wrongUse}, secure.ClientConfig{Certificates: wrongUse}, "localhost", "bad certificate", "incompatible key usage", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := meet(t, newServer(t, test.server), newClient(t, test.client), test.host)
			expect(t, "server", server.err, test.serverErr)
			expect(t, "client", client.err, test.clientErr)
			if server.peer.Identity != test.serverSees {
				t.Errorf("the server sees client %q, want %q", server.peer.Identity, test.serverSees)
			}
			if client.peer.Identity != test.clientSees {
				t.Errorf("the client sees server %q, want %q", client.peer.Identity, test.clientSees)
			}
			if client.err == nil && (client.peer.TLS == nil || client.peer.TLS.Version < tls.VersionTLS12) {
				t.Errorf("TLS state of the client: %+v", client.peer.TLS)
			}
		})
	}
}

// swapped returns a folder where a certificate for clients stands as the server's.
func swapped(t testing.TB) string {
	a := securetest.New(t)
	a.Client(t, "localhost")
	dir := a.Copy(t, "ca-cert.pem", "client-cert.pem", "client-key.pem")
	for from, to := range map[string]string{"client-cert.pem": "server-cert.pem", "client-key.pem": "server-key.pem"} {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBadFolders(t *testing.T) {
	a, other := securetest.New(t), securetest.New(t)
	other.Revoke(t, time.Now().Add(time.Hour))
	replace := func(name string, data []byte) string {
		dir := a.Copy(t, "ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	read := func(a *securetest.Authority, name string) []byte {
		data, err := os.ReadFile(filepath.Join(a.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	server := func(dir string, verify bool) error {
		_, err := secure.NewServer(secure.ServerConfig{Certificates: dir, VerifyClient: verify})
		return err
	}
	client := func(dir string) error {
		_, err := secure.NewClient(secure.ClientConfig{Certificates: dir})
		return err
	}
	expect(t, "no key", server(a.Copy(t, "server-cert.pem"), false), "server-key.pem: ")
	expect(t, "no certificate", server(a.Copy(t, "ca-cert.pem"), false), "server-cert.pem: ")
	expect(t, "no authority", server(a.Copy(t, "server-cert.pem", "server-key.pem"), true), "ca-cert.pem")
	expect(t, "no authority, unverified", server(a.Copy(t, "server-cert.pem", "server-key.pem"), false), "")
	expect(t, "key of another", server(replace("server-key.pem", read(other, "server-key.pem")), false), "private key does not match public key")
	expect(t, "garbage for authority", client(replace("ca-cert.pem", []byte("garbage"))), "ca-cert.pem has no PEM block of type CERTIFICATE")
	expect(t, "list of another authority", client(replace("ca-crl.pem", read(other, "ca-crl.pem"))), "ca-crl.pem: block 1: ")
	expect(t, "garbage for list", client(replace("ca-crl.pem", nil)), "ca-crl.pem has no PEM block")
	expect(t, "list without authority", client(other.Copy(t, "ca-crl.pem")), "there is no")
	expect(t, "client's key missing", client(a.Copy(t, "ca-cert.pem", "client-cert.pem")), "client-key.pem: ")
	expect(t, "no folder", client(filepath.Join(a.Dir, "nowhere")), "nowhere")
	expect(t, "no folder", client(filepath.Join(a.Dir, "ca-cert.pem")), "is not a folder")
	_, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir, PSKFile: "keys.psk"})
	expect(t, "both", err, "not both")
}

func TestDefaultFolders(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("the superuser's folders are in /etc")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	if _, err := secure.NewServer(secure.ServerConfig{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without any certificate: %v", err)
	}
	newClient(t, secure.ClientConfig{}) // the system's authorities
	a := securetest.New(t)
	for program, below := range map[string]string{"nbdkit": ".pki", "libnbd": ".config/pki"} {
		if err := os.MkdirAll(filepath.Join(home, below), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(a.Copy(t, "ca-cert.pem", "server-cert.pem", "server-key.pem"), filepath.Join(home, below, program)); err != nil {
			t.Fatal(err)
		}
	}
	client, server := meet(t, newServer(t, secure.ServerConfig{}), newClient(t, secure.ClientConfig{}), "localhost")
	expect(t, "client", client.err, "")
	expect(t, "server", server.err, "")
}

// TestSilentPeer has a peer that never says anything: the context ends the handshake, and the connection stays open and usable.
func TestSilentPeer(t *testing.T) {
	a := securetest.New(t)
	psk := securetest.PSK(t, "alice")
	for name, upgrade := range map[string]func(context.Context, net.Conn) error{
		"server, certificates": func(ctx context.Context, c net.Conn) error {
			_, _, err := newServer(t, secure.ServerConfig{Certificates: a.Dir}).Upgrade(ctx, c)
			return err
		},
		"client, certificates": func(ctx context.Context, c net.Conn) error {
			_, _, err := newClient(t, secure.ClientConfig{Certificates: a.Dir}).Upgrade(ctx, c, "localhost")
			return err
		},
		"server, PSK": func(ctx context.Context, c net.Conn) error {
			_, _, err := newServer(t, secure.ServerConfig{PSKFile: psk}).Upgrade(ctx, c)
			return err
		},
		"client, PSK": func(ctx context.Context, c net.Conn) error {
			_, _, err := newClient(t, secure.ClientConfig{PSKFile: psk, Identity: "alice"}).Upgrade(ctx, c, "localhost")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn, silent := dial(t)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				// What the handshake sends first has come, or it waits already.
				if strings.HasPrefix(name, "client") {
					silent.Read(make([]byte, 1))
				}
				cancel()
			}()
			if err := upgrade(ctx, conn); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Errorf("the connection is not usable after a handshake that was called off: %v", err)
			}
			past, cancel := context.WithTimeout(t.Context(), -1)
			defer cancel()
			if err := upgrade(past, conn); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestNothingIsLeft counts goroutines after handshakes that succeed, fail, and are called off.
func TestNothingIsLeft(t *testing.T) {
	a, other := securetest.New(t), securetest.New(t)
	keys, otherKeys := securetest.PSK(t, "alice"), securetest.PSK(t, "alice")
	servers := []*secure.Server{newServer(t, secure.ServerConfig{Certificates: a.Dir}), newServer(t, secure.ServerConfig{PSKFile: keys})}
	clients := []*secure.Client{
		newClient(t, secure.ClientConfig{Certificates: a.Dir}), newClient(t, secure.ClientConfig{Certificates: other.Dir}),
		newClient(t, secure.ClientConfig{PSKFile: keys, Identity: "alice"}), newClient(t, secure.ClientConfig{PSKFile: otherKeys, Identity: "alice"}),
	}
	before := runtime.NumGoroutine()
	for range 3 {
		good := 0
		for _, s := range servers {
			for _, c := range clients {
				client, server := meet(t, s, c, "localhost")
				if client.err == nil && server.err == nil {
					good++
				}
				for _, e := range []end{client, server} {
					if e.conn != nil {
						e.conn.Close()
					}
				}
			}
		}
		if good != 2 {
			t.Errorf("%d pairs of client and server fit, not 2", good)
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond) // those that have just ended
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
