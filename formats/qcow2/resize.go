package qcow2

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Resize implements block.Device. It is durable when it returns.
func (d *Device) Resize(ctx context.Context, size int64) error {
	return d.ResizePreallocated(ctx, size, formats.PreallocOff)
}

// ResizePreallocated implements formats.Preallocator.
func (d *Device) ResizePreallocated(ctx context.Context, size int64, p formats.Preallocation) error {
	return d.alone(ctx, func(ctx context.Context) error { return d.resize(ctx, size, p) })
}

func (d *Device) resize(ctx context.Context, size int64, p formats.Preallocation) error {
	old := d.Size()
	if err := d.mayResize(size, p); err != nil {
		return err
	}
	if err := d.reserveSpace(ctx, size, p); err != nil {
		return err
	}
	if err := d.bitmaps.beginResize(ctx, size); err != nil {
		return err
	}
	change := d.grow
	if size < old {
		change = d.shrink
	}
	if err := change(ctx, size); err != nil {
		return err
	}
	if err := d.bitmaps.endResize(ctx, old); err != nil {
		return err
	}
	return d.preallocateOrGoBack(ctx, old, p)
}

// mayResize refuses sizes that the image cannot have.
func (d *Device) mayResize(size int64, p formats.Preallocation) error {
	switch {
	case size < 0 || size > d.maxSize():
		return &block.RangeError{Off: size, Size: d.maxSize()}
	case d.h.L1Needed(uint64(size)) > ondisk.MaxL1Bytes/8:
		return fmt.Errorf("%d bytes: with clusters of %d bytes an image has at most %d", size, d.clusterSize, int64(ondisk.MaxL1Bytes/8)<<d.l1Bits)
	case d.encrypted && size%sectorSize != 0:
		return fmt.Errorf("%d bytes: the size of an encrypted image is a multiple of %d", size, sectorSize)
	case size < d.Size() && p != formats.PreallocOff:
		return fmt.Errorf("preallocation=%s: there is nothing to allocate in a smaller image", p)
	case d.h.Version < 3 && d.h.NbSnapshots > 0 && size != d.Size():
		return block.WithHint(fmt.Errorf("the image has %d snapshots, of which version 2 does not keep the size", d.h.NbSnapshots), "amend it to compat=1.1 first")
	}
	return nil
}

// grow makes the disk longer. What the backing image would show there is hidden, and what the tables have there is dropped: the state of a machine, of
// which a snapshot keeps its own, or what others have cut off.
func (d *Device) grow(ctx context.Context, size int64) error {
	old := d.Size()
	if err := d.dropClusters(ctx, d.ceil(old), min(d.ceil(size), int64(len(d.l1))<<d.l1Bits)); err != nil {
		return err
	}
	h := *d.h
	h.Size = uint64(size)
	l1 := make([]uint64, len(d.l1))
	for i := range l1 {
		l1[i] = d.l1[i].Load()
	}
	if need := int64(h.L1Needed(uint64(size))); need > int64(len(l1)) {
		if err := d.growL1(ctx, &h, append(l1, make([]uint64, need-int64(len(l1)))...)); err != nil {
			return err
		}
	}
	end, err := d.backingEnd(ctx)
	if err != nil {
		return err
	}
	// What the file has behind the end of the disk in its last cluster is not known.
	if end = max(min(end, size), min(d.ceil(old), size)); end > old { // before the size says that it is there
		d.size.Store(size)
		if err := d.hide(ctx, old, end); err != nil {
			d.size.Store(old)
			return err
		}
	}
	if d.rawData() {
		dev, err := d.dataFile(ctx)
		if err != nil {
			return err
		}
		if dev.Size() < size {
			if err := dev.Resize(ctx, size); err != nil {
				return err
			}
			d.wroteTo()
		}
	}
	if err := d.flush(ctx); err != nil {
		d.size.Store(old)
		return err
	}
	if err := d.setHeader(ctx, &h); err != nil {
		d.size.Store(old)
		return err
	}
	d.size.Store(size)
	return nil
}

// growL1 writes a longer L1 table, and lets the header name it.
func (d *Device) growL1(ctx context.Context, next *ondisk.Header, l1 []uint64) error {
	n := int64(8 * len(l1))
	off, err := d.refs.allocateAll(ctx, d.clusters(n))
	if err != nil {
		return err
	}
	if err := d.writeTable(ctx, l1, off); err != nil {
		return err
	}
	h := *d.h
	h.L1TableOffset, h.L1Size = uint64(off), uint32(len(l1))
	oldOff, oldLen := d.l1Offset, int64(8*len(d.l1))
	if err := d.setHeader(ctx, &h); err != nil {
		return err
	}
	d.setL1(l1, off)
	d.unlinkBytes(oldOff, oldLen)
	next.L1TableOffset, next.L1Size = h.L1TableOffset, h.L1Size
	return nil
}

// hide makes [off, end) zero.
func (d *Device) hide(ctx context.Context, off, end int64) error {
	if d.mustWriteZeros() {
		return d.writeZeros(ctx, off, end)
	}
	first := min(end, d.ceil(off))
	if err := d.writeZeros(ctx, off, first); err != nil {
		return err
	}
	if first == end {
		return nil
	}
	return d.zeroUnits(ctx, first, d.ceil(end), 0)
}

// shrink makes the disk shorter, and frees what is behind its end.
func (d *Device) shrink(ctx context.Context, size int64) error {
	// What is cut off must not come back when the disk grows again.
	if edge := min(d.ceil(size), d.Size()); edge > size {
		if err := d.writeZeros(ctx, size, edge); err != nil {
			return err
		}
	}
	if err := d.dropClusters(ctx, d.ceil(size), d.ceil(d.Size())); err != nil {
		return err
	}
	if err := d.flush(ctx); err != nil {
		return err
	}
	d.dropTables(size)
	if d.rawData() {
		dev, err := d.dataFile(ctx)
		if err == nil && dev.Size() > size {
			err = dev.Resize(ctx, size)
		}
		if err != nil {
			return err
		}
	}
	if err := d.flush(ctx); err != nil {
		return err
	}
	h := *d.h
	h.Size = uint64(size)
	h.Extensions = slices.Clone(d.h.Extensions)
	if err := d.setHeader(ctx, &h); err != nil {
		return err
	}
	d.size.Store(size)
	return d.trim(ctx)
}

// trim cuts off what is free at the end of the file.
func (d *Device) trim(ctx context.Context) error {
	if !d.file.Info().Caps.Resize {
		return nil
	}
	end, err := d.refs.end(ctx)
	if err != nil || end >= d.file.Size() {
		return err
	}
	d.wrote.Store(true)
	if err := d.file.Resize(ctx, end); err != nil {
		return err
	}
	d.refs.mu.Lock()
	defer d.refs.mu.Unlock()
	d.untouched = min(d.untouched, end)
	return nil
}

// dropClusters takes all clusters of [off, end) out of the tables.
func (d *Device) dropClusters(ctx context.Context, off, end int64) error {
	nothing := func(context.Context, int64) (bool, error) { return true, nil }
	return d.eachSlice(ctx, off, end, nothing, func(s *slice, off, end int64) error {
		for ; off < end; off += d.clusterSize {
			if err := d.dropCluster(ctx, s, off); err != nil {
				return err
			}
		}
		return nil
	})
}

// dropCluster takes the cluster at guest out of the tables.
func (d *Device) dropCluster(ctx context.Context, s *slice, guest int64) error {
	i := d.entryIndex(guest)
	e, err := d.entry(s, i, guest)
	if err != nil {
		return err
	}
	if err := d.verifyOld(ctx, e); err != nil {
		return err
	}
	s.mu.Lock()
	d.update(s, i, 0, 0)
	s.mu.Unlock()
	d.released(e)
	return nil
}

// dropTables takes the L2 tables, empty ones, that lie behind a size out of the L1 table.
func (d *Device) dropTables(size int64) {
	d.l1mu.Lock()
	defer d.l1mu.Unlock()
	for i := int64(d.h.L1Needed(uint64(size))); i < int64(len(d.l1)); i++ {
		entry := d.l1[i].Load()
		if entry == 0 {
			continue
		}
		table := int64(entry & ondisk.OffsetMask)
		d.tables.drop(table, d.clusterSize, d.sliceLen)
		d.l1[i].Store(0)
		d.l1Dirty[i/(sectorSize/8)] = true
		d.freed.unlink(span{table >> d.clusterBits, 1})
	}
}
