package qcow2

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Zero implements block.Device. Whole clusters, or subclusters, get an entry that says so; the rest is written.
func (d *Device) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	return d.change(ctx, off, n, f, func() error {
		end := off + n
		first, last := d.wholeUnits(off, end)
		if d.mustWriteZeros() || d.h.Version < 3 && f&block.NoHole != 0 {
			first, last = off, off
		}
		if first >= last {
			first, last = end, end
		}
		if f&block.Fast != 0 && first == last {
			return errors.ErrUnsupported
		}
		if err := d.zeroUnits(ctx, first, last, f); err != nil { // first, as it may refuse
			return err
		}
		if err := d.writeZeros(ctx, off, first); err != nil {
			return err
		}
		return d.writeZeros(ctx, last, end)
	})
}

// mustWriteZeros reports whether zeros have to be in the file: of version 2 a cluster that is not there shows the backing image, and a raw data
// file is read without the tables.
func (d *Device) mustWriteZeros() bool {
	return d.h.Version < 3 && d.backing.Named() || d.rawData()
}

// rawData reports whether the data lies in another file which can be read alone.
func (d *Device) rawData() bool {
	return d.data.Named() && d.h.AutoclearFeatures&ondisk.AutoclearDataFileRaw != 0
}

// wholeUnits returns the range of whole subclusters in [off, end). The last one ends with the disk.
func (d *Device) wholeUnits(off, end int64) (first, last int64) {
	first, last = (off+d.subSize-1)&^(d.subSize-1), end&^(d.subSize-1)
	if end == d.Size() {
		last = end
	}
	return first, last
}

// writeZeros makes a range zero that has no whole clusters in it, or must be written. What reads as zero stays as it is.
func (d *Device) writeZeros(ctx context.Context, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := d.lookup(ctx, off, end-off)
		if err != nil {
			return err
		}
		n := min(r.len, max(d.clusterSize, zeroPiece))
		zeros := false
		if !d.rawData() {
			zeros, err = d.readsZero(ctx, off, off+n)
		} else if r.kind == plain {
			zeros, n, err = true, r.len, d.zeroData(ctx, r.host, r.len)
		}
		if err == nil && !zeros {
			err = d.write(ctx, make([]byte, n), off)
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

// zeroData makes n bytes of a data file zero.
func (d *Device) zeroData(ctx context.Context, host, n int64) error {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return err
	}
	defer d.wroteTo()
	return dev.Zero(ctx, host, n, 0)
}

// zeroPiece is how many zeros are written at once, in bytes.
const zeroPiece = 256 << 10

// zeroUnits makes the whole units of [off, end) zero by their entries. With NoHole each gets one, so that the range stays zero over any backing
// image that it is given later.
func (d *Device) zeroUnits(ctx context.Context, off, end int64, f block.Flags) error {
	skip := d.emptyIsZero
	if f&block.NoHole != 0 && d.h.Version >= 3 {
		skip = func(context.Context, int64) (bool, error) { return false, nil }
	}
	return d.eachSlice(ctx, off, end, skip, func(s *slice, off, end int64) error {
		for off < end {
			next := min(end, d.floor(off)+d.clusterSize)
			if err := d.zeroCluster(ctx, s, off, next, f); err != nil {
				return err
			}
			off = next
		}
		return nil
	})
}

// eachSlice calls do for each slice of [off, end), which begins and ends at units, while nobody else changes entries there. Where there is no L2
// table, skip is asked whether nothing is to be done.
func (d *Device) eachSlice(ctx context.Context, off, end int64, skip func(ctx context.Context, off int64) (bool, error),
	do func(s *slice, off, end int64) error) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.l1[off>>d.l1Bits].Load() == 0 {
			idle, err := skip(ctx, off)
			if err != nil {
				return err
			}
			if idle {
				off = min(end, (off>>d.l1Bits+1)<<d.l1Bits)
				continue
			}
		}
		next := min(end, (off>>d.sliceBits+1)<<d.sliceBits)
		if err := d.inSlice(ctx, off, next, do); err != nil {
			return err
		}
		off = next
		if d.tables.crowded() {
			if err := d.commit(ctx, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// inSlice calls do for a range of one slice, with the slice ready to be changed and its clusters locked.
func (d *Device) inSlice(ctx context.Context, off, end int64, do func(s *slice, off, end int64) error) error {
	if err := d.broken(); err != nil {
		return err
	}
	lock, err := d.locks.Lock(ctx, d.floor(off), d.ceil(end), false)
	if err != nil {
		return err
	}
	defer d.locks.Unlock(lock)
	s, err := d.ownSlice(ctx, off)
	if err != nil {
		return err
	}
	defer s.unpin()
	return do(s, off, end)
}

// emptyIsZero reports whether what this image does not have reads as zero from off on.
func (d *Device) emptyIsZero(ctx context.Context, off int64) (bool, error) {
	end, err := d.backingEnd(ctx)
	return off >= end, err
}

// zeroCluster makes [off, end) zero, whole units of one cluster, which is locked.
func (d *Device) zeroCluster(ctx context.Context, s *slice, off, end int64, f block.Flags) error {
	guest, i := d.floor(off), d.entryIndex(off)
	s.mu.RLock()
	e, err := d.entry(s, i, guest)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	from, to := (off-guest)>>d.subBits, (end-guest+d.subSize-1)>>d.subBits
	units := uint32(1<<to - 1<<from)
	whole := d.clusterSize>>d.subBits == to-from || off == guest && end == d.Size()
	if whole {
		units = 1<<ondisk.Subclusters - 1
	}
	if e.kind == packed && !whole {
		return d.writeWhileLocked(ctx, s, make([]byte, end-off), off)
	}
	alloc, zeros := e.alloc&^units, e.zero|units
	keep := e.hasPlace && (alloc != 0 || d.data.Named() || f&block.NoHole != 0 && e.copied)
	switch {
	case e.kind == zero && (e.hasPlace == keep), d.extended() && e.alloc == alloc && e.zero == zeros && e.hasPlace == keep && e.kind != packed:
		return nil // it is so already
	case e.kind == unallocated && !e.hasPlace:
		if idle, err := d.emptyIsZero(ctx, guest); err != nil || idle && (d.h.Version < 3 || f&block.NoHole == 0) {
			return err
		}
	}
	if keep && e.copied {
		err = d.verifyPlace(ctx, s, i, e.host)
	} else {
		err = d.verifyOld(ctx, e)
	}
	if err != nil {
		return err
	}
	word := uint64(0)
	if keep {
		word = e.word & (ondisk.OffsetMask | ondisk.Copied)
	}
	if d.h.Version >= 3 && !d.extended() {
		word |= ondisk.Zero
	}
	if word&ondisk.Zero == 0 && !d.extended() {
		word = 0 // of version 2 without a backing image
		keep = false
	}
	s.mu.Lock()
	d.update(s, i, word, ondisk.Bitmap(alloc, zeros))
	s.mu.Unlock()
	if !keep {
		d.released(e)
	}
	return nil
}

// writeWhileLocked stores p in one cluster, which is locked.
func (d *Device) writeWhileLocked(ctx context.Context, s *slice, p []byte, off int64) error {
	_, err := d.writeClusters(ctx, s, p, off)
	return err
}

// Discard implements block.Device. Whole clusters read as zero afterwards, and their space is given back by the next Flush.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	return d.change(ctx, off, n, 0, func() error {
		first, last := d.ceil(off), d.floor(off+n)
		if off+n == d.Size() {
			last = off + n
		}
		if d.rawData() {
			return d.discardData(ctx, first, last)
		}
		if d.mustWriteZeros() { // a cluster that goes would show the backing image
			return nil
		}
		nothing := func(context.Context, int64) (bool, error) { return true, nil }
		return d.eachSlice(ctx, first, last, nothing, func(s *slice, off, end int64) error {
			changed := false
			for at := off; at < end; at += d.clusterSize {
				given, err := d.discardCluster(ctx, s, at)
				if err != nil {
					return err
				}
				changed = changed || given
			}
			if !d.data.Named() {
				return nil
			}
			if changed { // no entry in the file leads to what the data file forgets
				if err := d.commit(ctx, true); err != nil {
					return err
				}
			}
			return d.discardData(ctx, off, end)
		})
	})
}

// discardData passes the hint on to the data file.
func (d *Device) discardData(ctx context.Context, off, end int64) error {
	dev, err := d.dataFile(ctx)
	if err != nil || off >= end {
		return err
	}
	n := min(end, dev.Size()) - off
	if n <= 0 {
		return nil
	}
	defer d.wroteTo()
	return dev.Discard(ctx, off, n)
}

// discardCluster gives up the cluster at guest, which is locked, and reports whether there was something to give up.
func (d *Device) discardCluster(ctx context.Context, s *slice, guest int64) (bool, error) {
	i := d.entryIndex(guest)
	s.mu.RLock()
	e, err := d.entry(s, i, guest)
	s.mu.RUnlock()
	if err != nil || !e.hasPlace && e.kind != packed {
		return false, err
	}
	if err := d.verifyOld(ctx, e); err != nil {
		return false, err
	}
	hidden, err := d.emptyIsZero(ctx, guest)
	if err != nil {
		return false, err
	}
	var word uint64
	var zeros uint32
	switch {
	case hidden:
	case d.extended():
		zeros = 1<<ondisk.Subclusters - 1
	default:
		word = ondisk.Zero
	}
	s.mu.Lock()
	d.update(s, i, word, ondisk.Bitmap(0, zeros))
	s.mu.Unlock()
	d.released(e)
	return true, nil
}
