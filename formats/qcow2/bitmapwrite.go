package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// While a bitmap is marked as in use nobody relies on what the file has of it. So bits that have been set are put into the file in any order: at
// the latest before the mark is taken away, and before that where there are too many of them for memory.

// begin marks the bitmaps that record as in use, durably, before the disk changes, unless they are. One that cannot be kept up is lost.
func (b *bitmaps) begin(ctx context.Context) error {
	if b.begun.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun.Load() {
		return nil
	}
	b.recording = nil
	for _, m := range b.list {
		if m.Flags&ondisk.BitmapAuto == 0 || m.lost {
			continue
		}
		if err := b.check(m); err != nil {
			b.lose(m, err)
			continue
		}
		m.Flags |= ondisk.BitmapInUse
		b.recording = append(b.recording, m)
	}
	if err := b.writeFlags(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	b.begun.Store(true)
	return nil
}

// lose gives a bitmap up for a reason.
func (b *bitmaps) lose(m *bitmap, reason error) {
	b.d.o.Logger().Warn("a bitmap is not complete any more", "image", b.d.o.Name, "bitmap", m.Name, "reason", reason)
	m.Flags |= ondisk.BitmapInUse
	m.lost = true
	b.dropPages(m)
	b.recording = slices.DeleteFunc(b.recording, func(o *bitmap) bool { return o == m })
}

// changes notes that a range of the disk changes, before it does.
func (b *bitmaps) changes(ctx context.Context, off, n int64) error {
	if len(b.list) == 0 { // it changes only while no other call runs
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range slices.Clone(b.recording) {
		if err := b.set(ctx, m, off, n); err != nil {
			return err
		}
	}
	return nil
}

// pageLen returns the length of a page in bytes.
func (b *bitmaps) pageLen() int64 { return min(b.d.clusterSize, 4<<10) }

// pageCost is what a page takes beside its bits, in bytes.
const pageCost = 64

// set sets the bits of a range of the disk in memory.
func (b *bitmaps) set(ctx context.Context, m *bitmap, off, n int64) error {
	perPage := b.pageLen() * 8
	for bit, end := off>>m.GranularityBits, (off+n-1)>>m.GranularityBits+1; bit < end; {
		i, next := bit/perPage, min(end, (bit/perPage+1)*perPage)
		p, known := m.pages[i]
		switch {
		case known && p == nil:
		case next-bit == perPage:
			b.setPage(m, i, nil)
		default:
			if !known {
				p = make(bitPage, b.pageLen())
				b.setPage(m, i, p)
			}
			setBits(p, bit%perPage, (next-1)%perPage+1)
		}
		bit = next
		if b.held <= b.room {
			continue
		}
		if err := b.spillAll(ctx); err != nil || m.lost {
			return err
		}
	}
	return nil
}

func (b *bitmaps) setPage(m *bitmap, i int64, p bitPage) {
	if m.pages == nil {
		m.pages = map[int64]bitPage{}
	}
	if old, known := m.pages[i]; known {
		b.held -= pageCost + int64(len(old))
	}
	m.pages[i] = p
	b.held += pageCost + int64(len(p))
}

func (b *bitmaps) dropPages(m *bitmap) {
	for _, p := range m.pages {
		b.held -= pageCost + int64(len(p))
	}
	m.pages = nil
}

// spillAll puts all bits into the file.
func (b *bitmaps) spillAll(ctx context.Context) error {
	for _, m := range b.list {
		if err := b.spill(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// tableChange is a new entry of a bitmap table.
type tableChange struct {
	i        int64
	old, new uint64
}

// spill puts the bits of a bitmap, which is marked as in use, into the file. One that turns out to be damaged is lost.
func (b *bitmaps) spill(ctx context.Context, m *bitmap) error {
	if len(m.pages) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	err := b.spillPages(ctx, m)
	if damage := (*block.CorruptError)(nil); errors.As(err, &damage) {
		b.lose(m, err)
		return nil
	}
	if err == nil {
		b.dropPages(m)
	}
	return err
}

func (b *bitmaps) spillPages(ctx context.Context, m *bitmap) error {
	d := b.d
	table := int64(m.BitmapTableOffset)
	first, last := table>>d.clusterBits, (table+8*int64(m.BitmapTableSize)-1)>>d.clusterBits
	if err := d.refs.verify(ctx, first, last-first+1, true); err != nil {
		return err
	}
	perCluster := d.clusterSize / b.pageLen()
	s := bitScan{bitmaps: b, m: m}
	var changes []tableChange
	for keys := slices.Sorted(maps.Keys(m.pages)); len(keys) > 0; {
		i := keys[0] / perCluster
		n := 1
		for n < len(keys) && keys[n]/perCluster == i {
			n++
		}
		old, err := s.entry(ctx, i)
		if err != nil {
			return err
		}
		entry, err := b.spillCluster(ctx, m, keys[:n], old)
		if err != nil {
			return err
		}
		if entry != old {
			changes = append(changes, tableChange{i, old, entry})
		}
		keys = keys[n:]
	}
	return b.changeTable(ctx, m, changes)
}

// spillCluster puts pages that lie in one cluster of bits into the file, and returns what its table entry is to be.
func (b *bitmaps) spillCluster(ctx context.Context, m *bitmap, keys []int64, entry uint64) (uint64, error) {
	d := b.d
	perCluster := d.clusterSize / b.pageLen()
	full := int64(len(keys)) == perCluster
	for _, k := range keys {
		full = full && m.pages[k] == nil
	}
	host := int64(entry & ondisk.OffsetMask)
	if host != 0 {
		if err := d.refs.verify(ctx, host>>d.clusterBits, 1, true); err != nil {
			return 0, err
		}
	}
	switch {
	case full || entry == ondisk.BitmapTableAllOnes:
		return ondisk.BitmapTableAllOnes, nil
	case host == 0:
		var err error
		if host, _, _, err = d.refs.allocate(ctx, 1); err != nil {
			return 0, err
		}
		p := make([]byte, d.clusterSize)
		for _, k := range keys {
			m.pages[k].or(p[k%perCluster*b.pageLen():][:b.pageLen()])
		}
		return uint64(host), d.writeFile(ctx, p, host)
	}
	p := make([]byte, b.pageLen())
	for _, k := range keys {
		at := host + k%perCluster*b.pageLen()
		if err := d.file.Read(ctx, p, at); err != nil {
			return 0, err
		}
		m.pages[k].or(p)
		if err := d.writeFile(ctx, p, at); err != nil {
			return 0, err
		}
	}
	return entry, nil
}

// or sets in p what is set in the page.
func (g bitPage) or(p []byte) {
	if g == nil {
		setBits(p, 0, int64(len(p))*8)
		return
	}
	orBits(p, g)
}

// changeTable changes entries of a bitmap table once what they lead to is durable.
func (b *bitmaps) changeTable(ctx context.Context, m *bitmap, changes []tableChange) error {
	d := b.d
	if len(changes) == 0 {
		return nil
	}
	if err := errors.Join(d.refs.write(ctx), d.syncFile(ctx)); err != nil {
		return err
	}
	for _, c := range changes {
		p := binary.BigEndian.AppendUint64(nil, c.new)
		if err := d.writeFile(ctx, p, int64(m.BitmapTableOffset)+8*c.i); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if host := int64(c.old & ondisk.OffsetMask); host != 0 {
			d.unlinkBytes(host, d.clusterSize)
		}
	}
	return nil
}

// store puts all bits into the file, and then takes the marks away.
func (b *bitmaps) store(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.storeLocked(ctx)
}

func (b *bitmaps) storeLocked(ctx context.Context) error {
	if err := b.spillAll(ctx); err != nil {
		return err
	}
	b.recording = nil
	b.begun.Store(false)
	for _, m := range b.list {
		if !m.lost {
			m.Flags &^= ondisk.BitmapInUse
		}
	}
	return b.writeFlags(ctx)
}

// writeFlags brings the flags in the directory up to date, each in its place, once all else is durable.
func (b *bitmaps) writeFlags(ctx context.Context) error {
	d := b.d
	var stale []*bitmap
	for _, m := range b.list {
		if m.Flags != m.stored {
			stale = append(stale, m)
		}
	}
	if len(stale) == 0 {
		return nil
	}
	first, last := b.directory.off>>d.clusterBits, (b.directory.off+b.directory.n-1)>>d.clusterBits
	if err := d.refs.verify(ctx, first, last-first+1, true); err != nil {
		return err
	}
	if err := d.syncFile(ctx); err != nil {
		return err
	}
	for _, m := range stale {
		if err := d.writeFile(ctx, binary.BigEndian.AppendUint32(nil, m.Flags), m.at+bitmapFlagsField); err != nil {
			return err
		}
		m.stored = m.Flags
	}
	return d.syncFile(ctx)
}

// bitmapFlagsField is where in a directory entry the flags lie, in bytes. An entry begins at a multiple of 8, so that they lie in one sector.
const bitmapFlagsField = 12

// newTable writes a table of a bitmap to a new place. The directory does not name it yet.
func (b *bitmaps) newTable(ctx context.Context, m *bitmap, table []uint64) error {
	off, err := b.d.refs.allocateAll(ctx, b.d.clusters(8*int64(len(table))))
	if err != nil {
		return err
	}
	m.BitmapTableOffset, m.BitmapTableSize = uint64(off), uint32(len(table))
	return b.d.writeTable(ctx, table, off)
}

// free frees the clusters of a bitmap that the directory does not name any more. Those of a damaged one stay.
func (b *bitmaps) free(ctx context.Context, old ondisk.BitmapEntry) error {
	d := b.d
	s := bitScan{bitmaps: b, m: &bitmap{BitmapEntry: old}}
	table, n := int64(old.BitmapTableOffset), int64(old.BitmapTableSize)
	if n == 0 || block.CheckRange(table, 8*n, d.file.Size()) != nil {
		return nil
	}
	for i := range n {
		entry, err := s.entry(ctx, i)
		if damage := (*block.CorruptError)(nil); errors.As(err, &damage) {
			continue
		}
		if err != nil {
			return err
		}
		if host := int64(entry & ondisk.OffsetMask); host != 0 && d.refs.verify(ctx, host>>d.clusterBits, 1, true) == nil {
			d.unlinkBytes(host, d.clusterSize)
		}
	}
	if d.refs.verify(ctx, table>>d.clusterBits, d.clusters(8*n), true) == nil {
		d.unlinkBytes(table, 8*n)
	}
	return nil
}

// writeDirectory writes the directory to a new place, and lets the header name it.
func (b *bitmaps) writeDirectory(ctx context.Context) error {
	d := b.d
	var p []byte
	for _, m := range b.list {
		p = m.Append(p)
	}
	var next fileRange
	switch n := int64(len(p)); {
	case n > ondisk.MaxBitmapDirectoryBytes:
		return errors.New("the directory of the bitmaps is as long as it may be")
	case n > 0:
		off, err := d.refs.allocateAll(ctx, d.clusters(n))
		if err != nil {
			return err
		}
		next = fileRange{off, n}
		if err := d.writeFile(ctx, append(p, make([]byte, d.ceil(n)-n)...), off); err != nil {
			return err
		}
	}
	old := b.directory
	b.directory = next
	b.switched++
	at := next.off
	for _, m := range b.list {
		m.at, m.stored = at, m.Flags
		at += int64(len(m.Append(nil)))
	}
	if err := b.switchDirectory(ctx); err != nil {
		d.fail(err) // which directory the file has is not known
		return err
	}
	d.unlinkBytes(old.off, old.n)
	return nil
}

// switchDirectory lets the header name the directory.
func (b *bitmaps) switchDirectory(ctx context.Context) error {
	next := *b.d.h
	if len(b.list) == 0 {
		next.SetExtension(ondisk.ExtBitmaps, nil)
		next.AutoclearFeatures &^= ondisk.AutoclearBitmaps
	} else {
		x := ondisk.BitmapsExtension{NbBitmaps: uint32(len(b.list)), BitmapDirectorySize: uint64(b.directory.n), BitmapDirectoryOffset: uint64(b.directory.off)}
		next.SetExtension(ondisk.ExtBitmaps, x.Encode())
		next.AutoclearFeatures |= ondisk.AutoclearBitmaps
	}
	return b.d.setHeader(ctx, &next)
}
