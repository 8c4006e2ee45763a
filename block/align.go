package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// Align returns a device that takes any range over d, which insists on multiples of unit bytes; a unit of 0 stands for d's MinBlock.
//
// Every request to d starts at a multiple of unit and ends at one, or at d's Size where that is not a multiple. Bytes around a range
// are read and written back; locks on the units keep apart the writers that share one, so that adjacent small writes at the same
// time lose nothing. All writers must go through the same Align. What a discard or a fast zero does not cover whole is left alone or
// written. The device does not grow, and neither splits nor joins requests otherwise. A unit costs memory: check what comes from
// outside.
//
// It returns d itself where the unit is 1, and panics where it is not a power of two.
func Align(d Device, unit int64) Device {
	if unit == 0 {
		unit = d.Info().MinBlock
	}
	if unit <= 0 || unit&(unit-1) != 0 {
		panic(fmt.Sprintf("block: Align to %d bytes, which is not a power of two", unit))
	}
	if unit == 1 {
		return d
	}
	return &align{Filter: Filter{d}, unit: unit}
}

type align struct {
	Filter
	calls Calls
	unit  int64
	locks RangeLocks
}

func (a *align) Info() Info {
	i := a.Device.Info()
	i.MinBlock = max(i.MinBlock, a.unit)
	i.PreferredBlock = max(i.PreferredBlock, i.MinBlock)
	i.Caps.Grow = false
	return i
}

// up rounds x up to a unit or to the end of the device.
func (a *align) up(x, size int64) int64 {
	if r, fits := RoundUp(x, a.unit); fits && r < size {
		return r
	}
	return size
}

// split cuts [off, end) into the whole units [first, last) and what is left of them and right of them, each inside one unit.
func (a *align) split(off, end, size int64) (first, last int64) {
	first = min(a.up(off, size), end)
	if off%a.unit == 0 {
		first = off
	}
	last = end
	if end < size {
		last = max(first, RoundDown(end, a.unit))
	}
	return first, last
}

func (a *align) begin(ctx context.Context, off, n int64) (size int64, err error) {
	if err := a.calls.Begin(ctx); err != nil {
		return 0, err
	}
	size = a.Device.Size()
	if err := CheckRange(off, n, size); err != nil {
		a.calls.End()
		return 0, err
	}
	return size, nil
}

func (a *align) Read(ctx context.Context, p []byte, off int64) error {
	size, err := a.begin(ctx, off, int64(len(p)))
	if err != nil || len(p) == 0 {
		return a.finish(err)
	}
	defer a.calls.End()
	end := off + int64(len(p))
	first, last := a.split(off, end, size)
	if off < first {
		if err := a.readPart(ctx, p[:first-off], off, size); err != nil {
			return err
		}
	}
	if first < last {
		if err := a.Device.Read(ctx, p[first-off:last-off], first); err != nil {
			return err
		}
	}
	if last < end {
		return a.readPart(ctx, p[last-off:], last, size)
	}
	return nil
}

// finish ends a call that has nothing to do; where begin failed there is no call to end.
func (a *align) finish(err error) error {
	if err == nil {
		a.calls.End()
	}
	return err
}

// unitAt reads the unit in which off lies.
func (a *align) unitAt(ctx context.Context, off, size int64) (buf []byte, start int64, err error) {
	start = RoundDown(off, a.unit)
	buf = make([]byte, min(a.unit, size-start))
	return buf, start, a.Device.Read(ctx, buf, start)
}

// readPart reads p, which lies inside one unit.
func (a *align) readPart(ctx context.Context, p []byte, off, size int64) error {
	buf, start, err := a.unitAt(ctx, off, size)
	copy(p, buf[off-start:])
	return err
}

// writePart writes n bytes of p (nil for zeros), which lie inside one unit. The caller holds the unit's lock.
func (a *align) writePart(ctx context.Context, p []byte, off, n, size int64, f Flags) error {
	buf, start, err := a.unitAt(ctx, off, size)
	if err != nil {
		return err
	}
	part := buf[off-start:][:n]
	clear(part)
	copy(part, p)
	return a.Device.Write(ctx, buf, start, f)
}

func (a *align) Write(ctx context.Context, p []byte, off int64, f Flags) error {
	return a.change(ctx, off, int64(len(p)), f, p, func(off, n int64, p []byte) error {
		return a.Device.Write(ctx, p[:n], off, f)
	})
}

func (a *align) Zero(ctx context.Context, off, n int64, f Flags) error {
	return a.change(ctx, off, n, f, nil, func(off, n int64, _ []byte) error {
		return a.Device.Zero(ctx, off, n, f)
	})
}

// change writes whole units with store, given the rest of p (nil for zeros) from there on, and the edges with read-modify-write. The
// middle comes first, so that a store that is refused has changed nothing.
func (a *align) change(ctx context.Context, off, n int64, f Flags, p []byte, store func(off, n int64, p []byte) error) error {
	if _, err := a.begin(ctx, off, n); err != nil || n == 0 {
		return a.finish(err)
	}
	defer a.calls.End()
	if !a.Device.Info().Caps.Write {
		return ErrReadOnly
	}
	end := off + n
	lock, size, err := a.lock(ctx, off, end)
	if err != nil {
		return err
	}
	defer a.locks.Unlock(lock)
	first, last := a.split(off, end, size)
	from := func(at int64) []byte {
		if p == nil {
			return nil
		}
		return p[at-off:]
	}
	if first < last {
		if err := store(first, last-first, from(first)); err != nil {
			return err
		}
	} else if f&Fast != 0 && p == nil {
		return errors.ErrUnsupported
	}
	if off < first {
		if err := a.writePart(ctx, from(off), off, first-off, size, f); err != nil {
			return err
		}
	}
	if last < end {
		return a.writePart(ctx, from(last), last, end-last, size, f)
	}
	return nil
}

// lock keeps other writers off the units of [off, end), and returns the device's size, which stays while the lock is held. Writers of
// whole units are let in together: they need not wait for each other, only for those that read and write back.
func (a *align) lock(ctx context.Context, off, end int64) (lock *RangeLock, size int64, err error) {
	shared := off%a.unit == 0 && end%a.unit == 0
	lock, err = a.locks.Lock(ctx, RoundDown(off, a.unit), a.up(end, math.MaxInt64), shared)
	if err != nil {
		return nil, 0, err
	}
	size = a.Device.Size()
	if err := CheckRange(off, end-off, size); err != nil {
		a.locks.Unlock(lock)
		return nil, 0, err
	}
	return lock, size, nil
}

// Discard shrinks the range to whole units.
func (a *align) Discard(ctx context.Context, off, n int64) error {
	if _, err := a.begin(ctx, off, n); err != nil || n == 0 {
		return a.finish(err)
	}
	defer a.calls.End()
	if !a.Device.Info().Caps.Write {
		return ErrReadOnly
	}
	lock, size, err := a.lock(ctx, off, off+n)
	if err != nil {
		return err
	}
	defer a.locks.Unlock(lock)
	if first, last := a.split(off, off+n, size); first < last {
		return a.Device.Discard(ctx, first, last-first)
	}
	return nil
}

func (a *align) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	size, err := a.begin(ctx, off, n)
	if err != nil || n == 0 {
		return buf, a.finish(err)
	}
	defer a.calls.End()
	base, end := len(buf), a.up(off+n, size)
	for pos := RoundDown(off, a.unit); len(buf) == base && pos < end; {
		if buf, err = a.Device.Extents(ctx, m, pos, end-pos, buf); err != nil {
			return buf, err
		}
		if len(buf) == base || buf[len(buf)-1].End() < min(pos+a.unit, end) {
			return buf[:base], io.ErrNoProgress // not even one unit, so that asking on would bring the same
		}
		pos = RoundDown(buf[len(buf)-1].End(), a.unit)
		kept := buf[:base]
		for _, e := range buf[base:] {
			if e, ok := e.Clip(off, n); ok {
				kept = append(kept, e)
			}
		}
		buf = kept
	}
	return buf, nil
}

func (a *align) Prefetch(ctx context.Context, off, n int64) error {
	size, err := a.begin(ctx, off, n)
	if err != nil || n == 0 {
		return a.finish(err)
	}
	defer a.calls.End()
	start := RoundDown(off, a.unit)
	return a.Device.Prefetch(ctx, start, a.up(off+n, size)-start)
}

// Resize waits for every writer: the unit at the end of the device may change its length.
func (a *align) Resize(ctx context.Context, size int64) error {
	if err := a.calls.Begin(ctx); err != nil {
		return err
	}
	defer a.calls.End()
	lock, err := a.locks.Lock(ctx, 0, math.MaxInt64, false)
	if err != nil {
		return err
	}
	defer a.locks.Unlock(lock)
	return a.Device.Resize(ctx, size)
}

func (a *align) Flush(ctx context.Context) error {
	if err := a.calls.Begin(ctx); err != nil {
		return err
	}
	defer a.calls.End()
	return a.Device.Flush(ctx)
}

func (a *align) Close() error {
	if err := a.calls.Close(); err != nil {
		return err
	}
	return a.Device.Close()
}
