package convert

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"

	"github.com/imgtool/imgtool/block"
)

var errInjected = errors.New("injected")

// sparse is a device in memory whose extents, faults and capabilities a test chooses.
type sparse struct {
	mu      sync.Mutex
	data    []byte
	holes   []block.Extent // what Extents reports; nil means one run of data
	caps    block.Caps
	badRead int64 // reads of this byte fail; -1 none
	badMap  int64 // Extents from this byte fail; -1 none
	badPut  int64 // writes of this byte fail; -1 none

	read, wrote, zeroed int64 // bytes, counted
	flags               block.Flags
	block               func(ctx context.Context) error // called by each read and write
}

func newSparse(data []byte) *sparse {
	return &sparse{data: data, caps: block.Caps{Write: true, Zero: true, Resize: true, Grow: true}, badRead: -1, badPut: -1, badMap: -1}
}

func (d *sparse) Info() block.Info {
	return block.Info{Name: "sparse", Format: "test", MinBlock: 1, PreferredBlock: 1, Caps: d.caps}
}

func (d *sparse) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.data))
}

func covers(off, n, at int64) bool { return at >= off && at < off+n }

func (d *sparse) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.wait(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := block.CheckRange(off, int64(len(p)), int64(len(d.data))); err != nil {
		return err
	}
	if covers(off, int64(len(p)), d.badRead) {
		return errInjected
	}
	d.read += int64(len(p))
	copy(p, d.data[off:])
	return nil
}

func (d *sparse) wait(ctx context.Context) error {
	if d.block != nil {
		return d.block(ctx)
	}
	return ctx.Err()
}

func (d *sparse) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.wait(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.room(off, int64(len(p))); err != nil {
		return err
	}
	d.wrote += int64(len(p))
	copy(d.data[off:], p)
	return nil
}

func (d *sparse) room(off, n int64) error {
	if covers(off, n, d.badPut) {
		return errInjected
	}
	if d.caps.Grow && off+n > int64(len(d.data)) {
		d.data = append(d.data, make([]byte, off+n-int64(len(d.data)))...)
	}
	return block.CheckRange(off, n, int64(len(d.data)))
}

func (d *sparse) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.room(off, n); err != nil {
		return err
	}
	d.zeroed += n
	d.flags |= f
	clear(d.data[off : off+n])
	return nil
}

func (d *sparse) Discard(context.Context, int64, int64) error { return nil }

func (d *sparse) Extents(_ context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if covers(off, n, d.badMap) {
		if off == d.badMap {
			return buf, errInjected
		}
		n = d.badMap - off
	}
	if d.holes == nil {
		return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
	}
	base := len(buf)
	for _, e := range d.holes {
		if e.End() <= off {
			continue
		}
		if e, ok := e.Clip(off, n); ok && len(buf)-base < 7 {
			buf = append(buf, e)
		}
	}
	return buf, nil
}

func (d *sparse) Prefetch(context.Context, int64, int64) error { return nil }

func (d *sparse) Resize(_ context.Context, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = append(d.data, make([]byte, max(0, size-int64(len(d.data))))...)[:size]
	return nil
}

func (d *sparse) Flush(context.Context) error { return nil }
func (d *sparse) Close() error                { return nil }

// randomSparse returns a device of a random layout: holes, and data some of whose blocks are zero all the same.
func randomSparse(r *rand.Rand, size int64) *sparse {
	d := newSparse(make([]byte, size))
	d.holes = []block.Extent{}
	for off := int64(0); off < size; {
		n := min(1+r.Int64N(64<<10), size-off)
		e := block.Extent{Off: off, Len: n, Flags: block.ExtZero}
		if r.IntN(2) == 0 {
			e.Flags = block.ExtData
			for i := off; i < off+n; i += 1024 {
				if r.IntN(3) > 0 {
					fillRandom(r, d.data[i:min(i+1+r.Int64N(1024), off+n)])
				}
			}
		} else if r.IntN(2) == 0 {
			e.Flags |= block.ExtAlloc
		}
		d.holes = append(d.holes, e)
		off += n
	}
	return d
}

func fillRandom(r *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// known returns how many bytes the layout says are zero.
func (d *sparse) known() (n int64) {
	for _, e := range d.holes {
		if e.Flags&block.ExtZero != 0 {
			n += e.Len
		}
	}
	return n
}
