package plan

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/segment"
)

var errInjected = errors.New("injected")

// failing is a device of which reads, writes or extents fail from some place on.
type failing struct {
	block.Device
	read, extents, write int64
}

func newFailing(d block.Device) *failing { return &failing{d, 1 << 62, 1 << 62, 1 << 62} }

func (f *failing) Read(ctx context.Context, p []byte, off int64) error {
	if off+int64(len(p)) > f.read {
		return errInjected
	}
	return f.Device.Read(ctx, p, off)
}

func (f *failing) Write(ctx context.Context, p []byte, off int64, fl block.Flags) error {
	if off+int64(len(p)) > f.write {
		return errInjected
	}
	return f.Device.Write(ctx, p, off, fl)
}

func (f *failing) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if off >= f.extents {
		return buf, errInjected
	}
	return f.Device.Extents(ctx, m, off, min(n, f.extents-off), buf)
}

// broken is a stream that ends with an error.
type broken struct{ *stream }

func (b broken) Next(ctx context.Context) (block.Run, error) {
	r, err := b.stream.Next(ctx)
	if err == io.EOF {
		err = errInjected
	}
	return r, err
}

// TestFailures: an error of the source or of the output, anywhere, is the error of the whole.
func TestFailures(t *testing.T) {
	disk := sample(t, 9, 7<<20)
	const middle = 3 << 20
	for _, compress := range []bool{false, true} {
		opts, o := options(t, nil), formats.CreateOptions{Compress: compress}
		pipe := o
		pipe.OneWay = true
		source := map[string]func(f *failing){
			"read":    func(f *failing) { f.read = middle },
			"extents": func(f *failing) { f.extents = middle },
		}
		for name, spoil := range source {
			f := newFailing(disk)
			spoil(f)
			if _, err := segment.Write(t.Context(), segment.ToDevice(block.NewMemory(0)), planOf(t, f, o, opts), segment.Options{}); !errors.Is(err, errInjected) {
				t.Errorf("%s, compress %v: %v", name, compress, err)
			}
			var b bytes.Buffer
			if _, err := segment.Write(t.Context(), segment.ToWriter(&b), planOf(t, f, pipe, opts), segment.Options{}); !errors.Is(err, errInjected) {
				t.Errorf("%s to a pipe, compress %v: %v", name, compress, err)
			}
		}
		f := newFailing(block.NewMemory(0))
		f.write = 1 << 20
		if _, err := segment.Write(t.Context(), segment.ToDevice(f), planOf(t, disk, o, opts), segment.Options{}); !errors.Is(err, errInjected) {
			t.Errorf("write, compress %v: %v", compress, err)
		}
		p, err := NewStream(t.Context(), broken{&stream{t: t, d: disk, r: rand.New(rand.NewPCG(1, 1))}}, formats.CreateOptions{Size: -1, Compress: compress}, opts)
		if err == nil {
			_, err = segment.Write(t.Context(), segment.ToDevice(block.NewMemory(0)), p, segment.Options{})
		}
		if !errors.Is(err, errInjected) {
			t.Errorf("stream, compress %v: %v", compress, err)
		}
	}
}

// TestCancel stops every form while its source hangs.
func TestCancel(t *testing.T) {
	disk := sample(t, 9, 7<<20)
	for _, o := range []formats.CreateOptions{{}, {Compress: true}, {OneWay: true}, {OneWay: true, Compress: true}} {
		ctx, cancel := context.WithCancel(t.Context())
		h := &hanging{Device: disk, cancel: cancel}
		p, err := New(ctx, h, o, options(t, nil))
		if err != nil {
			t.Fatal(err)
		}
		sink := segment.ToDevice(block.NewMemory(0))
		if o.OneWay {
			sink = segment.ToWriter(new(bytes.Buffer))
		}
		if _, err := segment.Write(ctx, sink, p, segment.Options{Workers: 3}); !errors.Is(err, context.Canceled) {
			t.Errorf("%+v: %v", o, err)
		}
		if n := h.inside.Load(); n != 0 {
			t.Errorf("%+v: %d reads are still going on", o, n)
		}
	}
}

// hanging is a device whose reads cancel everything and wait for that.
type hanging struct {
	block.Device
	cancel func()
	inside atomic.Int32
}

func (h *hanging) Read(ctx context.Context, _ []byte, _ int64) error {
	h.inside.Add(1)
	defer h.inside.Add(-1)
	h.cancel()
	<-ctx.Done()
	return ctx.Err()
}

// changing is a device that shows something else from the second time on that its beginning is looked at.
type changing struct {
	block.Device
	then    block.Device
	reads   atomic.Int32
	extents atomic.Int32
}

func (c *changing) Read(ctx context.Context, p []byte, off int64) error {
	if off == 0 {
		c.reads.Add(1)
	}
	if c.reads.Load() > 1 {
		return c.then.Read(ctx, p, off)
	}
	return c.Device.Read(ctx, p, off)
}

func (c *changing) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if off == 0 {
		c.extents.Add(1)
	}
	if c.extents.Load() > 1 {
		return c.then.Extents(ctx, m, off, n, buf)
	}
	return c.Device.Extents(ctx, m, off, n, buf)
}

// TestChangingSource: a source that is not the same when it is looked at again gives an error.
func TestChangingSource(t *testing.T) {
	const size = 8 << 20
	text, noise := block.NewMemory(size), block.NewMemory(size)
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, size/2)
	for i := range p {
		p[i] = byte(i/1000) | 1
	}
	if err := text.Write(t.Context(), p, 0, 0); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	for off := int64(0); off < size; off += size / 2 {
		if err := noise.Write(t.Context(), p, off, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []formats.CreateOptions{{OneWay: true, Compress: true, Memory: 1}, {OneWay: true}} {
		for _, src := range []*changing{{Device: text, then: noise}, {Device: noise, then: text}} {
			var b bytes.Buffer
			if _, err := segment.Write(t.Context(), segment.ToWriter(&b), planOf(t, src, o, options(t, nil)), segment.Options{}); !errors.Is(err, errChanged) {
				t.Errorf("%+v: %v after %d bytes", o, err, b.Len())
			}
		}
	}
}

// TestStreamSizes: the disk is as long as asked for, and a longer stream is an error.
func TestStreamSizes(t *testing.T) {
	disk := sample(t, 10, 3<<20)
	for size, want := range map[int64]int64{-1: 3 << 20, 3 << 20: 3 << 20, 5<<20 + 1: 5<<20 + 512, 1 << 20: -1} {
		p := streamOf(t, disk, formats.CreateOptions{Size: size}, options(t, nil), false)
		d := block.NewMemory(0)
		_, err := segment.Write(t.Context(), segment.ToDevice(d), p, segment.Options{})
		if (err == nil) != (want >= 0) {
			t.Errorf("size %d: %v", size, err)
		}
		if err != nil {
			continue
		}
		if got := headerOf(t, d); got.Size != uint64(want) {
			t.Errorf("size %d: the disk has %d, want %d", size, got.Size, want)
		}
	}
	if _, err := NewStream(t.Context(), &stream{t: t, d: disk}, formats.CreateOptions{OneWay: true, Size: -1}, options(t, nil)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("to a pipe: %v", err)
	}
	p := streamOf(t, disk, formats.CreateOptions{Size: -1}, options(t, nil), false)
	var b bytes.Buffer
	if _, err := segment.Write(t.Context(), segment.ToWriter(&b), p, segment.Options{}); !errors.Is(err, errors.ErrUnsupported) || b.Len() > 0 {
		t.Errorf("a plan for files to a pipe: %v after %d bytes", err, b.Len())
	}
}
