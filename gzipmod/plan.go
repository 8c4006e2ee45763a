package gzipmod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/partition"
)

// Range is a range of an image, in bytes.
type Range = partition.Range

// Options for NewLayout. The zero value compresses everything.
type Options struct {
	// Keep are the ranges that can be changed later. They are rounded outward to KeepUnit, and joined where they touch.
	Keep []Range
	// Apart are ranges that get chunks of their own, so that reading one (a partition table) decodes little more. They are rounded as Keep is.
	Apart []Range
	// Level is the effort of compression, 1 to 9; 0 means DefaultLevel.
	Level int
	// ModTime goes into MTIME; the zero time leaves it empty.
	ModTime time.Time
}

// DefaultLevel compresses as well as gzip -6, in a quarter of the time.
const DefaultLevel = deflate.DefaultLevel

// minHole is the shortest run of zeros that becomes a region of its own; it grows where there are too many for the index.
const minHole = 64 << 10

// maxRuns bounds the memory for an image's map before it is coarsened: an image of more runs is mapped more coarsely at once.
const maxRuns = 1 << 20

// NewLayout plans a file for src: which ranges stay modifiable, which are holes, and how long a chunk is so that the index fits.
// It reads no data of src, only its extents.
func NewLayout(ctx context.Context, src block.Device, o Options) (*Layout, error) {
	size := src.Size()
	if size > maxImageSize {
		return nil, fmt.Errorf("an image of %d bytes is too large, the most is %d", size, int64(maxImageSize))
	}
	keep, err := roundOut(o.Keep, size)
	if err != nil {
		return nil, err
	}
	apart, err := roundOut(o.Apart, size)
	if err != nil {
		return nil, err
	}
	holes, err := findHoles(ctx, src)
	if err != nil {
		return nil, err
	}
	// Longer chunks make reading at random slower, and a longer shortest hole makes more to compress: the least of both that fits.
	longest := int64(16 * minHole)
	for chunk := int64(minChunk); chunk <= maxChunk; chunk, longest = chunk*2, longest*4 {
		for hole := int64(minHole); hole <= longest; hole *= 2 {
			l := &Layout{Size: size, ChunkSize: chunk}
			l.divide(keep, apart, holes, hole)
			if n := indexLen(int64(len(l.Regions)), int64(len(l.Chunks))); n <= maxIndex {
				l.headerLen = indexOff + n
				return l, nil
			}
		}
	}
	return nil, fmt.Errorf("%d kept ranges and %d bytes of data need an index of more than %d bytes", len(keep), size, maxIndex)
}

// roundOut returns the ranges rounded outward to KeepUnit but not past size, sorted and joined.
func roundOut(ranges []Range, size int64) ([]Range, error) {
	var out []Range
	for _, r := range ranges {
		if err := block.CheckRange(r.Off, r.Len, size); err != nil {
			return nil, err
		}
		if r.Len == 0 {
			continue
		}
		off := block.RoundDown(r.Off, KeepUnit)
		end, ok := block.RoundUp(r.End(), KeepUnit)
		if !ok || end > size {
			end = size
		}
		out = append(out, Range{Off: off, Len: end - off})
	}
	slices.SortFunc(out, func(a, b Range) int {
		if a.Off < b.Off {
			return -1
		}
		return 1
	})
	joined := out[:0]
	for _, r := range out {
		if n := len(joined); n > 0 && r.Off <= joined[n-1].End() {
			joined[n-1].Len = max(joined[n-1].Len, r.End()-joined[n-1].Off)
			continue
		}
		joined = append(joined, r)
	}
	return joined, nil
}

// findHoles returns the runs of zeros of at least minHole that src's map shows.
func findHoles(ctx context.Context, src block.Device) ([]Range, error) {
	var holes []Range
	var run Range // the run that may still grow
	shortest := int64(minHole)
	end := func() {
		if run.Len >= shortest {
			holes = append(holes, run)
		}
		if len(holes) > maxRuns {
			shortest *= 2
			holes = slices.DeleteFunc(holes, func(r Range) bool { return r.Len < shortest })
		}
	}
	for e, err := range block.Walk(ctx, src, block.Map{}, 0, src.Size()) {
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			return nil, nil
		case err != nil:
			return nil, err
		case e.Flags&block.ExtZero == 0:
		case run.End() == e.Off:
			run.Len += e.Len
		default:
			end()
			run = Range{Off: e.Off, Len: e.Len}
		}
	}
	end()
	return holes, nil
}

// divide cuts the image into regions: kept ranges, then holes of at least the given length, and data between them, which is cut at
// the ends of the ranges apart.
func (l *Layout) divide(keep, apart, holes []Range, shortest int64) {
	cuts := make([]int64, 0, 2*len(apart))
	for _, r := range apart {
		cuts = append(cuts, r.Off, r.End())
	}
	off := int64(0)
	upTo := func(end int64) { // what lies before end and is not kept
		for len(holes) > 0 && off < end {
			h := holes[0]
			from, to := max(h.Off, off), min(h.End(), end)
			if from >= end {
				break
			}
			if to-from >= shortest {
				cuts = l.addData(off, from, cuts)
				l.add(Hole, from, to)
				off = to
			}
			if h.End() > end {
				break
			}
			holes = holes[1:]
		}
		cuts = l.addData(off, end, cuts)
		off = end
	}
	for _, k := range keep {
		upTo(k.Off)
		l.add(Kept, k.Off, k.End())
		off = k.Off + k.Len
	}
	upTo(l.Size)
}

// addData adds the data from off to end, cut at the cuts inside it, and returns the cuts that come later.
func (l *Layout) addData(off, end int64, cuts []int64) []int64 {
	for len(cuts) > 0 && cuts[0] < end {
		if cuts[0] > off {
			l.add(Data, off, cuts[0])
			off = cuts[0]
		}
		cuts = cuts[1:]
	}
	if off < end {
		l.add(Data, off, end)
	}
	return cuts
}

func (l *Layout) add(k Kind, off, end int64) {
	r := Region{Kind: k, Off: off, Len: end - off, chunk: len(l.Chunks)}
	if k == Data && len(l.Chunks) <= maxIndex { // else the index is too long in any case
		l.Chunks = append(l.Chunks, make([]Chunk, min(chunksOf(r.Off, r.Len, l.ChunkSize), maxIndex))...)
	}
	l.Regions = append(l.Regions, r)
}
