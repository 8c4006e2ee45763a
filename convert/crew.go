package convert

import (
	"context"
	"iter"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// firstWorkers is how many workers there are in the beginning at least, if there may be as many: they keep a server on this machine busy, and what few
// have read is still in the processor's cache when it is used.
const firstWorkers = 8

// isSlow reports whether a task of n bytes that took so long has waited for something far away.
func isSlow(n int64, took time.Duration) bool {
	return took > 2*time.Millisecond+time.Duration(n)*8*time.Millisecond/farRequest
}

// each has workers deal with all tasks, none longer than request where it has data, and stops at the first error. It begins with some of the
// workers. Whenever as many tasks in a row as there are workers have been slow, it doubles them.
func each(ctx context.Context, workers int, request int64, todo iter.Seq2[task, error], do func(ctx context.Context, t task, b *buffers) error) error {
	g, ctx := errgroup.WithContext(ctx)
	c := &crew{most: int64(workers), request: request, do: do, queue: make(chan task)}
	g.Go(func() error {
		defer close(c.queue)
		for t, err := range todo {
			if err != nil {
				return err
			}
			select {
			case c.queue <- t:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	c.grow(ctx, g, int64(max(firstWorkers, 2*runtime.GOMAXPROCS(0))))
	return g.Wait()
}

// crew is the workers of one call of each.
type crew struct {
	most    int64
	request int64
	do      func(ctx context.Context, t task, b *buffers) error
	queue   chan task

	begun atomic.Int64
	slow  atomic.Int64 // tasks in a row
}

// grow begins n more workers, as far as there may be so many.
func (c *crew) grow(ctx context.Context, g *errgroup.Group, n int64) {
	for ; n > 0 && c.begun.Load() < c.most; n-- {
		if c.begun.Add(1) <= c.most {
			g.Go(func() error { return c.work(ctx, g) })
		}
	}
}

// work is what a worker does.
func (c *crew) work(ctx context.Context, g *errgroup.Group) error {
	b := &buffers{size: c.request}
	for t := range c.queue {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := time.Now()
		if err := c.do(ctx, t, b); err != nil {
			return err
		}
		switch n := c.begun.Load(); {
		case n >= c.most:
		case isSlow(min(t.n, c.request), time.Since(start)):
			if c.slow.Add(1) >= n {
				c.slow.Store(0)
				c.grow(ctx, g, n)
			}
		case t.kind.data(): // others may have had nothing to do
			c.slow.Store(0)
		}
	}
	return nil
}
