package client_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

// fake is a server that says whatever a test wants.
type fake struct {
	net.Conn
	size       uint64
	flags      wire.TransmissionFlags
	extended   bool // agreed on
	structured bool
	contexts   []client.MetaContext
	blocks     []byte // the 12 bytes of INFO_BLOCK_SIZE
	options    []wire.Option
	refuse     map[wire.Option]wire.Reply
}

const (
	fakeSize  = 1 << 20
	fakeFlags = wire.HasFlags | wire.SendFlush | wire.SendFUA | wire.SendTrim | wire.SendWriteZeroes | wire.SendDF | wire.SendCache | wire.SendFastZero |
		wire.BlockStatusPayload
)

// pair returns two ends of a connection: of a Unix socket, or in memory.
func pair(t testing.TB, memory bool) (clientEnd, serverEnd net.Conn) {
	t.Helper()
	if memory {
		return net.Pipe()
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if clientEnd, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if serverEnd, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return clientEnd, serverEnd
}

// serve runs script as the server at the other end of the connection that it returns.
func serve(t testing.TB, memory bool, script func(f *fake)) net.Conn {
	t.Helper()
	ours, theirs := pair(t, memory)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		script(&fake{Conn: theirs, size: fakeSize, flags: fakeFlags, refuse: map[wire.Option]wire.Reply{}})
		io.Copy(io.Discard, theirs) // until the client has had enough
	}()
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
		<-done
	})
	return ours
}

func (f *fake) send(parts ...[]byte) {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	f.Write(all)
}

func u16(n uint16) []byte { return be.AppendUint16(nil, n) }
func u32(n uint32) []byte { return be.AppendUint32(nil, n) }
func u64(n uint64) []byte { return be.AppendUint64(nil, n) }

func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (f *fake) read(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		runtime.Goexit() // the client has gone
	}
	return b
}

// greet sends a newstyle greeting and reads the client's flags.
func (f *fake) greet(flags wire.HandshakeFlags) {
	f.send(u64(wire.InitMagic), u64(wire.OptionMagic), u16(uint16(flags)))
	f.read(4)
}

// option reads an option.
func (f *fake) option() (wire.Option, []byte) {
	h, ok := wire.ParseOptionHeader(f.read(wire.OptionHeaderSize))
	if !ok {
		panic("the client's option has a wrong magic number")
	}
	f.options = append(f.options, h.Option)
	return h.Option, f.read(int(h.Length))
}

func (f *fake) reply(o wire.Option, r wire.Reply, data ...[]byte) {
	all := join(data...)
	h := make([]byte, wire.ReplyHeaderSize)
	wire.ReplyHeader{Option: o, Type: r, Length: uint32(len(all))}.Put(h)
	f.send(h, all)
}

// negotiate is a whole handshake as a good server makes it, up to transmission.
func (f *fake) negotiate() {
	f.greet(wire.FixedNewstyle | wire.NoZeroes)
	for {
		o, data := f.option()
		if r, refused := f.refuse[o]; refused {
			f.reply(o, r, []byte("not today"))
			continue
		}
		switch o {
		case wire.OptStructuredReply:
			f.structured = true
		case wire.OptExtendedHeaders:
			f.structured, f.extended = true, true
		case wire.OptSetMetaContext:
			for _, c := range f.contexts {
				f.reply(o, wire.RepMetaContext, u32(c.ID), []byte(c.Name))
			}
		case wire.OptGo:
			f.reply(o, wire.RepInfo, u16(uint16(wire.InfoExport)), u64(f.size), u16(uint16(f.flags)))
			if f.blocks != nil {
				f.reply(o, wire.RepInfo, u16(uint16(wire.InfoBlockSize)), f.blocks)
			}
			f.reply(o, wire.RepAck)
			return
		case wire.OptExportName:
			_ = data
			f.send(u64(f.size), u16(uint16(f.flags)))
			return
		default:
			f.reply(o, wire.RepErrUnsup)
			continue
		}
		f.reply(o, wire.RepAck)
	}
}

// request reads a request and the payload of a WRITE, or what PAYLOAD_LEN announces.
func (f *fake) request() (wire.Request, []byte) {
	var r wire.Request
	var ok bool
	if f.extended {
		r, ok = wire.ParseExtendedRequest(f.read(wire.ExtendedRequestSize))
	} else {
		r, ok = wire.ParseRequest(f.read(wire.RequestSize))
	}
	if !ok {
		panic("the client's request has a wrong magic number")
	}
	if r.Type == wire.CmdDisc {
		runtime.Goexit()
	}
	if r.Type == wire.CmdWrite || r.Flags&wire.FlagPayloadLen != 0 {
		return r, f.read(int(r.Length))
	}
	return r, nil
}

// simple answers with a simple reply, and data.
func (f *fake) simple(r wire.Request, e wire.Errno, data ...[]byte) {
	b := make([]byte, wire.SimpleReplySize)
	wire.SimpleReply{Error: e, Cookie: r.Cookie}.Put(b)
	f.send(append([][]byte{b}, data...)...)
}

// chunk sends a chunk, structured or extended.
func (f *fake) chunk(r wire.Request, t wire.ChunkType, flags wire.ChunkFlags, payload ...[]byte) {
	all := join(payload...)
	c := wire.Chunk{Flags: flags, Type: t, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(len(all))}
	b := make([]byte, wire.StructuredReplySize, wire.ExtendedReplySize)
	if f.extended {
		b = b[:wire.ExtendedReplySize]
		c.PutExtended(b)
	} else {
		c.Put(b)
	}
	f.send(b, all)
}

// mode is what a test agrees on with the fake.
type mode int

const (
	simple mode = iota
	structured
	extended
)

// agreed makes a connection in transmission with a fake that has contexts.
func agreed(t testing.TB, conn net.Conn, m mode, config client.Config) *client.Conn {
	t.Helper()
	ctx := t.Context()
	c, err := client.New(ctx, conn, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	switch m {
	case structured:
		err = c.RequestStructuredReplies(ctx)
	case extended:
		err = c.RequestExtendedHeaders(ctx)
	}
	if err == nil && m != simple {
		_, err = c.SetMetaContexts(ctx, "", "base:allocation", "x:y")
	}
	if err == nil {
		_, err = c.Go(ctx, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaks fails the test where goroutines are left behind when it ends.
func leaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	})
}

// isProtocol reports whether err says that the server broke the protocol.
func isProtocol(err error) bool {
	var e *client.ProtocolError
	return errors.As(err, &e)
}
