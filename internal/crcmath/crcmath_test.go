package crcmath

import (
	"bytes"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"testing"
)

func random(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestCombineAndZeros(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		a, b := random(r, r.IntN(300)), random(r, r.IntN(5000))
		want := crc32.ChecksumIEEE(append(bytes.Clone(a), b...))
		if got := Combine(crc32.ChecksumIEEE(a), crc32.ChecksumIEEE(b), int64(len(b))); got != want {
			t.Fatalf("Combine over %d+%d bytes = %08x, want %08x", len(a), len(b), got, want)
		}
		n := r.IntN(100000)
		if got, want := Zeros(int64(n)), crc32.ChecksumIEEE(make([]byte, n)); got != want {
			t.Fatalf("Zeros(%d) = %08x, want %08x", n, got, want)
		}
	}
}

func TestShiftOfAChange(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		text := random(r, 1+r.IntN(4000))
		from := r.IntN(len(text))
		n := r.IntN(len(text) - from + 1)
		before := crc32.ChecksumIEEE(text)
		delta := crc32.ChecksumIEEE(text[from : from+n])
		copy(text[from:from+n], random(r, n))
		delta ^= crc32.ChecksumIEEE(text[from : from+n])
		got := before ^ Across(int64(len(text)-from-n)).Shift(delta)
		if want := crc32.ChecksumIEEE(text); got != want {
			t.Fatalf("changing %d bytes at %d of %d: %08x, want %08x", n, from, len(text), got, want)
		}
	}
}

// TestHugeDistances checks distances that no memory holds against the law that distances add.
func TestHugeDistances(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		a, b := r.Int64N(math.MaxInt64/2), r.Int64N(math.MaxInt64/2)
		v := r.Uint32()
		if Across(a+b).Shift(v) != Across(a).Shift(Across(b).Shift(v)) {
			t.Fatalf("x^(%d+%d) is not the product of both", a, b)
		}
	}
	if Across(0).Shift(0xdeadbeef) != 0xdeadbeef {
		t.Fatal("x^0 is not one")
	}
}

func BenchmarkAcross(b *testing.B) {
	var v uint32
	for b.Loop() {
		v ^= Across(60 << 30).Shift(v | 1)
	}
}
