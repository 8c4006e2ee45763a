package blocktest

import (
	"context"
	"errors"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// NewXOR returns d with every byte changed into another one: the simplest layer over [block.Transform]. Applied twice it gives back
// the bytes of d.
func NewXOR(d block.Device) block.Device {
	x := &xor{}
	x.Transform = block.Transform{Lower: d, Outer: x}
	return x
}

type xor struct{ block.Transform }

// key returns what the byte at off is changed with: never zero, so that no byte stays as it is.
func key(off int64) byte { return byte(off%251) + 1 }

func apply(p []byte, off int64) {
	for i := range p {
		p[i] ^= key(off + int64(i))
	}
}

func (x *xor) Read(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), x.Size()); err != nil {
		return err
	}
	if err := x.Lower.Read(ctx, p, off); err != nil {
		return err
	}
	apply(p, off)
	return nil
}

func (x *xor) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := block.CheckRange(off, int64(len(p)), x.Size()); err != nil {
		return err
	}
	q := append([]byte(nil), p...)
	apply(q, off)
	return x.Lower.Write(ctx, q, off, f)
}

// transform proves that no byte gets around a transform over the device, by whatever method.
func (s suite) transform(t *testing.T) {
	lower, m := s.open(t), s.model(t)
	x := NewXOR(block.NoClose(lower))
	ctx := t.Context()

	c := x.Info().Caps
	if c.Zero || c.FastZero || c.Discard || c.Grow || c.Resize {
		t.Errorf("a transform claims %+v", c)
	}
	if _, ok := block.As[block.Pinner](x); ok {
		t.Errorf("a transform can be pinned")
	}
	if _, ok := block.As[interface{ Unwrap() block.Device }](x); ok {
		t.Errorf("a transform lets others look through it")
	}

	check(t, NewXOR(NewXOR(block.NoClose(lower))), m, "through two transforms")
	apply(m.data, 0)
	check(t, x, m, "through a transform")
	if !s.ReadOnly && !s.Forgets {
		s.throughXOR(t, lower, x, m)
	}
	all, err := extents(ctx, x, block.Map{}, 0, x.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Flags&block.ExtZero != 0 || e.Flags&block.ExtAlloc == 0 || e.Node != "" || e.Depth != 0 {
			t.Errorf("a transform shows %+v of the lower device", e)
		}
	}
}

// throughXOR changes the device through the transform by every method, and looks at it from below.
func (s suite) throughXOR(t *testing.T, lower, x block.Device, m *model) {
	t.Helper()
	ctx := t.Context()
	all, err := extents(ctx, lower, block.Map{}, 0, s.Size)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Flags&block.ExtReadOnly != 0 {
			return // through a transform nobody can see which changes are refused
		}
	}
	r := newRunner(s.Config, x, m, &dice{rnd: s.rand(12)})
	r.whole = true
	below := func(when string) {
		t.Helper()
		plain := &model{data: append([]byte(nil), m.data...), undef: m.undef}
		apply(plain.data, 0)
		check(t, lower, plain, when+", from below")
	}
	for i := range s.Ops / 2 {
		if err := r.step(ctx); err != nil {
			t.Fatalf("operation %d through a transform: %v", i, err)
		}
		if i%64 == 0 {
			below("after an operation through a transform")
		}
	}
	check(t, x, m, "after operations through a transform")
	below("after operations through a transform")

	if err := x.Zero(ctx, 0, s.Size, block.Fast); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a fast zero through a transform: %v, want %v", err, errors.ErrUnsupported)
	}
	below("after a fast zero that is not supported")
	if err := r.changed(ctx, x.Zero(ctx, 0, s.Size, 0), "zero", nil, 0, s.Size); err != nil {
		t.Fatal(err)
	}
	below("after zeroing the device through a transform")

	// Discard must not reach the lower device: what it reads as there would be seen changed.
	if err := x.Discard(ctx, 0, s.Size); err != nil {
		t.Fatal(err)
	}
	below("after a discard through a transform")
}
