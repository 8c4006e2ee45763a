package segment

import (
	"context"
	"io"

	"github.com/imgtool/imgtool/block"
)

// Sink takes an output. Where it goes one way, ranges come from front to back without gaps, one call at a time; else they come in any order from
// many goroutines, a range twice only where the second is a patch, which comes when all calls before it have returned.
type Sink interface {
	// OneWay reports whether the output can only be appended to.
	OneWay() bool
	// WriteAt stores p at off. With block.NoHole zeros in it take space; other flags are not used.
	WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error
	// ZeroAt makes a range zero. With block.NoHole it takes space.
	ZeroAt(ctx context.Context, off, n int64, f block.Flags) error
	// Finish ends the output at the given length.
	Finish(ctx context.Context, size int64) error
}

// ToWriter returns a Sink over a pipe, a socket, or anything else that goes one way.
func ToWriter(w io.Writer) Sink { return &writerSink{w: w} }

type writerSink struct {
	w     io.Writer
	zeros []byte
}

func (s *writerSink) OneWay() bool { return true }

func (s *writerSink) WriteAt(_ context.Context, p []byte, _ int64, _ block.Flags) error {
	_, err := s.w.Write(p)
	return err
}

func (s *writerSink) ZeroAt(ctx context.Context, off, n int64, f block.Flags) error {
	if s.zeros == nil {
		s.zeros = make([]byte, 256<<10)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(s.zeros)))
		if err := s.WriteAt(ctx, s.zeros[:k], off, f); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (s *writerSink) Finish(context.Context, int64) error { return nil }

// ToDevice returns a Sink that writes to d from its first byte. Where d can grow, zeros past the end that it has now become holes; elsewhere they
// are zeroed. A device that is longer than the output keeps what lies behind it, unless it can be resized. Nobody else may write to d meanwhile.
func ToDevice(d block.Device) Sink {
	s := &deviceSink{dev: d, caps: d.Info().Caps, fresh: d.Size()}
	if !s.caps.Grow {
		s.fresh = -1
	}
	return s
}

type deviceSink struct {
	dev   block.Device
	caps  block.Caps
	fresh int64 // what lies from here on reads as zero until it is written; -1 where nothing does
}

// page is the unit in which file systems keep holes.
const page = 4096

func (s *deviceSink) OneWay() bool { return false }

// WriteAt leaves holes for the zero pages of p where the device has nothing yet.
func (s *deviceSink) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	sparse := s.fresh >= 0 && f&block.NoHole == 0
	for len(p) > 0 {
		zeros, n := 0, len(p)
		if sparse {
			zeros, n = s.split(p, off)
		}
		if n > zeros {
			if err := s.dev.Write(ctx, p[zeros:n], off+int64(zeros), 0); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// split returns how many bytes of p, which lies at off, are zero in whole pages that may be left out, and where the data behind them ends: before
// the next such page.
func (s *deviceSink) split(p []byte, off int64) (zeros, end int) {
	if off >= s.fresh && off%page == 0 {
		for len(p)-zeros >= page && block.IsZero(p[zeros:zeros+page]) {
			zeros += page
		}
	}
	if len(p)-zeros <= page {
		return zeros, len(p)
	}
	end = zeros + page - int((off+int64(zeros))%page)
	if off+int64(end) < s.fresh {
		next, ok := block.RoundUp(s.fresh, page)
		if !ok || next-off > int64(len(p)) {
			return zeros, len(p)
		}
		end = int(next - off)
	}
	for ; len(p)-end >= page; end += page {
		if block.IsZero(p[end : end+page]) {
			return zeros, end
		}
	}
	return zeros, len(p)
}

func (s *deviceSink) ZeroAt(ctx context.Context, off, n int64, f block.Flags) error {
	if _, ok := block.Add(off, n); !ok {
		return &block.RangeError{Off: off, Len: n, Size: s.dev.Size()}
	}
	if s.fresh >= 0 && f&block.NoHole == 0 {
		n = min(n, max(s.fresh-off, 0))
	}
	if n == 0 {
		return nil
	}
	return s.dev.Zero(ctx, off, n, f&block.NoHole)
}

func (s *deviceSink) Finish(ctx context.Context, size int64) error {
	has := s.dev.Size()
	switch {
	case has == size:
		return nil
	case s.caps.Resize:
		return s.dev.Resize(ctx, size)
	case has < size && s.caps.Grow: // the output ends with a hole
		return s.dev.Zero(ctx, has, size-has, 0)
	}
	return nil
}
