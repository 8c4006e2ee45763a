package convert

import (
	"bytes"
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgtool/imgtool/block"
)

// far is a device of which every call takes a second, and that counts the calls at a time.
type far struct {
	block.Device
	inFlight int
	most     int64 // bytes in a request; 0 for any
	noZero   bool

	now, peak, writes, longest, zeroed atomic.Int64
}

func (d *far) Info() block.Info {
	i := d.Device.Info()
	i.InFlight, i.MaxBlock = d.inFlight, d.most
	i.Caps.Zero = !d.noZero
	i.Caps.Grow, i.Caps.Resize = false, false
	return i
}

// wait is what every call does.
func (d *far) wait(n int64) {
	raise := func(a *atomic.Int64, n int64) {
		for m := a.Load(); n > m && !a.CompareAndSwap(m, n); m = a.Load() {
		}
	}
	raise(&d.peak, d.now.Add(1))
	raise(&d.longest, n)
	time.Sleep(time.Second)
	d.now.Add(-1)
}

func (d *far) Read(ctx context.Context, p []byte, off int64) error {
	d.wait(int64(len(p)))
	return d.Device.Read(ctx, p, off)
}

func (d *far) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	d.wait(int64(len(p)))
	d.writes.Add(1)
	return d.Device.Write(ctx, p, off, f)
}

func (d *far) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if d.noZero {
		return block.WriteZeros(ctx, d, off, n, f)
	}
	d.wait(0)
	d.zeroed.Add(n)
	return d.Device.Zero(ctx, off, n, f)
}

func (d *far) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	d.wait(0)
	return d.Device.Extents(ctx, m, off, n, buf)
}

// dotted returns a device of which some pages hold data.
func dotted(t *testing.T, size int64, dots int) block.Device {
	t.Helper()
	d := block.NewMemory(size)
	r := rand.New(rand.NewPCG(1, uint64(dots)))
	for range dots {
		p := bytes.Repeat([]byte{byte(r.IntN(255) + 1)}, 4096<<r.IntN(4))
		if err := d.Write(t.Context(), p, min(r.Int64N(size)&^4095, size-int64(len(p))), 0); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestFar copies to and from devices that have to be kept busy: all that can be in flight is, no request is longer than the device takes, and
// what is written is right.
func TestFar(t *testing.T) {
	const size = 300<<20 + 512
	for _, c := range []struct {
		src, dst *far
		request  int64 // the longest there may be
	}{
		{&far{inFlight: 32}, &far{}, farRequest},
		{&far{}, &far{inFlight: 32}, farRequest},
		{&far{inFlight: 8}, &far{inFlight: 64}, farRequest},
		{&far{inFlight: 8, most: 64 << 10}, &far{inFlight: 64, most: 128 << 10}, 64 << 10},
		{&far{inFlight: 16}, &far{inFlight: 16, noZero: true}, farRequest},
	} {
		synctest.Test(t, func(t *testing.T) {
			src, dst := c.src, c.dst
			src.Device, dst.Device = dotted(t, size, 2000), dotted(t, size, 300)
			st, err := Copy(t.Context(), src, dst, Options{ZeroGranule: DefaultZeroGranule})
			if err != nil || st.Size != size {
				t.Fatalf("%+v, %v", st, err)
			}
			r, err := Compare(t.Context(), src.Device, dst.Device, false, Options{})
			if err != nil || r.Difference != Same {
				t.Errorf("%+v, %v", r, err)
			}
			want := int64(max(src.inFlight, dst.inFlight))
			if peak := max(src.peak.Load(), dst.peak.Load()); peak < want/2 || peak > want+windowsAhead {
				t.Errorf("%d calls in flight, want %d", peak, want)
			}
			if n := max(src.longest.Load(), dst.longest.Load()); n > c.request {
				t.Errorf("a request of %d bytes", n)
			}
			if dst.noZero != (dst.zeroed.Load() == 0) {
				t.Errorf("%d bytes are zeroed", dst.zeroed.Load())
			}
		})
	}
}

// TestFarZeros: a target that cannot zero gets zeros in requests of which many are in flight.
func TestFarZeros(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 20
		dst := &far{Device: dotted(t, size, 100), inFlight: 16, noZero: true}
		if _, err := Copy(t.Context(), block.NewNull(size), dst, Options{ZeroGranule: DefaultZeroGranule}); err != nil {
			t.Fatal(err)
		}
		if n := dst.writes.Load(); dst.peak.Load() != 16 || n < size/farRequest/2 || n > size/farRequest {
			t.Errorf("%d writes, %d at a time", n, dst.peak.Load())
		}
		if r, err := Compare(t.Context(), block.NewNull(size), dst.Device, false, Options{}); err != nil || r.Difference != Same {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestWalkAhead yields what block.Walk does, asks for more than one window at a time, and ends where it is told to.
func TestWalkAhead(t *testing.T) {
	const size = 3<<30 + 4096
	lower := dotted(t, size, 3000)
	join := func(list []block.Extent) (joined []block.Extent) {
		for _, e := range list {
			joined = block.AppendExtent(joined, 0, e)
		}
		return joined
	}
	collect := func(walk iter.Seq2[block.Extent, error]) []block.Extent {
		var list []block.Extent
		for e, err := range walk {
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, e)
		}
		return join(list)
	}
	want := collect(block.Walk(t.Context(), lower, block.Map{}, 4096, size))
	synctest.Test(t, func(t *testing.T) {
		d := &far{Device: lower, inFlight: 8}
		got := collect(walkAhead(t.Context(), d, block.Map{}, 4096, size))
		if !slices.Equal(got, want) {
			t.Errorf("%d extents, want %d", len(got), len(want))
		}
		if d.peak.Load() != 8 {
			t.Errorf("%d windows at a time", d.peak.Load())
		}
		for e := range walkAhead(t.Context(), d, block.Map{}, 0, size) { // and no goroutine is left
			if e.End() > 1<<30 {
				break
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		for _, err := range walkAhead(ctx, d, block.Map{}, 0, size) {
			cancel()
			if n++; err != nil && ctx.Err() != err {
				t.Error(err)
			}
		}
		if n == 0 || n >= len(want) {
			t.Errorf("%d extents after the end", n)
		}
	})
}
