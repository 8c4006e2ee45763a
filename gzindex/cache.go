package gzindex

import (
	"container/list"
	"context"
	"sync"
)

// piece is a range of the image that is decoded and cached together: blockLen bytes of a span, or what is left at its end.
type piece struct {
	off int64
	len int64
}

// cache keeps decoded pieces, the least recently used leave first.
type cache struct {
	limit int64 // bytes

	mu    sync.Mutex
	used  int64
	items map[piece]*list.Element
	order list.List // of *cached, the most recently used first
}

type cached struct {
	piece piece
	data  []byte
}

// get returns a piece if it is there. The caller does not change the bytes.
func (c *cache) get(p piece) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[p]
	if e == nil {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).data, true
}

// put keeps a piece. The caller does not change the bytes any more.
func (c *cache) put(p piece, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.items[p] != nil {
		return
	}
	if c.items == nil {
		c.items = map[piece]*list.Element{}
	}
	c.items[p] = c.order.PushFront(&cached{p, data})
	c.used += costOf(data)
	for c.used > c.limit && c.order.Len() > 0 {
		old := c.order.Remove(c.order.Back()).(*cached)
		delete(c.items, old.piece)
		c.used -= costOf(old.data)
	}
}

// costOf returns about how much memory a piece takes.
func costOf(data []byte) int64 {
	const entry = 256
	if len(data) == 0 || &data[0] == &zeroPiece[0] {
		return entry
	}
	return entry + windowLen + int64(len(data))
}

// flights lets one goroutine at a time do a piece of work, and the others wait until it is done or has failed.
type flights struct {
	mu   sync.Mutex
	busy map[piece]chan struct{}
}

// begin returns true to who is to do the work and call end. To others it returns false, or an error, once the work has ended.
func (f *flights) begin(ctx context.Context, p piece) (bool, error) {
	f.mu.Lock()
	done := f.busy[p]
	if done == nil {
		if f.busy == nil {
			f.busy = map[piece]chan struct{}{}
		}
		f.busy[p] = make(chan struct{})
	}
	f.mu.Unlock()
	if done == nil {
		return true, nil
	}
	select {
	case <-done:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (f *flights) end(p piece) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.busy[p])
	delete(f.busy, p)
}

// cursors is a limited number of cursors, each in use or at rest in a span.
type cursors struct {
	free chan struct{} // holds a token for every cursor that may be in use

	mu   sync.Mutex
	made int
	rest []*cursor // the one that has rested longest first
}

func newCursors(n int) *cursors {
	c := &cursors{free: make(chan struct{}, n)}
	for range n {
		c.free <- struct{}{}
	}
	return c
}

// take returns the cursor that rests nearest before byte at of a span, or any other, and whether it is in that span. It waits
// where all are in use. The caller gives it back.
func (c *cursors) take(ctx context.Context, sp span, at int64) (cur *cursor, inside bool, err error) {
	select {
	case <-c.free:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	best := -1
	for i, r := range c.rest {
		if r.sp.image == sp.image && r.sp.len == sp.len && r.at <= at && r.at < r.sp.len && (best < 0 || r.at > c.rest[best].at) {
			best = i
		}
	}
	inside = best >= 0
	switch {
	case !inside && c.made < cap(c.free):
		c.made++
		return &cursor{}, false, nil
	case !inside:
		best = 0
	}
	cur = c.rest[best]
	c.rest = append(c.rest[:best], c.rest[best+1:]...)
	return cur, inside, nil
}

// give takes a cursor back. One that failed, or is at its span's end, is of no span any more.
func (c *cursors) give(cur *cursor, failed bool) {
	if failed {
		cur.sp = span{}
	}
	c.mu.Lock()
	c.rest = append(c.rest, cur)
	c.mu.Unlock()
	c.free <- struct{}{}
}
