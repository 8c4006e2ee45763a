package qcow2

import (
	"context"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Write implements block.Device.
func (d *Device) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return d.change(ctx, off, int64(len(p)), f, func() error { return d.write(ctx, p, off) })
}

// change is a call that changes a range of the disk with do.
func (d *Device) change(ctx context.Context, off, n int64, f block.Flags, do func() error) error {
	if !d.writable {
		return block.ErrReadOnly
	}
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.End()
	if n == 0 {
		return nil
	}
	if err := d.broken(); err != nil {
		return err
	}
	if err := d.beforeChange(ctx, off, n); err != nil {
		return err
	}
	g := d.users.enter()
	err := do()
	d.users.leave(g)
	if err != nil {
		return err
	}
	if f&block.FUA != 0 {
		return d.flush(ctx)
	}
	if d.refs.crowded() || d.freed.crowded() {
		return d.commit(ctx, false)
	}
	return nil
}

// write stores p, in place where it has a place of its own already.
func (d *Device) write(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), 1<<d.sliceBits-off&(1<<d.sliceBits-1))
		m, err := d.overwrite(ctx, p[:n], off)
		if err == nil && m < n {
			err = d.writeNew(ctx, p[m:n], off+m)
		}
		if err == nil && d.tables.crowded() {
			err = d.commit(ctx, false)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// overwrite stores as much of p, which belongs to one slice, as can be written in place, and returns how much.
func (d *Device) overwrite(ctx context.Context, p []byte, off int64) (done int64, err error) {
	i := off >> d.l1Bits
	entry := d.l1[i].Load()
	if entry&ondisk.Copied == 0 {
		return 0, nil
	}
	table, err := d.l2Table(i, entry)
	if err != nil {
		return 0, err
	}
	s, err := d.slice(ctx, table, off)
	if err != nil {
		return 0, err
	}
	defer s.unpin()
	for done < int64(len(p)) {
		host, n, err := d.inPlace(ctx, s, off+done, int64(len(p))-done)
		if err != nil || n == 0 {
			return done, err
		}
		if err := d.writeData(ctx, p[done:done+n], off+done, host); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// inPlace returns where the bytes from off lie, and for how many of the next n they lie there one after another and may be written.
func (d *Device) inPlace(ctx context.Context, s *slice, off, n int64) (host, m int64, err error) {
	for {
		host, m, unknown, err := d.inPlaceLocked(s, off, n)
		if err != nil || m > 0 || unknown < 0 {
			return host, m, err
		}
		if err := d.verifyPlace(ctx, s, d.entryIndex(off), unknown); err != nil {
			return 0, 0, err
		}
	}
}

// inPlaceLocked does that for places that are known to be good; where the first is not, it returns the place in unknown, else -1 there.
func (d *Device) inPlaceLocked(s *slice, off, n int64) (host, m, unknown int64, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for pos := off; pos < off+n; {
		i := d.entryIndex(pos)
		e, err := d.entry(s, i, d.floor(pos))
		if err != nil {
			return 0, 0, -1, err
		}
		r, err := d.resolve(s, pos)
		if err != nil {
			return 0, 0, -1, err
		}
		if r.kind != plain || !e.copied || m > 0 && r.host != host+m {
			break
		}
		if !s.isWritable(i) && !d.data.Named() {
			if m == 0 {
				return 0, 0, e.host, nil
			}
			break
		}
		if m == 0 {
			host = r.host
		}
		pos += r.len
		m = min(pos-off, n)
	}
	return host, m, -1, nil
}

// writeData writes bytes of the disk to their place.
func (d *Device) writeData(ctx context.Context, p []byte, guest, host int64) error {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return err
	}
	if d.h.CryptMethod != ondisk.CryptNone {
		if d.crypt == nil {
			return d.cryptErr
		}
		q := make([]byte, len(p))
		if err := d.crypt.encrypt(q, p, guest, host); err != nil {
			return err
		}
		p = q
	}
	err = dev.Write(ctx, p, host, 0)
	d.wroteTo()
	return err
}

// wroteTo notes that the file with the data has something to flush.
func (d *Device) wroteTo() {
	flag := &d.wrote
	if d.data.Named() {
		flag = &d.wroteData
	}
	if !flag.Load() {
		flag.Store(true)
	}
}

// writeNew stores p, which belongs to one slice, where not all of it has a place of its own.
func (d *Device) writeNew(ctx context.Context, p []byte, off int64) error {
	return d.inSlice(ctx, off, off+int64(len(p)), func(s *slice, off, _ int64) error {
		for len(p) > 0 {
			host, n, err := d.inPlace(ctx, s, off, int64(len(p)))
			switch {
			case err != nil:
			case n > 0:
				err = d.writeData(ctx, p[:n], off, host)
			default:
				n, err = d.writeClusters(ctx, s, p, off)
			}
			if err != nil {
				return err
			}
			p, off = p[n:], off+n
		}
		return nil
	})
}

// writeClusters stores the first bytes of p in clusters whose entries change with it, and returns how many.
func (d *Device) writeClusters(ctx context.Context, s *slice, p []byte, off int64) (int64, error) {
	olds, err := d.oldEntries(ctx, s, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	w := placement{s: s, guest: d.floor(off), olds: olds}
	switch first := olds[0]; {
	case first.hasPlace && first.copied:
		w.host = first.host
		w.reused = true
	case d.data.Named():
		w.host = w.guest
	default:
		var got int64
		w.host, got, w.fresh, err = d.refs.allocate(ctx, int64(len(olds)))
		if err != nil {
			return 0, err
		}
		w.olds = olds[:got]
	}
	w.fresh = w.fresh && d.h.CryptMethod == ondisk.CryptNone
	end := min(off+int64(len(p)), w.guest+int64(len(w.olds))<<d.clusterBits)
	if err := d.fill(ctx, w, p[:end-off], off); err != nil {
		if !w.reused && !d.data.Named() {
			d.freed.unlink(span{w.host >> d.clusterBits, int64(len(w.olds))})
		}
		return 0, err
	}
	d.link(w, off, end)
	return end - off, nil
}

// oldEntries returns the entries of the clusters from that of off on which n bytes need, as far as none of them has a place of its own; or one
// that has.
func (d *Device) oldEntries(ctx context.Context, s *slice, off, n int64) ([]entry, error) {
	var olds []entry
	s.mu.RLock()
	for guest := d.floor(off); guest < off+n; guest += d.clusterSize {
		e, err := d.entry(s, d.entryIndex(guest), guest)
		if err != nil {
			s.mu.RUnlock()
			return nil, err
		}
		own := e.hasPlace && e.copied
		if own && len(olds) > 0 {
			break
		}
		olds = append(olds, e)
		if own {
			break
		}
	}
	s.mu.RUnlock()
	if first := olds[0]; first.hasPlace && first.copied {
		return olds, d.verifyPlace(ctx, s, d.entryIndex(off), first.host)
	}
	for _, e := range olds {
		if err := d.verifyOld(ctx, e); err != nil {
			return nil, err
		}
	}
	return olds, nil
}

// placement is where clusters of the disk are to lie.
type placement struct {
	s      *slice
	guest  int64   // the first cluster in the disk
	olds   []entry // of all clusters
	host   int64
	reused bool // there is one cluster, and it lies there already
	fresh  bool // the place reads as zero
}

// mask has a bit for each subcluster of cluster i of w (one for the cluster where there are none) that must have its bytes at the new place once
// the range [off, end) of the disk has been written.
func (d *Device) mask(w placement, i int, off, end int64) uint32 {
	if !d.extended() {
		return 1
	}
	guest := w.guest + int64(i)<<d.clusterBits
	from := max(0, off-guest) >> d.subBits
	to := (min(d.clusterSize, end-guest) + d.subSize - 1) >> d.subBits
	m := uint32(1<<to - 1<<from)
	switch e := w.olds[i]; {
	case w.reused:
		m &^= e.alloc
	case e.kind == packed:
		m = 1<<ondisk.Subclusters - 1
	default:
		m |= e.alloc
	}
	return m
}

// link lets the entries point to the new place, in which [off, end) of the disk has been written.
func (d *Device) link(w placement, off, end int64) {
	i := d.entryIndex(w.guest)
	w.s.mu.Lock()
	for k, e := range w.olds {
		m := d.mask(w, k, off, end)
		word := uint64(w.host+int64(k)<<d.clusterBits) | ondisk.Copied
		alloc := m
		if w.reused {
			alloc |= e.alloc
		}
		d.update(w.s, i+k, word, ondisk.Bitmap(alloc, e.zero&^alloc))
	}
	w.s.mu.Unlock()
	if w.reused {
		return
	}
	for _, e := range w.olds {
		d.released(e)
	}
}
