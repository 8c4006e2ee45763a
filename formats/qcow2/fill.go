package qcow2

import (
	"context"
	"math/bits"
)

// fill writes p, which is for off of the disk, into the clusters of w, and around it what belongs there.
func (d *Device) fill(ctx context.Context, w placement, p []byte, off int64) error {
	end := off + int64(len(p))
	start, stop, err := d.around(ctx, w, off, end)
	if err != nil {
		return err
	}
	// Whole clusters in the middle are written from where they are.
	first, last := off, end
	if start < off {
		first = min(end, d.ceil(off))
	}
	if stop > end {
		last = max(off, d.floor(end))
	}
	if last-first < d.clusterSize { // one write is better than two
		return d.writePiece(ctx, w, p, off, start, stop)
	}
	for _, piece := range [][2]int64{{start, first}, {first, last}, {last, stop}} {
		if err := d.writePiece(ctx, w, p, off, piece[0], piece[1]); err != nil {
			return err
		}
	}
	return nil
}

// writePiece writes [a, b) of the disk to its new place: bytes of p, which is for off, and around them what the disk shows yet.
func (d *Device) writePiece(ctx context.Context, w placement, p []byte, off, a, b int64) error {
	host, end := w.host+a-w.guest, off+int64(len(p))
	if a >= b {
		return nil
	}
	if a >= off && b <= end {
		return d.writeData(ctx, p[a-off:b-off], a, host)
	}
	buf, _ := d.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer d.buffers.Put(buf)
	if int64(cap(*buf)) < b-a {
		*buf = make([]byte, b-a)
	}
	q := (*buf)[:b-a]
	from, to := min(max(off, a), b), max(min(end, b), a) // what p has of it
	if err := d.readOld(ctx, q[:from-a], a); err != nil {
		return err
	}
	copy(q[from-a:to-a], p[from-off:])
	if err := d.readOld(ctx, q[to-a:], to); err != nil {
		return err
	}
	return d.writeData(ctx, q, a, host)
}

// around returns the range of the disk, with [off, end) in it, that must be written to the new place.
func (d *Device) around(ctx context.Context, w placement, off, end int64) (start, stop int64, err error) {
	start, stop = off, end
	if m := d.mask(w, 0, off, end); m != 0 {
		start = min(start, w.guest+int64(bits.TrailingZeros32(m))<<d.subBits)
	}
	last := len(w.olds) - 1
	if m := d.mask(w, last, off, end); m != 0 {
		stop = max(stop, w.guest+int64(last)<<d.clusterBits+int64(bits.Len32(m))<<d.subBits)
	}
	if !w.fresh {
		return start, stop, nil
	}
	zeros, err := d.readsZero(ctx, start, off)
	if zeros {
		start = off
	}
	if err == nil {
		zeros, err = d.readsZero(ctx, end, min(stop, d.Size()))
	}
	if err == nil && zeros {
		stop = end
	}
	return start, stop, err
}

// readsZero reports whether the disk is known to read as zero in [from, to), by its own tables.
func (d *Device) readsZero(ctx context.Context, from, to int64) (bool, error) {
	for from < to {
		r, err := d.lookup(ctx, from, to-from)
		if err != nil {
			return false, err
		}
		if r.kind != zero {
			if r.kind != unallocated {
				return false, nil
			}
			end, err := d.backingEnd(ctx)
			if err != nil || from < end {
				return false, err
			}
		}
		from += r.len
	}
	return true, nil
}

// backingEnd returns where the backing image ends; 0 where there is none.
func (d *Device) backingEnd(ctx context.Context) (int64, error) {
	back, err := d.backing.Device(ctx)
	if back == nil || err != nil {
		return 0, err
	}
	return back.Size(), nil
}

// readOld reads what the disk shows yet; behind its end there are zeros.
func (d *Device) readOld(ctx context.Context, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), d.Size()-off))
	clear(p[n:])
	return d.read(ctx, p[:n], off)
}
