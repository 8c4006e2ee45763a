package qcow2

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// A bitmap that is not in use must have a table for exactly the size of the disk. As two tables and a size do not change at once, all bitmaps
// are marked as in use while the size changes.

// beginResize refuses a size that the bitmaps cannot have, or marks them as in use.
func (b *bitmaps) beginResize(ctx context.Context, size int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.list {
		if _, err := b.findUsable(m.Name); err != nil {
			return fmt.Errorf("bitmap %q: %w", m.Name, err)
		}
		if err := b.maySize(size, m.GranularityBits); err != nil {
			return block.WithHint(err, removeHint)
		}
	}
	if err := b.spillAll(ctx); err != nil {
		return err
	}
	for _, m := range b.list {
		m.Flags |= ondisk.BitmapInUse
	}
	return b.writeFlags(ctx)
}

// endResize gives the bitmaps tables for the new size of the disk, and takes the marks away. New bytes are not set in them.
func (b *bitmaps) endResize(ctx context.Context, old int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) == 0 || b.d.Size() == old {
		return b.storeLocked(ctx)
	}
	unused, err := b.resizeTables(ctx, old)
	if err == nil {
		b.recording = nil
		b.begun.Store(false)
		err = b.writeDirectory(ctx)
	}
	if err != nil { // the tables that the file has are of the wrong length, and stay in use
		for _, m := range b.list {
			b.lose(m, err)
		}
		return err
	}
	for _, r := range unused {
		b.d.unlinkBytes(r.off, r.n)
	}
	return nil
}

// resizeTables gives each bitmap a table for the present size, and takes its mark away in memory.
func (b *bitmaps) resizeTables(ctx context.Context, old int64) (unused []fileRange, err error) {
	for _, m := range b.list {
		if m.lost {
			continue
		}
		more, err := b.resizeTable(ctx, m, old)
		if err != nil {
			return nil, err
		}
		unused = append(unused, more...)
		m.Flags &^= ondisk.BitmapInUse
	}
	return unused, nil
}

// resizeTable makes a table for the present size, and returns what is not used any more once the directory names it.
func (b *bitmaps) resizeTable(ctx context.Context, m *bitmap, old int64) (unused []fileRange, err error) {
	d := b.d
	table := make([]uint64, max(m.BitmapTableSize, uint32(d.h.BitmapTableSize(uint64(d.Size()), m.GranularityBits))))
	s := bitScan{bitmaps: b, m: m}
	for i := range int64(m.BitmapTableSize) {
		if table[i], err = s.entry(ctx, i); err != nil {
			return nil, err
		}
	}
	unused = append(unused, fileRange{int64(m.BitmapTableOffset), 8 * int64(m.BitmapTableSize)})
	perCluster := d.clusterSize * 8
	valid := (min(old, d.Size())-1)>>m.GranularityBits + 1
	if edge := valid / perCluster; edge < int64(len(table)) && valid%perCluster != 0 && table[edge] != 0 {
		entry, err := b.cutBits(ctx, table[edge], valid%perCluster)
		if err != nil {
			return nil, err
		}
		if host := int64(table[edge] & ondisk.OffsetMask); host != 0 {
			unused = append(unused, fileRange{host, d.clusterSize})
		}
		table[edge] = entry
	}
	n := int64(d.h.BitmapTableSize(uint64(d.Size()), m.GranularityBits))
	for _, entry := range table[n:] {
		if host := int64(entry & ondisk.OffsetMask); host != 0 {
			unused = append(unused, fileRange{host, d.clusterSize})
		}
	}
	return unused, b.newTable(ctx, m, slices.Clip(table[:n]))
}

// cutBits returns the table entry of a new cluster with the first n bits of that of another one.
func (b *bitmaps) cutBits(ctx context.Context, entry uint64, n int64) (uint64, error) {
	d := b.d
	p := make([]byte, d.clusterSize)
	if host := int64(entry & ondisk.OffsetMask); host != 0 {
		if err := d.file.Read(ctx, p, host); err != nil {
			return 0, err
		}
		clearBits(p, n, 8*d.clusterSize)
	} else {
		setBits(p, 0, n)
	}
	host, _, _, err := d.refs.allocate(ctx, 1)
	if err != nil {
		return 0, err
	}
	return uint64(host), d.writeFile(ctx, p, host)
}
