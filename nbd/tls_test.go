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
	nobody := filepath.Join(t.TempDir(), "nobody")
	if err := os.CopyFS(nobody, os.DirFS(a.Dir)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"client-cert.pem", "client-key.pem"} {
		if err := os.Remove(filepath.Join(nobody, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct{ uri, want, hint string }{
		"certificates":             {uri: encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "localhost")},
		"another name":             {encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "example.com"), "example.com", "tls-hostname"},
		"another name, not looked": {uri: encrypted(certificates, "", "tls-certificates", a.Dir, "tls-hostname", "example.com", "tls-verify-peer", "0")},
		"no certificate":           {encrypted(certificates, "", "tls-certificates", nobody, "tls-hostname", "localhost"), "", "client-cert.pem"},
		"keys":                     {uri: encrypted(keys, "alice", "tls-psk-file", right)},
		"another key":              {encrypted(keys, "alice", "tls-psk-file", wrong), "STARTTLS", `"alice"`},
		"nobody's key":             {encrypted(keys, "bob", "tls-psk-file", right), "bob", "IDENTITY@HOST"},
		"no TLS there: never goes on in plain text, CVE-2019-14842": {encrypted(plain, "", "tls-certificates", a.Dir), "STARTTLS refused", "without encryption"},
		"no TLS here": {certificates, "TLS", "nbds"},
	} {
		d, err := nbd.Dial(t.Context(), c.uri, o)
		if err == nil {
			err = d.Read(t.Context(), make([]byte, 4096), 0)
			d.Close()
		}
		var hint block.Hint
		if found := new(block.Hint); errors.As(err, &found) {
			hint = *found
		}
		if c.hint == "" && err != nil || c.hint != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || !strings.Contains(hint.Text, c.hint) {
			t.Errorf("%s: %v, with the hint %q; want an error about %q, with a hint at %q", name, err, hint.Text, c.want, c.hint)
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
