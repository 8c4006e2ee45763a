package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// recount is a refcount structure of another width. It lies behind all clusters that are used, where the old one counts nothing: blocks, then
// the table. The header lets it take the place of the old one at once.
type recount struct {
	order   uint32
	refBits uint    // a block counts 1<<refBits clusters
	indexes []int64 // of its blocks in the table, ascending
	start   int64   // the first cluster of it, behind all that are used
	end     int64   // the first cluster behind it
	table   int64   // the first cluster of the table
}

// countsToKeep reads all refcounts, and returns which blocks they need in a structure of another width, or an error where one is too large for it.
func (d *Device) countsToKeep(ctx context.Context, order uint32) (*recount, error) {
	n := &recount{order: order, refBits: uint(d.clusterBits + 3 - order)}
	r := d.refs
	r.mu.Lock()
	defer r.mu.Unlock()
	for index := range int64(len(r.table)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := r.block(ctx, index)
		if err != nil {
			return nil, err
		}
		for i := int64(0); b != nil && i < 1<<d.refBits; i++ {
			v := b.get(i, r.order)
			if v == 0 {
				continue
			}
			c := index<<d.refBits + i
			if v > ondisk.MaxRefcount(order) {
				return nil, fmt.Errorf("the cluster at byte %d is used %d times, which does not fit into refcount_bits=%d", c<<d.clusterBits, v, 1<<order)
			}
			if k := c >> n.refBits; len(n.indexes) == 0 || n.indexes[len(n.indexes)-1] != k {
				n.indexes = append(n.indexes, k)
			}
			n.start = c + 1
		}
	}
	return n, nil
}

// layOut decides where the structure lies, which counts itself.
func (n *recount) layOut(d *Device) error {
	counted := n.indexes
	for length := int64(0); ; {
		n.indexes = slices.Clone(counted)
		for k := n.start >> n.refBits; k <= (n.start+length)>>n.refBits; k++ {
			if len(n.indexes) == 0 || n.indexes[len(n.indexes)-1] < k {
				n.indexes = append(n.indexes, k)
			}
		}
		n.table = n.start + int64(len(n.indexes))
		n.end = n.table + d.clusters(8*(n.indexes[len(n.indexes)-1]+1))
		if n.end-n.start <= length {
			break
		}
		length = n.end - n.start
	}
	switch end := n.end << d.clusterBits; {
	case (n.end-n.table)<<d.clusterBits > ondisk.MaxRefcountTableBytes:
		return fmt.Errorf("the refcount table would have more than %d bytes", ondisk.MaxRefcountTableBytes)
	case !d.grows && end > d.file.Size(), end > int64(ondisk.MaxOffset):
		return fmt.Errorf("the file of the image cannot grow: %w", syscall.ENOSPC)
	}
	return nil
}

// setRefcountOrder changes the width of all refcounts.
func (d *Device) setRefcountOrder(ctx context.Context, order uint32) error {
	n, err := d.countsToKeep(ctx, order)
	if err != nil {
		return err
	}
	if err := n.layOut(d); err != nil {
		return err
	}
	if err := n.write(ctx, d); err != nil {
		return err
	}
	old := d.refs
	h := *d.h
	h.RefcountTableOffset, h.RefcountTableClusters = uint64(n.table<<d.clusterBits), uint32(n.end-n.table)
	h.RefcountOrder = order
	if err := d.setHeader(ctx, &h); err != nil {
		d.fail(err) // which structure the file has is not known
		return err
	}
	d.refBits = n.refBits
	d.untouched = max(d.untouched, n.end<<d.clusterBits)
	refs, err := d.readRefcounts(ctx)
	if err != nil {
		d.fail(err)
		return err
	}
	d.refs = refs
	for _, at := range old.table {
		if at != 0 {
			d.unlinkBytes(int64(at), d.clusterSize)
		}
	}
	d.unlinkBytes(old.tableOff, 8*int64(len(old.table)))
	return nil
}

// write writes the structure. Nothing names it yet.
func (n *recount) write(ctx context.Context, d *Device) error {
	p := make([]byte, d.clusterSize)
	table := make([]byte, (n.end-n.table)<<d.clusterBits)
	for i, index := range n.indexes {
		clear(p)
		for k := range int64(1) << n.refBits {
			c := index<<n.refBits + k
			if c >= n.end {
				break
			}
			v := uint64(1)
			if c < n.start {
				var err error
				if v, err = d.oldCount(ctx, c); err != nil {
					return err
				}
			}
			ondisk.SetRefcount(p, k, n.order, v)
		}
		at := (n.start + int64(i)) << d.clusterBits
		if err := d.writeFile(ctx, p, at); err != nil {
			return err
		}
		binary.BigEndian.PutUint64(table[8*index:], uint64(at))
	}
	return d.writeFile(ctx, table, n.table<<d.clusterBits)
}

// oldCount returns how often a cluster is used.
func (d *Device) oldCount(ctx context.Context, cluster int64) (uint64, error) {
	d.refs.mu.Lock()
	defer d.refs.mu.Unlock()
	return d.refs.countLocked(ctx, cluster)
}
