package client_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// pattern fills p with what the test's disk holds at off.
func pattern(p []byte, off uint64) {
	for i := range p {
		x := off + uint64(i)
		p[i] = byte(x ^ x>>8 ^ x>>16*7)
	}
}

func patterned(off uint64, n int) []byte {
	p := make([]byte, n)
	pattern(p, off)
	return p
}

// disk is a server of patterned bytes that answers in any order, and in pieces.
func disk(f *fake, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f.negotiate()
	requests := make(chan wire.Request, 1000)
	go func() {
		defer close(requests)
		for {
			r, p := f.request()
			if r.Type == wire.CmdWrite && !bytes.Equal(p, patterned(r.Offset, len(p))) {
				f.Close() // the client will tell
			}
			requests <- r
		}
	}()
	var waiting []wire.Request
	for {
		if len(waiting) == 0 {
			r, open := <-requests
			if !open {
				return
			}
			waiting = append(waiting, r)
		}
		for len(requests) > 0 && len(waiting) < 20 {
			waiting = append(waiting, <-requests)
		}
		i := rnd.IntN(len(waiting))
		r := waiting[i]
		waiting = append(waiting[:i], waiting[i+1:]...)
		switch {
		case r.Type != wire.CmdRead:
			f.finish(r)
		case !f.structured:
			f.simple(r, 0, patterned(r.Offset, int(r.Length)))
		default:
			for at := r.Offset; at < r.Offset+r.Length; {
				k := min(1+rnd.Uint64N(r.Length), r.Offset+r.Length-at)
				f.chunk(r, wire.ChunkOffsetData, 0, u64(at), patterned(at, int(k)))
				at += k
			}
			f.chunk(r, wire.ChunkNone, done)
		}
	}
}

// TestManyAtOnce makes requests of all lengths from many goroutines, of which some are given up at any time.
func TestManyAtOnce(t *testing.T) {
	leaks(t)
	for _, m := range []mode{simple, structured, extended} {
		n := agreed(t, serve(t, m == structured, func(f *fake) { disk(f, 7) }), m, client.Config{})
		var wait sync.WaitGroup
		var whole, gone atomic.Int64
		for g := range uint64(8) {
			wait.Go(func() {
				rnd := rand.New(rand.NewPCG(g, 2))
				for range 60 {
					size := 1 + rnd.IntN(1<<(3+rnd.IntN(16)))
					off := rnd.IntN(fakeSize - size)
					ctx, cancel := t.Context(), context.CancelFunc(func() {})
					if rnd.IntN(4) == 0 {
						ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(2000))*time.Microsecond)
					}
					p := make([]byte, size)
					var err error
					if rnd.IntN(2) == 0 {
						if err = n.Read(ctx, p, int64(off), 0); err == nil && !bytes.Equal(p, patterned(uint64(off), size)) {
							t.Errorf("%d bytes at %d are others", size, off)
						}
					} else {
						pattern(p, uint64(off))
						err = n.Write(ctx, p, int64(off), 0)
					}
					clear(p) // under the race detector this shows who else uses it
					cancel()
					switch {
					case err == nil:
						whole.Add(1)
					case errors.Is(err, context.DeadlineExceeded):
						gone.Add(1)
					default:
						t.Error(err)
						return
					}
				}
			})
		}
		wait.Wait()
		if err := n.Disconnect(t.Context()); err != nil {
			t.Errorf("Disconnect: %v", err)
		}
		t.Logf("mode %d: %d requests answered, %d given up", m, whole.Load(), gone.Load())
		if whole.Load() == 0 {
			t.Error("nothing was answered")
		}
	}
}

// TestDisconnect lets what is in flight end, and refuses the rest.
func TestDisconnect(t *testing.T) {
	leaks(t)
	last := make(chan wire.Command, 1)
	conn := serve(t, false, func(f *fake) {
		f.negotiate()
		r, _ := f.request()
		time.Sleep(30 * time.Millisecond)
		f.finish(r)
		r, _ = wire.ParseRequest(f.read(wire.RequestSize))
		last <- r.Type
	})
	n := agreed(t, conn, structured, client.Config{})
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := n.Flush(t.Context(), 0); err != nil {
			t.Errorf("the flush in flight: %v", err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	if err := n.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
	wait.Wait()
	if got := <-last; got != wire.CmdDisc {
		t.Errorf("the last request is %s", got)
	}
	if err := n.Flush(t.Context(), 0); !errors.Is(err, client.ErrDisconnected) {
		t.Errorf("a flush after that: %v", err)
	}
}

// TestClosedMidway closes the connection under calls that wait.
func TestClosedMidway(t *testing.T) {
	leaks(t)
	conn := serve(t, false, func(f *fake) { f.negotiate() })
	n := agreed(t, conn, structured, client.Config{})
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			p := make([]byte, 900<<10)
			var err error
			if i%2 == 0 {
				err = n.Write(t.Context(), p, 0, 0)
			} else {
				err = n.Read(t.Context(), p, 0, 0)
			}
			clear(p)
			if !errors.Is(err, client.ErrDisconnected) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	n.Close()
	wait.Wait()
}

// TestChecked refuses what an export does not offer, before it is sent.
func TestChecked(t *testing.T) {
	conn := serve(t, false, func(f *fake) {
		f.flags = wire.HasFlags | wire.ReadOnly
		f.negotiate()
		f.request()
		t.Error("something was sent")
	})
	n := agreed(t, conn, structured, client.Config{})
	ctx := t.Context()
	var outside *block.RangeError
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"write":          {n.Write(ctx, make([]byte, 10), 0, 0), block.ErrReadOnly},
		"trim":           {n.Trim(ctx, 0, 10, 0), block.ErrReadOnly},
		"flush":          {n.Flush(ctx, 0), errors.ErrUnsupported},
		"cache":          {n.Cache(ctx, 0, 10, 0), errors.ErrUnsupported},
		"read with DF":   {n.Read(ctx, make([]byte, 10), 0, wire.FlagDF), errors.ErrUnsupported},
		"block status":   {n.BlockStatus(ctx, 0, 10, 0, nil, nil), errors.ErrUnsupported},
		"read no bytes":  {n.Read(ctx, nil, 0, 0), nil},
		"read no bytes ": {n.Read(ctx, nil, fakeSize, 0), nil},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	for _, off := range []int64{-1, fakeSize - 9, fakeSize + 1, 1<<63 - 1} {
		if err := n.Read(ctx, make([]byte, 10), off, 0); !errors.As(err, &outside) {
			t.Errorf("a read at %d: %v", off, err)
		}
	}
	if err := n.Read(ctx, make([]byte, 33<<20), 0, 0); err == nil {
		t.Error("a read of 33 MiB works")
	}
}

// TestUnchecked sends what the export does not offer, and takes the server's refusal.
func TestUnchecked(t *testing.T) {
	var seen []wire.Request
	conn := serve(t, false, func(f *fake) {
		f.flags = wire.HasFlags | wire.ReadOnly
		f.negotiate()
		for range 3 {
			r, _ := f.request()
			seen = append(seen, r)
			f.chunk(r, wire.ChunkError, done, message(wire.EINVAL, "no"))
		}
	})
	n := agreed(t, conn, structured, client.Config{Unchecked: true})
	var refused *client.CommandError
	if err := n.Write(t.Context(), []byte("abc"), fakeSize, 0xf0); !errors.As(err, &refused) || refused.Text != "no" {
		t.Errorf("write: %v", err)
	}
	if err := n.Read(t.Context(), nil, 1<<62, 0); !errors.As(err, &refused) {
		t.Errorf("read: %v", err)
	}
	chunks, err := n.Command(t.Context(), wire.Request{Type: 99, Cookie: 42, Flags: 0xffff &^ wire.FlagPayloadLen, Offset: 1<<64 - 1, Length: 7}, nil)
	if err != nil || len(chunks) != 1 || chunks[0].Header.Type != wire.ChunkError || chunks[0].Header.Cookie != 42 {
		t.Errorf("%v, %v", chunks, err)
	}
	if len(seen) != 3 || seen[0].Flags != 0xf0 || seen[2] != (wire.Request{Type: 99, Cookie: 42, Flags: 0xffff &^ wire.FlagPayloadLen, Offset: 1<<64 - 1, Length: 7}) {
		t.Errorf("the server saw %+v", seen)
	}
}

// TestPieces tells of each chunk as it came.
func TestPieces(t *testing.T) {
	conn := serve(t, false, func(f *fake) {
		f.negotiate()
		r, _ := f.request()
		f.chunk(r, wire.ChunkOffsetHole, 0, hole(5000, 1000))
		f.chunk(r, wire.ChunkErrorOffset, 0, message(wire.EIO, "bad sector"), u64(4999))
		f.chunk(r, wire.ChunkOffsetData, done, data(4096, 100)...)
	})
	n := agreed(t, conn, structured, client.Config{})
	p := bytes.Repeat([]byte{9}, 4096)
	var all []client.Piece
	err := n.ReadPieces(t.Context(), p, 4096, 0, func(p client.Piece) { all = append(all, p) })
	var refused *client.CommandError
	if !errors.As(err, &refused) || refused.Offset != 4999 || refused.Text != "bad sector" {
		t.Errorf("the error is %v", err)
	}
	if len(all) != 3 || all[0] != (client.Piece{Offset: 5000, Length: 1000, Hole: true}) || all[1].Err == nil || all[2] != (client.Piece{Offset: 4096, Length: 100}) {
		t.Errorf("the pieces are %+v", all)
	}
	if p[0] != 7 || p[99] != 7 || p[100] != 9 || p[903] != 9 || p[904] != 0 || p[1903] != 0 || p[1904] != 9 {
		t.Error("the buffer is not filled as the pieces say")
	}
}

// TestStatusOfSome asks for one context of two, with a payload.
func TestStatusOfSome(t *testing.T) {
	var seen wire.Request
	var payload []byte
	conn := serve(t, false, func(f *fake) {
		f.contexts = []client.MetaContext{{ID: 5, Name: "base:allocation"}, {ID: 6, Name: "x:y"}}
		f.negotiate()
		seen, payload = f.request()
		f.chunk(seen, wire.ChunkBlockStatusExt, done, u32(6), u32(2), u64(4096), u64(9), u64(1<<40), u64(8))
		r, _ := f.request()
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(1), u64(4096), u64(9))
	})
	n := agreed(t, conn, extended, client.Config{})
	var told []client.Extent
	each := func(c client.MetaContext, all []client.Extent) {
		if c.Name != "x:y" {
			t.Errorf("the server tells of %s", c.Name)
		}
		told = append(told, all...)
	}
	if err := n.BlockStatus(t.Context(), 8192, 8192, 0, []uint32{6}, each); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || told[0] != (client.Extent{Length: 4096, Flags: 9}) || told[1] != (client.Extent{Length: fakeSize - 8192 - 4096, Flags: 8}) {
		t.Errorf("the extents are %v", told)
	}
	if seen.Length != 12 || seen.Flags != wire.FlagPayloadLen || seen.Offset != 8192 || !bytes.Equal(payload, join(u64(8192), u32(6))) {
		t.Errorf("the server saw %+v with %x", seen, payload)
	}
	if err := n.BlockStatus(t.Context(), 8192, 8192, 0, []uint32{6}, each); !isProtocol(err) {
		t.Errorf("an answer about another context: %v", err)
	}
}

// TestCommandOfOldServers takes simple replies as chunks.
func TestCommandOfOldServers(t *testing.T) {
	conn := serve(t, false, func(f *fake) {
		f.negotiate()
		r, _ := f.request()
		f.simple(r, 0, patterned(r.Offset, int(r.Length)))
		r, _ = f.request()
		f.simple(r, wire.ESHUTDOWN)
		r, p := f.request()
		if string(p) != "payload" || r.Cookie != 1<<63 {
			t.Errorf("the server saw %+v with %q", r, p)
		}
		f.simple(r, 0)
	})
	n := agreed(t, conn, simple, client.Config{Unchecked: true})
	all, err := n.Command(t.Context(), wire.Request{Type: wire.CmdRead, Cookie: 3, Offset: 100, Length: 50}, nil)
	if err != nil || len(all) != 1 || all[0].Header.Type != wire.ChunkOffsetData || !bytes.Equal(all[0].Payload, join(u64(100), patterned(100, 50))) {
		t.Errorf("%v, %v", all, err)
	}
	all, err = n.Command(t.Context(), wire.Request{Type: wire.CmdRead, Cookie: 3, Length: 1 << 31}, nil)
	if err != nil || len(all) != 1 || all[0].Header.Type != wire.ChunkError || !bytes.Equal(all[0].Payload, message(wire.ESHUTDOWN, "")) {
		t.Errorf("%v, %v", all, err)
	}
	all, err = n.Command(t.Context(), wire.Request{Type: wire.CmdWrite, Cookie: 1 << 63, Length: 7}, []byte("payload"))
	if err != nil || len(all) != 1 || all[0].Header.Type != wire.ChunkNone || all[0].Header.Length != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestManyWrites sends more at a time than the connection takes at once, of all lengths around those at which payloads are sent in another way.
func TestManyWrites(t *testing.T) {
	leaks(t)
	for _, memory := range []bool{false, true} {
		n := agreed(t, serve(t, memory, func(f *fake) { disk(f, 3) }), structured, client.Config{})
		var wait sync.WaitGroup
		for g := range 20 {
			wait.Go(func() {
				for i, size := range []int{1, 8<<10 - 1, 8 << 10, 8<<10 + 1, 64 << 10, 64<<10 + 1, 300 << 10} {
					off := (g*7919 + i*31) % (fakeSize - size)
					if err := n.Write(t.Context(), patterned(uint64(off), size), int64(off), 0); err != nil {
						t.Errorf("%d bytes at %d: %v", size, off, err)
						return
					}
				}
			})
		}
		wait.Wait()
	}
}

// TestClosedUnderReplies closes the connection while replies stream in, and calls that come back are used for others: on another connection.
func TestClosedUnderReplies(t *testing.T) {
	leaks(t)
	for round := range uint64(30) {
		n := agreed(t, serve(t, false, func(f *fake) { disk(f, round) }), structured, client.Config{})
		var wait sync.WaitGroup
		for g := range 8 {
			wait.Go(func() {
				p := make([]byte, 5000)
				for i := 0; ; i++ {
					off := (g*7919 + i*31) % (fakeSize - len(p))
					err := n.Read(t.Context(), p, int64(off), 0)
					if err == nil && !bytes.Equal(p, patterned(uint64(off), len(p))) {
						t.Errorf("the bytes at %d are others", off)
					}
					clear(p)
					if err != nil {
						if !errors.Is(err, client.ErrDisconnected) {
							t.Errorf("the error is %v", err)
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(round%5) * time.Millisecond)
		n.Close()
		wait.Wait()
	}
}
