package gzindex

import (
	"io"
	"sort"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// An Index says where a gzip file can be entered, and what is needed for it. It may be used by many goroutines, also while a Scanner adds
// to it.
type Index struct {
	mu       sync.RWMutex // guards everything but source
	points   []point      // in order of the image, the first at its beginning
	zeros    []run        // of zeros, in order
	size     int64        // of the image, as far as it has been scanned
	fileSize int64        // of the gzip file
	identity [identityLen]byte
	complete bool
	table    string // the name of the table that the points come from, where they come from one

	source io.ReaderAt // the index file, where states lie that are not in memory
}

// kind says in what a point lies. The values are those of the index file.
type kind uint8

const (
	atMember kind = iota // the header of a member
	atBlock              // the header of a block
	inStored             // a stored block
	inFixed              // a block with fixed codes
	inDynamic
	kinds
)

// point is a place where the file can be entered, and the beginning of a span.
type point struct {
	image   int64 // of the next byte
	bit     int64 // of the file
	kind    kind
	final   bool   // BFINAL of the block
	checked bool   // the span was decoded whole and is as it should be
	summed  bool   // crc is known
	crc     uint32 // of the span's content
	state   state
}

// pointSize is about how much memory a point takes without its state, in bytes.
const pointSize = 112

// run is a range of the image.
type run struct{ off, len int64 }

const runSize = 16

func (r run) end() int64 { return r.off + r.len }

// clip returns the part of r in [from, to). Its len is not positive where there is none.
func (r run) clip(from, to int64) run {
	from, to = max(from, r.off), min(to, r.end())
	return run{from, to - from}
}

// span is what lies between a point and the next one, or the end of the file.
type span struct {
	point
	len    int64  // bytes
	bitEnd int64  // where in the file the next point is, in bits, or its end
	exact  bool   // it ends where a member does
	table  string // see Index
}

// flushed reports whether the span must end at a flush mark, for want of anything else to check it by.
func (sp *span) flushed() bool { return !sp.exact && !sp.summed }

// Size returns the size of the image in bytes; before the index is complete, of what has been scanned of it.
func (x *Index) Size() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.size
}

// Complete reports whether the index covers the whole file.
func (x *Index) Complete() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.complete
}

// Points returns how many points there are.
func (x *Index) Points() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.points)
}

// Table returns the name of the table inside the file that the points come from: BGZF, dictzip; "" where they come from a scan.
func (x *Index) Table() string { return x.table }

// covered returns how many bytes of the image lie in spans that have an end.
func (x *Index) covered() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.complete || len(x.points) == 0 {
		return x.size
	}
	return x.points[len(x.points)-1].image
}

// find returns which point is the last at or before off. The caller holds mu.
func (x *Index) find(off int64) int {
	return sort.Search(len(x.points), func(i int) bool { return x.points[i].image > off }) - 1
}

// spanAt returns the span in which byte off of the image lies; not ok where no span with an end holds it.
func (x *Index) spanAt(off int64) (sp span, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i := x.find(off)
	if i < 0 || i == len(x.points)-1 && !x.complete || off >= x.size {
		return span{}, false
	}
	sp = span{point: x.points[i], table: x.table}
	if i == len(x.points)-1 {
		sp.len, sp.bitEnd, sp.exact = x.size-sp.image, x.fileSize*8, true
		return sp, true
	}
	next := &x.points[i+1]
	sp.len, sp.bitEnd, sp.exact = next.image-sp.image, next.bit, next.kind == atMember
	return sp, true
}

// setChecked notes that a span's content is as it should be.
func (x *Index) setChecked(sp span) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := x.find(sp.image); i >= 0 && x.points[i].image == sp.image {
		x.points[i].checked = true
	}
}

// thin drops every second point, except the last one, whose span has no end yet. It returns how much memory that frees.
func (x *Index) thin() (freed int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	last := len(x.points) - 1
	kept := x.points[:0:0]
	for i := 0; i <= last; i++ {
		if i%2 == 0 || i == last {
			kept = append(kept, x.points[i])
			continue
		}
		// The span that loses its end takes in the next one.
		before := &kept[len(kept)-1]
		before.crc = crcmath.Combine(before.crc, x.points[i].crc, x.points[i+1].image-x.points[i].image)
		freed += pointSize + int64(len(x.points[i].state.packed))
	}
	x.points = kept
	return freed
}

// zeroRuns calls f for the runs of zeros in the n bytes from off, in order. Of an index that is not trusted only what lies in checked
// spans counts.
func (x *Index) zeroRuns(off, n int64, trusted bool, f func(run)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	first := sort.Search(len(x.zeros), func(i int) bool { return x.zeros[i].end() > off })
	for _, z := range x.zeros[first:] {
		z = z.clip(off, off+n)
		if z.len <= 0 {
			return
		}
		if trusted {
			f(z)
			continue
		}
		for i := x.find(z.off); i < len(x.points) && x.points[i].image < z.end(); i++ {
			if x.points[i].checked {
				f(z.clip(x.points[i].image, x.endOf(i)))
			}
		}
	}
}

// endOf returns where in the image the span of point i ends. The caller holds mu.
func (x *Index) endOf(i int) int64 {
	if i+1 < len(x.points) {
		return x.points[i+1].image
	}
	return x.size
}

// zerosHold reports whether data, a piece, is zero where the index says so.
func (x *Index) zerosHold(p piece, data []byte) bool {
	hold := true
	x.zeroRuns(p.off, p.len, true, func(z run) {
		hold = hold && block.IsZero(data[z.off-p.off:][:z.len])
	})
	return hold
}
