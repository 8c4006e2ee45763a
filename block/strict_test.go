package block_test

import (
	"context"
	"fmt"

	"github.com/imgtool/imgtool/block"
)

// strict refuses every request that does not start and end at a multiple of its unit, or end at its size.
type strict struct {
	block.Filter
	unit int64
}

func newStrict(d block.Device, unit int64) block.Device {
	return &strict{block.Filter{Device: d}, unit}
}

func (s *strict) Info() block.Info {
	i := s.Device.Info()
	i.MinBlock, i.PreferredBlock = s.unit, max(s.unit, i.PreferredBlock)
	return i
}

func (s *strict) check(off, n int64) error {
	if off%s.unit != 0 || n%s.unit != 0 && off+n != s.Size() {
		return fmt.Errorf("range at %d of %d bytes is not a multiple of %d", off, n, s.unit)
	}
	return nil
}

func (s *strict) Read(ctx context.Context, p []byte, off int64) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	return s.Device.Read(ctx, p, off)
}

func (s *strict) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := s.check(off, int64(len(p))); err != nil {
		return err
	}
	return s.Device.Write(ctx, p, off, f)
}

func (s *strict) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.Device.Zero(ctx, off, n, f)
}

func (s *strict) Discard(ctx context.Context, off, n int64) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.Device.Discard(ctx, off, n)
}

func (s *strict) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := s.check(off, n); err != nil {
		return buf, err
	}
	return s.Device.Extents(ctx, m, off, n, buf)
}

func (s *strict) Prefetch(ctx context.Context, off, n int64) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.Device.Prefetch(ctx, off, n)
}
