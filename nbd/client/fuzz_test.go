package client_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// script is a connection to a server that says what it says. What follows the handshake it says when so many bytes of requests have come.
type script struct {
	net.Conn
	hello, rest []byte

	mu    sync.Mutex
	more  *sync.Cond
	need  int // bytes that have to come before the rest
	ended bool
}

func newScript(hello, rest []byte, need int) *script {
	s := &script{hello: hello, rest: rest, need: need}
	s.more = sync.NewCond(&s.mu)
	return s
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := &s.hello
	if len(s.hello) == 0 {
		from = &s.rest
		for s.need > 0 && !s.ended {
			s.more.Wait()
		}
	}
	if s.ended || len(*from) == 0 {
		return 0, io.EOF
	}
	n := copy(p, *from)
	*from = (*from)[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hello) == 0 {
		s.need -= len(p)
		s.more.Broadcast()
	}
	return len(p), nil
}

func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.more.Broadcast()
	return nil
}

func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// recording gathers what a fake says.
type recording struct {
	net.Conn
	said []byte
}

func (r *recording) Write(p []byte) (int, error) {
	r.said = append(r.said, p...)
	return len(p), nil
}

// said returns the bytes that a fake says.
func said(say func(f *fake)) []byte {
	r := &recording{}
	say(&fake{Conn: r, size: fakeSize, flags: fakeFlags})
	return r.said
}

var hello = []byte("NBDMAGICIHAVEOPT\x00\x03")

// FuzzHandshake gives the client any bytes for a handshake, and asks for everything.
func FuzzHandshake(f *testing.F) {
	ack := func(f *fake, o wire.Option) { f.reply(o, wire.RepAck) }
	f.Add(byte(0), said(func(f *fake) {
		f.send(hello)
		ack(f, wire.OptStructuredReply)
		f.reply(wire.OptSetMetaContext, wire.RepMetaContext, u32(1), []byte("base:allocation"))
		ack(f, wire.OptSetMetaContext)
		f.reply(wire.OptGo, wire.RepInfo, u16(0), u64(fakeSize), u16(uint16(fakeFlags)))
		f.reply(wire.OptGo, wire.RepInfo, u16(3), u32(512), u32(4096), u32(1<<20))
		ack(f, wire.OptGo)
	}))
	f.Add(byte(1), said(func(f *fake) {
		f.send(hello)
		f.reply(wire.OptList, wire.RepServer, u32(1), []byte("abc"))
		ack(f, wire.OptList)
		f.reply(wire.OptInfo, wire.RepErrUnknown, []byte("no"))
		f.send(u64(fakeSize), u16(1))
	}))
	f.Add(byte(2), said(func(f *fake) {
		f.send(u64(wire.InitMagic), u64(wire.OldstyleMagic), u64(fakeSize), u32(1), make([]byte, 124))
	}))
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		ctx := context.Background()
		n, err := client.New(ctx, newScript(data, nil, 0), client.Config{Unchecked: kind&0x80 != 0})
		if err != nil {
			return
		}
		defer n.Close()
		if kind&1 != 0 {
			n.List(ctx)
			n.Info(ctx, "a")
			n.ExportName(ctx, "a")
		} else {
			n.RequestExtendedHeaders(ctx)
			n.RequestStructuredReplies(ctx)
			n.ListMetaContexts(ctx, "a")
			n.SetMetaContexts(ctx, "a", "base:allocation")
			n.Go(ctx, "a")
		}
		if e := n.Export(); e.Size < 0 || kind&0x80 == 0 && !n.Negotiating() && n.Err() == nil && n.MaxPayload() <= 0 {
			t.Errorf("%+v, payloads of %d bytes", e, n.MaxPayload())
		}
	})
}

// FuzzReplies gives the client any bytes for replies to requests of every kind, of which one or the other may be given up meanwhile.
func FuzzReplies(f *testing.F) {
	const cookies = 5
	for m := range byte(3) { // what is agreed on; bits 4 and 5 say which reads are given up
		f.Add(m|0x30, []byte{})
		f.Add(m, said(func(f *fake) {
			f.structured, f.extended = m > 0, m > 1
			for c := range uint64(cookies) {
				r := wire.Request{Cookie: c + 1, Offset: 512}
				switch {
				case m == 0:
					f.simple(r, 0)
				case c == 2:
					f.chunk(r, wire.ChunkOffsetHole, 0, u64(512), u32(100))
				}
				if m > 0 {
					f.chunk(r, wire.ChunkOffsetData, 0, data(512, 300)...)
					f.chunk(r, wire.ChunkBlockStatus+wire.ChunkType(m-1), done, u32(5), u32(1), u32(512), u32(0))
					f.chunk(r, wire.ChunkError, done, message(wire.EIO, "text"))
				}
			}
		}))
	}
	f.Fuzz(func(t *testing.T, m byte, rest []byte) {
		agreed := mode(m & 0xf % 3)
		greeting := said(func(f *fake) {
			f.send(hello)
			switch agreed {
			case structured:
				f.reply(wire.OptStructuredReply, wire.RepAck)
			case extended:
				f.reply(wire.OptExtendedHeaders, wire.RepAck)
			}
			if agreed != simple {
				f.reply(wire.OptSetMetaContext, wire.RepMetaContext, u32(5), []byte("base:allocation"))
				f.reply(wire.OptSetMetaContext, wire.RepAck)
			}
			f.reply(wire.OptGo, wire.RepInfo, u16(0), u64(fakeSize), u16(uint16(fakeFlags)))
			f.reply(wire.OptGo, wire.RepAck)
		})
		size := wire.RequestSize
		if agreed == extended {
			size = wire.ExtendedRequestSize
		}
		ctx := context.Background()
		sent := 4 - int(m>>4&1) - int(m>>5&1) // at least: who is given up may not have been sent
		n, err := client.New(ctx, newScript(greeting, rest, size*sent), client.Config{})
		if err != nil {
			t.Fatal(err)
		}
		switch agreed {
		case structured:
			err = n.RequestStructuredReplies(ctx)
		case extended:
			err = n.RequestExtendedHeaders(ctx)
		}
		if err == nil && agreed != simple {
			_, err = n.SetMetaContexts(ctx, "", "base:allocation")
		}
		if err == nil {
			_, err = n.Go(ctx, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		for i := range 2 {
			wait.Go(func() {
				mine, cancel := context.WithCancel(ctx)
				defer cancel()
				if m>>(4+i)&1 != 0 {
					go cancel()
				}
				p := make([]byte, 4096)
				n.Read(mine, p, 512, 0)
				clear(p) // it is the caller's own again: the race detector sees who thinks otherwise
			})
		}
		wait.Go(func() { n.Command(ctx, wire.Request{Type: wire.CmdRead, Cookie: 77, Offset: 512, Length: 512}, nil) })
		wait.Go(func() {
			if agreed == simple {
				n.Trim(ctx, 512, 512, 0)
				return
			}
			n.BlockStatus(ctx, 512, 4096, 0, nil, func(_ client.MetaContext, all []client.Extent) {
				for _, e := range all {
					if e.Length <= 0 || e.Length > fakeSize {
						t.Errorf("an extent of %d bytes", e.Length)
					}
				}
			})
		})
		wait.Wait()
		n.Close()
	})
}
