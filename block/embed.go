package block

import (
	"context"
	"errors"
)

// Filter is embedded by layers that keep bytes and addresses as they are and change something else: the time a call
// takes, who may call, what is counted. Everything that a layer does not define is forwarded, pins and rare extras too, so a layer
// that overrides Read and must see every byte has to override Pin as well.
type Filter struct{ Device }

// Unwrap lets As look through the filter.
func (f Filter) Unwrap() Device { return f.Device }

// Pin forwards to the lower device.
func (f Filter) Pin(ctx context.Context, off, n int64) (FileRange, func(), bool) {
	return Pin(ctx, f.Device, off, n)
}

// Window is a range of another device, as a device of its own. Every address is moved, and clipped: nothing outside the range can
// be read, written, zeroed, described or pinned through it. It cannot be resized.
type Window struct {
	dev Device
	off int64
	len int64
}

// NewWindow returns the n bytes of d from off. It returns a *RangeError where they do not lie inside d.
func NewWindow(d Device, off, n int64) (*Window, error) {
	if err := CheckRange(off, n, d.Size()); err != nil {
		return nil, err
	}
	return &Window{dev: d, off: off, len: n}, nil
}

// Offset returns where the window starts in the lower device, in bytes.
func (w *Window) Offset() int64 { return w.off }

// Info returns that of the lower device; a window does not grow. Its alignment holds only if the window starts on it.
func (w *Window) Info() Info {
	i := w.dev.Info()
	i.Caps.Grow, i.Caps.Resize, i.Probable = false, false, false
	return i
}

// Size returns the length of the window.
func (w *Window) Size() int64 { return w.len }

// Read implements Device.
func (w *Window) Read(ctx context.Context, p []byte, off int64) error {
	if err := CheckRange(off, int64(len(p)), w.len); err != nil {
		return err
	}
	return w.dev.Read(ctx, p, w.off+off)
}

// Write implements Device.
func (w *Window) Write(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := CheckRange(off, int64(len(p)), w.len); err != nil {
		return err
	}
	return w.dev.Write(ctx, p, w.off+off, f)
}

// Zero implements Device.
func (w *Window) Zero(ctx context.Context, off, n int64, f Flags) error {
	if err := CheckRange(off, n, w.len); err != nil {
		return err
	}
	return w.dev.Zero(ctx, w.off+off, n, f)
}

// Discard implements Device.
func (w *Window) Discard(ctx context.Context, off, n int64) error {
	if err := CheckRange(off, n, w.len); err != nil {
		return err
	}
	return w.dev.Discard(ctx, w.off+off, n)
}

// Extents implements Device.
func (w *Window) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	if err := CheckRange(off, n, w.len); err != nil {
		return buf, err
	}
	base := len(buf)
	buf, err := w.dev.Extents(ctx, m, w.off+off, n, buf)
	for i := base; i < len(buf); i++ {
		buf[i].Off -= w.off
	}
	return buf, err
}

// Prefetch implements Device.
func (w *Window) Prefetch(ctx context.Context, off, n int64) error {
	if err := CheckRange(off, n, w.len); err != nil {
		return err
	}
	return w.dev.Prefetch(ctx, w.off+off, n)
}

// Pin implements Pinner.
func (w *Window) Pin(ctx context.Context, off, n int64) (FileRange, func(), bool) {
	if CheckRange(off, n, w.len) != nil {
		return FileRange{}, nil, false
	}
	return Pin(ctx, w.dev, w.off+off, n)
}

// Resize returns errors.ErrUnsupported.
func (w *Window) Resize(context.Context, int64) error { return errors.ErrUnsupported }

// Flush implements Device.
func (w *Window) Flush(ctx context.Context) error { return w.dev.Flush(ctx) }

// Close closes the lower device.
func (w *Window) Close() error { return w.dev.Close() }

// Transform is embedded by layers that show other bytes than the device below them: encryption, injected errors. It has no Read and
// no Write, so that a layer which forgets one does not compile, and nothing else that it provides lets the lower device's bytes
// through: the whole device is one run of data, nothing can be pinned, Zero writes zeros through Outer, Discard does nothing.
//
// A layer sets Outer to itself. Its Write must check the range against Size, because the lower device may grow and the layer does not.
type Transform struct {
	Lower Device
	Outer interface {
		Write(ctx context.Context, p []byte, off int64, f Flags) error
	}
}

// Info returns that of the lower device without the capabilities that would let bytes through.
func (t Transform) Info() Info {
	i := t.Lower.Info()
	i.Caps.Zero, i.Caps.FastZero, i.Caps.Discard, i.Caps.Packed = false, false, false, true
	i.Caps.Grow, i.Caps.Resize = false, false
	return i
}

// Size implements Device.
func (t Transform) Size() int64 { return t.Lower.Size() }

// Zero writes zeros through the layer.
func (t Transform) Zero(ctx context.Context, off, n int64, f Flags) error {
	if err := CheckRange(off, n, t.Lower.Size()); err != nil {
		return err
	}
	if !t.Lower.Info().Caps.Write {
		return ErrReadOnly
	}
	if err := t.alive(ctx); err != nil {
		return err
	}
	if f&Fast != 0 {
		return errors.ErrUnsupported
	}
	return WriteZeros(ctx, t.Outer, off, n, f)
}

// Discard checks the range and does nothing: what a discarded range would read as is not the layer's to promise.
func (t Transform) Discard(ctx context.Context, off, n int64) error {
	if !t.Lower.Info().Caps.Write {
		return ErrReadOnly
	}
	if err := CheckRange(off, n, t.Lower.Size()); err != nil {
		return err
	}
	return t.alive(ctx)
}

// alive returns os.ErrClosed where the lower device is closed, by asking it for nothing.
func (t Transform) alive(ctx context.Context) error { return t.Lower.Prefetch(ctx, 0, 0) }

// Extents describes the range as data.
func (t Transform) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	err := CheckRange(off, n, t.Lower.Size())
	if err == nil {
		err = t.alive(ctx)
	}
	return oneExtent(err, m, Extent{Off: off, Len: n, Flags: ExtAlloc | ExtPacked}, buf)
}

// Prefetch implements Device.
func (t Transform) Prefetch(ctx context.Context, off, n int64) error {
	return t.Lower.Prefetch(ctx, off, n)
}

// Resize returns errors.ErrUnsupported: new bytes of the lower device would not read as zero.
func (t Transform) Resize(context.Context, int64) error { return errors.ErrUnsupported }

// Flush implements Device.
func (t Transform) Flush(ctx context.Context) error { return t.Lower.Flush(ctx) }

// Close closes the lower device.
func (t Transform) Close() error { return t.Lower.Close() }

// ReadOnly is embedded by devices that can only be read: it refuses every change, before and after Close.
type ReadOnly struct{}

// Write returns ErrReadOnly.
func (ReadOnly) Write(context.Context, []byte, int64, Flags) error { return ErrReadOnly }

// Zero returns ErrReadOnly.
func (ReadOnly) Zero(context.Context, int64, int64, Flags) error { return ErrReadOnly }

// Discard returns ErrReadOnly.
func (ReadOnly) Discard(context.Context, int64, int64) error { return ErrReadOnly }

// Resize returns ErrReadOnly.
func (ReadOnly) Resize(context.Context, int64) error { return ErrReadOnly }

// Flush has nothing to do.
func (ReadOnly) Flush(context.Context) error { return nil }
