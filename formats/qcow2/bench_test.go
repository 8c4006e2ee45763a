package qcow2

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// benchImage makes an image of 64 MiB of text.
func benchImage(b *testing.B, args ...string) string {
	dir := b.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
	ok(b, os.WriteFile(raw, text(rand.New(rand.NewPCG(1, 2)), 64<<20), 0o666))
	qemuImg(b, append(append([]string{"convert", "-f", "raw", "-O", Name}, args...), raw, path)...)
	return path
}

func BenchmarkReadSequential(b *testing.B) {
	for name, args := range map[string][]string{"plain": nil, "zlib": {"-c"}, "zstd": {"-c", "-o", "compression_type=zstd"}} {
		b.Run(name, func(b *testing.B) {
			d := openPath(b, benchImage(b, args...), false)
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for off := int64(0); b.Loop(); off = (off + int64(len(p))) % d.Size() {
				ok(b, d.Read(ctx, p, off))
			}
		})
	}
}

// BenchmarkReadRandom reads 4 KiB at a time, also through a chain.
func BenchmarkReadRandom(b *testing.B) {
	for _, depth := range []int{1, 8} {
		b.Run(fmt.Sprint("depth ", depth), func(b *testing.B) {
			path := benchImage(b)
			for i := range depth - 1 {
				over := fmt.Sprintf("%s%d", path, i)
				create(b, over, "", "64M", "-b", path, "-F", Name)
				path = over
			}
			d := openPath(b, path, false)
			p := make([]byte, 4096)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			r := rand.New(rand.NewPCG(3, 4))
			for b.Loop() {
				ok(b, d.Read(ctx, p, r.Int64N(d.Size()>>12)<<12))
			}
		})
	}
}

// BenchmarkWriteRandom writes 4 KiB at a time: to places that are not there yet, which are few in the end, and to places that are.
func BenchmarkWriteRandom(b *testing.B) {
	for name, prealloc := range map[string]string{"new": "off", "in place": "metadata"} {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "image")
			create(b, path, "preallocation="+prealloc, "16G")
			d := openPath(b, path, true)
			p := noise(rand.New(rand.NewPCG(1, 1)), 4096)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			r := rand.New(rand.NewPCG(3, 4))
			for b.Loop() {
				ok(b, d.Write(ctx, p, r.Int64N(d.Size()>>12)<<12, 0))
			}
		})
	}
}

// BenchmarkWriteSequential fills an image in pieces of 512 KiB.
func BenchmarkWriteSequential(b *testing.B) {
	path := filepath.Join(b.TempDir(), "image")
	create(b, path, "", "1T")
	d := openPath(b, path, true)
	p := noise(rand.New(rand.NewPCG(1, 1)), 512<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for off := int64(0); b.Loop() && off < 4<<30; off += int64(len(p)) {
		ok(b, d.Write(ctx, p, off, 0))
	}
}
