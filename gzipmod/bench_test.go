package gzipmod

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

const (
	benchSize = 64 << 20 // of the image, bytes
	benchKept = 16 << 20 // of which the first are kept
)

// benchSource returns an image that compresses about as a file system does.
func benchSource(b *testing.B) block.Device {
	b.Helper()
	return device(b, image(70, benchSize))
}

// benchFile returns a modifiable image of benchSource in a file, closed.
func benchFile(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "disk.gz")
	p, err := file.Create(path, file.CreateOptions{})
	check(b, err)
	src := benchSource(b)
	o := Options{Keep: []Range{span(0, benchKept)}}
	l, err := NewLayout(ctx, src, o)
	check(b, err)
	plan, err := l.Plan(src, o)
	check(b, err)
	_, err = segment.Write(ctx, segment.ToDevice(p.Device()), plan, segment.Options{})
	check(b, err)
	check(b, p.Commit(true))
	return path
}

func benchOpen(b *testing.B, path string, o OpenOptions) *Device {
	b.Helper()
	f, err := file.Open(ctx, path, file.Options{Write: o.Write})
	check(b, err)
	o.Mark = mark.File(path)
	d, err := Open(ctx, f, o)
	check(b, err)
	return d
}

func BenchmarkMake(b *testing.B) {
	src := benchSource(b)
	for _, level := range []int{1, DefaultLevel, 9} {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			o := Options{Keep: []Range{span(0, benchKept)}, Level: level}
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				l, err := NewLayout(ctx, src, o)
				check(b, err)
				plan, err := l.Plan(src, o)
				check(b, err)
				_, err = segment.Write(ctx, segment.ToWriter(io.Discard), plan, segment.Options{})
				check(b, err)
			}
		})
	}
}

// BenchmarkRead4K reads 4 KiB at random: where the chunks are in the cache, where each has to be decoded, and where nothing is compressed.
func BenchmarkRead4K(b *testing.B) {
	path := benchFile(b)
	for _, c := range []struct {
		name     string
		cache    int64
		off, len int64
	}{
		{"cached", benchSize, benchKept, benchSize - benchKept},
		{"uncached", 1, benchKept, benchSize - benchKept},
		{"kept", 1, 0, benchKept},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := benchOpen(b, path, OpenOptions{Cache: c.cache})
			defer d.Close()
			check(b, d.Read(ctx, make([]byte, 4096), c.off))
			if c.cache > 1 { // a chunk that is read whole is not kept
				p := make([]byte, 4096)
				for off := c.off; off < c.off+c.len; off += minChunk {
					check(b, d.Read(ctx, p, off))
				}
			}
			b.SetBytes(4096)
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 4096)
				for pb.Next() {
					if err := d.Read(ctx, p, c.off+4096*rand.Int64N(c.len/4096)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkReadAll reads the image from front to back, in pieces of 4 MiB.
func BenchmarkReadAll(b *testing.B) {
	d := benchOpen(b, benchFile(b), OpenOptions{})
	defer d.Close()
	p := make([]byte, 4<<20)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		for off := int64(0); off < benchSize; off += int64(len(p)) {
			check(b, d.Read(ctx, p, off))
		}
	}
}

// BenchmarkPatch changes bytes of a kept range in a file and flushes, each time with other bytes.
func BenchmarkPatch(b *testing.B) {
	path := benchFile(b)
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dK", n>>10), func(b *testing.B) {
			d := benchOpen(b, path, OpenOptions{Write: true})
			p := make([]byte, n)
			r := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				p[0]++
				for i := 4096; i < n; i += 4096 {
					p[i]++
				}
				check(b, d.Write(ctx, p, r.Int64N(benchKept-int64(n)), 0))
				check(b, d.Flush(ctx))
			}
			check(b, d.Close())
		})
	}
}

// BenchmarkPatchFile is what one `imgtool mod patch` of 4 KiB does: open, write, flush, close.
func BenchmarkPatchFile(b *testing.B) {
	path := benchFile(b)
	p := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		p[0]++
		d := benchOpen(b, path, OpenOptions{Write: true})
		check(b, d.Write(ctx, p, 4096, 0))
		check(b, d.Close())
	}
}

func BenchmarkVerify(b *testing.B) {
	f, err := file.Open(ctx, benchFile(b), file.Options{})
	check(b, err)
	defer f.Close()
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		_, problems, err := Verify(context.Background(), f, VerifyOptions{})
		check(b, err)
		if len(problems) > 0 {
			b.Fatal(problems[0])
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	path := benchFile(b)
	b.ReportAllocs()
	for b.Loop() {
		check(b, benchOpen(b, path, OpenOptions{}).Close())
	}
}
