package deflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

var framings = []Framing{Raw, Zlib, Gzip}

func newWriter(t testing.TB, w io.Writer, f Framing, o Options) *Writer {
	t.Helper()
	z, err := NewWriter(w, f, o)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// unframed decodes all of what a Writer wrote.
func unframed(f Framing, r io.Reader) (_ []byte, err error) {
	switch f {
	case Zlib:
		r, err = zlib.NewReader(r)
	case Gzip:
		r, err = gzip.NewReader(r)
	default:
		r = flate.NewReader(r)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// TestWriter: the stream decodes, and is the same however it is written and whatever was written before.
func TestWriter(t *testing.T) {
	in := inputs()
	eachLevel(t, func(t *testing.T, level int) {
		for _, f := range framings {
			var out bytes.Buffer
			z := newWriter(t, &out, f, Options{Level: level})
			for name, src := range in {
				var streams [][]byte
				for _, step := range []int{len(src) + 1, 65_537} {
					out = bytes.Buffer{}
					z.Reset(&out)
					for p := src; len(p) > 0; p = p[min(len(p), step):] {
						if n, err := z.Write(p[:min(len(p), step)]); n != min(len(p), step) || err != nil {
							t.Fatal(n, err)
						}
					}
					if err := z.Close(); err != nil {
						t.Fatal(err)
					}
					streams = append(streams, out.Bytes())
				}
				if !bytes.Equal(streams[0], streams[1]) {
					t.Errorf("%s: the stream depends on how it is written", name)
				}
				if got, err := unframed(f, bytes.NewReader(streams[0])); err != nil || !bytes.Equal(got, src) {
					t.Errorf("%s, framing %d: %d bytes of %d, %v", name, f, len(got), len(src), err)
				}
			}
		}
	})
}

// TestWriterHistory: what lies before a part of 1 MiB is found from inside it.
func TestWriterHistory(t *testing.T) {
	noise := inputs()["noise"][:32_768]
	var out bytes.Buffer
	z := newWriter(t, &out, Raw, Options{})
	for range 2 * (partLen + maxDistance) / len(noise) {
		z.Write(noise)
	}
	if z.Close(); out.Len() > len(noise)*3/2 {
		t.Errorf("the same 32 KiB again and again become %d bytes", out.Len())
	}
}

func TestFlush(t *testing.T) {
	text := inputs()["text"]
	eachLevel(t, func(t *testing.T, level int) {
		r, w := io.Pipe()
		z := newWriter(t, w, Gzip, Options{Level: level})
		done := make(chan error, 1)
		go func() {
			for _, n := range []int{0, 1, 1000, 0, 70_000} {
				z.Write(text[:n])
				if err := z.Flush(); err != nil {
					done <- err
					return
				}
			}
			done <- errors.Join(z.Close(), w.Close())
		}()
		g, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1, 1000, 0, 70_000} {
			got := make([]byte, n) // is there before the next is written
			if _, err := io.ReadFull(g, got); err != nil || !bytes.Equal(got, text[:n]) {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		if rest, err := io.ReadAll(g); len(rest) != 0 || err != nil {
			t.Fatalf("%d bytes more, %v", len(rest), err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// brokenWriter fails once left bytes have been written.
type brokenWriter struct{ left int }

var errBroken = errors.New("broken")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestWriterErrors(t *testing.T) {
	if _, err := NewWriter(io.Discard, Raw, Options{Level: 10}); err == nil {
		t.Error("level 10 is accepted")
	}
	if _, err := NewWriter(io.Discard, 3, Options{}); err == nil {
		t.Error("framing 3 is accepted")
	}
	z := newWriter(t, &brokenWriter{100_000}, Gzip, Options{})
	for range 100 {
		z.Write(inputs()["noise"])
	}
	for name, err := range map[string]error{"Flush": z.Flush(), "Close": z.Close()} {
		if err != errBroken {
			t.Errorf("%s says %v", name, err)
		}
	}
	if _, err := z.Write([]byte("x")); err != errBroken {
		t.Errorf("Write says %v", err)
	}
	z.Reset(io.Discard)
	if err := errors.Join(z.Close(), z.Close()); err != nil {
		t.Error(err)
	}
	if _, err := z.Write([]byte("x")); err != errClosed {
		t.Errorf("Write after Close says %v", err)
	}
}

// TestHuge writes more than 4 GiB, zeros with islands of text, where gzip's length of 32 bits wraps around and the islands lie far
// behind what 32 bits count. gzip decodes it.
func TestHuge(t *testing.T) {
	if os.Getenv("IMGTOOL_SOAK") == "" {
		t.Skip("takes a minute: set IMGTOOL_SOAK=1")
	}
	island := inputs()["text"]
	const islands, gap = 34, 128 << 20
	zeros := make([]byte, 1<<20)
	stream := func(w io.Writer) error {
		for range islands {
			for n := 0; n < gap; n += len(zeros) {
				if _, err := w.Write(zeros); err != nil {
					return err
				}
			}
			if _, err := w.Write(island); err != nil {
				return err
			}
		}
		return nil
	}
	for _, level := range []int{MinLevel, DefaultLevel, MaxLevel} {
		gunzip := peers.Command(t, "gzip", "-dc")
		in, err := gunzip.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := gunzip.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := gunzip.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			z, _ := NewWriter(in, Gzip, Options{Level: level})
			if err := errors.Join(stream(z), z.Close(), in.Close()); err != nil {
				t.Error(err)
			}
		}()
		got := make([]byte, 1<<20)
		if err := stream(equalWriter{out, got}); err != nil {
			t.Fatalf("level %d: %v", level, err)
		}
		if n, err := io.ReadFull(out, got[:1]); n != 0 || err != io.EOF {
			t.Fatalf("level %d: more than was written, %v", level, err)
		}
		if err := gunzip.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// equalWriter fails where what is written is not what r gives.
type equalWriter struct {
	r   io.Reader
	buf []byte
}

func (w equalWriter) Write(p []byte) (int, error) {
	if _, err := io.ReadFull(w.r, w.buf[:len(p)]); err != nil {
		return 0, err
	}
	if !bytes.Equal(w.buf[:len(p)], p) {
		return 0, errors.New("it is not what was written")
	}
	return len(p), nil
}
