package block

import (
	"context"
	"errors"
)

// NewNull returns a device of size bytes that reads as zero and forgets what is written to it. It panics where size is negative.
func NewNull(size int64) Device {
	if size < 0 {
		panic("block: NewNull of a negative size")
	}
	return &null{size: size}
}

type null struct {
	calls Calls
	size  int64
}

func (d *null) Info() Info {
	return Info{
		Name: "null", Format: "null", MinBlock: 1, PreferredBlock: pageSize,
		Caps: Caps{Write: true, FUA: true, Zero: true, FastZero: true, Discard: true, MultiConn: true},
	}
}

func (d *null) Size() int64 { return d.size }

// check is all that most calls do.
func (d *null) check(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	defer d.calls.End()
	return CheckRange(off, n, d.size)
}

func (d *null) Read(ctx context.Context, p []byte, off int64) error {
	err := d.check(ctx, off, int64(len(p)))
	if err == nil {
		clear(p)
	}
	return err
}

func (d *null) Write(ctx context.Context, p []byte, off int64, _ Flags) error {
	return d.check(ctx, off, int64(len(p)))
}

func (d *null) Zero(ctx context.Context, off, n int64, _ Flags) error { return d.check(ctx, off, n) }
func (d *null) Discard(ctx context.Context, off, n int64) error       { return d.check(ctx, off, n) }
func (d *null) Prefetch(ctx context.Context, off, n int64) error      { return d.check(ctx, off, n) }
func (d *null) Flush(ctx context.Context) error                       { return d.check(ctx, 0, 0) }
func (d *null) Close() error                                          { return d.calls.Close() }

func (d *null) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	return oneExtent(d.check(ctx, off, n), m, Extent{Off: off, Len: n, Flags: ExtZero}, buf)
}

func (d *null) Resize(ctx context.Context, _ int64) error {
	if err := d.check(ctx, 0, 0); err != nil {
		return err
	}
	return errors.ErrUnsupported
}

// oneExtent is the Extents of a device that is the same all over; err is what checking the call gave.
func oneExtent(err error, m Map, e Extent, buf []Extent) ([]Extent, error) {
	switch {
	case err != nil:
		return buf, err
	case m != (Map{}):
		return buf, errors.ErrUnsupported
	case e.Len == 0:
		return buf, nil
	}
	return append(buf, e), nil
}
