package gzipmod

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/segment"
)

var ctx = context.Background()

// memoryMark is a Mark in memory.
type memoryMark struct{ p []byte }

func (m *memoryMark) Load(context.Context) ([]byte, error) { return bytes.Clone(m.p), nil }
func (m *memoryMark) Save(_ context.Context, p []byte) error {
	m.p = bytes.Clone(p)
	return nil
}
func (m *memoryMark) Append(_ context.Context, p []byte) error {
	m.p = append(m.p, p...)
	return nil
}
func (m *memoryMark) Clear(context.Context) error {
	m.p = nil
	return nil
}

// image returns n bytes in runs of text, noise and zeros.
func image(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for off := 0; off < n; {
		run := min(n-off, 1+r.IntN(400000))
		switch q := p[off : off+run]; r.IntN(3) {
		case 0:
			for i := range q {
				q[i] = byte(r.Uint32())
			}
		case 1:
			for i := range q {
				q[i] = "the quick brown fox "[(i*i/3)%20]
			}
		}
		off += run
	}
	return p
}

// device returns a memory device that holds p, zeros as holes.
func device(t testing.TB, p []byte) block.Device {
	d := block.NewMemory(int64(len(p)))
	for off := 0; off < len(p); off += 4096 {
		q := p[off:min(off+4096, len(p))]
		if !block.IsZero(q) {
			check(t, d.Write(ctx, q, int64(off), 0))
		}
	}
	return d
}

// rounds returns how often to try: less often with -short, which the race detector runs.
func rounds(n uint64) uint64 {
	if testing.Short() {
		return n/4 + 1
	}
	return n
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mod writes src as a modifiable image.
func mod(t testing.TB, src block.Device, o Options, workers int) *block.Memory {
	t.Helper()
	l, err := NewLayout(ctx, src, o)
	check(t, err)
	plan, err := l.Plan(src, o)
	check(t, err)
	file := block.NewMemory(0)
	n, err := segment.Write(ctx, segment.ToDevice(file), plan, segment.Options{Workers: workers})
	check(t, err)
	if n != file.Size() || n != l.FileSize {
		t.Fatalf("wrote %d bytes, the file has %d, the layout says %d", n, file.Size(), l.FileSize)
	}
	return file
}

func span(off, n int64) Range { return Range{Off: off, Len: n} }

func content(t testing.TB, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	check(t, d.Read(ctx, p, 0))
	return p
}

// gunzip decodes one member and demands that nothing follows it.
func gunzip(t testing.TB, file []byte) []byte {
	t.Helper()
	src := bytes.NewReader(file)
	z, err := gzip.NewReader(src)
	check(t, err)
	z.Multistream(false)
	p, err := io.ReadAll(z)
	check(t, err)
	if src.Len() != 0 {
		t.Fatalf("%d bytes follow the member", src.Len())
	}
	return p
}

func verify(t testing.TB, file block.Device) {
	t.Helper()
	_, problems, err := Verify(ctx, file, VerifyOptions{})
	check(t, err)
	if len(problems) > 0 {
		t.Fatalf("%d problems, the first: %v", len(problems), problems[0])
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range rounds(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		size := []int{0, 1, 4096, 65536, 100001, 3 << 20, 5<<20 + 77}[r.IntN(7)]
		p := image(seed, size)
		var o Options
		o.Level = int(seed % 10)
		for range r.IntN(4) {
			if size > 0 {
				off := r.IntN(size)
				o.Keep = append(o.Keep, span(int64(off), int64(r.IntN(min(size-off, 700000)+1))))
				off = r.IntN(size)
				o.Apart = append(o.Apart, span(int64(off), int64(r.IntN(size-off+1))))
			}
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			file := mod(t, device(t, p), o, 3)
			raw := content(t, file)
			if !bytes.Equal(raw, content(t, mod(t, device(t, p), o, 1))) {
				t.Fatal("the bytes depend on the number of workers")
			}
			if !bytes.Equal(gunzip(t, raw), p) {
				t.Fatal("gunzip gives other bytes")
			}
			verify(t, file)
			d, err := Open(ctx, file, OpenOptions{Cache: 1})
			check(t, err)
			if !bytes.Equal(content(t, d), p) {
				t.Fatal("Open gives other bytes")
			}
			for range 200 {
				off := r.IntN(size + 1)
				q := make([]byte, r.IntN(min(size-off, 200000)+1))
				check(t, d.Read(ctx, q, int64(off)))
				if !bytes.Equal(q, p[off:off+len(q)]) {
					t.Fatalf("%d bytes at %d differ", len(q), off)
				}
			}
		})
	}
}

func TestChange(t *testing.T) {
	for seed := range rounds(8) {
		r := rand.New(rand.NewPCG(seed, 8))
		p := image(seed, 3<<20+123)
		keep := []Range{span(100000, 500000), span(1<<20, 70000), span(int64(len(p))-50000, 50000)}
		file := mod(t, device(t, p), Options{Keep: keep}, 2)
		mark := &memoryMark{}
		d, err := Open(ctx, block.NoClose(file), OpenOptions{Write: true, Mark: mark})
		check(t, err)
		for range 50 {
			k := keep[r.IntN(len(keep))]
			off := k.Off + r.Int64N(k.Len)
			q := make([]byte, 1+r.Int64N(k.Off+k.Len-off))
			for i := range q {
				q[i] = byte(r.Uint32())
			}
			check(t, d.Write(ctx, q, off, 0))
			copy(p[off:], q)
			if mark.p == nil {
				t.Fatal("a change without a mark")
			}
			if r.IntN(5) == 0 {
				check(t, d.Flush(ctx))
				verify(t, file)
				if !bytes.Equal(gunzip(t, content(t, file)), p) {
					t.Fatal("gunzip gives other bytes")
				}
			}
		}
		check(t, d.Close())
		if mark.p != nil {
			t.Fatal("the mark outlives Close")
		}
		verify(t, file)
		if !bytes.Equal(gunzip(t, content(t, file)), p) {
			t.Fatal("gunzip gives other bytes")
		}
	}
}

func TestChangeRefused(t *testing.T) {
	p := image(1, 2<<20)
	before := mod(t, device(t, p), Options{Keep: []Range{span(65536, 65536), span(1<<20, 4096)}}, 1)
	want := content(t, before)
	d, err := Open(ctx, before, OpenOptions{Write: true, Mark: &memoryMark{}})
	check(t, err)
	for _, r := range []Range{span(0, 1), span(65535, 2), span(65536, 65537), span(131072, 1), span(65536, 1<<20)} {
		err := d.Write(ctx, make([]byte, r.Len), r.Off, 0)
		if !errors.Is(err, ErrCompressed) || !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("writing %d bytes at %d: %v", r.Len, r.Off, err)
		}
	}
	if !bytes.Equal(content(t, before), want) {
		t.Fatal("a refused write changed the file")
	}
}

func TestPipeAndRebuild(t *testing.T) {
	for seed := range rounds(6) {
		p := image(seed, 4<<20+int(seed)*1000)
		src := device(t, p)
		o := Options{Keep: []Range{span(1<<20, 300000)}}
		l, err := NewLayout(ctx, src, o)
		check(t, err)
		plan, err := l.Plan(src, o)
		check(t, err)
		var pipe bytes.Buffer
		_, err = segment.Write(ctx, segment.ToWriter(&pipe), plan, segment.Options{})
		check(t, err)
		if !bytes.Equal(gunzip(t, pipe.Bytes()), p) {
			t.Fatal("gunzip gives other bytes")
		}
		file := device(t, pipe.Bytes())
		if _, err := Open(ctx, file, OpenOptions{}); !errors.Is(err, ErrIncomplete) {
			t.Fatalf("Open: %v", err)
		}
		check(t, Rebuild(ctx, file, &memoryMark{}, nil))
		if !bytes.Equal(content(t, file), content(t, mod(t, src, o, 2))) {
			t.Fatal("the rebuilt file is not the one written to a file")
		}
		verify(t, file)
	}
}
