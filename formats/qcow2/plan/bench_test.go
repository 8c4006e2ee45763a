package plan

import (
	"io"
	"os"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// BenchmarkWrite makes images of a disk, and drops them; of the file that IMGTOOL_BENCH_DISK names, where it is set.
func BenchmarkWrite(b *testing.B) {
	var src block.Device = sample(b, 1, 64<<20)
	if name := os.Getenv("IMGTOOL_BENCH_DISK"); name != "" {
		d, err := file.Open(b.Context(), name, file.Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		src = d
	}
	for _, c := range []struct {
		name   string
		values map[string]string
		o      formats.CreateOptions
	}{
		{"plain", nil, formats.CreateOptions{}},
		{"plain/pipe", nil, formats.CreateOptions{OneWay: true}},
		{"plain/extended_l2", map[string]string{"extended_l2": "on"}, formats.CreateOptions{}},
		{"plain/cluster_size=4k", map[string]string{"cluster_size": "4k"}, formats.CreateOptions{}},
		{"zlib", nil, formats.CreateOptions{Compress: true}},
		{"zlib/pipe", nil, formats.CreateOptions{Compress: true, OneWay: true}},
		{"zstd", map[string]string{"compression_type": "zstd"}, formats.CreateOptions{Compress: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(src.Size())
			var length int64
			for b.Loop() {
				sink := segment.ToDevice(block.NewNull(1 << 50))
				if c.o.OneWay {
					sink = segment.ToWriter(io.Discard)
				}
				var err error
				if length, err = segment.Write(b.Context(), sink, planOf(b, src, c.o, options(b, c.values)), segment.Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(length), "bytes")
		})
	}
}

// BenchmarkSparse plans and writes a disk in which there is next to nothing.
func BenchmarkSparse(b *testing.B) {
	src := sparse(b, 64<<40, 10)
	for b.Loop() {
		if _, err := segment.Write(b.Context(), segment.ToDevice(block.NewNull(1<<50)), planOf(b, src, formats.CreateOptions{}, options(b, nil)), segment.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
