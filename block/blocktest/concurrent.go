package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
)

const (
	neighbours = 6 // goroutines with a range each
	rivals     = 3 // goroutines that write over each other
)

// concurrent checks that calls from many goroutines do not damage each other: neighbours share blocks and must lose nothing, rivals
// write to the same bytes, of which each must be one that was written.
func (s suite) concurrent(t *testing.T) {
	d, m := s.open(t), s.model(t)
	ctx := t.Context()
	shared := s.Size / 4 * 3 // the rivals' range begins here
	ops := s.Ops / 4
	errs := make(chan error, neighbours+rivals+1)
	var wait, watcher sync.WaitGroup
	for i := range int64(neighbours) {
		from, to := i*shared/neighbours|1, (i+1)*shared/neighbours|1
		r := newRunner(s.Config, d, m.part(from, to-from), &dice{rnd: s.rand(20 + uint64(i))})
		wait.Go(func() {
			for range ops {
				if err := r.step(ctx); err != nil {
					errs <- fmt.Errorf("neighbour %d of bytes %d to %d: %w", i, from, to, err)
					return
				}
			}
		})
	}
	shared |= 1
	for i := range byte(rivals) {
		wait.Go(func() {
			if err := s.rival(ctx, d, i+1, shared, ops); err != nil {
				errs <- fmt.Errorf("rival %d: %w", i, err)
			}
		})
	}
	stop := make(chan struct{})
	watcher.Go(func() {
		if err := watch(ctx, d, stop); err != nil {
			errs <- fmt.Errorf("watcher: %w", err)
		}
	})
	wait.Wait()
	close(stop)
	watcher.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	check(t, d, m.part(1, shared-1), "after concurrent operations of neighbours")
	s.checkRivals(t, d, m.part(shared, s.Size-shared))
}

// rival writes its number, or zeros, anywhere from off on.
func (s suite) rival(ctx context.Context, d block.Device, number byte, off int64, ops int) error {
	rnd := s.rand(40 + uint64(number))
	for i := range ops {
		n := 1 + rnd.Int64N(min(9000, s.Size-off))
		at := off + rnd.Int64N(s.Size-off-n+1)
		var err error
		if i%3 == 0 {
			err = d.Zero(ctx, at, n, block.Flags(rnd.Int64N(4)))
		} else {
			err = d.Write(ctx, bytes.Repeat([]byte{number}, int(n)), at, block.Flags(rnd.Int64N(2)))
		}
		if err != nil && !refused(ctx, d, err, at, n) {
			return err
		}
	}
	return nil
}

// checkRivals checks that every byte is one that a rival wrote, or was there.
func (s suite) checkRivals(t *testing.T, d block.Device, m *model) {
	t.Helper()
	got, err := readRange(t.Context(), d, m.base, int64(len(m.data)))
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if b > rivals && b != m.data[i] {
			t.Fatalf("byte %d reads as %#02x, which nobody wrote", m.base+int64(i), b)
		}
	}
	if _, err := mapped(t.Context(), d, 0, s.Size); err != nil {
		t.Fatal(err)
	}
}

// watch uses what concerns the whole device until stop is closed.
func watch(ctx context.Context, d block.Device, stop <-chan struct{}) error {
	for {
		if _, err := extents(ctx, d, block.Map{}, 0, d.Size()); err != nil {
			return err
		}
		if err := d.Flush(ctx); err != nil {
			return err
		}
		if err := d.Prefetch(ctx, 0, d.Size()); err != nil {
			return err
		}
		if r, release, ok := block.Pin(ctx, d, 0, d.Size()); ok {
			_ = r
			release()
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}
