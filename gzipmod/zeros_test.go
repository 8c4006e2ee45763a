package gzipmod

import (
	"bytes"
	"compress/flate"
	"io"
	"testing"

	kflate "github.com/klauspost/compress/flate"
)

func TestZeroRunsDecode(t *testing.T) {
	lengths := []int64{1, 2, 3, 257, 258, 259, 260, 515, 516, 517, 1 << 20, 1<<20 + 7, 3<<20 - 1}
	for n := int64(1); n < 3000; n += 13 {
		lengths = append(lengths, n)
	}
	for _, n := range lengths {
		z := encodeZeros(n)
		enc := z.append(nil)
		if int64(len(enc)) != zerosLen(n) || !z.matches(enc) {
			t.Fatalf("%d zeros: %d bytes, zerosLen says %d", n, len(enc), zerosLen(n))
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

func TestZeroRunDensity(t *testing.T) {
	z := encodeZeros(1 << 40)
	if want := int64(1<<40) / 1032; z.middle < want-64 || z.middle > want+64 {
		t.Fatalf("1 TiB of zeros has a middle of %d bytes, want about %d", z.middle, want)
	}
	if n := len(z.prefix) + len(z.suffix); n > 200 {
		t.Fatalf("%d bytes around the middle", n)
	}
}

func TestMatchesFindsEveryFlippedBit(t *testing.T) {
	z := encodeZeros(100000)
	enc := z.append(nil)
	for i := range enc {
		for bit := range 8 {
			enc[i] ^= 1 << bit
			if z.matches(enc) {
				t.Fatalf("bit %d of byte %d flipped and not found", bit, i)
			}
			enc[i] ^= 1 << bit
		}
	}
	if z.matches(enc[:len(enc)-1]) {
		t.Fatal("a truncated run matches")
	}
}
