package convert

import (
	"context"
	"iter"

	"github.com/imgtool/imgtool/block"
)

// extents yields what d consists of from off to end, in order and without gaps.
func extents(ctx context.Context, d block.Device, off, end int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		walk := block.Walk
		if d.Info().InFlight > 0 {
			walk = walkAhead
		}
		for e, err := range walk(ctx, d, block.Map{}, off, end) {
			if err != nil {
				err = failure(Describe, e.Off, err)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// together yields the ranges up to end in which no device changes, with what each of them is there. A nil device, and what lies past
// the end of one, is unallocated zeros. The slice is used again for the next range.
func together(ctx context.Context, end int64, devs ...block.Device) iter.Seq2[[]block.Extent, error] {
	return func(yield func([]block.Extent, error) bool) {
		walks := make([]func() (block.Extent, error, bool), len(devs))
		for i, d := range devs {
			next, stop := iter.Pull2(padded(ctx, d, end))
			defer stop()
			walks[i] = next
		}
		at, here := make([]block.Extent, len(devs)), make([]block.Extent, len(devs))
		for off := int64(0); off < end; {
			n := end - off
			for i, next := range walks {
				if at[i].End() <= off {
					var err error
					if at[i], err, _ = next(); err != nil {
						yield(nil, err)
						return
					}
				}
				n = min(n, at[i].End()-off)
			}
			for i := range at {
				here[i], _ = at[i].Clip(off, n)
			}
			if !yield(here, nil) {
				return
			}
			off += n
		}
	}
}

// padded yields the extents of d, which may be nil, and then zeros up to end.
func padded(ctx context.Context, d block.Device, end int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		size := int64(0)
		if d != nil {
			size = d.Size()
			for e, err := range extents(ctx, d, 0, min(size, end)) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		if size < end {
			yield(block.Extent{Off: size, Len: end - size, Flags: block.ExtZero}, nil)
		}
	}
}

// held reports whether the device itself says what the range holds, and no backing file of it does.
func held(e block.Extent) bool { return e.Depth == 0 && e.Flags&block.ExtAlloc != 0 }

// task is a range that one worker deals with in one go.
type task struct {
	off, n int64
	kind   kind
	parts  []task // of a range that is read at once and holds more than data; see bridged
}

// end returns the first byte after the task.
func (t task) end() int64 { return t.off + t.n }

// kind says what there is to do for a range; 0 where it is known to be zero.
type kind uint8

const (
	readA  kind = 1 << iota // the (first) device holds data
	readB                   // the second device does
	unlike                  // the two devices of Compare are allocated differently
	leave                   // nothing at all
)

// data reports whether bytes have to be read.
func (k kind) data() bool { return k&(readA|readB) != 0 }

// dataIn returns k where the extent holds data.
func dataIn(e block.Extent, k kind) kind {
	if e.Flags&block.ExtZero != 0 {
		return 0
	}
	return k
}

// ranges yields what the device consists of: data and zeros, and what is to be left where only says that a range is.
func ranges(ctx context.Context, d block.Device, only func(block.Extent) bool) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		for e, err := range extents(ctx, d, 0, d.Size()) {
			k := dataIn(e, readA)
			if only != nil && err == nil && !only(e) {
				k = leave
			}
			if !yield(task{off: e.Off, n: e.Len, kind: k}, err) || err != nil {
				return
			}
		}
	}
}

// zeroTask is the longest range of zeros in one task: short enough for progress and cancelling where a target has to write them.
const zeroTask = 256 << 20

// farZeroTask is the same where a server zeroes it. nbdkit before 1.44 leaves old data in what is longer.
const farZeroTask = 64 << 20

// tasks joins neighbouring ranges of a kind, and cuts them into tasks at multiples of request, so that workers do not meet inside one
// block of the target; ranges without data at multiples of zeros.
func tasks(ranges iter.Seq2[task, error], request, zeros int64) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		var t task // joined so far
		cut := func(last bool) bool {
			for t.n > 0 {
				limit := request
				if !t.kind.data() {
					limit = zeros
				}
				n := limit - t.off%limit
				if n > t.n {
					if !last {
						return true // more may follow
					}
					n = t.n
				}
				if !yield(task{off: t.off, n: n, kind: t.kind}, nil) {
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

// buffers are what one worker reads into, made when they are used.
type buffers struct {
	size int64
	p, q []byte
}

// first returns n bytes of any content.
func (b *buffers) first(n int64) []byte {
	if b.p == nil {
		b.p = make([]byte, b.size)
	}
	return b.p[:n]
}

// second returns n bytes other than those of first.
func (b *buffers) second(n int64) []byte {
	if b.q == nil {
		b.q = make([]byte, b.size)
	}
	return b.q[:n]
}
