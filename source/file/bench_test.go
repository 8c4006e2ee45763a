package file

import (
	"testing"

	"github.com/imgtool/imgtool/block"
)

func BenchmarkExtents(b *testing.B) {
	const holes, step = 10000, 128 << 10
	d := open(b, newFile(b, b.TempDir(), nil), Options{Write: true})
	page := make([]byte, 4096)
	for i := range int64(holes) {
		ok(b, d.Write(b.Context(), page, (i+1)*step, 0))
	}
	buf := make([]block.Extent, 0, maxExtents+1)
	b.ReportAllocs()
	for b.Loop() {
		for off := int64(0); off < d.Size(); off = buf[len(buf)-1].End() {
			var err error
			buf, err = d.Extents(b.Context(), block.Map{}, off, d.Size()-off, buf[:0])
			ok(b, err)
		}
	}
}

// BenchmarkExtentsSteps describes one long run of data in small steps, on each kind of file system.
func BenchmarkExtentsSteps(b *testing.B) {
	for _, dir := range folders(b) {
		d := open(b, newFile(b, dir, make([]byte, 64<<20)), Options{})
		b.Run(dir, func(b *testing.B) {
			buf := make([]block.Extent, 0, 2)
			for b.Loop() {
				for off := int64(0); off < d.Size(); off = buf[len(buf)-1].End() {
					var err error
					buf, err = d.Extents(b.Context(), block.Map{}, off, min(64<<10, d.Size()-off), buf[:0])
					ok(b, err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	const size, piece = 64 << 20, 1 << 20
	d := open(b, newFile(b, b.TempDir(), make([]byte, size)), Options{})
	p := make([]byte, piece)
	b.SetBytes(piece)
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + piece) % size {
		ok(b, d.Read(b.Context(), p, off))
	}
}

func BenchmarkWrite(b *testing.B) {
	const size, piece = 64 << 20, 1 << 20
	d := open(b, newFile(b, b.TempDir(), make([]byte, size)), Options{Write: true})
	p := make([]byte, piece)
	b.SetBytes(piece)
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + piece) % size {
		ok(b, d.Write(b.Context(), p, off, 0))
	}
}
