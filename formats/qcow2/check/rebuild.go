package check

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// layout is where a new refcount table, its blocks and, where that is to be written anew, the snapshot table go: one cluster after the other.
type layout struct {
	first     int64   // cluster
	table     int64   // clusters of the refcount table
	blocks    []int64 // indexes of the blocks, sorted
	snapshots int64   // clusters of the snapshot table
}

// count returns how many references the layout itself makes to a cluster.
func (l layout) count(cluster int64) uint64 {
	if cluster >= l.first && cluster < l.end() {
		return 1
	}
	return 0
}

func (l layout) end() int64 { return l.snapshotTable() + l.snapshots }

// snapshotTable returns the cluster of the snapshot table.
func (l layout) snapshotTable() int64 { return l.first + l.table + int64(len(l.blocks)) }

// rebuild writes a new refcount table and new blocks behind everything that is in use, and then lets the header point there. The old ones are free
// from then on, and are not counted any more.
func (c *checker) rebuild(f findings) error {
	l, err := c.plan(f)
	if err != nil {
		return err
	}
	i := 0
	write := func(counts *counts, end int64) error {
		for ; i < len(l.blocks) && l.blocks[i]*c.h.RefcountBlockEntries() < end; i++ {
			if err := c.writeBlock(l, i, counts, f.hidden); err != nil {
				return err
			}
		}
		return nil
	}
	if err := c.windows(true, func() error { return write(c.counts, c.counts.hi) }); err != nil {
		return err
	}
	if err := write(nil, l.end()); err != nil { // what the layout needs behind the windows
		return err
	}
	table := make([]byte, l.table<<c.h.ClusterBits)
	for i, index := range l.blocks {
		binary.BigEndian.PutUint64(table[index*8:], uint64(l.first+l.table+int64(i))<<c.h.ClusterBits)
	}
	off := l.first << c.h.ClusterBits
	if err := c.dev.Write(c.ctx, table, off, 0); err != nil {
		return err
	}
	if l.snapshots > 0 {
		p := make([]byte, l.snapshots<<c.h.ClusterBits)
		copy(p, c.places.snapshots)
		if err := c.dev.Write(c.ctx, p, l.snapshotTable()<<c.h.ClusterBits, 0); err != nil {
			return err
		}
	}
	if err := c.dev.Flush(c.ctx); err != nil {
		return err
	}
	// These fields of the header follow each other, in one sector.
	c.h.RefcountTableOffset, c.h.RefcountTableClusters = uint64(off), uint32(l.table)
	field := binary.BigEndian.AppendUint64(nil, c.h.RefcountTableOffset)
	field = binary.BigEndian.AppendUint32(field, c.h.RefcountTableClusters)
	if l.snapshots > 0 {
		c.h.SnapshotsOffset = uint64(l.snapshotTable()) << c.h.ClusterBits
		field = binary.BigEndian.AppendUint32(field, c.h.NbSnapshots)
		field = binary.BigEndian.AppendUint64(field, c.h.SnapshotsOffset)
	}
	if err := c.dev.Write(c.ctx, field, refcountTableField, 0); err != nil {
		return err
	}
	if err := c.dev.Flush(c.ctx); err != nil {
		return err
	}
	c.say(formats.Problem{Kind: formats.Corruption, Part: partTable, Off: off, Fixed: true}, "it has been rebuilt here, with %d refcount blocks", len(l.blocks))
	if l.snapshots > 0 {
		c.say(formats.Problem{Kind: formats.Corruption, Part: partSnapshots, Off: int64(c.h.SnapshotsOffset), Fixed: true}, "it has been written anew here, with the sizes of disks")
	}
	c.size = c.dev.Size()
	c.end = clustersOf(c.size, c.h)
	return c.readPlaces()
}

// plan finds out which blocks are needed, and where they go: behind what is in use, and behind what is counted, if only by mistake.
func (c *checker) plan(f findings) (layout, error) {
	per := c.h.RefcountBlockEntries()
	most := int64(ondisk.MaxRefcountTableBytes / 8)
	needed := map[int64]bool{}
	highest := f.highest
	err := c.windows(true, func() error {
		for _, k := range c.counts.pages() {
			for cluster := k << pageBits; cluster < (k+1)<<pageBits; cluster++ {
				n, _ := c.counts.get(cluster)
				switch {
				case n == 0:
				case cluster/per >= most:
					return errTooLarge()
				default:
					needed[cluster/per] = true
					highest = max(highest, cluster)
				}
			}
		}
		return nil
	})
	if err != nil {
		return layout{}, err
	}
	if f.hidden {
		for _, b := range c.places.blocks {
			if b.state == blockGood && b.index < most {
				needed[b.index] = true
			}
		}
	}
	l := layout{first: highest + 1, snapshots: clustersOf(int64(len(c.places.snapshots)), c.h)}
	for {
		l.blocks = slices.Sorted(maps.Keys(needed))
		l.table = clustersOf((l.blocks[len(l.blocks)-1]+1)*8, c.h)
		before := len(needed)
		for i := l.first / per; i <= (l.end()-1)/per; i++ {
			needed[i] = true
		}
		if len(needed) == before {
			break
		}
	}
	end, ok := block.Mul(l.end(), c.h.ClusterSize())
	switch info := c.dev.Info(); {
	case !ok || uint64(end) > ondisk.MaxOffset || l.table<<c.h.ClusterBits > ondisk.MaxRefcountTableBytes && l.table > 1:
		return layout{}, errTooLarge()
	case end > c.size && !info.Caps.Grow:
		return layout{}, fmt.Errorf("there are %d bytes, and new refcounts need the place up to byte %d", c.size, end)
	}
	return l, nil
}

func errTooLarge() error {
	return fmt.Errorf("%s: the file is longer than a refcount table can count", ondisk.Format)
}

// writeBlock writes the i'th block of the layout. counts may be nil, where nothing is counted.
func (c *checker) writeBlock(l layout, i int, counts *counts, keep bool) error {
	per, most := c.h.RefcountBlockEntries(), ondisk.MaxRefcount(c.h.RefcountOrder)
	first := l.blocks[i] * per
	var old []byte
	if keep {
		var err error
		if old, err = c.oldBlock(l.blocks[i]); err != nil {
			return err
		}
	}
	data := make([]byte, c.h.ClusterSize())
	for j := range per {
		n := l.count(first + j)
		if counts != nil && counts.contains(first+j) {
			used, _ := counts.get(first + j)
			n += used
		}
		if old != nil {
			n = max(n, ondisk.Refcount(old, j, c.h.RefcountOrder))
		}
		if n > 0 {
			ondisk.SetRefcount(data, j, c.h.RefcountOrder, min(n, most))
		}
	}
	return c.dev.Write(c.ctx, data, (l.first+l.table+int64(i))<<c.h.ClusterBits, 0)
}

// oldBlock returns the present block with this index, or nil.
func (c *checker) oldBlock(index int64) ([]byte, error) {
	for _, b := range c.places.blocks {
		if b.index == index && b.state == blockGood {
			data := make([]byte, c.h.ClusterSize())
			return data, c.readAt(c.ctx, data, b.off)
		}
	}
	return nil, nil
}
