package segment

import (
	"context"
	"errors"
	"io"

	"github.com/imgtool/imgtool/block"
)

// Sink takes an output from front to back. It is used by one goroutine.
type Sink interface {
	// Write appends p.
	Write(ctx context.Context, p []byte) error
	// Zeros appends n zero bytes.
	Zeros(ctx context.Context, n int64) error
	// Patch writes again a range that was appended before. It returns errors.ErrUnsupported where the output goes one way only.
	Patch(ctx context.Context, p Patch) error
	// Finish ends the output at the given length.
	Finish(ctx context.Context, size int64) error
}

// ToWriter returns a Sink over a pipe, a socket, or anything else that goes one way.
func ToWriter(w io.Writer) Sink { return &writerSink{w: w} }

type writerSink struct {
	w     io.Writer
	zeros []byte
}

func (s *writerSink) Write(_ context.Context, p []byte) error {
	_, err := s.w.Write(p)
	return err
}

func (s *writerSink) Zeros(ctx context.Context, n int64) error {
	if s.zeros == nil {
		s.zeros = make([]byte, 256<<10)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(s.zeros)))
		if err := s.Write(ctx, s.zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func (s *writerSink) Patch(context.Context, Patch) error  { return errors.ErrUnsupported }
func (s *writerSink) Finish(context.Context, int64) error { return nil }

// ToDevice returns a Sink that writes to d from its first byte. Where d can grow, zeros past its end become a hole; elsewhere they are
// zeroed. A device that is longer than the output keeps what lies behind it, unless it can be resized.
func ToDevice(d block.Device) Sink { return &deviceSink{dev: d, caps: d.Info().Caps} }

type deviceSink struct {
	dev  block.Device
	caps block.Caps
	off  int64 // bytes appended
}

// page is the unit in which file systems keep holes.
const page = 4096

// Write leaves holes for the zero pages of p, where the device grows by what is written to it.
func (s *deviceSink) Write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		zero := s.zeroPrefix(p)
		if zero > 0 {
			if err := s.Zeros(ctx, int64(zero)); err != nil {
				return err
			}
			p = p[zero:]
			continue
		}
		n := s.dataPrefix(p)
		if err := s.dev.Write(ctx, p[:n], s.off, 0); err != nil {
			return err
		}
		s.off += int64(n)
		p = p[n:]
	}
	return nil
}

// zeroPrefix returns how many bytes of p, in whole pages of the output past the device's end, are zero.
func (s *deviceSink) zeroPrefix(p []byte) int {
	if !s.caps.Grow || s.off%page != 0 || s.off < s.dev.Size() {
		return 0
	}
	n := 0
	for len(p)-n >= page && block.IsZero(p[n:n+page]) {
		n += page
	}
	return n
}

// dataPrefix returns how many bytes of p come before the next page that zeroPrefix would take.
func (s *deviceSink) dataPrefix(p []byte) int {
	if !s.caps.Grow {
		return len(p)
	}
	n := page - int(s.off%page)
	for ; len(p)-n >= page; n += page {
		if block.IsZero(p[n : n+page]) {
			return n
		}
	}
	return len(p)
}

func (s *deviceSink) Zeros(ctx context.Context, n int64) error {
	end, ok := block.Add(s.off, n)
	if !ok {
		return &block.RangeError{Off: s.off, Len: n, Size: s.dev.Size()}
	}
	inside := n
	if s.caps.Grow {
		inside = min(n, max(s.dev.Size()-s.off, 0))
	}
	if inside > 0 {
		if err := s.dev.Zero(ctx, s.off, inside, 0); err != nil {
			return err
		}
	}
	s.off = end
	return nil
}

func (s *deviceSink) Patch(ctx context.Context, p Patch) error {
	return s.dev.Write(ctx, p.Bytes, p.Off, 0)
}

func (s *deviceSink) Finish(ctx context.Context, size int64) error {
	if s.dev.Size() == size || !s.caps.Resize {
		return nil
	}
	return s.dev.Resize(ctx, size)
}
