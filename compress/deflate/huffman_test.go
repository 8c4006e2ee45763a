package deflate

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomFreq returns n frequencies of one of several kinds, some of them 0.
func randomFreq(r *rand.Rand, n int) []uint32 {
	freq := make([]uint32, n)
	kind := r.IntN(4)
	a, b := uint32(1), uint32(1)
	for i := range freq {
		switch kind {
		case 0:
			freq[i] = r.Uint32N(4)
		case 1:
			freq[i] = r.Uint32N(1000)
		case 2: // Fibonacci numbers make the deepest trees
			if freq[i] = a; i < 24 {
				a, b = b, a+b
			}
		case 3:
			freq[i] = 1 << r.Uint32N(14)
		}
	}
	r.Shuffle(n, func(i, j int) { freq[i], freq[j] = freq[j], freq[i] })
	return freq
}

func costOf(freq []uint32, lens []uint8) (n int) {
	for s, f := range freq {
		n += int(f) * int(lens[s])
	}
	return n
}

// cheapest returns the least cost of a prefix code of at most limit bits: symbols by falling frequency get growing lengths, and of all ways
// to give them, with a given number of codes free at each length, the best is kept.
func cheapest(freq []uint32, limit int) int {
	f := slices.Clone(freq)
	f = slices.DeleteFunc(f, func(n uint32) bool { return n == 0 })
	slices.Sort(f)
	slices.Reverse(f)
	type state struct{ symbol, free, length int }
	known := map[state]int{}
	var least func(s state) int
	least = func(s state) int {
		if s.symbol == len(f) {
			return 0
		}
		if s.length > limit || s.free == 0 {
			return math.MaxInt32
		}
		s.free = min(s.free, len(f)) // more are of no use
		if n, ok := known[s]; ok {
			return n
		}
		best := least(state{s.symbol, 2 * s.free, s.length + 1})
		if n := least(state{s.symbol + 1, s.free - 1, s.length}); n < math.MaxInt32 {
			best = min(best, n+int(f[s.symbol])*s.length)
		}
		known[s] = best
		return best
	}
	return least(state{0, 2, 1})
}

// TestLengths: the codes are complete, within the limit, and no others are cheaper.
func TestLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var h huffman
	for range 400 {
		freq := randomFreq(r, 2+r.IntN(24))
		limit := max(bits.Len(uint(len(freq)-1)), 1+r.IntN(15))
		lens := make([]uint8, len(freq))
		h.lengths(lens, freq, limit)
		kraft := 0
		for s, n := range lens {
			if int(n) > limit || n == 0 && freq[s] > 0 {
				t.Fatalf("a code of %d bits for frequency %d, the limit is %d", n, freq[s], limit)
			}
			if n > 0 {
				kraft += 1 << (15 - n)
			}
		}
		if kraft != 1<<15 {
			t.Fatalf("%v with limit %d: the code is not complete: %v", freq, limit, lens)
		}
		used := 0
		for _, f := range freq {
			used += min(1, int(f))
		}
		if used < 2 {
			continue
		}
		if got, want := costOf(freq, lens), cheapest(freq, limit); got != want {
			t.Fatalf("%v with limit %d: %d bits, %d are enough: %v", freq, limit, got, want, lens)
		}
	}
}

// TestFewSymbols: no symbol and one symbol still make a complete code.
func TestFewSymbols(t *testing.T) {
	var h huffman
	for _, freq := range [][]uint32{{0, 0, 0}, {5, 0, 0}, {0, 0, 7}} {
		lens := make([]uint8, len(freq))
		h.lengths(lens, freq, 15)
		if slices.Sort(lens); !slices.Equal(lens, []uint8{0, 1, 1}) {
			t.Errorf("%v: %v", freq, lens)
		}
	}
}

// TestCanonical compares with the example of RFC 1951 section 3.2.2.
func TestCanonical(t *testing.T) {
	lens := []uint8{3, 3, 3, 3, 3, 2, 4, 4}
	got := make([]uint16, len(lens))
	canonical(got, lens)
	for s, want := range []uint16{0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111} {
		if want = bits.Reverse16(want << (16 - lens[s])); got[s] != want {
			t.Errorf("symbol %d: %b, want %b", s, got[s], want)
		}
	}
}

// TestHeaderRuns: the runs spell the code lengths, and size is what write writes.
func TestHeaderRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var h huffman
	for range 300 {
		var l codeLens
		freq := randomFreq(r, literalSymbols)
		clear(freq[endOfBlock+1+r.IntN(literalSymbols-endOfBlock):])
		freq[endOfBlock] = 1
		h.lengths(l.literal[:literalSymbols], freq, maxCodeLen)
		h.lengths(l.dist[:distSymbols], randomFreq(r, distSymbols), maxDistLen)
		var head header
		head.make(&h, &l)
		var got []uint8
		for _, run := range head.runs {
			v := run.symbol
			if v == copyPrevious {
				v = got[len(got)-1]
			} else if v > copyPrevious {
				v = 0
			}
			for range run.count {
				got = append(got, v)
			}
		}
		if want := append(slices.Clone(l.literal[:head.literal]), l.dist[:head.dist]...); !slices.Equal(got, want) {
			t.Fatalf("the runs spell %v, not %v", got, want)
		}
		var w bitWriter
		if head.write(&w); 8*len(w.out)+int(w.n) != head.size {
			t.Fatalf("%d bits are written, size says %d", 8*len(w.out)+int(w.n), head.size)
		}
	}
}

func TestLog2(t *testing.T) {
	for n := uint32(1); n < 1<<31; n += 1 + n/100 {
		if got, want := float64(log2(n))/logUnit, math.Log2(float64(n)); math.Abs(got-want) > 0.006 {
			t.Errorf("log2(%d) = %f, want %f", n, got, want)
		}
	}
}

// TestSplit: a change of statistics starts a block, and noise beside text is stored.
func TestSplit(t *testing.T) {
	in := inputs()
	src := slices.Concat(in["text"][:100_000], in["few"], in["noise"][:100_000])
	c := chains{distance: maxDistance, effort: efforts[DefaultLevel]}
	tokens := c.match(nil, src, 0)
	segments := new(splitter).split(src, tokens)
	var cuts []int
	at := 0
	for _, g := range segments {
		at += g.bytes
		cuts = append(cuts, at)
	}
	if at != len(src) {
		t.Fatalf("the segments cover %d bytes of %d", at, len(src))
	}
	for _, want := range []int{100_000, 200_000} {
		if !slices.ContainsFunc(cuts, func(cut int) bool { return cut > want-3000 && cut < want+3000 }) {
			t.Errorf("no block begins near %d: %v", want, cuts)
		}
	}
	if len(cuts) > 9 {
		t.Errorf("%d blocks for three kinds of data: %v", len(cuts), cuts)
	}
}
