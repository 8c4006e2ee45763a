package convert

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func TestCompareFindsTheFirstDifference(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 4))
		a := randomSparse(r, 1+r.Int64N(1<<20))
		b := newSparse(bytes.Clone(a.data))
		want := Result{SizeA: int64(len(a.data)), SizeB: int64(len(b.data))}
		if r.IntN(4) == 0 { // longer by zeros, which does not count
			b.data = append(b.data, make([]byte, r.Int64N(1<<20))...)
			want.SizeB = int64(len(b.data))
		}
		for range r.IntN(4) {
			off := r.Int64N(int64(len(b.data)))
			b.data[off]++
			if off < want.Off || want.Difference == Same {
				want.Difference, want.Off = Content, off
			}
		}
		x, y := block.Device(a), block.Device(b)
		if r.IntN(2) == 0 {
			x, y = y, x
			want.SizeA, want.SizeB = want.SizeB, want.SizeA
		}
		got, err := Compare(t.Context(), x, y, false, Options{Workers: 1 + r.IntN(5), Request: 1 << (10 + r.IntN(8))})
		if err != nil || got != want {
			t.Fatalf("seed %d: %+v, %v; want %+v", seed, got, err, want)
		}
	}
}

func TestCompareSkipsKnownZeros(t *testing.T) {
	a := randomSparse(rand.New(rand.NewPCG(1, 5)), 1<<20)
	b := newSparse(bytes.Clone(a.data))
	b.holes = a.holes
	if r, err := Compare(t.Context(), a, b, true, Options{}); err != nil || r.Difference != Same {
		t.Fatal(r, err)
	}
	if want := int64(len(a.data)) - a.known(); a.read != want || b.read != want {
		t.Errorf("read %d and %d bytes, want %d", a.read, b.read, want)
	}
}

func TestCompareStrict(t *testing.T) {
	zeros, data := []block.Extent{{Len: 8192, Flags: block.ExtZero}}, []block.Extent{{Len: 8192, Flags: block.ExtData}}
	a, b := newSparse(make([]byte, 8192)), newSparse(make([]byte, 8192))
	a.holes = []block.Extent{{Len: 4096, Flags: block.ExtData}, {Off: 4096, Len: 4096, Flags: block.ExtZero}}
	for _, c := range []struct {
		holes []block.Extent
		at    int64 // a byte of b that is not zero
		want  Result
	}{
		{data, -1, Result{Allocation, 4096, 8192, 8192}},
		{zeros, -1, Result{Allocation, 0, 8192, 8192}},
		{data, 4095, Result{Content, 4095, 8192, 8192}},
		{data, 4097, Result{Allocation, 4096, 8192, 8192}},
	} {
		clear(b.data)
		if b.holes = c.holes; c.at >= 0 {
			b.data[c.at] = 1
		}
		if got, err := Compare(t.Context(), a, b, true, Options{}); err != nil || got != c.want {
			t.Errorf("%+v, %v; want %+v", got, err, c.want)
		}
	}
	b.data = b.data[:100]
	if got, err := Compare(t.Context(), a, b, true, Options{}); err != nil || got != (Result{Size, 100, 8192, 100}) {
		t.Errorf("sizes: %+v, %v", got, err)
	}
}

func TestCompareErrors(t *testing.T) {
	for _, c := range []struct {
		change, bad, badMap int64
		err                 bool
	}{
		{-1, 500000, -1, true}, {600000, 500000, -1, true}, {400000, 500000, -1, false}, // the first of the two wins
		{-1, -1, 500001, true}, {600000, -1, 500001, true}, {500000, -1, 500001, false},
	} {
		a := newSparse(bytes.Repeat([]byte{1}, 1<<20))
		b := newSparse(bytes.Clone(a.data))
		b.badRead, b.badMap = c.bad, c.badMap
		if c.change >= 0 {
			b.data[c.change] = 0
		}
		r, err := Compare(t.Context(), a, b, false, Options{Workers: 4, Request: 4096})
		if errors.Is(err, errInjected) != c.err || !c.err && (r.Difference != Content || r.Off != c.change) {
			t.Errorf("%+v: %+v, %v", c, r, err)
		}
	}
}

func BenchmarkCompare(b *testing.B) {
	x := newSparse(make([]byte, 64<<20))
	fillRandom(rand.New(rand.NewPCG(1, 1)), x.data)
	y := newSparse(bytes.Clone(x.data))
	b.SetBytes(int64(len(x.data)))
	for b.Loop() {
		if r, err := Compare(b.Context(), x, y, false, Options{}); err != nil || r.Difference != Same {
			b.Fatal(r, err)
		}
	}
}
