package client_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// TestReadCancelled gives up a read whose payload is half here: the buffer is the caller's own again, and what comes later belongs to nobody.
func TestReadCancelled(t *testing.T) {
	leaks(t)
	for _, memory := range []bool{false, true} {
		half, goOn := make(chan struct{}), make(chan struct{})
		conn := serve(t, memory, func(f *fake) {
			f.negotiate()
			r, _ := f.request()
			b := make([]byte, wire.StructuredReplySize)
			wire.Chunk{Type: wire.ChunkOffsetData, Flags: done, Cookie: r.Cookie, Length: 8 + r.Length}.Put(b)
			whole := patterned(r.Offset, int(r.Length))
			f.send(b, u64(r.Offset), whole[:r.Length/2])
			close(half)
			<-goOn
			f.send(whole[r.Length/2:])
			r, _ = f.request()
			f.chunk(r, wire.ChunkOffsetData, done, u64(r.Offset), patterned(r.Offset, int(r.Length)))
		})
		n := agreed(t, conn, structured, client.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-half
			time.Sleep(10 * time.Millisecond) // so that the receiver waits for the rest
			cancel()
		}()
		p := make([]byte, 256<<10)
		if err := n.Read(ctx, p, 4096, 0); !errors.Is(err, context.Canceled) {
			t.Fatalf("the error is %v", err)
		}
		clear(p) // under the race detector this shows who else writes
		close(goOn)
		q := make([]byte, 64<<10)
		if err := n.Read(t.Context(), q, 512, 0); err != nil || !bytes.Equal(q, patterned(512, len(q))) {
			t.Errorf("the next read: %v, or other bytes", err)
		}
		if !block.IsZero(p) {
			t.Error("the buffer was written after the call had returned")
		}
	}
}

// TestWriteCancelled gives up a write of which the server takes nothing, and a request behind it.
func TestWriteCancelled(t *testing.T) {
	leaks(t)
	for _, memory := range []bool{false, true} {
		goOn, got := make(chan struct{}), make(chan []byte, 1)
		conn := serve(t, memory, func(f *fake) {
			f.negotiate()
			<-goOn
			r, p := f.request()
			got <- p
			f.finish(r)
			r, _ = f.request()
			if r.Type != wire.CmdTrim {
				t.Errorf("the server got %s, which was given up before it was sent", r.Type)
			}
			f.finish(r)
		})
		n := agreed(t, conn, structured, client.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p := patterned(0, 900<<10)
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := n.Write(ctx, p, 0, 0); !errors.Is(err, context.Canceled) {
				t.Errorf("the write: %v", err)
			}
			clear(p) // under the race detector this shows who else reads
		})
		time.Sleep(20 * time.Millisecond)
		behind, stop := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, stop)
		if err := n.Flush(behind, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("the flush behind it: %v", err)
		}
		cancel()
		wait.Wait()
		close(goOn)
		if err := n.Trim(t.Context(), 0, 4096, 0); err != nil {
			t.Errorf("a request after that: %v", err)
		}
		if !bytes.Equal(<-got, patterned(0, 900<<10)) {
			t.Error("the server got other bytes than the caller had at the time of the call")
		}
	}
}

// TestEarlyAnswer: a server may answer a write before it has read it; the caller's memory is not his own until it was sent.
func TestEarlyAnswer(t *testing.T) {
	leaks(t)
	conn := serve(t, false, func(f *fake) {
		f.negotiate()
		r, ok := wire.ParseRequest(f.read(wire.RequestSize))
		if ok {
			f.simple(r, wire.EPERM)
		}
		time.Sleep(20 * time.Millisecond)
		if !block.IsZero(f.read(int(r.Length))) {
			t.Error("the caller could change what was still to be sent")
		}
		r, _ = f.request()
		f.finish(r)
	})
	n := agreed(t, conn, structured, client.Config{})
	p := make([]byte, fakeSize)
	if err := n.Write(t.Context(), p, 0, 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("the write: %v", err)
	}
	pattern(p, 0)
	if err := n.Flush(t.Context(), 0); err != nil {
		t.Errorf("a request after that: %v", err)
	}
}

// TestAnswerAhead: a server that guesses the cookie of a request that waits to be sent does not get the call answered, of which the sender has need.
func TestAnswerAhead(t *testing.T) {
	leaks(t)
	queued := make(chan struct{})
	conn := serve(t, true, func(f *fake) {
		f.negotiate()
		<-queued
		f.simple(wire.Request{Cookie: 2}, 0)
	})
	n := agreed(t, conn, structured, client.Config{})
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := n.Flush(t.Context(), 0); !isProtocol(err) {
			t.Errorf("the request that the server does not read: %v", err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	wait.Go(func() {
		if err := n.Write(t.Context(), make([]byte, 512), 0, 0); !isProtocol(err) {
			t.Errorf("the request that was not sent: %v", err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	close(queued)
	wait.Wait()
}

// TestGivenUpWithoutEnd: a server that never answers loses the connection in the end.
func TestGivenUpWithoutEnd(t *testing.T) {
	leaks(t)
	conn := serve(t, false, func(f *fake) { f.negotiate() })
	n := agreed(t, conn, structured, client.Config{})
	for i := range 10000 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Microsecond)
		err := n.Flush(ctx, 0)
		cancel()
		if errors.Is(err, client.ErrDisconnected) {
			if i < 1000 {
				t.Errorf("the connection was given up after %d requests", i)
			}
			return
		}
	}
	t.Error("the connection lives on")
}
