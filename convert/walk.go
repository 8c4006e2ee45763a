package convert

import (
	"context"
	"fmt"
	"iter"

	"github.com/imgtool/imgtool/block"
)

const (
	firstWindow = 1 << 30 // bytes whose extents are asked for at once, to begin with
	manyExtents = 1 << 10 // a window with more is not made longer
)

// extents yields what d consists of from off to end, in order and without gaps. It asks in windows, so that a device with many extents
// does not list them all at once, and one with few is not asked often.
func extents(ctx context.Context, d block.Device, off, end int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		var buf []block.Extent
		window := int64(firstWindow)
		for off < end {
			var err error
			buf, err = d.Extents(ctx, block.Map{}, off, min(window, end-off), buf[:0])
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && len(buf) == 0 {
				err = fmt.Errorf("%s describes nothing here", d.Info().Name)
			}
			if err != nil {
				yield(block.Extent{}, failure(Describe, off, err))
				return
			}
			for _, e := range buf {
				if !yield(e, nil) {
					return
				}
			}
			off = buf[len(buf)-1].End()
			if len(buf) < manyExtents && window <= end/2 {
				window *= 2
			}
		}
	}
}

// task is a range that one worker deals with in one go.
type task struct {
	off, n int64
	kind   kind
}

// kind says what there is to do for a range; 0 where it is known to be zero.
type kind uint8

const (
	readA  kind = 1 << iota // the (first) device holds data
	readB                   // the second device of Compare does
	unlike                  // the two devices are allocated differently
)

// ranges yields what the device consists of: data and zeros.
func ranges(ctx context.Context, d block.Device) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		for e, err := range extents(ctx, d, 0, d.Size()) {
			if !yield(task{e.Off, e.Len, dataIn(e, readA)}, err) || err != nil {
				return
			}
		}
	}
}

// dataIn returns k where the extent holds data.
func dataIn(e block.Extent, k kind) kind {
	if e.Flags&block.ExtZero != 0 {
		return 0
	}
	return k
}

// zeroTask is the longest range of zeros in one task: short enough for progress and cancelling where a target has to write them.
const zeroTask = 256 << 20

// tasks joins neighbouring ranges of a kind, and cuts them into tasks at multiples of request, so that workers do not meet inside one
// block of the target; ranges of zeros at multiples of zeroTask.
func tasks(ranges iter.Seq2[task, error], request int64) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		var t task // joined so far
		cut := func(last bool) bool {
			for t.n > 0 {
				limit := request
				if t.kind == 0 {
					limit = zeroTask
				}
				n := limit - t.off%limit
				if n > t.n {
					if !last {
						return true // more may follow
					}
					n = t.n
				}
				if !yield(task{t.off, n, t.kind}, nil) {
					return false
				}
				t.off, t.n = t.off+n, t.n-n
			}
			return true
		}
		for r, err := range ranges {
			if err != nil {
				if cut(true) {
					yield(task{}, err)
				}
				return
			}
			if t.kind != r.kind && !cut(true) {
				return
			}
			if t.n == 0 {
				t = r
			} else {
				t.n += r.n
			}
			if !cut(false) {
				return
			}
		}
		cut(true)
	}
}
