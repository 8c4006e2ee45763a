package qcow2

import (
	"context"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Read implements block.Device.
func (d *Device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer d.calls.end()
	defer d.users.leave(d.users.enter())
	return d.read(ctx, p, off)
}

// read reads inside of a call.
func (d *Device) read(ctx context.Context, p []byte, off int64) error {
	var parts []packedPart
	for len(p) > 0 {
		r, err := d.lookup(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		q := p[:r.len]
		switch r.kind {
		case zero:
			clear(q)
		case unallocated:
			err = d.readBacking(ctx, q, off)
		case plain:
			err = d.readPlain(ctx, q, off, r.host)
		case packed:
			parts, err = d.appendPacked(parts, q, off, r.entry)
		}
		if err != nil {
			return err
		}
		p, off = p[r.len:], off+r.len
	}
	if len(parts) == 0 {
		return nil
	}
	return d.unpacker.read(ctx, d, parts)
}

// readPlain reads bytes that lie at host in the file with the data. It may end inside the last cluster, of which the rest is zero.
func (d *Device) readPlain(ctx context.Context, p []byte, off, host int64) error {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return err
	}
	if size := dev.Size(); host+int64(len(p)) > size {
		if last := d.floor(host + int64(len(p)) - 1); last >= size {
			return d.corrupt("L2 entry", -1, "the cluster at byte %d of the disk lies at byte %d, behind the end of the file at %d", d.floor(off), last, size)
		}
		n := max(0, size-host)
		clear(p[n:])
		p = p[:n]
		if n == 0 {
			return nil
		}
	}
	if d.h.CryptMethod != ondisk.CryptNone && d.crypt == nil {
		return d.prepareCrypt(ctx)
	}
	if err := dev.Read(ctx, p, host); err != nil || d.crypt == nil {
		return err
	}
	return d.crypt.decrypt(p, off, host)
}

// Prefetch implements block.Device: it reads the tables for the range, and passes the hint on for plain data.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.end()
	defer d.users.leave(d.users.enter())
	for n > 0 {
		r, err := d.lookup(ctx, off, n)
		if err != nil {
			return err
		}
		if r.kind == plain {
			dev, err := d.dataFile(ctx)
			if err != nil {
				return err
			}
			if k := min(r.len, dev.Size()-r.host); k > 0 {
				if err := dev.Prefetch(ctx, r.host, k); err != nil {
					return err
				}
			}
		}
		off, n = off+r.len, n-r.len
	}
	return nil
}

// Extents implements block.Device. What no image of the chain has is zero, as deep as the last image that was asked for it.
func (d *Device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := d.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer d.calls.end()
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
		if r.kind == unallocated {
			buf, r.len, err = d.backingExtents(ctx, buf, base, off, r.len)
		} else {
			var e block.Extent
			e, err = d.extent(ctx, off, r)
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

// extent describes a run that is this image's own.
func (d *Device) extent(ctx context.Context, off int64, r run) (block.Extent, error) {
	e := block.Extent{Off: off, Len: r.len}
	switch {
	case r.kind == zero:
		e.Flags = block.ExtAlloc | block.ExtZero
	case r.kind == packed || d.h.CryptMethod != ondisk.CryptNone:
		e.Flags = block.ExtAlloc | block.ExtPacked
	default:
		dev, err := d.dataFile(ctx)
		if err != nil {
			return e, err
		}
		e.Flags, e.Node, e.NodeOff = block.ExtData, dev.Info().Name, r.host
	}
	return e, nil
}

// backingExtents describes a range that this image does not have, or the first part of it, and returns how long that is.
func (d *Device) backingExtents(ctx context.Context, buf []block.Extent, base int, off, n int64) ([]block.Extent, int64, error) {
	back, err := d.backingDevice(ctx)
	if err != nil {
		return buf, 0, err
	}
	if back == nil || off >= back.Size() {
		return block.AppendExtent(buf, base, block.Extent{Off: off, Len: n, Flags: block.ExtZero}), n, nil
	}
	list, err := back.Extents(ctx, block.Map{}, off, min(n, back.Size()-off), nil)
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

// Pin implements block.Pinner.
func (d *Device) Pin(ctx context.Context, off, n int64) (block.FileRange, func(), bool) {
	no := func() (block.FileRange, func(), bool) { return block.FileRange{}, nil, false }
	if n <= 0 || d.begin(ctx, off, n) != nil {
		return no()
	}
	defer d.calls.end()
	g := d.users.enter()
	r, err := d.lookup(ctx, off, n)
	if err != nil || d.h.CryptMethod != ondisk.CryptNone {
		d.users.leave(g)
		return no()
	}
	var dev block.Device
	at := r.host
	switch r.kind {
	case unallocated:
		dev, err = d.backingDevice(ctx)
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
	return f, func() {
		release()
		d.users.leave(g)
	}, true
}
