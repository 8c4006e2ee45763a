package inflate

import (
	"bytes"
	"compress/flate"
	"io"
	"math/rand/v2"
	"testing"
)

const fuzzMax = 1 << 20 // bytes of output that a fuzzed stream may have

// seeds adds streams of all kinds, the short ones of the other tests among them.
func seeds(f *testing.F, add func(src []byte)) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, k := range kinds {
		for _, level := range []int{-2, 1, 9} {
			var b bytes.Buffer
			w, err := flate.NewWriter(&b, level)
			check(f, err)
			_, err = w.Write(k.make(r, 1+r.IntN(4000)))
			check(f, err)
			check(f, w.Close())
			add(b.Bytes())
		}
	}
	add(new(maker).fixed(1).literals("ab").code(lens285(), 258).code(dist5(), 1).end().out)
	add(new(maker).dynamic(1, nearest, []uint8{1, 1}).literals("ab").code(nearest, 257).code([]uint8{1, 1}, 1).end().out)
	src, _ := varied(f, r, 5000)
	add(src)
}

// FuzzDecode: whatever src is, all forms come to the same, and compress/flate decodes it to the same bytes or refuses it too.
func FuzzDecode(f *testing.F) {
	seeds(f, func(src []byte) { f.Add(src) })
	f.Fuzz(func(t *testing.T, src []byte) {
		want, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(src)), fuzzMax))
		if len(want) == fuzzMax {
			return
		}
		o := outcomes(t, src, Raw)
		if (err == nil) != (o.err == "") || err == nil && !bytes.Equal(o.out, want) {
			t.Fatalf("compress/flate: %v; here: %v", result(want, err), o)
		}
		// Where both refuse, what was decoded before may differ only in how far it goes.
		n := min(len(want), len(o.out))
		if !bytes.Equal(want[:n], o.out[:n]) {
			t.Fatalf("compress/flate: %v; here: %v", result(want, err), o)
		}
	})
}

// FuzzFraming: whatever src is, all forms come to the same.
func FuzzFraming(f *testing.F) {
	seeds(f, func(src []byte) {
		f.Add(append([]byte("\x1f\x8b\x08\x1f\x01\x02\x03\x04\x00\x03\x03\x00xyzname\x00comment\x00\x00\x00"), src...), true)
		f.Add(append([]byte("\x78\x9c"), src...), false)
	})
	f.Fuzz(func(t *testing.T, src []byte, gzip bool) {
		framing := Zlib
		if gzip {
			framing = Gzip
		}
		if len(src) > 1000 { // limits what a stream can grow to
			return
		}
		outcomes(t, src, framing)
	})
}

// FuzzResume: decoding from any place comes to the same as decoding through it.
func FuzzResume(f *testing.F) {
	seeds(f, func(src []byte) { f.Add(src, uint16(100)) })
	f.Fuzz(func(t *testing.T, src []byte, room uint16) {
		if n, _ := io.Copy(io.Discard, io.LimitReader(flate.NewReader(bytes.NewReader(src)), fuzzMax)); n == fuzzMax {
			return
		}
		type place struct {
			p   Point
			out int
		}
		var places []place
		whole := walk(t, src, func() int { return 1 + int(room) }, func(p Point, out []byte) {
			if len(places) < 30 {
				places = append(places, place{p, len(out)})
			}
		})
		var z Reader
		for _, at := range places {
			window := bytes.Clone(whole.out[max(0, at.out-windowSize):at.out])
			if err := z.Resume(bytes.NewReader(src[at.p.In/8:]), at.p, window); err != nil {
				t.Fatalf("at %+v: %v", at.p, err)
			}
			rest, err := fillFrom(&z, window)
			if o := result(append(whole.out[:at.out:at.out], rest...), err); !o.equal(whole) {
				t.Fatalf("from %+v: %v; whole: %v", at.p, o, whole)
			}
		}
	})
}

// FuzzPoint: no point makes Resume or what follows it fail in another way than by an error.
func FuzzPoint(f *testing.F) {
	f.Add([]byte("\x4b\x04\x00"), int64(3), int64(0), 0, false, uint8(Fixed), 0, []byte(nil))
	good := make([]byte, 258)
	good[0], good[256], good[257] = 1, 1, 1
	f.Add([]byte("\x4b\x04\x00"), int64(9), int64(40000), 0, true, uint8(Dynamic), 257, good)
	f.Add([]byte("\x4b\x04\x00"), int64(8), int64(7), 2, false, uint8(Stored), 0, []byte(nil))
	f.Fuzz(func(t *testing.T, src []byte, in, out int64, stored int, final bool, block uint8, nlit int, lens []byte) {
		if len(src) > 1000 {
			return
		}
		var z Reader
		p := Point{In: in, Out: out, Stored: stored, Final: final, Block: BlockType(block), NLit: nlit, Lens: lens}
		if z.Resume(bytes.NewReader(src), p, []byte("window")) == nil {
			io.Copy(io.Discard, &z)
		}
	})
}
