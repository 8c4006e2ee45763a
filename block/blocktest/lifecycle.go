package blocktest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func describe(e block.Extent) string { return fmt.Sprintf("%+v", e) }

// cancel checks that calls whose context is cancelled return, with its error where they fail, and leave the device usable.
func (s suite) cancel(t *testing.T) {
	d, m := s.open(t), s.model(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	half := s.Size / 2
	for _, c := range calls() {
		err := within(t, c.name+" with a cancelled context", func() error { return c.do(cancelled, d, 0, half) })
		s.checkCancelled(t, c, err)
	}
	err := within(t, "Flush with a cancelled context", func() error { return d.Flush(cancelled) })
	s.checkCancelled(t, call{name: "Flush"}, err)

	// Now in the middle of calls.
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		started := make(chan struct{}, len(calls()))
		for _, c := range calls() {
			wait.Go(func() {
				started <- struct{}{}
				for range 10 {
					if err := c.do(ctx, d, 0, half); err != nil {
						s.checkCancelled(t, c, err)
						return
					}
				}
			})
		}
		<-started
		cancel()
		within(t, "a call whose context was cancelled", func() error { wait.Wait(); return nil })
	}
	if s.ReadOnly {
		check(t, d, m, "after cancelled calls")
		return
	}
	// The first half holds old or new bytes; once written again it is known.
	r := newRunner(s.Config, d, m, &dice{rnd: s.rand(11)})
	r.m.discard(0, half)
	data := r.bytes(half)
	ctx := t.Context()
	if err := r.changed(ctx, d.Write(ctx, data, 0, 0), "write after cancelled calls", data, 0, half); err != nil {
		t.Fatal(err)
	}
	check(t, d, r.m, "after cancelled calls")
}

// checkCancelled accepts success, the context's error, and refusals that have nothing to do with it.
func (s suite) checkCancelled(t *testing.T, c call, err error) {
	t.Helper()
	if err == nil || errors.Is(err, context.Canceled) || c.changes && errors.Is(err, block.ErrReadOnly) {
		return
	}
	t.Errorf("%s with a cancelled context: %v, want %v", c.name, err, context.Canceled)
}

// close checks that Close waits for calls in flight, and that later calls are told.
func (s suite) close(t *testing.T) {
	d := s.open(t)
	ctx := t.Context()
	if s.StaysOpen {
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		check(t, d, s.model(t), "after a Close that does nothing")
		return
	}
	var wait sync.WaitGroup
	started := make(chan struct{}, len(calls()))
	for _, c := range calls() {
		wait.Go(func() {
			for i := 0; ; i++ {
				err := c.do(ctx, d, int64(i)%(s.Size-600), 600)
				if i == 0 {
					started <- struct{}{}
				}
				if err != nil {
					s.checkClosed(t, c, err)
					return
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	if err := within(t, "Close", d.Close); err != nil {
		t.Errorf("Close: %v", err)
	}
	within(t, "a call on a closed device", func() error { wait.Wait(); return nil })

	for _, c := range calls() {
		s.checkClosed(t, c, within(t, c.name+" after Close", func() error { return c.do(ctx, d, 0, 600) }))
	}
	if err := d.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v, want %v", err, os.ErrClosed)
	}
	if err := d.Flush(ctx); !errors.Is(err, os.ErrClosed) && !(s.ReadOnly && err == nil) {
		t.Errorf("Flush after Close: %v, want %v", err, os.ErrClosed)
	}
	err := d.Resize(ctx, s.Size)
	supported := d.Info().Caps.Resize
	if !errors.Is(err, os.ErrClosed) && (supported || !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, block.ErrReadOnly)) {
		t.Errorf("Resize after Close: %v, want %v", err, os.ErrClosed)
	}
}

func (s suite) checkClosed(t *testing.T, c call, err error) {
	t.Helper()
	if !errors.Is(err, os.ErrClosed) && !(c.changes && errors.Is(err, block.ErrReadOnly)) {
		t.Errorf("%s after Close: %v, want %v", c.name, err, os.ErrClosed)
	}
}
