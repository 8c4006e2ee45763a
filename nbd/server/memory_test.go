package server_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// TestHalfWrites: what clients that stop in the middle of a payload keep in memory is counted, and others are served.
func TestHalfWrites(t *testing.T) {
	const (
		clients = 40
		limit   = 512 << 10 // less than the clients would like to have
		payload = 20 << 10
		reserve = 64 << 10 // of each connection
	)
	s, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20)), Memory: limit})
	var half []*peer
	for i := range clients {
		p := dial().enter(modes[i%3], "")
		r := wire.Request{Type: wire.CmdWrite, Length: payload}
		if p.extended {
			r.Flags = pay
		}
		p.send(p.reqBytes(r), make([]byte, payload/2))
		half = append(half, p)
	}
	eventually(t, "all payloads lie in counted memory", func() bool { return s.Stats().Memory >= clients*payload })
	if n := s.Stats().Memory; n > limit+clients*reserve {
		t.Errorf("buffers hold %d bytes", n)
	}
	for _, mode := range modes { // small and big, read and written
		p := dial().enter(mode, "")
		for _, n := range []int{1, 600, payload, 300 << 10} {
			p.write(1, 0, make([]byte, n), 0)
			if a := p.reply(0); a.errno != 0 {
				t.Errorf("%s: WRITE of %d bytes: %+v", mode, n, a)
			}
			if a := p.do(wire.Request{Type: wire.CmdRead, Length: uint64(n)}); a.errno != 0 {
				t.Errorf("%s: READ of %d bytes: %+v", mode, n, a)
			}
		}
		p.write(1, 1<<20, make([]byte, payload), 0) // refused, and skipped
		if a := p.reply(0); a.errno != wire.ENOSPC {
			t.Errorf("%s: %+v", mode, a)
		}
	}
	for _, p := range half {
		p.send(make([]byte, payload/2))
		if a := p.reply(0); a.errno != 0 {
			t.Errorf("%+v", a)
		}
	}
	eventually(t, "no memory is held", func() bool { return s.Stats().Memory == 0 })
}

// TestOptionWithoutMemory: there may be no room for a long option.
func TestOptionWithoutMemory(t *testing.T) {
	s, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20)), Memory: 128 << 10})
	p := dial().greet(bothFlags)
	p.must(wire.OptGo, make([]byte, 200<<10), wire.RepErrTooBig)
	p.must(wire.OptInfo, make([]byte, 40<<10), wire.RepErrInvalid)
	if n := s.Stats().Memory; n > 64<<10 {
		t.Errorf("buffers hold %d bytes", n)
	}
	infos(t, p.option(wire.OptInfo, infoData("")))
}

// TestLengthsOfRefusals: what is refused adds no bytes to what is told of the commands.
func TestLengthsOfRefusals(t *testing.T) {
	s, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	p := dial().enter("extended", "")
	for _, n := range []uint64{1 << 63, 1<<64 - 1} {
		if a := p.do(wire.Request{Type: wire.CmdTrim, Length: n}); a.errno != wire.EINVAL {
			t.Errorf("%+v", a)
		}
	}
	if c := s.Stats().Requests[wire.CmdTrim]; c.Count != 2 || c.Errors != 2 || c.Bytes != 0 {
		t.Errorf("%+v", c)
	}
}

// TestRepliesNotFetched: small replies that a client does not fetch cost it its memory, and no more.
func TestRepliesNotFetched(t *testing.T) {
	const limit = 2 << 20
	// A big read that a goroutine serves, and that blocks the connection; the rest are served where they are read.
	d := blocktest.NewFaulty(block.NewMemory(4<<20), blocktest.Fault{Ops: blocktest.OpRead, Off: 1 << 20, Len: 1, Delay: time.Millisecond})
	s, dial := serve(t, server.Config{Open: fixed(d), Memory: limit})
	p := dial().enter("simple", "")
	for range 200 {
		p.write(1, 0, make([]byte, 16), 0)
		p.reply(0)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p.req(wire.Request{Type: wire.CmdRead, Offset: 1 << 20, Length: limit / 4})
	small := p.reqBytes(wire.Request{Type: wire.CmdWrite, Length: 30 << 10})
	small = append(small, make([]byte, 30<<10)...)
	_ = p.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for range 1000 {
		if _, err := p.Write(small); err != nil {
			break
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 4*limit {
		t.Errorf("%d bytes on the heap, of which %d are counted", n, s.Stats().Memory)
	}
	if n := s.Stats().Memory; n > limit {
		t.Errorf("buffers hold %d bytes", n)
	}
	p.Close()
	eventually(t, "no memory is held", func() bool { return s.Stats().Memory == 0 })
}
