package ext4

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// run is a number of consecutive blocks.
type run struct{ start, len int64 }

func (r run) end() int64 { return r.start + r.len }

// zone is a part of the device that is filled from its start.
type zone struct {
	next, end int64 // blocks
	gaps      int64 // how many more blocks may be skipped
}

// allocator gives out blocks. It never takes them back, so that a position for every zone is all it has to know.
type allocator struct {
	zones []zone
	rng   *rand.PCG // nil: no gaps, no pieces
	runs  []run     // what was given out
}

const (
	zoneBlocks = 32 << 20 / BlockSize // zones are about this long, or longer
	maxZones   = 64
	gapShare   = 8 // one block of so many may be skipped
)

// newAllocator gives out the blocks from start to end. See Options.Scatter.
func newAllocator(scatter uint64, start, end int64) *allocator {
	if scatter == 0 {
		return &allocator{zones: []zone{{next: start, end: end}}}
	}
	a := &allocator{rng: rand.NewPCG(scatter, 0x65787434)}
	n := min(max((end-start)/zoneBlocks, 1), maxZones)
	size := (end - start) / n
	for i := range n {
		z := zone{next: start + i*size, end: start + (i+1)*size, gaps: size / gapShare}
		if i == n-1 {
			z.end = end
		}
		a.zones = append(a.zones, z)
	}
	return a
}

// pick returns a zone for a directory whose parent lies in zone parent: mostly the same.
func (a *allocator) pick(parent int, top bool) int {
	if a.rng == nil || !top && a.rng.Uint64()%4 != 0 {
		return parent
	}
	return int(a.rng.Uint64() % uint64(len(a.zones)))
}

// take gives out n blocks, from the given zone while it has some.
func (a *allocator) take(zone int, n int64) ([]run, error) {
	var got []run
	piece := a.piece()
	for tries := 0; n > 0; {
		z := &a.zones[zone]
		if z.next == z.end {
			if tries++; tries > len(a.zones) {
				return nil, fmt.Errorf("ext4: the files do not fit: %d blocks of %d bytes too few in the last one's place", n, BlockSize)
			}
			zone = (zone + 1) % len(a.zones)
			continue
		}
		r := run{z.next, min(n, piece, z.end-z.next, maxExtent)}
		z.next, n = r.end(), n-r.len
		a.skip(z, n > 0)
		a.runs = append(a.runs, r)
		if last := len(got) - 1; last >= 0 && got[last].end() == r.start && got[last].len+r.len <= maxExtent {
			got[last].len += r.len
		} else {
			got = append(got, r)
		}
	}
	return got, nil
}

// piece returns the length of the pieces that a file comes in: some files are fragmented, most are not, unless they are large.
func (a *allocator) piece() int64 {
	if a.rng == nil {
		return maxExtent
	}
	if x := a.rng.Uint64(); x%16 == 0 {
		return 16 << (x >> 8 % 5) // 64 KiB to 1 MiB
	}
	return 8 << 20 / BlockSize
}

// skip leaves a gap between the pieces of a file, and now and then between files.
func (a *allocator) skip(z *zone, between bool) {
	if a.rng == nil {
		return
	}
	x := a.rng.Uint64()
	gap := 1 + int64(x>>32%32)
	switch {
	case x%512 == 0:
		gap *= 32
	case x%32 != 0 && !between:
		return
	}
	gap = min(gap, z.gaps, z.end-z.next)
	z.next, z.gaps = z.next+gap, z.gaps-gap
}

// taken returns what was given out, sorted, neighbours joined.
func (a *allocator) taken() []run {
	runs := slices.Clone(a.runs)
	slices.SortFunc(runs, func(x, y run) int { return cmp.Compare(x.start, y.start) })
	joined := runs[:0]
	for _, r := range runs {
		if last := len(joined) - 1; last >= 0 && joined[last].end() == r.start {
			joined[last].len += r.len
			continue
		}
		joined = append(joined, r)
	}
	return joined
}
