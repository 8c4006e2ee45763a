package convert

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/imgtool/imgtool/block"
)

// Limit returns d read at no more than rate bytes in a second, over all who read it together; rate is positive. What is known to be zero and
// not read costs nothing. Its ranges cannot be pinned, because the kernel does not wait.
func Limit(d block.Device, rate int64) block.Device {
	return &limited{block.Filter{Device: d}, &pace{rate: rate}}
}

// LimitStream is Limit for a stream; its runs of zeros cost nothing.
func LimitStream(s block.Stream, rate int64) block.Stream {
	return &limitedStream{s, &pace{rate: rate}}
}

type limited struct {
	block.Filter
	pace *pace
}

func (l *limited) Read(ctx context.Context, p []byte, off int64) error {
	if err := l.pace.wait(ctx, int64(len(p))); err != nil {
		return err
	}
	return l.Filter.Read(ctx, p, off)
}

func (l *limited) Pin(context.Context, int64, int64) (block.FileRange, func(), bool) {
	return block.FileRange{}, nil, false
}

type limitedStream struct {
	block.Stream
	pace *pace
}

func (l *limitedStream) Next(ctx context.Context) (block.Run, error) {
	r, err := l.Stream.Next(ctx)
	if err == nil {
		err = l.pace.wait(ctx, int64(len(r.Data)))
	}
	return r, err
}

// pace hands out time for bytes, first come first served.
type pace struct {
	rate int64 // bytes in a second

	mu   sync.Mutex
	free time.Time // when all that was handed out has passed
}

// wait returns when the time for n more bytes has passed, or the context has ended.
func (p *pace) wait(ctx context.Context, n int64) error {
	p.mu.Lock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(min(float64(n)/float64(p.rate)*float64(time.Second), math.MaxInt64/4)))
	left := p.free.Sub(now)
	p.mu.Unlock()
	if left <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
