package secure_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/wire"
)

// middle is somebody between client and server who can read and change everything.
type middle struct {
	client, server net.Conn
	seen           *bytes.Buffer // what the client has sent in plain text
}

// between returns the port of somebody in the middle, and a function that waits for the end and returns what the client has sent before the encryption.
func between(t *testing.T, port string, attack func(m *middle) error) (string, func() []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		s, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		attack(&middle{client: c, server: s, seen: &seen}) // an error is that one of them has hung up
	}()
	_, own, _ := net.SplitHostPort(l.Addr().String())
	return own, func() []byte {
		l.Close()
		<-done
		return seen.Bytes()
	}
}

// greet passes the greeting on, and the client's flags.
func (m *middle) greet() error {
	if _, err := io.CopyN(m.client, m.server, 18); err != nil {
		return err
	}
	_, err := io.CopyN(io.MultiWriter(m.server, m.seen), m.client, 4)
	return err
}

// option receives an option of the client.
func (m *middle) option() ([]byte, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(m.client, head); err != nil {
		return nil, err
	}
	option := append(head, make([]byte, binary.BigEndian.Uint32(head[12:]))...)
	_, err := io.ReadFull(m.client, option[16:])
	m.seen.Write(option)
	return option, err
}

// skipReply receives a reply of the server.
func (m *middle) skipReply() error {
	head := make([]byte, 20)
	if _, err := io.ReadFull(m.server, head); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, m.server, int64(binary.BigEndian.Uint32(head[16:])))
	return err
}

// reply is one of the server's without data.
func reply(o wire.Option, r wire.Reply) []byte {
	b := binary.BigEndian.AppendUint64(nil, wire.ReplyMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	return append(b, 0, 0, 0, 0)
}

// ask is an option of the client.
func ask(o wire.Option, data ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, wire.OptionMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// relay passes on what comes in both directions, of the server's as change makes of it, until one of them hangs up.
func (m *middle) relay(change func(p []byte, at int) []byte) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(m.server, m.client)
		m.server.Close()
		m.client.Close()
	})
	buf := make([]byte, 4096)
	at := 0
	for {
		n, err := m.server.Read(buf)
		out := buf[:n]
		if change != nil {
			out = change(out, at)
		}
		at += n
		if _, werr := m.client.Write(out); err != nil || werr != nil || len(out) < n {
			break
		}
	}
	m.server.Close()
	m.client.Close()
	wg.Wait()
	return nil
}

// begin passes on the greeting, the client's STARTTLS and the answer to it.
func (m *middle) begin() error {
	if err := m.greet(); err != nil {
		return err
	}
	option, err := m.option()
	if err != nil {
		return err
	}
	if _, err := m.server.Write(option); err != nil {
		return err
	}
	_, err = io.CopyN(m.client, m.server, 20)
	return err
}

// instead passes on the greeting, and answers STARTTLS itself.
func instead(answers ...[]byte) func(m *middle) error {
	return func(m *middle) error {
		if err := m.greet(); err != nil {
			return err
		}
		if _, err := m.option(); err != nil {
			return err
		}
		if _, err := m.client.Write(bytes.Join(answers, nil)); err != nil {
			return err
		}
		_, err := io.Copy(m.seen, m.client)
		return err
	}
}

// kinds are the two kinds of proof.
func kinds(t *testing.T) map[string]struct {
	server secure.ServerConfig
	client secure.ClientConfig
	uri    url.URL
} {
	a, keys := securetest.New(t), securetest.PSK(t, "alice")
	return map[string]struct {
		server secure.ServerConfig
		client secure.ClientConfig
		uri    url.URL
	}{
		"certificates": {secure.ServerConfig{Certificates: a.Dir}, secure.ClientConfig{Certificates: a.Dir},
			url.URL{Scheme: "nbds", RawQuery: url.Values{"tls-certificates": {a.Dir}}.Encode()}},
		"PSK": {secure.ServerConfig{PSKFile: keys}, secure.ClientConfig{PSKFile: keys, Identity: "alice"},
			url.URL{Scheme: "nbds", User: url.User("alice"), RawQuery: url.Values{"tls-psk-file": {keys}}.Encode()}},
	}
}

// TestDowngrade has somebody in the middle keep the client from encrypting. It gives up, and never names the export in plain text.
func TestDowngrade(t *testing.T) {
	const o = wire.OptStartTLS
	for kind, k := range kinds(t) {
		port, _ := listen(t, k.server)
		for name, attack := range map[string]func(m *middle) error{
			"unknown option":           instead(reply(o, wire.RepErrUnsup)),
			"against the policy":       instead(reply(o, wire.RepErrPolicy)),
			"invalid":                  instead(reply(o, wire.RepErrInvalid)),
			"answer to another option": instead(reply(wire.OptStructuredReply, wire.RepAck)),
			"no TLS behind it":         instead(reply(o, wire.RepAck)),
			"more behind it":           instead(reply(o, wire.RepAck), reply(wire.OptStructuredReply, wire.RepAck)),
			"hang-up":                  func(m *middle) error { return m.greet() },
			"oldstyle": func(m *middle) error {
				old := binary.BigEndian.AppendUint64(nil, wire.InitMagic)
				old = binary.BigEndian.AppendUint64(old, wire.OldstyleMagic)
				if _, err := m.client.Write(append(old, make([]byte, 8+4+wire.OldstyleZeroes)...)); err != nil {
					return err
				}
				_, err := io.Copy(m.seen, m.client)
				return err
			},
			"newstyle without options": func(m *middle) error {
				greeting := make([]byte, 18)
				if _, err := io.ReadFull(m.server, greeting); err != nil {
					return err
				}
				greeting[17] &^= byte(wire.FixedNewstyle)
				if _, err := m.client.Write(greeting); err != nil {
					return err
				}
				_, err := io.Copy(m.seen, m.client)
				return err
			},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				own, end := between(t, port, func(m *middle) error {
					if name == "no TLS behind it" {
						// Reading the ClientHello, it goes on in plain text.
						go m.client.Write(reply(wire.OptGo, wire.RepAck))
					}
					return attack(m)
				})
				u := k.uri
				u.Host, u.Path = "localhost:"+own, "/the-secret-export"
				d, err := nbd.Dial(t.Context(), u.String(), nbd.Options{AllowLocalFiles: true, Retries: -1})
				if err == nil {
					d.Close()
					t.Error("the client is content")
				}
				if seen := end(); bytes.Contains(seen, []byte("the-secret-export")) {
					t.Errorf("the client sends the export's name: %q", seen)
				}
			})
		}
	}
}

// session connects by way of somebody in the middle, without asking for structured replies, and reads all there is.
func session(t *testing.T, port string, tls *secure.Client) ([]byte, *client.Conn, error) {
	t.Helper()
	plain, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c, err := client.New(ctx, plain, client.Config{})
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	if err := c.StartTLS(ctx, tls, "localhost"); err != nil {
		return nil, nil, err
	}
	info, err := c.Go(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	data := make([]byte, info.Size)
	if err := c.Read(ctx, data, 0, 0); err != nil {
		return nil, nil, err
	}
	return data, c, nil
}

// TestInjection has somebody in the middle send options in plain text in the client's name.
func TestInjection(t *testing.T) {
	inject := func(m *middle, options ...wire.Option) error {
		for _, o := range options {
			if _, err := m.server.Write(ask(o)); err != nil {
				return err
			}
			if err := m.skipReply(); err != nil {
				return err
			}
		}
		return nil
	}
	for kind, k := range kinds(t) {
		port, _ := listen(t, k.server)
		for _, test := range []struct {
			name   string
			attack func(m *middle) error
			wrong  bool // the client fails; else it has a connection without anything that it did not ask for
		}{
			{"nothing", func(m *middle) error {
				if err := m.begin(); err != nil {
					return err
				}
				return m.relay(nil)
			}, false},
			{"options before STARTTLS", func(m *middle) error {
				if err := m.greet(); err != nil {
					return err
				}
				if err := inject(m, wire.OptStructuredReply, wire.OptExtendedHeaders, wire.OptList); err != nil {
					return err
				}
				option, err := m.option()
				if err != nil {
					return err
				}
				if _, err := m.server.Write(option); err != nil {
					return err
				}
				return m.relay(nil)
			}, false},
			{"options behind STARTTLS", func(m *middle) error {
				if err := m.greet(); err != nil {
					return err
				}
				option, err := m.option()
				if err != nil {
					return err
				}
				if _, err := m.server.Write(append(option, ask(wire.OptStructuredReply)...)); err != nil {
					return err
				}
				return m.relay(nil)
			}, true},
			{"replies behind the acknowledgement", func(m *middle) error {
				if err := m.greet(); err != nil {
					return err
				}
				option, err := m.option()
				if err != nil {
					return err
				}
				if _, err := m.server.Write(option); err != nil {
					return err
				}
				if err := m.skipReply(); err != nil {
					return err
				}
				if _, err := m.client.Write(append(reply(wire.OptStartTLS, wire.RepAck), reply(wire.OptGo, wire.RepAck)...)); err != nil {
					return err
				}
				return m.relay(nil)
			}, true},
		} {
			t.Run(kind+"/"+test.name, func(t *testing.T) {
				own, end := between(t, port, test.attack)
				data, c, err := session(t, own, newClient(t, k.client))
				end()
				switch {
				case test.wrong && err == nil:
					t.Error("the client is content")
				case !test.wrong && err != nil:
					t.Error(err)
				case !test.wrong && (c.Structured() || c.Extended() || !bytes.Equal(data, content)):
					t.Error("the connection is not what the client asked for")
				}
			})
		}
	}
}

// TestChanged has somebody in the middle change, or cut off, what the server sends encrypted. The client never takes changed data.
func TestChanged(t *testing.T) {
	for kind, k := range kinds(t) {
		port, _ := listen(t, k.server)
		tls := newClient(t, k.client)
		for _, at := range []int{0, 100, 1500, 5000, 300_000} {
			for name, change := range map[string]func(p []byte, from int) []byte{
				"changed": func(p []byte, from int) []byte {
					if i := at - from; i >= 0 && i < len(p) {
						p[i] ^= 0x10
					}
					return p
				},
				"cut": func(p []byte, from int) []byte { return p[:max(0, min(len(p), at-from))] },
			} {
				own, end := between(t, port, func(m *middle) error {
					if err := m.begin(); err != nil {
						return err
					}
					return m.relay(change)
				})
				_, _, err := session(t, own, tls)
				end()
				if err == nil || name == "cut" && at > 5000 && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, client.ErrDisconnected) {
					t.Errorf("%s: %s at byte %d: %v", kind, name, at, err)
				}
			}
		}
	}
}
