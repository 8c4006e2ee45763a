package plan

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/imgtool/imgtool/segment"
)

// defaultKept is how many compressed bytes are kept from the first pass where nobody says.
const defaultKept = 256 << 20

// twice yields a compressed file whose header comes first. The first segments compress everything and have no bytes: they tell how long it gets. What
// fits into memory is kept from then on.
func (w *writer) twice(memory int64) iter.Seq2[segment.Segment, error] {
	if memory <= 0 {
		memory = defaultKept
	}
	return func(yield func(segment.Segment, error) bool) {
		w.kept = &keeper{room: memory, runs: map[int64]*run{}}
		first := newLayout(w.geometry.header)
		var header []byte
		_ = w.body(first, w.rehearsal(first), yield) &&
			yield(segment.Segment{Work: w.size - w.covered, Late: func() (p []byte, err error) {
				if _, err = first.finish(w.size); err == nil {
					header, err = headerCluster(&first.header)
				}
				return header, err
			}}, nil) &&
			w.body(w.layout, w.segment, yield) &&
			yield(w.checkedTail(&header), nil)
	}
}

// rehearsal returns the segments that only count.
func (w *writer) rehearsal(l *layout) func(*run) segment.Segment {
	return func(r *run) segment.Segment {
		s := segment.Segment{Work: r.work}
		if r.units != nil {
			s.Fill = func(ctx context.Context, buf []byte) ([]byte, error) {
				buf, err := w.fillPacked(ctx, r, buf)
				if err == nil {
					w.kept.put(r, buf)
				}
				return buf, err
			}
		}
		s.Fit = func(_ int64, p []byte) ([]byte, error) {
			_, err := w.place(l, r, l.end, nil)
			return p[:0], err
		}
		return s
	}
}

// keeper holds compressed runs as long as there is room.
type keeper struct {
	mu   sync.Mutex
	room int64 // bytes
	runs map[int64]*run
}

// put keeps a run and the stored bytes of its clusters.
func (k *keeper) put(r *run, packed []byte) {
	k.mu.Lock()
	fits := k.room >= int64(len(packed))
	if fits {
		k.room -= int64(len(packed))
	}
	k.mu.Unlock()
	if !fits {
		return
	}
	c := &run{units: r.units, lens: r.lens, packed: bytes.Clone(packed)}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.runs[r.first] = c
}

// take completes a run from what is kept, and returns its bytes; nil where nothing is.
func (k *keeper) take(r *run) []byte {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.runs[r.first]
	if c == nil {
		return nil
	}
	delete(k.runs, r.first)
	r.units, r.lens = c.units, c.lens
	return c.packed
}
