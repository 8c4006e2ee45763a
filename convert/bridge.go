package convert

import (
	"context"
	"iter"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
)

// Of what is far away, data that lies close together is read in one request with what is between: a request costs more than to move some zeros.
const (
	longestBridge = 32 << 10 // bytes that are read in vain at once; in all they are no more than those that are wanted
	partsAtOnce   = 8        // of one task that are written
)

// bridged joins tasks of data with the short ones between them, as far as they lie inside one multiple of request. What was joined are the
// parts of the new task.
func bridged(todo iter.Seq2[task, error], request int64) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		var j bridge
		for t, err := range todo {
			if err != nil {
				_ = j.flush(yield) && yield(task{}, err)
				return
			}
			if !j.add(t, request) && !(j.flush(yield) && (j.add(t, request) || yield(t, nil))) {
				return
			}
		}
		j.flush(yield)
	}
}

// bridge is what bridged has joined so far: parts that begin with data.
type bridge struct {
	parts []task
	data  int64 // bytes in those of data up to last
	gaps  int64 // bytes in the others up to last
	last  int   // parts up to the last one of data
	over  int64 // bytes after that
}

// add joins t, or reports that it does not fit.
func (j *bridge) add(t task, request int64) bool {
	if len(j.parts) > 0 && t.off/request != j.parts[0].off/request {
		return false
	}
	if t.kind.data() {
		j.parts, j.data, j.gaps, j.over = append(j.parts, t), j.data+t.n, j.gaps+j.over, 0
		j.last = len(j.parts)
		return true
	}
	if len(j.parts) == 0 || j.over+t.n > longestBridge || j.gaps+j.over+t.n > j.data || t.end() > (j.parts[0].off/request+1)*request {
		return false
	}
	j.parts, j.over = append(j.parts, t), j.over+t.n
	return true
}

// flush yields what has been joined, and what follows the last of its data each on its own.
func (j *bridge) flush(yield func(task, error) bool) bool {
	parts, last := j.parts, j.last
	*j = bridge{}
	switch {
	case len(parts) == 0:
		return true
	case last == 1:
		last = 0
	default:
		t := task{off: parts[0].off, n: parts[last-1].end() - parts[0].off, kind: parts[0].kind, parts: parts[:last]}
		if !yield(t, nil) {
			return false
		}
	}
	for _, t := range parts[last:] {
		if !yield(t, nil) {
			return false
		}
	}
	return true
}

// copyParts deals with a task that has parts.
func (c *copier) copyParts(ctx context.Context, src block.Device, t task, b *buffers) error {
	p := b.first(t.n)
	if err := src.Read(ctx, p, t.off); err != nil {
		return unread(ctx, src, p, t.off, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	for _, part := range t.parts {
		g.Go(func() error {
			if part.kind.data() {
				return c.store(ctx, p[part.off-t.off:][:part.n], part.off)
			}
			return c.without(ctx, part)
		})
	}
	return g.Wait()
}

// without deals with a task of which nothing is read.
func (c *copier) without(ctx context.Context, t task) error {
	if t.kind&leave != 0 {
		c.add(t.n, func(s *Stats) { s.Left += t.n })
		return nil
	}
	return c.zeros(ctx, t.off, t.n)
}
