package inflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// varied returns a stream with blocks of all types, and what it decodes to.
func varied(t testing.TB, r *rand.Rand, n int) (src, want []byte) {
	t.Helper()
	var b bytes.Buffer
	for len(want) < n {
		p := kinds[r.IntN(len(kinds))].make(r, 1+r.IntN(30000))
		dict := want[max(0, len(want)-windowSize):]
		if r.IntN(3) == 0 {
			dict = nil
		}
		w, err := flate.NewWriterDict(&b, []int{-2, 0, 1, 6, 9}[r.IntN(5)], dict)
		check(t, err)
		_, err = w.Write(p)
		check(t, err)
		check(t, w.Flush())
		want = append(want, p...)
		if r.IntN(2) == 0 {
			// The writer left the stream at a byte: a block with fixed codes can follow.
			m := new(maker).fixed(0).literals("fixed").code(lens285(), 284).put(r.IntN(31), 5).code(dist5(), r.IntN(4))
			m.literals("literals").end().put(0, 3).align()
			b.Write(m.literalBytes("\x00\x00\xff\xff").out)
			out, _, err := readAll(bytes.NewReader(append(bytes.Clone(m.out), 3, 0)), Raw)
			check(t, err)
			want = append(want, out...)
		}
	}
	b.Write([]byte{3, 0}) // an empty block, the last one
	return b.Bytes(), want
}

// TestVaried makes sure that the streams of the tests below are right.
func TestVaried(t *testing.T) {
	src, want := varied(t, rand.New(rand.NewPCG(5, 5)), 300000)
	o := outcomes(t, src, Raw)
	if o.err != "" || !bytes.Equal(o.out, want) {
		t.Fatal(o)
	}
	peersAgree(t, src, o)
}

// walk decodes src with Fill, room bytes at a time, and calls at for every place where Fill stops.
func walk(t testing.TB, src []byte, room func() int, at func(p Point, out []byte)) outcome {
	t.Helper()
	z := NewReader(bytes.NewReader(src))
	_, err := z.Begin(Raw)
	check(t, err)
	var out []byte
	buf := make([]byte, windowSize, windowSize+1<<16+Slop)
	for {
		at(z.Point(), out)
		history := copy(buf[:windowSize], out[max(0, len(out)-windowSize):])
		n, err := z.Fill(buf[:history+room()+Slop-1], history)
		out = append(out, buf[history:history+n]...)
		if err == io.EOF {
			at(z.Point(), out)
			return result(out, nil)
		} else if err != nil {
			return result(out, err)
		}
	}
}

// TestResume resumes at every place of streams where Fill stops, also with only the bytes of the window that Trace saw.
func TestResume(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	met := map[string]int{}
	var z, tracer Reader
	for range 4 {
		src, want := varied(t, r, 150000)
		simple := plain{src: src}
		simple.stream()
		if !bytes.Equal(simple.out, want) {
			t.Fatal("the simple decoder is wrong")
		}
		whole := walk(t, src, func() int { return 1 + r.IntN(40)*r.IntN(40) }, func(p Point, out []byte) {
			met[fmt.Sprint(p.Block, p.Final)]++
			if r.IntN(20) > 0 && p.Block != Between {
				return
			}
			window := bytes.Clone(out[max(0, len(out)-windowSize):])
			check(t, z.Resume(bytes.NewReader(src[p.In/8:]), p, window))
			if q := z.Point(); fmt.Sprint(q) != fmt.Sprint(p) {
				t.Fatalf("resumed at %v, stands at %v", p, q)
			}
			rest, err := io.ReadAll(&z)
			if err != nil || !bytes.Equal(rest, want[len(out):]) {
				t.Fatalf("from %v: %v", p, err)
			}
			if z.InputOffset() != int64(len(src)) || z.OutputOffset() != int64(len(want)) {
				t.Fatalf("from %v: ends at %d, %d", p, z.InputOffset(), z.OutputOffset())
			}

			var seen [windowSize]bool
			check(t, tracer.Resume(bytes.NewReader(src[p.In/8:]), p, window))
			tracer.Trace(&seen)
			for !tracer.Traced() {
				_, err := tracer.Next()
				if err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			if got, want := seen, referred(simple.matches, len(out)); got != want {
				t.Fatalf("from %v: what Trace saw is wrong", p)
			}
			for i := range window {
				if !seen[len(window)-1-i] {
					window[i] ^= 0x55
				}
			}
			check(t, z.Resume(bytes.NewReader(src[p.In/8:]), p, window))
			if rest, err = fillFrom(&z, window); err != nil || !bytes.Equal(rest, want[len(out):]) {
				t.Fatalf("from %v with a sparse window: %v", p, err)
			}
		})
		if whole.err != "" || !bytes.Equal(whole.out, want) {
			t.Fatal(whole)
		}
	}
	for _, kind := range []string{fmt.Sprint(Between, false), fmt.Sprint(Between, true), fmt.Sprint(Stored, false), fmt.Sprint(Fixed, false), fmt.Sprint(Dynamic, false)} {
		if met[kind] < 4 {
			t.Errorf("points met: %v", met)
		}
	}
}

// fillFrom decodes what follows a window with Fill.
func fillFrom(z *Reader, window []byte) ([]byte, error) {
	out := bytes.Clone(window)
	for {
		at := len(out)
		out = append(out, make([]byte, 1<<16+Slop)...)
		n, err := z.Fill(out, at)
		out = out[:at+n]
		if err == io.EOF {
			return out[len(window):], nil
		} else if err != nil {
			return out[len(window):], err
		}
	}
}

// referred returns what Trace should see at a place of a stream with these matches.
func referred(matches []match, place int) (seen [windowSize]bool) {
	for _, m := range matches {
		if m.at < place {
			continue
		}
		for i := m.at - m.dist; i < m.at-m.dist+m.length && i < place; i++ {
			seen[place-1-i] = true
		}
	}
	return seen
}

// match is a length and distance of a stream.
type match struct{ at, dist, length int }

// plain decodes a good stream in the simplest way, bit by bit, and lists its matches.
type plain struct {
	src     []byte
	n       int // bits taken
	out     []byte
	matches []match
}

func (p *plain) bits(n int) (v int) {
	for i := range n {
		v |= int(p.src[p.n/8]>>(p.n%8)&1) << i
		p.n++
	}
	return v
}

// symbol decodes a symbol of the code with these lengths.
func (p *plain) symbol(lens []uint8) int {
	code, first := 0, 0
	for n := uint8(1); ; n++ {
		code = code<<1 | p.bits(1)
		first <<= 1
		for i, l := range lens {
			if l == n {
				if code == first {
					return i
				}
				first++
			}
		}
	}
}

func (p *plain) stream() {
	for final := 0; final == 0; {
		final = p.bits(1)
		switch p.bits(2) {
		case 0:
			p.n = (p.n + 7) &^ 7
			n := p.bits(16)
			p.n += 16
			p.out = append(p.out, p.src[p.n/8:p.n/8+n]...)
			p.n += 8 * n
		case 1:
			p.block(lens285(), dist5())
		case 2:
			p.block(p.lens())
		}
	}
}

func (p *plain) lens() (lit, dist []uint8) {
	nlit, ndist := p.bits(5)+257, p.bits(5)+1
	var code [19]uint8
	for _, i := range lensOrder[:p.bits(4)+4] {
		code[i] = uint8(p.bits(3))
	}
	var all []uint8
	for len(all) < nlit+ndist {
		switch s := p.symbol(code[:]); s {
		case 16:
			all = append(all, bytes.Repeat(all[len(all)-1:], 3+p.bits(2))...)
		case 17:
			all = append(all, make([]uint8, 3+p.bits(3))...)
		case 18:
			all = append(all, make([]uint8, 11+p.bits(7))...)
		default:
			all = append(all, uint8(s))
		}
	}
	return all[:nlit], all[nlit:]
}

func (p *plain) block(lit, dist []uint8) {
	// Section 3.2.5, as it is printed there.
	base := []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	far := []int{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	for {
		s := p.symbol(lit)
		if s == 256 {
			return
		} else if s < 256 {
			p.out = append(p.out, byte(s))
			continue
		}
		m := match{at: len(p.out), length: base[s-257]}
		if s >= 265 && s < 285 {
			m.length += p.bits((s - 261) / 4)
		}
		s = p.symbol(dist)
		m.dist = far[s]
		if s >= 4 {
			m.dist += p.bits(s/2 - 1)
		}
		for range m.length {
			p.out = append(p.out, p.out[len(p.out)-m.dist])
		}
		p.matches = append(p.matches, m)
	}
}

func TestResumeRefuses(t *testing.T) {
	good := make([]uint8, 257+1)
	good[0], good[256], good[257] = 1, 1, 1
	bad := bytes.Clone(good)
	bad[1] = 1
	for _, p := range []Point{
		{In: -1}, {Out: -1}, {Block: 4},
		{Block: Stored}, {Block: Stored, Stored: 65536}, {Block: Stored, Stored: -1}, {Block: Stored, Stored: 1, In: 1},
		{Block: Dynamic}, {Block: Dynamic, NLit: 257, Lens: good[:257]}, {Block: Dynamic, NLit: 258, Lens: good}, {Block: Dynamic, NLit: -1, Lens: good},
		{Block: Dynamic, NLit: 257, Lens: bad}, {Block: Dynamic, NLit: 257, Lens: make([]byte, 400)}, {Block: Dynamic, NLit: 257, Lens: bytes.Repeat([]byte{16}, 258)},
	} {
		var z Reader
		err := z.Resume(bytes.NewReader(make([]byte, 100)), p, nil)
		if e, ok := err.(*Error); !ok || e.Part != partPoint {
			t.Errorf("%+v: %v", p, err)
		}
		if _, err := z.Next(); err == nil {
			t.Errorf("%+v: Next goes on", p)
		}
	}
	var z Reader
	check(t, z.Resume(bytes.NewReader(make([]byte, 100)), Point{Block: Dynamic, NLit: 257, Lens: good, In: 3}, nil))
}

func TestMarks(t *testing.T) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	check(t, err)
	var want []string
	for i := range 5 {
		piece := fmt.Sprint("piece ", i)
		if i == 3 {
			piece = "" // one mark follows another
		}
		want = append(want, piece)
		_, err := w.Write([]byte(piece))
		check(t, err)
		check(t, w.Flush())
	}
	check(t, w.Close())
	z := NewReader(bytes.NewReader(b.Bytes()))
	z.StopAtMarks(true)
	_, err = z.Begin(Raw)
	check(t, err)
	for i, want := range want {
		got, err := z.Next()
		if err != nil || string(got) != want {
			t.Errorf("piece %d: %q, %v", i, got, err)
		}
		if p := z.Point(); p.Block != Between || p.In%8 != 0 || !bytes.Equal(b.Bytes()[p.In/8-4:p.In/8], []byte{0, 0, 0xff, 0xff}) {
			t.Errorf("piece %d: stands at %+v", i, p)
		}
	}
	if _, err := z.Next(); err != io.EOF {
		t.Errorf("behind the last mark: %v", err)
	}
}

// TestEager: what a compressor flushed is there before more input comes.
func TestEager(t *testing.T) {
	r, w := io.Pipe()
	z := NewReader(r)
	go func() {
		f, _ := flate.NewWriter(w, 6)
		for range 3 {
			f.Write([]byte("hello"))
			f.Flush()
		}
		// The pipe stays open: who waits for more waits for ever.
	}()
	_, err := z.Begin(Raw)
	check(t, err)
	p := make([]byte, 15)
	_, err = io.ReadFull(z, p)
	check(t, err)
	if string(p) != "hellohellohello" {
		t.Errorf("%q", p)
	}
	r.Close()
}

// TestPatience: Next returns all that the input at hand decodes to before it asks for more, wherever that ends.
func TestPatience(t *testing.T) {
	m := new(maker).fixed(0).literals("ab").end().dynamic(0, nearest, []uint8{1, 1}).literals("ab").code(nearest, 257).code([]uint8{1, 1}, 1).end()
	m.put(0, 3).align().put(3, 16).put(0xfffc, 16).literalBytes("xyz").put(0, 3).align().put(0, 16).put(0xffff, 16)
	m.fixed(0).literals("cd").end().dynamic(1, nearest, []uint8{0}).literals("ab").end()
	const want = "abababaxyzcdab"
	src := wrapped("\x1f\x8b\x08\x00\x01\x02\x03\x04\x00\x03", m.out, want)
	for n := range src {
		soon, _, _ := readAll(bytes.NewReader(src[:n]), Gzip)
		var got []byte
		z := NewReader(io.MultiReader(bytes.NewReader(src[:n]), &pause{bytes.NewReader(src[n:]), func() {
			if !bytes.Equal(got, soon) {
				t.Errorf("of %q, which %d bytes hold, only %q before more are asked for", soon, n, got)
			}
		}}))
		_, err := z.Begin(Gzip)
		check(t, err)
		for err == nil {
			var p []byte
			p, err = z.Next()
			got = append(got, p...)
		}
		if err != io.EOF || string(got) != want {
			t.Errorf("in two parts, of which one has %d bytes: %q, %v", n, got, err)
		}
	}
}

// pause calls at before it is read first.
type pause struct {
	r  io.Reader
	at func()
}

func (p *pause) Read(b []byte) (int, error) {
	if p.at != nil {
		p.at()
		p.at = nil
	}
	return p.r.Read(b)
}

// TestLongestHeader makes sure that maxHeader covers the longest header of a dynamic block: one whose lengths all have codes of 7 bits, and
// of which the last repeats too much.
func TestLongestHeader(t *testing.T) {
	m := new(maker).put(0, 1).put(2, 2).put(29, 5).put(29, 5).put(15, 4)
	code := []uint8{6, 7, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7}
	for _, i := range lensOrder {
		m.put(int(code[i]), 3)
	}
	for range maxLit + maxDist - 1 {
		m.code(code, 1)
	}
	m.code(code, 18).put(127, 7)
	if m.n != maxHeader {
		t.Errorf("%d bits", m.n)
	}
	var c core
	c.give(nil, m.out)
	if !c.headerAtHand() {
		t.Error("not at hand")
	}
	if err := c.header(); !errors.Is(err, errTooMany) {
		t.Error(err)
	}
}

// TestTracedDamage: who traces until nothing more is seen comes to an end.
func TestTracedDamage(t *testing.T) {
	src := stored([]byte("abc"))
	for _, rest := range [][]byte{nil, {7}} {
		z := NewReader(bytes.NewReader(append(bytes.Clone(src), rest...)))
		_, err := z.Begin(Raw)
		check(t, err)
		z.Trace(new([windowSize]bool))
		for range 3 {
			if z.Traced() {
				break
			}
			z.Next()
		}
		if !z.Traced() {
			t.Errorf("%x: not traced", rest)
		}
	}
}

// TestFastTraced: behind the traced bytes the loop ends, so that the fastest one can go on.
func TestFastTraced(t *testing.T) {
	want := kinds[5].make(rand.New(rand.NewPCG(12, 12)), 20000)
	const traced = 1000
	var c core
	dst := make([]byte, len(want))
	c.give(dst, deflated(t, want, 6))
	check(t, c.header())
	c.trace = trace{seen: new([windowSize]bool), from: traced - windowSize}
	fastTraced(&c)
	if c.op < traced || c.op > traced+Slop || c.trace.on(c.op) || len(c.out) != len(dst) || !bytes.Equal(dst[:c.op], want[:c.op]) {
		t.Errorf("stands at %d, with room of %d bytes", c.op, len(c.out))
	}
}
