package check

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// span is a range of the file that holds entries of 8 bytes, and in how many tables it is.
type span struct {
	off, end  int64
	w, active uint64 // tables in all, and those of the disk
}

// sweep returns the ranges of which the spans consist, without overlaps, in order, with the weights of all that cover them.
func sweep(list []span) []span {
	type edge struct {
		at        int64
		w, active int64
	}
	var edges []edge
	for _, s := range list {
		edges = append(edges, edge{s.off, int64(s.w), int64(s.active)}, edge{s.end, -int64(s.w), -int64(s.active)})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var out []span
	var w, active int64
	for i, e := range edges {
		if i > 0 && w > 0 && e.at > edges[i-1].at {
			out = append(out, span{off: edges[i-1].at, end: e.at, w: uint64(w), active: uint64(active)})
		}
		w, active = w+e.w, active+e.active
	}
	return out
}

// countSpans counts the clusters that tables take.
func (c *checker) countSpans(part string, list []span) {
	whole := make([]span, len(list))
	for i, s := range list {
		s.end = (s.end + c.h.ClusterSize() - 1) >> c.h.ClusterBits << c.h.ClusterBits
		whole[i] = s
	}
	for _, s := range sweep(whole) {
		c.addRange(part, -1, s.off, s.end-s.off, s.w, refOther)
	}
}

// entries calls use for every entry in the spans that is not zero. at is where it lies.
func (c *checker) entries(list []span, use func(e uint64, at int64, s span) error) error {
	const piece = 64 << 10 // bytes that are read at a time
	for _, s := range sweep(list) {
		s.end = min(s.end, c.size)
		pieces := func(yield func(int64) bool) {
			for off := s.off; off < s.end && yield(off); off += piece {
			}
		}
		err := c.readTables(pieces, piece, func(off int64, data []byte) error {
			if c.counts != nil && c.counts.scattered {
				return errScattered
			}
			data = data[:min(int64(len(data)), s.end-off)]
			for i := 0; i+8 <= len(data); i += 8 {
				if e := binary.BigEndian.Uint64(data[i:]); e != 0 {
					if err := use(e, off+int64(i), s); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tableRef is an L2 table.
type tableRef struct {
	off       int64
	w, active uint32 // L1 entries that point to it: in all, and those of the disk
}

// maxTableRefs is how many L2 tables are remembered at a time.
const maxTableRefs = 1 << 20

// gather returns the L2 tables from the offset lo on, in order of their offsets, and where to go on: at math.MaxInt64 there are no more.
// l1 is called for every entry of an L1 table, and says where it leads; ok is false where that is nowhere.
func (c *checker) gather(lo int64, l1 func(e uint64, at int64, s span) (off int64, ok bool)) (list []tableRef, next int64, err error) {
	next = math.MaxInt64
	err = c.entries(c.places.l1, func(e uint64, at int64, s span) error {
		off, ok := l1(e, at, s)
		if !ok || off < lo || off >= next {
			return nil
		}
		list = append(list, tableRef{off, uint32(s.w), uint32(s.active)})
		if len(list) == maxTableRefs {
			if list = merge(list); len(list) > maxTableRefs/2 {
				next = list[maxTableRefs/2].off
				list = list[:maxTableRefs/2]
			}
		}
		return nil
	})
	return merge(list), next, err
}

// merge sorts a list and joins what it has twice.
func merge(list []tableRef) []tableRef {
	slices.SortFunc(list, func(a, b tableRef) int { return cmp.Compare(a.off, b.off) })
	n := 0
	for _, t := range list {
		if n > 0 && list[n-1].off == t.off {
			list[n-1].w += t.w
			list[n-1].active += t.active
			continue
		}
		list[n] = t
		n++
	}
	return list[:n]
}

// countTables counts what L1 and L2 tables refer to, and judges their entries.
func (c *checker) countTables() error {
	c.countSpans(partL1, c.places.l1)
	for lo := int64(0); lo < math.MaxInt64; {
		list, next, err := c.gather(lo, func(e uint64, at int64, s span) (int64, bool) {
			if lo > 0 { // this entry has been counted
				off := int64(e & ondisk.OffsetMask)
				return off, c.isTable(off)
			}
			return c.countL1Entry(e, at, s)
		})
		if err != nil {
			return err
		}
		if err := c.eachTable(list, func(t tableRef, data []byte) error {
			c.countL2(t, data)
			return nil
		}); err != nil {
			return err
		}
		lo = next
	}
	return nil
}

// eachTable calls use for the tables of a list that are not zero.
func (c *checker) eachTable(list []tableRef, use func(t tableRef, data []byte) error) error {
	offs := func(yield func(int64) bool) {
		for i := 0; i < len(list) && yield(list[i].off); i++ {
		}
	}
	i := 0
	return c.readTables(offs, c.h.ClusterSize(), func(_ int64, data []byte) error {
		t := list[i]
		i++
		if c.counts != nil && c.counts.scattered {
			return errScattered
		}
		if data == nil {
			return nil
		}
		return use(t, data)
	})
}

// isTable reports whether an L2 table can lie at off.
func (c *checker) isTable(off int64) bool {
	return off != 0 && off&(c.h.ClusterSize()-1) == 0 && off < c.size
}

// countL1Entry counts and judges an entry of an L1 table.
func (c *checker) countL1Entry(e uint64, at int64, s span) (off int64, ok bool) {
	off = int64(e & ondisk.OffsetMask)
	n := int64(s.w)
	if e&ondisk.L1Reserved != 0 {
		c.corrupt(n, partL1, at, "entry %#x has reserved bits set", e)
	}
	flags := refTable
	if s.active > 0 {
		flags |= copiedFlag(e)
	}
	switch {
	case off == 0 && e != ondisk.Copied:
		return 0, false
	case off == 0:
		c.corrupt(n, partL1, at, "an entry has the COPIED flag and leads nowhere")
		if !c.quiet {
			c.seen.clear++
		}
		return 0, false
	case off&(c.h.ClusterSize()-1) != 0:
		c.corrupt(n, partL1, at, "entry %#x leads to an L2 table that does not begin with a cluster", e)
	case off >= c.size:
		c.corrupt(n, partL1, at, "entry %#x leads to an L2 table behind the end of the file at byte %d", e, c.size)
		c.copiedBeyond(e, at, partL1, int64(s.active))
	default:
		c.counts.add(off>>c.h.ClusterBits, 1, s.w, flags)
		return off, true
	}
	if !c.quiet {
		c.seen.hidden = true
	}
	return 0, false
}

// copiedFlag returns what an active entry says of the COPIED flag.
func copiedFlag(e uint64) uint64 {
	if e&ondisk.Copied != 0 {
		return refCopied
	}
	return refPlain
}

// copiedBeyond judges the COPIED flag of n active entries that lead to what has no reference count.
func (c *checker) copiedBeyond(e uint64, at int64, part string, n int64) {
	if n > 0 && e&ondisk.Copied != 0 {
		c.corrupt(n, part, at, "entry %#x has the COPIED flag, and what it points to is not counted", e)
	}
}
