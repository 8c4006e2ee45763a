package blocktest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// call is a method of a device that takes a range.
type call struct {
	name    string
	changes bool // refused by a device that is read-only
	grows   bool // may reach past the end where Caps.Grow is set
	buffer  bool // takes a buffer, so that the length is neither negative nor huge
	do      func(ctx context.Context, d block.Device, off, n int64) error
}

// calls lists every method that takes a range.
func calls() []call {
	zero := func(f block.Flags) func(context.Context, block.Device, int64, int64) error {
		return func(ctx context.Context, d block.Device, off, n int64) error { return d.Zero(ctx, off, n, f) }
	}
	return []call{
		{name: "Read", buffer: true, do: func(ctx context.Context, d block.Device, off, n int64) error {
			return d.Read(ctx, make([]byte, n), off)
		}},
		{name: "Write", changes: true, grows: true, buffer: true, do: func(ctx context.Context, d block.Device, off, n int64) error {
			return d.Write(ctx, make([]byte, n), off, 0)
		}},
		{name: "Zero", changes: true, grows: true, do: zero(0)},
		{name: "Zero with NoHole", changes: true, grows: true, do: zero(block.NoHole)},
		{name: "Discard", changes: true, do: func(ctx context.Context, d block.Device, off, n int64) error {
			return d.Discard(ctx, off, n)
		}},
		{name: "Extents", do: func(ctx context.Context, d block.Device, off, n int64) error {
			mine := block.Extent{Off: 7, Len: 7}
			own := append(make([]block.Extent, 0, 8), mine)
			buf, err := d.Extents(ctx, block.Map{}, off, n, own)
			if own[0] != mine || err == nil && n == 0 && len(buf) != 1 {
				return fmt.Errorf("the caller's extents became %v (error: %v)", buf, err)
			}
			return err
		}},
		{name: "Prefetch", do: func(ctx context.Context, d block.Device, off, n int64) error { return d.Prefetch(ctx, off, n) }},
	}
}

// zeroLength checks that a length of zero is legal up to the end, and does nothing.
func (s suite) zeroLength(t *testing.T) {
	d, m := s.open(t), s.model(t)
	for _, c := range calls() {
		for _, off := range []int64{0, 1, s.Size / 2, s.Size - 1, s.Size} {
			err := c.do(t.Context(), d, off, 0)
			if err != nil && !(s.ReadOnly && c.changes && errors.Is(err, block.ErrReadOnly)) {
				t.Errorf("%s of no bytes at %d of %d: %v", c.name, off, s.Size, err)
			}
		}
	}
	check(t, d, m, "after calls of length zero")
}

// ranges checks that a range outside the device gives a RangeError and changes nothing.
func (s suite) ranges(t *testing.T) {
	d, m := s.open(t), s.model(t)
	if !s.ReadOnly {
		s.fill(t, d, m) // so that there is something to lose
	}
	const biggest = math.MaxInt64
	size := d.Size()
	bad := [][2]int64{
		{-1, 0}, {-1, 1}, {-1, 2}, {math.MinInt64, 1}, {math.MinInt64, 0}, {-size, size}, {biggest, 1}, {biggest - 3, 10},
		{0, -1}, {1, -1}, {size, -1}, {size, -size}, {0, math.MinInt64}, {-1, -1},
		{1, biggest}, {size, biggest}, {biggest, biggest}, {size / 2, biggest - size/2 + 1},
	}
	past := [][2]int64{{size, 1}, {size + 1, 0}, {size + 1, 1}, {size - 1, 2}, {0, size + 1}, {1, size}, {size + 4096, 512}, {size / 2, size}}
	grow := d.Info().Caps.Grow
	for _, c := range calls() {
		all := bad
		if !c.grows || !grow {
			all = append(past[:len(past):len(past)], bad...)
		}
		for _, r := range all {
			if c.buffer && (r[1] < 0 || r[1] > 2*maxSize) {
				continue
			}
			err := c.do(t.Context(), d, r[0], r[1])
			var e *block.RangeError
			if !errors.As(err, &e) && !(s.ReadOnly && c.changes && errors.Is(err, block.ErrReadOnly)) {
				t.Errorf("%s of %d bytes at %d of %d: %v, want a *block.RangeError", c.name, r[1], r[0], size, err)
			}
		}
	}
	if _, _, ok := block.Pin(t.Context(), d, size, 1); ok {
		t.Errorf("Pin of a byte past the end works")
	}
	check(t, d, m, "after calls outside the device")
}

// fill writes something else to every byte that can be written.
func (s suite) fill(t *testing.T, d block.Device, m *model) {
	t.Helper()
	r := newRunner(s.Config, d, m, &dice{rnd: s.rand(4)})
	data := make([]byte, s.Size)
	for i := range data {
		data[i] = byte(r.rnd.Uint32())
	}
	ctx := t.Context()
	if err := r.changed(ctx, d.Write(ctx, data, 0, 0), "write", data, 0, s.Size); err != nil {
		t.Fatal(err)
	}
}

// edges changes single bytes and neighbours at the ends of the device and around likely blocks.
func (s suite) edges(t *testing.T) {
	d := s.open(t)
	r := newRunner(s.Config, d, s.model(t), &dice{rnd: s.rand(5)})
	ctx := t.Context()
	points := []int64{0, 1, s.Size / 2, s.Size - 2, s.Size - 1}
	for _, unit := range []int64{512, 4096, 65536, d.Info().MinBlock, d.Info().PreferredBlock} {
		points = append(points, unit, block.RoundDown(s.Size-1, unit))
	}
	for _, p := range points {
		for _, span := range [][2]int64{{p, 1}, {p - 1, 1}, {p - 1, 2}, {p - 3, 7}, {p, 513}, {p - 700, 1500}} {
			off, n := span[0], span[1]
			if block.CheckRange(off, n, s.Size) != nil {
				continue
			}
			data := r.bytes(n)
			data[0] |= 1
			if err := r.changed(ctx, d.Write(ctx, data, off, 0), "write", data, off, n); err != nil {
				t.Fatal(err)
			}
			if err := r.changed(ctx, d.Zero(ctx, off+n/2, n/2, 0), "zero", nil, off+n/2, n/2); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range []int64{s.Size, s.Size - 1} {
		data := r.bytes(n)
		if err := r.changed(ctx, d.Write(ctx, data, s.Size-n, block.FUA), "write", data, s.Size-n, n); err != nil {
			t.Fatal(err)
		}
	}
	check(t, d, r.m, "after writing around block boundaries")
}

// readOnly checks that every change is refused, and nothing else.
func (s suite) readOnly(t *testing.T) {
	d, m := s.open(t), s.model(t)
	for _, c := range calls() {
		for _, r := range [][2]int64{{0, 1}, {0, s.Size}, {s.Size - 1, 1}, {1, 1000}} {
			err := c.do(t.Context(), d, r[0], r[1])
			if c.changes != errors.Is(err, block.ErrReadOnly) || !c.changes && err != nil {
				t.Errorf("%s of %d bytes at %d: %v", c.name, r[1], r[0], err)
			}
		}
	}
	if err := d.Zero(t.Context(), 0, s.Size, block.Fast); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("Zero with Fast: %v, want %v", err, block.ErrReadOnly)
	}
	for _, size := range []int64{0, s.Size / 2, s.Size * 2} {
		if err := d.Resize(t.Context(), size); !errors.Is(err, block.ErrReadOnly) && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Resize to %d: %v, want %v or %v", size, err, block.ErrReadOnly, errors.ErrUnsupported)
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Errorf("Flush: %v", err)
	}
	check(t, d, m, "after changes that were refused")
}
