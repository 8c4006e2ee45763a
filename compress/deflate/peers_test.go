package deflate

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// gzipReaders lists programs that decode a gzip file to standard output.
var gzipReaders = []struct {
	program string
	args    []string
}{
	{"gzip", []string{"-dc"}},
	{"pigz", []string{"-dc"}},
	{"igzip", []string{"-dc"}},
	{"libdeflate-gunzip", []string{"-c"}},
	{"bgzip", []string{"-dc"}},
	{"7zz", []string{"x", "-so", "-tgzip"}},
	{"busybox", []string{"gunzip", "-c"}},
	{"python3", []string{"-c", "import gzip, sys; sys.stdout.buffer.write(gzip.open(sys.argv[1]).read())"}},
}

// TestReaders: every reader decodes what every level makes of every kind of input, in a gzip file of one member. The pieces of it are written in the
// three ways there are: by a Writer, with Sync in between, and each after a dictionary.
func TestReaders(t *testing.T) {
	in := inputs()
	for _, reader := range gzipReaders {
		t.Run(reader.program, func(t *testing.T) {
			peers.Need(t, reader.program)
			dir := t.TempDir()
			for level := MinLevel; level <= MaxLevel; level++ {
				if testing.Short() && level != DefaultLevel {
					continue
				}
				for name, src := range in {
					if len(src) > 1<<19 && level > MinLevel && level < MaxLevel {
						continue
					}
					file := filepath.Join(dir, "in.gz")
					if err := os.WriteFile(file, gzipped(t, src, level), 0o666); err != nil {
						t.Fatal(err)
					}
					if got := peers.Run(t, reader.program, append(reader.args, file)...); !bytes.Equal(got, src) {
						t.Errorf("level %d, %s: %d bytes of %d", level, name, len(got), len(src))
					}
				}
			}
		})
	}
}

// gzipped returns src as a gzip file: half of it written at once, then flushed, and the rest in small pieces.
func gzipped(t *testing.T, src []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	z := newWriter(t, &out, Gzip, Options{Level: level})
	z.Write(src[:len(src)/2])
	if err := z.Flush(); err != nil {
		t.Fatal(err)
	}
	for p := src[len(src)/2:]; len(p) > 0; p = p[min(len(p), 50_000):] {
		z.Write(p[:min(len(p), 50_000)])
		z.Flush()
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestZlibReader: zlib itself, which Python brings, decodes the zlib form of every level and window, holding it to the window that the header
// promises; and raw pieces after a dictionary.
func TestZlibReader(t *testing.T) {
	const script = `
import os, sys, zlib
for name in sorted(os.listdir(sys.argv[1])):
    base, ext = os.path.splitext(name)
    path = os.path.join(sys.argv[1], base)
    if ext == ".z":
        d = zlib.decompressobj(0) # the window is that of the header
    elif ext == ".raw":
        d = zlib.decompressobj(-15, open(path + ".dict", "rb").read())
    else:
        continue
    got = d.decompress(open(os.path.join(sys.argv[1], name), "rb").read()) + d.flush()
    assert d.eof and got == open(path + ".src", "rb").read(), name
    print(name)
`
	mixed := inputs()["mixed"][:100_000]
	dir := t.TempDir()
	write := func(name string, p []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	files := 0
	for level := MinLevel; level <= MaxLevel; level++ {
		for window := 512; window <= maxDistance; window *= 2 { // zlib takes 256 for 512
			e := newEncoder(t, Options{Level: level, Window: window})
			name := string(rune('0'+level)) + "-" + string(rune('a'+files))
			write(name+".z", e.AppendZlib(nil, mixed))
			write(name+".src", mixed)
			files++
		}
		e := newEncoder(t, Options{Level: level})
		name := string(rune('0'+level)) + "-dict"
		write(name+".raw", e.AppendDict(nil, mixed[:40_000], mixed[40_000:], Final))
		write(name+".dict", mixed[:40_000])
		write(name+".src", mixed[40_000:])
		files++
	}
	if got := bytes.Count(peers.Run(t, "python3", "-c", script, dir), []byte("\n")); got != files {
		t.Errorf("%d files of %d decoded", got, files)
	}
}
