package segment

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// Options for Write. The zero value is a good default.
type Options struct {
	// Workers is how many Fill functions run at once; 0 means one per processor.
	Workers int
	// Memory bounds the memory of segments that are being filled or wait for their turn, in bytes; 0 means DefaultMemory. One is always in work.
	Memory int64
	// Progress is told how much of the plan's Work is written. Calls come from one goroutine.
	Progress func(done, total int64)
}

// DefaultMemory is the budget where none is given, in bytes.
const DefaultMemory = 256 << 20

// limits returns how many workers there are, and how many filled segments may wait.
func (o Options) limits(p *Plan) (workers, waiting int) {
	workers = o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	waiting = 2 * workers
	if p.Buffer > 0 {
		memory := o.Memory
		if memory <= 0 {
			memory = DefaultMemory
		}
		fit := int(min(memory/p.Buffer, 1<<16))
		workers = max(min(workers, (fit+1)/2), 1)
		waiting = max(min(waiting, fit-workers), 1)
	}
	return workers, waiting
}

// job is a segment on its way from the plan, through a worker if it has a Fill, to the writer.
type job struct {
	Segment
	filled chan struct{} // closed when data and err are set
	data   []byte
	err    error
}

// Write writes the plan to s and returns the length of the output. On an error, cancellation included, it returns when all workers
// have stopped; what was written so far is the caller's to throw away.
func Write(ctx context.Context, s Sink, p *Plan, o Options) (int64, error) {
	workers, waiting := o.limits(p)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	ordered := make(chan *job, waiting)
	work := make(chan *job)
	buffers := make(chan []byte, waiting+workers+1)
	wg.Go(func() { dispatch(ctx, p, ordered, work) })
	for range workers {
		wg.Go(func() {
			for j := range work {
				var buf []byte
				select {
				case buf = <-buffers:
				default:
				}
				j.data, j.err = j.Fill(ctx, buf[:0])
				close(j.filled)
			}
		})
	}
	w := writer{sink: s, plan: p, progress: o.Progress, buffers: buffers}
	for j := range ordered {
		if err := w.place(ctx, j); err != nil {
			return w.off, err
		}
	}
	if err := ctx.Err(); err != nil {
		return w.off, err
	}
	return w.off, w.finish(ctx)
}

// dispatch sends every segment to the writer in order, and those with a Fill to the workers as well. It closes both channels.
func dispatch(ctx context.Context, p *Plan, ordered, work chan<- *job) {
	defer close(ordered)
	defer close(work)
	for seg, err := range p.Segments {
		j := &job{Segment: seg, err: err}
		if seg.Fill != nil && err == nil {
			j.filled = make(chan struct{})
		}
		select {
		case ordered <- j:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		if j.filled != nil {
			select {
			case work <- j:
			case <-ctx.Done():
				return
			}
		}
	}
}

// writer puts segments at their places.
type writer struct {
	sink     Sink
	plan     *Plan
	progress func(done, total int64)
	buffers  chan<- []byte
	off      int64
	done     int64
}

func (w *writer) place(ctx context.Context, j *job) error {
	if j.filled != nil {
		select {
		case <-j.filled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if j.err != nil {
		return j.err
	}
	n, err := w.put(ctx, j)
	if err != nil {
		return err
	}
	if j.Placed != nil {
		j.Placed(w.off, n)
	}
	w.off += n
	w.done += j.Work
	if w.progress != nil && j.Work > 0 {
		w.progress(w.done, w.plan.Work)
	}
	return ctx.Err()
}

func (w *writer) put(ctx context.Context, j *job) (int64, error) {
	switch {
	case j.filled != nil:
		err := w.sink.Write(ctx, j.data)
		select {
		case w.buffers <- j.data:
		default:
		}
		return int64(len(j.data)), err
	case j.Late != nil:
		p, err := j.Late()
		if err != nil {
			return 0, err
		}
		return int64(len(p)), w.sink.Write(ctx, p)
	case j.Zeros > 0:
		return j.Zeros, w.sink.Zeros(ctx, j.Zeros)
	default:
		return int64(len(j.Bytes)), w.sink.Write(ctx, j.Bytes)
	}
}

func (w *writer) finish(ctx context.Context) error {
	if w.plan.Patches != nil {
		patches, err := w.plan.Patches()
		if err != nil {
			return err
		}
		for _, p := range patches {
			if err := w.sink.Patch(ctx, p); errors.Is(err, errors.ErrUnsupported) {
				break
			} else if err != nil {
				return fmt.Errorf("writing again %d bytes at byte %d: %w", len(p.Bytes), p.Off, err)
			}
		}
	}
	return w.sink.Finish(ctx, w.off)
}
