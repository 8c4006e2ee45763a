package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// Overlay is copy-on-write: it shows a lower device, which it never writes, and stores what is written in an upper one, at the same
// addresses. Which pages (4096 bytes) lie in the upper device is remembered in memory only, so that an overlay ends with its Close
// and FUA and Flush promise no more than that the upper device holds the bytes. It neither grows nor resizes.
type Overlay struct {
	calls        Calls
	lower, upper Device
	size         int64
	pages        pageSet
	locks        RangeLocks // of pages on their way to the upper device
}

// NewOverlay returns lower with changes going to upper, or to memory where upper is nil. What upper held before does not matter.
// The overlay owns both. It returns ErrReadOnly where upper cannot be written, and a *RangeError where it is smaller than lower.
func NewOverlay(lower, upper Device) (*Overlay, error) {
	size := lower.Size()
	if upper == nil {
		upper = NewMemory(size)
	}
	if !upper.Info().Caps.Write {
		return nil, fmt.Errorf("upper device of the overlay: %w", ErrReadOnly)
	}
	if err := CheckRange(0, size, upper.Size()); err != nil {
		return nil, fmt.Errorf("upper device of the overlay is smaller than the lower one: %w", err)
	}
	return &Overlay{lower: lower, upper: upper, size: size}, nil
}

// Info implements Device.
func (o *Overlay) Info() Info {
	lower, upper := o.lower.Info(), o.upper.Info()
	info := joinInfo(lower, upper)
	info.PreferredBlock = max(info.PreferredBlock, pageSize)
	info.Caps.FUA, info.Caps.MultiConn = upper.Caps.FUA, upper.Caps.MultiConn
	info.Caps.Zero, info.Caps.FastZero, info.Caps.Discard = upper.Caps.Zero, upper.Caps.FastZero, upper.Caps.Discard
	return info
}

// Size returns the size that the lower device had at first.
func (o *Overlay) Size() int64 { return o.size }

// begin starts a call on a range.
func (o *Overlay) begin(ctx context.Context, off, n int64) error {
	if err := o.calls.Begin(ctx); err != nil {
		return err
	}
	err := CheckRange(off, n, o.size)
	if err != nil {
		o.calls.End()
	}
	return err
}

// Read implements Device.
func (o *Overlay) Read(ctx context.Context, p []byte, off int64) error {
	if err := o.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer o.calls.End()
	for len(p) > 0 {
		d, k := o.holder(off, int64(len(p)))
		if err := d.Read(ctx, p[:k], off); err != nil {
			return err
		}
		p, off = p[k:], off+k
	}
	return nil
}

// holder returns the device in which the bytes from off lie, and how many of the n they are.
func (o *Overlay) holder(off, n int64) (Device, int64) {
	in, next := o.pages.run(off, off+n)
	if in {
		return o.upper, next - off
	}
	return o.lower, next - off
}

// Write implements Device.
func (o *Overlay) Write(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := o.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer o.calls.End()
	return o.change(ctx, off, int64(len(p)), f, p, func(off, n int64, p []byte) error {
		return o.upper.Write(ctx, p[:n], off, f)
	})
}

// Zero implements Device. Ranges without a whole page are not zeroed fast.
func (o *Overlay) Zero(ctx context.Context, off, n int64, f Flags) error {
	if err := o.begin(ctx, off, n); err != nil {
		return err
	}
	defer o.calls.End()
	if f&Fast != 0 && !o.pages.covers(off, off+n) && !o.wholePages(off, off+n) {
		return errors.ErrUnsupported
	}
	return o.change(ctx, off, n, f, nil, func(off, n int64, _ []byte) error {
		return o.upper.Zero(ctx, off, n, f)
	})
}

// wholePages reports whether [off, end) holds a page from its first to its last byte.
func (o *Overlay) wholePages(off, end int64) bool {
	first, fits := RoundUp(off, pageSize)
	return fits && first < o.pageEnd(first, end)
}

// pageEnd returns where the last whole page of [off, end) ends; the page at the end of the device may be shorter.
func (o *Overlay) pageEnd(off, end int64) int64 {
	if end == o.size {
		return end
	}
	return max(off, RoundDown(end, pageSize))
}

// change writes to the upper device. store does it for bytes whose pages are there already or are covered whole, given the rest of p
// (nil for zeros) from there on. Where a page is covered in part only, what is missing is copied from the lower device first. The
// middle comes before the edges, so that a store that is refused has changed nothing.
func (o *Overlay) change(ctx context.Context, off, n int64, f Flags, p []byte, store func(off, n int64, p []byte) error) error {
	end := off + n
	if n == 0 {
		return nil
	}
	if o.pages.covers(off, end) {
		return store(off, n, p)
	}
	last, fits := RoundUp(end, pageSize)
	if !fits {
		last = math.MaxInt64
	}
	// Bits are set under the lock and never cleared: what covers said above stays true, what it denied is asked again.
	lock, err := o.locks.Lock(ctx, RoundDown(off, pageSize), last, false)
	if err != nil {
		return err
	}
	defer o.locks.Unlock(lock)
	first, fits := RoundUp(off, pageSize)
	if !fits || first > end {
		first = end
	}
	last = o.pageEnd(first, end)
	if first < last {
		var rest []byte
		if p != nil {
			rest = p[first-off:]
		}
		if err := store(first, last-first, rest); err != nil {
			return err
		}
		o.pages.add(first, last)
	}
	if off < first {
		if err := o.patch(ctx, off, first, p, f); err != nil {
			return err
		}
	}
	if last < end {
		if p != nil {
			p = p[last-off:]
		}
		return o.patch(ctx, last, end, p, f)
	}
	return nil
}

// patch writes the bytes p (nil for zeros) to [off, end), which lies inside one page. The caller holds the page's lock.
func (o *Overlay) patch(ctx context.Context, off, end int64, p []byte, f Flags) error {
	start := RoundDown(off, pageSize)
	buf := make([]byte, min(pageSize, o.size-start))
	if d, _ := o.holder(off, end-off); d == o.upper {
		start, buf = off, buf[:end-off]
	} else if err := o.lower.Read(ctx, buf, start); err != nil {
		return err
	}
	part := buf[off-start : end-start]
	clear(part)
	copy(part, p)
	if err := o.upper.Write(ctx, buf, start, f); err != nil {
		return err
	}
	o.pages.add(off, end)
	return nil
}

// Discard forwards to the upper device; pages of the lower one stay as they are.
func (o *Overlay) Discard(ctx context.Context, off, n int64) error {
	if err := o.begin(ctx, off, n); err != nil {
		return err
	}
	defer o.calls.End()
	for n > 0 {
		d, k := o.holder(off, n)
		if d == o.upper {
			if err := d.Discard(ctx, off, k); err != nil {
				return err
			}
		}
		off, n = off+k, n-k
	}
	return nil
}

// Extents implements Device. What lies in the lower device is one deeper than it says itself. Bitmaps are not supported: those of the
// lower device do not know what was written since.
func (o *Overlay) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	if err := o.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer o.calls.End()
	if m != (Map{}) {
		return buf, errors.ErrUnsupported
	}
	base := len(buf)
	for n > 0 && len(buf)-base < extentBatch {
		d, k := o.holder(off, n)
		old := len(buf)
		var err error
		if buf, err = d.Extents(ctx, m, off, k, buf); err != nil {
			return buf, err
		}
		if len(buf) == old {
			return buf, io.ErrNoProgress
		}
		if d == o.lower {
			for i := old; i < len(buf); i++ {
				buf[i].Depth++
				buf[i].Flags &^= ExtReadOnly
			}
		}
		k = buf[len(buf)-1].End() - off
		off, n = off+k, n-k
	}
	return buf, nil
}

// Prefetch implements Device.
func (o *Overlay) Prefetch(ctx context.Context, off, n int64) error {
	if err := o.begin(ctx, off, n); err != nil {
		return err
	}
	defer o.calls.End()
	for n > 0 {
		d, k := o.holder(off, n)
		if err := d.Prefetch(ctx, off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Resize returns errors.ErrUnsupported.
func (o *Overlay) Resize(context.Context, int64) error { return errors.ErrUnsupported }

// Flush flushes the upper device.
func (o *Overlay) Flush(ctx context.Context) error {
	if err := o.calls.Begin(ctx); err != nil {
		return err
	}
	defer o.calls.End()
	return o.upper.Flush(ctx)
}

// Close closes both devices.
func (o *Overlay) Close() error {
	if err := o.calls.Close(); err != nil {
		return err
	}
	return errors.Join(o.upper.Close(), o.lower.Close())
}
