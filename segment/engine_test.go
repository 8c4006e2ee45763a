package segment

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/imgtool/imgtool/block"
)

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// TestFailingOutput ends a plan that has no end.
func TestFailingOutput(t *testing.T) {
	p := &Plan{Segments: func(yield func(Segment, error) bool) {
		for yield(Segment{Fill: func(_ context.Context, buf []byte) ([]byte, error) { return append(buf, 'x'), nil }}, nil) {
		}
	}}
	if _, err := Write(t.Context(), ToWriter(failingWriter{}), p, Options{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("writer: %v", err)
	}
	if _, err := Write(t.Context(), ToDevice(block.Protect(block.NewMemory(0))), p, Options{}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("device: %v", err)
	}
}

// TestNeedsPatches: nothing is written of a plan that cannot be completed.
func TestNeedsPatches(t *testing.T) {
	p, want := numbered(50)
	p.NeedsPatches = true
	var out bytes.Buffer
	if _, err := Write(t.Context(), ToWriter(&out), p, Options{}); !errors.Is(err, errors.ErrUnsupported) || out.Len() > 0 {
		t.Errorf("pipe: %v after %d bytes", err, out.Len())
	}
	if n, err := Write(t.Context(), ToDevice(block.NewMemory(0)), p, Options{}); err != nil || n != int64(len(want)) {
		t.Errorf("device: %d bytes, %v", n, err)
	}
}

// TestFit pads segments to their place.
func TestFit(t *testing.T) {
	const unit = 1000
	length := func(i int) int64 { return int64(1 + i*37%2500) }
	var places []int64
	p := &Plan{Segments: func(yield func(Segment, error) bool) {
		for i := range 200 {
			s := Segment{
				Fill: func(_ context.Context, buf []byte) ([]byte, error) {
					return append(buf, bytes.Repeat([]byte{1}, int(length(i)))...), nil
				},
				Fit: func(off int64, data []byte) ([]byte, error) {
					return append(data, make([]byte, (unit-(off+int64(len(data)))%unit)%unit)...), nil
				},
				Placed: func(off, _ int64) { places = append(places, off) },
			}
			if !yield(s, nil) {
				return
			}
		}
	}}
	for _, workers := range []int{1, 7} {
		for name, sink := range map[string]Sink{"device": ToDevice(block.NewMemory(0)), "pipe": ToWriter(io.Discard)} {
			places = nil
			n, err := Write(t.Context(), sink, p, Options{Workers: workers})
			want := int64(0)
			for i, off := range places {
				if off != want {
					t.Fatalf("%s: segment %d lies at %d, want %d", name, i, off, want)
				}
				want += (length(i) + unit - 1) / unit * unit
			}
			if err != nil || len(places) != 200 || n != want {
				t.Errorf("%s: %d segments, %d bytes, want %d, %v", name, len(places), n, want, err)
			}
		}
	}
}

// TestSolid: zeros that are to take space do.
func TestSolid(t *testing.T) {
	zeros := make([]byte, 64<<10)
	for _, solid := range []bool{false, true} {
		d := &keeping{Device: block.NewMemory(0)}
		p := &Plan{Segments: func(yield func(Segment, error) bool) {
			_ = yield(Segment{Bytes: zeros, Solid: solid}, nil) && yield(Segment{Zeros: 128 << 10, Solid: solid}, nil) && yield(Segment{Bytes: []byte{1}}, nil)
		}}
		if n, err := Write(t.Context(), ToDevice(d), p, Options{Workers: 1}); err != nil || n != 192<<10+1 || d.Size() != n {
			t.Fatalf("%d bytes, the device has %d, %v", n, d.Size(), err)
		}
		want := int64(0)
		if solid {
			want = 192 << 10
		}
		if got := d.zeros.Load(); got != want {
			t.Errorf("solid %v: %d zeros were written or kept, want %d", solid, got, want)
		}
	}
}

// keeping counts the zeros that a device is told to store.
type keeping struct {
	block.Device
	zeros atomic.Int64
}

func (k *keeping) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if block.IsZero(p) {
		k.zeros.Add(int64(len(p)))
	}
	return k.Device.Write(ctx, p, off, f)
}

func (k *keeping) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if f&block.NoHole != 0 {
		k.zeros.Add(n)
	}
	return k.Device.Zero(ctx, off, n, f)
}

// TestOutOfOrder: a segment that takes long keeps the other workers from nothing, as far as there is room.
func TestOutOfOrder(t *testing.T) {
	const workers = 2
	const n = 3 * workers // one is filled for long, all others are between the plan and the output
	filled := make(chan struct{}, n)
	p := &Plan{Segments: func(yield func(Segment, error) bool) {
		for i := range n {
			if !yield(Segment{Fill: func(ctx context.Context, buf []byte) ([]byte, error) {
				for range n - 1 {
					if i > 0 {
						filled <- struct{}{}
						break
					}
					select {
					case <-filled:
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}
				return append(buf, byte('a'+i)), nil
			}}, nil) {
				return
			}
		}
	}}
	var out bytes.Buffer
	if _, err := Write(t.Context(), ToWriter(&out), p, Options{Workers: workers}); err != nil || out.String() != "abcdef" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// TestMemory: no more segments are filled or wait than the budget allows.
func TestMemory(t *testing.T) {
	for _, c := range []struct{ memory, buffer, most int64 }{{1, 100, 1}, {500, 100, 5}, {1 << 20, 100, 3 * 8}} {
		var now, most atomic.Int64
		p := &Plan{Buffer: c.buffer, Segments: func(yield func(Segment, error) bool) {
			for range 300 {
				if !yield(Segment{Fill: func(_ context.Context, buf []byte) ([]byte, error) {
					n := now.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					return append(buf, 'x'), nil
				}}, nil) {
					return
				}
			}
		}}
		sink := &slow{Sink: ToDevice(block.NewMemory(0)), now: &now}
		if _, err := Write(t.Context(), sink, p, Options{Workers: 8, Memory: c.memory}); err != nil {
			t.Fatal(err)
		}
		if m := most.Load(); m > c.most || c.most > 1 && m < 2 {
			t.Errorf("memory of %d bytes, %d each: %d segments at once", c.memory, c.buffer, m)
		}
	}
}

// slow is a sink that lets others go first, and counts what is written.
type slow struct {
	Sink
	now *atomic.Int64
}

func (s *slow) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	for range 10 {
		runtime.Gosched()
	}
	defer s.now.Add(-1)
	return s.Sink.WriteAt(ctx, p, off, f)
}

// TestFreshPart: what a device held before is overwritten, with zeros too, and only behind its end they are left out.
func TestFreshPart(t *testing.T) {
	want := make([]byte, 90_000)
	for i := 20_000; i < 50_000; i++ {
		want[i] = byte(i>>8) | 1
	}
	p := &Plan{Segments: func(yield func(Segment, error) bool) {
		for _, s := range []Segment{{Bytes: want[:9_000]}, {Zeros: 8_000}, {Bytes: want[17_000:70_001]}, {Zeros: 19_999}} {
			if !yield(s, nil) {
				return
			}
		}
	}}
	for _, size := range []int{0, 1, 4095, 4096, 10_000, 40_000, 100_000} {
		d := filled(t, size)
		if _, err := Write(t.Context(), ToDevice(d), p, Options{}); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, d.Size())
		if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a device of %d bytes: %d bytes differ from %d, %v", size, len(got), len(want), err)
		}
	}
}
