package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// way is one means by which the operating system zeroes or discards a range without being handed the zeros.
type way struct {
	do      func(f *os.File, off, n int64) error
	slow    bool        // it costs as much as writing zeros
	refused atomic.Bool // this file does not have it: not tried again
}

// ways are the means that a file has, each list in order of preference.
type ways struct {
	holes   []*way // give space back
	keeps   []*way // keep the range allocated
	discard *way   // nil where there is none
}

// fast reports whether zeroing may cost less than writing zeros.
func (w *ways) fast() bool {
	for _, h := range w.holes {
		if !h.slow {
			return true
		}
	}
	return false
}

// slowStep bounds one call of a slow way, in bytes, so that a cancelled context is seen in good time.
const slowStep = 32 << 20

// try applies the way to the range. It returns errors.ErrUnsupported where the file does not have it.
func (w *way) try(ctx context.Context, f *os.File, off, n int64) error {
	if w.refused.Load() {
		return errors.ErrUnsupported
	}
	step := n
	if w.slow {
		step = min(step, slowStep)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(step, n)
		err := w.do(f, off, k)
		if isUnsupported(err) {
			w.refused.Store(true)
			return errors.ErrUnsupported
		}
		if err != nil {
			return bare(err)
		}
		off, n = off+k, n-k
	}
	return nil
}

// isUnsupported reports whether a call of the operating system says that this file cannot do it. The ranges handed to it are
// right, so that EINVAL, with which some file systems answer, means nothing else.
func isUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTTY)
}

// Zero implements block.Device. Past the end of a file it lengthens it.
func (d *Device) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if !d.disk && off >= 0 && n > d.size.Load()-off {
		return d.zeroPastEnd(ctx, off, n, f)
	}
	if err := d.enterWrite(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := block.CheckRange(off, n, d.size.Load()); err != nil || n == 0 {
		return err
	}
	if err := d.zero(ctx, off, n, f); err != nil {
		return err
	}
	return d.fua(f)
}

// zeroPastEnd is Zero for a range that reached past the end of the file when it was looked at. It is alone, because it truncates.
func (d *Device) zeroPastEnd(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.enterAlone(ctx); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if err := d.checkGrow(off, n); err != nil || n == 0 {
		return err
	}
	if f&block.Fast != 0 && !d.ways.fast() {
		return errors.ErrUnsupported // what Caps says, although to lengthen the file would be fast
	}
	size, end := d.size.Load(), off+n
	if end > size {
		if err := d.extend(ctx, max(off, size), end, f); err != nil {
			_ = d.truncate(size) // the first error says more
			return err
		}
	}
	if inside := min(end, size) - off; inside > 0 {
		if err := d.zero(ctx, off, inside, f); err != nil {
			_ = d.truncate(size) // the first error says more
			return err
		}
	}
	return d.fua(f)
}

// extend lengthens the file to end by zeros, of which those from off are allocated with NoHole. The caller is alone.
func (d *Device) extend(ctx context.Context, off, end int64, f block.Flags) error {
	if f&block.NoHole != 0 {
		err := allocate(d.f, off, end-off)
		if err != nil && !isUnsupported(err) {
			return fmt.Errorf("allocate %d bytes at byte %d: %w", end-off, off, bare(err))
		}
		if err == nil {
			d.size.Store(end)
			return nil
		}
		if f&block.Fast != 0 {
			return errors.ErrUnsupported
		}
	}
	if err := d.truncate(end); err != nil || f&block.NoHole == 0 {
		return err
	}
	return block.WriteZeros(ctx, putter{d}, off, end-off, 0)
}

// zero zeroes a range inside the file or disk, by the first way that works, or by writing zeros.
func (d *Device) zero(ctx context.Context, off, n int64, f block.Flags) error {
	defer d.last.forget()
	list := d.ways.holes
	if f&block.NoHole != 0 {
		list = d.ways.keeps
	}
	start, end := inner(off, n, d.unit)
	for _, w := range list {
		if start == end || w.slow && f&block.Fast != 0 {
			continue
		}
		err := w.try(ctx, d.f, start, end-start)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err != nil {
			return fmt.Errorf("zero %d bytes at byte %d: %w", end-start, start, err)
		}
		// What is left of the sectors at either end is written.
		if err := block.WriteZeros(ctx, putter{d}, off, start-off, 0); err != nil {
			return err
		}
		return block.WriteZeros(ctx, putter{d}, end, off+n-end, 0)
	}
	if f&block.Fast != 0 {
		return errors.ErrUnsupported
	}
	return block.WriteZeros(ctx, putter{d}, off, n, 0)
}

// inner returns the bounds of the part of a range that consists of whole units, or a zero length at off where there is none.
func inner(off, n, unit int64) (start, end int64) {
	start, ok := block.RoundUp(off, unit)
	end = block.RoundDown(off+n, unit)
	if !ok || end <= start {
		return off, off
	}
	return start, end
}

// putter is what block.WriteZeros writes to inside a call that has entered the device already.
type putter struct{ d *Device }

func (p putter) Write(_ context.Context, b []byte, off int64, _ block.Flags) error {
	return p.d.put(b, off)
}

// Discard implements block.Device. In a file it makes a hole; where that cannot be done it does nothing.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	if err := d.enterWrite(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := block.CheckRange(off, n, d.size.Load()); err != nil || n == 0 {
		return err
	}
	start, end := inner(off, n, d.unit)
	if d.ways.discard == nil || start == end {
		return nil
	}
	defer d.last.forget()
	err := d.ways.discard.try(ctx, d.f, start, end-start)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("discard %d bytes at byte %d: %w", end-start, start, err)
}

// isDisk reports whether the mode is that of a disk.
func isDisk(m fs.FileMode) bool {
	if m&fs.ModeDevice == 0 {
		return false
	}
	return m&fs.ModeCharDevice == 0 || disksAreCharDevices
}
