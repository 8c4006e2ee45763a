package psk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// scriptedClient is a client that has the key and sends a ClientHello that mutate has changed. It returns what comes of it.
func scriptedClient(t *testing.T, conn *end, mutate func(m *clientHello), raw func(message []byte) []byte) error {
	t.Helper()
	h := clientHandshake{config: defaults(), conn: newConn(conn), identity: "alice", key: Key{Secret: secret, Hash: aes128.hash}}
	h.conn.client, h.conn.compatible = true, true
	h.schedule = newSchedule(h.key.Hash, h.key.Secret)
	if err := h.makeHello(); err != nil {
		t.Fatal(err)
	}
	mutate(h.hello)
	own := slices.Index(h.hello.identities, "alice")
	message := h.hello.marshal()
	cut := len(message)
	if len(h.hello.binders) > 0 {
		cut -= 2
		for _, b := range h.hello.binders {
			cut -= 1 + len(b)
		}
	}
	h.schedule.add(message[:cut])
	if own >= 0 && own < len(h.hello.binders) {
		copy(h.hello.binders[own], h.schedule.binder())
		message = h.hello.marshal()
	}
	h.schedule.add(message[cut:])
	if raw != nil {
		message = raw(message)
	}
	if err := h.conn.queue(recordHandshake, message...); err != nil {
		t.Fatal(err)
	}
	if err := h.conn.flush(); err != nil {
		return err
	}
	reply, message, err := h.readHello()
	if err != nil {
		return err
	}
	if reply.retry() {
		return errors.New("retry")
	}
	h.conn.suite = h.suite(reply.suite)
	reply.selected -= max(own, 0) // finish knows of one identity
	return h.finish(reply, message)
}

// TestClientHellos gives the server ClientHellos that a client should not send, all with right binders.
func TestClientHellos(t *testing.T) {
	binder := func() []byte { return make([]byte, 32) }
	for _, test := range []struct {
		name   string
		mutate func(m *clientHello)
		raw    func(message []byte) []byte
		err    string // of the server; "" is success
		alert  Alert
	}{
		{name: "plain", mutate: func(*clientHello) {}},
		{name: "older versions too", mutate: func(m *clientHello) { m.versions = []uint16{tls12, 0x7f1c, tls13} }},
		{name: "TLS 1.2", mutate: func(m *clientHello) { m.versions = []uint16{tls12} }, err: "does not speak TLS 1.3", alert: ProtocolVersion},
		{name: "no versions", mutate: func(m *clientHello) { m.versions = nil }, err: "garbled", alert: DecodeError},
		{name: "unknown suites too", mutate: func(m *clientHello) { m.suites = []uint16{0x0a0a, 0x1304, chacha20.id} }},
		{name: "unknown suites", mutate: func(m *clientHello) { m.suites = []uint16{0x0a0a, 0x1304} }, err: "no cipher suite in common", alert: HandshakeFailure},
		{name: "suites of another hash", mutate: func(m *clientHello) { m.suites = []uint16{aes256.id} }, err: "has not the key", alert: DecryptError},
		{name: "no suites", mutate: func(m *clientHello) { m.suites = nil }, err: "garbled", alert: DecodeError},
		{name: "unknown modes too", mutate: func(m *clientHello) { m.modes = []mode{7, pskDHE} }},
		{name: "unknown modes", mutate: func(m *clientHello) { m.modes = []mode{7, 8} }, err: "no mode", alert: HandshakeFailure},
		{name: "no modes", mutate: func(m *clientHello) { m.modes = nil }, err: "garbled", alert: DecodeError},
		{name: "no identities", mutate: func(m *clientHello) { m.identities, m.binders = nil, nil }, err: "garbled", alert: DecodeError},
		{name: "empty identity", mutate: func(m *clientHello) { m.identities = []string{""} }, err: "garbled", alert: DecodeError},
		{name: "fewer binders", mutate: func(m *clientHello) { m.identities = []string{"alice", "bob"} }, err: "garbled", alert: DecodeError},
		{name: "short binder", mutate: func(m *clientHello) { m.binders[0] = make([]byte, 31) }, err: "garbled", alert: DecodeError},
		{name: "second identity", mutate: func(m *clientHello) {
			m.identities, m.binders = []string{"bob", "alice"}, [][]byte{binder(), binder()}
		}},
		{name: "unknown identities", mutate: func(m *clientHello) {
			m.identities, m.binders = []string{"bob", "eve"}, [][]byte{binder(), binder()}
		}, err: "has not the key", alert: DecryptError},
		{name: "no groups", mutate: func(m *clientHello) { m.hasGroups = false }, err: "without its groups", alert: MissingExtension},
		{name: "share of no group", mutate: func(m *clientHello) { m.groups = []groupID{secp256r1} }, err: "without offering", alert: IllegalParameter},
		{name: "share twice", mutate: func(m *clientHello) { m.shares = append(m.shares, m.shares[0]) }, err: "twice", alert: IllegalParameter},
		{name: "no exchange after all", mutate: func(m *clientHello) { m.hasShares = false; m.modes = []mode{pskDHE} }, err: "no group", alert: HandshakeFailure},
		{name: "share of zeroes", mutate: func(m *clientHello) { m.shares[0].data = make([]byte, 32) }, err: "no point", alert: IllegalParameter},
		{name: "short share", mutate: func(m *clientHello) { m.shares[0].data = make([]byte, 31) }, err: "no point", alert: IllegalParameter},
		{name: "empty share", mutate: func(m *clientHello) { m.shares[0].data = nil }, err: "garbled", alert: DecodeError},
		{name: "share off the curve", mutate: func(m *clientHello) {
			m.shares[0] = keyShare{secp256r1, append([]byte{4}, bytes.Repeat([]byte{1}, 64)...)}
		}, err: "no point", alert: IllegalParameter},
		{name: "cookie", mutate: func(m *clientHello) { m.cookie = []byte("which nobody gave") }},
		{name: "no session id", mutate: func(m *clientHello) { m.session = nil }},
		{name: "long session id", mutate: func(m *clientHello) { m.session = make([]byte, 33) }, err: "garbled", alert: DecodeError},
		{name: "two in a record", mutate: func(*clientHello) {}, raw: func(m []byte) []byte { return append(m, m...) }, err: "follows that of type 1", alert: UnexpectedMessage},
		{name: "another message", mutate: func(*clientHello) {}, raw: func(m []byte) []byte { m[0] = typeFinished; return m }, err: "in place of type 1", alert: UnexpectedMessage},
		{name: "endless", mutate: func(*clientHello) {}, raw: func(m []byte) []byte { m[1] = 1; return m }, err: "longer than", alert: IllegalParameter},
		{name: "compression", mutate: func(*clientHello) {}, raw: func(m []byte) []byte {
			m[4+2+32+1+32+2+2*2+1] = 1 // the method, behind version, random, session and two suites
			return m
		}, err: "compression", alert: IllegalParameter},
		{name: "behind pre_shared_key", mutate: func(*clientHello) {}, raw: func(m []byte) []byte {
			return extended(m, 0x0a, 0x0a, 0, 0)
		}, err: "not the last", alert: IllegalParameter},
		{name: "extension twice", mutate: func(m *clientHello) { m.serverName = "a" }, raw: func(m []byte) []byte {
			at := bytes.Index(m, []byte{0, extServerName, 0, 6, 0, 4, 0, 0, 1, 'a'}) // which is a list of groups as well
			m[at+1] = extSupportedGroups
			return m
		}, err: "there twice", alert: IllegalParameter},
	} {
		t.Run(test.name, func(t *testing.T) {
			cend, send := newLink()
			done := make(chan error)
			go func() {
				conn, _, err := Server(t.Context(), send, only("alice", Key{Secret: secret}))
				if err == nil {
					err = conn.Close()
				}
				send.Close()
				done <- err
			}()
			err := scriptedClient(t, cend, test.mutate, test.raw)
			cend.Close()
			expect(t, "server", <-done, test.err)
			if test.err == "" {
				expect(t, "client", err, "")
				return
			}
			var told *AlertError
			if !errors.As(err, &told) || told.Alert != test.alert || told.Err != nil {
				t.Errorf("client: %v, want %v", err, test.alert)
			}
		})
	}
}

// extended puts an extension behind those of a ClientHello.
func extended(m []byte, extension ...byte) []byte {
	at := 4 + 2 + 32 + 1 + 32
	at += 2 + int(m[at])<<8 + int(m[at+1]) + 2
	n := int(m[at])<<8 + int(m[at+1]) + len(extension)
	m[at], m[at+1] = byte(n>>8), byte(n)
	n = len(m) - 4 + len(extension)
	m[2], m[3] = byte(n>>8), byte(n)
	return append(m, extension...)
}

// TestSecondHellos gives the server that asks for P-256 second ClientHellos that do not fit.
func TestSecondHellos(t *testing.T) {
	for _, test := range []struct {
		name   string
		mutate func(h *clientHandshake)
		err    string
	}{
		{"plain", func(*clientHandshake) {}, ""},
		{"the first share again", func(h *clientHandshake) { h.hello.shares = h.hello.shares[:1] }, "has not the key share"},
		{"both shares", nil, "has not the key share"},
		{"another identity", func(h *clientHandshake) { h.hello.identities[0] = "alicf" }, "leaves out"},
		{"another suite", func(h *clientHandshake) { h.hello.suites = []uint16{chacha20.id} }, "leaves out"},
		{"no exchange", func(h *clientHandshake) { h.hello.modes = []mode{pskOnly} }, "has not the key share"},
		{"wrong binder", func(h *clientHandshake) { h.schedule.secret[0] ^= 1 }, "has not the key of"},
		{"changed transcript", func(h *clientHandshake) { h.schedule.add([]byte{0}) }, "has not the key of"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cend, send := newLink()
			done := make(chan error)
			go func() {
				conn, _, err := with(nil, onlyP256, nil).server(t.Context(), send, only("alice", Key{Secret: secret}))
				if err == nil {
					err = conn.Close()
				}
				send.Close()
				done <- err
			}()
			h := clientHandshake{config: defaults(), conn: newConn(cend), identity: "alice", key: Key{Secret: secret, Hash: aes128.hash}}
			h.conn.client, h.conn.compatible = true, true
			h.schedule = newSchedule(h.key.Hash, h.key.Secret)
			if err := errors.Join(h.makeHello(), h.sendHello()); err != nil {
				t.Fatal(err)
			}
			reply, message, err := h.readHello()
			if err != nil || !reply.retry() {
				t.Fatal(reply, err)
			}
			first := h.hello.shares[0]
			h.schedule.retry()
			h.schedule.add(message)
			p, _ := h.group(secp256r1)
			if err := h.share(p); err != nil {
				t.Fatal(err)
			}
			if test.mutate == nil {
				h.hello.shares = append(h.hello.shares, first)
			} else {
				if test.name == "the first share again" {
					h.hello.shares = []keyShare{first}
				}
				test.mutate(&h)
			}
			if err := h.sendHello(); err != nil {
				t.Fatal(err)
			}
			h.conn.suite = aes128
			if reply, message, err = h.readHello(); err == nil {
				err = h.finish(reply, message)
			}
			cend.Close()
			expect(t, "server", <-done, test.err)
			if (err == nil) != (test.err == "") {
				t.Errorf("client: %v", err)
			}
		})
	}
}

// scriptedServer is a server that has the key and answers as its fields say.
type scriptedServer struct {
	retries []func(m *serverHello) // HelloRetryRequests that it sends first
	hello   func(m *serverHello)
	tail    []byte // behind ServerHello in its record
	extra   []byte // extensions of EncryptedExtensions
	middle  []byte // between EncryptedExtensions and Finished
	spoil   byte   // changes Finished
	after   []byte // behind Finished in its record
}

func (s *scriptedServer) run(conn *Conn) error {
	conn.compatible = true
	conn.suite = aes128
	h := serverHandshake{config: defaults(), conn: conn, keys: only("alice", Key{Secret: secret})}
	read := func() error {
		message, err := conn.readLast(typeClientHello)
		if err != nil {
			return err
		}
		if h.hello, err = parseClientHello(message); err != nil {
			return err
		}
		if h.schedule == nil {
			h.schedule = newSchedule(aes128.hash, secret)
		}
		h.schedule.add(message)
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	for _, change := range s.retries {
		m := &serverHello{random: retryRandom[:], session: h.hello.session, suite: aes128.id, version: tls13, share: &keyShare{group: secp256r1}, selected: -1}
		change(m)
		message := m.marshal()
		h.schedule.retry()
		h.schedule.add(message)
		if err := errors.Join(h.sendHello(message), conn.flush()); err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
	}
	m := &serverHello{random: make([]byte, 32), session: h.hello.session, suite: aes128.id, version: tls13}
	share := h.hello.shares[0]
	g, _ := h.config.group(share.group)
	private, err := g.curve.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	shared, err := exchange(private, share.data)
	if err != nil {
		return err
	}
	m.share = &keyShare{share.group, private.PublicKey().Bytes()}
	if s.hello != nil {
		s.hello(m)
	}
	message := m.marshal()
	h.schedule.add(message)
	if err := h.sendHello(append(slices.Clip(message), s.tail...)); err != nil {
		return err
	}
	h.schedule.advance(shared)
	secret := h.schedule.traffic(serverHandshakeTraffic)
	conn.out.use(aes128, secret)
	extensions := append([]byte{typeEncryptedExtensions, 0, 0, byte(2 + len(s.extra)), 0, byte(len(s.extra))}, s.extra...)
	h.schedule.add(extensions, s.middle)
	proof := finished(h.schedule, secret)
	proof[4] ^= s.spoil
	if err := conn.queue(recordHandshake, slices.Concat(extensions, s.middle, proof, s.after)...); err != nil {
		return err
	}
	if err := conn.flush(); err != nil {
		return err
	}
	_, err = conn.in.conn.Read(make([]byte, 1000))
	return err
}

// TestServerAnswers gives the client answers that a server should not send, though it has the key.
func TestServerAnswers(t *testing.T) {
	same := func(*serverHello) {}
	for _, test := range []struct {
		name   string
		server scriptedServer
		config *config
		err    string
	}{
		{name: "plain"},
		{name: "retry", server: scriptedServer{retries: []func(*serverHello){same}}},
		{name: "retry with a cookie alone", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.share, m.cookie = nil, []byte("c") }}}},
		{name: "retry with a long cookie", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.cookie = make([]byte, maxCookie) }}}},
		{name: "retry with an endless cookie", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.cookie = make([]byte, 65400) }}}, err: "a cookie of 65400 bytes"},
		{name: "retry twice", server: scriptedServer{retries: []func(*serverHello){same, same}}, err: "twice"},
		{name: "retry for nothing", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.share = nil }}}, err: "without a change"},
		{name: "retry for the group sent", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.share.group = x25519 }}}, err: "has been sent"},
		{name: "retry for another group", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.share.group = 24 }}}, err: "not offered"},
		{name: "retry with another suite", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.suite = chacha20.id }}}, err: "changes the suite"},
		{name: "retry with another session", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.session = nil }}}, err: "another session"},
		{name: "retry with a key", server: scriptedServer{retries: []func(*serverHello){func(m *serverHello) { m.selected = 0 }}}, err: "which is not for it"},
		{name: "another session", server: scriptedServer{hello: func(m *serverHello) { m.session = make([]byte, 32) }}, err: "another session"},
		{name: "suite not offered", server: scriptedServer{hello: func(m *serverHello) { m.suite = aes256.id }}, err: "not offered"},
		{name: "unknown suite", server: scriptedServer{hello: func(m *serverHello) { m.suite = 0x1304 }}, err: "not offered"},
		{name: "TLS 1.2", server: scriptedServer{hello: func(m *serverHello) { m.version = tls12 }}, err: "does not speak TLS 1.3"},
		{name: "no key", server: scriptedServer{hello: func(m *serverHello) { m.selected = -1 }}, err: "does not take the pre-shared key"},
		{name: "another identity", server: scriptedServer{hello: func(m *serverHello) { m.selected = 1 }}, err: "identity 1 of one"},
		{name: "no share", server: scriptedServer{hello: func(m *serverHello) { m.share = nil }}, config: with(nil, nil, []mode{pskDHE}), err: "no key share"},
		{name: "share of another group", server: scriptedServer{hello: func(m *serverHello) { m.share.group = secp256r1 }}, err: "not asked for"},
		{name: "share of zeroes", server: scriptedServer{hello: func(m *serverHello) { m.share.data = make([]byte, 32) }}, err: "no point"},
		{name: "cookie in ServerHello", server: scriptedServer{hello: func(m *serverHello) { m.cookie = []byte("c") }}, err: "which is not for it"},
		{name: "message behind ServerHello", server: scriptedServer{tail: []byte{typeEncryptedExtensions, 0, 0, 2, 0, 0}}, err: "under the old keys"},
		{name: "allowed extension", server: scriptedServer{extra: []byte{0, extSupportedGroups, 0, 4, 0, 2, 0, 29}}},
		{name: "extension not asked for", server: scriptedServer{extra: []byte{0, 16, 0, 0}}, err: "was not asked for"},
		{name: "name acknowledged that was not sent", server: scriptedServer{extra: []byte{0, extServerName, 0, 0}}, err: "was not asked for"},
		{name: "certificate wanted", server: scriptedServer{middle: []byte{13, 0, 0, 3, 0, 0, 0}}, err: "type 13 comes in place of type 20"},
		{name: "certificate", server: scriptedServer{middle: []byte{11, 0, 0, 4, 0, 0, 0, 0}}, err: "type 11 comes in place of type 20"},
		{name: "wrong Finished", server: scriptedServer{spoil: 1}, err: "Finished does not fit"},
		{name: "message behind Finished", server: scriptedServer{after: ticket}, err: "under the old keys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cend, send := newLink()
			done := make(chan error)
			go func() {
				done <- test.server.run(newConn(send))
				send.Close()
			}()
			if test.config == nil {
				test.config = defaults()
			}
			_, err := test.config.client(t.Context(), cend, "alice", Key{Secret: secret}, "127.0.0.1")
			cend.Close()
			expect(t, "client", err, test.err)
			if err := <-done; test.err == "" && err != nil && err != io.EOF {
				t.Errorf("server: %v", err)
			}
		})
	}
}

// TestBeforeHello gives the server what is no ClientHello.
func TestBeforeHello(t *testing.T) {
	var flood []byte
	for range maxIdle + 1 {
		flood = append(flood, plain(recordAlert, 1, 90)...)
	}
	for _, test := range []struct {
		name string
		sent []byte
		err  string
	}{
		{"nothing", nil, "unexpected EOF"},
		{"NBD", []byte("IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x00"), "not TLS"},
		{"half a record", plain(recordHandshake, typeClientHello, 0, 0)[:6], "unexpected EOF"},
		{"half a message", plain(recordHandshake, typeClientHello, 0, 0, 100), "unexpected EOF"},
		{"change_cipher_spec", plain(recordChangeCipherSpec, 1), "type 20 is not expected"},
		{"data", plain(recordApplicationData, 1), "type 23 is not expected"},
		{"alert", plain(recordAlert, 2, 80), "the peer ends the connection: internal_error"},
		{"close_notify", plain(recordAlert, 1, 0), "the peer ends the connection: close_notify"},
		{"alerts without meaning", flood, "mean nothing"},
		{"empty record", plain(recordHandshake), "is empty"},
		{"long record", []byte{recordHandshake, 3, 1, 0x40, 1}, "longer than 16384"},
		{"interrupted message", append(plain(recordHandshake, typeClientHello, 0), plain(recordAlert, 1, 90)...), "cut short"},
		{"empty ClientHello", plain(recordHandshake, typeClientHello, 0, 0, 0), "garbled"},
		{"SSL 2", []byte{0x80, 0x2e, 1, 3, 1, 0, 0x15}, "not TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cend, send := newLink()
			send.put(test.sent)
			cend.Close()
			_, _, err := Server(t.Context(), send, only("alice", Key{Secret: secret}))
			expect(t, "server", err, test.err)
			_, err = Client(t.Context(), send, "alice", Key{Secret: secret}, "")
			if err == nil {
				t.Error("the client is content")
			}
		})
	}
}

func TestHostName(t *testing.T) {
	for host, want := range map[string]string{
		"localhost": "localhost", "disks.example.": "disks.example", "127.0.0.1": "", "::1": "", "fe80::1%eth0": "", "[::1]": "", "": "",
		"/run/socket": "", "a b": "", "b\u00fccher.example": "", strings.Repeat("a", 256): "",
	} {
		if got := hostName(host); got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
	}
}
