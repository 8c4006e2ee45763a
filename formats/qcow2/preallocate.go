package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// reserveSpace takes the space that the disk needs to grow to size with all of it allocated, its tables included, behind the end of the file. So it
// fails before anything has changed, and what is written then does not fail for want of space. What is left over is given back by trim.
func (d *Device) reserveSpace(ctx context.Context, size int64, p formats.Preallocation) error {
	more := d.ceil(size) - d.floor(d.Size())
	if p != formats.PreallocFalloc && p != formats.PreallocFull || more <= 0 {
		return nil
	}
	dev, err := d.dataFile(ctx)
	if err != nil || !dev.Info().Caps.Resize {
		return err
	}
	old, n := dev.Size(), more
	if d.data.Named() {
		n = max(0, d.ceil(size)-old)
	} else {
		tables := more>>d.l1Bits + d.clusters(8*int64(d.h.L1Needed(uint64(size)))) + 2
		n += (tables + (n>>d.clusterBits+tables)>>d.refBits + 2) << d.clusterBits
	}
	if err = dev.Resize(ctx, old+n); err == nil {
		err = dev.Zero(ctx, old, n, block.NoHole)
	}
	if err != nil {
		return errors.Join(err, dev.Resize(context.WithoutCancel(ctx), old))
	}
	d.wroteTo()
	return nil
}

// preallocateOrGoBack preallocates what a disk of old bytes has grown by. Where that fails the disk has its old size again, so that who tries once
// more does not find the size right and nothing allocated.
func (d *Device) preallocateOrGoBack(ctx context.Context, old int64, p formats.Preallocation) error {
	err := d.preallocate(ctx, old, p)
	if err == nil && p != formats.PreallocOff {
		err = d.flush(ctx)
	}
	if err == nil && (p == formats.PreallocFalloc || p == formats.PreallocFull) {
		err = d.trim(ctx)
	}
	if err == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	grown := d.Size()
	back := d.bitmaps.beginResize(ctx, old)
	if back == nil {
		back = d.shrink(ctx, old)
	}
	if back == nil {
		back = d.bitmaps.endResize(ctx, grown)
	}
	return errors.Join(err, back)
}

// preallocate gives places that read as zero to the clusters that lie behind off.
func (d *Device) preallocate(ctx context.Context, off int64, p formats.Preallocation) error {
	switch p {
	case formats.PreallocOff:
		return nil
	case formats.PreallocMetadata, formats.PreallocFalloc, formats.PreallocFull:
	default:
		return fmt.Errorf("preallocation=%s is not known", p)
	}
	if d.h.CryptMethod != ondisk.CryptNone {
		return block.ErrorOf(errors.ErrUnsupported, "preallocation=%s: an encrypted image is not preallocated", p)
	}
	never := func(context.Context, int64) (bool, error) { return false, nil }
	return d.eachSlice(ctx, d.ceil(off), d.ceil(d.Size()), never, func(s *slice, off, end int64) error {
		for off < end {
			n, err := d.preallocateRun(ctx, s, off, end, p)
			if err != nil {
				return err
			}
			off += n
		}
		return nil
	})
}

// preallocateRun does that for the first clusters of [off, end), and returns how many bytes of the disk they have.
func (d *Device) preallocateRun(ctx context.Context, s *slice, off, end int64, p formats.Preallocation) (int64, error) {
	clusters := int64(0)
	for guest := off; guest < end; guest += d.clusterSize {
		e, err := d.entry(s, d.entryIndex(guest), guest)
		if err != nil {
			return 0, err
		}
		if e.hasPlace || e.kind == packed {
			if clusters == 0 {
				return d.clusterSize, nil
			}
			break
		}
		clusters++
	}
	host := off
	if !d.data.Named() {
		var err error
		if host, clusters, _, err = d.refs.allocate(ctx, clusters); err != nil {
			return 0, err
		}
	}
	n := clusters << d.clusterBits
	if err := d.reserve(ctx, host, n, p); err != nil {
		if !d.data.Named() {
			d.freed.unlink(span{host >> d.clusterBits, clusters})
		}
		return 0, err
	}
	i := d.entryIndex(off)
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range clusters {
		d.update(s, i+int(k), uint64(host+k<<d.clusterBits)|ondisk.Copied, ondisk.Bitmap(1<<ondisk.Subclusters-1, 0))
	}
	return n, nil
}

// reserve makes n bytes of the file with the data zero.
func (d *Device) reserve(ctx context.Context, host, n int64, p formats.Preallocation) error {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return err
	}
	defer d.wroteTo()
	switch p {
	case formats.PreallocFull:
		return block.WriteZeros(ctx, dev, host, n, 0)
	case formats.PreallocFalloc:
		return dev.Zero(ctx, host, n, block.NoHole)
	}
	return dev.Zero(ctx, host, n, 0)
}
