package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// descriptors returns how many the process has open, 0 where the system does not tell.
func descriptors() int {
	names, _ := os.ReadDir("/proc/self/fd")
	return len(names)
}

// TestPlaintextBehindStartTLS: what follows STARTTLS unencrypted is never looked at (CVE-2021-3716).
func TestPlaintextBehindStartTLS(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0)), TLS: new(secure.Server)})
	p := dial().greet(bothFlags)
	p.send(optionBytes(wire.OptStartTLS, nil), optionBytes(wire.OptStructuredReply, nil))
	p.gone()
}

// session is what a client sends that does a bit of everything.
func session() []byte {
	p := &peer{extended: true}
	s := be.AppendUint32(nil, uint32(bothFlags))
	s = append(s, optionBytes(wire.OptExtendedHeaders, nil)...)
	s = append(s, optionBytes(wire.OptList, nil)...)
	s = append(s, optionBytes(wire.OptSetMetaContext, metaData("", wire.BaseAllocation))...)
	s = append(s, optionBytes(wire.OptInfo, infoData("", wire.InfoName))...)
	s = append(s, optionBytes(wire.OptGo, infoData(""))...)
	for _, r := range []wire.Request{
		{Type: wire.CmdRead, Length: 4096}, {Type: wire.CmdBlockStatus, Length: 4096}, {Type: wire.CmdFlush}, {Type: wire.CmdTrim, Length: 512},
		{Type: wire.CmdWriteZeroes, Length: 512}, {Type: wire.CmdRead, Length: 100 << 10},
	} {
		s = append(s, p.reqBytes(r)...)
	}
	s = append(s, p.reqBytes(wire.Request{Type: wire.CmdWrite, Flags: pay, Length: 100})...)
	s = append(s, make([]byte, 100)...)
	s = append(s, p.reqBytes(wire.Request{Type: wire.CmdBlockStatus, Flags: pay, Length: 12})...)
	s = append(s, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
	return append(s, p.reqBytes(wire.Request{Type: wire.CmdDisc})...)
}

// play sends bytes to a server and returns when that has ended the connection.
func play(s *server.Server, input []byte) {
	mine, its := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ServeConn(context.Background(), its)
	}()
	go func() { _, _ = io.Copy(io.Discard, mine) }()
	_ = mine.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, _ = mine.Write(input)
	mine.Close()
	<-done
}

// TestTruncated cuts a session at every byte, and spoils it at every byte.
func TestTruncated(t *testing.T) {
	before, files := runtime.NumGoroutine(), descriptors()
	s := server.New(server.Config{Open: fixed(block.NewMemory(1 << 20)), List: list("")})
	whole := session()
	for n := range whole {
		play(s, whole[:n])
		spoiled := bytes.Clone(whole)
		spoiled[n] ^= 1 << (n % 8)
		play(s, spoiled)
		spoiled[n] = 0xff
		play(s, spoiled)
	}
	play(s, whole)
	if st := s.Stats(); st.Active != 0 || st.InFlight != 0 || st.Memory != 0 || st.Connections != int64(3*len(whole)+1) {
		t.Errorf("%+v", st)
	}
	settled(t, before)
	if n := descriptors(); n > files {
		t.Errorf("%d descriptors, %d before", n, files)
	}
}

func TestRandomBytes(t *testing.T) {
	before := runtime.NumGoroutine()
	s := server.New(server.Config{Open: fixed(block.NewMemory(1 << 20)), List: list("")})
	rnd := rand.New(rand.NewPCG(1, 2))
	start := session()
	for range 300 {
		junk := make([]byte, rnd.IntN(2000))
		for i := range junk {
			junk[i] = byte(rnd.Uint32())
		}
		play(s, junk)
		play(s, append(start[:len(start)-wire.ExtendedRequestSize:len(start)-wire.ExtendedRequestSize], junk...))
	}
	if st := s.Stats(); st.Memory != 0 || st.InFlight != 0 {
		t.Errorf("%+v", st)
	}
	settled(t, before)
}

// TestSlowReader: clients that ask for much and fetch nothing take neither memory nor time from one that behaves.
func TestSlowReader(t *testing.T) {
	before := runtime.NumGoroutine()
	d := block.NewMemory(8 << 20)
	check(t, d.Write(context.Background(), bytes.Repeat([]byte("data"), 2<<20), 0, 0))
	t.Run("", func(t *testing.T) {
		s, dial := serve(t, server.Config{Open: fixed(d), Memory: 4 << 20})
		for i := range 12 {
			p := dial().enter(modes[i%3], "")
			for range 200 {
				_ = p.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				if _, err := p.Write(p.reqBytes(wire.Request{Type: wire.CmdRead, Length: 4 << 20})); err != nil {
					break
				}
			}
		}
		for _, mode := range modes {
			p := dial().enter(mode, "")
			for range 5 {
				a := p.do(wire.Request{Type: wire.CmdRead, Length: 8 << 20})
				if a.errno != 0 || len(a.data) != 8<<20 || a.data[5<<20] != 'd' {
					t.Fatalf("%v, %d bytes", a.errno, len(a.data))
				}
				p.write(1, 0, a.data[:4<<20], 0)
				if a := p.reply(0); a.errno != 0 {
					t.Fatalf("WRITE: %+v", a)
				}
			}
		}
		if st := s.Stats(); st.Memory > 4<<20+15*64<<10 {
			t.Errorf("buffers hold %d bytes", st.Memory)
		}
	})
	settled(t, before)
}

// TestStream: where memory is short, a reply that must be in one piece is read while it is sent. An error in the middle of it cannot be unsaid.
func TestStream(t *testing.T) {
	const size = 2 << 20
	d := block.NewMemory(size)
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	check(t, d.Write(context.Background(), content, 0, 0))
	bad := blocktest.NewFaulty(d, blocktest.Fault{Ops: blocktest.OpRead, Off: size - 512, Len: 1, Err: errors.New("bad sector")})
	for _, dev := range []block.Device{d, bad} {
		_, dial := serve(t, server.Config{Open: fixed(dev), Memory: 128 << 10})
		p := dial().enter("simple", "")
		p.req(wire.Request{Type: wire.CmdRead, Length: size})
		var a answer
		if dev == bad {
			if got, err := io.ReadAll(p); len(got) >= 16+size || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		} else if a = p.reply(size); a.errno != 0 || !bytes.Equal(a.data, content) {
			t.Errorf("simple: %v", a.errno)
		}
		p = dial().enter("structured", "")
		a = p.do(wire.Request{Type: wire.CmdRead, Flags: df, Length: size})
		switch {
		case dev == d && (a.errno != 0 || !bytes.Equal(a.data, content)):
			t.Errorf("DF: %v", a.errno)
		case dev == bad && (a.errno != wire.EIO || a.text != "bad sector" || len(a.data) != size):
			t.Errorf("DF: %v %q, %d bytes", a.errno, a.text, len(a.data))
		}
		p.alive()
	}
}

// TestHalfClosed: a client that sends no more still gets what it has asked for.
func TestHalfClosed(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	p := dial().enter("simple", "")
	for range 50 {
		p.req(wire.Request{Type: wire.CmdRead, Length: 10000})
	}
	check(t, p.Conn.(*net.UnixConn).CloseWrite())
	if all, err := io.ReadAll(p); err != nil || len(all) != 50*(16+10000) {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

// TestDisconnect: DISC ends the connection after everything before it was answered.
func TestDisconnect(t *testing.T) {
	d := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Delay: 20 * time.Millisecond})
	_, dial := serve(t, server.Config{Open: fixed(d)})
	p := dial().enter("simple", "")
	for range 20 {
		p.req(wire.Request{Type: wire.CmdRead, Length: 100})
	}
	p.req(wire.Request{Type: wire.CmdDisc})
	if all, err := io.ReadAll(p); err != nil || len(all) != 20*116 {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

// TestVanished: clients that go at any moment, with requests in flight, leave nothing behind.
func TestVanished(t *testing.T) {
	before, files := runtime.NumGoroutine(), descriptors()
	d := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Delay: time.Millisecond})
	var closed sync.WaitGroup
	s, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		closed.Add(1)
		return &server.Export{Device: d, Close: func() error { closed.Done(); return nil }}, nil
	}})
	for i := range 60 {
		p := dial().enter(modes[i%3], "")
		for range i {
			p.req(wire.Request{Type: wire.CmdRead, Length: 200 << 10})
		}
		switch i % 4 {
		case 0: // in the middle of a payload
			p.write(1, 0, make([]byte, 100), 0)
			b := p.reqBytes(wire.Request{Type: wire.CmdWrite, Flags: pay, Length: 600 << 10})
			p.send(b, make([]byte, 300<<10))
		case 1: // in the middle of a header
			p.send(make([]byte, 7))
		}
		p.Close()
	}
	closed.Wait()
	eventually(t, "all have gone", func() bool { return s.Stats().Active == 0 })
	if st := s.Stats(); st.Active != 0 || st.Memory != 0 {
		t.Errorf("%+v", st)
	}
	if n := descriptors(); n > files+1 { // the listener
		t.Errorf("%d descriptors, %d before", n, files)
	}
	settled(t, before+1)
}

// TestBadMagic: there is no telling where the next request begins.
func TestBadMagic(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	for _, mode := range modes {
		p := dial().enter(mode, "")
		p.send(make([]byte, wire.ExtendedRequestSize))
		p.gone()
	}
}

func TestIdleTimeout(t *testing.T) {
	d := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Len: 1, Delay: 600 * time.Millisecond})
	s, dial := serve(t, server.Config{Open: fixed(d), IdleTimeout: 250 * time.Millisecond})
	p := dial().enter("simple", "")
	if a := p.do(wire.Request{Type: wire.CmdRead, Length: 1}); a.errno != 0 { // a slow device is not an idle client
		t.Errorf("%+v", a)
	}
	for range 20 { // nor is one of which the requests are done where they are read
		if a := p.do(wire.Request{Type: wire.CmdRead, Offset: 512, Length: 1}); a.errno != 0 {
			t.Errorf("%+v", a)
		}
	}
	if a := p.do(wire.Request{Type: wire.CmdRead, Length: 1}); a.errno != 0 {
		t.Errorf("%+v", a)
	}
	p.gone()
	p = dial().enter("simple", "") // that stops in the middle of a payload
	p.send(p.reqBytes(wire.Request{Type: wire.CmdWrite, Length: 100}), make([]byte, 50))
	p.gone()
	p = dial().enter("structured", "") // that fetches nothing
	for range 30 {
		p.req(wire.Request{Type: wire.CmdRead, Offset: 512, Length: 100 << 10})
		p.req(wire.Request{Type: wire.CmdFlush})
	}
	eventually(t, "it is gone", func() bool { return s.Stats().Active == 0 })
}

// longest is a connection that keeps the length of the longest write.
type longest struct {
	net.Conn
	n int
}

func (l *longest) Write(p []byte) (int, error) {
	l.n = max(l.n, len(p))
	return l.Conn.Write(p)
}

// TestLongReplies: a long reply goes out in steps, so that a slow client is not taken for one that fetches nothing.
func TestLongReplies(t *testing.T) {
	for _, memory := range []int64{16 << 20, 1 << 10} { // for all of the reply, and for none of it
		s := server.New(server.Config{Open: fixed(block.NewMemory(8 << 20)), Memory: memory})
		mine, its := net.Pipe()
		l := &longest{Conn: its}
		var wait sync.WaitGroup
		wait.Go(func() { check(t, s.ServeConn(t.Context(), l)) })
		p := &peer{t: t, Conn: mine}
		p.enter("simple", "")
		if a := p.do(wire.Request{Type: wire.CmdRead, Length: 8 << 20}); a.errno != 0 || len(a.data) != 8<<20 {
			t.Errorf("%v, %d bytes", a.errno, len(a.data))
		}
		p.req(wire.Request{Type: wire.CmdDisc})
		wait.Wait()
		mine.Close()
		if l.n > 512<<10 {
			t.Errorf("%d bytes at once", l.n)
		}
	}
}

func TestMaxClients(t *testing.T) {
	s, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20)), MaxClients: 2})
	a, b := dial().enter("simple", ""), dial().enter("simple", "")
	c := dial()
	if n := s.Stats().Connections; n != 2 {
		t.Errorf("%d connections", n)
	}
	a.alive()
	b.alive()
	a.Close()
	c.enter("simple", "").alive()
}

// TestShutdown: requests in flight end well, later ones get ESHUTDOWN, negotiation gets ERR_SHUTDOWN, and then everybody is gone.
func TestShutdown(t *testing.T) {
	before := runtime.NumGoroutine()
	d := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpWrite, Delay: 100 * time.Millisecond})
	t.Run("", func(t *testing.T) {
		s, dial := serve(t, server.Config{Open: fixed(d)})
		talking, working, half, idle := dial().greet(bothFlags), dial().enter("structured", ""), dial().enter("simple", ""), dial().enter("simple", "")
		working.write(1, 0, make([]byte, 300<<10), 0)
		half.send(half.reqBytes(wire.Request{Type: wire.CmdWrite, Cookie: 3, Length: 300 << 10}), make([]byte, 100<<10))
		for s.Stats().InFlight < 2 {
			time.Sleep(time.Millisecond)
		}
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(context.Background()) }()
		time.Sleep(20 * time.Millisecond)
		talking.must(wire.OptInfo, infoData(""), wire.RepErrShutdown)
		talking.gone()
		working.req(wire.Request{Type: wire.CmdRead, Cookie: 2, Length: 512})
		answers := map[uint64]wire.Errno{}
		for range 2 {
			a := working.reply(0)
			answers[a.cookie] = a.errno
		}
		if fmt.Sprint(answers) != fmt.Sprint(map[uint64]wire.Errno{1: 0, 2: wire.ESHUTDOWN}) {
			t.Errorf("answers %v", answers)
		}
		working.gone()
		idle.gone()
		time.Sleep(250 * time.Millisecond) // longer than it hears clients
		half.send(make([]byte, 200<<10))
		if a := half.reply(0); a.errno != 0 || a.cookie != 3 {
			t.Errorf("WRITE whose payload came during Shutdown: %+v", a)
		}
		half.gone()
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	settled(t, before)
}

// TestShutdownCuts: connections that do not come to an end are cut with the context.
func TestShutdownCuts(t *testing.T) {
	before := runtime.NumGoroutine()
	d := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Delay: time.Hour})
	t.Run("", func(t *testing.T) {
		s, dial := serve(t, server.Config{Open: fixed(d)})
		p := dial().enter("simple", "")
		p.req(wire.Request{Type: wire.CmdRead, Length: 512})
		for s.Stats().InFlight == 0 {
			time.Sleep(time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if _, err := io.ReadAll(p); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("the client sees %v", err)
		}
	})
	settled(t, before)
}

// meeting is a device whose reads wait for each other, so many at a time.
type meeting struct {
	block.Device
	size int32
	here atomic.Int32
	all  chan struct{}
}

func (m *meeting) Read(ctx context.Context, p []byte, off int64) error {
	if m.here.Add(1) == m.size {
		close(m.all)
	}
	select {
	case <-m.all:
		return m.Device.Read(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestInFlight: a device that lets its callers wait gets many at a time, small and big.
func TestInFlight(t *testing.T) {
	for _, n := range []uint64{512, 100 << 10} {
		m := &meeting{Device: block.NewMemory(1 << 20), size: 40, all: make(chan struct{})}
		_, dial := serve(t, server.Config{Open: fixed(m)})
		p := dial().enter("simple", "")
		for range m.size {
			p.req(wire.Request{Type: wire.CmdRead, Length: n})
		}
		for range m.size {
			if a := p.reply(int(n)); a.errno != 0 {
				t.Fatalf("%+v", a)
			}
		}
	}
}
