package deflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	kflate "github.com/klauspost/compress/flate"

	"github.com/imgtool/imgtool/internal/peers"
)

func fastEncoder(t testing.TB, window int) *Encoder {
	t.Helper()
	e, err := NewEncoder(Options{Level: 1, Window: window})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// words returns n bytes of words from a small vocabulary, in which matches are short and many.
func words(r *rand.Rand, n int) []byte {
	vocabulary := make([][]byte, 300)
	for i := range vocabulary {
		w := make([]byte, 2+r.IntN(9))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		vocabulary[i] = w
	}
	var b []byte
	for len(b) < n {
		b = append(append(b, vocabulary[r.IntN(len(vocabulary))]...), ' ')
	}
	return b[:n]
}

// stretches returns n bytes of noise, runs, words and copies of what was before, by turns: long enough for lanes of all kinds beside each
// other, and for rounds without a match.
func stretches(r *rand.Rand, n int) []byte {
	var b []byte
	for len(b) < n {
		k := 1 + r.IntN(1<<r.IntN(17))
		switch r.IntN(4) {
		case 0:
			for range k {
				b = append(b, byte(r.Uint32()))
			}
		case 1:
			b = append(b, bytes.Repeat([]byte{byte(r.IntN(3))}, k)...)
		case 2:
			b = append(b, words(r, k)...)
		case 3:
			at := r.IntN(len(b) + 1)
			b = append(b, b[at:min(len(b), at+k)]...)
		}
	}
	return b[:n]
}

// fastLens are lengths around everything that is decided by length.
func fastLens() []int {
	lens := []int{0, 1, 2, 3, 4, 5, 7, 8, 16, 255, 259, 1000}
	for _, n := range []int{tailMargin, laneMargin, minLaneLen, 2 * minLaneLen, 4 * minLaneLen, maxLanes * maxLaneLen} {
		lens = append(lens, n-1, n, n+1)
	}
	return append(lens, maxLanes*maxLaneLen+laneMargin, 3*maxLanes*maxLaneLen-5)
}

func inflated(t *testing.T, p, dict []byte) []byte {
	t.Helper()
	out, err := io.ReadAll(flate.NewReaderDict(bytes.NewReader(p), dict))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFastRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	data := stretches(r, 4<<20)
	for _, window := range []int{256, 4096, 32768} {
		e := fastEncoder(t, window)
		for _, n := range fastLens() {
			at := r.IntN(len(data) - n)
			src := data[at : at+n]
			for _, end := range []End{Final, Sync} {
				if got := inflated(t, ended(e.Append(nil, src, end), end), nil); !bytes.Equal(got, src) {
					t.Fatalf("window %d, %d bytes from %d on, end %d: something else comes back", window, n, at, end)
				}
			}
		}
	}
}

// TestFastWindow decodes with a history that forgets what is farther back than the window.
func TestFastWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	src := stretches(r, 1<<20)
	for window := minWindow; window <= maxDistance; window *= 2 {
		f := newFast(window)
		at := 0
		for from := 0; from < len(src); {
			to := min(len(src), from+maxLanes*maxLaneLen)
			lanes := f.match(src[:to], from)
			for i, steps := range f.steps[:lanes] {
				noise := f.noise[i]
				for k, s := range steps {
					for len(noise) > 0 && noise[0].after == k {
						at += noise[0].bytes
						noise = noise[1:]
					}
					cover := int(s >> coverShift)
					if d := -int(int16(s>>backShift)) & (maxDistance - 1); cover > 2 && (max(d, 1) > window || d > at) {
						t.Fatalf("window %d: a distance of %d at %d", window, d, at)
					}
					at += cover
				}
			}
			from = to
		}
		if at != len(src) {
			t.Fatalf("steps cover %d bytes of %d", at, len(src))
		}
	}
}

// TestFastLongest writes steps of the most bits that there may be, after any number of bits that wait.
func TestFastLongest(t *testing.T) {
	var l codeLens
	for s := range l.literal {
		l.literal[s] = fastCodeLen
	}
	for s := range l.dist {
		l.dist[s] = fastDistLen
	}
	const last = 29 // the distance symbol with the most extra bits
	steps := make([]step, 50)
	for i := range steps {
		steps[i] = step(0xff-i) | (stepLength+254)<<16 | last<<32 | step(0x1fff-i)<<48
	}
	for _, portable := range []bool{false, true} {
		f := newFast(maxDistance)
		f.portable = portable
		var reversed [len(l.literal)]uint16
		f.codes.make(&l, reversed[:])
		for waiting := range uint(8) {
			var got, want bitWriter
			got.out = make([]byte, 0, 1000)
			got.put(1<<waiting-1, waiting)
			want.put(1<<waiting-1, waiting)
			f.write(&got, steps)
			for _, s := range steps {
				a, b, d := f.codes.first[s&511], f.codes.second[s>>16&1023], f.codes.dist[last]
				want.put(uint64(a.code), uint(a.bits))
				want.put(uint64(b.code), uint(b.bits))
				want.put(uint64(d.code), uint(d.bits))
				want.put(uint64(s>>48), uint(d.all-d.bits))
			}
			if !bytes.Equal(got.out, want.out) || got.acc != want.acc || got.n != want.n {
				t.Errorf("portable %v, %d bits waiting: the output differs", portable, waiting)
			}
		}
	}
}

func TestFastDict(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	data := words(r, 300_000)
	for _, window := range []int{256, 32768} {
		e := fastEncoder(t, window)
		for _, n := range fastLens() {
			if n > 200_000 {
				continue
			}
			for _, k := range []int{0, 1, 100, 32768, 90_000} {
				dict, src := data[:k], data[k:k+n]
				if got := inflated(t, e.AppendDict(nil, dict, src, Final), dict[max(0, k-window):]); !bytes.Equal(got, src) {
					t.Fatalf("window %d, %d bytes after %d: something else comes back", window, n, k)
				}
			}
		}
	}
	e := fastEncoder(t, 0)
	noise := make([]byte, 30_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	if n := len(e.AppendDict(nil, noise, noise, Final)); n > len(noise)/20 {
		t.Errorf("what the dictionary holds takes %d bytes of %d", n, len(noise))
	}
}

func TestFastReuse(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	data := stretches(r, 2<<20)
	used := fastEncoder(t, 0)
	for range 40 {
		n := 1 + r.IntN(1<<r.IntN(20))
		at := r.IntN(len(data) - n)
		src := data[at : at+n]
		if !bytes.Equal(used.Append(nil, src, Final), fastEncoder(t, 0).Append(nil, src, Final)) {
			t.Fatalf("%d bytes from %d on: the output depends on what was compressed before", n, at)
		}
	}
	src := data[:1<<20]
	dst := make([]byte, 0, 2<<20)
	if n := testing.AllocsPerRun(5, func() { used.Append(dst, src, Sync) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestFastSize holds level 1 to the size of klauspost's, in pieces and whole, and to stored blocks where nothing can be gained.
func TestFastSize(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	e := fastEncoder(t, 0)
	for name, src := range map[string][]byte{"words": words(r, 1<<20), "stretches": stretches(r, 1<<20), "zeros": make([]byte, 1<<20)} {
		var b bytes.Buffer
		w, err := kflate.NewWriter(&b, 1)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(src)
		w.Close()
		if n := len(e.Append(nil, src, Final)); n > b.Len()*102/100+100 {
			t.Errorf("%s: %d bytes, klauspost's level 1 %d", name, n, b.Len())
		}
	}
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	if n := len(e.Append(nil, noise, Final)); n > len(noise)+len(noise)/4096 {
		t.Errorf("noise grows by %d bytes", n-len(noise))
	}
}

func FuzzFast(f *testing.F) {
	r := rand.New(rand.NewPCG(15, 16))
	f.Add([]byte("abcabcabcabcabcabcabcabcabcabc"), 0, byte(0))
	f.Add(stretches(r, 20_000), 300, byte(7))
	f.Add(words(r, 70_000), 40_000, byte(3))
	f.Fuzz(func(t *testing.T, data []byte, dict int, window byte) {
		dict = max(0, min(dict, len(data)))
		o := Options{Level: 1, Window: minWindow << (window & 7)}
		e, err := NewEncoder(o)
		if err != nil {
			t.Fatal(err)
		}
		out := e.AppendDict(nil, data[:dict], data[dict:], Final)
		if got := inflated(t, out, data[max(0, dict-o.Window):dict]); !bytes.Equal(got, data[dict:]) {
			t.Fatal("something else comes back")
		}
	})
}

// BenchmarkFast compresses pieces of 1 MiB, of the disk image that IMGTOOL_IMAGES names where there is one.
func BenchmarkFast(b *testing.B) {
	var data []byte
	if os.Getenv("IMGTOOL_IMAGES") != "" {
		data = imagePart(b, peers.Images(b)+"/debian.raw", 32<<20)
	} else {
		data = stretches(rand.New(rand.NewPCG(17, 18)), 8<<20)
	}
	const piece = 1 << 20
	dst := make([]byte, 0, 2*piece)
	run := func(b *testing.B, encode func(src []byte) int) {
		b.SetBytes(int64(len(data)))
		n := 0
		for b.Loop() {
			n = 0
			for at := 0; at < len(data); at += piece {
				n += encode(data[at:min(at+piece, len(data))])
			}
		}
		b.ReportMetric(float64(len(data))/float64(n), "ratio")
	}
	e := fastEncoder(b, 0)
	b.Run("assembly", func(b *testing.B) {
		run(b, func(src []byte) int { return len(e.Append(dst, src, Sync)) })
	})
	portable := fastEncoder(b, 0)
	portable.fast.portable = true
	b.Run("portable", func(b *testing.B) {
		run(b, func(src []byte) int { return len(portable.Append(dst, src, Sync)) })
	})
	for level := 1; level <= 2; level++ {
		var out bytes.Buffer
		w, err := kflate.NewWriter(&out, level)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("klauspost%d", level), func(b *testing.B) {
			run(b, func(src []byte) int {
				out.Reset()
				w.Reset(&out)
				w.Write(src)
				w.Flush()
				return out.Len()
			})
		})
	}
}

// imagePart returns n bytes of an image that are not zeros: each fourth MiB of those that hold anything.
func imagePart(b *testing.B, name string, n int) []byte {
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	piece, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	var data []byte
	for at, k := int64(0), 0; len(data) < n; at += 1 << 20 {
		if _, err := f.ReadAt(piece, at); err == io.EOF {
			break
		} else if err != nil {
			b.Fatal(err)
		}
		if !bytes.Equal(piece, zeros) {
			if k++; k%4 == 0 {
				data = append(data, piece...)
			}
		}
	}
	return data
}
