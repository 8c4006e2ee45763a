package convert

import (
	"context"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
)

// WriteTo writes all of src to w, from the first byte to the last. Workers read ahead; zeros that the source knows are not read.
// The result does not depend on Options.ZeroGranule: a pipe has no holes. It returns once the Write in progress has returned: a
// w that blocks for ever is for the caller to close.
func WriteTo(ctx context.Context, src block.Device, w io.Writer, o Options) (Stats, error) {
	workers, request := o.limits(readRequest, 2, nil, src)
	p := progress{total: src.Size(), tell: o.Progress, stats: Stats{Size: src.Size()}}

	// Each task is in two queues: that of the workers, who read it in any order, and that of the writer, who wants them in
	// order and waits for each to be read. The second one's length bounds the buffers in use.
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan *reading)
	inOrder := make(chan *reading, 2*workers-1) // one more is in the writer's hands
	free := make(chan []byte, 2*workers)
	for range cap(free) {
		free <- nil // allocated when used
	}
	g.Go(func() error {
		defer close(todo)
		defer close(inOrder)
		for t, err := range tasks(ranges(ctx, src, nil), request, zeroTask) {
			if err != nil {
				return err
			}
			if err := schedule(ctx, t, free, todo, inOrder); err != nil {
				return err
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for r := range todo {
				if r.buf == nil {
					r.buf = make([]byte, request)
				}
				if err := src.Read(ctx, r.buf[:r.n], r.off); err != nil {
					return unread(ctx, src, r.buf[:r.n], r.off, err)
				}
				close(r.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		var zeros []byte
		for r := range inOrder {
			if r.kind == 0 && zeros == nil {
				zeros = make([]byte, zeroRun)
			}
			if err := r.write(ctx, w, zeros); err != nil {
				return err
			}
			if r.kind != 0 {
				free <- r.buf
			}
			p.add(r.n, func(s *Stats) {
				if r.kind == 0 {
					s.Zero += r.n
				} else {
					s.Read += r.n
				}
			})
		}
		return nil
	})
	err := g.Wait()
	return p.stats, err
}

// WriteStreamTo writes all of src to w. Only a nil error says that the stream's checksums were right.
func WriteStreamTo(ctx context.Context, src block.Stream, w io.Writer, o Options) (Stats, error) {
	total, _ := src.Size()
	p := progress{total: total, tell: o.Progress}
	var zeros []byte
	for {
		run, err := src.Next(ctx)
		if err == io.EOF {
			return p.stats, nil
		}
		if err != nil {
			return p.stats, failure(Read, p.done, err)
		}
		if run.Zero {
			if zeros == nil {
				zeros = make([]byte, zeroRun)
			}
			err = writeZeros(ctx, w, zeros, p.done, run.Len)
		} else if _, err = w.Write(run.Data); err != nil {
			err = failure(Write, p.done, err)
		}
		if err != nil {
			return p.stats, err
		}
		p.add(run.Len, func(s *Stats) {
			s.Size += run.Len
			if run.Zero {
				s.Zero += run.Len
			} else {
				s.Read += run.Len
			}
		})
	}
}

// reading is a task whose bytes are in buf once done is closed.
type reading struct {
	task
	buf  []byte
	done chan struct{}
}

// schedule puts a task into both queues, first into the writer's.
func schedule(ctx context.Context, t task, free <-chan []byte, todo, inOrder chan<- *reading) error {
	r := &reading{task: t}
	if t.kind != 0 {
		r.done = make(chan struct{})
		select {
		case r.buf = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case inOrder <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.kind == 0 {
		return nil
	}
	select {
	case todo <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write waits for the bytes and writes them.
func (r *reading) write(ctx context.Context, w io.Writer, zeros []byte) error {
	if r.kind != 0 {
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := w.Write(r.buf[:r.n]); err != nil {
			return failure(Write, r.off, err)
		}
		return nil
	}
	return writeZeros(ctx, w, zeros, r.off, r.n)
}

// zeroRun is how many zeros are written at once, in bytes.
const zeroRun = 256 << 10

// writeZeros writes n zeros, off bytes into the image.
func writeZeros(ctx context.Context, w io.Writer, zeros []byte, off, n int64) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(end-off, int64(len(zeros)))
		if _, err := w.Write(zeros[:k]); err != nil {
			return failure(Write, off, err)
		}
		off += k
	}
	return nil
}
