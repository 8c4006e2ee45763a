package qcow2

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// prepareWrite reads what writing needs.
func (d *Device) prepareWrite(ctx context.Context) error {
	caps := d.file.Info().Caps
	d.grows = caps.Grow
	d.untouched = d.ceil(d.file.Size())
	d.l1Dirty = map[int64]bool{}
	if _, err := d.loadBitmaps(ctx); err != nil {
		return err
	}
	var err error
	d.refs, err = d.readRefcounts(ctx)
	return err
}

// beforeChange readies the image for the first change, and records a change of n bytes at off. A call runs.
func (d *Device) beforeChange(ctx context.Context, off, n int64) error {
	if !d.begun.Load() {
		if err := d.beginChanges(ctx); err != nil {
			return err
		}
	}
	if err := d.bitmaps.begin(ctx); err != nil || n == 0 {
		return err
	}
	return d.bitmaps.changes(ctx, off, n)
}

// beginChanges clears the features that writing makes invalid, durably.
func (d *Device) beginChanges(ctx context.Context) error {
	d.beginning.Lock()
	defer d.beginning.Unlock()
	if d.begun.Load() {
		return nil
	}
	if err := d.verifyReferenced(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	kept := ondisk.AutoclearKnown
	if d.h.Version >= 3 && d.h.AutoclearFeatures&^kept != 0 {
		left := d.h.AutoclearFeatures & kept
		var p [8]byte
		binary.BigEndian.PutUint64(p[:], left)
		if err := errors.Join(d.writeFile(ctx, p[:], autoclearField), d.syncFile(ctx)); err != nil {
			return err
		}
		d.h.AutoclearFeatures = left
	}
	d.begun.Store(true)
	return nil
}

// autoclearField is where in the header autoclear_features lie, in bytes.
const autoclearField = 88

// Flush implements block.Device.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	defer d.calls.End()
	if !d.writable {
		return nil
	}
	return d.flush(ctx)
}

// flush makes durable what was changed before.
func (d *Device) flush(ctx context.Context) error {
	if d.unsynced.Load() {
		d.unsynced.Store(false)
	}
	return d.commit(ctx, true)
}

// finish writes what is still in memory, when no other call runs and none will, and nothing is pinned. It waits for the disk only where the order of writes asks for it.
func (d *Device) finish() error {
	if !d.writable {
		return nil
	}
	if err := d.broken(); err != nil {
		return err
	}
	ctx := context.Background()
	if err := errors.Join(d.bitmaps.store(ctx), d.commit(ctx, false)); err != nil {
		return err
	}
	d.freed.mu.Lock()
	var rest []span
	for _, r := range d.freed.ripening {
		rest = append(rest, r.span)
	}
	d.freed.ripening = nil
	d.freed.mu.Unlock()
	return errors.Join(d.release(ctx, rest), d.refs.write(ctx))
}
