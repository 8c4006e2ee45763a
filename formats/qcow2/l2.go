package qcow2

import (
	"context"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// ownSlice returns the slice with the entry of the byte off of the disk, pinned, in an L2 table that may be changed in place. It makes the
// table where there is none, and copies one that a snapshot uses as well.
func (d *Device) ownSlice(ctx context.Context, off int64) (*slice, error) {
	i := off >> d.l1Bits
	entry := d.l1[i].Load()
	if entry&ondisk.Copied == 0 {
		var err error
		if entry, err = d.ownTable(ctx, i); err != nil {
			return nil, err
		}
	}
	table, err := d.l2Table(i, entry)
	if err != nil {
		return nil, err
	}
	s, err := d.slice(ctx, table, off)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	counted := s.counted
	s.mu.RUnlock()
	if counted {
		return s, nil
	}
	if err := d.refs.verify(ctx, table>>d.clusterBits, 1, true); err != nil {
		s.unpin()
		return nil, err
	}
	s.mu.Lock()
	s.counted = true
	s.mu.Unlock()
	return s, nil
}

// ownTable gives the L1 entry i a table of its own, and returns the entry.
func (d *Device) ownTable(ctx context.Context, i int64) (uint64, error) {
	d.l1mu.Lock()
	defer d.l1mu.Unlock()
	entry := d.l1[i].Load()
	if entry&ondisk.Copied != 0 {
		return entry, nil // somebody else was quicker
	}
	ctx = context.WithoutCancel(ctx)
	old := int64(0)
	if entry != 0 {
		var err error
		if old, err = d.l2Table(i, entry); err != nil {
			return 0, err
		}
		if err := d.refs.verify(ctx, old>>d.clusterBits, 1, false); err != nil {
			return 0, err
		}
	}
	table, _, fresh, err := d.refs.allocate(ctx, 1)
	if err != nil {
		return 0, err
	}
	if err := d.fillTable(ctx, table, old, fresh); err != nil {
		d.freed.unlink(span{table >> d.clusterBits, 1})
		return 0, err
	}
	d.tables.drop(table, d.clusterSize, d.sliceLen)
	entry = uint64(table) | ondisk.Copied
	d.l1[i].Store(entry)
	d.l1Dirty[i/(sectorSize/8)] = true
	if old != 0 {
		d.freed.unlink(span{old >> d.clusterBits, 1})
	}
	return entry, nil
}

// fillTable writes a new L2 table: what old has, or zeros where that is 0.
func (d *Device) fillTable(ctx context.Context, table, old int64, fresh bool) error {
	defer d.wrote.Store(true)
	if old == 0 {
		if fresh && d.file.Size() <= table { // the rest of the table is a hole
			return d.file.Write(ctx, make([]byte, min(d.clusterSize, sectorSize)), table+d.clusterSize-min(d.clusterSize, sectorSize), 0)
		}
		return d.file.Zero(ctx, table, d.clusterSize, 0)
	}
	p := make([]byte, d.clusterSize)
	if err := block.CheckRange(old, d.clusterSize, d.file.Size()); err != nil {
		return d.corrupt("L2 table", old, "it leaves the file, which has %d bytes", d.file.Size())
	}
	if err := d.file.Read(ctx, p, old); err != nil {
		return err
	}
	return d.file.Write(ctx, p, table, 0)
}

// isWritable reports whether entry i of s may be written in place, as far as that is known.
func (s *slice) isWritable(i int) bool {
	return i/64 < len(s.writable) && s.writable[i/64]>>(i%64)&1 != 0
}

func (s *slice) setWritable(i, n int) {
	if s.writable == nil {
		s.writable = make([]uint64, (len(s.entries)+63)/64)
	}
	for ; n > 0; i, n = i+1, n-1 {
		s.writable[i/64] |= 1 << (i % 64)
	}
}

func (s *slice) clearWritable(i int) {
	if s.writable != nil {
		s.writable[i/64] &^= 1 << (i % 64)
	}
}

// verifyPlace checks that the cluster of entry i of s, which lies at host and may be written in place, is counted once and is no table.
func (d *Device) verifyPlace(ctx context.Context, s *slice, i int, host int64) error {
	if d.data.Named() {
		return nil
	}
	s.mu.RLock()
	known := s.isWritable(i)
	s.mu.RUnlock()
	if known {
		return nil
	}
	if err := d.refs.verify(ctx, host>>d.clusterBits, 1, true); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, err := d.entry(s, i, host); err == nil && e.hasPlace && e.copied && e.host == host {
		s.setWritable(i, 1)
	}
	return nil
}

// update stores entry i of s, which is locked. bitmap counts only where entries are extended.
func (d *Device) update(s *slice, i int, word uint64, bitmap ondisk.SubclusterBitmap) {
	k := i * d.entryWords
	s.entries[k] = word
	if d.extended() {
		s.entries[k+1] = uint64(bitmap)
	}
	if word&ondisk.Copied != 0 {
		s.setWritable(i, 1)
	} else {
		s.clearWritable(i)
	}
	d.tables.changed(s, k, k+d.entryWords)
}

// released notes that an entry no longer points to what it did.
func (d *Device) released(e entry) {
	switch {
	case d.data.Named():
	case e.kind == packed:
		off, n := ondisk.CompressedRange(e.word, d.clusterBits)
		first := off >> d.clusterBits
		d.freed.unlink(span{first, (off+n-1)>>d.clusterBits - first + 1})
	case e.hasPlace:
		d.freed.unlink(span{e.host >> d.clusterBits, 1})
	}
}

// verifyOld checks that what an entry points to is counted, before it is given up.
func (d *Device) verifyOld(ctx context.Context, e entry) error {
	switch {
	case d.data.Named():
		return nil
	case e.kind == packed:
		off, n := ondisk.CompressedRange(e.word, d.clusterBits)
		first := off >> d.clusterBits
		return d.refs.verify(ctx, first, (off+n-1)>>d.clusterBits-first+1, false)
	case e.hasPlace:
		return d.refs.verify(ctx, e.host>>d.clusterBits, 1, false)
	}
	return nil
}
