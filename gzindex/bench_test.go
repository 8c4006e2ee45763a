package gzindex

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// disk returns a gzip file to measure with: the one that IMGTOOL_GZ names, or IMGTOOL_IMAGES/small.raw.gz, or one that is made.
func disk(b *testing.B) []byte {
	path := os.Getenv("IMGTOOL_GZ")
	if dir := os.Getenv("IMGTOOL_IMAGES"); path == "" && dir != "" {
		path = filepath.Join(dir, "small.raw.gz")
	}
	if path != "" {
		file, err := os.ReadFile(path)
		check(b, err)
		return file
	}
	return member(b, text(1, 64<<20), 6)
}

// BenchmarkScan decodes a file from front to back, without an index and with.
func BenchmarkScan(b *testing.B) {
	file := disk(b)
	buf := make([]byte, windowLen+1<<20+Slop)
	for _, c := range []struct {
		name string
		o    ScanOptions
	}{{"plain", ScanOptions{}}, {"index", ScanOptions{Index: true}}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				s, size := NewScanner(bytes.NewReader(file), c.o), int64(0)
				for at := 0; ; {
					n, err := s.Fill(buf, at)
					if err == io.EOF {
						break
					}
					check(b, err)
					size += int64(n)
					at = keepWindow(buf, at+n)
				}
				b.SetBytes(size)
				if x := s.Index(); x != nil {
					var saved bytes.Buffer
					_, err := x.WriteTo(&saved)
					check(b, err)
					b.ReportMetric(float64(saved.Len())/(float64(size)/(1<<20)), "index-bytes/MiB")
				}
			}
		})
	}
}

// BenchmarkRandom4K reads 4 KiB at random, nearly always from a span that is not cached. A span is checked when it is first decoded, and later
// entered only.
func BenchmarkRandom4K(b *testing.B) {
	file := disk(b)
	x := index(b, file, ScanOptions{})
	for _, first := range []bool{true, false} {
		name := "again"
		if first {
			name = "first"
		}
		b.Run(name, func(b *testing.B) {
			d, err := Open(ctx, block.NoClose(fileOf(b, file)), Options{Index: x, Workers: 1, Memory: 8 << 20})
			check(b, err)
			defer d.Close()
			rnd := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, 4096)
			for b.Loop() {
				if first {
					uncheck(x)
				}
				check(b, d.Read(ctx, p, rnd.Int64N(d.Size()-4096)))
			}
		})
	}
}

// uncheck makes the index one of which no span was decoded yet.
func uncheck(x *Index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.points {
		x.points[i].checked = false
	}
}
