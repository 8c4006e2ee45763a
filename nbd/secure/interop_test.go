package secure_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/server"
)

// content is what servers of these tests serve.
var content = bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)

// listen serves content on a port of 127.0.0.1, and reports the identities of clients that ask for the export.
func listen(t *testing.T, c secure.ServerConfig) (port string, identities <-chan string) {
	t.Helper()
	device := block.NewMemory(int64(len(content)))
	if err := device.Write(t.Context(), content, 0, 0); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 100)
	s := server.New(server.Config{
		TLS:         newServer(t, c),
		TLSRequired: true,
		Open: func(_ context.Context, c server.Client) (*server.Export, error) {
			seen <- c.Identity
			return &server.Export{Device: device, ReadOnly: true}, nil
		},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Shutdown(ctx)
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, seen
}

// run runs a program, and compares its success and what it prints, on an error, with what is wanted; "" is success.
func run(t *testing.T, wrong, program string, args ...string) []byte {
	t.Helper()
	cmd := peers.Command(t, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case wrong == "" && err != nil:
		t.Errorf("%s %q: %v\n%s", program, args, err, stderr.String())
	case wrong != "" && err == nil:
		t.Errorf("%s %q succeeds", program, args)
	case wrong != "" && !strings.Contains(stderr.String(), wrong):
		t.Errorf("%s %q does not say %q:\n%s", program, args, wrong, stderr.String())
	}
	return stdout.Bytes()
}

// drain returns the last identity that a server has seen.
func drain(identities <-chan string) string {
	last := ""
	for {
		select {
		case last = <-identities:
		default:
			return last
		}
	}
}

// stranger returns a folder of a client that trusts an authority, but has its own certificate from another.
func stranger(t *testing.T, a *securetest.Authority) string {
	t.Helper()
	dir := securetest.New(t).Copy(t, "client-cert.pem", "client-key.pem")
	if err := os.Rename(filepath.Join(a.Copy(t, "ca-cert.pem"), "ca-cert.pem"), filepath.Join(dir, "ca-cert.pem")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestLibnbd has nbdinfo and nbdcopy as clients of our server.
func TestLibnbd(t *testing.T) {
	peers.Need(t, "nbdinfo")
	ours, other, revoked := securetest.New(t), securetest.New(t), securetest.New(t)
	revoked.Revoke(t, time.Now().Add(time.Hour), "client")
	bothRevoked := securetest.New(t)
	bothRevoked.Revoke(t, time.Now().Add(time.Hour), "server")
	anonymous := ours.Copy(t, "ca-cert.pem")
	keys, otherKeys := securetest.PSK(t, "alice", "bob"), securetest.PSK(t, "alice")
	for _, test := range []struct {
		name   string
		server secure.ServerConfig
		user   string
		params []string
		host   string
		sees   string // what the server knows of the client
		wrong  string
	}{
		{"certificates", secure.ServerConfig{Certificates: ours.Dir}, "", []string{"tls-certificates", ours.Dir}, "localhost", "", ""},
		{"client verified", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, "", []string{"tls-certificates", ours.Dir}, "localhost", "client", ""},
		{"client without certificate", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, "", []string{"tls-certificates", anonymous}, "localhost", "", "gnutls"},
		{"client of another authority", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, "", []string{"tls-certificates", stranger(t, ours)}, "localhost", "", "gnutls"},
		{"client revoked", secure.ServerConfig{Certificates: revoked.Dir, VerifyClient: true}, "", []string{"tls-certificates", revoked.Dir}, "localhost", "", "gnutls"},
		{"server of another authority", secure.ServerConfig{Certificates: other.Dir}, "", []string{"tls-certificates", ours.Dir}, "localhost", "", "verification"},
		{"server revoked", secure.ServerConfig{Certificates: bothRevoked.Dir}, "", []string{"tls-certificates", bothRevoked.Dir}, "localhost", "", "verification"},
		{"PSK", secure.ServerConfig{PSKFile: keys}, "bob", []string{"tls-psk-file", keys}, "localhost", "bob", ""},
		{"PSK, wrong key", secure.ServerConfig{PSKFile: keys}, "alice", []string{"tls-psk-file", otherKeys}, "localhost", "", "gnutls"},
		{"PSK, unknown identity", secure.ServerConfig{PSKFile: otherKeys}, "bob", []string{"tls-psk-file", keys}, "localhost", "", "gnutls"},
		{"PSK, client with certificates", secure.ServerConfig{PSKFile: keys}, "", []string{"tls-certificates", ours.Dir}, "localhost", "", "gnutls"},
		{"certificates, client with PSK", secure.ServerConfig{Certificates: ours.Dir}, "alice", []string{"tls-psk-file", keys}, "localhost", "", "gnutls"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port, identities := listen(t, test.server)
			u := url.URL{Scheme: "nbds", Host: test.host + ":" + port, Path: "/"}
			if test.user != "" {
				u.User = url.User(test.user)
			}
			q := url.Values{}
			for i := 0; i < len(test.params); i += 2 {
				q.Set(test.params[i], test.params[i+1])
			}
			u.RawQuery = q.Encode()
			size := run(t, test.wrong, "nbdinfo", "--size", u.String())
			if test.wrong != "" {
				return
			}
			if got := strings.TrimSpace(string(size)); got != fmt.Sprint(len(content)) {
				t.Errorf("the size is %s", got)
			}
			if got := drain(identities); got != test.sees {
				t.Errorf("the server sees client %q, want %q", got, test.sees)
			}
			copied := filepath.Join(t.TempDir(), "copy")
			run(t, "", "nbdcopy", u.String(), copied)
			if data, err := os.ReadFile(copied); err != nil || !bytes.Equal(data, content) {
				t.Errorf("%d bytes are copied, %v", len(data), err)
			}
		})
	}
}

// TestQEMUClient has qemu-img as the client of our server.
func TestQEMUClient(t *testing.T) {
	peers.Need(t, "qemu-img")
	ours, other := securetest.New(t), securetest.New(t)
	keys, otherKeys := securetest.PSK(t, "alice"), securetest.PSK(t, "alice")
	creds := func(typ, dir, more string) string {
		return fmt.Sprintf("tls-creds-%s,id=tls0,endpoint=client,dir=%s%s", typ, dir, more)
	}
	for _, test := range []struct {
		name   string
		server secure.ServerConfig
		object string
		sees   string
		wrong  string
	}{
		{"certificates", secure.ServerConfig{Certificates: ours.Dir}, creds("x509", ours.Dir, ""), "", ""},
		{"client verified", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, creds("x509", ours.Dir, ""), "client", ""},
		{"client of another authority", secure.ServerConfig{Certificates: ours.Dir, VerifyClient: true}, creds("x509", stranger(t, ours), ",sanity-check=no"), "", "TLS"},
		{"server of another authority", secure.ServerConfig{Certificates: other.Dir}, creds("x509", ours.Dir, ""), "", "certificate"},
		{"PSK", secure.ServerConfig{PSKFile: keys}, creds("psk", filepath.Dir(keys), ",username=alice"), "alice", ""},
		{"PSK, wrong key", secure.ServerConfig{PSKFile: keys}, creds("psk", filepath.Dir(otherKeys), ",username=alice"), "", "handshake"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port, identities := listen(t, test.server)
			image := "driver=nbd,host=localhost,tls-creds=tls0,port=" + port
			copied := filepath.Join(t.TempDir(), "copy")
			run(t, test.wrong, "qemu-img", "convert", "--object", test.object, "--image-opts", image, "-O", "raw", copied)
			if test.wrong != "" {
				return
			}
			if got := drain(identities); got != test.sees {
				t.Errorf("the server sees client %q, want %q", got, test.sees)
			}
			if data, err := os.ReadFile(copied); err != nil || !bytes.Equal(data, content) {
				t.Errorf("%d bytes are copied, %v", len(data), err)
			}
		})
	}
}

// start runs a server on a port of 127.0.0.1, and returns the port when it accepts connections.
func start(t *testing.T, command func(port string) (program string, args []string)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	program, args := command(port)
	cmd := peers.Command(t, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 500 {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			return port
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s does not listen: %s", program, stderr.String())
	return ""
}

// TestServers has our client read from nbdkit and qemu-nbd.
func TestServers(t *testing.T) {
	ours, other, revoked := securetest.New(t), securetest.New(t), securetest.New(t)
	revoked.Revoke(t, time.Now().Add(time.Hour), "server")
	clientRevoked := securetest.New(t)
	clientRevoked.Revoke(t, time.Now().Add(time.Hour), "client")
	withoutList := clientRevoked.Copy(t, "ca-cert.pem", "client-cert.pem", "client-key.pem")
	keys, otherKeys := securetest.PSK(t, "alice"), securetest.PSK(t, "alice")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	nbdkit := func(args ...string) func(string) (string, []string) {
		return func(port string) (string, []string) {
			return "nbdkit", append([]string{"-f", "-i", "127.0.0.1", "-p", port, "--tls=require", "file", image}, args...)
		}
	}
	qemu := func(object string) func(string) (string, []string) {
		return func(port string) (string, []string) {
			return "qemu-nbd", []string{"-t", "-r", "-f", "raw", "-b", "127.0.0.1", "-p", port, "--object", object + ",id=tls0,endpoint=server", "--tls-creds", "tls0", image}
		}
	}
	for _, test := range []struct {
		name   string
		server func(port string) (string, []string)
		user   string
		params url.Values
		wrong  string
	}{
		{"nbdkit, certificates", nbdkit("--tls-certificates=" + ours.Dir), "", url.Values{"tls-certificates": {ours.Dir}}, ""},
		{"nbdkit, client verified", nbdkit("--tls-verify-peer", "--tls-certificates="+ours.Dir), "", url.Values{"tls-certificates": {ours.Dir}}, ""},
		{"nbdkit, client revoked", nbdkit("--tls-verify-peer", "--tls-certificates="+clientRevoked.Dir), "", url.Values{"tls-certificates": {withoutList}}, "nbd:"},
		{"nbdkit, server revoked", nbdkit("--tls-certificates=" + revoked.Dir), "", url.Values{"tls-certificates": {revoked.Dir}}, "was revoked"},
		{"nbdkit, another authority", nbdkit("--tls-certificates=" + ours.Dir), "", url.Values{"tls-certificates": {other.Dir}}, "unknown authority"},
		{"nbdkit, another name", nbdkit("--tls-certificates=" + ours.Dir), "", url.Values{"tls-certificates": {ours.Dir}, "tls-hostname": {"disks.example"}}, "disks.example"},
		{"nbdkit, PSK", nbdkit("--tls-psk=" + keys), "alice", url.Values{"tls-psk-file": {keys}}, ""},
		{"nbdkit, PSK, wrong key", nbdkit("--tls-psk=" + keys), "alice", url.Values{"tls-psk-file": {otherKeys}}, "the peer hung up"},
		{"qemu-nbd, certificates", qemu("tls-creds-x509,dir=" + ours.Dir), "", url.Values{"tls-certificates": {ours.Dir}}, ""},
		{"qemu-nbd, client of another authority", qemu("tls-creds-x509,verify-peer=yes,dir=" + ours.Dir), "", url.Values{"tls-certificates": {stranger(t, ours)}}, "nbd:"},
		{"qemu-nbd, PSK", qemu("tls-creds-psk,dir=" + filepath.Dir(keys)), "alice", url.Values{"tls-psk-file": {keys}}, ""},
		{"qemu-nbd, PSK, wrong key", qemu("tls-creds-psk,dir=" + filepath.Dir(keys)), "alice", url.Values{"tls-psk-file": {otherKeys}}, "the peer hung up"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := start(t, test.server)
			u := url.URL{Scheme: "nbds", Host: "localhost:" + port, Path: "/", RawQuery: test.params.Encode()}
			if test.user != "" {
				u.User = url.User(test.user)
			}
			d, err := nbd.Dial(t.Context(), u.String(), nbd.Options{AllowLocalFiles: true, Retries: -1})
			if err == nil {
				defer d.Close()
				data := make([]byte, len(content))
				if err = d.Read(t.Context(), data, 0); err == nil && !bytes.Equal(data, content) {
					t.Error("the data is another")
				}
			}
			expect(t, "client", err, test.wrong)
		})
	}
}

// TestCerttool uses certificates and a revocation list that certtool makes as nbdkit's manual has it.
func TestCerttool(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	template := func(name, text string) string {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	certtool := func(args ...string) { peers.Run(t, "certtool", args...) }
	certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", at("ca-key.pem"))
	ca := []string{"--load-ca-certificate", at("ca-cert.pem"), "--load-ca-privkey", at("ca-key.pem")}
	certtool("--generate-self-signed", "--load-privkey", at("ca-key.pem"), "--outfile", at("ca-cert.pem"),
		"--template", template("ca.info", "cn = Authority\nca\ncert_signing_key\ncrl_signing_key\n"))
	for who, text := range map[string]string{
		"server": "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n",
		"client": "cn = client.example.com\ntls_www_client\nencryption_key\nsigning_key\n",
	} {
		certtool("--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile", at(who+"-key.pem"))
		certtool(append(ca, "--generate-certificate", "--load-privkey", at(who+"-key.pem"), "--outfile", at(who+"-cert.pem"), "--template", template(who+".info", text))...)
	}
	both := secure.ServerConfig{Certificates: dir, VerifyClient: true}
	client, server := meet(t, newServer(t, both), newClient(t, secure.ClientConfig{Certificates: dir}), "127.0.0.1")
	expect(t, "client", client.err, "")
	expect(t, "server", server.err, "")
	if server.peer.Identity != "client.example.com" {
		t.Errorf("the client is %q", server.peer.Identity)
	}
	certtool(append(ca, "--generate-crl", "--load-certificate", at("client-cert.pem"), "--outfile", at("ca-crl.pem"),
		"--template", template("crl.info", "crl_next_update = 10\ncrl_number = 1\n"))...)
	_, server = meet(t, newServer(t, both), newClient(t, secure.ClientConfig{Certificates: dir}), "127.0.0.1")
	expect(t, "server", server.err, "was revoked")
}
