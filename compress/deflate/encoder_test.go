package deflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// inputs returns kinds of input by name.
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
	// Pieces of noise, copies of what came before at all distances, runs and text by turns.
	mixed := []byte{}
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
	few := make([]byte, 100_000) // a small alphabet
	for i := range few {
		few[i] = "ACGT"[r.IntN(4)]
	}
	return map[string][]byte{
		"empty": {},
		"one":   {'x'},
		"tiny":  []byte("abcabcabc"),
		"noise": noise,
		"zeros": make([]byte, 3<<20+17),
		"text":  []byte(text.String()),
		"mixed": mixed,
		"few":   few,
	}
}

// ended returns a piece that ends with end as a whole stream.
func ended(piece []byte, end End) []byte {
	if end == Sync {
		return append(piece, 1, 0, 0, 0xff, 0xff)
	}
	return piece
}

func TestRoundTrip(t *testing.T) {
	for name, src := range inputs() {
		for level := MinLevel; level <= MaxLevel; level++ {
			for _, end := range []End{Final, Sync} {
				e, err := NewEncoder(Options{Level: level})
				if err != nil {
					t.Fatal(err)
				}
				piece := e.Append([]byte("before"), src, end)
				if string(piece[:6]) != "before" {
					t.Fatalf("%s at level %d: what was in dst has changed", name, level)
				}
				got, err := io.ReadAll(flate.NewReader(bytes.NewReader(ended(piece[6:], end))))
				if err != nil || !bytes.Equal(got, src) {
					t.Fatalf("%s at level %d: %d bytes of %d, %v", name, level, len(got), len(src), err)
				}
			}
		}
	}
}
