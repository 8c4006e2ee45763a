package qcow2

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// What a snapshot and the disk use both has a refcount above 1 and no COPIED flag, so that whoever writes there makes a copy.

// eachUse calls do for the clusters that an L1 table refers to, in runs: its L2 tables and what they refer to. A cluster that is used several times
// comes as often. Tables may be freed once do has been called for what they refer to.
func (d *Device) eachUse(ctx context.Context, l1 []uint64, do func(use span) error) error {
	return d.forEachTable(ctx, l1, func(_ int, table int64, entries []uint64) (bool, error) {
		var s span
		for i := 0; i < len(entries); i += d.entryWords {
			first, n, err := d.usedBy(entries[i], table+int64(8*i))
			switch {
			case err != nil:
				return false, err
			case n == 0:
				continue
			case first == s.first+s.n:
				s.n += n
				continue
			case s.n > 0:
				if err := do(s); err != nil {
					return false, err
				}
			}
			s = span{first, n}
		}
		if s.n > 0 {
			if err := do(s); err != nil {
				return false, err
			}
		}
		return false, do(span{table >> d.clusterBits, 1})
	})
}

// usedBy returns the clusters of the file that an L2 entry refers to. at is where the entry lies.
func (d *Device) usedBy(word uint64, at int64) (first, n int64, err error) {
	if word&ondisk.Compressed != 0 {
		off, length := ondisk.CompressedRange(word, d.clusterBits)
		first = off >> d.clusterBits
		return first, (off+length-1)>>d.clusterBits - first + 1, nil
	}
	off := int64(word & ondisk.OffsetMask)
	switch {
	case d.data.Named() || off == 0:
		return 0, 0, nil
	case off&(d.clusterSize-1) != 0:
		return 0, 0, d.corrupt("L2 table", at, "entry %#x does not lead to the beginning of a cluster", word)
	}
	return off >> d.clusterBits, 1, nil
}

// shareTables lets one more L1 table refer to all that l1 does: it takes the COPIED flags from l1 and its L2 tables, where the disk uses them,
// durably, then raises refcounts, and calls link, which makes the other table known once they are durable. A flag that is missing costs a copy; one that
// should not be there would let one user write to what belongs to two. Where that fails all is as it was, as far as the file can be written, unless link
// has made the image one that cannot be changed any more.
func (d *Device) shareTables(ctx context.Context, l1 []uint64, link func() error) error {
	if err := d.dropFlags(ctx, l1); err != nil {
		return errors.Join(err, d.flagOwn(ctx))
	}
	raised := 0 // uses
	err := d.eachUse(ctx, l1, func(use span) error {
		if err := d.refs.change(ctx, use.first, use.n, 1); err != nil {
			return err
		}
		raised++
		return d.writeCrowded(ctx)
	})
	if err == nil {
		if err = link(); err == nil {
			return nil
		}
	}
	if d.broken() != nil {
		return err // the file may refer to it
	}
	undo := d.eachUse(ctx, l1, func(use span) error {
		if raised--; raised < 0 {
			return nil
		}
		return d.refs.change(ctx, use.first, use.n, -1)
	})
	if undo == nil {
		undo = d.flagOwn(ctx)
	}
	return errors.Join(err, undo)
}

// writeCrowded writes refcounts where many have changed, all of which may be known before anything else is.
func (d *Device) writeCrowded(ctx context.Context) error {
	if d.refs.crowded() {
		return d.refs.write(ctx)
	}
	return nil
}

// dropFlags takes the COPIED flags from the L2 tables of l1, and from what leads to them in the L1 table of the disk, durably. No L2 table is in memory
// afterwards.
func (d *Device) dropFlags(ctx context.Context, l1 []uint64) error {
	defer d.tables.dropAll()
	err := d.forEachTable(ctx, l1, func(_ int, _ int64, entries []uint64) (changed bool, err error) {
		for i := 0; i < len(entries); i += d.entryWords {
			if entries[i]&ondisk.Copied != 0 {
				entries[i] &^= ondisk.Copied
				changed = true
			}
		}
		return changed, nil
	})
	if err != nil {
		return err
	}
	own := make([]uint64, len(d.l1))
	changed := false
	for i := range own {
		own[i] = d.l1[i].Load()
		if i < len(l1) && own[i]&ondisk.Copied != 0 && own[i]&ondisk.OffsetMask == l1[i]&ondisk.OffsetMask {
			own[i] &^= ondisk.Copied
			changed = true
		}
	}
	if !changed {
		return d.syncFile(ctx)
	}
	return d.writeFlags(ctx, own)
}

// flagOwn gives the COPIED flag to every entry of the disk that alone refers to its cluster, and takes it from the others, once the refcounts are durable.
func (d *Device) flagOwn(ctx context.Context) error {
	defer d.tables.dropAll()
	if err := errors.Join(d.refs.write(ctx), d.syncFile(ctx)); err != nil {
		return err
	}
	l1 := d.shownL1()
	err := d.forEachTable(ctx, l1, func(i int, table int64, entries []uint64) (changed bool, err error) {
		own, _, err := d.refs.lastUsers(ctx, table>>d.clusterBits, 1)
		if err != nil {
			return false, err
		}
		if own {
			l1[i] |= ondisk.Copied
		}
		for k := 0; k < len(entries); k += d.entryWords {
			first, n, err := d.usedBy(entries[k], table+int64(8*k))
			if err != nil {
				return changed, err
			}
			if n == 0 || entries[k]&ondisk.Compressed != 0 {
				continue
			}
			word := entries[k] &^ ondisk.Copied
			if own, _, err := d.refs.lastUsers(ctx, first, 1); err != nil {
				return changed, err
			} else if own {
				word |= ondisk.Copied
			}
			changed = changed || word != entries[k]
			entries[k] = word
		}
		return changed, nil
	})
	if err != nil {
		return err
	}
	return d.writeFlags(ctx, l1)
}

// writeFlags writes the L1 table of the disk in its place, durably, and forgets what is in memory of its L2 tables.
func (d *Device) writeFlags(ctx context.Context, l1 []uint64) error {
	if len(l1) > 0 {
		if err := d.writeTable(ctx, l1, d.l1Offset); err != nil {
			return err
		}
	}
	d.setL1(l1, d.l1Offset)
	return d.syncFile(ctx)
}
