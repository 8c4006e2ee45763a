package plan

import (
	"encoding/binary"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// tablesHeld is how many bytes of L2 tables are held back before they are written: few, so that memory is bounded, and enough for them to lie
// together in all but large images.
const tablesHeld = 8 << 20

// layout follows a file as it grows and makes its metadata. It is used by one goroutine at a time.
type layout struct {
	header ondisk.Header
	end    int64 // of the file, in bytes

	l1     []uint64
	tables []table // that are not written yet, in the order of the disk

	blocks []uint64 // the refcount table: where the blocks lie that are written
	base   int64    // the first cluster that they do not count
	counts []uint16 // of clusters from base on; a cluster has fewer compressed ones than this can count
}

// table is an L2 table.
type table struct {
	index int64 // of its L1 entry
	bytes []byte
}

func newLayout(h ondisk.Header) *layout {
	l := &layout{header: h}
	l.ref(0, 1)
	l.end = h.ClusterSize()
	return l
}

// ref counts a reference to each cluster that holds a byte of the range.
func (l *layout) ref(off, n int64) {
	first, last := off>>l.header.ClusterBits-l.base, (off+n-1)>>l.header.ClusterBits-l.base
	for int64(len(l.counts)) <= last {
		l.counts = append(l.counts, 0)
	}
	for i := first; i <= last; i++ {
		l.counts[i]++
	}
}

// full reports whether the cluster at off can have no more references.
func (l *layout) full(off int64) bool {
	i := off>>l.header.ClusterBits - l.base
	return i < int64(len(l.counts)) && uint64(l.counts[i]) >= ondisk.MaxRefcount(l.header.RefcountOrder)
}

// set sets the L2 entry of a cluster of the disk, which is not before one that was set earlier.
func (l *layout) set(cluster int64, entry uint64, bitmap ondisk.SubclusterBitmap) {
	index := cluster / l.header.L2Entries()
	if n := len(l.tables); n == 0 || l.tables[n-1].index != index {
		l.tables = append(l.tables, table{index, make([]byte, l.header.ClusterSize())})
	}
	p := l.tables[len(l.tables)-1].bytes[cluster%l.header.L2Entries()*l.header.L2EntryLen():]
	binary.BigEndian.PutUint64(p, entry)
	if l.header.ExtendedL2() {
		binary.BigEndian.PutUint64(p[8:], uint64(bitmap))
	}
}

// alignUp returns off rounded up to a cluster.
func (l *layout) alignUp(off int64) int64 {
	return (off + l.header.ClusterSize() - 1) &^ (l.header.ClusterSize() - 1)
}

// extend appends clusters of metadata to out, which is what the file gets from l.end on, and returns their place.
func (l *layout) extend(out, clusters []byte) ([]byte, int64) {
	off := l.end + int64(len(out))
	if pad := l.alignUp(off) - off; pad > 0 {
		out = append(out, make([]byte, pad)...)
		off += pad
	}
	if len(clusters) > 0 {
		l.ref(off, int64(len(clusters)))
	}
	return append(out, clusters...), off
}

// flush returns what the file gets next: the tables, and the refcount blocks that are complete.
func (l *layout) flush() ([]byte, error) {
	var out []byte
	var off int64
	for _, t := range l.tables {
		out, off = l.extend(out, t.bytes)
		for int64(len(l.l1)) <= t.index {
			l.l1 = append(l.l1, 0)
		}
		l.l1[t.index] = uint64(off) | ondisk.Copied
	}
	l.tables = nil
	for per := l.header.RefcountBlockEntries(); (l.end+int64(len(out)))>>l.header.ClusterBits-l.base >= per; {
		out = l.extendBlock(out, per)
	}
	return out, l.grow(out)
}

// extendBlock appends the refcount block of the next n clusters.
func (l *layout) extendBlock(out []byte, n int64) []byte {
	b := make([]byte, l.header.ClusterSize())
	for i, c := range l.counts[:min(n, int64(len(l.counts)))] {
		ondisk.SetRefcount(b, int64(i), l.header.RefcountOrder, uint64(c))
	}
	out, off := l.extend(out, b)
	l.counts = append([]uint16(nil), l.counts[n:]...)
	l.base += n
	l.blocks = append(l.blocks, uint64(off))
	return out
}

// grow says that out has been appended to the file.
func (l *layout) grow(out []byte) error {
	end, ok := block.Add(l.end, int64(len(out)))
	if !ok || uint64(end) > ondisk.MaxOffset {
		return fmt.Errorf("the file would get longer than %d bytes", ondisk.MaxOffset)
	}
	l.end = end
	return nil
}

// finish returns the end of the file of a disk of the given size, and completes the header.
func (l *layout) finish(size int64) ([]byte, error) {
	out, err := l.flush()
	if err != nil {
		return nil, err
	}
	h := &l.header
	h.Size, h.L1Size = uint64(size), uint32(h.L1Needed(uint64(size)))
	if h.L1Size == 0 {
		tail, err := l.finishRefcounts(nil)
		return append(out, tail...), err
	}
	l1 := make([]byte, l.alignUp(int64(h.L1Size)*8))
	for i, e := range l.l1 {
		binary.BigEndian.PutUint64(l1[i*8:], e)
	}
	tail, off := l.extend(nil, l1)
	h.L1TableOffset = uint64(off)
	tail, err = l.finishRefcounts(tail)
	return append(out, tail...), err
}

// finishRefcounts appends what is left to place: refcount blocks, and a table of all of them, which count themselves too. Tail is what the file gets
// before, whole clusters.
func (l *layout) finishRefcounts(tail []byte) ([]byte, error) {
	h := &l.header
	used := (l.end + int64(len(tail))) >> h.ClusterBits
	newBlocks, tableClusters := refcountClusters(used, l.base, int64(len(l.blocks)), h)
	if n := tableClusters << h.ClusterBits; n > ondisk.MaxRefcountTableBytes {
		return nil, block.WithHint(fmt.Errorf("the image needs a refcount table of %d bytes, more than %d", n, ondisk.MaxRefcountTableBytes), "say a larger cluster_size")
	}
	l.ref(used<<h.ClusterBits, (newBlocks+tableClusters)<<h.ClusterBits)
	p := make([]byte, (newBlocks+tableClusters)<<h.ClusterBits)
	per := h.RefcountBlockEntries()
	for i, c := range l.counts {
		ondisk.SetRefcount(p[int64(i)/per<<h.ClusterBits:], int64(i)%per, h.RefcountOrder, uint64(c))
	}
	for i := range newBlocks {
		l.blocks = append(l.blocks, uint64((used+i)<<h.ClusterBits))
	}
	for i, b := range l.blocks {
		binary.BigEndian.PutUint64(p[newBlocks<<h.ClusterBits+int64(i)*8:], b)
	}
	h.RefcountTableOffset = uint64((used + newBlocks) << h.ClusterBits)
	h.RefcountTableClusters = uint32(tableClusters)
	tail = append(tail, p...)
	return tail, l.grow(tail)
}

// refcountClusters returns how many refcount blocks and how many clusters of a refcount table a file of used clusters gets, which count themselves
// too, where a number of blocks counts those up to base already.
func refcountClusters(used, base, blocks int64, h *ondisk.Header) (newBlocks, tableClusters int64) {
	ceil := func(a, b int64) int64 { return (a + b - 1) / b }
	for {
		n := ceil(used+newBlocks+tableClusters-base, h.RefcountBlockEntries())
		t := ceil((blocks+n)*8, h.ClusterSize())
		if n == newBlocks && t == tableClusters {
			return n, t
		}
		newBlocks, tableClusters = n, t
	}
}
