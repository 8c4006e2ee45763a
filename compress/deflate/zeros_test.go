package deflate

import (
	"bytes"
	"compress/flate"
	"io"
	"testing"

	kflate "github.com/klauspost/compress/flate"
)

func TestZerosDecode(t *testing.T) {
	lengths := []int64{1, 2, 3, 257, 258, 259, 260, 515, 516, 517, 1 << 20, 1<<20 + 7, 3<<20 - 1}
	for n := int64(1); n < 3000; n += 13 {
		lengths = append(lengths, n)
	}
	for _, n := range lengths {
		enc := AppendZeros([]byte("before"), n)
		enc = enc[len("before"):]
		if int64(len(enc)) != ZerosLen(n) {
			t.Fatalf("%d zeros: %d bytes, ZerosLen says %d", n, len(enc), ZerosLen(n))
		}
		// A byte before the run must not matter, nor one after it.
		stream := append([]byte{0, 1, 0, 0xfe, 0xff, 'x'}, enc...)
		stream = append(stream, 1, 1, 0, 0xfe, 0xff, 'y')
		want := append(append([]byte("x"), make([]byte, n)...), 'y')
		for name, r := range map[string]io.Reader{"std": flate.NewReader(bytes.NewReader(stream)), "klauspost": kflate.NewReader(bytes.NewReader(stream))} {
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d zeros by %s: %d bytes, %v", n, name, len(got), err)
			}
		}
	}
}

// TestAppendZerosOverwrites gives a buffer whose spare capacity holds something else.
func TestAppendZerosOverwrites(t *testing.T) {
	dirty := bytes.Repeat([]byte{0xa5}, 1<<14)
	if got, want := AppendZeros(dirty[:0], 1<<20), AppendZeros(nil, 1<<20); !bytes.Equal(got, want) {
		t.Fatal("what the buffer held shows")
	}
}

func TestZerosDensity(t *testing.T) {
	z := Zeros(1 << 40)
	if want := int64(1<<40) / 1032; z.Middle < want-64 || z.Middle > want+64 {
		t.Fatalf("1 TiB of zeros has a middle of %d bytes, want about %d", z.Middle, want)
	}
	if n := len(z.Prefix) + len(z.Suffix); n > 200 {
		t.Fatalf("%d bytes around the middle", n)
	}
}
