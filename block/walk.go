package block

import (
	"context"
	"fmt"
	"io"
	"iter"
)

const (
	firstWindow = 1 << 30 // bytes whose extents are asked for at once, to begin with
	manyExtents = 1 << 10 // a window with more is not made longer
)

// Walk yields the extents of d from off to end, in order and without gaps. It asks for them in windows, so that a device with many extents
// does not list them all at once, and one with few is not asked often. It stops at the first error, which comes with the Off of what could not
// be described; a device that describes nothing gives one that is io.ErrNoProgress. d may be used between two extents, and changed where they were.
func Walk(ctx context.Context, d Device, m Map, off, end int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var buf []Extent
		window := int64(firstWindow)
		for off < end {
			var err error
			buf, err = d.Extents(ctx, m, off, min(window, end-off), buf[:0])
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && len(buf) == 0 {
				err = fmt.Errorf("%s describes nothing here: %w", d.Info().Name, io.ErrNoProgress)
			}
			if err != nil {
				yield(Extent{Off: off}, err)
				return
			}
			for _, e := range buf {
				if !yield(e, nil) {
					return
				}
			}
			off = buf[len(buf)-1].End()
			if len(buf) < manyExtents && window <= end/2 {
				window *= 2
			}
		}
	}
}
