package qcow2

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// refcounts knows how often each cluster of the image file is used. In memory counts are raised before anything points to a cluster, and
// lowered only when it is durable that nothing does any more: so they may be written at any time.
type refcounts struct {
	d     *Device
	order uint32
	room  int // blocks that are kept in memory

	mu       sync.Mutex
	table    []uint64 // offsets of the blocks, those too that the table in the file does not name yet
	tableOff int64
	blocks   map[int64]*refBlock // those in memory, by their index in the table
	places   map[int64]bool      // of blocks that were made since the image was opened
	known    []int64             // of those that were there, sorted
	tick     int64
	changed  int   // blocks that have changed since the last write, or more
	next     int64 // there is no free cluster before this one
}

// refBlock is a refcount block in memory.
type refBlock struct {
	index  int64
	host   int64
	p      []byte
	lo, hi int // bytes that have changed since it was last written; hi is 0 where none have
	fresh  bool
	busy   bool  // it is being written
	tick   int64 // when it was last used
}

// readRefcounts reads the refcount table.
func (d *Device) readRefcounts(ctx context.Context) (*refcounts, error) {
	r := &refcounts{d: d, order: d.h.RefcountOrder, tableOff: int64(d.h.RefcountTableOffset), blocks: map[int64]*refBlock{}, places: map[int64]bool{}}
	r.room = int(max(4, d.memory/4/d.clusterSize))
	p, err := d.readTable(ctx, "refcount table", tableAt{r.tableOff, int64(d.h.RefcountTableClusters) * d.clusterSize / 8})
	if err != nil {
		return nil, err
	}
	r.table = make([]uint64, len(p)/8)
	for i := range r.table {
		entry := binary.BigEndian.Uint64(p[8*i:])
		r.table[i] = entry
		if entry == 0 {
			continue
		}
		at := int64(entry)
		if entry&ondisk.RefcountReserved != 0 || at < 0 || at&(d.clusterSize-1) != 0 || at > d.file.Size()-d.clusterSize {
			return nil, d.corrupt("refcount table", r.tableOff+int64(8*i), "entry %d is %#x, which cannot be", i, entry)
		}
		r.known = append(r.known, at)
	}
	slices.Sort(r.known)
	return r, r.checkPlaces()
}

// checkPlaces refuses a refcount structure that would be damaged by writing to it, or would damage others.
func (r *refcounts) checkPlaces() error {
	d, known := r.d, r.known
	r.known = nil // inMetadata tells of the others
	defer func() { r.known = known }()
	for i, at := range known {
		part := r.inMetadata(at)
		if i > 0 && known[i-1] == at {
			part = "refcount block of other clusters"
		}
		if part != "" {
			return block.WithHint(d.corrupt("refcount table", r.tableOff, "a refcount block lies at byte %d, which belongs to the %s", at, part), repairHint)
		}
	}
	return nil
}

// block returns block index, reading it where it is not in memory; nil where there is none, so that all its counts are 0.
func (r *refcounts) block(ctx context.Context, index int64) (*refBlock, error) {
	r.tick++
	if b := r.blocks[index]; b != nil {
		b.tick = r.tick
		return b, nil
	}
	if index >= int64(len(r.table)) || r.table[index] == 0 {
		return nil, nil
	}
	b := &refBlock{index: index, host: int64(r.table[index]), p: make([]byte, r.d.clusterSize), tick: r.tick}
	if err := r.d.file.Read(context.WithoutCancel(ctx), b.p, b.host); err != nil {
		return nil, err
	}
	r.makeRoom()
	r.blocks[index] = b
	return b, nil
}

// makeRoom forgets the blocks that were used longest ago, where there are too many. Changed ones stay until they are written.
func (r *refcounts) makeRoom() {
	for len(r.blocks) >= r.room {
		var oldest *refBlock
		for _, b := range r.blocks {
			if b.hi == 0 && !b.fresh && !b.busy && (oldest == nil || b.tick < oldest.tick) {
				oldest = b
			}
		}
		if oldest == nil {
			return
		}
		delete(r.blocks, oldest.index)
	}
}

// crowded reports whether so many blocks have changed that they should be written.
func (r *refcounts) crowded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed > max(4, r.room/2)
}

func (b *refBlock) get(i int64, order uint32) uint64 { return ondisk.Refcount(b.p, i, order) }

func (r *refcounts) set(b *refBlock, i int64, v uint64) {
	ondisk.SetRefcount(b.p, i, r.order, v)
	lo := int(i << r.order >> 3)
	hi := lo + max(1, 1<<r.order>>3)
	if b.hi == 0 {
		b.lo, b.hi = lo, hi
		r.changed++
	} else {
		b.lo, b.hi = min(b.lo, lo), max(b.hi, hi)
	}
}

// split returns the index of a cluster's block, and its place there.
func (r *refcounts) split(cluster int64) (index, i int64) {
	return cluster >> r.d.refBits, cluster & (1<<r.d.refBits - 1)
}

// verify checks that the n clusters from first on are counted and hold no tables of the image itself, so that they may be written or freed. Where
// own is set, nothing else may use them.
func (r *refcounts) verify(ctx context.Context, first, n int64, own bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := first; c < first+n; c++ {
		v, err := r.countLocked(ctx, c)
		at := c << r.d.clusterBits
		part := r.inMetadata(at)
		switch {
		case err != nil:
			return err
		case part != "":
			return block.WithHint(r.d.corrupt("L2 entry", -1, "it points to byte %d, which belongs to the %s", at, part), repairHint)
		case v == 0:
			return notCounted(r.d, c)
		case own && v != 1:
			return block.WithHint(r.d.corrupt("refcount block", -1, "the cluster at byte %d is used %d times, and an entry says once", at, v), repairHint)
		}
	}
	return nil
}

func (r *refcounts) countLocked(ctx context.Context, cluster int64) (uint64, error) {
	index, i := r.split(cluster)
	b, err := r.block(ctx, index)
	if b == nil || err != nil {
		return 0, err
	}
	return b.get(i, r.order), nil
}

// change adds delta, 1 or -1, to the counts of n clusters from first on. Where one of them cannot be changed, none is.
func (r *refcounts) change(ctx context.Context, first, n int64, delta int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := first; c < first+n; c++ {
		v, err := r.countLocked(ctx, c)
		if err == nil && v == 0 {
			err = notCounted(r.d, c)
		}
		if err == nil && delta > 0 && v == ondisk.MaxRefcount(r.order) {
			err = r.d.corrupt("refcount block", -1, "cluster %d is used %d times, and no more can be counted", c, v)
		}
		if err != nil {
			return err
		}
	}
	for c := first; c < first+n; c++ {
		index, i := r.split(c)
		b, err := r.block(ctx, index)
		if err != nil {
			return err
		}
		v := b.get(i, r.order)
		if r.set(b, i, v+uint64(delta)); v+uint64(delta) == 0 {
			r.next = min(r.next, c)
		}
	}
	return nil
}

// lastUsers reports whether the cluster first has one user, and for how many of the n clusters from it on the same holds.
func (r *refcounts) lastUsers(ctx context.Context, first, n int64) (last bool, same int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for same < n {
		v, err := r.countLocked(ctx, first+same)
		if err != nil {
			return false, max(same, 1), err
		}
		if same == 0 {
			last = v == 1
		}
		if last != (v == 1) {
			break
		}
		same++
	}
	return last, same, nil
}

// inMetadata says which known structure lies in the cluster at host, or "". The caller holds the lock.
func (r *refcounts) inMetadata(host int64) string {
	d := r.d
	_, found := slices.BinarySearch(r.known, host)
	switch {
	case host < d.clusterSize:
		return "header"
	case host >= d.floor(d.l1Offset) && host < d.l1Offset+int64(8*len(d.l1)):
		return "L1 table"
	case host >= r.tableOff && host < r.tableOff+int64(8*len(r.table)):
		return "refcount table"
	case found || r.places[host]:
		return "refcount block"
	}
	return ""
}

// write writes what has changed. Blocks that the table in the file does not name yet are durable before it does.
func (r *refcounts) write(ctx context.Context) error {
	list := r.take()
	fresh := false
	for _, t := range list {
		fresh = fresh || t.fresh
	}
	err := r.writeBlocks(ctx, list)
	if err == nil && fresh {
		if err = r.d.syncFile(ctx); err == nil {
			err = r.writeNames(ctx, list)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range list {
		b := t.block
		b.busy = false
		if err == nil {
			b.fresh = false
		} else if b.hi == 0 {
			b.lo, b.hi = t.lo, t.lo+len(t.p)
		} else {
			b.lo, b.hi = min(b.lo, t.lo), max(b.hi, t.lo+len(t.p))
		}
	}
	return err
}

// takenBlock is a copy of what has changed of a block.
type takenBlock struct {
	block *refBlock
	fresh bool
	lo    int
	p     []byte
}

// take copies what has changed, and takes it as written.
func (r *refcounts) take() []takenBlock {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []takenBlock
	r.changed = 0
	for _, b := range r.blocks {
		if b.hi == 0 && !b.fresh {
			continue
		}
		lo, hi := b.lo&^(ondisk.SectorSize-1), (b.hi+ondisk.SectorSize-1)&^(ondisk.SectorSize-1)
		if b.fresh {
			lo, hi = 0, len(b.p)
		}
		list = append(list, takenBlock{b, b.fresh, lo, slices.Clone(b.p[lo:hi])})
		b.lo, b.hi, b.busy = 0, 0, true
	}
	slices.SortFunc(list, func(a, b takenBlock) int { return int(a.block.index - b.block.index) })
	return list
}

func (r *refcounts) writeBlocks(ctx context.Context, list []takenBlock) error {
	for _, t := range list {
		if err := r.d.writeFile(ctx, t.p, t.block.host+int64(t.lo)); err != nil {
			return err
		}
	}
	return nil
}

// writeNames puts fresh blocks into the table in the file.
func (r *refcounts) writeNames(ctx context.Context, list []takenBlock) error {
	for _, t := range list {
		if !t.fresh {
			continue
		}
		var p [8]byte
		binary.BigEndian.PutUint64(p[:], uint64(t.block.host))
		r.mu.Lock()
		at := r.tableOff + 8*t.block.index
		r.mu.Unlock()
		if err := r.d.writeFile(ctx, p[:], at); err != nil {
			return err
		}
	}
	return nil
}
