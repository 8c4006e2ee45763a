package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Concat returns the devices one after another as one. A request that spans a join goes to each device in turn. The devices must not
// be resized by others. Where some of them are read-only, so are their ranges; a bitmap is known only where every device that a
// request touches knows it. It returns an error where there is no device or the sizes overflow.
func Concat(devs ...Device) (Device, error) {
	if len(devs) == 0 {
		return nil, errors.New("nothing to concatenate: give at least one device")
	}
	c := &concat{info: devs[0].Info()}
	for i, d := range devs {
		m := member{Device: d, start: c.size, size: d.Size(), caps: d.Info().Caps}
		var fits bool
		if c.size, fits = Add(c.size, m.size); !fits {
			return nil, fmt.Errorf("device %d of %d starts at byte %d and has %d bytes: the sum of the sizes does not fit in 63 bits",
				i+1, len(devs), m.start, m.size)
		}
		c.members = append(c.members, m)
		c.info = joinInfo(c.info, d.Info())
	}
	return c, nil
}

type concat struct {
	calls   Calls
	members []member
	size    int64
	info    Info
}

type member struct {
	Device
	start, size int64
	caps        Caps
}

// joinInfo returns what holds for two devices side by side.
func joinInfo(a, b Info) Info {
	a.MinBlock = max(a.MinBlock, b.MinBlock)
	a.PreferredBlock = max(a.PreferredBlock, b.PreferredBlock)
	a.InFlight = max(a.InFlight, b.InFlight)
	if a.MaxBlock == 0 || b.MaxBlock != 0 && b.MaxBlock < a.MaxBlock {
		a.MaxBlock = b.MaxBlock
	}
	a.Caps = Caps{
		Write:     a.Caps.Write || b.Caps.Write,
		FUA:       a.Caps.FUA && b.Caps.FUA,
		Zero:      a.Caps.Zero || b.Caps.Zero,
		FastZero:  a.Caps.FastZero || b.Caps.FastZero,
		Discard:   a.Caps.Discard || b.Caps.Discard,
		MultiConn: a.Caps.MultiConn && b.Caps.MultiConn,
		Prefetch:  a.Caps.Prefetch || b.Caps.Prefetch,
		Packed:    a.Caps.Packed || b.Caps.Packed,
	}
	return a
}

func (c *concat) Info() Info  { return c.info }
func (c *concat) Size() int64 { return c.size }

// touched returns the members that hold a byte of the range.
func (c *concat) touched(off, n int64) ([]member, error) {
	if err := CheckRange(off, n, c.size); err != nil {
		return nil, err
	}
	first := sort.Search(len(c.members), func(i int) bool { return c.members[i].start+c.members[i].size > off })
	last := first
	for last < len(c.members) && c.members[last].start < off+n {
		last++
	}
	return c.members[first:last], nil
}

// part returns which part of [off, off+n) lies in the member, in the member's addresses.
func (m *member) part(off, n int64) (int64, int64) {
	from := max(off-m.start, 0)
	return from, min(off+n-m.start, m.size) - from
}

// each calls f for every member's part of the range, with its place in the request.
func (c *concat) each(ctx context.Context, off, n int64, f func(m *member, at, off, n int64) error) error {
	if err := c.calls.Begin(ctx); err != nil {
		return err
	}
	defer c.calls.End()
	members, err := c.touched(off, n)
	if err != nil {
		return err
	}
	for i := range members {
		m := &members[i]
		from, k := m.part(off, n)
		if k == 0 { // a device of no bytes
			continue
		}
		if err := f(m, m.start+from-off, from, k); err != nil {
			return err
		}
	}
	return nil
}

// checkWritable finds out before anything is changed whether a member refuses.
func (c *concat) checkWritable(ctx context.Context, off, n int64, f Flags) error {
	return c.each(ctx, off, n, func(m *member, _, _, n int64) error {
		switch {
		case !m.caps.Write:
			return ErrReadOnly
		case f&Fast != 0 && !m.caps.FastZero:
			return errors.ErrUnsupported
		}
		return nil
	})
}

func (c *concat) Read(ctx context.Context, p []byte, off int64) error {
	return c.each(ctx, off, int64(len(p)), func(m *member, at, off, n int64) error {
		return m.Read(ctx, p[at:at+n], off)
	})
}

func (c *concat) Write(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := c.checkWritable(ctx, off, int64(len(p)), 0); err != nil {
		return err
	}
	return c.each(ctx, off, int64(len(p)), func(m *member, at, off, n int64) error {
		return m.Write(ctx, p[at:at+n], off, f)
	})
}

// Zero asks every member. Where one can zero fast and a later one then refuses, that one is zeroed slowly: a call that fails with
// ErrUnsupported must have changed nothing.
func (c *concat) Zero(ctx context.Context, off, n int64, f Flags) error {
	if err := c.checkWritable(ctx, off, n, f); err != nil {
		return err
	}
	return c.each(ctx, off, n, func(m *member, at, off, n int64) error {
		err := m.Zero(ctx, off, n, f)
		if at > 0 && f&Fast != 0 && errors.Is(err, errors.ErrUnsupported) {
			err = m.Zero(ctx, off, n, f&^Fast)
		}
		return err
	})
}

func (c *concat) Discard(ctx context.Context, off, n int64) error {
	if err := c.checkWritable(ctx, off, n, 0); err != nil {
		return err
	}
	return c.each(ctx, off, n, func(m *member, _, off, n int64) error { return m.Discard(ctx, off, n) })
}

func (c *concat) Prefetch(ctx context.Context, off, n int64) error {
	return c.each(ctx, off, n, func(m *member, _, off, n int64) error { return m.Prefetch(ctx, off, n) })
}

// errStop ends a walk that has nothing wrong.
var errStop = errors.New("stop")

func (c *concat) Extents(ctx context.Context, mp Map, off, n int64, buf []Extent) ([]Extent, error) {
	base := len(buf)
	err := c.each(ctx, off, n, func(m *member, _, off, n int64) error {
		old := len(buf)
		var err error
		if buf, err = m.Device.Extents(ctx, mp, off, n, buf); err != nil {
			return err
		}
		if len(buf) == old {
			return io.ErrNoProgress
		}
		for i := old; i < len(buf); i++ {
			buf[i].Off += m.start
			if !m.caps.Write && c.info.Caps.Write {
				buf[i].Flags |= ExtReadOnly
			}
		}
		end := buf[len(buf)-1].End()
		if joined := AppendExtent(buf[:old], base, buf[old]); len(joined) == old { // it goes on where the last member ended
			buf = append(joined, buf[old+1:]...)
		}
		if end < m.start+off+n || len(buf)-base >= extentBatch {
			return errStop
		}
		return nil
	})
	if err == errStop {
		err = nil
	}
	return buf, err
}

// Pin implements Pinner for the first member of the range.
func (c *concat) Pin(ctx context.Context, off, n int64) (r FileRange, release func(), ok bool) {
	members, err := c.touched(off, n)
	if err != nil || len(members) == 0 {
		return FileRange{}, nil, false
	}
	from, k := members[0].part(off, n)
	return Pin(ctx, members[0].Device, from, k)
}

func (c *concat) Resize(context.Context, int64) error {
	if !c.info.Caps.Write {
		return ErrReadOnly
	}
	return errors.ErrUnsupported
}

func (c *concat) Flush(ctx context.Context) error {
	if err := c.calls.Begin(ctx); err != nil {
		return err
	}
	defer c.calls.End()
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.Flush(ctx))
	}
	return errors.Join(errs...)
}

// Close closes every device, whatever the others say.
func (c *concat) Close() error {
	if err := c.calls.Close(); err != nil {
		return err
	}
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
