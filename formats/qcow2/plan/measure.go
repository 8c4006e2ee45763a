package plan

import (
	"context"
	"errors"
	"math"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Measure says how long the file gets that New makes of src, or, where src is nil, Empty with o.Size. Like QEMU it counts the metadata of a
// disk that is full and, as a backing file may share nothing with the source, all of the disk where there is one; what compression saves is not known
// before. The file never takes more than Required, and seldom as much. It reads no data.
func Measure(ctx context.Context, src block.Device, o formats.CreateOptions, opts Options) (formats.Measurement, error) {
	size := o.Size
	if src != nil {
		size = src.Size()
	}
	if size < 0 {
		return formats.Measurement{}, errors.New("the size of the image is not known")
	}
	g, err := opts.resolve(size, o.Compress)
	if err != nil {
		return formats.Measurement{}, err
	}
	disk, ok := block.RoundUp(g.size, g.ClusterSize)
	if !ok {
		return formats.Measurement{}, g.tooLarge(size)
	}
	var required int64
	switch {
	case g.prealloc == formats.PreallocFull || g.prealloc == formats.PreallocFalloc, g.backing && src != nil:
		required = disk
	case src != nil:
		if required, err = g.dataBytes(ctx, src); err != nil {
			return formats.Measurement{}, err
		}
	}
	metadata := g.metadataBytes(disk)
	return formats.Measurement{Required: metadata + required, FullyAllocated: metadata + disk, Bitmaps: g.bitmapBytes(src)}, nil
}

// bitmapBytes returns what the bitmaps of src take as well, if they are copied: all their bits, the tables and the directory.
func (g *geometry) bitmapBytes(src block.Device) (sum int64) {
	kept, ok := block.As[formats.BitmapKeeper](src)
	if !ok || g.header.Version < 3 {
		return 0
	}
	up := func(n int64) int64 { return (n + g.ClusterSize - 1) &^ (g.ClusterSize - 1) }
	directory := int64(0)
	for _, b := range kept.Bitmaps() {
		if b.InUse || b.Granularity <= 0 || g.size == 0 {
			continue
		}
		bits := up((g.size-1)/b.Granularity/8 + 1)
		if sum, ok = block.Add(sum, bits+up(bits/g.ClusterSize*8)); !ok {
			return math.MaxInt64
		}
		entry := ondisk.BitmapEntry{Name: b.Name}
		directory += int64(len(entry.Append(nil)))
	}
	return sum + up(directory)
}

// dataBytes returns how many bytes the clusters have in which src knows data.
func (g *geometry) dataBytes(ctx context.Context, src block.Device) (int64, error) {
	sum, end := int64(0), int64(0) // end of the clusters that are counted
	for e, err := range block.Walk(ctx, src, block.Map{}, 0, src.Size()) {
		if err != nil {
			return 0, err
		}
		if e.Flags&block.ExtZero != 0 {
			continue
		}
		from := max(block.RoundDown(e.Off, g.ClusterSize), end)
		to, _ := block.RoundUp(e.End(), g.ClusterSize) // it is inside the disk, whose size can be rounded
		if to > from {
			sum, end = sum+to-from, to
		}
	}
	return sum, nil
}

// metadataBytes returns the length of all metadata of a full disk of whole clusters: header, L1 table, L2 tables, refcount table and blocks.
func (g *geometry) metadataBytes(disk int64) int64 {
	h := &g.header
	cluster := g.ClusterSize
	up := func(n int64) int64 { return (n + cluster - 1) &^ (cluster - 1) }
	tables := int64(h.L1Needed(uint64(disk)))
	used := cluster + tables*cluster + up(tables*8)
	blocks, table := refcountClusters((used+disk)>>h.ClusterBits, 0, 0, h)
	return used + (blocks+table)*cluster
}
