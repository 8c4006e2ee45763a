package deflate

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	kflate "github.com/klauspost/compress/flate"

	"github.com/imgtool/imgtool/internal/peers"
)

// realData returns 16 MiB of a disk image where IMGTOOL_IMAGES names a folder of them, else the start of this program.
func realData(b *testing.B) []byte {
	b.Helper()
	if os.Getenv("IMGTOOL_IMAGES") != "" {
		return imagePart(b, peers.Images(b)+"/small.raw", 16<<20)
	}
	name, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return program[:min(len(program), 4<<20)]
}

// BenchmarkAppend compresses pieces of 1 MiB at each level, and the same with the other package there is in Go.
func BenchmarkAppend(b *testing.B) {
	data := realData(b)
	const piece = 1 << 20
	run := func(b *testing.B, encode func(src []byte) int) {
		b.SetBytes(int64(len(data)))
		n := 0
		for b.Loop() {
			n = 0
			for at := 0; at < len(data); at += piece {
				n += encode(data[at:min(at+piece, len(data))])
			}
		}
		b.ReportMetric(float64(len(data))/float64(n), "ratio")
	}
	dst := make([]byte, 0, 2*piece)
	for level := MinLevel; level <= MaxLevel; level++ {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			e := newEncoder(b, Options{Level: level})
			run(b, func(src []byte) int { return len(e.Append(dst, src, Sync)) })
		})
	}
	for level := 1; level <= 9; level++ {
		b.Run(fmt.Sprintf("klauspost=%d", level), func(b *testing.B) {
			w, err := kflate.NewWriter(io.Discard, level)
			if err != nil {
				b.Fatal(err)
			}
			run(b, func(src []byte) int {
				out := bytes.NewBuffer(dst)
				w.Reset(out)
				w.Write(src)
				w.Flush()
				return out.Len()
			})
		})
	}
}

func BenchmarkZeros(b *testing.B) {
	zeros := make([]byte, 1<<20)
	for level := MinLevel; level <= MaxLevel; level++ {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			e := newEncoder(b, Options{Level: level})
			b.SetBytes(int64(len(zeros)))
			dst := make([]byte, 0, 1<<16)
			for b.Loop() {
				e.Append(dst, zeros, Sync)
			}
		})
	}
}
