package plan

import (
	"context"
	"iter"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// kind says what a range of the disk is to the new image.
type kind uint8

const (
	absent kind = iota // left unallocated
	zero               // reads as zero, over whatever the backing file holds
	data               // has to be stored, or read first
)

// span is a range of one kind.
type span struct {
	off, n int64
	kind   kind
}

// unit returns in which steps things are allocated, in bytes.
func (g *geometry) unit() int64 {
	if g.ExtendedL2 && !g.compress {
		return g.ClusterSize / ondisk.Subclusters
	}
	return g.ClusterSize
}

// kindOf returns what an extent of the source is to the image.
func (g *geometry) kindOf(e block.Extent) kind {
	switch {
	case g.backing && e.Depth > 0:
		return absent
	case e.Flags&block.ExtZero == 0:
		return data
	case !g.backing:
		return absent
	case g.header.Version < 3: // it has no zero clusters
		return data
	}
	return zero
}

// spans yields what the disk consists of, in units: a unit of several kinds is data. Neighbours may be of one kind.
func (g *geometry) spans(ctx context.Context, src block.Device) iter.Seq2[span, error] {
	unit := g.unit()
	return func(yield func(span, error) bool) {
		part := span{} // the beginning of a unit, whose rest comes with the next extents
		for e, err := range block.Walk(ctx, src, block.Map{}, 0, src.Size()) {
			if err != nil {
				yield(span{}, err)
				return
			}
			s := span{e.Off, e.Len, g.kindOf(e)}
			if part.n > 0 {
				k := min(s.n, unit-part.n)
				if s.kind != part.kind {
					part.kind = data
				}
				part.n, s.off, s.n = part.n+k, s.off+k, s.n-k
				if part.n == unit {
					if !yield(part, nil) {
						return
					}
					part = span{}
				}
			}
			if s.n == 0 {
				continue
			}
			if whole := block.RoundDown(s.n, unit); whole > 0 {
				if !yield(span{s.off, whole, s.kind}, nil) {
					return
				}
				s.off, s.n = s.off+whole, s.n-whole
			}
			if s.n > 0 {
				part = s
			}
		}
		if part.n > 0 {
			part.n = unit
			yield(part, nil)
		}
	}
}

// run is a range of whole clusters that one worker deals with.
type run struct {
	first, n int64 // clusters
	work     int64 // bytes of the disk since the run before

	kind  kind   // of all of it, where units is nil
	units []kind // of each unit

	source []byte  // the bytes, where they come from a stream
	lens   []int32 // bytes of each cluster as it is stored; 0 where it is not
	packed []byte  // the stored bytes of all clusters, where they are kept
}

// How much of the disk a run with data covers, in bytes, where clusters are not longer.
const (
	runBytes    = 512 << 10 // what is read should still be in the processor's cache when it is looked through, compressed and written
	maxRunBytes = 8 << 20   // of a source that unpacks more at a time
)

// runLen returns how many bytes of the disk a run with data covers: what the source unpacks at a time, where it does. src may be nil.
func (g *geometry) runLen(src block.Device) int64 {
	n := max(runBytes, g.ClusterSize)
	if src == nil {
		return n
	}
	if i := src.Info(); i.Caps.Packed {
		n = max(n, min(i.PreferredBlock, maxRunBytes))
	}
	return n
}

// batch returns how many bytes of the disk the tables that are held back stand for. Runs do not cross its multiples.
func (g *geometry) batch() int64 { return tablesHeld / g.header.L2EntryLen() * g.ClusterSize }

// listed reports whether runs of a kind other than data have to be seen by the layout.
func (g *geometry) listed(k kind) bool { return k == zero || g.prealloc != formats.PreallocOff }

// runs yields the runs of the disk that the layout has to know of, in order.
func (g *geometry) runs(ctx context.Context, src block.Device) iter.Seq2[*run, error] {
	return func(yield func(*run, error) bool) {
		c := collector{geometry: g, length: g.runLen(src), yield: func(r *run) bool { return yield(r, nil) }}
		for s, err := range g.spans(ctx, src) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !c.add(s) {
				return
			}
		}
		c.flush()
	}
}

// collector joins spans to runs.
type collector struct {
	*geometry
	length int64 // of a run with data, in bytes
	yield  func(*run) bool
	run    *run  // that is being filled; nil for none
	done   int64 // bytes of the disk that earlier runs have counted as work
}

// add takes the next span, and returns false where no more runs are wanted.
func (c *collector) add(s span) bool {
	for s.n > 0 {
		start := block.RoundDown(s.off, c.length)
		if s.off == start && s.kind != data && s.n >= c.length && c.prealloc != formats.PreallocFull {
			n := block.RoundDown(min(s.n, c.batch()-s.off%c.batch()), c.length)
			if !c.flush() || c.listed(s.kind) && !c.send(&run{first: s.off / c.ClusterSize, n: n / c.ClusterSize, kind: s.kind}) {
				return false
			}
			s.off, s.n = s.off+n, s.n-n
			continue
		}
		if c.run == nil || c.run.first*c.ClusterSize != start {
			if !c.flush() {
				return false
			}
			c.run = &run{first: start / c.ClusterSize, units: make([]kind, 0, c.length/c.unit())}
		}
		n := min(s.n, start+c.length-s.off)
		for range n / c.unit() {
			c.run.units = append(c.run.units, s.kind)
		}
		s.off, s.n = s.off+n, s.n-n
	}
	return true
}

// flush yields the run that is being filled.
func (c *collector) flush() bool {
	r := c.run
	c.run = nil
	if r == nil {
		return true
	}
	perCluster := int(c.ClusterSize / c.unit())
	for len(r.units)%perCluster != 0 { // past the end of the disk
		r.units = append(r.units, r.units[len(r.units)-1])
	}
	r.n = int64(len(r.units) / perCluster)
	for _, k := range r.units {
		if k == data || c.listed(k) {
			return c.send(r)
		}
	}
	return true
}

func (c *collector) send(r *run) bool {
	end := min((r.first+r.n)*c.ClusterSize, c.size)
	r.work, c.done = end-c.done, end
	return c.yield(r)
}
