package convert

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
)

// CopyStream writes all of src to the start of dst. Stats.Size is how long src turned out to be. A dst that is too short is
// resized where it can be; what it holds after the stream stays. Reading and writing overlap.
//
// Only a nil error says that the stream's checksums were right: after any other dst holds bytes that must not be used.
func CopyStream(ctx context.Context, src block.Stream, dst block.Device, o Options) (Stats, error) {
	total, known := src.Size()
	if known {
		if err := makeRoom(ctx, dst, total); err != nil {
			return Stats{}, err
		}
	} else if !dst.Info().Caps.Write {
		return Stats{}, block.ErrReadOnly
	}
	o.Kernel = Kernel{}
	workers, request := o.limits(DefaultRequest, 2, dst)
	c := newCopier(dst, o, total)

	g, gctx := errgroup.WithContext(ctx)
	s := &gatherer{copier: c, request: request, queue: make(chan piece), free: make(chan []byte, 2*workers)}
	for range cap(s.free) {
		s.free <- nil // allocated when used
	}
	for range workers {
		g.Go(func() error {
			for p := range s.queue {
				if err := s.write(gctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(s.queue)
		return s.read(gctx, src)
	})
	err := g.Wait()
	c.stats.Size = s.off
	if err == nil && dst.Size() < s.off {
		err = extend(ctx, dst, s.off)
	}
	return c.stats, err
}

// extend gives dst the zeros at the end of a stream that were not written.
func extend(ctx context.Context, dst block.Device, size int64) error {
	if dst.Info().Caps.Resize {
		return dst.Resize(ctx, size)
	}
	if err := dst.Zero(ctx, dst.Size(), size-dst.Size(), 0); err != nil {
		return failure(Write, dst.Size(), err)
	}
	return nil
}

// piece is what a worker writes: bytes, or n zeros where data is nil.
type piece struct {
	off, n int64
	data   []byte
}

// gatherer joins the runs of a stream to requests. Its buffers go round: from free to a worker and back.
type gatherer struct {
	*copier
	request int64
	queue   chan piece
	free    chan []byte

	off int64  // where the next byte of the stream goes
	buf []byte // ends at off
}

// write deals with one piece.
func (s *gatherer) write(ctx context.Context, p piece) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.data != nil {
		err := s.store(ctx, p.data, p.off)
		s.free <- p.data[:0]
		return err
	}
	return s.copier.zeros(ctx, p.off, p.n)
}

// read sends the whole stream to the workers.
func (s *gatherer) read(ctx context.Context, src block.Stream) error {
	for {
		run, err := src.Next(ctx)
		if err == io.EOF {
			return s.flush(ctx)
		}
		if err != nil {
			return failure(Read, s.off, err)
		}
		if _, ok := block.Add(s.off, run.Len); !ok || !run.Zero && run.Len != int64(len(run.Data)) {
			return failure(Read, s.off, fmt.Errorf("run of %d bytes, of which %d are there", run.Len, len(run.Data)))
		}
		if run.Zero {
			err = s.zeros(ctx, run.Len)
		} else {
			err = s.bytes(ctx, run.Data)
		}
		if err != nil {
			return err
		}
	}
}

// zeros sends a run of zeros.
func (s *gatherer) zeros(ctx context.Context, n int64) error {
	if err := s.flush(ctx); err != nil {
		return err
	}
	for n > 0 {
		k := min(n, s.longestZeros(s.request))
		if err := s.send(ctx, piece{off: s.off, n: k}); err != nil {
			return err
		}
		s.off, n = s.off+k, n-k
	}
	return nil
}

// bytes gathers p, and sends what makes a request.
func (s *gatherer) bytes(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		if s.buf == nil {
			select {
			case s.buf = <-s.free:
			case <-ctx.Done():
				return ctx.Err()
			}
			if s.buf == nil {
				s.buf = make([]byte, 0, s.request)
			}
		}
		room := s.request - s.off%s.request // requests end at multiples, as those of Copy do
		k := min(room, int64(len(p)))
		s.buf = append(s.buf, p[:k]...)
		s.off, p = s.off+k, p[k:]
		if k == room {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends what has been gathered.
func (s *gatherer) flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	p := piece{off: s.off - int64(len(s.buf)), n: int64(len(s.buf)), data: s.buf}
	s.buf = nil
	return s.send(ctx, p)
}

func (s *gatherer) send(ctx context.Context, p piece) error {
	if caps := s.dst.Info().Caps; !caps.Resize && !caps.Grow && p.off+p.n > s.dst.Size() {
		return tooSmall(p.off, p.n, s.dst)
	}
	select {
	case s.queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
