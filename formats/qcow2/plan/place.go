package plan

import (
	"fmt"
	"slices"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// place gives places to the clusters of a run, which the file gets from off on, and returns where it ends then. As in QEMU, compressed
// clusters follow each other at any byte; one begins a new cluster of the file where the count of the last one is at its limit. It sets places, one
// for each cluster, unless that is nil.
func (g *geometry) place(l *layout, r *run, off int64, places []int64) (int64, error) {
	for i := range r.n {
		n, bitmap := g.stored(r, i), g.bitmap(r, i)
		var entry uint64
		switch {
		case g.DataFile != "":
			entry = uint64((r.first+i)*g.ClusterSize) | ondisk.Copied
		case n == 0 && !g.ExtendedL2 && r.kindAt(i) == zero:
			entry = ondisk.Zero
		case n == 0 && bitmap == 0:
			continue
		case n > 0:
			whole := n == g.ClusterSize
			if whole || off%g.ClusterSize != 0 && l.full(off) {
				off = l.alignUp(off)
			}
			entry = uint64(off) | ondisk.Copied
			if !whole {
				var ok bool
				if entry, ok = ondisk.CompressedEntry(off, n, g.header.ClusterBits); !ok {
					return 0, fmt.Errorf("a compressed cluster cannot lie at byte %d: the file gets too long", off)
				}
				bitmap = 0
			}
			if places != nil {
				places[i] = off
			}
			l.ref(off, n)
			off += n
		}
		l.set(r.first+i, entry, bitmap)
	}
	l.end = off
	return off, nil
}

// stored returns how many bytes of the file cluster i of a run takes.
func (g *geometry) stored(r *run, i int64) int64 {
	switch {
	case r.lens != nil:
		return int64(r.lens[i])
	case g.prealloc != formats.PreallocOff && g.DataFile == "":
		return g.ClusterSize
	}
	return 0
}

// bitmap returns the subclusters of cluster i of a run, were it stored as it is.
func (g *geometry) bitmap(r *run, i int64) ondisk.SubclusterBitmap {
	if !g.ExtendedL2 {
		return 0
	}
	var alloc, zeros uint32
	for s := range int64(ondisk.Subclusters) {
		switch r.unitAt(i*ondisk.Subclusters+s, i) {
		case data:
			alloc |= 1 << s
		case zero:
			zeros |= 1 << s
		}
	}
	return ondisk.Bitmap(alloc, zeros)
}

// kindAt returns the kind of cluster i of a run of which clusters are the units.
func (r *run) kindAt(i int64) kind { return r.unitAt(i, i) }

// unitAt returns the kind of a unit of a run, or of a cluster where those are the units.
func (r *run) unitAt(unit, cluster int64) kind {
	switch {
	case r.units == nil:
		return r.kind
	case int64(len(r.units)) == r.n:
		return r.units[cluster]
	}
	return r.units[unit]
}

// spread moves the stored clusters of a run apart, so that in the file, which gets them from off to end, they lie where place has put them.
func spread(p []byte, lens []int32, places []int64, off, end int64) []byte {
	n := int64(len(p))
	if end-off == n {
		return p
	}
	p = slices.Grow(p, int(end-off-n))[:end-off]
	next := end - off // what is behind is in its place
	for i := len(lens) - 1; i >= 0; i-- {
		k := int64(lens[i])
		if k == 0 {
			continue
		}
		to := places[i] - off
		copy(p[to:], p[n-k:n])
		clear(p[to+k : next])
		n, next = n-k, to
	}
	clear(p[:next])
	return p
}
