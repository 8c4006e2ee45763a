package formats

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
)

// Reference is a file that an open image refers to: its backing image, or where its data lies. The zero value refers to nothing. Its methods may be
// called from many goroutines, once Set has been called or will never be.
type Reference struct {
	ref   Ref
	named bool
	write bool
	refer Opener

	dev     atomic.Pointer[block.Device]
	opening sync.Mutex
}

// Set says what is referred to. It is opened at once, or with o.Lazy when it is first needed.
func (r *Reference) Set(ctx context.Context, ref Ref, write bool, o OpenOptions) error {
	r.ref, r.named, r.write, r.refer = ref, true, write, o.Refer
	if o.Lazy {
		return nil
	}
	_, err := r.Device(ctx)
	return err
}

// Ref returns what is referred to, and whether anything is.
func (r *Reference) Ref() (Ref, bool) { return r.ref, r.named }

// Named reports whether anything is referred to.
func (r *Reference) Named() bool { return r.named }

// Device returns the file, opened, which Close closes; nil where nothing is referred to.
func (r *Reference) Device(ctx context.Context) (block.Device, error) {
	if dev := r.Opened(); dev != nil || !r.named {
		return dev, nil
	}
	r.opening.Lock()
	defer r.opening.Unlock()
	if dev := r.Opened(); dev != nil {
		return dev, nil
	}
	dev, err := r.refer.Open(ctx, r.ref, r.write)
	if err != nil {
		return nil, err
	}
	r.dev.Store(&dev)
	return dev, nil
}

// Opened returns the file if it is open, and otherwise nil.
func (r *Reference) Opened() block.Device {
	if dev := r.dev.Load(); dev != nil {
		return *dev
	}
	return nil
}

// Close closes the file, if it is open. No other call may be in progress.
func (r *Reference) Close() error {
	if dev := r.dev.Swap(nil); dev != nil {
		return (*dev).Close()
	}
	return nil
}

// Read fills p with what the file, as a backing image, shows at off: zeros behind its end, and where nothing is referred to.
func (r *Reference) Read(ctx context.Context, p []byte, off int64) error {
	dev, err := r.Device(ctx)
	if err != nil {
		return err
	}
	var n int64
	if dev != nil {
		n = max(0, min(int64(len(p)), dev.Size()-off))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return dev.Read(ctx, p[:n], off)
}

// Extents appends to buf, of which the extents before base belong to the caller, what the file shows as a backing image in the range [off, off+n), or
// in the first part of it, and returns how long that is. Everything is one deeper than the file says itself; what it does not have is zero.
func (r *Reference) Extents(ctx context.Context, off, n int64, buf []block.Extent, base int) ([]block.Extent, int64, error) {
	dev, err := r.Device(ctx)
	if err != nil {
		return buf, 0, err
	}
	if dev == nil || off >= dev.Size() {
		return block.AppendExtent(buf, base, block.Extent{Off: off, Len: n, Flags: block.ExtZero}), n, nil
	}
	list, err := dev.Extents(ctx, block.Map{}, off, min(n, dev.Size()-off), nil)
	if err != nil {
		return buf, 0, err
	}
	for _, e := range list {
		e.Depth++
		e.Flags &^= block.ExtReadOnly
		buf = block.AppendExtent(buf, base, e)
		n = e.End() - off
	}
	return buf, n, nil
}
