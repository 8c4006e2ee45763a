package gzindex

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// sparse is a gzip file of one member, made of pieces that are islands in zeros.
type sparse struct {
	file    []byte
	size    int64
	crc     uint32
	islands []island
}

type island struct {
	off  int64
	data []byte
}

func newSparse() *sparse {
	return &sparse{file: []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")}
}

func (s *sparse) zeros(n int64) {
	s.file = deflate.AppendZeros(s.file, n)
	s.crc = crcmath.Combine(s.crc, crcmath.Zeros(n), n)
	s.size += n
}

func (s *sparse) island(t testing.TB, data []byte) {
	s.file = append(s.file, deflated(t, data, false)...)
	s.crc = crcmath.Combine(s.crc, crc32.ChecksumIEEE(data), int64(len(data)))
	s.islands = append(s.islands, island{s.size, data})
	s.size += int64(len(data))
}

func (s *sparse) end() []byte {
	s.file = append(s.file, 3, 0)
	s.file = binary.LittleEndian.AppendUint32(s.file, s.crc)
	return binary.LittleEndian.AppendUint32(s.file, uint32(s.size))
}

// want returns n bytes of the content from off.
func (s *sparse) want(off int64, n int) []byte {
	p := make([]byte, n)
	for _, i := range s.islands {
		r := run{i.off, int64(len(i.data))}.clip(off, off+int64(n))
		if r.len > 0 {
			copy(p[r.off-off:], i.data[r.off-i.off:][:r.len])
		}
	}
	return p
}

// TestLong reads an image of more than 4 GiB, most of it zeros, of which ISIZE says little.
func TestLong(t *testing.T) {
	alone(t)
	s := newSparse()
	for i := range 5 {
		s.island(t, text(uint64(i), 1<<20))
		s.zeros(1<<30 + int64(i)*12345)
	}
	s.island(t, text(99, 300<<10))
	file := s.end()
	d := opened(t, file, nil, Options{Memory: 16 << 20})
	if d.Size() != s.size {
		t.Fatalf("%d bytes, want %d", d.Size(), s.size)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range 40 {
		off := rnd.Int64N(s.size - 5000)
		if i < 2*len(s.islands) {
			off = max(0, s.islands[i/2].off+int64(i%2)*int64(len(s.islands[i/2].data))-2500)
		}
		p := make([]byte, min(5000, s.size-off))
		check(t, d.Read(ctx, p, off))
		if !bytes.Equal(p, s.want(off, len(p))) {
			t.Fatalf("%d bytes at %d differ", len(p), off)
		}
	}
	// The holes are known, to a page.
	var zeros int64
	for off := int64(0); off < d.Size(); {
		es, err := d.Extents(ctx, block.Map{}, off, d.Size()-off, nil)
		check(t, err)
		for _, e := range es {
			if e.Flags&block.ExtZero != 0 {
				zeros += e.Len
			}
			off = e.End()
		}
	}
	if hole := int64(5 << 30); zeros < hole {
		t.Fatalf("%d bytes of zeros are known, there are %d at least", zeros, hole)
	}
}

// TestBomb: a file of which every byte makes 1032, and an index that must stay small all the same.
func TestBomb(t *testing.T) {
	alone(t)
	s := newSparse()
	s.zeros(256 << 20)
	file := s.end()
	x := index(t, file, ScanOptions{Span: minSpan, Limit: minLimit})
	if x.Size() != s.size || len(x.zeros) != 1 {
		t.Fatalf("%d bytes, %d runs", x.Size(), len(x.zeros))
	}
	if n := memoryOf(x); n > minLimit {
		t.Fatalf("an index of %d bytes, the limit was %d", n, minLimit)
	}
	d := opened(t, file, x, Options{Memory: 8 << 20})
	p := make([]byte, 10000)
	for off := int64(0); off+10000 < s.size; off += 37 << 20 {
		check(t, d.Read(ctx, p, off))
		if !block.IsZero(p) {
			t.Fatalf("zeros differ at %d", off)
		}
	}
}

// memoryOf returns how much memory an index takes, as it counts.
func memoryOf(x *Index) int64 {
	n := int64(len(x.zeros)) * runSize
	for i := range x.points {
		n += pointSize + int64(len(x.points[i].state.packed))
	}
	return n
}

// TestLimit: a small limit makes spans long, and what is read stays right.
func TestLimit(t *testing.T) {
	alone(t)
	want := text(21, 24<<20)
	file := member(t, want, 1)
	all := index(t, file, ScanOptions{Span: minSpan})
	few := index(t, file, ScanOptions{Span: minSpan, Limit: minLimit})
	if memoryOf(all) < 2*minLimit || memoryOf(few) > minLimit || few.Points() < 5 {
		t.Fatalf("%d points in %d bytes, and %d in %d", all.Points(), memoryOf(all), few.Points(), memoryOf(few))
	}
	for i := range few.points {
		sp, ok := few.spanAt(few.points[i].image)
		if sum := crc32.ChecksumIEEE(want[sp.image:][:sp.len]); !ok || sum != sp.crc {
			t.Fatalf("span %d has the CRC-32 %08x, its content %08x", i, sp.crc, sum)
		}
	}
	uncheck(few)
	readAll(t, opened(t, file, few, Options{Memory: 8 << 20}), want, 5)
}

// TestTinyMembers: a point per span, not per member.
func TestTinyMembers(t *testing.T) {
	alone(t)
	one := member(t, []byte("0123456789"), 6)
	n := 200_000
	file := bytes.Repeat(one, n)
	want := bytes.Repeat([]byte("0123456789"), n)
	x := index(t, file, ScanOptions{Span: minSpan})
	if x.Points() > 2*len(want)/minSpan+2 {
		t.Fatalf("%d points", x.Points())
	}
	uncheck(x)
	readAll(t, opened(t, file, x, Options{}), want, 1)
}

// TestMemory reads a file with long spans through a small cache, with many readers.
func TestMemory(t *testing.T) {
	s := newSparse()
	for i := range 20 {
		s.island(t, text(uint64(i), 100<<10))
		s.zeros(16 << 20)
	}
	file := s.end()
	x := index(t, file, ScanOptions{Span: 64 << 20})
	uncheck(x)
	before := live()
	d := opened(t, file, x, Options{Memory: 8 << 20})
	stop := make(chan struct{})
	readers := make(chan error)
	for seed := range uint64(4) {
		go func() {
			rnd := rand.New(rand.NewPCG(seed, 3))
			p := make([]byte, 4096)
			for {
				select {
				case <-stop:
					readers <- nil
					return
				default:
				}
				if err := d.Read(ctx, p, rnd.Int64N(s.size-4096)); err != nil {
					readers <- err
					return
				}
			}
		}()
	}
	most := int64(0)
	for range 10 {
		time.Sleep(50 * time.Millisecond)
		most = max(most, live()-before)
	}
	close(stop)
	for range 4 {
		check(t, <-readers)
	}
	if most > 12<<20 {
		t.Errorf("%d bytes are in use, the limit was %d", most, 8<<20)
	}
}

// live returns how much memory is in use, garbage left out.
func live() int64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// TestCancelLong: a reader that gives up leaves a long span at once.
func TestCancelLong(t *testing.T) {
	s := newSparse()
	s.zeros(2 << 30)
	file := s.end()
	x := index(t, file, ScanOptions{Span: 4 << 30})
	uncheck(x)
	d := opened(t, file, x, Options{})
	limited, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	within(t, 10*time.Second, "a cancelled read", func() {
		if err := d.Read(limited, make([]byte, 10), 1<<30); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	})
}
