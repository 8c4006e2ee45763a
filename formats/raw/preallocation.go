package raw

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// options are what users may set for a new image.
type options struct {
	Preallocation string `option:"preallocation" enum:"off|falloc|full" help:"what is allocated at once: nothing, all of it as reserved space, or all of it as written zeros"`
}

func (o *options) preallocation() formats.Preallocation {
	return formats.Preallocation(o.Preallocation)
}

// ResizePreallocated implements formats.Preallocator. Where the file system cannot reserve space, zeros are written.
func (d *device) ResizePreallocated(ctx context.Context, size int64, p formats.Preallocation) error {
	old := d.Size()
	switch p {
	case formats.PreallocOff:
		return d.Resize(ctx, size)
	case formats.PreallocFalloc, formats.PreallocFull:
	default:
		return block.ErrorOf(errors.ErrUnsupported, "preallocation=%s: a raw image has no metadata", p)
	}
	if size < old {
		return block.ErrorOf(errors.ErrUnsupported, "preallocation=%s: %d bytes are less than the %d there are", p, size, old)
	}
	if err := d.Resize(ctx, size); err != nil {
		return err
	}
	var err error
	if p == formats.PreallocFalloc {
		err = d.Zero(ctx, old, size-old, block.NoHole)
	} else {
		err = block.WriteZeros(ctx, d, old, size-old, 0)
	}
	if err != nil {
		_ = d.Resize(context.WithoutCancel(ctx), old) // the first error says more
	}
	return err
}
