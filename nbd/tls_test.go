package nbd_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/server"
)

// encrypted writes the URI of a socket with parameters.
func encrypted(plain, user string, params ...string) string {
	u := strings.Replace(plain, "nbd+unix://", "nbds+unix://", 1)
	if user != "" {
		u = strings.Replace(u, "://", "://"+user+"@", 1)
	}
	for i := 0; i < len(params); i += 2 {
		u += "&" + params[i] + "=" + url.QueryEscape(params[i+1])
	}
	return u
}

// pskFile writes a key for alice, and one with another key for her.
func pskFile(t *testing.T) (right, wrong string) {
	dir := t.TempDir()
	for i, key := range []string{"00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"} {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(path, []byte("alice:"+key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		right, wrong = wrong, path
	}
	return right, wrong
}

func TestTLSOverNbdkit(t *testing.T) {
	leaks(t)
	a := securetest.New(t)
	right, wrong := pskFile(t)
	certificates := nbdkit(t, "--tls=require", "--tls-certificates="+a.Dir, "--tls-verify-peer", "memory", "1M", "allocator=malloc")
	keys := nbdkit(t, "--tls=require", "--tls-psk="+right, "memory", "1M", "allocator=malloc")
	plain := nbdkit(t, "--tls=off", "memory", "1M")
	o := nbd.Options{AllowLocalFiles: true}
	for name, c := range map[string]struct{ uri, want string }{
		"certificates":             {encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "localhost"), ""},
		"another name":             {encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "example.com"), "example.com"},
		"another name, not looked": {encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "example.com", "tls-verify-peer", "0"), ""},
		"keys":                     {encrypted(keys, "alice", "tls-psk-file", right), ""},
		"another key":              {encrypted(keys, "alice", "tls-psk-file", wrong), "STARTTLS"},
		"nobody's key":             {encrypted(keys, "bob", "tls-psk-file", right), "bob"},
		"no TLS there: never goes on in plain text, CVE-2019-14842": {encrypted(plain, "", "tls-certificates", a.Dir), "STARTTLS refused"},
		"no TLS here": {certificates, "TLS"},
	} {
		d, err := nbd.Dial(t.Context(), c.uri, o)
		if err == nil {
			err = d.Read(t.Context(), make([]byte, 4096), 0)
			d.Close()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error about %q", name, err, c.want)
		}
	}
	for name, uri := range map[string]string{
		"Certificates": encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "localhost"),
		"PSK":          encrypted(keys, "alice", "tls-psk-file", right),
	} {
		t.Run(name, func(t *testing.T) {
			d := dial(t, uri, o)
			p := make([]byte, 1<<20)
			for i := range p {
				p[i] = byte(i * 7)
			}
			if err := errors.Join(d.Write(t.Context(), p, 0, 0), d.Zero(t.Context(), 0, 1<<20, 0)); err != nil {
				t.Fatal(err)
			}
			script := p[:1500]
			if err := blocktest.Drive(t.Context(), blocktest.Config{Size: 1 << 20}, d, script); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTLSOverServer runs the suite over our own server with certificates, and gives calls up in the middle.
func TestTLSOverServer(t *testing.T) {
	leaks(t)
	a := securetest.New(t)
	s, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir, VerifyClient: true})
	if err != nil {
		t.Fatal(err)
	}
	blocktest.Run(t, blocktest.Config{Size: 1 << 18, Ops: 40, New: func(t *testing.T) block.Device {
		socket := serve(t, server.Config{TLS: s, TLSRequired: true}, block.NewMemory(1<<18))
		return dial(t, encrypted(unixURI(socket), "", "tls-certificates", a.Dir, "tls-hostname", "localhost"), nbd.Options{AllowLocalFiles: true})
	}})
}

// TestTLSForgets: what was agreed on in plain text does not hold afterwards.
func TestTLSForgets(t *testing.T) {
	leaks(t)
	a := securetest.New(t)
	s, err := secure.NewServer(secure.ServerConfig{Certificates: a.Dir})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := secure.NewClient(secure.ClientConfig{Certificates: a.Dir, Hostname: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", serve(t, server.Config{TLS: s}, block.NewMemory(1<<16)))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c, err := client.New(ctx, conn, client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.SetMetaContexts(ctx, "")
	if err == nil {
		t.Error("contexts can be selected without structured replies")
	}
	err = c.RequestExtendedHeaders(ctx)
	if err == nil {
		_, err = c.SetMetaContexts(ctx, "", "base:allocation")
	}
	if err != nil || !c.Extended() || len(c.Contexts()) != 1 {
		t.Fatalf("%v, %v", err, c.Contexts())
	}
	if err := c.StartTLS(ctx, ours, ""); err != nil {
		t.Fatal(err)
	}
	if c.Extended() || c.Structured() || len(c.Contexts()) != 0 || !c.Secure() {
		t.Error("something of before is left")
	}
	if _, err := c.Go(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Read(ctx, make([]byte, 512), 0, 0); err != nil {
		t.Error(err)
	}
}
