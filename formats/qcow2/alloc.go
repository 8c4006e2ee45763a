package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// notCounted returns the error of a cluster that is used and not counted.
func notCounted(d *Device, cluster int64) error {
	return block.WithHint(d.corrupt("refcount block", -1, "the cluster at byte %d is in use, and its refcount is 0", cluster<<d.clusterBits), repairHint)
}

// allocate takes up to n free clusters that lie one after another, the first free ones of the file, and returns where. Nothing points to
// them yet. fresh says that they have never been written and read as zero.
func (r *refcounts) allocate(ctx context.Context, n int64) (host, got int64, fresh bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, got, err := r.run(ctx, r.next, n)
	if err != nil {
		return 0, 0, false, err
	}
	r.next = first + got
	host, fresh = r.taken(first, got)
	return host, got, fresh, nil
}

// allocateAll takes n free clusters that lie one after another.
func (r *refcounts) allocateAll(ctx context.Context, n int64) (host int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n >= 1<<r.d.refBits/2 {
		return r.allocateBeyond(ctx, n)
	}
	for from := r.next; ; {
		first, got, err := r.run(ctx, from, n)
		if err != nil {
			return 0, err
		}
		if got == n {
			if first == r.next {
				r.next += n
			}
			host, _ = r.taken(first, got)
			return host, nil
		}
		if err := r.untake(ctx, first, got); err != nil {
			return 0, err
		}
		from = first + got
	}
}

// untake makes clusters free again that run has taken.
func (r *refcounts) untake(ctx context.Context, first, n int64) error {
	for c := first; c < first+n; c++ {
		index, i := r.split(c)
		b, err := r.block(ctx, index)
		if err != nil {
			return err
		}
		r.set(b, i, 0)
	}
	return nil
}

// allocateBeyond takes n clusters behind all that is counted so far: where new refcount blocks would lie between them otherwise.
func (r *refcounts) allocateBeyond(ctx context.Context, n int64) (host int64, err error) {
	for {
		index := int64(len(r.table))
		for index > 0 && r.table[index-1] == 0 {
			index--
		}
		blocks := r.blocksFor(n)
		if index+blocks <= int64(len(r.table)) {
			if err := r.hasRoom(index<<r.d.refBits + blocks + n); err != nil {
				return 0, err
			}
			host, _ = r.taken(r.layOut(index, blocks, n)+blocks, n)
			return host, nil
		}
		if _, err := r.growTable(ctx, index+blocks); err != nil {
			return 0, err
		}
	}
}

// blocksFor returns how many refcount blocks count themselves and n clusters behind them.
func (r *refcounts) blocksFor(n int64) int64 {
	blocks := int64(1)
	for blocks<<r.d.refBits < blocks+n {
		blocks++
	}
	return blocks
}

// layOut makes blocks from an index on, and counts them and the n clusters that follow them. They lie where the first of them begins to count.
func (r *refcounts) layOut(index, blocks, n int64) (start int64) {
	start = index << r.d.refBits
	for i := range blocks {
		r.addBlock(index+i, start+i)
	}
	for c := start; c < start+blocks+n; c++ {
		i, k := r.split(c)
		r.set(r.blocks[i], k, 1)
	}
	return start
}

// taken notes that clusters are used, and returns where they lie and whether nothing was ever written there.
func (r *refcounts) taken(first, n int64) (host int64, fresh bool) {
	d := r.d
	host = first << d.clusterBits
	fresh = d.grows && host >= d.untouched
	d.untouched = max(d.untouched, host+n<<d.clusterBits)
	return host, fresh
}

// hasRoom returns an error where the file cannot have the clusters before end.
func (r *refcounts) hasRoom(end int64) error {
	d := r.d
	switch at := end << d.clusterBits; {
	case !d.grows && at > d.file.Size():
		return fmt.Errorf("the file of the image has %d bytes and cannot grow: %w", d.file.Size(), syscall.ENOSPC)
	case at > int64(ondisk.MaxOffset):
		return fmt.Errorf("the format has no place for a cluster that ends at byte %d: %w", at, syscall.ENOSPC)
	}
	return nil
}

// run finds the first free cluster from one on, and up to n-1 that follow it, and counts them as used. What keeps it from taking a following one is
// told to whoever comes next.
func (r *refcounts) run(ctx context.Context, from, n int64) (first, got int64, err error) {
	first = -1
	for c := from; got < n; c++ {
		used, err := r.takeOne(ctx, c, first < 0)
		switch {
		case first >= 0 && (err != nil || used > 0):
			return first, got, nil
		case err != nil:
			return 0, 0, err
		case used > 0:
			c += used - 1
			continue
		case first < 0:
			first = c
		}
		got++
	}
	return first, got, nil
}

// takeOne counts cluster c as used where it is free. Else it returns for how many clusters from it on nobody need ask. newBlock says that a refcount
// block may be made for it.
func (r *refcounts) takeOne(ctx context.Context, c int64, newBlock bool) (used int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := r.hasRoom(c + 1); err != nil {
		return 0, err
	}
	index, i := r.split(c)
	b, err := r.block(ctx, index)
	if err == nil && b == nil {
		if !newBlock {
			return 1, nil // it would lie in the middle
		}
		b, err = r.newBlock(ctx, index, c)
	}
	if err != nil {
		return 0, err
	}
	if b.get(i, r.order) != 0 {
		return b.used(i, r.order), nil
	}
	if part := r.inMetadata(c << r.d.clusterBits); part != "" {
		return 0, block.WithHint(r.d.corrupt(part, c<<r.d.clusterBits, "the cluster is in use, and its refcount is 0"), repairHint)
	}
	r.set(b, i, 1)
	return 0, nil
}

// used returns how many counts from i on are not 0, at least 1; count i is not.
func (b *refBlock) used(i int64, order uint32) int64 {
	n := int64(len(b.p)) * 8 >> order
	k := i + 1
	if order == 4 {
		for k < n && binary.BigEndian.Uint16(b.p[2*k:]) != 0 {
			k++
		}
		return k - i
	}
	for k < n && ondisk.Refcount(b.p, k, order) != 0 {
		k++
	}
	return k - i
}

// end returns where the last cluster of the file ends that is in use.
func (r *refcounts) end(ctx context.Context) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.d.file.Size() >> r.d.clusterBits
	for ; c > 0; c-- {
		if v, err := r.countLocked(ctx, c); err != nil {
			return 0, err
		} else if v > 0 {
			break
		}
	}
	return (c + 1) << r.d.clusterBits, nil
}

// newBlock makes the refcount block with an index, which lies at the free cluster at, one of those that it counts itself.
func (r *refcounts) newBlock(ctx context.Context, index, at int64) (*refBlock, error) {
	if index >= int64(len(r.table)) {
		return r.growTable(ctx, index)
	}
	r.makeRoom()
	b := r.addBlock(index, at)
	_, i := r.split(at)
	r.set(b, i, 1)
	return b, nil
}

// addBlock makes an empty block at a cluster.
func (r *refcounts) addBlock(index, at int64) *refBlock {
	d := r.d
	host := at << d.clusterBits
	b := &refBlock{index: index, host: host, p: make([]byte, d.clusterSize), fresh: true, tick: r.tick}
	r.blocks[index], r.places[host], r.table[index] = b, true, uint64(host)
	d.untouched = max(d.untouched, host+d.clusterSize)
	return b
}

// growTable makes a larger refcount table and the block with an index, which the old one has no room for. Both lie in the clusters which
// that block counts first, where there is nothing yet: blocks first, as many as the table needs, then the table. It is durable before the
// header names it.
func (r *refcounts) growTable(ctx context.Context, index int64) (*refBlock, error) {
	d := r.d
	ctx = context.WithoutCancel(ctx)
	perCluster := d.clusterSize / 8
	blocks, tableClusters := int64(1), int64(0)
	for {
		entries := max(index+blocks, int64(len(r.table))*3/2)
		tableClusters = (entries + perCluster - 1) / perCluster
		if enough := r.blocksFor(tableClusters); enough <= blocks {
			break
		}
		blocks++
	}
	if tableClusters*d.clusterSize > ondisk.MaxRefcountTableBytes {
		return nil, fmt.Errorf("the refcount table is as long as it may be: %w", syscall.ENOSPC)
	}
	oldOff, oldClusters := r.tableOff, int64(len(r.table))/perCluster
	start := index << d.refBits
	if err := r.hasRoom(start + blocks + tableClusters); err != nil {
		return nil, err
	}
	grown := make([]uint64, tableClusters*perCluster)
	copy(grown, r.table)
	r.table = grown
	r.layOut(index, blocks, tableClusters)
	r.tableOff = (start + blocks) << d.clusterBits
	d.untouched = max(d.untouched, (start+blocks+tableClusters)<<d.clusterBits)
	if err := r.switchTable(ctx, tableClusters); err != nil {
		d.fail(err) // which table the file has is not known
		return nil, err
	}
	// A commit may be about to write the name of a block to the old table: it is given up after that.
	for c := oldOff >> d.clusterBits; c < oldOff>>d.clusterBits+oldClusters; c++ {
		if v, err := r.countLocked(ctx, c); err == nil && v > 0 { // it is lost space at worst
			d.freed.unlink(span{c, 1})
		}
	}
	return r.block(ctx, index)
}

// switchTable writes all blocks that have changed, then the table, then the place of the table into the header.
func (r *refcounts) switchTable(ctx context.Context, clusters int64) error {
	d := r.d
	for _, b := range r.blocks {
		if b.hi == 0 && !b.fresh {
			continue
		}
		if err := d.writeFile(ctx, b.p, b.host); err != nil {
			return err
		}
	}
	p := make([]byte, 0, 8*len(r.table))
	for _, entry := range r.table {
		p = binary.BigEndian.AppendUint64(p, entry)
	}
	if err := d.writeFile(ctx, p, r.tableOff); err != nil {
		return err
	}
	if err := d.syncFile(ctx); err != nil {
		return err
	}
	d.h.RefcountTableOffset, d.h.RefcountTableClusters = uint64(r.tableOff), uint32(clusters)
	var place [12]byte
	binary.BigEndian.PutUint64(place[:], d.h.RefcountTableOffset)
	binary.BigEndian.PutUint32(place[8:], d.h.RefcountTableClusters)
	if err := d.writeFile(ctx, place[:], refcountTableField); err != nil {
		return err
	}
	if err := d.syncFile(ctx); err != nil {
		return err
	}
	for _, b := range r.blocks {
		if b.fresh = false; !b.busy { // an older copy of a busy one may be written yet
			b.lo, b.hi = 0, 0
		}
	}
	return nil
}

// refcountTableField is where in the header refcount_table_offset and refcount_table_clusters lie, in bytes.
const refcountTableField = 48
