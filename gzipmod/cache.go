package gzipmod

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// chunkCache keeps decoded chunks, the least recently used leave first. Two readers of a missing chunk decode it once.
type chunkCache struct {
	limit int64 // bytes; one chunk is kept in any case

	mu    sync.Mutex
	used  int64
	items map[int]*cached
	order list.List // of *cached, the most recently used first
}

type cached struct {
	chunk int
	ready chan struct{} // closed when data and err are set
	data  []byte
	err   error
	size  int64
	elem  *list.Element
}

// get returns chunk i, of n bytes, which load decodes where it is not there. The caller does not change the bytes.
func (c *chunkCache) get(ctx context.Context, i int, n int64, load func(p []byte) error) ([]byte, error) {
	c.mu.Lock()
	for it := c.items[i]; it != nil; it = c.items[i] {
		c.order.MoveToFront(it.elem)
		c.mu.Unlock()
		select {
		case <-it.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !errors.Is(it.err, context.Canceled) && !errors.Is(it.err, context.DeadlineExceeded) {
			return it.data, it.err
		}
		c.mu.Lock() // the loading one was told to stop, this one was not
	}
	it := &cached{chunk: i, ready: make(chan struct{}), size: n}
	if c.items == nil {
		c.items = map[int]*cached{}
	}
	c.items[i] = it
	it.elem = c.order.PushFront(it)
	c.used += n
	for c.used > c.limit && c.order.Len() > 1 {
		c.drop(c.order.Back().Value.(*cached))
	}
	c.mu.Unlock()

	data := make([]byte, n)
	if it.err = load(data); it.err == nil {
		it.data = data
	}
	if it.err != nil { // the next reader tries again
		c.mu.Lock()
		if c.items[i] == it {
			c.drop(it)
		}
		c.mu.Unlock()
	}
	close(it.ready)
	return it.data, it.err
}

// peek returns chunk i if it is there.
func (c *chunkCache) peek(i int) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[i]
	if it == nil {
		return nil, false
	}
	select {
	case <-it.ready:
		c.order.MoveToFront(it.elem)
		return it.data, it.err == nil
	default:
		return nil, false
	}
}

func (c *chunkCache) drop(it *cached) {
	delete(c.items, it.chunk)
	c.order.Remove(it.elem)
	c.used -= it.size
}
