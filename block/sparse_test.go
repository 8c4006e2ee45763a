package block

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestBitset(t *testing.T) {
	const size = 5 * int64(bitsPerBlock)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var s bitset
		model := make([]bool, size)
		for range rnd.IntN(12) {
			a := rnd.Int64N(size)
			b := a + rnd.Int64N(min(size-a, 3000)+1)
			s.add(a, b)
			for i := a; i < b; i++ {
				model[i] = true
			}
		}
		for range 200 {
			a := rnd.Int64N(size)
			end := a + 1 + rnd.Int64N(size-a)
			in, next := s.run(a, end)
			want := a
			for want < end && model[want] == model[a] {
				want++
			}
			if in != model[a] || next != want {
				t.Fatalf("run of %d up to %d: %v up to %d, want %v up to %d", a, end, in, next, model[a], want)
			}
		}
	}
}

func TestBitsetHuge(t *testing.T) {
	var s bitset
	const far = 1 << 51
	s.add(far, far+3)
	if in, next := s.run(0, 1<<52); in || next != far {
		t.Errorf("%v up to %d", in, next)
	}
	if in, next := s.run(far+1, 1<<52); !in || next != far+3 {
		t.Errorf("%v up to %d", in, next)
	}
	if in, next := s.run(far+3, 1<<52); in || next != 1<<52 {
		t.Errorf("%v up to %d", in, next)
	}
}

// Exclusive locks on the same byte never overlap; those on others do not wait.
func TestRangeLocks(t *testing.T) {
	var l RangeLocks
	var wait sync.WaitGroup
	var bytes [64]int // each is guarded by the lock on it: the race detector watches
	for g := range 8 {
		rnd := rand.New(rand.NewPCG(uint64(g), 0))
		wait.Go(func() {
			for range 300 {
				off := rnd.Int64N(60)
				end := off + 1 + rnd.Int64N(4)
				shared := rnd.IntN(2) == 0
				r, err := l.Lock(context.Background(), off, end, shared)
				if err != nil {
					t.Error(err)
					return
				}
				for i := off; i < end; i++ {
					if shared {
						_ = bytes[i]
					} else {
						bytes[i]++
					}
				}
				l.Unlock(r)
			}
		})
	}
	wait.Wait()
	if len(l.locks) != 0 {
		t.Errorf("%d locks are left", len(l.locks))
	}
}

func TestRangeLocksCancel(t *testing.T) {
	var l RangeLocks
	ctx := context.Background()
	held, err := l.Lock(ctx, 0, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := l.Lock(short, 5, 15, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a held lock: %v", err)
	}
	other, err := l.Lock(ctx, 10, 20, false) // the one that gave up must not be in the way
	if err != nil {
		t.Fatal(err)
	}
	l.Unlock(other)
	l.Unlock(held)
	if len(l.locks) != 0 {
		t.Errorf("%d locks are left", len(l.locks))
	}
}
