package block

import (
	"context"
	"errors"
	"io"
	"testing"
)

// striped has an extent for every step bytes, describes batch of them at a time at most, and fails from bad on.
type striped struct {
	Device
	step, bad int64
	batch     int
	asked     int
}

func (d *striped) Extents(_ context.Context, _ Map, off, n int64, buf []Extent) ([]Extent, error) {
	d.asked++
	if off >= d.bad {
		return buf, errStriped
	}
	for end, k := off+n, 0; off < end && k < d.batch; k++ {
		next := min(RoundDown(off, d.step)+d.step, end)
		buf, off = append(buf, Extent{Off: off, Len: next - off}), next
	}
	return buf, nil
}

var errStriped = errors.New("bad stripe")

func TestWalk(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		step, off, end, bad int64
		batch               int
		err                 error
		most                int // calls of Extents
	}{
		{gib, 0, 1000 * gib, 1 << 60, 1 << 20, nil, 20}, // few extents: the window grows
		{1 << 16, 0, 3 * gib, 1 << 60, 1 << 20, nil, 3}, // many: it does not
		{gib, 5, 10*gib + 7, 1 << 60, 1, nil, 11},       // one at a time, from and to anywhere
		{gib, 0, 100 * gib, 3 * gib, 1, errStriped, 4},  // the error says where
		{gib, 7, 8, 1 << 60, 0, io.ErrNoProgress, 1},    // nothing is described
		{gib, 9, 9, 0, 1, nil, 0},                       // nothing is asked
	} {
		d := &striped{Device: NewNull(1 << 50), step: c.step, bad: c.bad, batch: c.batch}
		at := c.off
		var failed error
		for e, err := range Walk(t.Context(), d, Map{}, c.off, c.end) {
			if e.Off != at || e.End() > c.end {
				t.Fatalf("%+v: extent %+v after byte %d", c, e, at)
			}
			if err != nil {
				failed = err
				continue
			}
			at = e.End()
		}
		if !errors.Is(failed, c.err) || c.err == nil && (failed != nil || at != c.end) || d.asked > c.most {
			t.Errorf("%+v: %v, ended at %d, asked %d times", c, failed, at, d.asked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := &striped{Device: NewNull(1 << 50), step: gib, bad: 1 << 60, batch: 1}
	for e, err := range Walk(ctx, d, Map{}, 0, 10*gib) {
		if cancel(); e.Off > 0 && !errors.Is(err, context.Canceled) {
			t.Fatalf("%+v, %v after the context has ended", e, err)
		}
	}
}
