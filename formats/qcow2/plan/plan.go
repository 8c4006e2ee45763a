package plan

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/segment"
)

// New returns an image of what src holds. o.Size is not used. With a backing file, what src has below its own layer (extents of a
// Depth above 0) is left to it. The plan reads src under ctx while it is written. An image with a data file is made by Empty: here it gives
// errors.ErrUnsupported.
func New(ctx context.Context, src block.Device, o formats.CreateOptions, opts Options) (*segment.Plan, error) {
	g, err := opts.resolve(src.Size(), o.Compress)
	if err != nil {
		return nil, err
	}
	if g.DataFile != "" {
		return nil, errDataFile
	}
	w := newWriter(ctx, g, src)
	p := w.plan()
	switch {
	case !o.OneWay:
	case g.compress:
		p.NeedsPatches, p.Patches = false, nil
		p.Work *= 2
		p.Segments = w.twice(o.Memory)
	default:
		w.keepsZeros = true
		p.NeedsPatches, p.Patches = false, nil
		p.Segments = w.foreseen()
	}
	return p, nil
}

// errDataFile is what New and NewStream refuse.
var errDataFile = block.ErrorOf(errors.ErrUnsupported, "an image with a data file is two files, which cannot be written from front to back")

// Empty returns an image of o.Size bytes without data, preallocated as opts say; what lies in a data file is not in the plan.
func Empty(ctx context.Context, o formats.CreateOptions, opts Options) (*segment.Plan, error) {
	if o.Size < 0 {
		return nil, errors.New("the size of the image is not known")
	}
	g, err := opts.resolve(o.Size, false)
	if err != nil {
		return nil, err
	}
	return newWriter(ctx, g, nothing{block.NewNull(o.Size)}).plan(), nil
}

// nothing is a device that lets the backing file through.
type nothing struct{ block.Device }

func (n nothing) Extents(ctx context.Context, m block.Map, off, size int64, buf []block.Extent) ([]block.Extent, error) {
	base := len(buf)
	buf, err := n.Device.Extents(ctx, m, off, size, buf)
	for i := base; i < len(buf); i++ {
		buf[i].Depth = 1
	}
	return buf, err
}

// writer makes the segments of a file.
type writer struct {
	*geometry
	runs       func() iter.Seq2[*run, error] // anew for each pass
	src        block.Device                  // nil where runs have their bytes,
	recycle    func([]byte)                  // which are given back when they have been read
	keepsZeros bool                          // zeros in data are stored
	packers    sync.Pool
	kept       *keeper // nil for none
	layout     *layout
	covered    int64 // bytes of the disk that the runs of a pass have counted as work
}

func newWriter(ctx context.Context, g *geometry, src block.Device) *writer {
	w := &writer{geometry: g, src: src, layout: newLayout(g.header)}
	w.runs = func() iter.Seq2[*run, error] { return g.runs(ctx, src) }
	w.keepsZeros = g.backing && g.header.Version < 3 // zeros that are not stored would show the backing file
	return w
}

// plan returns the plan of a file whose header is written last.
func (w *writer) plan() *segment.Plan {
	buffer := w.runLen(w.src)
	if w.compress {
		buffer += buffer + w.packerBytes()/2 // as it is read, and as it is written; half of the segments wait
	}
	return &segment.Plan{
		Work:         max(w.size, 0),
		Buffer:       buffer,
		NeedsPatches: true,
		Segments: func(yield func(segment.Segment, error) bool) {
			_ = yield(segment.Segment{Zeros: w.ClusterSize}, nil) && w.body(w.layout, w.segment, yield) && yield(w.tail(), nil)
		},
		Patches: func() ([]segment.Patch, error) {
			p, err := w.layout.header.Encode()
			return []segment.Patch{{Bytes: p}}, err
		},
	}
}

// body yields what stands between the header and the tail of a file that l follows: a segment for each run, and the tables at the end of each batch.
func (w *writer) body(l *layout, segmentOf func(*run) segment.Segment, yield func(segment.Segment, error) bool) bool {
	batch := int64(0)
	w.covered = 0
	for r, err := range w.runs() {
		if err != nil {
			return yield(segment.Segment{}, err)
		}
		if b := r.first * w.ClusterSize / w.batch(); b != batch {
			batch = b
			if !yield(l.flushed(l == w.layout), nil) {
				return false
			}
		}
		w.covered += r.work
		if !yield(segmentOf(r), nil) {
			return false
		}
	}
	return true
}

// flushed returns a segment of what l has to write at the end of a batch; it has no bytes where they are only counted.
func (l *layout) flushed(written bool) segment.Segment {
	return segment.Segment{Late: func() ([]byte, error) {
		p, err := l.flush()
		if !written {
			p = nil
		}
		return p, err
	}}
}

// segment returns the segment of a run.
func (w *writer) segment(r *run) segment.Segment {
	s := segment.Segment{Work: r.work, Solid: w.prealloc == formats.PreallocFalloc || w.prealloc == formats.PreallocFull}
	switch {
	case w.DataFile != "":
	case r.units == nil:
		if w.prealloc != formats.PreallocOff {
			s.Zeros = r.n * w.ClusterSize
		}
	case w.compress:
		s.Fill = func(ctx context.Context, buf []byte) ([]byte, error) { return w.fillPacked(ctx, r, buf) }
	default:
		s.Fill = func(ctx context.Context, buf []byte) ([]byte, error) { return w.fillPlain(ctx, r, buf) }
	}
	s.Fit = func(off int64, p []byte) ([]byte, error) {
		var places []int64
		if r.lens != nil {
			places = make([]int64, r.n)
		}
		end, err := w.place(w.layout, r, off, places)
		if err != nil || s.Fill == nil {
			return nil, err
		}
		return spread(p, r.lens, places, off, end), nil
	}
	return s
}

// tail returns the last segment.
func (w *writer) tail() segment.Segment {
	return segment.Segment{Work: w.size - w.covered, Late: func() ([]byte, error) { return w.layout.finish(w.size) }}
}

// headerCluster returns the first cluster of a file that is laid out.
func headerCluster(h *ondisk.Header) ([]byte, error) {
	p, err := h.Encode()
	return append(p, make([]byte, h.ClusterSize()-int64(len(p)))...), err
}

// errChanged is what writing to a pipe fails with where the file does not get as it was foreseen.
var errChanged = block.WithHint(errors.New("the source has changed while it was read"), "write to a file, or from a source that nobody writes to")

// checkedTail is tail for a file whose header has been written.
func (w *writer) checkedTail(header *[]byte) segment.Segment {
	return segment.Segment{Work: w.size - w.covered, Late: func() ([]byte, error) {
		p, err := w.layout.finish(w.size)
		if err != nil {
			return nil, err
		}
		now, err := headerCluster(&w.layout.header)
		if err == nil && !bytes.Equal(now, *header) {
			err = errChanged
		}
		return p, err
	}}
}

// foreseen yields a file without compression whose header comes first: where everything lies follows from the extents of the source.
func (w *writer) foreseen() iter.Seq2[segment.Segment, error] {
	return func(yield func(segment.Segment, error) bool) {
		header, err := w.foresee()
		if err != nil {
			yield(segment.Segment{}, err)
			return
		}
		_ = yield(segment.Segment{Bytes: header}, nil) && w.body(w.layout, w.segment, yield) && yield(w.checkedTail(&header), nil)
	}
}

// foresee lays the file out without its data, and returns its header.
func (w *writer) foresee() ([]byte, error) {
	l, batch := newLayout(w.geometry.header), int64(0)
	for r, err := range w.runs() {
		if err != nil {
			return nil, err
		}
		if b := r.first * w.ClusterSize / w.batch(); b != batch {
			batch = b
			if _, err := l.flush(); err != nil {
				return nil, err
			}
		}
		if r.units != nil {
			r.lens = make([]int32, r.n)
			for i := range r.lens {
				if w.sift(r, i, nil) {
					r.lens[i] = int32(w.ClusterSize)
				}
			}
		}
		if _, err := w.place(l, r, l.end, nil); err != nil {
			return nil, err
		}
	}
	if _, err := l.finish(w.size); err != nil {
		return nil, err
	}
	return headerCluster(&l.header)
}
