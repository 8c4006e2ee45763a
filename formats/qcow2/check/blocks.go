package check

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// readTable reads the refcount table and judges its entries.
func (c *checker) readTable() error {
	off := int64(c.h.RefcountTableOffset)
	n := int64(c.h.RefcountTableClusters) << c.h.ClusterBits
	if off+n-c.size >= c.h.ClusterSize() {
		c.seen.rebuild = true
		return nil // counting it says so
	}
	p := make([]byte, n)
	if err := c.readAt(c.ctx, p, off); err != nil {
		return err
	}
	c.places.table = p
	for i := int64(0); i < n/8; i++ {
		e := binary.BigEndian.Uint64(p[i*8:])
		if e == 0 {
			continue
		}
		c.judgeBlock(blockRef{index: i, off: int64(e &^ ondisk.RefcountReserved)}, e, off+i*8)
	}
	c.markTwice()
	return nil
}

// markTwice finds refcount blocks that lie at the same place.
func (c *checker) markTwice() {
	sorted := make([]*blockRef, 0, len(c.places.blocks))
	for i := range c.places.blocks {
		if b := &c.places.blocks[i]; b.state == blockGood {
			sorted = append(sorted, b)
		}
	}
	slices.SortStableFunc(sorted, func(a, b *blockRef) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].off == sorted[i-1].off {
			sorted[i].state = blockTwice
		}
	}
}

// judgeBlock keeps the entry e of the refcount table, which lies at byte at.
func (c *checker) judgeBlock(b blockRef, e uint64, at int64) {
	if e&ondisk.RefcountReserved != 0 {
		c.corrupt(1, partTable, at, "entry %#x has reserved bits set", e)
		c.seen.rebuild = true
	}
	switch {
	case b.off&(c.h.ClusterSize()-1) != 0:
		c.badBlock(&b, at, "entry %#x leads to a refcount block that does not begin with a cluster", e)
	case b.off < 0:
		c.badBlock(&b, at, "entry %#x leads to a refcount block where no file can be", e)
	case b.off >= c.size:
		c.corrupt(1, partTable, at, "entry %#x leads to a refcount block behind the end of the file at byte %d", e, c.size)
		b.state = blockAbsent
	case b.off == 0:
		b.state = blockAbsent
	}
	c.seen.rebuild = c.seen.rebuild || b.state != blockGood
	c.places.blocks = append(c.places.blocks, b)
}

// badBlock counts an entry of the refcount table that cannot be followed.
func (c *checker) badBlock(b *blockRef, at int64, text string, args ...any) {
	c.corrupt(1, partTable, at, text, args...)
	if b.index <= (c.end-1)/c.h.RefcountBlockEntries() {
		c.found(formats.CheckError, 1, partTable, at, "what this refcount block counts cannot be compared")
	}
	b.state = blockBad
}

// countBlocks counts the refcount blocks.
func (c *checker) countBlocks() {
	for _, b := range c.places.blocks {
		if b.state == blockGood || b.state == blockTwice {
			c.counts.add(b.off>>c.h.ClusterBits, 1, 1, refOther)
		}
	}
}

// checkBlocks looks for refcount blocks in the window that share their cluster with something.
func (c *checker) checkBlocks() {
	for _, b := range c.places.blocks {
		if b.state != blockGood || !c.counts.contains(b.off>>c.h.ClusterBits) {
			continue
		}
		if n, _ := c.counts.get(b.off >> c.h.ClusterBits); n > 1 {
			c.found(formats.Corruption, int64(n)-1, partBlock, b.off, "its cluster is used %d times", n)
			c.seen.rebuild = true
		}
	}
}

// change says what compare is to do about a cluster that is counted wrong: the count that the image shall hold.
type change func(stored, used uint64) uint64

// compare compares the counts of the present window with those of the image. Without a change it counts and tells what is wrong; afterwards the counts of
// the window are those of the image. With one, it writes.
func (c *checker) compare(fix change) error {
	if fix == nil {
		c.checkBlocks()
	}
	per := c.h.RefcountBlockEntries()
	var blocks []blockRef
	for _, b := range c.places.blocks {
		if b.state == blockGood && b.index <= c.end/per && c.counts.contains(b.index*per) {
			blocks = append(blocks, b)
		}
	}
	offs := func(yield func(int64) bool) {
		for i := 0; i < len(blocks) && yield(blocks[i].off); i++ {
		}
	}
	i := 0
	err := c.readTables(offs, c.h.ClusterSize(), func(off int64, data []byte) error {
		b := blocks[i]
		i++
		if data == nil && fix != nil {
			data = make([]byte, c.h.ClusterSize())
		}
		changed := c.compareBlock(b.index*per, data, fix)
		if fix == nil || !changed.any() {
			return nil
		}
		return c.writeSectors(data, off, changed)
	})
	if err != nil || fix != nil {
		return err
	}
	c.compareUncounted(per)
	return nil
}

// dirty is the range of bytes of a table that has changed.
type dirty struct{ from, to int }

func (d dirty) any() bool { return d.to > d.from }

func (d *dirty) add(from, to int) {
	if !d.any() {
		*d = dirty{from, to}
		return
	}
	d.from, d.to = min(d.from, from), max(d.to, to)
}

// writeSectors writes the sectors of a table at off that have changed.
func (c *checker) writeSectors(table []byte, off int64, d dirty) error {
	from := d.from / ondisk.SectorSize * ondisk.SectorSize
	to := min(len(table), (d.to+ondisk.SectorSize-1)/ondisk.SectorSize*ondisk.SectorSize)
	return c.dev.Write(c.ctx, table[from:to], off+int64(from), 0)
}

// compareBlock compares a block, of which the first entry counts the cluster first. data is nil where all of them are zero.
func (c *checker) compareBlock(first int64, data []byte, fix change) (changed dirty) {
	per := c.h.RefcountBlockEntries()
	end := min(first+per, c.end)
	var stored [pageClusters]uint64
	for at := first; at < end; {
		n := min(pageClusters-at&(pageClusters-1), end-at)
		bytes := c.storedBytes(data, at-first, n)
		if c.counts.has(at>>pageBits) || !block.IsZero(bytes) {
			counts := stored[:n]
			clear(counts)
			if data != nil {
				decode(data, at-first, c.h.RefcountOrder, counts)
			}
			c.compareCounts(at, counts, func(i int64, v uint64) {
				if fix == nil {
					return
				}
				bit := (at - first + i) << c.h.RefcountOrder
				ondisk.SetRefcount(data, at-first+i, c.h.RefcountOrder, v)
				changed.add(int(bit/8), int((bit+1<<c.h.RefcountOrder+7)/8))
			}, fix)
		}
		at += n
	}
	return changed
}

// storedBytes returns the bytes of a block that hold n counts from i on, and perhaps some beside them.
func (c *checker) storedBytes(data []byte, i, n int64) []byte {
	if data == nil {
		return nil
	}
	return data[i<<c.h.RefcountOrder/8 : (((i+n)<<c.h.RefcountOrder)+7)/8]
}

// decode returns the counts of a block from the i'th on.
func decode(data []byte, i int64, order uint32, counts []uint64) {
	if order == 4 {
		data = data[i*2:][:len(counts)*2]
		for j := range counts {
			counts[j] = uint64(binary.BigEndian.Uint16(data[j*2:]))
		}
		return
	}
	for j := range counts {
		counts[j] = ondisk.Refcount(data, i+int64(j), order)
	}
}
