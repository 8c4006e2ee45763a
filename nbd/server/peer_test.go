package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

var (
	be         = binary.BigEndian
	noDeadline time.Time
)

// fixed opens d for every name but "missing" and "private".
func fixed(d block.Device) func(context.Context, server.Client) (*server.Export, error) {
	return func(_ context.Context, c server.Client) (*server.Export, error) {
		switch c.Export {
		case "missing":
			return nil, server.ErrUnknownExport
		case "private":
			return nil, server.ErrRefused
		case "broken":
			return nil, errors.New("the disk is in the other room")
		}
		return &server.Export{Device: d}, nil
	}
}

// serve starts a server on a socket and returns it with a function that connects to it. At the end of the test it is shut down, and every
// connection must have ended.
func serve(t testing.TB, c server.Config) (*server.Server, func() *peer) {
	t.Helper()
	s := server.New(c)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		end, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := s.Shutdown(end); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, func() *peer {
		t.Helper()
		nc, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		p := &peer{t: t, Conn: nc}
		t.Cleanup(func() { nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		return p
	}
}

// peer is a client that does what a test says, right or wrong.
type peer struct {
	net.Conn
	t                    testing.TB
	structured, extended bool
}

func (p *peer) send(parts ...[]byte) {
	p.t.Helper()
	if _, err := p.Write(bytes.Join(parts, nil)); err != nil {
		p.t.Fatalf("sending: %v", err)
	}
}

func (p *peer) recv(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	if k, err := io.ReadFull(p, b); err != nil {
		p.t.Fatalf("%d of %d bytes, then %v", k, n, err)
	}
	return b
}

// gone expects the server to end the connection, with nothing more to say.
func (p *peer) gone() {
	p.t.Helper()
	rest, err := io.ReadAll(p)
	if len(rest) > 0 {
		p.t.Fatalf("more came: %x", rest)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.t.Fatal("the server keeps the connection")
	}
}

// greet reads the greeting and answers with flags.
func (p *peer) greet(flags wire.ClientFlags) *peer {
	p.t.Helper()
	g := p.recv(18)
	if be.Uint64(g) != wire.InitMagic || be.Uint64(g[8:]) != wire.OptionMagic || be.Uint16(g[16:]) != uint16(wire.FixedNewstyle|wire.NoZeroes) {
		p.t.Fatalf("greeting %x", g)
	}
	p.send(be.AppendUint32(nil, uint32(flags)))
	return p
}

const bothFlags = wire.ClientFixedNewstyle | wire.ClientNoZeroes

func optionBytes(o wire.Option, data []byte) []byte {
	b := make([]byte, wire.OptionHeaderSize, wire.OptionHeaderSize+len(data))
	wire.OptionHeader{Option: o, Length: uint32(len(data))}.Put(b)
	return append(b, data...)
}

type optReply struct {
	kind wire.Reply
	data []byte
}

// option sends an option and returns the replies up to the last one.
func (p *peer) option(o wire.Option, data []byte) []optReply {
	p.t.Helper()
	p.send(optionBytes(o, data))
	return p.replies(o)
}

func (p *peer) replies(o wire.Option) []optReply {
	p.t.Helper()
	var all []optReply
	for {
		h, ok := wire.ParseReplyHeader(p.recv(wire.ReplyHeaderSize))
		if !ok || h.Option != o {
			p.t.Fatalf("reply %+v to %v", h, o)
		}
		all = append(all, optReply{h.Type, p.recv(int(h.Length))})
		if h.Type == wire.RepAck || h.Type&wire.RepError != 0 {
			return all
		}
	}
}

// must sends an option that has to be answered with one reply of that kind.
func (p *peer) must(o wire.Option, data []byte, want wire.Reply) []byte {
	p.t.Helper()
	r := p.option(o, data)
	if len(r) != 1 || r[0].kind != want {
		p.t.Fatalf("%v: replies %v, want %v", o, r, want)
	}
	return r[0].data
}

func (r optReply) String() string {
	return r.kind.String() + " " + strings.ToValidUTF8(string(r.data), "?")
}

func str(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }

func infoData(name string, infos ...wire.Info) []byte {
	b := be.AppendUint16(str(name), uint16(len(infos)))
	for _, i := range infos {
		b = be.AppendUint16(b, uint16(i))
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := be.AppendUint32(str(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, str(q)...)
	}
	return b
}

// enter negotiates what mode says ("simple", "structured" or "extended"), the contexts, and GO.
func (p *peer) enter(mode, export string, contexts ...string) *peer {
	p.t.Helper()
	p.greet(bothFlags)
	switch mode {
	case "structured":
		p.must(wire.OptStructuredReply, nil, wire.RepAck)
		p.structured = true
	case "extended":
		p.must(wire.OptExtendedHeaders, nil, wire.RepAck)
		p.structured, p.extended = true, true
	}
	if len(contexts) > 0 {
		r := p.option(wire.OptSetMetaContext, metaData(export, contexts...))
		if len(r) != len(contexts)+1 {
			p.t.Fatalf("SET_META_CONTEXT: %v", r)
		}
	}
	r := p.option(wire.OptGo, infoData(export, wire.InfoBlockSize))
	if last := r[len(r)-1]; last.kind != wire.RepAck {
		p.t.Fatalf("GO: %v", r)
	}
	return p
}

var modes = []string{"simple", "structured", "extended"}

// req sends a request with a payload.
func (p *peer) req(r wire.Request, payload ...[]byte) {
	p.t.Helper()
	p.send(p.reqBytes(r), bytes.Join(payload, nil))
}

func (p *peer) reqBytes(r wire.Request) []byte {
	if p.extended {
		b := make([]byte, wire.ExtendedRequestSize)
		r.PutExtended(b)
		return b
	}
	b := make([]byte, wire.RequestSize)
	r.Put(b)
	return b
}

// write sends a WRITE in the form that was negotiated.
func (p *peer) write(cookie, off uint64, data []byte, f wire.CommandFlags) {
	p.t.Helper()
	if p.extended {
		f |= wire.FlagPayloadLen
	}
	p.req(wire.Request{Type: wire.CmdWrite, Flags: f, Cookie: cookie, Offset: off, Length: uint64(len(data))}, data)
}

// answer is a whole reply.
type answer struct {
	cookie uint64
	errno  wire.Errno
	text   string
	data   []byte           // of a READ: what the chunks say, one after the other
	chunks []wire.ChunkType // but the simple ones
	status map[uint32][][2]uint64
}

// reply reads one reply. dataLen is how many bytes a simple one to a READ holds.
func (p *peer) reply(dataLen int) answer {
	p.t.Helper()
	a := answer{status: map[uint32][][2]uint64{}}
	for {
		magic := p.recv(4)
		if be.Uint32(magic) == wire.SimpleReplyMagic && !p.extended {
			h, _ := wire.ParseSimpleReply(append(magic, p.recv(wire.SimpleReplySize-4)...))
			if len(a.chunks) > 0 {
				p.t.Fatal("a simple reply after chunks")
			}
			a.cookie, a.errno = h.Cookie, h.Error
			if h.Error == 0 && !p.structured {
				a.data = p.recv(dataLen)
			}
			return a
		}
		if p.chunk(magic, &a) {
			return a
		}
	}
}

// chunk reads one chunk, whose magic was read, and reports whether it is the last.
func (p *peer) chunk(magic []byte, a *answer) bool {
	p.t.Helper()
	var h wire.Chunk
	var ok bool
	if p.extended {
		h, ok = wire.ParseExtendedChunk(append(magic, p.recv(wire.ExtendedReplySize-4)...))
	} else {
		h, ok = wire.ParseChunk(append(magic, p.recv(wire.StructuredReplySize-4)...))
	}
	if !ok || !p.structured {
		p.t.Fatalf("reply begins with %x", magic)
	}
	if len(a.chunks) > 0 && a.cookie != h.Cookie {
		p.t.Fatal("chunks of two replies are mixed, which this test does not expect")
	}
	body := p.recv(int(h.Length))
	a.cookie = h.Cookie
	a.chunks = append(a.chunks, h.Type)
	switch h.Type {
	case wire.ChunkNone:
		if len(body) != 0 || h.Flags != wire.ChunkDone {
			p.t.Fatalf("NONE %+v", h)
		}
	case wire.ChunkOffsetData:
		a.data = append(a.data, body[8:]...)
	case wire.ChunkOffsetHole:
		a.data = append(a.data, make([]byte, be.Uint32(body[8:]))...)
	case wire.ChunkError:
		a.errno = wire.Errno(be.Uint32(body))
		a.text = string(body[6:])
		if int(be.Uint16(body[4:])) != len(a.text) {
			p.t.Fatalf("message length %d, but %q", be.Uint16(body[4:]), a.text)
		}
	case wire.ChunkBlockStatus:
		for e := body[4:]; len(e) > 0; e = e[8:] {
			a.status[be.Uint32(body)] = append(a.status[be.Uint32(body)], [2]uint64{uint64(be.Uint32(e)), uint64(be.Uint32(e[4:]))})
		}
	case wire.ChunkBlockStatusExt:
		if int(be.Uint32(body[4:])) != (len(body)-8)/16 {
			p.t.Fatalf("count %d in a chunk of %d bytes", be.Uint32(body[4:]), len(body))
		}
		for e := body[8:]; len(e) > 0; e = e[16:] {
			a.status[be.Uint32(body)] = append(a.status[be.Uint32(body)], [2]uint64{be.Uint64(e), be.Uint64(e[8:])})
		}
	default:
		p.t.Fatalf("chunk %v", h.Type)
	}
	return h.Flags&wire.ChunkDone != 0
}

// do sends a request without payload and reads its reply.
func (p *peer) do(r wire.Request) answer {
	p.t.Helper()
	p.req(r)
	a := p.reply(dataLen(r))
	if a.cookie != r.Cookie {
		p.t.Fatalf("%v: cookie %#x, want %#x", r.Type, a.cookie, r.Cookie)
	}
	return a
}

// dataLen is how many bytes a simple reply to r holds where it succeeds.
func dataLen(r wire.Request) int {
	if r.Type == wire.CmdRead {
		return int(r.Length)
	}
	return 0
}

// alive expects the connection to serve.
func (p *peer) alive() {
	p.t.Helper()
	if a := p.do(wire.Request{Type: wire.CmdRead, Cookie: 0xa11, Length: 1}); a.errno != 0 || len(a.data) != 1 {
		p.t.Fatalf("after that, READ: %+v", a)
	}
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		b.WriteString(strings.Join(strings.Fields(line), ""))
	}
	p, err := hex.DecodeString(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// settled waits until there are no more goroutines than before, for those that have done their work but have not gone yet.
func settled(t testing.TB, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if n := runtime.NumGoroutine(); n <= before {
			return
		} else if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before\n%s", n, before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// eventually waits until ok reports true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came to pass: ", what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
