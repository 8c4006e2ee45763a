package psk

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"testing"
)

// feed returns an end of a connection whose peer sends data and is gone.
func feed(data []byte) *end {
	a, _ := newLink()
	a.put(data)
	a.cutWhenEmpty()
	return a
}

// FuzzServer has a client send anything. Nothing that was recorded or made up without the key gets through.
func FuzzServer(f *testing.F) {
	for _, s := range scenarios() {
		f.Add(streams(f, s)[1])
	}
	for _, hello := range []string{resumedHello, retriedHello1} {
		f.Add(plain(recordHandshake, unhex(f, hello)...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := Server(context.Background(), feed(data), only("alice", Key{Secret: secret})); err == nil {
			t.Fatal("the server is content")
		}
	})
}

// FuzzClient has a server send anything.
func FuzzClient(f *testing.F) {
	for _, s := range scenarios() {
		f.Add(streams(f, s)[0])
	}
	for _, hello := range []string{resumedServerHello, retryRequest} {
		f.Add(plain(recordHandshake, unhex(f, hello)...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Client(context.Background(), feed(data), "alice", Key{Secret: secret}, "localhost"); err == nil {
			t.Fatal("the client is content")
		}
	})
}

// FuzzHello parses messages, and again what it makes of them.
func FuzzHello(f *testing.F) {
	for _, hello := range []string{resumedHello, resumedServerHello, retriedHello1, retryRequest} {
		f.Add(unhex(f, hello))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 4 || len(data) > maxMessage {
			return
		}
		if m, err := parseClientHello(data); err == nil && len(m.modes) > 0 && len(m.identities) > 0 {
			m.serverName = ""
			message := m.marshal()
			again, err := parseClientHello(message)
			if err != nil {
				t.Fatalf("%v: %x", err, message)
			}
			if !reflect.DeepEqual(m, again) {
				t.Fatalf("%+v is read again as %+v", m, again)
			}
		}
		if m, err := parseServerHello(data); err == nil {
			message := m.marshal()
			again, err := parseServerHello(message)
			if err != nil {
				t.Fatalf("%v: %x", err, message)
			}
			if !reflect.DeepEqual(m, again) {
				t.Fatalf("%+v is read again as %+v", m, again)
			}
		}
	})
}

// FuzzRecords has a peer that has the keys send anything: pieces of data are records, the first byte of a piece is their type, the second their length.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x17\x05hello\x15\x02\x01\x00"), true)
	f.Add([]byte("\x16\x07\x04\x00\x00\x03\x01\x02\x03\x17\x00\x17\x01a"), true)
	f.Add([]byte("\x16\x03\x18\x00\x00\x16\x02\x01\x01\x17\x01a"), false)
	f.Fuzz(func(t *testing.T, data []byte, client bool) {
		traffic := make([]byte, 32)
		var out protection
		out.use(aes128, traffic)
		var stream, sent []byte
		for len(data) >= 2 {
			typ, n := max(data[0], 1), min(int(data[1]), len(data)-2) // 0 would be padding
			piece := data[2 : 2+n]
			data = data[2+n:]
			stream, _ = out.seal(stream, typ, piece...)
			if typ == recordApplicationData {
				sent = append(sent, piece...)
			}
			if typ == recordHandshake && bytes.HasSuffix(piece, []byte{typeKeyUpdate, 0, 0, 1, 0}) {
				out.update()
			}
		}
		conn := newConn(feed(stream))
		conn.suite, conn.client, conn.in.done = aes128, client, true
		conn.in.use(aes128, traffic)
		conn.out.use(aes128, traffic)
		got, _ := io.ReadAll(conn)
		if !bytes.HasPrefix(sent, got) {
			t.Fatalf("%q is read of %q", got, sent)
		}
	})
}
