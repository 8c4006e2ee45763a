package gz

import (
	"bytes"
	"io"
	"testing"

	"github.com/imgtool/imgtool/formats"
)

// BenchmarkDecode decodes a foreign gzip as a stream, as convert does.
func BenchmarkDecode(b *testing.B) {
	const size = 32 << 20
	file := member(b, text(1, size), 0)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		s, err := decode(ctx, bytes.NewReader(file), formats.OpenOptions{})
		check(b, err)
		n := int64(0)
		for {
			run, err := s.Next(ctx)
			n += run.Len
			if err == io.EOF {
				break
			}
			check(b, err)
		}
		if n != size {
			b.Fatalf("%d bytes of %d", n, size)
		}
		check(b, s.Close())
	}
}

// BenchmarkOpenForeign opens a foreign gzip as a device: it is decoded once, to learn its size.
func BenchmarkOpenForeign(b *testing.B) {
	const size = 32 << 20
	file := device(b, member(b, text(1, size), 0))
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		d, err := open(ctx, file, formats.OpenOptions{})
		check(b, err)
		if d.Size() != size {
			b.Fatalf("%d bytes of %d", d.Size(), size)
		}
	}
}
