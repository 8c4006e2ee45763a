package convert

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"

	"github.com/imgtool/imgtool/block"
)

// Rebase prepares overlay for another backing image: once newBacking shows through it in place of oldBacking, it reads as before. Where it
// holds nothing itself the two are compared, and what the old one has and the new one has not is written to overlay, zeros as zeros.
// Either may be nil, for none, or shorter than overlay: then it is zero from there on. overlay itself must still read as over oldBacking,
// and has to be given its new backing image afterwards; see formats.Backed.
//
// What both images take from the same place of the same file is not read. In the Stats, Left is what needed no comparison.
func Rebase(ctx context.Context, overlay, oldBacking, newBacking block.Device, o Options) (Stats, error) {
	if !overlay.Info().Caps.Write {
		return Stats{}, block.ErrReadOnly
	}
	var sources []block.Device
	for _, d := range []block.Device{oldBacking, newBacking} {
		if d != nil {
			sources = append(sources, d)
		}
	}
	size := overlay.Size()
	// Whole clusters are written, so that nothing has to be copied into them.
	workers, request := o.limits(max(readRequest, overlay.Info().PreferredBlock), 2, overlay, sources...)
	r := &rebasing{overlay: overlay, old: oldBacking, new: newBacking, unit: rebaseUnit(overlay.Info(), request)}
	r.total, r.tell, r.stats.Size = size, o.Progress, size
	err := each(ctx, workers, request, tasks(inUnits(r.ranges(ctx, size), r.unit), request, zeroTask), r.rebase)
	return r.stats, err
}

// rebaseUnit returns in which steps the two images are compared, in bytes: that in which the overlay allocates, as far as a request holds it.
func rebaseUnit(i block.Info, request int64) int64 {
	u := max(i.PreferredBlock, page)
	for u > request {
		u /= 2
	}
	return u
}

// rebasing is one call of Rebase.
type rebasing struct {
	progress
	overlay, old, new block.Device
	unit              int64
}

// ranges yields where the overlay holds nothing, and which of the two images has data there that has to be compared.
func (r *rebasing) ranges(ctx context.Context, size int64) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		files := sameFiles{}
		for e, err := range together(ctx, size, r.overlay, r.old, r.new) {
			if err != nil {
				yield(task{}, err)
				return
			}
			t := task{off: e[0].Off, n: e[0].Len, kind: dataIn(e[1], readA) | dataIn(e[2], readB)}
			switch {
			case held(e[0]):
				t.kind = leave
			case files.samePlace(ctx, r.old, r.new, e[1], e[2]):
				t.kind = 0
			}
			if !yield(t, nil) {
				return
			}
		}
	}
}

// inUnits makes ranges change their kind at multiples of unit, and at the ends of what is left, by reading more than has to be read: what
// is then written are whole units. What needs no reading is left.
func inUnits(ranges iter.Seq2[task, error], unit int64) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		var t task // so far
		done := func() bool {
			if t.kind == 0 {
				t.kind = leave
			}
			return t.n == 0 || yield(t, nil)
		}
		for r, err := range ranges {
			if err != nil {
				if done() {
					yield(task{}, err)
				}
				return
			}
			for r.n > 0 {
				n := min(r.n, unit-r.off%unit)
				if n == unit {
					n = block.RoundDown(r.n, unit)
				}
				if r.off%unit != 0 && t.n > 0 && (t.kind^r.kind)&leave == 0 {
					t.n, t.kind = t.n+n, t.kind|r.kind
				} else {
					if !done() {
						return
					}
					t = task{off: r.off, n: n, kind: r.kind}
				}
				r.off, r.n = r.off+n, r.n-n
			}
		}
		done()
	}
}

// sameFiles remembers which open files are the same one.
type sameFiles map[[2]*os.File]bool

// samePlace reports whether the extents of a and b are the same bytes of the same file. Names alone do not say so: a device gives its own.
func (s sameFiles) samePlace(ctx context.Context, a, b block.Device, x, y block.Extent) bool {
	if x.Node == "" || x.Node != y.Node || x.NodeOff != y.NodeOff {
		return false
	}
	p, release, ok := block.Pin(ctx, a, x.Off, x.Len)
	if !ok {
		return false
	}
	defer release()
	q, release, ok := block.Pin(ctx, b, y.Off, y.Len)
	if !ok {
		return false
	}
	defer release()
	if p.Off != q.Off || p.Len != x.Len || q.Len != y.Len {
		return false
	}
	pair := [2]*os.File{p.File, q.File}
	same, known := s[pair]
	if !known {
		f, errF := p.File.Stat()
		g, errG := q.File.Stat()
		same = errF == nil && errG == nil && os.SameFile(f, g)
		s[pair] = same
	}
	return same
}

// rebase deals with one task.
func (r *rebasing) rebase(ctx context.Context, t task, b *buffers) error {
	if t.kind&leave != 0 {
		r.add(t.n, func(s *Stats) { s.Left += t.n })
		return nil
	}
	p, q := b.first(t.n), b.second(t.n)
	if err := readPart(ctx, r.old, t.kind&readA != 0, p, t.off); err != nil {
		return err
	}
	if err := readPart(ctx, r.new, t.kind&readB != 0, q, t.off); err != nil {
		return err
	}
	written, err := r.keep(ctx, p, q, t.off)
	if err != nil {
		return err
	}
	r.add(t.n, func(s *Stats) { s.Read, s.Written = s.Read+t.n, s.Written+written })
	return nil
}

// readPart fills p from d, or with zeros where d holds no data or has ended.
func readPart(ctx context.Context, d block.Device, data bool, p []byte, off int64) error {
	n := int64(0)
	if data {
		n = min(int64(len(p)), d.Size()-off)
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if err := d.Read(ctx, p[:n], off); err != nil {
		return unread(ctx, d, p[:n], off, err)
	}
	return nil
}

// keep writes to the overlay the units of p, which lies at off, that are others in q, and returns how many bytes that were.
func (r *rebasing) keep(ctx context.Context, p, q []byte, off int64) (written int64, err error) {
	const same, zero, data = 0, 1, 2
	n := int64(len(p))
	what := func(i, j int64) int {
		switch {
		case bytes.Equal(p[i:j], q[i:j]):
			return same
		case block.IsZero(p[i:j]):
			return zero
		}
		return data
	}
	next := func(i int64) int64 { return min(n, i+r.unit-(off+i)%r.unit) }
	for i := int64(0); i < n; {
		kind, j := what(i, next(i)), next(i)
		for j < n && what(j, next(j)) == kind {
			j = next(j)
		}
		switch kind {
		case data:
			err = r.overlay.Write(ctx, p[i:j], off+i, 0)
		case zero:
			err = holdZeros(ctx, r.overlay, off+i, j-i)
		}
		if err != nil {
			return written, failure(Write, off+i, err)
		}
		if kind != same {
			written += j - i
		}
		i = j
	}
	return written, nil
}

// holdZeros makes the range of overlay zero by what overlay holds itself. A device that is zero there already, by a backing image or for want
// of one, may do nothing when it is asked to zero; then it is asked again to keep the range, and where that does not help zeros are written.
func holdZeros(ctx context.Context, overlay block.Device, off, n int64) error {
	if err := overlay.Zero(ctx, off, n, 0); err != nil {
		return err
	}
	lacks := func(e block.Extent) error { return overlay.Zero(ctx, e.Off, e.Len, block.NoHole) }
	if err := whereNotHeld(ctx, overlay, off, n, lacks); err != nil {
		return err
	}
	return whereNotHeld(ctx, overlay, off, n, func(e block.Extent) error { return block.WriteZeros(ctx, overlay, e.Off, e.Len, 0) })
}

// whereNotHeld calls f for the extents of the range that overlay does not hold.
func whereNotHeld(ctx context.Context, overlay block.Device, off, n int64, f func(block.Extent) error) error {
	for e, err := range extents(ctx, overlay, off, off+n) {
		if err == nil && !held(e) {
			err = f(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Commit writes to base what overlay itself holds, zeros as zeros, so that base reads as overlay does. base is what lies directly under
// overlay, or reads as that does; it is lengthened to the size of overlay where it is shorter, and never shortened. Options.ZeroGranule says
// which zeros become holes of base, as for Copy. In the Stats, Left is what overlay does not hold.
func Commit(ctx context.Context, overlay, base block.Device, o Options) (Stats, error) {
	size := overlay.Size()
	if err := makeRoom(ctx, base, size); err != nil {
		return Stats{}, fmt.Errorf("base image: %w", err)
	}
	o.TargetIsZero = false
	workers, request := o.limits(DefaultRequest, 1, base, overlay)
	c := newCopier(base, o, size)
	c.stats.Size = size
	err := each(ctx, workers, request, tasks(ranges(ctx, overlay, held), request, c.longestZeros(request)), func(ctx context.Context, t task, b *buffers) error {
		return c.copy(ctx, overlay, t, b)
	})
	return c.stats, err
}
