package deflate

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	kflate "github.com/klauspost/compress/flate"

	"github.com/imgtool/imgtool/compress/inflate"
)

// inputs returns kinds of input by name, of up to 3 MiB.
func inputs() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var text strings.Builder
	for text.Len() < 300_000 {
		fmt.Fprintf(&text, "line %d of the text, %x words\n", r.IntN(1000), r.IntN(1<<20))
	}
	// Noise, copies of what came before at all distances, runs and text by turns.
	var mixed []byte
	for len(mixed) < 400_000 {
		switch n := 1 + r.IntN(2000); r.IntN(4) {
		case 0:
			mixed = append(mixed, noise[r.IntN(100_000):][:n]...)
		case 1:
			at := max(0, len(mixed)-1-r.IntN(40_000))
			mixed = append(mixed, mixed[at:min(len(mixed), at+n)]...)
		case 2:
			mixed = append(mixed, bytes.Repeat([]byte{byte(r.Uint32())}, n)...)
		case 3:
			mixed = append(mixed, text.String()[n:2*n]...)
		}
	}
	few := make([]byte, 100_000)
	for i := range few {
		few[i] = "ACGT"[r.IntN(4)]
	}
	return map[string][]byte{
		"empty":  {},
		"one":    {'x'},
		"tiny":   []byte("abcabcabc"),
		"noise":  noise,
		"zeros":  make([]byte, 3<<20+17),
		"text":   []byte(text.String()),
		"mixed":  mixed,
		"few":    few,
		"parts":  append(bytes.Repeat(noise[:partLen/8], 8), text.String()...), // two parts
		"twice":  append(noise[:32768:32768], noise[:32768]...),                // at the greatest distance
		"beyond": append(noise[:32769:32769], noise[:32769]...),
	}
}

func newEncoder(t testing.TB, o Options) *Encoder {
	t.Helper()
	e, err := NewEncoder(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// eachLevel runs f for every level.
func eachLevel(t *testing.T, f func(t *testing.T, level int)) {
	for level := MinLevel; level <= MaxLevel; level++ {
		t.Run(fmt.Sprintf("level=%d", level), func(t *testing.T) { f(t, level) })
	}
}

// ended returns a piece that ends with end as a whole stream.
func ended(piece []byte, end End) []byte {
	if end == Sync {
		return append(piece, 1, 0, 0, 0xff, 0xff)
	}
	return piece
}

// mustDecode checks that three decoders make want of stream after dict.
func mustDecode(t *testing.T, stream, dict, want []byte) {
	t.Helper()
	for name, r := range map[string]io.Reader{
		"compress/flate": flate.NewReaderDict(bytes.NewReader(stream), dict),
		"klauspost":      kflate.NewReaderDict(bytes.NewReader(stream), dict),
	} {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
	if len(dict) > 0 {
		return
	}
	got := make([]byte, len(want))
	if used, err := new(inflate.Decoder).Decode(got, stream, inflate.Raw); err != nil || used != len(stream) || !bytes.Equal(got, want) {
		t.Fatalf("compress/inflate: %d bytes of %d used, %v", used, len(stream), err)
	}
}

func TestRoundTrip(t *testing.T) {
	in := inputs()
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		for name, src := range in {
			for _, end := range []End{Final, Sync} {
				t.Run(name, func(t *testing.T) {
					piece := e.Append([]byte("before"), src, end)
					if string(piece[:6]) != "before" {
						t.Fatal("what was in dst has changed")
					}
					mustDecode(t, ended(piece[6:], end), nil, src)
				})
			}
		}
	})
}

// TestShort tries every length up to where all paths are taken, of bytes that match, that do not, and that are equal.
func TestShort(t *testing.T) {
	in := inputs()
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		for _, name := range []string{"noise", "few", "zeros", "text"} {
			for n := range 400 {
				mustDecode(t, e.Append(nil, in[name][:n], Final), nil, in[name][:n])
			}
		}
	})
}

// TestExpansion: what does not compress is stored, at 5 bytes for each block; level 1 makes shorter blocks.
func TestExpansion(t *testing.T) {
	noise := inputs()["noise"]
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		for _, n := range []int{0, 1, 100, 65535, 65536, len(noise)} {
			most := n + 5*(n/65535+1)
			if level == MinLevel {
				most += n / 2000
			}
			if got := len(e.Append(nil, noise[:n], Final)); got > most {
				t.Errorf("%d bytes become %d", n, got)
			}
		}
	})
}

func TestWindow(t *testing.T) {
	in := inputs()
	eachLevel(t, func(t *testing.T, level int) {
		for _, window := range []int{minWindow, 4096, 16384, maxDistance} {
			e := newEncoder(t, Options{Level: level, Window: window})
			for _, name := range []string{"mixed", "text", "twice", "beyond"} {
				src := in[name][:min(len(in[name]), 1<<17)]
				if far := farthest(t, e.Append(nil, src, Final), len(src)); far > window {
					t.Errorf("%s: a match reaches back %d bytes, of %d", name, far, window)
				}
			}
			mixed := in["mixed"]
			dict, src := mixed[:50_000], mixed[50_000:80_000]
			if far := farthest(t, e.AppendDict(nil, dict, src, Final), len(src)); far > window {
				t.Errorf("after a dictionary a match reaches back %d bytes, of %d", far, window)
			}
		}
	})
}

// TestReach: a match at the greatest distance is found.
func TestReach(t *testing.T) {
	src := inputs()["twice"]
	eachLevel(t, func(t *testing.T, level int) {
		if got := len(newEncoder(t, Options{Level: level}).Append(nil, src, Final)); got > len(src)*52/100 {
			t.Errorf("%d bytes that repeat after 32768 become %d", len(src), got)
		}
	})
}

func TestDict(t *testing.T) {
	mixed := inputs()["mixed"]
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		for _, at := range []int{0, 1, 3, 100, 32767, 32768, 60_000} {
			dict, src := mixed[:at], mixed[at:at+30_000]
			joined := e.AppendDict(nil, dict, src, Final)
			mustDecode(t, joined, dict, src)
			if apart := e.AppendDict(nil, bytes.Clone(dict), bytes.Clone(src), Final); !bytes.Equal(apart, joined) {
				t.Fatalf("it matters whether %d bytes of dictionary lie before the source", at)
			}
		}
		text := inputs()["text"][:20_000]
		if with, without := len(e.AppendDict(nil, text, text, Sync)), len(e.Append(nil, text, Sync)); with > without/5 {
			t.Errorf("what the dictionary holds takes %d bytes, without it %d", with, without)
		}
	})
}

// TestPieces: pieces that end with Sync make one stream.
func TestPieces(t *testing.T) {
	mixed := inputs()["mixed"]
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		var stream []byte
		for off := 0; off < len(mixed); off += 70_000 {
			stream = e.AppendDict(stream, mixed[:off], mixed[off:min(off+70_000, len(mixed))], Sync)
			if !bytes.HasSuffix(stream, []byte{0, 0, 0xff, 0xff}) {
				t.Fatal("no empty stored block at the end")
			}
		}
		mustDecode(t, e.Append(stream, nil, Final), nil, mixed)
	})
}

// TestDeterminism: neither what an encoder has seen nor the room in dst shows.
func TestDeterminism(t *testing.T) {
	in := inputs()
	eachLevel(t, func(t *testing.T, level int) {
		used := newEncoder(t, Options{Level: level})
		for name, src := range in {
			want := newEncoder(t, Options{Level: level}).Append(nil, src, Final)
			used.AppendDict(nil, in["text"], in["mixed"], Sync)
			if !bytes.Equal(used.Append(bytes.Repeat([]byte{0xff}, 1<<20)[:0], src, Final), want) {
				t.Errorf("%s: another encoder gives something else", name)
			}
		}
	})
}

func TestAppendZlib(t *testing.T) {
	text := inputs()["text"]
	eachLevel(t, func(t *testing.T, level int) {
		for window := minWindow; window <= maxDistance; window *= 2 {
			z := newEncoder(t, Options{Level: level, Window: window}).AppendZlib(nil, text)
			if cinfo := z[0] >> 4; 256<<cinfo != window {
				t.Errorf("CINFO %d for a window of %d bytes", cinfo, window)
			}
			r, err := zlib.NewReader(bytes.NewReader(z))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Level: -1}, {Level: 10}, {Window: 128}, {Window: 1000}, {Window: 65536}, {Window: -256}} {
		if _, err := NewEncoder(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
	if e := newEncoder(t, Options{}); e.options != (Options{Level: DefaultLevel, Window: 32768}) {
		t.Errorf("the zero Options stand for %+v", e.options)
	}
}

func TestNoAllocations(t *testing.T) {
	mixed := inputs()["mixed"]
	eachLevel(t, func(t *testing.T, level int) {
		e := newEncoder(t, Options{Level: level})
		dst := make([]byte, 0, 1<<20)
		if n := testing.AllocsPerRun(3, func() {
			e.Append(dst, mixed, Final)
			e.AppendDict(dst, bytes.Clone(mixed[:100]), mixed, Sync) // a clone is one allocation
		}); n > 1 {
			t.Errorf("%v allocations", n-1)
		}
	})
}

// TestLevels: a higher level is not larger, give or take what made-up data does.
func TestLevels(t *testing.T) {
	for _, name := range []string{"text", "mixed"} {
		src := inputs()[name]
		before := len(src)
		for level := MinLevel; level <= MaxLevel; level++ {
			n := len(newEncoder(t, Options{Level: level}).Append(nil, src, Final))
			if n > before+before/33 {
				t.Errorf("%s: %d bytes at level %d, %d at the one before", name, n, level, before)
			}
			before = n
		}
	}
}

// TestLongSource compresses more at once than places are counted for: 1 GiB of zeros with text before, across and behind the limit.
func TestLongSource(t *testing.T) {
	if os.Getenv("IMGTOOL_SOAK") == "" {
		t.Skip("takes 2 GiB of memory: set IMGTOOL_SOAK=1")
	}
	text := inputs()["text"]
	src := make([]byte, maxSrc+maxSrc/16)
	for _, at := range []int{1000, maxSrc - len(text)/2, maxSrc + maxSrc/32} {
		copy(src[at:], text)
	}
	for _, level := range []int{MinLevel, DefaultLevel, MaxLevel} {
		piece := newEncoder(t, Options{Level: level}).Append(nil, src, Final)
		r := flate.NewReader(bytes.NewReader(piece))
		if err := func() error {
			buf := make([]byte, 1<<20)
			for p := src; len(p) > 0; p = p[len(buf):] {
				buf = buf[:min(len(buf), len(p))]
				if _, err := io.ReadFull(r, buf); err != nil {
					return err
				}
				if !bytes.Equal(buf, p[:len(buf)]) {
					return fmt.Errorf("wrong in the MiB from %d on", len(src)-len(p))
				}
			}
			return nil
		}(); err != nil {
			t.Errorf("level %d: %v", level, err)
		}
	}
}
