package qcow2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

var _ formats.Snapshotter = (*Device)(nil)

// maxSnapshotName is how long the name of a new snapshot may be, in bytes: as long as qemu-img can show it.
const maxSnapshotName = 255

// Snapshots implements formats.Snapshotter.
func (d *Device) Snapshots() []formats.Snapshot {
	ctx := context.Background()
	if d.calls.Begin(ctx) != nil {
		return nil
	}
	defer d.calls.End()
	return d.snapshotList(ctx)
}

// CreateSnapshot implements formats.Snapshotter. Refcounts rise, and the COPIED flags of the disk go, before the header names the snapshot: the
// power may fail at any time.
func (d *Device) CreateSnapshot(ctx context.Context, name string, at time.Time) error {
	return d.alone(ctx, func(ctx context.Context) error {
		list, err := d.readSnapshots(ctx)
		if err != nil {
			return err
		}
		if err := d.mayKeep(name, list); err != nil {
			return err
		}
		s := ondisk.Snapshot{
			ID: freeID(list), Name: name, L1Size: uint32(len(d.l1)), DateSec: uint32(at.Unix()), DateNsec: uint32(at.Nanosecond()),
			DiskSize: uint64(d.Size()), HasDiskSize: true, // of a machine there is nothing to keep, and that it has executed 0 instructions is what qemu-img says
		}
		l1 := d.shownL1()
		return d.shareTables(ctx, l1, func() error {
			off, err := d.newTable(ctx, l1)
			if err != nil {
				return err
			}
			s.L1TableOffset = uint64(off)
			if err := d.setSnapshots(ctx, append(slices.Clone(list), s)); err != nil {
				d.unlinkBytes(off, int64(8*len(l1)))
				return err
			}
			return nil
		})
	})
}

// mayKeep refuses snapshots that the image cannot have.
func (d *Device) mayKeep(name string, list []ondisk.Snapshot) error {
	switch {
	case d.h.HasDataFile():
		return block.ErrorOf(errors.ErrUnsupported, "the data of the image lies in another file, which has no snapshots")
	case name == "":
		return errors.New("the name of a snapshot is not empty")
	case len(name) > maxSnapshotName:
		return fmt.Errorf("the name of the snapshot has %d bytes, and at most %d are possible", len(name), maxSnapshotName)
	case d.h.RefcountOrder == 0:
		return errOneBit
	case len(list) >= ondisk.MaxSnapshots:
		return fmt.Errorf("the image has %d snapshots, and no more are possible", len(list))
	}
	return nil
}

// errOneBit: what a snapshot shares with the disk is used twice.
var errOneBit = block.WithHint(errors.New("refcounts of the image have 1 bit, and cannot count what a snapshot shares with the disk"),
	"amend the image to more refcount_bits first")

// freeID returns an ID that no snapshot has: the number that follows the largest.
func freeID(list []ondisk.Snapshot) string {
	last := uint64(0)
	for _, s := range list {
		if n, err := strconv.ParseUint(s.ID, 10, 63); err == nil {
			last = max(last, n)
		}
	}
	return strconv.FormatUint(last+1, 10)
}

// ApplySnapshot implements formats.Snapshotter. The header names a copy of the snapshot's L1 table, and with it the size of the disk at the time, once
// everything that it refers to is counted.
func (d *Device) ApplySnapshot(ctx context.Context, idOrName string) error {
	return d.alone(ctx, func(ctx context.Context) error {
		s, err := d.findSnapshot(ctx, idOrName)
		if err != nil {
			return err
		}
		if err := d.mayApply(ctx, s); err != nil {
			return err
		}
		l1, err := d.snapshotL1(ctx, s)
		if err != nil {
			return err
		}
		if err := d.bitmaps.changes(ctx, 0, d.Size()); err != nil {
			return err
		}
		old, oldOff := d.shownL1(), d.l1Offset
		err = d.shareTables(ctx, l1, func() error {
			off, err := d.newTable(ctx, l1)
			if err != nil {
				return err
			}
			h := *d.h
			h.L1TableOffset, h.L1Size, h.Size = uint64(off), uint32(len(l1)), s.DiskSize
			if err := d.setHeader(ctx, &h); err != nil {
				d.fail(err) // which tables the file has is not known
				return err
			}
			d.setL1(l1, off)
			d.size.Store(int64(s.DiskSize))
			return nil
		})
		if err != nil {
			return err
		}
		d.unlinkBytes(oldOff, int64(8*len(old)))
		return d.eachUse(ctx, old, func(use span) error {
			if d.freed.unlink(use); d.freed.crowded() {
				return d.flush(ctx)
			}
			return nil
		})
	})
}

// mayApply refuses snapshots that the disk cannot become.
func (d *Device) mayApply(ctx context.Context, s ondisk.Snapshot) error {
	switch {
	case s.DiskSize > uint64(d.maxSize()) || d.h.L1Needed(s.DiskSize) > uint64(s.L1Size):
		return d.corrupt("snapshot table", int64(d.h.SnapshotsOffset), "snapshot %q has %d bytes, and an L1 table of %d entries", s.Name, s.DiskSize, s.L1Size)
	case d.h.RefcountOrder == 0:
		return errOneBit
	case int64(s.DiskSize) != d.Size() && len(d.listBitmaps(ctx)) > 0:
		return block.WithHint(fmt.Errorf("the disk had %d bytes at the time, and the image keeps bitmaps, whose length would change", s.DiskSize), "remove the bitmaps first")
	}
	return nil
}

// DeleteSnapshot implements formats.Snapshotter. What only the snapshot used is freed once the header does not name it any more, and what only the disk uses
// from then on gets its COPIED flag back.
func (d *Device) DeleteSnapshot(ctx context.Context, idOrName string) error {
	return d.alone(ctx, func(ctx context.Context) error {
		s, err := d.findSnapshot(ctx, idOrName)
		if err != nil {
			return err
		}
		list, err := d.readSnapshots(ctx)
		if err != nil {
			return err
		}
		l1, err := d.snapshotL1(ctx, s)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(o ondisk.Snapshot) bool { return o.ID == s.ID && o.L1TableOffset == s.L1TableOffset })
		if err := d.setSnapshots(ctx, slices.Delete(list, i, i+1)); err != nil {
			return err
		}
		d.unlinkBytes(int64(s.L1TableOffset), 8*int64(s.L1Size))
		if err := d.flush(ctx); err != nil {
			return err
		}
		err = d.eachUse(ctx, l1, func(use span) error { return errors.Join(d.release(ctx, []span{use}), d.writeCrowded(ctx)) })
		if err != nil {
			return err
		}
		return d.flagOwn(ctx)
	})
}

// snapshotL1 reads the L1 table of a snapshot.
func (d *Device) snapshotL1(ctx context.Context, s ondisk.Snapshot) ([]uint64, error) {
	entries, err := d.readL1(ctx, tableAt{int64(s.L1TableOffset), int64(s.L1Size)})
	if err != nil {
		return nil, err
	}
	l1 := make([]uint64, len(entries))
	for i := range entries {
		l1[i] = entries[i].Load() &^ ondisk.Copied
	}
	return l1, nil
}

// shownL1 returns the L1 table of the disk without COPIED flags.
func (d *Device) shownL1() []uint64 {
	l1 := make([]uint64, len(d.l1))
	for i := range l1 {
		l1[i] = d.l1[i].Load() &^ ondisk.Copied
	}
	return l1
}

// newTable writes an L1 table to a new place.
func (d *Device) newTable(ctx context.Context, l1 []uint64) (off int64, err error) {
	if len(l1) == 0 {
		return 0, nil
	}
	if off, err = d.refs.allocateAll(ctx, d.clusters(int64(8*len(l1)))); err != nil {
		return 0, err
	}
	return off, d.writeTable(ctx, l1, off)
}

// setSnapshots writes the snapshot table to a new place, and lets the header name it.
func (d *Device) setSnapshots(ctx context.Context, list []ondisk.Snapshot) error {
	var table []byte
	for i := range list {
		list[i].HasDiskSize = true
		table = list[i].Append(table)
	}
	if len(table) > ondisk.MaxSnapshotTableBytes {
		return fmt.Errorf("the snapshot table would have %d bytes, and has at most %d", len(table), ondisk.MaxSnapshotTableBytes)
	}
	_, oldLen, err := ondisk.ReadSnapshots(ctx, d.file, d.h)
	if err != nil {
		return err
	}
	old := int64(d.h.SnapshotsOffset)
	next := *d.h
	next.NbSnapshots, next.SnapshotsOffset = uint32(len(list)), 0
	if len(list) > 0 {
		table = append(table, make([]byte, d.ceil(int64(len(table)))-int64(len(table)))...)
		off, err := d.refs.allocateAll(ctx, d.clusters(int64(len(table))))
		if err != nil {
			return err
		}
		next.SnapshotsOffset = uint64(off)
		if err := d.writeFile(ctx, table, off); err != nil {
			return err
		}
	}
	if err := d.setHeader(ctx, &next); err != nil {
		d.fail(err) // which table the file has is not known
		return err
	}
	d.unlinkBytes(old, oldLen)
	return nil
}
