package psk

import (
	"bytes"
	"crypto/cipher"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// raw makes records of a connection's side as they go over the wire, whatever they hold.
func (c *Conn) raw(t *testing.T, typ byte, data ...byte) []byte {
	t.Helper()
	record, err := c.out.seal(nil, typ, data...)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// plain makes a record that is not encrypted.
func plain(typ byte, data ...byte) []byte {
	var p protection
	record, _ := p.seal(nil, typ, data...)
	return record
}

// repeat returns n records of one kind.
func repeat(t *testing.T, c *Conn, n int, typ byte, data ...byte) []byte {
	t.Helper()
	var all []byte
	for range n {
		all = append(all, c.raw(t, typ, data...)...)
	}
	return all
}

// updated is a KeyUpdate, after which the next record comes under new keys.
func updated(t *testing.T, c *Conn, ask byte) []byte {
	t.Helper()
	record := c.raw(t, recordHandshake, typeKeyUpdate, 0, 0, 1, ask)
	c.out.update()
	return record
}

// ticket is a NewSessionTicket.
var ticket = []byte{typeNewSessionTicket, 0, 0, 3, 1, 2, 3}

// TestRecords sends what a hostile or odd peer may send after the handshake.
func TestRecords(t *testing.T) {
	data := func(t *testing.T, c *Conn, text string) []byte {
		return c.raw(t, recordApplicationData, []byte(text)...)
	}
	for _, test := range []struct {
		name   string
		send   func(t *testing.T, c *Conn) []byte
		read   string
		err    string // "" is io.EOF
		alert  Alert  // that the peer gets; 0 is none
		server bool   // the server is the one that sends
	}{
		{name: "data and close_notify", read: "ab", send: func(t *testing.T, c *Conn) []byte {
			return append(append(data(t, c, "a"), data(t, c, "b")...), c.raw(t, recordAlert, 1, 0)...)
		}},
		{name: "cut", read: "a", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte { return data(t, c, "a") }},
		{name: "cut in a header", read: "a", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			return append(data(t, c, "a"), data(t, c, "b")[:3]...)
		}},
		{name: "cut in a record", read: "a", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			return append(data(t, c, "a"), data(t, c, "b")[:10]...)
		}},
		{name: "replayed", read: "a", err: "cannot be decrypted", alert: BadRecordMAC, send: func(t *testing.T, c *Conn) []byte {
			a := data(t, c, "a")
			return append(bytes.Clone(a), a...)
		}},
		{name: "reordered", err: "cannot be decrypted", alert: BadRecordMAC, send: func(t *testing.T, c *Conn) []byte {
			a, b := data(t, c, "a"), data(t, c, "b")
			return append(b, a...)
		}},
		{name: "one left out", read: "a", err: "cannot be decrypted", alert: BadRecordMAC, send: func(t *testing.T, c *Conn) []byte {
			a, _, b := data(t, c, "a"), data(t, c, "x"), data(t, c, "b")
			return append(a, b...)
		}},
		{name: "longest record", read: strings.Repeat("z", maxPlaintext), err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			return data(t, c, strings.Repeat("z", maxPlaintext))
		}},
		{name: "too much data", err: "more than 16384", alert: RecordOverflow, send: func(t *testing.T, c *Conn) []byte {
			return data(t, c, strings.Repeat("z", maxPlaintext+1))
		}},
		{name: "oversize", err: "longer than 16640", alert: RecordOverflow, send: func(*testing.T, *Conn) []byte {
			return []byte{recordApplicationData, 3, 3, maxCiphertext >> 8, maxCiphertext&0xff + 1}
		}},
		{name: "short", err: "too short", alert: DecodeError, send: func(*testing.T, *Conn) []byte {
			return append([]byte{recordApplicationData, 3, 3, 0, tagLen}, make([]byte, tagLen)...)
		}},
		{name: "padding", read: "ab", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			// What follows the data is its type and zeroes, and then the type that seal adds must not count: it is zero as well.
			return append(c.raw(t, 0, append([]byte("a"), recordApplicationData, 0, 0, 0)...), data(t, c, "b")...)
		}},
		{name: "padding alone", err: "padding alone", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, 0, make([]byte, 100)...) }},
		{name: "change_cipher_spec inside", err: "type 20 inside", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return c.raw(t, 0, 1, recordChangeCipherSpec)
		}},
		{name: "unknown type inside", err: "type 99 inside", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, 99, 1) }},
		{name: "change_cipher_spec", err: "type 20 is not expected", alert: UnexpectedMessage, send: func(*testing.T, *Conn) []byte { return plain(recordChangeCipherSpec, 1) }},
		{name: "plain data", err: "cannot be decrypted", alert: BadRecordMAC, send: func(*testing.T, *Conn) []byte {
			return plain(recordApplicationData, []byte("this is not encrypted at all")...)
		}},
		{name: "plain alert", err: "type 21 is not expected", alert: UnexpectedMessage, send: func(*testing.T, *Conn) []byte { return plain(recordAlert, 1, 0) }},
		{name: "plain handshake", err: "type 22 is not expected", alert: UnexpectedMessage, send: func(*testing.T, *Conn) []byte { return plain(recordHandshake, ticket...) }},
		{name: "not TLS", err: "not TLS", alert: UnexpectedMessage, send: func(*testing.T, *Conn) []byte { return []byte("NBDMAGICIHAVEOPT") }},
		{name: "few empty records", read: "ab", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			return append(append(data(t, c, "a"), repeat(t, c, maxIdle, recordApplicationData)...), data(t, c, "b")...)
		}},
		{name: "endless empty records", read: "a", err: "bring no data", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return append(append(data(t, c, "a"), repeat(t, c, maxIdle+1, recordApplicationData)...), data(t, c, "b")...)
		}},
		{name: "empty alert", err: "is empty", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordAlert) }},
		{name: "empty handshake", err: "is empty", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake) }},
		{name: "fatal alert", err: "the peer ends the connection: internal_error", send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordAlert, 2, 80) }},
		{name: "unknown alert called a warning", err: "the peer ends the connection: alert 200", send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordAlert, 1, 200) }},
		{name: "user_canceled", read: "a", send: func(t *testing.T, c *Conn) []byte {
			return append(append(c.raw(t, recordAlert, 1, 90), data(t, c, "a")...), c.raw(t, recordAlert, 1, 0)...)
		}},
		{name: "endless user_canceled", err: "bring no data", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return repeat(t, c, maxIdle+1, recordAlert, 1, 90) }},
		{name: "half an alert", err: "an alert of 1 bytes", alert: DecodeError, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordAlert, 1) }},
		{name: "two alerts", err: "an alert of 4 bytes", alert: DecodeError, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordAlert, 1, 0, 1, 0) }},
		{name: "new keys", read: strings.Repeat("x", 100), err: "unexpected EOF", send: func(t *testing.T, c *Conn) (all []byte) {
			for i := range 100 {
				all = append(append(all, updated(t, c, byte(i%2))...), data(t, c, "x")...)
			}
			return all
		}},
		{name: "flood of new keys", err: "bring no data", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) (all []byte) {
			for range maxIdle + 1 {
				all = append(all, updated(t, c, 1)...)
			}
			return all
		}},
		{name: "new keys announced, old ones used", err: "cannot be decrypted", alert: BadRecordMAC, send: func(t *testing.T, c *Conn) []byte {
			return append(c.raw(t, recordHandshake, typeKeyUpdate, 0, 0, 1, 0), data(t, c, "x")...)
		}},
		{name: "garbled KeyUpdate", err: "garbled", alert: DecodeError, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake, typeKeyUpdate, 0, 0, 2, 0, 0) }},
		{name: "KeyUpdate of 2", err: "asks for 2", alert: IllegalParameter, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake, typeKeyUpdate, 0, 0, 1, 2) }},
		{name: "message behind KeyUpdate", err: "follows KeyUpdate", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return c.raw(t, recordHandshake, append([]byte{typeKeyUpdate, 0, 0, 1, 0}, ticket...)...)
		}},
		{name: "KeyUpdate in pieces", read: "x", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			all := append(c.raw(t, recordHandshake, typeKeyUpdate, 0, 0), c.raw(t, recordHandshake, 1, 0)...)
			c.out.update()
			return append(all, data(t, c, "x")...)
		}},
		{name: "data within a message", err: "cut short", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return append(c.raw(t, recordHandshake, typeKeyUpdate, 0, 0), data(t, c, "x")...)
		}},
		{name: "endless message", err: "longer than 65536", alert: IllegalParameter, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake, typeKeyUpdate, 255, 255, 255, 0) }},
		{name: "ticket to a server", err: "type 4 comes after", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake, ticket...) }},
		{name: "tickets to a client", server: true, read: "ab", err: "unexpected EOF", send: func(t *testing.T, c *Conn) []byte {
			all := append(c.raw(t, recordHandshake, append(ticket, ticket...)...), data(t, c, "a")...)
			return append(append(all, c.raw(t, recordHandshake, ticket...)...), data(t, c, "b")...)
		}},
		{name: "flood of tickets", server: true, err: "bring no data", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return c.raw(t, recordHandshake, bytes.Repeat(ticket, 1000)...)
		}},
		{name: "another ClientHello", err: "type 1 comes after", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte { return c.raw(t, recordHandshake, unhex(t, retriedHello1)...) }},
		{name: "certificate wanted", server: true, err: "type 13 comes after", alert: UnexpectedMessage, send: func(t *testing.T, c *Conn) []byte {
			return c.raw(t, recordHandshake, 13, 0, 0, 3, 0, 0, 0)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			from, to, fromEnd, toEnd := linked(t)
			if test.server {
				from, to, fromEnd, toEnd = to, from, toEnd, fromEnd
			}
			toEnd.put(test.send(t, from))
			toEnd.cutWhenEmpty()
			got, err := io.ReadAll(to)
			if string(got) != test.read {
				t.Errorf("%.40q is read, want %.40q", got, test.read)
			}
			expect(t, "reader", err, test.err)
			if test.err == "unexpected EOF" && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the error is %v", err)
			}
			if n, again := to.Read(make([]byte, 10)); n != 0 || err != nil && again != err || err == nil && again != io.EOF {
				t.Errorf("another Read: %d, %v after %v", n, again, err)
			}
			if test.alert == 0 {
				if answer := fromEnd.take(); len(answer) > 0 {
					t.Errorf("%d bytes are sent back", len(answer))
				}
				return
			}
			var told *AlertError
			if _, err := from.Read(make([]byte, 1)); !errors.As(err, &told) || told.Alert != test.alert || told.Err != nil {
				t.Errorf("the peer is told: %v, want %v", err, test.alert)
			}
		})
	}
}

// TestNothingAfterAlert has a connection fail in one direction: it is over in the other as well.
func TestNothingAfterAlert(t *testing.T) {
	client, server, _, serverEnd := linked(t)
	serverEnd.put(repeat(t, client, maxIdle+1, recordApplicationData))
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Fatal("the flood is taken")
	}
	if _, err := server.Write([]byte("x")); err == nil {
		t.Error("data is sent after a fatal alert")
	}
}

// TestAnswers counts what a peer that asks for new keys gets: one answer before the next data, however often it asks.
func TestAnswers(t *testing.T) {
	client, server, clientEnd, serverEnd := linked(t)
	for range 3 {
		for range 5 {
			serverEnd.put(updated(t, client, 1))
		}
		serverEnd.put(client.raw(t, recordApplicationData, 'x'))
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if sent := len(clientEnd.take()); sent != 0 {
			t.Errorf("%d bytes are sent before there is data", sent)
		}
		if _, err := server.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		sent := clientEnd.take()
		if want := headerLen + 5 + 1 + tagLen + swapLen; len(sent) != want {
			t.Errorf("%d bytes are sent, want %d", len(sent), want)
		}
		clientEnd.put(sent)
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSequenceEnds has both directions arrive at the last sequence number.
func TestSequenceEnds(t *testing.T) {
	client, server, _, serverEnd := linked(t)
	client.out.seq, server.in.seq = math.MaxUint64-1, math.MaxUint64-1
	client.out.suite = chacha20 // whose keys are not replaced before
	slow := *client.suite
	slow.limit = math.MaxUint64
	client.suite = &slow
	if _, err := client.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("b")); !errors.Is(err, errSequence) {
		t.Errorf("Write after the last number: %v", err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	serverEnd.put(bytes.Repeat([]byte{recordApplicationData, 3, 3, 0, 20}, 5)[:25])
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, errSequence) {
		t.Errorf("Read after the last number: %v", err)
	}
}

// TestReadKeepsToItsBuffer has Read decrypt into a buffer with more room behind it than it may use.
func TestReadKeepsToItsBuffer(t *testing.T) {
	client, server, _, _ := linked(t)
	message := bytes.Repeat([]byte("m"), 1000)
	for _, n := range []int{1, 10, 999, 1000, 1001, 1002, 1500} {
		if _, err := client.Write(message); err != nil {
			t.Fatal(err)
		}
		buf := bytes.Repeat([]byte("#"), 4000)
		got := 0
		for got < len(message) {
			m, err := server.Read(buf[got:min(got+n, len(message)+2)])
			if err != nil {
				t.Fatal(err)
			}
			got += m
		}
		if !bytes.Equal(buf[:got], message) || strings.Trim(string(buf[max(got, n):]), "#") != "" {
			t.Errorf("reads of %d bytes write outside", n)
		}
	}
}

// TestWaitingKeepsNoOutput counts what a connection holds that has sent much and waits: servers have thousands of them.
func TestWaitingKeepsNoOutput(t *testing.T) {
	client, server := pair(t)
	exchangeData(t, client, server)
	exchangeData(t, server, client)
	for _, c := range []*Conn{client, server} {
		if cap(c.sent) > 0 {
			t.Errorf("%d bytes are kept to send with", cap(c.sent))
		}
	}
}

// greedy is a cipher that uses all of the room that Open is given, as cipher.AEAD allows it.
type greedy struct{ cipher.AEAD }

func (g greedy) Open(dst, nonce, sealed, header []byte) ([]byte, error) {
	data, err := g.AEAD.Open(nil, nonce, sealed, header)
	room := dst[:cap(dst)]
	for i := range room[len(dst):] {
		room[len(dst)+i] = 'x'
	}
	return append(dst, data...), err
}

// TestRoomOfCipher has a greedy cipher leave alone what lies behind a buffer, and behind a record.
func TestRoomOfCipher(t *testing.T) {
	for _, n := range []int{1, 100, 101} { // into the connection's buffer, and into the reader's own
		client, server, _, _ := linked(t)
		server.in.aead = greedy{server.in.aead}
		for range 3 {
			if _, err := client.Write(bytes.Repeat([]byte("m"), 100)); err != nil {
				t.Fatal(err)
			}
		}
		buf := bytes.Repeat([]byte("#"), 400)
		for got := 0; got < 300; {
			m, err := server.Read(buf[got:min(got+n, 300)])
			if err != nil {
				t.Fatal(err)
			}
			got += m
		}
		if string(buf) != strings.Repeat("m", 300)+strings.Repeat("#", 100) {
			t.Errorf("after reads of %d bytes: %q", n, buf)
		}
	}
}

// TestSeveralRecords has one Read return what several records brought.
func TestSeveralRecords(t *testing.T) {
	client, server, _, _ := linked(t)
	for _, text := range []string{"ab", "", "c", strings.Repeat("d", 2*maxPlaintext)} {
		if n, err := client.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := client.Write([]byte("e")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100<<10)
	if n, err := server.Read(buf); string(buf[:n]) != "abc" || err != nil { // the record behind them has come in part
		t.Errorf("the first Read returns %d bytes, %v", n, err)
	}
	n, err := io.ReadFull(server, buf[3:4+2*maxPlaintext])
	n += 3
	if want := "abc" + strings.Repeat("d", 2*maxPlaintext) + "e"; string(buf[:n]) != want || err != nil {
		t.Errorf("%d bytes are read, %v", n, err)
	}
}

// TestConcurrent has two goroutines write and two read, in both directions, while keys are replaced.
func TestConcurrent(t *testing.T) {
	cconn, sconn := dial(t)
	key := Key{Secret: secret}
	client, server, cerr, serr := meet(t, with(hasty(aes128), nil, nil), with(hasty(aes128), nil, nil), key, only("alice", key), cconn, sconn)
	if cerr != nil || serr != nil {
		t.Fatal(cerr, serr)
	}
	const writers, rounds, size = 2, 30, 20_000
	var wg sync.WaitGroup
	for _, c := range []*Conn{client, server} {
		var got sync.WaitGroup
		var mu sync.Mutex
		left := writers * rounds * size
		for range 2 {
			wg.Add(1)
			got.Go(func() {
				defer wg.Done()
				buf := make([]byte, 3000)
				for {
					mu.Lock()
					n := min(left, len(buf))
					left -= n
					mu.Unlock()
					if n == 0 {
						return
					}
					if _, err := io.ReadFull(c, buf[:n]); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range writers {
			wg.Go(func() {
				for range rounds {
					if _, err := c.Write(make([]byte, size)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

// TestDeadlines repeats a Read that ran into its deadline in the middle of a record, and does not repeat a Write.
func TestDeadlines(t *testing.T) {
	client, server := pair(t)
	record := client.raw(t, recordApplicationData, []byte("hello")...)
	if _, err := client.conn.Write(record[:10]); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	buf := make([]byte, 10)
	if _, err := server.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read of half a record: %v", err)
	}
	server.SetReadDeadline(time.Time{})
	if _, err := client.conn.Write(record[10:]); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(buf); string(buf[:n]) != "hello" || err != nil {
		t.Errorf("Read again: %q, %v", buf[:n], err)
	}
	client.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := client.Write(make([]byte, 64<<20)) // more than sockets hold
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Write to a peer that does not read: %v", err)
	}
	client.SetWriteDeadline(time.Time{})
	if _, again := client.Write([]byte("x")); again != err {
		t.Errorf("another Write: %v", again)
	}
}

// TestClose ends calls that wait, and returns although the peer does not read.
func TestClose(t *testing.T) {
	client, server := pair(t)
	errs := make(chan error)
	go func() {
		_, err := client.Write(make([]byte, 64<<20))
		errs <- err
	}()
	go func() {
		_, err := client.Read(make([]byte, 1))
		errs <- err
	}()
	if _, err := server.Read(make([]byte, 1)); err != nil { // Write is under way
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; err == nil {
			t.Error("a call that waited ends without an error")
		}
	}
	if err := client.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("another Close: %v", err)
	}
	if _, err := client.Write([]byte("x")); err == nil {
		t.Error("Write after Close")
	}
}

// TestGoodbye tells a good end from a cut, and sends data after the peer's end.
func TestGoodbye(t *testing.T) {
	client, server, clientEnd, _ := linked(t)
	client.end(CloseNotify, net.ErrClosed)
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after close_notify: %v", err)
	}
	if _, err := server.Write([]byte("more")); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(client, buf); string(buf) != "more" || err != nil {
		t.Errorf("%q, %v", buf, err)
	}
	clientEnd.Close()
	client, server, clientEnd, _ = linked(t)
	clientEnd.Close()
	if _, err := server.Read(make([]byte, 1)); err != io.ErrUnexpectedEOF {
		t.Errorf("after a cut: %v", err)
	}
	_ = client
}
