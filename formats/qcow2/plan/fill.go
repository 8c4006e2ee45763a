package plan

import (
	"context"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// read fills p, which has room for the run, with the bytes of its data; the rest is zero.
func (w *writer) read(ctx context.Context, r *run, p []byte) error {
	if r.source != nil {
		clear(p[copy(p, r.source):])
		if cap(r.source) > 0 {
			w.recycle(r.source)
		}
		return nil
	}
	start, size := r.first*w.ClusterSize, w.src.Size()
	unit := w.unit()
	for i := 0; i < len(r.units); {
		j := i + 1
		for j < len(r.units) && (r.units[j] == data) == (r.units[i] == data) {
			j++
		}
		off, end := start+int64(i)*unit, start+int64(j)*unit
		part := p[off-start : end-start]
		if r.units[i] == data {
			n := min(int64(len(part)), size-off)
			if err := w.src.Read(ctx, part[:n], off); err != nil {
				return err
			}
			part = part[n:]
		}
		clear(part)
		i = j
	}
	return nil
}

// sift looks for zeros in cluster i of a run, whose bytes are p, and reports whether it has to be stored.
func (w *writer) sift(r *run, i int, p []byte) bool {
	perCluster := len(r.units) / int(r.n)
	unit := len(p) / perCluster
	found := absent
	if w.backing {
		found = zero
	}
	store := w.prealloc != formats.PreallocOff
	for j, k := range r.units[i*perCluster:][:perCluster] {
		switch {
		case k != data:
		case !w.keepsZeros && block.IsZero(p[j*unit:][:unit]):
			r.units[i*perCluster+j] = found
		default:
			store = true
		}
	}
	return store
}

// fillPlain appends the clusters of the run that have to be stored.
func (w *writer) fillPlain(ctx context.Context, r *run, buf []byte) ([]byte, error) {
	n := int(r.n * w.ClusterSize)
	buf = slices.Grow(buf, n)[:n]
	if err := w.read(ctx, r, buf); err != nil {
		return nil, err
	}
	r.lens = make([]int32, r.n)
	kept := 0
	for i := range r.lens {
		p := buf[i*int(w.ClusterSize):][:w.ClusterSize]
		if !w.sift(r, i, p) {
			continue
		}
		if len(buf[kept:]) != len(buf[i*int(w.ClusterSize):]) {
			copy(buf[kept:], p)
		}
		kept += len(p)
		r.lens[i] = int32(len(p))
	}
	return buf[:kept], nil
}

// fillPacked appends the clusters of the run that have to be stored, compressed.
func (w *writer) fillPacked(ctx context.Context, r *run, buf []byte) ([]byte, error) {
	if packed := w.kept.take(r); packed != nil {
		return append(buf, packed...), nil
	}
	p, ok := w.packers.Get().(*packer)
	if !ok {
		var err error
		if p, err = w.newPacker(); err != nil {
			return nil, err
		}
	}
	defer w.packers.Put(p)
	n := int(r.n * w.ClusterSize)
	p.plain = slices.Grow(p.plain[:0], n)[:n]
	if err := w.read(ctx, r, p.plain); err != nil {
		return nil, err
	}
	r.lens = make([]int32, r.n)
	for i := range r.lens {
		c := p.plain[i*int(w.ClusterSize):][:w.ClusterSize]
		if w.sift(r, i, c) {
			before := len(buf)
			buf = p.pack(buf, c)
			r.lens[i] = int32(len(buf) - before)
		}
	}
	return buf, nil
}
