package inflate

import (
	"bytes"
	"compress/flate"
	"io"
	"os"
	"path/filepath"
	"testing"

	kflate "github.com/klauspost/compress/flate"
)

// mixed returns real data: programs, text and sources of the Go installation, or what IMGTOOL_IMAGES/small.raw holds behind its first 64 MiB.
func mixed(b *testing.B) []byte {
	b.Helper()
	const size = 16 << 20
	if dir := os.Getenv("IMGTOOL_IMAGES"); dir != "" {
		f, err := os.Open(filepath.Join(dir, "small.raw"))
		check(b, err)
		defer f.Close()
		p := make([]byte, size)
		_, err = f.ReadAt(p, 64<<20)
		check(b, err)
		return p
	}
	var p []byte
	exe, err := os.Executable()
	check(b, err)
	program, err := os.ReadFile(exe)
	check(b, err)
	p = append(p, program[:min(len(program), size/2)]...)
	sources, err := filepath.Glob("../../*/*.go")
	check(b, err)
	for len(p) < size {
		for _, name := range sources {
			source, err := os.ReadFile(name)
			check(b, err)
			p = append(p, source...)
		}
		p = append(p, make([]byte, 1<<20)...)
	}
	return p[:size]
}

// zlibReader is what compress/flate and klauspost's have in common.
type peerReader interface {
	io.Reader
	flate.Resetter
}

var peersOf = []struct {
	name string
	make func() peerReader
}{
	{"klauspost", func() peerReader { return kflate.NewReader(bytes.NewReader(nil)).(peerReader) }},
	{"std", func() peerReader { return flate.NewReader(bytes.NewReader(nil)).(peerReader) }},
}

// BenchmarkDecode decodes a long stream in memory.
func BenchmarkDecode(b *testing.B) {
	want := mixed(b)
	src := deflated(b, want, 6)
	b.Run("ours", func(b *testing.B) {
		var d Decoder
		dst := make([]byte, len(want))
		b.SetBytes(int64(len(want)))
		for b.Loop() {
			_, err := d.Decode(dst, src, Raw)
			check(b, err)
		}
	})
	benchPeers(b, len(want), [][]byte{src}, len(want))
}

// BenchmarkReader decodes a long stream from an io.Reader, without framing and thus without checksum.
func BenchmarkReader(b *testing.B) {
	want := mixed(b)
	src := deflated(b, want, 6)
	b.Run("ours", func(b *testing.B) {
		z := NewReader(nil)
		b.SetBytes(int64(len(want)))
		for b.Loop() {
			z.Reset(bytes.NewReader(src))
			_, err := z.Begin(Raw)
			check(b, err)
			for err == nil {
				_, err = z.Next()
			}
			if err != io.EOF {
				b.Fatal(err)
			}
		}
	})
	benchPeers(b, len(want), [][]byte{src}, 64<<10)
}

// BenchmarkCluster decodes clusters of 64 KiB, each a stream of its own as in qcow2.
func BenchmarkCluster(b *testing.B) {
	const size = 64 << 10
	want := mixed(b)
	var srcs [][]byte
	for p := want; len(p) > 0; p = p[size:] {
		srcs = append(srcs, deflated(b, p[:size], 6))
	}
	b.Run("ours", func(b *testing.B) {
		var d Decoder
		dst := make([]byte, size)
		b.SetBytes(int64(len(want)))
		for b.Loop() {
			for _, src := range srcs {
				_, err := d.Fill(dst, src)
				check(b, err)
			}
		}
	})
	benchPeers(b, len(want), srcs, size)
}

// BenchmarkZeros decodes what holes become.
func BenchmarkZeros(b *testing.B) {
	want := make([]byte, 64<<20)
	src := deflated(b, want, 6)
	var d Decoder
	b.SetBytes(int64(len(want)))
	for b.Loop() {
		_, err := d.Decode(want, src, Raw)
		check(b, err)
	}
}

// benchPeers decodes srcs with the other decoders, into a buffer of piece bytes.
func benchPeers(b *testing.B, size int, srcs [][]byte, piece int) {
	for _, peer := range peersOf {
		b.Run(peer.name, func(b *testing.B) {
			r := peer.make()
			dst := make([]byte, piece)
			b.SetBytes(int64(size))
			for b.Loop() {
				for _, src := range srcs {
					check(b, r.Reset(bytes.NewReader(src), nil))
					for {
						if _, err := io.ReadFull(r, dst); err == io.EOF || err == io.ErrUnexpectedEOF {
							break
						} else if err != nil {
							b.Fatal(err)
						}
						if piece == size || len(srcs) > 1 {
							break
						}
					}
				}
			}
		})
	}
}

func BenchmarkAdler(b *testing.B) {
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		updateAdler(1, p)
	}
}

// BenchmarkHeader reads the header of a dynamic block and makes its tables.
func BenchmarkHeader(b *testing.B) {
	src := deflated(b, mixed(b)[:64<<10], 6)
	var c core
	for b.Loop() {
		c.give(nil, src)
		check(b, c.header())
	}
}
