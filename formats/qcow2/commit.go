package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// The order in which changes reach the file:
//
//  1. Data, raised refcounts and new tables: nothing points to them yet. A refcount block comes before the entry of the refcount table that
//     names it. Then the file is flushed.
//  2. Entries of L1 and L2 tables, in place. Then the file is flushed.
//  3. Only now what these entries pointed to before is nobody's: when those have left who may still read there, its refcounts are lowered
//     in memory, which the next commit writes, and its clusters can be used again.
//
// So at any moment, whatever part of the writes since the last flush is there, every entry points to something that is complete and counted.

// span is a range of clusters of the file, in clusters, each of which has one user less.
type span struct{ first, n int64 }

// freed is what entries no longer point to.
type freed struct {
	mu       sync.Mutex
	unlinked []span // which tables in the file may still do
	ripening []ripe // which nobody points to; calls that began before may use it yet
}

type ripe struct {
	span
	generation int64
}

// unlink notes that an entry in memory has stopped pointing to clusters, after it has.
func (f *freed) unlink(s span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.unlinked); k > 0 && f.unlinked[k-1].first+f.unlinked[k-1].n == s.first {
		f.unlinked[k-1].n += s.n
		return
	}
	f.unlinked = append(f.unlinked, s)
}

// crowded reports whether so much has been given up that it should be put to use.
func (f *freed) crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.unlinked) > maxUnlinked
}

// maxUnlinked bounds the list of spans that wait for a commit.
const maxUnlinked = 1 << 16

func (f *freed) take() []span {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.unlinked
	f.unlinked = nil
	return list
}

func (f *freed) putBack(list []span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unlinked = append(list, f.unlinked...)
}

// commit writes all changes of tables that were made before it, in order. With sync they and the data are durable when it returns.
func (d *Device) commit(ctx context.Context, sync bool) error {
	d.committing.Lock()
	defer d.committing.Unlock()
	if err := d.broken(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // half of it would be no use
	unlinked := d.freed.take()
	cut := d.takeTables()
	err := d.writeTables(ctx, cut, sync || len(unlinked) > 0)
	d.putTables(cut, err)
	if err != nil {
		d.freed.putBack(unlinked)
		return err
	}
	return d.ripen(ctx, unlinked)
}

// cut is a copy of what has changed of L1 and L2 tables.
type cut struct {
	slices []cutSlice
	l1     map[int64][]byte // sectors of the L1 table
}

type cutSlice struct {
	s  *slice // pinned, because what the file has of it is old
	lo int    // bytes before p
	p  []byte
}

// takeTables copies what has changed, and takes it as written.
func (d *Device) takeTables() cut {
	var c cut
	for _, s := range d.tables.takeDirty() {
		s.mu.Lock()
		if s.dirty {
			lo, p := s.changes()
			c.slices = append(c.slices, cutSlice{s, lo, p})
			s.dirty = false
		} else {
			s.unpin()
		}
		s.mu.Unlock()
	}
	slices.SortFunc(c.slices, func(a, b cutSlice) int { return cmp.Compare(a.s.host, b.s.host) })
	d.l1mu.Lock()
	defer d.l1mu.Unlock()
	c.l1 = map[int64][]byte{}
	for sector := range d.l1Dirty {
		c.l1[sector] = d.l1Sector(sector)
	}
	clear(d.l1Dirty)
	return c
}

const sectorSize = ondisk.SectorSize

// l1Sector returns the bytes of a sector of the L1 table.
func (d *Device) l1Sector(sector int64) []byte {
	const words = sectorSize / 8
	p := make([]byte, 0, sectorSize)
	for i := sector * words; i < min(int64(len(d.l1)), (sector+1)*words); i++ {
		p = binary.BigEndian.AppendUint64(p, d.l1[i].Load())
	}
	return p
}

// changes returns the bytes of the sectors that have changed, and where they begin.
func (s *slice) changes() (lo int, p []byte) {
	const words = sectorSize / 8
	from, to := s.lo/words*words, min(len(s.entries), (s.hi+words-1)/words*words)
	p = make([]byte, 0, 8*(to-from))
	for _, word := range s.entries[from:to] {
		p = binary.BigEndian.AppendUint64(p, word)
	}
	return 8 * from, p
}

// putTables ends what takeTables began: where writing has failed, all must be written again.
func (d *Device) putTables(c cut, err error) {
	for _, cs := range c.slices {
		if err != nil {
			cs.s.mu.Lock()
			d.tables.changed(cs.s, cs.lo/8, (cs.lo+len(cs.p))/8)
			cs.s.mu.Unlock()
		}
		cs.s.unpin()
	}
	if err != nil {
		d.l1mu.Lock()
		for sector := range c.l1 {
			d.l1Dirty[sector] = true
		}
		d.l1mu.Unlock()
	}
}

func (d *Device) writeTables(ctx context.Context, c cut, sync bool) error {
	if err := d.syncData(ctx); err != nil {
		return err
	}
	if err := d.refs.write(ctx); err != nil {
		return err
	}
	if len(c.slices) > 0 || len(c.l1) > 0 {
		if err := d.syncFile(ctx); err != nil {
			return err
		}
	}
	for _, cs := range c.slices {
		if err := d.writeFile(ctx, cs.p, cs.s.host+int64(cs.lo)); err != nil {
			return err
		}
	}
	for sector, p := range c.l1 {
		if err := d.writeFile(ctx, p, d.l1Offset+sector*sectorSize); err != nil {
			return err
		}
	}
	if sync {
		return d.syncFile(ctx)
	}
	return nil
}

// ripen lowers the refcounts of what nobody can use any more.
func (d *Device) ripen(ctx context.Context, unlinked []span) error {
	f := &d.freed
	f.mu.Lock()
	now := d.users.generation.Load()
	for _, s := range unlinked {
		f.ripening = append(f.ripening, ripe{s, now})
	}
	now = d.users.advance()
	var done []span
	f.ripening = slices.DeleteFunc(f.ripening, func(r ripe) bool {
		if r.generation+2 > now {
			return false
		}
		done = append(done, r.span)
		return true
	})
	f.mu.Unlock()
	return d.release(ctx, done)
}

// release lowers refcounts, and gives the space of clusters back that nothing uses any more.
func (d *Device) release(ctx context.Context, list []span) error {
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var errs []error
	for len(list) > 0 {
		s := list[0]
		for list = list[1:]; len(list) > 0 && list[0].first == s.first+s.n; list = list[1:] {
			s.n += list[0].n
		}
		for s.n > 0 {
			last, n, err := d.refs.lastUsers(ctx, s.first, s.n)
			if err == nil && last { // before others can take them
				d.punch(ctx, s.first, n)
			}
			errs = append(errs, err, d.refs.change(ctx, s.first, n, -1))
			s.first, s.n = s.first+n, s.n-n
		}
	}
	return errors.Join(errs...)
}

// punch gives the space of clusters back, where that can be done: if not, it is only space.
func (d *Device) punch(ctx context.Context, first, n int64) {
	off := first << d.clusterBits
	if n = min(n<<d.clusterBits, d.file.Size()-off); n <= 0 || !d.file.Info().Caps.Discard {
		return
	}
	if err := d.file.Discard(ctx, off, n); err != nil {
		d.o.Logger().Warn("space of the image file is not given back", "file", d.o.Name, "error", err)
	}
}

// writeFile writes a structure of the image file.
func (d *Device) writeFile(ctx context.Context, p []byte, off int64) error {
	err := d.file.Write(context.WithoutCancel(ctx), p, off, 0)
	d.wrote.Store(true)
	return err
}

// syncFile makes durable what has been written to the image file, and waits for whoever does so already. A new image that nobody has flushed yet need
// not be durable.
func (d *Device) syncFile(ctx context.Context) error {
	d.syncing.Lock()
	defer d.syncing.Unlock()
	if d.unsynced.Load() || !d.wrote.Swap(false) {
		return nil
	}
	err := d.file.Flush(ctx)
	if err != nil {
		d.wrote.Store(true)
	}
	return err
}

// syncData makes durable what has been written to a data file of its own. One commit at a time calls it.
func (d *Device) syncData(ctx context.Context) error {
	dev := d.data.Opened()
	if d.unsynced.Load() || dev == nil || !d.wroteData.Swap(false) {
		return nil
	}
	err := dev.Flush(ctx)
	if err != nil {
		d.wroteData.Store(true)
	}
	return err
}

// fail refuses changes from now on: it is not known what the file holds.
func (d *Device) fail(err error) { d.failure.CompareAndSwap(nil, &err) }

func (d *Device) broken() error {
	if err := d.failure.Load(); err != nil {
		return errors.Join(errBroken, *err)
	}
	return nil
}

var errBroken = errors.New("the image cannot be changed any more, because a write of its tables has failed before")
