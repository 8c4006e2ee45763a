package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	kflate "github.com/klauspost/compress/flate"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kinds is data of every nature that decoders treat differently.
var kinds = []struct {
	name string
	make func(r *rand.Rand, n int) []byte
}{
	{"zeros", func(_ *rand.Rand, n int) []byte { return make([]byte, n) }},
	{"noise", func(r *rand.Rand, n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}},
	{"few", func(r *rand.Rand, n int) []byte { // long runs of literals with short codes
		p := make([]byte, n)
		for i := range p {
			p[i] = "aaaaaaaaabbbbccd"[r.IntN(16)]
		}
		return p
	}},
	{"skewed", func(r *rand.Rand, n int) []byte { // codes of all lengths
		p := make([]byte, n)
		for i := range p {
			v := r.Uint32() | 1<<24
			for v&1 == 0 {
				v >>= 1
				p[i] += 11
			}
		}
		return p
	}},
	{"periods", func(r *rand.Rand, n int) []byte { // overlapping matches of every short distance
		p := make([]byte, 0, n+1000)
		for len(p) < n {
			unit := make([]byte, 1+r.IntN(40))
			for i := range unit {
				unit[i] = byte(r.Uint32())
			}
			for range 1 + r.IntN(600)/len(unit) {
				p = append(p, unit...)
			}
		}
		return p[:n]
	}},
	{"text", func(r *rand.Rand, n int) []byte {
		p := make([]byte, 0, n+20)
		for len(p) < n {
			p = fmt.Appendf(p, "%x ", r.IntN(1<<(1+r.IntN(20))))
		}
		return p[:n]
	}},
	{"far", func(r *rand.Rand, n int) []byte { // distances up to the window's size
		p := make([]byte, 0, n+400)
		for len(p) < n {
			if len(p) > 600 && r.IntN(3) > 0 {
				from := max(0, len(p)-32768) + r.IntN(min(len(p), 32768)-300)
				p = append(p, p[from:from+3+r.IntN(290)]...)
			} else {
				p = append(p, byte(r.Uint32()), byte(r.Uint32()))
			}
		}
		return p[:n]
	}},
}

// deflated returns p as raw DEFLATE. Levels -2 to 9 are compress/flate's, 11 to 19 klauspost's 1 to 9.
func deflated(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	if level > 10 {
		w, err = kflate.NewWriter(&b, level-10)
	} else {
		w, err = flate.NewWriter(&b, level)
	}
	check(t, err)
	_, err = w.Write(p)
	check(t, err)
	check(t, w.Close())
	return b.Bytes()
}

var levels = []int{flate.HuffmanOnly, 0, 1, 6, 9, 11, 15, 19}

// readAll decodes one stream of r with a new Reader.
func readAll(r io.Reader, f Framing) ([]byte, *Reader, error) {
	z := NewReader(r)
	p, err := readWith(z, r, f)
	return p, z, err
}

// readWith decodes one stream of r with z.
func readWith(z *Reader, r io.Reader, f Framing) ([]byte, error) {
	z.Reset(r)
	if _, err := z.Begin(f); err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// fillAll decodes one stream with Fill, into a buffer that only just has room.
func fillAll(z *Reader, room int) ([]byte, error) {
	var out []byte
	buf := make([]byte, windowSize+room+Slop)
	at := 0
	for {
		n, err := z.Fill(buf, at)
		out = append(out, buf[at:at+n]...)
		at += n
		if err == io.EOF {
			return out, nil
		} else if err != nil {
			return out, err
		}
		if len(buf)-at < Slop {
			copy(buf, buf[at-windowSize:at])
			at = windowSize
		}
	}
}

func TestDecode(t *testing.T) {
	for _, k := range kinds {
		for _, n := range []int{0, 1, 2, 100, 5000, 70000, 150000} {
			r := rand.New(rand.NewPCG(1, uint64(n)))
			want := k.make(r, n)
			for _, level := range levels {
				src := deflated(t, want, level)
				name := fmt.Sprintf("%s %d bytes level %d", k.name, n, level)
				checkDecode(t, name, src, want)
			}
		}
	}
}

// checkDecode decodes src, which is raw DEFLATE of want, in every form.
func checkDecode(t *testing.T, name string, src, want []byte) {
	t.Helper()
	var d Decoder
	guard := bytes.Repeat([]byte{0xa5}, 600)
	dst := append(make([]byte, len(want)), guard...)
	used, err := d.Decode(dst[:len(want)], append(bytes.Clone(src), guard...), Raw)
	if err != nil || used != len(src) || !bytes.Equal(dst[:len(want)], want) {
		t.Fatalf("%s: Decode used %d of %d, %v", name, used, len(src), err)
	}
	if !bytes.Equal(dst[len(want):], guard) {
		t.Fatalf("%s: Decode wrote behind dst", name)
	}
	clear(dst[:len(want)])
	if _, err := d.Fill(dst[:len(want)], src); err != nil || !bytes.Equal(dst[:len(want)], want) || !bytes.Equal(dst[len(want):], guard) {
		t.Fatalf("%s: Fill: %v", name, err)
	}
	if len(want) > 0 {
		if _, err := d.Decode(dst[:len(want)-1], src, Raw); err != ErrLong {
			t.Fatalf("%s: Decode into too little: %v", name, err)
		}
		half := dst[:len(want)/2]
		if _, err := d.Fill(half, src); err != nil || !bytes.Equal(half, want[:len(half)]) {
			t.Fatalf("%s: Fill of half: %v", name, err)
		}
	}
	if _, err := d.Decode(dst[:len(want)+1], src, Raw); err != ErrShort {
		t.Fatalf("%s: Decode into too much: %v", name, err)
	}
	got, z, err := readAll(bytes.NewReader(src), Raw)
	if err != nil || !bytes.Equal(got, want) || z.InputOffset() != int64(len(src)) || z.OutputOffset() != int64(len(want)) {
		t.Fatalf("%s: Read: %v", name, err)
	}
	if len(src) < 100000 {
		got, _, err = readAll(iotest.OneByteReader(bytes.NewReader(src)), Raw)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: Read of single bytes: %v", name, err)
		}
	}
	z.Reset(iotest.DataErrReader(bytes.NewReader(src)))
	_, err = z.Begin(Raw)
	check(t, err)
	if got, err = fillAll(z, 1+len(want)%1000); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: Fill: %v", name, err)
	}
}

func TestFraming(t *testing.T) {
	want := kinds[5].make(rand.New(rand.NewPCG(2, 2)), 300000)
	var g, zl bytes.Buffer
	gw := gzip.NewWriter(&g)
	gw.Name, gw.Comment, gw.Extra, gw.OS = "disk.raw", "a comment", []byte("AB\x02\x00xy"), 3
	for range 2 {
		_, err := gw.Write(want)
		check(t, err)
		check(t, gw.Close())
		gw.Reset(&g)
	}
	zw := zlib.NewWriter(&zl)
	_, err := zw.Write(want)
	check(t, err)
	check(t, zw.Close())

	dst := make([]byte, len(want))
	var d Decoder
	used, err := d.Decode(dst, zl.Bytes(), Zlib)
	if err != nil || used != zl.Len() || !bytes.Equal(dst, want) {
		t.Fatalf("zlib: used %d of %d, %v", used, zl.Len(), err)
	}
	z := NewReader(bytes.NewReader(g.Bytes()))
	for i := range 2 {
		h, err := z.Begin(Gzip)
		check(t, err)
		if i == 0 && (h.Name != "disk.raw" || h.Comment != "a comment" || string(h.Extra) != "AB\x02\x00xy" || h.OS != 3 || h.Len != 10+2+6+9+10) {
			t.Errorf("header is %+v", h)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("member %d: %v", i, err)
		}
	}
	if z.InputOffset() != int64(g.Len()) {
		t.Errorf("stands at %d of %d", z.InputOffset(), g.Len())
	}
	if _, err := z.Begin(Gzip); err != io.EOF {
		t.Errorf("behind the last member: %v", err)
	}
}

// TestAdler compares the sums with hash/adler32's: of the largest bytes, which overflow first, and of any.
func TestAdler(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	full := bytes.Repeat([]byte{255}, 3*adlerRun+100)
	any := kinds[1].make(r, len(full))
	for range 2000 {
		for _, p := range [][]byte{full, any} {
			from := r.IntN(len(p))
			mid, end := from+r.IntN(len(p)-from), len(p)-r.IntN(100)*r.IntN(2)
			mid = min(mid, end)
			from = min(from, mid)
			got := updateAdler(updateAdler(1, p[from:mid]), p[mid:end])
			if want := adler32.Checksum(p[from:end]); got != want {
				t.Fatalf("%d and %d bytes: %08x, want %08x", mid-from, end-mid, got, want)
			}
		}
	}
	for n := adlerBlock; n <= adlerRun; n += adlerBlock {
		a, b := adlerBlocks(full[:n])
		c, d := adlerBlocksGo(full[:n])
		if a != c || b != d {
			t.Fatalf("blocks of %d bytes: %d %d, want %d %d", n, a, b, c, d)
		}
	}
	// The sums before a run can be as large as they get.
	const most = (modAdler-1)<<16 | (modAdler - 1)
	got := updateAdler(most, full)
	a, b := uint64(modAdler-1), uint64(modAdler-1)
	for range full {
		a = (a + 255) % modAdler
		b = (b + a) % modAdler
	}
	if want := uint32(b<<16 | a); got != want {
		t.Errorf("from the largest sums: %08x, want %08x", got, want)
	}
}
