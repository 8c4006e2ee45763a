package chain

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
)

// sink is a target that forgets what is written to it, has any size, and reads as zero.
type sink struct {
	block.Device // of no bytes: its constants
	size         atomic.Int64
}

func (s *sink) Info() block.Info {
	i := s.Device.Info()
	i.Caps.Grow, i.Caps.Resize = true, true
	return i
}

func (s *sink) Size() int64 { return s.size.Load() }

// grow makes room for a range.
func (s *sink) grow(ctx context.Context, off, n int64) error {
	end, ok := block.Add(off, n)
	if off < 0 || n < 0 || !ok {
		return &block.RangeError{Off: off, Len: n, Size: s.Size()}
	}
	if err := s.Device.Flush(ctx); err != nil { // it is closed
		return err
	}
	for size := s.Size(); size < end; size = s.Size() {
		s.size.CompareAndSwap(size, end)
	}
	return nil
}

func (s *sink) Read(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), s.Size()); err != nil {
		return err
	}
	clear(p)
	return s.Device.Flush(ctx)
}

func (s *sink) Write(ctx context.Context, p []byte, off int64, _ block.Flags) error {
	return s.grow(ctx, off, int64(len(p)))
}

func (s *sink) Zero(ctx context.Context, off, n int64, _ block.Flags) error {
	return s.grow(ctx, off, n)
}

func (s *sink) Discard(ctx context.Context, off, n int64) error {
	return errors.Join(block.CheckRange(off, n, s.Size()), s.Device.Flush(ctx))
}

func (s *sink) Prefetch(ctx context.Context, off, n int64) error { return s.Discard(ctx, off, n) }

func (s *sink) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	whole := block.NewNull(s.Size())
	buf, err := whole.Extents(ctx, m, off, n, buf)
	return buf, errors.Join(err, s.Device.Flush(ctx))
}

func (s *sink) Resize(ctx context.Context, size int64) error {
	if size < 0 {
		return &block.RangeError{Len: size}
	}
	s.size.Store(size)
	return s.Device.Flush(ctx)
}
