package chain

import (
	"context"
	"errors"
	"io"

	"github.com/imgtool/imgtool/block"
)

// Error is an error of an image together with the name that the user gave the image.
type Error struct {
	Name    string // the source of the chain
	Err     error
	Opening bool // it could not be opened, or created
}

func (e *Error) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Anonymous returns what is wrong without the names of images, for those whose business it is not where images lie.
func (e *Error) Anonymous() error {
	for inner := (*Error)(nil); errors.As(e.Err, &inner); {
		e = inner
	}
	return e.Err
}

// naming adds a name to errors.
type naming string

// wrap returns err with the name. That the caller wants to stop is no fault of the image, nor is what is written wrongly: they stay as they are.
// Of an error that came through several images which refer to each other, the name of the one it happened in is kept, and not those on the way.
func (n naming) wrap(err error) error {
	var u *UsageError
	if err == nil || errors.As(err, &u) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for inner := (*Error)(nil); errors.As(err, &inner) && errors.As(inner.Err, new(*Error)); {
		err = inner.Err
	}
	if inner := (*Error)(nil); errors.As(err, &inner) && inner.Name == string(n) && inner.Error() == err.Error() {
		return inner
	}
	return &Error{Name: string(n), Err: err}
}

// opening is wrap for what happens while the image is opened or created.
func (n naming) opening(err error) error {
	err = n.wrap(err)
	if e, ok := err.(*Error); ok {
		e.Opening = true
	}
	return err
}

// named is a device whose errors name it.
type named struct {
	block.Filter
	name     naming
	inFlight int // of what the bytes come from, which formats do not tell
}

// maxUnpacked is how many calls at a time keep a device busy at most that unpacks what comes from far away: each takes memory and a processor.
const maxUnpacked = 16

// Info implements block.Device.
func (d *named) Info() block.Info {
	i := d.Filter.Info()
	n := d.inFlight
	if i.Caps.Packed {
		n = min(n, maxUnpacked)
	}
	i.InFlight = max(i.InFlight, n)
	return i
}

func (d *named) Read(ctx context.Context, p []byte, off int64) error {
	return d.name.wrap(d.Filter.Read(ctx, p, off))
}

func (d *named) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return d.name.wrap(d.Filter.Write(ctx, p, off, f))
}

func (d *named) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	return d.name.wrap(d.Filter.Zero(ctx, off, n, f))
}

func (d *named) Discard(ctx context.Context, off, n int64) error {
	return d.name.wrap(d.Filter.Discard(ctx, off, n))
}

func (d *named) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	buf, err := d.Filter.Extents(ctx, m, off, n, buf)
	return buf, d.name.wrap(err)
}

func (d *named) Prefetch(ctx context.Context, off, n int64) error {
	return d.name.wrap(d.Filter.Prefetch(ctx, off, n))
}

func (d *named) Resize(ctx context.Context, size int64) error {
	return d.name.wrap(d.Filter.Resize(ctx, size))
}

func (d *named) Flush(ctx context.Context) error { return d.name.wrap(d.Filter.Flush(ctx)) }
func (d *named) Close() error                    { return d.name.wrap(d.Filter.Close()) }

// namedStream is a stream whose errors name it.
type namedStream struct {
	block.Stream
	name naming
}

func (s *namedStream) Next(ctx context.Context) (block.Run, error) {
	r, err := s.Stream.Next(ctx)
	if err == io.EOF {
		return r, err
	}
	return r, s.name.wrap(err)
}

func (s *namedStream) Close() error { return s.name.wrap(s.Stream.Close()) }
