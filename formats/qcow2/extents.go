package qcow2

import (
	"context"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// Extents implements block.Device. What no image of the chain has is zero, as deep as the last image that was asked for it.
func (d *Device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := d.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer d.calls.End()
	if m.Bitmap != "" {
		return d.bitmapExtents(ctx, m.Bitmap, off, n, buf)
	}
	defer d.users.leave(d.users.enter())
	base := len(buf)
	for n > 0 && len(buf)-base < extentBatch {
		if err := ctx.Err(); err != nil {
			return buf, err
		}
		r, err := d.lookup(ctx, off, n)
		if err != nil {
			return buf, err
		}
		switch {
		case r.kind == unallocated:
			buf, r.len, err = d.backing.Extents(ctx, off, r.len, buf, base)
		case r.kind == plain && !d.encrypted:
			buf, r.len, err = d.plainExtents(ctx, buf, base, off, r)
		default:
			e := block.Extent{Off: off, Len: r.len, Flags: block.ExtAlloc | block.ExtPacked}
			if r.kind == zero {
				e.Flags = block.ExtAlloc | block.ExtZero
			}
			buf = block.AppendExtent(buf, base, e)
		}
		if err != nil {
			return buf, err
		}
		off, n = off+r.len, n-r.len
	}
	return buf, nil
}

// extentBatch is about how many extents one call of Extents describes.
const extentBatch = 1024

// plainExtents describes a run of data, or the first part of it, and returns how long that is. Behind the end of the file there are zeros.
func (d *Device) plainExtents(ctx context.Context, buf []block.Extent, base int, off int64, r run) ([]block.Extent, int64, error) {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return buf, 0, err
	}
	n := min(r.len, dev.Size()-r.host)
	switch {
	case d.floor(r.host) >= dev.Size():
		return buf, 0, d.behindEnd(off, r.host, dev.Size())
	case n <= 0:
		e := block.Extent{Off: off, Len: r.len, Flags: block.ExtAlloc | block.ExtZero}
		return block.AppendExtent(buf, base, e), r.len, nil
	case d.plainFile(ctx, dev) && !d.preallocated(ctx):
		e := block.Extent{Off: off, Len: n, Flags: block.ExtData, Node: dev.Info().Name, NodeOff: r.host}
		return block.AppendExtent(buf, base, e), n, nil
	}
	list, err := dev.Extents(ctx, block.Map{}, r.host, n, nil)
	if err != nil {
		return buf, 0, err
	}
	for _, e := range list {
		e.Off += off - r.host
		e.Depth = 0
		e.Flags = e.Flags&(block.ExtZero|block.ExtPacked) | block.ExtAlloc
		buf = block.AppendExtent(buf, base, e)
		n = e.End() - off
	}
	return buf, n, nil
}

// plainFile reports whether dev is a file, of which the bytes lie where they are said to.
func (d *Device) plainFile(ctx context.Context, dev block.Device) bool {
	d.plainness.Do(func() {
		list, err := dev.Extents(ctx, block.Map{}, 0, min(1, dev.Size()), nil)
		d.isPlain = err == nil && len(list) > 0 && list[0].Node == dev.Info().Name && list[0].NodeOff == 0
	})
	return d.isPlain
}

// preallocated reports whether the image has so many clusters that the file does not hold, half of them at least, that the file should be asked for its
// holes: what lies there is zero. With few of them, asking takes longer than reading.
func (d *Device) preallocated(ctx context.Context) bool {
	if d.data.Named() {
		return false
	}
	d.counting.Do(func() {
		ctx := context.WithoutCancel(ctx)
		held := d.heldClusters(ctx) // by the file
		enough := 2*held + 16
		if total := d.clusters(d.file.Size()); enough > total {
			return
		}
		refs, err := d.readRefcounts(ctx)
		if err != nil {
			return // check tells of it
		}
		used, err := refs.countUsed(ctx, d.clusters(d.file.Size()), enough)
		d.isPreallocated = err == nil && used >= enough
	})
	return d.isPreallocated
}

// heldClusters returns how many clusters the data of the image file would fill.
func (d *Device) heldClusters(ctx context.Context) int64 {
	held, size := int64(0), d.file.Size()
	for e, err := range block.Walk(ctx, d.file, block.Map{}, 0, size) {
		if err != nil {
			return d.clusters(size)
		}
		if e.Flags&block.ExtZero == 0 {
			held += e.Len
		}
	}
	return held >> d.clusterBits
}

// Pin implements block.Pinner.
func (d *Device) Pin(ctx context.Context, off, n int64) (block.FileRange, func(), bool) {
	no := func() (block.FileRange, func(), bool) { return block.FileRange{}, nil, false }
	if n <= 0 || d.begin(ctx, off, n) != nil {
		return no()
	}
	defer d.calls.End()
	g := d.users.enter()
	r, err := d.lookup(ctx, off, n)
	if err != nil || d.encrypted {
		d.users.leave(g)
		return no()
	}
	var dev block.Device
	at := r.host
	switch r.kind {
	case unallocated:
		dev, err = d.backing.Device(ctx)
		at = off
	case plain:
		dev, err = d.dataFile(ctx)
	}
	if err != nil || dev == nil || at >= dev.Size() {
		d.users.leave(g)
		return no()
	}
	f, release, ok := block.Pin(ctx, dev, at, min(r.len, dev.Size()-at))
	if !ok {
		d.users.leave(g)
		return no()
	}
	d.pins.Add(1)
	return f, sync.OnceFunc(func() {
		release()
		d.users.leave(g)
		d.pins.Done()
	}), true
}
