package file

import (
	"context"
	"errors"
	"math"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// maxExtents bounds what one call of Extents describes, so that neither its time nor its memory follow the number of holes.
const maxExtents = 512

// Extents implements block.Device. It asks the file system by lseek(SEEK_DATA) and lseek(SEEK_HOLE). That moves the file offset,
// which every other call leaves alone (reads and writes carry their own), and the answer is the call's own, so that any number may run.
// Space that is reserved but not written counts as a hole. Where the file system cannot tell, all is data.
func (d *Device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := d.enter(ctx); err != nil {
		return buf, err
	}
	defer d.mu.RUnlock()
	if m != (block.Map{}) {
		return buf, errors.ErrUnsupported
	}
	if err := block.CheckRange(off, n, d.size.Load()); err != nil || n == 0 {
		return buf, err
	}
	base, end := len(buf), off+n
	for off < end && len(buf)-base < maxExtents {
		data, hole, err := d.nextRun(off)
		if err != nil {
			return buf[:base], err
		}
		if data > off {
			to := min(data, end)
			buf = append(buf, block.Extent{Off: off, Len: to - off, Flags: block.ExtZero, Node: d.name, NodeOff: off})
			off = to
		}
		if to := min(hole, end); to > off {
			buf = append(buf, block.Extent{Off: off, Len: to - off, Flags: block.ExtData, Node: d.name, NodeOff: off})
			off = to
		}
	}
	return buf, nil
}

// nextRun returns the first run of data that reaches past off, as its bounds. data is at least off, hole is greater; both are
// math.MaxInt64 where there is no more data.
func (d *Device) nextRun(off int64) (data, hole int64, err error) {
	if d.oneRun.Load() {
		return off, math.MaxInt64, nil
	}
	hole, before := d.last.find(off)
	if hole > off {
		return off, hole, nil
	}
	data, err = seekData(d.f, off)
	switch {
	case err == nil && data < math.MaxInt64:
		hole, err = seekHole(d.f, data)
	case err == nil:
		data, hole, err = d.missing(off)
	default:
		hole = data
	}
	if isUnsupported(err) {
		d.oneRun.Store(true)
		return off, math.MaxInt64, nil
	}
	if err != nil {
		return 0, 0, bare(err)
	}
	if hole <= data && data < math.MaxInt64 {
		hole = data + 1 // the run went away in between; to say data is always right, and goes on
	}
	if data < math.MaxInt64 {
		d.last.keep(before, data, hole)
	}
	return data, hole, nil
}

// missing returns, as nextRun does, what lies past off where the file system knows of no more data: nothing, but in a file that somebody has
// cut shorter meanwhile. What is cut off is no hole: it is called data, which fails when it is read.
func (d *Device) missing(off int64) (data, hole int64, err error) {
	fi, err := d.f.Stat()
	if err != nil || fi.Size() >= d.size.Load() {
		return math.MaxInt64, math.MaxInt64, err
	}
	return max(off, fi.Size()), math.MaxInt64, nil
}

// lastRun remembers a run of data. The file system walks from the given offset to the end of the run, page by page on tmpfs, so that
// describing one long run in many small steps would cost the square of its length. A run that is no longer data may be
// remembered without harm: zeros are then called data.
type lastRun struct {
	mu         sync.Mutex
	start, end int64
	changes    uint64 // counts calls of forget
}

// find returns the end of the run if off lies in it, else 0, and what keep wants to know.
func (l *lastRun) find(off int64) (end int64, changes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.start <= off && off < l.end {
		return l.end, l.changes
	}
	return 0, l.changes
}

// keep remembers a run, unless something was zeroed since find returned changes.
func (l *lastRun) keep(changes uint64, start, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changes == changes {
		l.start, l.end = start, end
	}
}

// forget is called when holes have been made.
func (l *lastRun) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start, l.end = 0, 0
	l.changes++
}
