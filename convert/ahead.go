package convert

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// What walkAhead asks for at once, in bytes of the device and in extents.
const (
	firstWindow  = 16 << 20
	leastWindow  = 1 << 20
	fewExtents   = 1 << 9  // a window with fewer is followed by longer ones
	manyExtents  = 1 << 11 // one with more by shorter ones
	windowsAhead = 8       // at most, of which each is one call of the device
)

// walkAhead is block.Walk for a device that is far away: it asks for several windows at a time, so that whoever uses the extents need not wait for each
// answer. They come in order all the same.
func walkAhead(ctx context.Context, d block.Device, m block.Map, off, end int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var g sync.WaitGroup
		defer g.Wait()
		defer cancel()
		length, next := int64(firstWindow), off
		var asked []*window // in order
		var spare []block.Extent
		for off < end {
			for len(asked) < min(windowsAhead, d.Info().InFlight) && next < end {
				w := &window{off: next, end: next + min(length, end-next), done: make(chan struct{}), list: spare[:0]}
				spare = nil
				g.Go(func() { w.fill(ctx, d, m) })
				asked, next = append(asked, w), w.end
			}
			w := asked[0]
			asked = asked[1:]
			<-w.done
			for _, e := range w.list {
				if !yield(e, nil) {
					return
				}
			}
			if w.err != nil {
				yield(block.Extent{Off: w.failed}, w.err)
				return
			}
			switch n := len(w.list); {
			case n > manyExtents:
				length = max(leastWindow, length/2)
			case n < fewExtents && length <= end/2:
				length *= 2
			}
			off, spare = w.end, w.list
		}
	}
}

// window is a range of which the extents are asked for.
type window struct {
	off, end int64

	done   chan struct{} // closed when the rest is set
	list   []block.Extent
	failed int64 // where err happened
	err    error
}

// fill asks for the extents.
func (w *window) fill(ctx context.Context, d block.Device, m block.Map) {
	defer close(w.done)
	for w.failed = w.off; w.failed < w.end; w.failed = w.list[len(w.list)-1].End() {
		n := len(w.list)
		w.list, w.err = d.Extents(ctx, m, w.failed, w.end-w.failed, w.list)
		if w.err == nil {
			w.err = ctx.Err()
		}
		if w.err == nil && len(w.list) == n {
			w.err = fmt.Errorf("%s describes nothing here: %w", d.Info().Name, io.ErrNoProgress)
		}
		if w.err != nil {
			w.list = w.list[:n]
			return
		}
	}
}
