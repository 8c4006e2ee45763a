package qcow2

import (
	"context"
	"encoding/binary"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
)

// What snapshots, bitmaps and changes of options stand on:
//
//   - alone runs a function while no other call does, with everything written and durable before. Only in it may d.h and d.l1 change.
//   - refs.allocateAll takes clusters that lie one after another; refs.allocate takes some; writeFile writes to them.
//   - refs.change raises or lowers refcounts. Raise before anything points there, and lower what nothing in the file points to any more.
//   - freed.unlink, or unlinkBytes, lowers refcounts once the next commit has written the tables that point there no more.
//   - commit writes all changed tables in order; syncFile flushes the file.
//   - setHeader writes the header anew, at once and durably. setL1 lets d.l1 be another table.
//   - forEachTable visits the L2 tables of an L1 table.

// alone runs do while no other call runs. Before, all is durable; what do leaves in memory becomes durable afterwards.
func (d *Device) alone(ctx context.Context, do func(ctx context.Context) error) error {
	if !d.writable {
		return block.ErrReadOnly
	}
	if err := d.calls.BeginAlone(ctx); err != nil {
		return err
	}
	defer d.calls.EndAlone()
	ctx = context.WithoutCancel(ctx)
	if err := d.beforeChange(ctx, 0, 0); err != nil {
		return err
	}
	if err := d.flush(ctx); err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		return err
	}
	return d.flush(ctx)
}

// setL1 makes the table at off, which is in the file and durable, the L1 table in memory. No slice is dirty.
func (d *Device) setL1(l1 []uint64, off int64) {
	d.l1 = make([]atomic.Uint64, len(l1))
	for i, entry := range l1 {
		d.l1[i].Store(entry)
	}
	d.l1Offset = off
	clear(d.l1Dirty)
	d.tables.dropAll()
}

// writeTable writes a table of 8-byte entries to clusters that were allocated for it; the rest of the last one becomes zero.
func (d *Device) writeTable(ctx context.Context, table []uint64, off int64) error {
	p := make([]byte, 0, d.ceil(int64(8*len(table))))
	for _, entry := range table {
		p = binary.BigEndian.AppendUint64(p, entry)
	}
	return d.writeFile(ctx, p[:cap(p)], off)
}

// unlinkBytes is freed.unlink for all clusters in which bytes of a range of the file lie.
func (d *Device) unlinkBytes(off, n int64) {
	if n > 0 {
		first := off >> d.clusterBits
		d.freed.unlink(span{first, (off+n-1)>>d.clusterBits - first + 1})
	}
}

// forEachTable calls do for each L2 table of an L1 table, with its entries, which do may change where it returns true: then they are written.
func (d *Device) forEachTable(ctx context.Context, l1 []uint64, do func(i int, table int64, entries []uint64) (changed bool, err error)) error {
	p := make([]byte, d.clusterSize)
	entries := make([]uint64, d.clusterSize/8)
	for i, word := range l1 {
		if word == 0 {
			continue
		}
		table, err := d.l2Table(int64(i), word)
		if err != nil {
			return err
		}
		if err := block.CheckRange(table, d.clusterSize, d.file.Size()); err != nil {
			return d.corrupt("L2 table", table, "it leaves the file, which has %d bytes", d.file.Size())
		}
		if err := d.file.Read(ctx, p, table); err != nil {
			return err
		}
		for k := range entries {
			entries[k] = binary.BigEndian.Uint64(p[8*k:])
		}
		changed, err := do(i, table, entries)
		if err != nil {
			return err
		}
		if changed {
			if err := d.writeTable(ctx, entries, table); err != nil {
				return err
			}
		}
	}
	return nil
}
