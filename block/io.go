package block

import (
	"bytes"
	"context"
	"io"
)

// zeroRun is what WriteZeros writes from; nobody writes into it.
var zeroRun [256 << 10]byte

// WriteZeros makes a range zero by writing zeros: what Zero falls back on.
func WriteZeros(ctx context.Context, d interface {
	Write(ctx context.Context, p []byte, off int64, f Flags) error
}, off, n int64, f Flags) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(zeroRun)))
		if err := d.Write(ctx, zeroRun[:k], off, f&FUA); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// IsZero reports whether p holds only zero bytes.
func IsZero(p []byte) bool {
	const page = 4096
	for len(p) > page {
		if !bytes.Equal(p[:page], zeroRun[:page]) {
			return false
		}
		p = p[page:]
	}
	return bytes.Equal(p, zeroRun[:len(p)])
}

// Accessor gives other libraries the interfaces of package io over a Device.
type Accessor struct {
	ctx context.Context
	dev Device
}

// At returns d as an io.ReaderAt and io.WriterAt. The context bounds every call made through it.
func At(ctx context.Context, d Device) *Accessor { return &Accessor{ctx: ctx, dev: d} }

// Size returns the size of the device in bytes.
func (a *Accessor) Size() int64 { return a.dev.Size() }

// ReadAt implements io.ReaderAt: at the end of the device it returns what there is and io.EOF.
func (a *Accessor) ReadAt(p []byte, off int64) (int, error) {
	size := a.dev.Size()
	if off < 0 {
		return 0, &RangeError{Off: off, Len: int64(len(p)), Size: size}
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	if err := a.dev.Read(a.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (a *Accessor) WriteAt(p []byte, off int64) (int, error) {
	if err := a.dev.Write(a.ctx, p, off, 0); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Protect returns d without its writing half.
func Protect(d Device) Device { return &protected{Filter: Filter{d}} }

type protected struct {
	Filter
	ro ReadOnly
}

func (p *protected) Info() Info {
	i := p.Device.Info()
	c := &i.Caps
	c.Write, c.Grow, c.Resize, c.FUA, c.Zero, c.FastZero, c.Discard = false, false, false, false, false, false, false
	return i
}

// Unwrap hides the lower device: its extras could change it.
func (p *protected) Unwrap() Device { return nil }

func (p *protected) Write(ctx context.Context, b []byte, off int64, f Flags) error {
	return p.ro.Write(ctx, b, off, f)
}
func (p *protected) Zero(ctx context.Context, off, n int64, f Flags) error {
	return p.ro.Zero(ctx, off, n, f)
}
func (p *protected) Discard(ctx context.Context, off, n int64) error {
	return p.ro.Discard(ctx, off, n)
}
func (p *protected) Resize(ctx context.Context, size int64) error { return p.ro.Resize(ctx, size) }
func (p *protected) Flush(ctx context.Context) error              { return p.ro.Flush(ctx) }

// NoClose returns d with a Close that does nothing, for users that close what they are given.
func NoClose(d Device) Device { return &noClose{Filter{d}} }

type noClose struct{ Filter }

func (noClose) Close() error { return nil }
