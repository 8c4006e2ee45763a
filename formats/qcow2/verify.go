package qcow2

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// verifyReferenced looks, before the first change, whether everything that tables point to is counted: what is not would be taken for free, and
// overwritten. It has nothing to do where no cluster inside the file is free.
func (d *Device) verifyReferenced(ctx context.Context) error {
	free, err := d.refs.hasFree(ctx, d.file.Size()>>d.clusterBits)
	if err != nil || !free {
		return err
	}
	tables, err := d.allTables(ctx)
	if err != nil {
		return err
	}
	p := make([]byte, d.clusterSize)
	for _, table := range tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		if table&(d.clusterSize-1) != 0 || block.CheckRange(table, d.clusterSize, d.file.Size()) != nil {
			continue // whoever uses it is told
		}
		if err := d.refs.verifyCounted(ctx, table, d.clusterSize); err != nil {
			return err
		}
		if d.data.Named() {
			continue
		}
		if err := d.file.Read(ctx, p, table); err != nil {
			return err
		}
		if err := d.verifyTable(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// verifyTable checks that what an L2 table points to is counted.
func (d *Device) verifyTable(ctx context.Context, p []byte) error {
	for k := 0; k < len(p); k += 8 * d.entryWords {
		word := binary.BigEndian.Uint64(p[k:])
		off, n := int64(word&ondisk.OffsetMask), d.clusterSize
		if word&ondisk.Compressed != 0 {
			off, n = ondisk.CompressedRange(word, d.clusterBits)
		}
		if off == 0 || off >= d.file.Size() {
			continue
		}
		if err := d.refs.verifyCounted(ctx, off, n); err != nil {
			return err
		}
	}
	return nil
}

// maxSnapshotL1 bounds how much of the L1 tables of snapshots verifyReferenced reads, in bytes: of a sane image all.
const maxSnapshotL1 = 256 << 20

// allTables returns where the L2 tables of the image and of its snapshots lie, each once.
func (d *Device) allTables(ctx context.Context) ([]int64, error) {
	var tables []int64
	room := 1 << 16
	add := func(entry uint64) {
		at := int64(entry & ondisk.OffsetMask)
		if at == 0 {
			return
		}
		if tables = append(tables, at); len(tables) >= room {
			slices.Sort(tables)
			tables = slices.Compact(tables)
			room = max(room, 2*len(tables))
		}
	}
	for i := range d.l1 {
		add(d.l1[i].Load())
	}
	snapshots, err := d.readSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	read := int64(0)
	seen := map[tableAt]bool{}
	for _, s := range snapshots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at := tableAt{int64(s.L1TableOffset), int64(s.L1Size)}
		if seen[at] {
			continue
		}
		seen[at] = true
		if read += 8 * int64(s.L1Size); read > maxSnapshotL1 {
			break
		}
		p, err := d.readTable(ctx, "L1 table", at)
		if err != nil {
			return nil, err
		}
		for ; len(p) > 0; p = p[8:] {
			add(binary.BigEndian.Uint64(p))
		}
	}
	slices.Sort(tables)
	return slices.Compact(tables), nil
}

// hasFree reports whether one of the first n clusters is free.
func (r *refcounts) hasFree(ctx context.Context, n int64) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := int64(0); c < n; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		index, i := r.split(c)
		b, err := r.block(ctx, index)
		if err != nil {
			return false, err
		}
		if b == nil || b.get(i, r.order) == 0 {
			return true, nil
		}
		c += b.used(i, r.order)
	}
	return false, nil
}

// verifyCounted checks that the clusters in which n bytes at off lie are counted.
func (r *refcounts) verifyCounted(ctx context.Context, off, n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	bits := r.d.clusterBits
	for c := off >> bits; c <= (off+n-1)>>bits; c++ {
		v, err := r.countLocked(ctx, c)
		if err == nil && v == 0 {
			err = notCounted(r.d, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// countUsed counts how many of the first n clusters are in use, up to a number that is enough.
func (r *refcounts) countUsed(ctx context.Context, n, enough int64) (used int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := int64(0); c < n && used < enough; c++ {
		index, i := r.split(c)
		b, err := r.block(ctx, index)
		switch {
		case err != nil:
			return used, err
		case b == nil:
			c |= 1<<r.d.refBits - 1
		case b.get(i, r.order) != 0:
			used++
		}
	}
	return used, nil
}
