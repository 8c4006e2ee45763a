package check

import (
	"encoding/binary"
	"math"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// maxSharedTables is how many L2 tables that are something else as well are remembered.
const maxSharedTables = 1 << 16

// sharedTables are the offsets of clusters that are an L2 table and something else as well. What is written there as one may damage the other.
type sharedTables struct {
	offs map[int64]bool
	full bool
}

func (s *sharedTables) add(off int64) {
	if s.offs == nil {
		s.offs = map[int64]bool{}
	}
	if len(s.offs) < maxSharedTables {
		s.offs[off] = true
	} else {
		s.full = true
	}
}

// has reports whether the table at off may be such a cluster.
func (s *sharedTables) has(off int64) bool { return s.full || s.offs[off] }

// checkCopied looks for COPIED flags of the disk that contradict the counts of the window, which are those of the image since compare. It reads the
// tables only where compare has seen that there are any. With fix it puts them right.
func (c *checker) checkCopied(fix bool) error {
	if !c.copiedHere {
		return nil
	}
	c.copiedHere = false
	for lo := int64(0); lo < math.MaxInt64; {
		var wrong []l1Fix
		list, next, err := c.gather(lo, func(e uint64, at int64, s span) (int64, bool) {
			off := int64(e & ondisk.OffsetMask)
			if s.active == 0 || !c.isTable(off) {
				return 0, false
			}
			if lo == 0 && c.wrongCopied(e, off) {
				c.foundCopied(partL1, at, e)
				if fix && len(wrong) < maxTableRefs {
					wrong = append(wrong, l1Fix{at, e ^ ondisk.Copied})
				}
			}
			return off, true
		})
		if err != nil {
			return err
		}
		if err := c.fixL1(wrong); err != nil {
			return err
		}
		if err := c.eachTable(list, func(t tableRef, data []byte) error { return c.checkCopiedL2(t, data, fix) }); err != nil {
			return err
		}
		lo = next
	}
	return nil
}

// l1Fix is what an entry of an L1 table becomes.
type l1Fix struct {
	at    int64
	entry uint64
}

// fixL1 writes entries of L1 tables, unless something else lies there.
func (c *checker) fixL1(list []l1Fix) error {
	if c.seen.overlaps {
		return nil
	}
	for _, f := range list {
		if err := c.dev.Write(c.ctx, binary.BigEndian.AppendUint64(nil, f.entry), f.at, 0); err != nil {
			return err
		}
		c.fixedCopied(partL1, f.at, f.entry)
	}
	return nil
}

// checkCopiedL2 does it for one L2 table.
func (c *checker) checkCopiedL2(t tableRef, data []byte, fix bool) error {
	step := int(c.h.L2EntryLen())
	var changed dirty
	for i := 0; i+step <= len(data); i += step {
		e := c.l2At(t, data, i)
		if !c.wrongCopiedL2(e) {
			continue
		}
		c.foundCopied(partL2, e.at, e.bits)
		if fix && !c.seen.shared.has(t.off) {
			e.bits ^= ondisk.Copied
			binary.BigEndian.PutUint64(data[i:], e.bits)
			changed.add(i, i+8)
			c.fixedCopied(partL2, e.at, e.bits)
		}
	}
	if !changed.any() {
		return nil
	}
	return c.writeSectors(data, t.off, changed)
}

// wrongCopied reports whether the COPIED flag of an active entry that leads to off in the image file is wrong, as far as the window can tell.
func (c *checker) wrongCopied(e uint64, off int64) bool {
	cluster := off >> c.h.ClusterBits
	if off >= c.size || !c.counts.contains(cluster) {
		return false
	}
	n, _ := c.counts.get(cluster)
	return n != notKnown && (n == 1) != (e&ondisk.Copied != 0)
}

// wrongCopiedL2 does it for an entry of an L2 table. Clusters in a data file have no counts, and every one the flag.
func (c *checker) wrongCopiedL2(e l2Entry) bool {
	switch {
	case c.kind(e) != entryCluster:
		return false
	case c.h.HasDataFile():
		return e.bits&ondisk.Copied == 0 && c.counts.lo == 0
	}
	return c.wrongCopied(e.bits, e.off())
}

func (c *checker) foundCopied(part string, at int64, e uint64) {
	if e&ondisk.Copied != 0 {
		c.found(formats.Corruption, 1, part, at, "entry %#x has the COPIED flag, and the refcount is not 1", e)
	} else {
		c.found(formats.Corruption, 1, part, at, "entry %#x has not the COPIED flag, and the refcount is 1", e)
	}
	c.seen.copied++
}

func (c *checker) fixedCopied(part string, at int64, e uint64) {
	c.say(formats.Problem{Kind: formats.Corruption, Part: part, Off: at, Fixed: true}, "the COPIED flag was wrong; the entry is %#x now", e)
}
