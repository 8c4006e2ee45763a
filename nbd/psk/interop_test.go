package psk

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdh"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// These tests run whole connections with the TLS programs of GnuTLS and OpenSSL, once as the server and once as the client.

// key384 is the key of alice where it is bound to SHA-384.
var key384 = Key{Secret: secret, Hash: crypto.SHA384}

// with returns defaults with other lists; a nil list stays.
func with(suites []*suite, groups []group, modes []mode) *config {
	c := defaults()
	if suites != nil {
		c.suites = suites
	}
	if groups != nil {
		c.groups = groups
	}
	if modes != nil {
		c.modes = modes
	}
	return c
}

var (
	onlyP256   = []group{{secp256r1, ecdh.P256()}}
	onlyX25519 = []group{{x25519, ecdh.X25519()}}
)

// hasty returns a suite that takes new keys after every few records.
func hasty(s *suite) []*suite {
	h := *s
	h.limit = 3
	return []*suite{&h}
}

// freePort returns a port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// serve runs a program that accepts connections, and returns when it has printed that it does.
func serve(t *testing.T, ready, program string, args ...string) {
	t.Helper()
	cmd := peers.Command(t, program, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); r.Close() })
	in := bufio.NewReader(r)
	var log strings.Builder
	for {
		line, err := in.ReadString('\n')
		log.WriteString(line)
		if strings.Contains(line, ready) {
			go io.Copy(io.Discard, in)
			return
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", program, err, log.String())
		}
	}
}

// callEcho connects to a server that returns lines, reversed by some, and checks that.
func callEcho(t *testing.T, port string, c *config, key Key, reversed bool) (*Conn, error) {
	t.Helper()
	plain, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	plain.SetDeadline(time.Now().Add(30 * time.Second))
	conn, err := c.client(t.Context(), plain, "alice", key, "localhost")
	if err != nil {
		return nil, err
	}
	plain.SetDeadline(time.Now().Add(30 * time.Second))
	in := bufio.NewReader(conn)
	for i := range 8 {
		line := fmt.Sprintf("line %d %s", i, strings.Repeat("x", i*i*10))
		if _, err := conn.Write([]byte(line + "\n")); err != nil {
			return nil, err
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		want := []byte(line)
		if reversed {
			for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
				want[i], want[j] = want[j], want[i]
			}
		}
		if strings.TrimRight(got, "\r\n") != string(want) {
			t.Fatalf("sent %q, got %q", line, got)
		}
	}
	return conn, conn.Close()
}

// keyFile writes the key of alice as psktool does.
func keyFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.psk")
	if err := os.WriteFile(name, []byte("alice:"+hex.EncodeToString(secret)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// nbdPriority is what nbdkit, libnbd and QEMU ask of GnuTLS.
const nbdPriority = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK"

func TestGnuTLSServer(t *testing.T) {
	peers.Need(t, "gnutls-serv")
	good := Key{Secret: secret}
	for _, test := range []struct {
		name, priority string
		config         *config
		key            Key
		suite          *suite
		err            string
	}{
		{"as nbdkit", nbdPriority, defaults(), good, aes128, ""},
		{"chacha20", nbdPriority, with([]*suite{chacha20}, nil, nil), good, chacha20, ""},
		{"server without AES", nbdPriority + ":-CIPHER-ALL:+CHACHA20-POLY1305", defaults(), good, chacha20, ""},
		{"P-256", nbdPriority, with(nil, onlyP256, nil), good, aes128, ""},
		{"retry", nbdPriority + ":-GROUP-ALL:+GROUP-SECP256R1", defaults(), good, aes128, ""},
		{"server without exchange", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK", defaults(), good, aes128, ""},
		{"client without exchange", nbdPriority, with(nil, nil, []mode{pskOnly}), good, aes128, ""},
		{"new keys", nbdPriority, with(hasty(aes128), nil, nil), good, aes128, ""},
		{"wrong key", nbdPriority, defaults(), Key{Secret: []byte("another")}, nil, "illegal_parameter"},
		{"server without TLS 1.3", nbdPriority + ":-VERS-TLS1.3", defaults(), good, nil, "handshake_failure"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			serve(t, "IPv4", "gnutls-serv", "--echo", "-p", port, "--pskpasswd", keyFile(t), "--priority", test.priority)
			conn, err := callEcho(t, port, test.config, test.key, false)
			expect(t, "client", err, test.err)
			if err == nil && conn.CipherSuite() != test.suite.name {
				t.Errorf("the suite is %s", conn.CipherSuite())
			}
		})
	}
}

// answer accepts one connection, and returns what comes back to where it came from.
func answer(t *testing.T, c *config, key Key) (port string, done <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	result := make(chan error, 1)
	go func() {
		result <- func() error {
			plain, err := l.Accept()
			if err != nil {
				return err
			}
			defer plain.Close()
			conn, identity, err := c.server(t.Context(), plain, only("alice", key))
			if err != nil {
				return err
			}
			if identity != "alice" {
				return fmt.Errorf("the client is %q", identity)
			}
			if _, err := io.Copy(conn, conn); err != nil {
				return err
			}
			return conn.Close()
		}()
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, result
}

// text is what clients send.
func text() string {
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "line %d %s\n", i, strings.Repeat("y", i))
	}
	return b.String()
}

func TestGnuTLSClient(t *testing.T) {
	peers.Need(t, "gnutls-cli")
	good := Key{Secret: secret}
	for _, test := range []struct {
		name, priority string
		config         *config
		key            Key
		says           string // a part of what the client prints
		err            string
	}{
		{"as libnbd", nbdPriority, defaults(), good, "AES-128-GCM", ""},
		{"chacha20", nbdPriority, with([]*suite{chacha20}, nil, nil), good, "CHACHA20-POLY1305", ""},
		{"client without AES", nbdPriority + ":-CIPHER-ALL:+CHACHA20-POLY1305", defaults(), good, "CHACHA20-POLY1305", ""},
		{"P-256", nbdPriority, with(nil, onlyP256, nil), good, "AES-128-GCM", ""},
		{"retry", nbdPriority + ":-GROUP-ALL:+GROUP-SECP384R1:+GROUP-SECP256R1", defaults(), good, "AES-128-GCM", ""},
		{"client without exchange", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK", defaults(), good, "AES-128-GCM", ""},
		{"server without exchange", nbdPriority, with(nil, nil, []mode{pskOnly}), good, "AES-128-GCM", ""},
		{"new keys", nbdPriority, with(hasty(chacha20), nil, nil), good, "CHACHA20-POLY1305", ""},
		{"wrong key", nbdPriority, defaults(), Key{Secret: []byte("another")}, "error", "has not the key"},
		{"client without TLS 1.3", nbdPriority + ":-VERS-TLS1.3", defaults(), good, "error", "does not speak TLS 1.3"},
		{"client without PSK", "NORMAL", defaults(), good, "error", "no pre-shared key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port, done := answer(t, test.config, test.key)
			cmd := peers.Command(t, "gnutls-cli", "--inline-commands", "--pskusername", "alice", "--pskkey", hex.EncodeToString(secret),
				"--priority", test.priority, "-p", port, "127.0.0.1")
			first, rest, _ := strings.Cut(text(), "line 30")
			cmd.Stdin = strings.NewReader(first + "^rekey^\n" + "line 30" + rest) // line by line, as somebody types them
			out, _ := cmd.CombinedOutput()
			expect(t, "server", <-done, test.err)
			if !bytes.Contains(out, []byte(test.says)) {
				t.Errorf("the client does not say %q:\n%s", test.says, out)
			}
			if test.err != "" {
				return
			}
			const rekeyed = "- Rekey was completed\n" // wherever between bytes that have come
			if !bytes.Contains(out, []byte(rekeyed)) {
				t.Errorf("the client has not asked for new keys:\n%s", out)
			}
			if !bytes.Contains(bytes.ReplaceAll(out, []byte(rekeyed), nil), []byte(text())) {
				t.Errorf("what comes back is not what was sent:\n%s", out)
			}
		})
	}
}

// session writes the key of alice as OpenSSL reads one that is bound to SHA-384.
func session(t *testing.T) string {
	t.Helper()
	der, err := asn1.Marshal(struct {
		Version, TLS   int
		Suite, ID, Key []byte
		Created        int64 `asn1:"explicit,tag:1"`
		Timeout        int64 `asn1:"explicit,tag:2"` // in seconds
	}{1, tls13, []byte{0x13, 0x02}, []byte{1}, secret, time.Now().Unix(), 86400})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "session.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "SSL SESSION PARAMETERS", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOpenSSLServer(t *testing.T) {
	peers.Need(t, "openssl")
	good := Key{Secret: secret}
	for _, test := range []struct {
		name   string
		args   []string
		config *config
		key    Key
		suite  *suite
		err    string
	}{
		{"plain", nil, defaults(), good, aes128, ""},
		{"retry", []string{"-groups", "P-256"}, defaults(), good, aes128, ""},
		{"retry the other way", []string{"-groups", "X25519"}, with(nil, append(onlyP256, onlyX25519...), nil), good, aes128, ""},
		{"chacha20", []string{"-ciphersuites", chacha20.name}, defaults(), good, chacha20, ""},
		{"SHA-384", []string{"-psk_session", session(t)}, defaults(), key384, aes256, ""},
		{"SHA-384, retry", []string{"-psk_session", session(t), "-groups", "P-256"}, defaults(), key384, aes256, ""},
		{"client without exchange", []string{"-allow_no_dhe_kex"}, with(nil, nil, []mode{pskOnly}), good, aes128, ""},
		{"client without exchange, refused", nil, with(nil, nil, []mode{pskOnly}), good, nil, "missing_extension"},
		{"padded records", []string{"-record_padding", "512"}, defaults(), good, aes128, ""},
		{"new keys", nil, with(hasty(aes128), nil, nil), good, aes128, ""},
		{"wrong key", nil, defaults(), Key{Secret: []byte("another")}, nil, "illegal_parameter"},
		{"wrong hash", nil, defaults(), key384, nil, "missing_extension"},
		{"server without TLS 1.3", []string{"-no_tls1_3", "-cipher", "PSK"}, defaults(), good, nil, "protocol_version"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			args := []string{"s_server", "-accept", "127.0.0.1:" + port, "-psk_identity", "alice", "-nocert", "-rev"}
			if test.suite != aes256 {
				args = append(args, "-psk", hex.EncodeToString(secret))
			}
			serve(t, "ACCEPT", "openssl", append(args, test.args...)...)
			conn, err := callEcho(t, port, test.config, test.key, true)
			expect(t, "client", err, test.err)
			if err == nil && conn.CipherSuite() != test.suite.name {
				t.Errorf("the suite is %s", conn.CipherSuite())
			}
		})
	}
}

func TestOpenSSLClient(t *testing.T) {
	peers.Need(t, "openssl")
	good := Key{Secret: secret}
	for _, test := range []struct {
		name   string
		args   []string
		config *config
		key    Key
		err    string
	}{
		{"plain", nil, defaults(), good, ""},
		{"without session id", []string{"-no_middlebox"}, defaults(), good, ""},
		{"retry", []string{"-groups", "P-384:P-256"}, defaults(), good, ""},
		{"retry without session id", []string{"-groups", "P-384:X25519", "-no_middlebox"}, defaults(), good, ""},
		{"chacha20", []string{"-ciphersuites", chacha20.name + ":" + aes256.name}, defaults(), good, ""},
		{"SHA-384", []string{"-psk_session", session(t)}, defaults(), key384, ""}, // not with retry: OpenSSL leaves the key out then, for its own server too
		{"server without exchange", []string{"-allow_no_dhe_kex"}, with(nil, nil, []mode{pskOnly}), good, ""},
		{"padded records", []string{"-record_padding", "512"}, defaults(), good, ""},
		{"new keys", nil, with(hasty(aes128), nil, nil), good, ""},
		{"older versions offered as well", []string{"-cipher", "DEFAULT:PSK"}, defaults(), good, ""},
		{"no group in common", []string{"-groups", "P-384"}, defaults(), good, "no group"},
		{"wrong key", nil, defaults(), Key{Secret: []byte("another")}, "has not the key"},
		{"wrong hash", nil, defaults(), key384, "has not the key"},
		{"client without TLS 1.3", []string{"-no_tls1_3", "-cipher", "PSK"}, defaults(), good, "does not speak TLS 1.3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port, done := answer(t, test.config, test.key)
			args := []string{"s_client", "-connect", "127.0.0.1:" + port, "-psk_identity", "alice"}
			if test.err != "" || test.key.Hash != crypto.SHA384 {
				args = append(args, "-psk", hex.EncodeToString(secret))
			}
			c := talk(t, "openssl", append(args, test.args...)...)
			if test.err != "" {
				expect(t, "server", <-done, test.err)
				return
			}
			for i, command := range []string{"", "K", "k", "K"} { // new keys of both sides, and of the client alone
				if command != "" {
					c.say(command)
					c.hear("KEYUPDATE")
				}
				c.say(fmt.Sprintf("line %d", i))
				c.hear(fmt.Sprintf("line %d\n", i))
			}
			c.say("Q")
			expect(t, "server", <-done, "")
		})
	}
}

// TestOpenSSLUpdates has the server ask for new keys.
func TestOpenSSLUpdates(t *testing.T) {
	port := freePort(t)
	s := talk(t, "openssl", "s_server", "-accept", "127.0.0.1:"+port, "-psk_identity", "alice", "-nocert", "-psk", hex.EncodeToString(secret))
	s.hear("ACCEPT")
	plain, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	conn, err := Client(t.Context(), plain, "alice", Key{Secret: secret}, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for i := range 4 {
		if i > 0 {
			s.say("K")
			waiting := make(chan string, 1)
			go func() {
				line, _ := in.ReadString('\n')
				waiting <- line
			}()
			for plain.SetReadDeadline(time.Now().Add(30 * time.Second)); !conn.answer.Load(); time.Sleep(time.Millisecond) {
				if len(waiting) > 0 {
					t.Fatal("KeyUpdate does not come")
				}
			}
			s.say(fmt.Sprintf("line %d", i))
			if line := <-waiting; line != fmt.Sprintf("line %d\n", i) {
				t.Fatalf("line %d: got %q", i, line)
			}
		}
		back := fmt.Sprintf("back %d\n", i)
		if _, err := conn.Write([]byte(back)); err != nil {
			t.Fatal(err)
		}
		s.hear(back)
		if conn.answer.Load() {
			t.Error("the server still waits for new keys")
		}
	}
}

// talking is a program that is typed to.
type talking struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	log strings.Builder
}

// talk runs a program.
func talk(t *testing.T, program string, args ...string) *talking {
	t.Helper()
	cmd := peers.Command(t, program, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); r.Close() })
	return &talking{t: t, in: in, out: bufio.NewReader(r)}
}

// say types a line.
func (c *talking) say(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.t.Fatalf("%v\n%s", err, c.log.String())
	}
}

// hear waits until the program prints a text.
func (c *talking) hear(text string) {
	c.t.Helper()
	var got []byte
	for !bytes.HasSuffix(got, []byte(text)) {
		b, err := c.out.ReadByte()
		if err != nil {
			c.t.Fatalf("%q does not come: %v\n%s", text, err, c.log.String())
		}
		got = append(got, b)
		c.log.WriteByte(b)
	}
}
