package psk

import (
	"crypto"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
)

// attempt runs a handshake and a byte of data in both directions, with both ends changing what they receive, and reports which sides were content with all.
func attempt(t testing.TB, cc, sc *config, clientKey Key, keys Lookup, change [2]func([]byte, int) []byte) (client, server error) {
	t.Helper()
	cend, send := newLink()
	cend.change, send.change = change[0], change[1]
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer send.Close()
		var conn *Conn
		if conn, _, server = sc.server(t.Context(), send, keys); server == nil {
			server = swap(conn)
		}
	}()
	conn, client := cc.client(t.Context(), cend, "alice", clientKey, "localhost")
	if client == nil {
		client = swap(conn)
	}
	cend.Close()
	<-done
	return client, server
}

// swapLen is the length of the record that swap sends.
const swapLen = headerLen + 1 + 1 + tagLen

// swap sends a byte and receives one.
func swap(conn *Conn) error {
	if _, err := conn.Write([]byte{'x'}); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if b[0] != 'x' {
		return errors.New("the byte is another")
	}
	return nil
}

// scenarios are pairs of configurations that together use every handshake message.
func scenarios() map[string][2]*config {
	return map[string][2]*config{
		"exchange": {defaults(), defaults()},
		"retry":    {defaults(), with(nil, onlyP256, nil)},
		"only key": {with(nil, nil, []mode{pskOnly}), defaults()},
	}
}

// streams returns what each end receives in a scenario: the client, the server.
func streams(t testing.TB, s [2]*config) (seen [2][]byte) {
	t.Helper()
	record := func(side int) func([]byte, int) []byte {
		return func(data []byte, _ int) []byte {
			seen[side] = append(seen[side], data...)
			return data
		}
	}
	key := Key{Secret: secret}
	client, server := attempt(t, s[0], s[1], key, only("alice", key), [2]func([]byte, int) []byte{record(0), record(1)})
	if client != nil || server != nil {
		t.Fatalf("client: %v, server: %v", client, server)
	}
	return seen
}

// ignored returns the positions in a stream that mean nothing: the lower byte of the version of records that are not encrypted (section 5.1).
func ignored(stream []byte) []int {
	var at []int
	for i := 0; i+headerLen <= len(stream); i += headerLen + int(stream[i+3])<<8 + int(stream[i+4]) {
		if stream[i] != recordApplicationData {
			at = append(at, i+2)
		}
	}
	return at
}

// TestTampered changes one bit of every byte that is exchanged, all bits under IMGTOOL_SOAK: who receives it must not be content, and in
// the handshake neither side.
func TestTampered(t *testing.T) {
	key := Key{Secret: secret}
	for name, s := range scenarios() {
		t.Run(name, func(t *testing.T) {
			for side, stream := range streams(t, s) {
				skip := ignored(stream)
				for at := range stream {
					if slices.Contains(skip, at) {
						continue
					}
					masks := []byte{1 << (at % 8)}
					if os.Getenv("IMGTOOL_SOAK") != "" {
						masks = []byte{1, 2, 4, 8, 16, 32, 64, 128, 255}
					}
					for _, mask := range masks {
						var change [2]func([]byte, int) []byte
						change[side] = func(data []byte, from int) []byte {
							if i := at - from; i >= 0 && i < len(data) {
								data[i] ^= mask
							}
							return data
						}
						var errs [2]error
						errs[0], errs[1] = attempt(t, s[0], s[1], key, only("alice", key), change)
						if errs[side] == nil || errs[1-side] == nil && at < len(stream)-swapLen {
							t.Errorf("byte %d of %d to side %d xor %#x: client: %v, server: %v", at, len(stream), side, mask, errs[0], errs[1])
						}
					}
				}
			}
		})
	}
}

// TestTruncated ends each stream after every byte.
func TestTruncated(t *testing.T) {
	key := Key{Secret: secret}
	for name, s := range scenarios() {
		t.Run(name, func(t *testing.T) {
			for side, stream := range streams(t, s) {
				for at := range stream {
					var change [2]func([]byte, int) []byte
					change[side] = func(data []byte, from int) []byte { return data[:min(len(data), max(0, at-from))] }
					var errs [2]error
					errs[0], errs[1] = attempt(t, s[0], s[1], key, only("alice", key), change)
					if !errors.Is(errs[side], io.ErrUnexpectedEOF) {
						t.Errorf("side %d after %d of %d bytes: %v", side, at, len(stream), errs[side])
					}
				}
			}
		})
	}
}

// TestWrongKey has clients without the right key. The server's answer is the same for those whose identity it knows and for those whose it does not.
func TestWrongKey(t *testing.T) {
	right, wrong := Key{Secret: secret}, Key{Secret: []byte("another secret, which alice has not")}
	bound := key384
	for name, s := range scenarios() {
		for _, test := range []struct {
			name string
			key  Key
			keys Lookup
		}{
			{"wrong key", wrong, only("alice", right)},
			{"wrong identity", right, only("bob", right)},
			{"nobody", right, func(string) (Key, bool) { return Key{}, false }},
			{"client's bound to SHA-384", bound, only("alice", right)},
			{"server's bound to SHA-384", right, only("alice", bound)},
			{"longer by a zero", Key{Secret: append(slices.Clone(secret), 0)}, only("alice", right)}, // it is no key of HMAC, which would be padded
		} {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				client, server := attempt(t, s[0], s[1], test.key, test.keys, [2]func([]byte, int) []byte{})
				var told *AlertError
				if !errors.As(client, &told) || told.Alert != DecryptError || told.Err != nil {
					t.Errorf("client: %v", client)
				}
				expect(t, "server", server, "tls: handshake: the client has not the key of the identity it names, or the identity is unknown")
			})
		}
	}
}

// TestBadKeys has keys that are refused before anything is sent.
func TestBadKeys(t *testing.T) {
	for _, test := range []struct {
		identity string
		key      Key
		err      string
	}{
		{"alice", Key{}, "is empty"},
		{"alice", Key{Secret: secret, Hash: crypto.SHA1}, "SHA-256 or SHA-384"},
		{"", Key{Secret: secret}, "between 1 and"},
		{string(make([]byte, maxIdentity+1)), Key{Secret: secret}, "between 1 and"},
	} {
		a, b := newLink()
		_, err := Client(t.Context(), a, test.identity, test.key, "")
		expect(t, "client", err, test.err)
		if sent := b.take(); len(sent) > 0 {
			t.Errorf("%s: %d bytes are sent", test.err, len(sent))
		}
	}
	key := Key{Secret: secret}
	client, server := attempt(t, defaults(), defaults(), key, only("alice", Key{}), [2]func([]byte, int) []byte{})
	expect(t, "client", client, "internal_error")
	expect(t, "server", server, "is empty")
}
