package segment

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
)

// Options for Write. The zero value is a good default.
type Options struct {
	// Workers is how many Fill functions run at once; 0 means one per processor.
	Workers int
	// Memory bounds the memory of segments that are being filled or wait for their turn, in bytes; 0 means DefaultMemory. One is always in work.
	Memory int64
	// Progress is told how much of the plan's Work is written. Calls come one at a time, and done never falls.
	Progress func(done, total int64)
}

// DefaultMemory is the budget where none is given, in bytes.
const DefaultMemory = 256 << 20

// limits returns how many segments may be filled at once, and how many there may be between the plan and the output.
func (o Options) limits(p *Plan) (workers, segments int) {
	workers = o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	waiting := 2 * workers
	if p.Buffer > 0 {
		memory := o.Memory
		if memory <= 0 {
			memory = DefaultMemory
		}
		fit := int(min(memory/p.Buffer, 1<<16))
		workers = max(min(workers, (fit+1)/2), 1)
		waiting = max(min(waiting, fit-workers), 0)
	}
	return workers, workers + waiting
}

// Write writes the plan to s and returns the length of the output. A plan that needs patches is refused with errors.ErrUnsupported, before
// anything is written, where s goes one way. On an error, cancellation included, it returns when all workers have stopped; what was written so far
// is the caller's to throw away.
func Write(ctx context.Context, s Sink, p *Plan, o Options) (int64, error) {
	if p.NeedsPatches && s.OneWay() {
		return 0, block.WithHint(fmt.Errorf("the image is completed at its beginning when its end is written: to write it to a pipe is %w",
			errors.ErrUnsupported), "name a file as the target")
	}
	workers, segments := o.limits(p)
	e := &engine{
		sink: s, oneWay: s.OneWay(), plan: p, tell: o.Progress,
		room: make(chan struct{}, segments), slots: make(chan struct{}, workers), buffers: make(chan []byte, segments),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.dispatch(gctx, g) })
	if err := g.Wait(); err != nil {
		return e.off, err
	}
	if err := e.patch(ctx); err != nil {
		return e.off, err
	}
	return e.off, s.Finish(ctx, e.off)
}

// engine takes segments from the plan to the output. Each has a goroutine, which fills it, waits until it has a place, and writes it while its
// bytes are still in the processor's cache.
type engine struct {
	sink   Sink
	oneWay bool
	plan   *Plan

	room    chan struct{} // an element for each segment between the plan and the output
	slots   chan struct{} // an element for each that is being filled
	buffers chan []byte   // that have been written

	mu    sync.Mutex
	queue []*job // without a place yet, in order
	off   int64  // where the first of them will lie

	telling sync.Mutex
	done    int64 // Work that is written
	tell    func(done, total int64)
}

// job is a segment on its way.
type job struct {
	Segment
	filled bool   // its bytes are known as far as they can be before it has a place
	data   []byte // of every segment but Zeros
	off    int64
	placed chan struct{} // closed when off and data are set

	before  <-chan struct{} // closed when the segment before it is written; used where the output goes one way
	written chan struct{}
}

// dispatch starts a goroutine for every segment.
func (e *engine) dispatch(ctx context.Context, g *errgroup.Group) error {
	start := make(chan struct{})
	close(start)
	var before <-chan struct{} = start
	for seg, err := range e.plan.Segments {
		if err != nil {
			return err
		}
		if err := acquire(ctx, e.room); err != nil {
			return err
		}
		j := &job{Segment: seg, data: seg.Bytes, placed: make(chan struct{}), before: before, written: make(chan struct{})}
		before = j.written
		e.mu.Lock()
		e.queue = append(e.queue, j)
		e.mu.Unlock()
		if j.Fill != nil {
			if err := acquire(ctx, e.slots); err != nil {
				return err
			}
		}
		g.Go(func() error { return e.run(ctx, j) })
	}
	return ctx.Err()
}

func acquire(ctx context.Context, c chan<- struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run brings one segment into the output.
func (e *engine) run(ctx context.Context, j *job) error {
	if j.Fill != nil {
		var err error
		j.data, err = j.Fill(ctx, e.buffer())
		<-e.slots
		if err != nil {
			return err
		}
	}
	if err := e.place(j); err != nil {
		return err
	}
	for _, c := range []<-chan struct{}{j.placed, j.before} {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !e.oneWay {
			break
		}
	}
	if err := e.write(ctx, j); err != nil {
		return err
	}
	close(j.written)
	if j.Fill != nil {
		select {
		case e.buffers <- j.data[:0]:
		default:
		}
	}
	<-e.room
	e.report(j.Work)
	return ctx.Err()
}

// buffer returns a buffer to append to.
func (e *engine) buffer() []byte {
	select {
	case b := <-e.buffers:
		return b
	default:
		return nil
	}
}

// place says that j is filled, and gives places to all segments that can have theirs now.
func (e *engine) place(j *job) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	j.filled = true
	for len(e.queue) > 0 && e.queue[0].filled {
		first := e.queue[0]
		e.queue = e.queue[1:]
		if err := e.settle(first); err != nil {
			return err
		}
	}
	return nil
}

// settle gives a segment its place.
func (e *engine) settle(j *job) error {
	var err error
	switch {
	case j.Late != nil:
		j.data, err = j.Late()
	case j.Fit != nil:
		j.data, err = j.Fit(e.off, j.data)
	}
	if err != nil {
		return err
	}
	n := int64(len(j.data)) + j.Zeros
	end, ok := block.Add(e.off, n)
	if !ok {
		return &block.RangeError{Off: e.off, Len: n, Size: e.off}
	}
	if j.Placed != nil {
		j.Placed(e.off, n)
	}
	j.off, e.off = e.off, end
	close(j.placed)
	return nil
}

func (e *engine) write(ctx context.Context, j *job) error {
	var f block.Flags
	if j.Solid {
		f = block.NoHole
	}
	switch {
	case j.Zeros > 0:
		return e.sink.ZeroAt(ctx, j.off, j.Zeros, f)
	case len(j.data) > 0:
		return e.sink.WriteAt(ctx, j.data, j.off, f)
	}
	return nil
}

func (e *engine) report(work int64) {
	if work == 0 || e.tell == nil {
		return
	}
	e.telling.Lock()
	defer e.telling.Unlock()
	e.done += work
	e.tell(e.done, e.plan.Work)
}

// patch writes again what could not be known before, where the output can be.
func (e *engine) patch(ctx context.Context) error {
	if e.plan.Patches == nil {
		return nil
	}
	patches, err := e.plan.Patches()
	if err != nil || e.oneWay {
		return err
	}
	for _, p := range patches {
		if err := e.sink.WriteAt(ctx, p.Bytes, p.Off, block.NoHole); err != nil {
			return fmt.Errorf("writing again %d bytes at byte %d: %w", len(p.Bytes), p.Off, err)
		}
	}
	return nil
}
