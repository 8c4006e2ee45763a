package server_test

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// encrypt sends STARTTLS and goes on encrypted, with the client's certificate.
func (p *peer) encrypt(dir string) {
	p.t.Helper()
	p.must(wire.OptStartTLS, nil, wire.RepAck)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	check(p.t, err)
	// Whether the certificates are the right ones is what package secure is tested for.
	nc := tls.Client(p.Conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	check(p.t, nc.Handshake())
	p.Conn = nc
}

func TestTLS(t *testing.T) {
	a := securetest.New(t)
	s, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir, VerifyClient: true})
	check(t, err)
	d := block.NewMemory(4 << 20)
	var seen []server.Client
	_, dial := serve(t, server.Config{
		TLS: s, TLSRequired: true, List: list(""),
		Open: func(_ context.Context, c server.Client) (*server.Export, error) {
			seen = append(seen, c)
			return &server.Export{Device: d}, nil
		},
	})
	for _, mode := range modes {
		p := dial().greet(bothFlags)
		p.must(wire.OptList, nil, wire.RepErrTLSReqd)
		p.encrypt(a.Dir)
		p.must(wire.OptStartTLS, nil, wire.RepErrInvalid)
		p.must(wire.OptSetMetaContext, metaData("", wire.BaseAllocation), wire.RepErrInvalid)
		if mode == "extended" {
			p.must(wire.OptExtendedHeaders, nil, wire.RepAck)
			p.structured, p.extended = true, true
		} else if mode == "structured" {
			p.must(wire.OptStructuredReply, nil, wire.RepAck)
			p.structured = true
		}
		infos(t, p.option(wire.OptGo, infoData("")))
		p.write(1, 5, []byte("over TLS"), 0)
		if a := p.reply(0); a.errno != 0 {
			t.Errorf("WRITE: %+v", a)
		}
		big := make([]byte, 3<<20)
		big[1<<20] = 7
		p.write(2, 1<<20, big, 0)
		if a := p.reply(0); a.errno != 0 {
			t.Errorf("big WRITE: %+v", a)
		}
		for range 10 {
			if a := p.do(wire.Request{Type: wire.CmdRead, Offset: 5, Length: 8}); string(a.data) != "over TLS" {
				t.Errorf("READ: %+v", a)
			}
		}
		if a := p.do(wire.Request{Type: wire.CmdRead, Offset: 1 << 20, Length: 3 << 20}); a.errno != 0 || len(a.data) != 3<<20 || a.data[1<<20] != 7 {
			t.Errorf("big READ: %v, %d bytes", a.errno, len(a.data))
		}
		p.req(wire.Request{Type: wire.CmdDisc})
		p.gone()
	}
	for _, c := range seen {
		if !c.Secure || c.Identity != "client" || c.TLS == nil {
			t.Errorf("opened for %+v", c)
		}
	}
}

// TestShutdownInUpgrade: a client that is silent after a TLS handshake, during which the server has begun to shut down, is not waited for.
func TestShutdownInUpgrade(t *testing.T) {
	a := securetest.New(t)
	tlsServer, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir})
	check(t, err)
	s, dial := serve(t, server.Config{TLS: tlsServer, Open: fixed(block.NewMemory(1 << 20)), HandshakeTimeout: -1})
	p := dial().greet(bothFlags)
	p.must(wire.OptStartTLS, nil, wire.RepAck)
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ended <- s.Shutdown(ctx)
	}()
	eventually(t, "nobody listens", func() bool {
		nc, err := net.Dial("unix", p.RemoteAddr().String())
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	check(t, tls.Client(p.Conn, &tls.Config{InsecureSkipVerify: true}).Handshake())
	check(t, <-ended)
}

// TestStateBeforeTLS: what was negotiated in plain text does not hold afterwards (CVE-2021-3716).
func TestStateBeforeTLS(t *testing.T) {
	a := securetest.New(t)
	s, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir})
	check(t, err)
	_, dial := serve(t, server.Config{TLS: s, Open: fixed(block.NewMemory(1 << 20))})
	p := dial().greet(bothFlags)
	p.must(wire.OptStructuredReply, nil, wire.RepAck)
	p.must(wire.OptExtendedHeaders, nil, wire.RepAck)
	p.option(wire.OptSetMetaContext, metaData("", wire.BaseAllocation))
	p.encrypt(a.Dir)
	p.must(wire.OptSetMetaContext, metaData("", wire.BaseAllocation), wire.RepErrInvalid) // there are no structured replies any more
	p.must(wire.OptStructuredReply, nil, wire.RepAck)                                     // and no extended headers
	p.structured = true
	infos(t, p.option(wire.OptGo, infoData("")))
	if a := p.do(wire.Request{Type: wire.CmdBlockStatus, Length: 512}); a.errno != wire.EINVAL {
		t.Errorf("BLOCK_STATUS of a context that was set in plain text: %+v", a)
	}
	p.alive()
}
