package check

import (
	"encoding/binary"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// entryKind is what an L2 entry describes.
type entryKind uint8

const (
	entryNone       entryKind = iota // no cluster of the file
	entryCompressed                  // a stretch of compressed data
	entryCluster                     // a cluster, which may read as zero
)

// l2Entry is an entry of an L2 table.
type l2Entry struct {
	bits   uint64
	bitmap ondisk.SubclusterBitmap // 0 where entries are not extended
	at     int64                   // byte offset in the file
}

// l2At returns the entry at byte i of the table.
func (c *checker) l2At(t tableRef, data []byte, i int) l2Entry {
	e := l2Entry{bits: binary.BigEndian.Uint64(data[i:]), at: t.off + int64(i)}
	if c.h.ExtendedL2() {
		e.bitmap = ondisk.SubclusterBitmap(binary.BigEndian.Uint64(data[i+8:]))
	}
	return e
}

func (e l2Entry) off() int64 { return int64(e.bits & ondisk.OffsetMask) }

// kind returns what e describes.
func (c *checker) kind(e l2Entry) entryKind {
	switch {
	case e.bits&ondisk.Compressed != 0:
		return entryCompressed
	case e.off() != 0, c.h.HasDataFile() && e.bits&ondisk.Copied != 0 && !c.isZero(e): // the data file has a cluster 0
		return entryCluster
	}
	return entryNone
}

// isZero reports whether the flag says that the cluster reads as zero.
func (c *checker) isZero(e l2Entry) bool {
	return e.bits&ondisk.Zero != 0 && c.h.Version >= 3 && !c.h.ExtendedL2()
}

// reserved returns the bits of a standard entry that must be zero.
func (c *checker) reserved() uint64 {
	if c.h.Version >= 3 && !c.h.ExtendedL2() {
		return ondisk.L2Reserved
	}
	return ondisk.L2Reserved | ondisk.Zero
}

// hasData reports whether e, which describes a cluster, says that something was written there.
func (c *checker) hasData(e l2Entry) bool {
	if c.h.ExtendedL2() {
		return e.bitmap.Alloc() != 0
	}
	return !c.isZero(e)
}

// cleared returns what e becomes where it is wrong in a way that says itself which part of it must go, and whether it is. A subcluster that is
// called both allocated and zero is zero, and so is one that is called allocated in no cluster; a cluster that nothing was written to and that cannot be
// where it is said to be is no cluster.
func (c *checker) cleared(e l2Entry) (l2Entry, bool) {
	alloc, zero := e.bitmap.Alloc(), e.bitmap.Zero()
	switch c.kind(e) {
	case entryCompressed:
		fixed := e
		fixed.bits &^= ondisk.Copied
		return fixed, fixed != e
	case entryNone:
		if alloc == 0 {
			return e, false
		}
		e.bitmap = ondisk.Bitmap(0, zero|alloc)
		return e, true
	}
	fixed := e
	fixed.bitmap = ondisk.Bitmap(alloc&^zero, zero)
	if c.misplaced(e) && !c.hasData(fixed) {
		fixed.bits = 0
		if !c.h.ExtendedL2() {
			fixed.bits = ondisk.Zero
		}
	}
	return fixed, fixed != e
}

// misplaced reports whether a cluster does not begin where clusters do.
func (c *checker) misplaced(e l2Entry) bool { return e.off()&(c.h.ClusterSize()-1) != 0 }

// countL2 counts what an L2 table refers to, and judges its entries.
func (c *checker) countL2(t tableRef, data []byte) {
	step := int(c.h.L2EntryLen())
	next := int64(-1) // where the cluster would be that follows the one before
	for i := 0; i+step <= len(data); {
		e := c.l2At(t, data, i)
		if e.bits == 0 && e.bitmap == 0 {
			i += step
			continue
		}
		if n := c.run(data[i:], e); n > 0 {
			flags := refOther
			if t.active > 0 {
				flags |= copiedFlag(e.bits)
			}
			c.tallyClusters(t, e.off(), n, &next)
			c.counts.add(e.off()>>c.h.ClusterBits, n, uint64(t.w), flags)
			i += int(n) * step
			continue
		}
		c.countL2Entry(t, e, &next)
		i += step
	}
}

// run returns how many entries, of which e is the first, describe clusters without anything to complain of that follow each other in the file.
func (c *checker) run(data []byte, e l2Entry) int64 {
	off, cs := e.off(), c.h.ClusterSize()
	if e.bits&(c.reserved()|ondisk.Compressed) != 0 || off == 0 || c.misplaced(e) || off >= c.size || c.h.HasDataFile() {
		return 0
	}
	most := divideUp(uint64(c.size-off), uint64(cs))
	if c.h.ExtendedL2() {
		n := int64(0)
		for want := e.bits; len(data) >= 16 && uint64(n) < most && binary.BigEndian.Uint64(data) == want; n++ {
			if b := ondisk.SubclusterBitmap(binary.BigEndian.Uint64(data[8:])); b.Alloc()&b.Zero() != 0 {
				break
			}
			data, want = data[16:], want+uint64(cs)
		}
		return n
	}
	n := int64(0)
	for want := e.bits; len(data) >= 8 && uint64(n) < most && binary.BigEndian.Uint64(data) == want; n++ {
		data, want = data[8:], want+uint64(cs)
	}
	return n
}

// tallyClusters counts n clusters in a row for the statistics of the disk.
func (c *checker) tallyClusters(t tableRef, off, n int64, next *int64) {
	if c.quiet || t.active == 0 {
		return
	}
	c.seen.AllocatedClusters += n * int64(t.active)
	if *next >= 0 && off != *next {
		c.seen.FragmentedClusters += int64(t.active)
	}
	*next = off + n<<c.h.ClusterBits
}

// countL2Entry counts and judges one entry, which is not zero.
func (c *checker) countL2Entry(t tableRef, e l2Entry, next *int64) {
	w := int64(t.w)
	if e.bits&ondisk.Compressed == 0 && e.bits&c.reserved() != 0 {
		c.corrupt(w, partL2, e.at, "entry %#x has reserved bits set", e.bits)
	}
	if fixed, wrong := c.cleared(e); wrong && !c.quiet {
		c.seen.clear++
		c.corrupt(w, partL2, e.at, "%s", e.wrongs(fixed))
	}
	switch c.kind(e) {
	case entryCompressed:
		c.countCompressed(t, e)
	case entryCluster:
		c.tallyClusters(t, e.off(), 1, next)
		if c.misplaced(e) && c.hasData(e) {
			c.corrupt(w, partL2, e.at, "entry %#x leads to a cluster of data that does not begin with a cluster of the file", e.bits)
		}
		if c.h.HasDataFile() {
			c.copiedHere = c.copiedHere || !c.quiet && t.active > 0 && e.bits&ondisk.Copied == 0
			return
		}
		flags := refOther
		if t.active > 0 {
			flags |= copiedFlag(e.bits)
		}
		if !c.addRange(partL2, e.at, e.off(), c.h.ClusterSize(), uint64(w), flags) {
			c.copiedBeyond(e.bits, e.at, partL2, int64(t.active))
		}
	}
}

// wrongs says why e has to become fixed.
func (e l2Entry) wrongs(fixed l2Entry) string {
	switch {
	case e.bits&ondisk.Compressed != 0:
		return "a compressed cluster has the COPIED flag"
	case e.bits&ondisk.OffsetMask == 0:
		return "subclusters are allocated in no cluster"
	case e.bitmap != fixed.bitmap:
		return "subclusters are both allocated and zero"
	}
	return "a cluster of zeros does not begin with a cluster of the file"
}

// countCompressed counts and judges the entry of a compressed cluster.
func (c *checker) countCompressed(t tableRef, e l2Entry) {
	w := int64(t.w)
	switch {
	case c.h.HasDataFile():
		c.corrupt(w, partL2, e.at, "a compressed cluster, and the data lies in another file")
		return
	case e.bitmap != 0:
		c.corrupt(w, partL2, e.at, "a compressed cluster has subclusters")
	}
	off, n := ondisk.CompressedRange(e.bits, c.h.ClusterBits)
	c.addRange(partL2, e.at, off, n, uint64(w), refOther)
	if !c.quiet {
		c.seen.AllocatedClusters += int64(t.active)
		c.seen.CompressedClusters += int64(t.active)
		c.seen.FragmentedClusters += int64(t.active)
	}
}
