package gzipmod

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/segment"
)

// pipe is a block.Stream of runs of every length.
type pipe struct {
	r *rand.Rand
	p []byte
}

func (s *pipe) Size() (int64, bool) { return 0, false }
func (s *pipe) Close() error        { return nil }
func (s *pipe) Next(context.Context) (block.Run, error) {
	if len(s.p) == 0 {
		return block.Run{}, io.EOF
	}
	n := min(len(s.p), 1+s.r.IntN(200000))
	q := s.p[:n]
	s.p = s.p[n:]
	if block.IsZero(q) && s.r.IntN(2) == 0 {
		return block.Run{Len: int64(n), Zero: true}, nil
	}
	return block.Run{Len: int64(n), Data: q}, nil
}

func TestPlanStream(t *testing.T) {
	for seed, size := range []int{0, 1, 65536, 1 << 20, 3<<20 + 5, 9 << 20} {
		p := image(uint64(60+seed), size)
		plan := func() *segment.Plan {
			plan, err := PlanStream(ctx, &pipe{rand.New(rand.NewPCG(1, 1)), p}, Options{})
			check(t, err)
			return plan
		}
		file := block.NewMemory(0)
		_, err := segment.Write(ctx, segment.ToDevice(file), plan(), segment.Options{Workers: 3})
		check(t, err)
		raw := content(t, file)
		if !bytes.Equal(gunzip(t, raw), p) {
			t.Fatalf("%d bytes: gunzip gives others", size)
		}
		verify(t, file)
		if got := content(t, openRead(t, file)); !bytes.Equal(got, p) {
			t.Fatalf("%d bytes: Open gives others", size)
		}
		var out bytes.Buffer
		_, err = segment.Write(ctx, segment.ToWriter(&out), plan(), segment.Options{Workers: 1})
		check(t, err)
		if !bytes.Equal(gunzip(t, out.Bytes()), p) || !bytes.Equal(out.Bytes()[maxHeader:], raw[maxHeader:]) {
			t.Fatalf("%d bytes: another file on a pipe", size)
		}
		if _, err := ReadLayout(ctx, device(t, out.Bytes())); !errors.Is(err, ErrNoIndex) {
			t.Fatalf("a file from a pipe: %v", err)
		}
	}
}

// TestCoarsen merges chunks until only one is left in each region, and reads the file at every step.
func TestCoarsen(t *testing.T) {
	p := append(image(70, 11<<20+5), make([]byte, 1<<20)...)
	p = append(p, image(71, 6<<20)...)
	file := mod(t, device(t, p), Options{}, 2)
	d := openRead(t, file)
	for d.layout.ChunkSize < 16<<20 {
		d.layout.coarsen()
		if err := d.layout.checkPlaces(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, d), p) {
			t.Fatalf("chunks of %d bytes give other bytes", d.layout.ChunkSize)
		}
	}
}

// TestManyHoles is an image with more holes than any index holds.
func TestManyHoles(t *testing.T) {
	d := block.NewMemory(1 << 40)
	for i := range int64(5000) {
		check(t, d.Write(ctx, []byte{1}, i<<27, 0))
	}
	l, err := NewLayout(ctx, d, Options{Keep: []Range{span(1<<39, 1<<20)}})
	check(t, err)
	if l.HeaderLen() > maxHeader || len(l.Regions) < 2 {
		t.Fatalf("a header of %d bytes, %d regions", l.HeaderLen(), len(l.Regions))
	}
}

// TestLongChunks writes an image whose index has room for few chunks only, to a file and to a pipe.
func TestLongChunks(t *testing.T) {
	p := append(image(72, 9<<20+5), make([]byte, 1<<20)...)
	p = append(p, image(73, 3<<20)...)
	src := device(t, p)
	plan := func() *segment.Plan {
		l := &Layout{Size: src.Size(), ChunkSize: 4 << 20}
		l.divide([]Range{span(5<<20, 100000)}, nil, nil, minHole)
		l.headerLen = indexOff + indexLen(int64(len(l.Regions)), int64(len(l.Chunks)))
		plan, err := l.Plan(src, Options{})
		check(t, err)
		return plan
	}
	file := block.NewMemory(0)
	_, err := segment.Write(ctx, segment.ToDevice(file), plan(), segment.Options{})
	check(t, err)
	verify(t, file)
	if l := openRead(t, file).Layout(); l.ChunkSize != 4<<20 || len(l.Chunks) != 5 {
		t.Fatalf("%d chunks of %d bytes", len(l.Chunks), l.ChunkSize)
	}
	if !bytes.Equal(gunzip(t, content(t, file)), p) || !bytes.Equal(content(t, openRead(t, file)), p) {
		t.Fatal("other bytes")
	}
	var out bytes.Buffer
	_, err = segment.Write(ctx, segment.ToWriter(&out), plan(), segment.Options{})
	check(t, err)
	piped := device(t, out.Bytes())
	check(t, Rebuild(ctx, piped, &memoryMark{}, nil))
	if !bytes.Equal(content(t, piped), content(t, file)) {
		t.Fatal("the rebuilt index is another")
	}
}
