package blocktest

import (
	"context"
	"sync"
	"time"

	"github.com/imgtool/imgtool/block"
)

// Op is a kind of operation; as a set, several of them.
type Op uint16

// The kinds of operation, named as the methods.
const (
	OpRead Op = 1 << iota
	OpWrite
	OpZero
	OpDiscard
	OpExtents
	OpPrefetch
	OpResize
	OpFlush
	OpClose
	// OpMark is not an operation but a label in a Log.
	OpMark

	// OpAny is every operation.
	OpAny = OpMark - 1
)

// Fault says which operations go wrong, and how. Its conditions must all hold; the zero value of each is no condition. Operations
// count one by one, in the order in which they are called.
type Fault struct {
	Ops Op // which kinds; 0 means any

	// Off and Len restrict the fault to operations that touch this range, in bytes; a Len of 0 means anywhere. Flush, Resize and
	// Close touch none.
	Off, Len int64

	// Nth is the first operation that goes wrong of those that match the conditions above, from 1 on.
	Nth int
	// Bytes is how many bytes such operations can move before one goes wrong: that which would pass the limit. A write stores what
	// is left below the limit, as when a disk is full.
	Bytes int64
	// Times is how many operations go wrong; 0 means all from the first on.
	Times int

	// Delay is how long the operation takes longer. The context cuts it short.
	Delay time.Duration
	// Err is what the operation returns, without being done. Nil means that it is done, after Delay.
	Err error
}

// Faulty is a device whose operations go wrong as planned.
type Faulty struct {
	block.Filter

	mu     sync.Mutex
	faults []faultState
}

type faultState struct {
	Fault
	seen, hit int
	moved     int64
}

// NewFaulty returns d with the faults of the plan. Ranges cannot be pinned, because nobody sees what happens to them.
func NewFaulty(d block.Device, plan ...Fault) *Faulty {
	f := &Faulty{Filter: block.Filter{Device: d}}
	f.Plan(plan...)
	return f
}

// Plan replaces the plan, and starts counting again. An empty one makes the device healthy.
func (f *Faulty) Plan(plan ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
	for _, fault := range plan {
		f.faults = append(f.faults, faultState{Fault: fault})
	}
}

// Hits returns how many operations each fault of the plan has hit.
func (f *Faulty) Hits() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hits []int
	for _, s := range f.faults {
		hits = append(hits, s.hit)
	}
	return hits
}

// next counts an operation for the fault. It reports whether it goes wrong, and how many of its n bytes are still moved.
func (s *faultState) next(op Op, off, n int64) (hit bool, left int64) {
	if s.Ops != 0 && s.Ops&op == 0 || s.Len != 0 && (off-s.Off >= s.Len || s.Off-off >= n) {
		return false, n
	}
	s.seen++
	before := s.moved
	if op&(OpRead|OpWrite|OpZero) != 0 {
		s.moved += n
	}
	if s.seen < s.Nth || s.Bytes > 0 && s.moved <= s.Bytes || s.Times > 0 && s.hit >= s.Times {
		return false, n
	}
	s.hit++
	if s.Bytes > 0 {
		return true, max(0, s.Bytes-before)
	}
	return true, 0
}

// meet applies the plan to an operation: it waits, and returns the error of the first fault that has one, and how many bytes an
// operation which fails still moves.
func (f *Faulty) meet(ctx context.Context, op Op, off, n int64) (left int64, err error) {
	var delay time.Duration
	f.mu.Lock()
	for i := range f.faults {
		s := &f.faults[i]
		hit, k := s.next(op, off, n)
		if !hit {
			continue
		}
		delay += s.Delay
		if s.Err != nil && err == nil {
			left, err = k, s.Err
		}
	}
	f.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return left, err
}

// Read implements block.Device.
func (f *Faulty) Read(ctx context.Context, p []byte, off int64) error {
	if _, err := f.meet(ctx, OpRead, off, int64(len(p))); err != nil {
		return err
	}
	return f.Device.Read(ctx, p, off)
}

// Write implements block.Device.
func (f *Faulty) Write(ctx context.Context, p []byte, off int64, fl block.Flags) error {
	left, err := f.meet(ctx, OpWrite, off, int64(len(p)))
	if err == nil {
		return f.Device.Write(ctx, p, off, fl)
	}
	if left > 0 {
		if err := f.Device.Write(ctx, p[:left], off, fl); err != nil {
			return err
		}
	}
	return err
}

// Zero implements block.Device.
func (f *Faulty) Zero(ctx context.Context, off, n int64, fl block.Flags) error {
	if _, err := f.meet(ctx, OpZero, off, n); err != nil {
		return err
	}
	return f.Device.Zero(ctx, off, n, fl)
}

// Discard implements block.Device.
func (f *Faulty) Discard(ctx context.Context, off, n int64) error {
	if _, err := f.meet(ctx, OpDiscard, off, n); err != nil {
		return err
	}
	return f.Device.Discard(ctx, off, n)
}

// Extents implements block.Device.
func (f *Faulty) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if _, err := f.meet(ctx, OpExtents, off, n); err != nil {
		return buf, err
	}
	return f.Device.Extents(ctx, m, off, n, buf)
}

// Prefetch implements block.Device.
func (f *Faulty) Prefetch(ctx context.Context, off, n int64) error {
	if _, err := f.meet(ctx, OpPrefetch, off, n); err != nil {
		return err
	}
	return f.Device.Prefetch(ctx, off, n)
}

// Resize implements block.Device.
func (f *Faulty) Resize(ctx context.Context, size int64) error {
	if _, err := f.meet(ctx, OpResize, 0, 0); err != nil {
		return err
	}
	return f.Device.Resize(ctx, size)
}

// Flush implements block.Device.
func (f *Faulty) Flush(ctx context.Context) error {
	if _, err := f.meet(ctx, OpFlush, 0, 0); err != nil {
		return err
	}
	return f.Device.Flush(ctx)
}

// Close closes the device below, and then may go wrong.
func (f *Faulty) Close() error {
	err := f.Device.Close()
	if _, fault := f.meet(context.Background(), OpClose, 0, 0); fault != nil {
		return fault
	}
	return err
}

// Pin refuses.
func (f *Faulty) Pin(context.Context, int64, int64) (block.FileRange, func(), bool) {
	return block.FileRange{}, nil, false
}
