package client_test

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

func greeting(c *client.Conn) error { return nil }
func goes(c *client.Conn) error {
	_, err := c.Go(context.Background(), "disk")
	return err
}
func lists(c *client.Conn) error {
	_, err := c.List(context.Background())
	return err
}
func structures(c *client.Conn) error { return c.RequestStructuredReplies(context.Background()) }
func selects(c *client.Conn) error {
	if err := structures(c); err != nil {
		return err
	}
	_, err := c.SetMetaContexts(context.Background(), "", "base:allocation", "qemu:dirty-bitmap:")
	return err
}
func encrypts(c *client.Conn) error {
	t, err := secure.NewClient(secure.ClientConfig{NoVerify: true})
	if err != nil {
		return err
	}
	return c.StartTLS(context.Background(), t, "localhost")
}

func replies(r wire.Reply, data ...[]byte) func(f *fake) {
	return func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		f.reply(o, r, data...)
	}
}

// informs answers GO with one piece of information and ACK.
func informs(kind wire.Info, data ...[]byte) func(f *fake) {
	return func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		f.reply(o, wire.RepInfo, u16(uint16(kind)), join(data...))
		f.reply(o, wire.RepAck)
	}
}

func contexts(all ...client.MetaContext) func(f *fake) {
	return func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		f.reply(o, wire.RepAck)
		o, _ = f.option()
		for _, m := range all {
			f.reply(o, wire.RepMetaContext, u32(m.ID), []byte(m.Name))
		}
		f.reply(o, wire.RepAck)
	}
}

// hostileHandshakes lists what servers may say before transmission, and what the client has to make of it.
var hostileHandshakes = []struct {
	name   string
	script func(f *fake)
	call   func(c *client.Conn) error
	want   string
}{
	{"nothing", func(f *fake) { f.Close() }, greeting, "hung up"},
	{"half a greeting", func(f *fake) { f.send(u64(wire.InitMagic)); f.Close() }, greeting, "hung up"},
	{"a web server", func(f *fake) { f.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, greeting, "no NBD server"},
	{"an unknown style", func(f *fake) { f.send(u64(wire.InitMagic), u64(1)) }, greeting, breaks},
	{"oldstyle of 2^63 bytes", func(f *fake) {
		f.send(u64(wire.InitMagic), u64(wire.OldstyleMagic), u64(1<<63), u32(1), make([]byte, 124))
	}, greeting, breaks},

	{"a size of 2^63: CVE-2023-5215", informs(wire.InfoExport, u64(1<<63), u16(1)), goes, breaks},
	{"a size of 2^64-1", informs(wire.InfoExport, u64(math.MaxUint64), u16(1)), goes, breaks},
	{"the largest size", informs(wire.InfoExport, u64(math.MaxInt64), u16(1)), goes, good},
	{"no size", informs(wire.InfoDescription, []byte("nice")), goes, breaks},
	{"half a size", informs(wire.InfoExport, u64(1)), goes, breaks},
	{"an information without a type", replies(wire.RepInfo, []byte{0}), goes, breaks},
	{"a long name", informs(wire.InfoName, make([]byte, 5000)), goes, breaks},
	{"half of the block sizes", informs(wire.InfoBlockSize, u32(1), u32(4096)), goes, breaks},
	{"a minimum block of 0", informs(wire.InfoBlockSize, u32(0), u32(4096), u32(1<<20)), goes, breaks},
	{"a minimum block of 3", informs(wire.InfoBlockSize, u32(3), u32(4096), u32(1<<20)), goes, breaks},
	{"a minimum block of 1 MiB", informs(wire.InfoBlockSize, u32(1<<20), u32(1<<20), u32(1<<20)), goes, breaks},
	{"a preferred block below the minimum", informs(wire.InfoBlockSize, u32(4096), u32(512), u32(1<<20)), goes, breaks},
	{"a maximum payload below the minimum block", informs(wire.InfoBlockSize, u32(4096), u32(4096), u32(512)), goes, breaks},
	{"SERVER in answer to GO", replies(wire.RepServer, u32(0)), goes, breaks},
	{"GO refused", replies(wire.RepErrUnknown, []byte("no \x07such disk")), goes, "no  such disk (ERR_UNKNOWN)"},
	{"a hang-up instead of an answer", func(f *fake) { f.greet(3); f.option(); f.Close() }, goes, "hung up"},
	{"EXPORT_NAME of 2^63 bytes", func(f *fake) {
		f.greet(0)
		f.option()
		f.send(u64(1<<63), u16(1), make([]byte, 124))
	}, goes, breaks},
	{"EXPORT_NAME refused by hanging up", func(f *fake) { f.greet(0); f.option(); f.Close() }, goes, "hung up"},

	{"a reply to another option", func(f *fake) { f.greet(3); f.option(); f.reply(wire.OptAbort, wire.RepAck) }, structures, breaks},
	{"a reply without its magic number", func(f *fake) { f.greet(3); f.option(); f.send(make([]byte, 20)) }, structures, breaks},
	{"an ACK with data", replies(wire.RepAck, []byte("surprise")), structures, breaks},
	{"an unknown reply", replies(17), structures, breaks},
	{"an unknown error", replies(wire.RepError | 99), structures, "0x80000063"},
	{"a reply of 4 GiB: CVE-2021-20286 and its like", func(f *fake) {
		f.greet(3)
		f.option()
		h := make([]byte, wire.ReplyHeaderSize)
		wire.ReplyHeader{Option: wire.OptStructuredReply, Type: wire.RepErrPolicy, Length: math.MaxUint32}.Put(h)
		f.send(h)
	}, structures, breaks},
	{"exports without end", func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		for range 1 << 20 {
			h := make([]byte, wire.ReplyHeaderSize)
			wire.ReplyHeader{Option: o, Type: wire.RepServer, Length: 4}.Put(h)
			if _, err := f.Write(join(h, u32(0))); err != nil {
				return
			}
		}
	}, lists, breaks},
	{"an export whose name is longer than the reply", replies(wire.RepServer, u32(100), []byte("short")), lists, breaks},
	{"an export whose name is too long", replies(wire.RepServer, u32(4097), make([]byte, 4097)), lists, breaks},
	{"an export without a length", replies(wire.RepServer, []byte{0, 0}), lists, breaks},

	{"a context", contexts(client.MetaContext{ID: 1, Name: "base:allocation"}), selects, good},
	{"two contexts of one number", contexts(client.MetaContext{ID: 1, Name: "base:allocation"}, client.MetaContext{ID: 1, Name: "qemu:dirty-bitmap:a"}), selects, breaks},
	{"a context twice", contexts(client.MetaContext{ID: 1, Name: "base:allocation"}, client.MetaContext{ID: 2, Name: "base:allocation"}), selects, breaks},
	{"a context that was not asked for", contexts(client.MetaContext{ID: 1, Name: "base:allocation"}, client.MetaContext{ID: 2, Name: "base:other"}), selects, breaks},
	{"one of the contexts that begin so", contexts(client.MetaContext{ID: 1, Name: "qemu:dirty-bitmap:a"}), selects, good},
	{"a context without a name", func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		f.reply(o, wire.RepAck)
		o, _ = f.option()
		f.reply(o, wire.RepMetaContext, u32(1))
	}, selects, breaks},

	{"STARTTLS refused: CVE-2019-14842", replies(wire.RepErrPolicy, []byte("never")), encrypts, "never"},
	{"plain text behind the ACK of STARTTLS: CVE-2021-3716 seen from here", func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		h := make([]byte, wire.ReplyHeaderSize)
		wire.ReplyHeader{Option: o, Type: wire.RepAck}.Put(h)
		f.send(h, h)
	}, encrypts, breaks},
	{"a hang-up instead of TLS", func(f *fake) {
		f.greet(3)
		o, _ := f.option()
		f.reply(o, wire.RepAck)
		f.Close()
	}, encrypts, "STARTTLS"},
}

// TestHostileHandshakes gives the client each handshake. Nothing of it may panic, hang or be taken for something else.
func TestHostileHandshakes(t *testing.T) {
	leaks(t)
	for _, c := range hostileHandshakes {
		t.Run(c.name, func(t *testing.T) {
			n, err := client.New(t.Context(), serve(t, false, c.script), client.Config{})
			if err == nil {
				defer n.Close()
				err = c.call(n)
			}
			if c.want == good && err != nil || c.want != good && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("the error is %v, want one about %q", err, c.want)
			}
			if isProtocol(err) != (c.want == breaks || c.want == "no NBD server") {
				t.Errorf("the error is a %T: %v", err, err)
			}
			var refused *client.OptionError
			if err == nil || errors.As(err, &refused) || n == nil {
				return
			}
			if err := n.RequestStructuredReplies(t.Context()); !errors.Is(err, client.ErrDisconnected) {
				t.Errorf("an option after that: %v", err)
			}
		})
	}
}

// TestStyles speaks to servers of every age.
func TestStyles(t *testing.T) {
	leaks(t)
	flags := wire.HasFlags | wire.SendFlush
	for name, c := range map[string]struct {
		script   func(f *fake)
		config   client.Config
		protocol string
	}{
		"oldstyle": {func(f *fake) {
			f.send(u64(wire.InitMagic), u64(wire.OldstyleMagic), u64(fakeSize), u16(0), u16(uint16(flags)), make([]byte, 124))
		}, client.Config{}, "oldstyle"},
		"newstyle": {func(f *fake) {
			f.greet(0)
			f.option()
			f.send(u64(fakeSize), u16(uint16(flags)), make([]byte, 124))
		}, client.Config{}, "newstyle"},
		"newstyle without zeroes": {func(f *fake) {
			f.greet(wire.NoZeroes)
			f.option()
			f.send(u64(fakeSize), u16(uint16(flags)))
		}, client.Config{}, "newstyle"},
		"zeroes wanted": {func(f *fake) {
			f.greet(wire.NoZeroes)
			f.option()
			f.send(u64(fakeSize), u16(uint16(flags)), make([]byte, 124))
		}, client.Config{NoZeroes: true}, "newstyle"},
		"fixed newstyle unanswered": {func(f *fake) {
			f.greet(wire.FixedNewstyle)
			f.option()
			f.send(u64(fakeSize), u16(uint16(flags)), make([]byte, 124))
		}, client.Config{NoFixedNewstyle: true}, "newstyle-fixed"},
		"without GO": {func(f *fake) {
			f.flags = flags
			f.refuse[wire.OptGo] = wire.RepErrUnsup
			f.negotiate()
		}, client.Config{}, "newstyle-fixed"},
		"with GO": {func(f *fake) { f.flags = flags; f.negotiate() }, client.Config{}, "newstyle-fixed"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := serve(t, false, func(f *fake) {
				c.script(f)
				r, _ := f.request()
				f.simple(r, 0)
			})
			n, err := client.New(t.Context(), conn, c.config)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if n.Protocol() != c.protocol {
				t.Errorf("the protocol is %s, want %s", n.Protocol(), c.protocol)
			}
			if n.Negotiating() {
				if _, err := n.Go(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			want := client.ExportInfo{Size: fakeSize, Flags: flags, MinBlock: 1, PreferredBlock: 4096, MaxPayload: 32 << 20}
			if got := n.Export(); got != want {
				t.Errorf("the export is %+v, want %+v", got, want)
			}
			if err := n.Flush(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNegotiationCancelled ends the context while a server says nothing.
func TestNegotiationCancelled(t *testing.T) {
	leaks(t)
	for name, script := range map[string]func(f *fake){
		"greeting": func(f *fake) {},
		"option":   func(f *fake) { f.greet(3) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			n, err := client.New(ctx, serve(t, true, script), client.Config{})
			if err == nil {
				err = n.RequestStructuredReplies(ctx)
				if _, again := n.List(t.Context()); !errors.Is(again, client.ErrDisconnected) {
					t.Errorf("an option after that: %v", again)
				}
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestContextsBelongToTheirExport: contexts that were selected for another export are not there in transmission.
func TestContextsBelongToTheirExport(t *testing.T) {
	for _, export := range []string{"", "other"} {
		conn := serve(t, false, func(f *fake) {
			f.contexts = []client.MetaContext{{ID: 5, Name: "base:allocation"}}
			f.negotiate()
		})
		n, err := client.New(t.Context(), conn, client.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if err := selects(n); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Go(t.Context(), export); err != nil {
			t.Fatal(err)
		}
		if got := len(n.Contexts()); (got == 1) != (export == "") {
			t.Errorf("%d contexts for export %q, after they were selected for %q", got, export, "")
		}
	}
}

// TestOptionRaw sends what no client should, and takes what comes.
func TestOptionRaw(t *testing.T) {
	conn := serve(t, false, func(f *fake) {
		f.greet(3)
		o, data := f.option()
		f.reply(o, wire.RepInfo, data)
		f.reply(o, wire.RepErrUnsup, []byte("what?"))
		io.Copy(io.Discard, f)
	})
	n, err := client.New(t.Context(), conn, client.Config{Unchecked: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	all, err := n.Option(t.Context(), 4711, []byte("abc"))
	if err != nil || len(all) != 2 || string(all[0].Data) != "abc" || all[1].Type != wire.RepErrUnsup || string(all[1].Data) != "what?" {
		t.Errorf("%v, %v", all, err)
	}
	if err := n.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}
