package plan

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// options returns the defaults with values set as a user would.
func options(t testing.TB, values map[string]string) Options {
	t.Helper()
	o, err := formats.ParseOptions(Defaults(), values)
	if err != nil {
		t.Fatal(err)
	}
	return *o
}

// sample returns a disk of n bytes with text, noise, constant bytes, zeros that are known and zeros that are not.
func sample(t testing.TB, seed uint64, n int64) *block.Memory {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	m := block.NewMemory(n)
	put := func(p []byte, off int64) {
		if err := m.Write(t.Context(), p[:min(int64(len(p)), n-off)], off, 0); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < n; {
		p := make([]byte, 1+r.IntN(200<<10))
		switch r.IntN(6) {
		case 0: // a hole
			off += int64(r.IntN(600 << 10))
			continue
		case 1:
			for i := range p {
				p[i] = byte(r.Uint32())
			}
		case 2:
			p = bytes.Repeat([]byte{byte(1 + r.IntN(255))}, len(p))
		case 3: // zeros that are stored
			if err := m.Zero(t.Context(), off, min(int64(len(p)), n-off), block.NoHole); err != nil {
				t.Fatal(err)
			}
			off += int64(len(p))
			continue
		default:
			words := []string{"cluster ", "table ", "entry\n", "refcount ", "\x00\x00\x00\x00"}
			p = p[:0]
			for len(p) < 100<<10 {
				p = append(p, words[r.IntN(len(words))]...)
			}
		}
		put(p, off)
		off += int64(len(p))
	}
	return m
}

// write writes the plan into a new file and returns its name.
func write(t testing.TB, p *segment.Plan) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.qcow2")
	pending, err := file.Create(name, file.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer pending.Abort()
	if _, err := segment.Write(t.Context(), segment.ToDevice(pending.Device()), p, segment.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := pending.Commit(false); err != nil {
		t.Fatal(err)
	}
	return name
}

func planOf(t testing.TB, src block.Device, o formats.CreateOptions, opts Options) *segment.Plan {
	t.Helper()
	p, err := New(t.Context(), src, o, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// raw writes the device into a raw file and returns its name.
func raw(t testing.TB, d block.Device) string {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.Read(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return save(t, p)
}

// save writes p into a new file and returns its name.
func save(t testing.TB, p []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// written returns what the plan writes into a new device.
func written(t testing.TB, p *segment.Plan, o segment.Options) []byte {
	t.Helper()
	d := block.NewMemory(0)
	n, err := segment.Write(t.Context(), segment.ToDevice(d), p, o)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, d.Size())
	if err := d.Read(t.Context(), b, 0); err != nil || n != d.Size() {
		t.Fatalf("%d of %d bytes, %v", n, d.Size(), err)
	}
	return b
}

// piped returns what the plan writes into a pipe.
func piped(t testing.TB, p *segment.Plan, o segment.Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := segment.Write(t.Context(), segment.ToWriter(&b), p, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// stream is a device as a stream of runs of random lengths.
type stream struct {
	t     testing.TB
	d     block.Device
	r     *rand.Rand
	off   int64
	known bool
}

func (s *stream) Size() (int64, bool) {
	if !s.known {
		return 0, false
	}
	return s.d.Size(), true
}

func (s *stream) Next(ctx context.Context) (block.Run, error) {
	if s.off == s.d.Size() {
		return block.Run{}, io.EOF
	}
	n := min(1+s.r.Int64N(1<<(8+s.r.IntN(13))), s.d.Size()-s.off)
	ext, err := s.d.Extents(ctx, block.Map{}, s.off, n, nil)
	if err != nil {
		return block.Run{}, err
	}
	off := s.off
	if ext[0].Flags&block.ExtZero != 0 {
		s.off = ext[0].End()
		return block.Run{Len: ext[0].Len, Zero: true}, nil
	}
	p := make([]byte, n)
	s.off += n
	return block.Run{Len: n, Data: p}, s.d.Read(ctx, p, off)
}

func (s *stream) Close() error { return nil }

func streamOf(t testing.TB, d block.Device, o formats.CreateOptions, opts Options, known bool) *segment.Plan {
	t.Helper()
	p, err := NewStream(t.Context(), &stream{t: t, d: d, r: rand.New(rand.NewPCG(3, 3)), known: known}, o, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSameBytes: the image depends on what is in it alone, not on workers, memory, or how the source comes.
func TestSameBytes(t *testing.T) {
	size := int64(3<<20 + 1000)
	if testing.Short() {
		size = 512<<10 + 1000
	}
	src := sample(t, 2, size)
	for _, values := range []map[string]string{
		nil, {"cluster_size": "4k"}, {"cluster_size": "2M"}, {"extended_l2": "on"}, {"compression_type": "zstd"}, {"cluster_size": "512", "refcount_bits": "2"},
		{"preallocation": "metadata"}, {"preallocation": "full"},
	} {
		for _, compress := range []bool{false, true} {
			opts := options(t, values)
			if compress && opts.Preallocation != "off" {
				continue
			}
			o := formats.CreateOptions{Compress: compress}
			want := written(t, planOf(t, src, o, opts), segment.Options{Workers: 1})
			forms := map[string][]byte{
				"2 workers":            written(t, planOf(t, src, o, opts), segment.Options{Workers: 2}),
				"7 workers":            written(t, planOf(t, src, o, opts), segment.Options{Workers: 7}),
				"little memory":        written(t, planOf(t, src, o, opts), segment.Options{Workers: 3, Memory: 1}),
				"extents cut":          written(t, planOf(t, &cut{Device: src, step: 100}, o, opts), segment.Options{}),
				"all is data":          written(t, planOf(t, &cut{Device: src, step: 1 << 40, data: true}, o, opts), segment.Options{}),
				"packed source":        written(t, planOf(t, packedSource{src}, o, opts), segment.Options{}),
				"stream":               written(t, streamOf(t, src, formats.CreateOptions{Compress: compress, Size: -1}, opts, true), segment.Options{}),
				"stream, size unknown": written(t, streamOf(t, src, formats.CreateOptions{Compress: compress, Size: -1}, opts, false), segment.Options{}),
			}
			o.OneWay = true
			if compress {
				forms["pipe"] = piped(t, planOf(t, src, o, opts), segment.Options{})
				o.Memory = 300 << 10
				forms["pipe, some kept"] = piped(t, planOf(t, src, o, opts), segment.Options{})
				o.Memory = 1
				forms["pipe, nothing kept"] = piped(t, planOf(t, src, o, opts), segment.Options{Workers: 5})
			} else {
				one := piped(t, planOf(t, src, o, opts), segment.Options{Workers: 1})
				if two := piped(t, planOf(t, src, o, opts), segment.Options{Workers: 7}); !bytes.Equal(one, two) {
					t.Errorf("%v: a pipe with 7 workers differs", values)
				}
			}
			for name, got := range forms {
				if !bytes.Equal(got, want) {
					t.Errorf("%v, compress %v, %s: %d bytes differ from %d", values, compress, name, len(got), len(want))
				}
			}
		}
	}
}

// packedSource is a device that unpacks much at a time.
type packedSource struct{ block.Device }

func (p packedSource) Info() block.Info {
	i := p.Device.Info()
	i.PreferredBlock, i.Caps.Packed = 4<<20, true
	return i
}

// cut is a device whose extents are cut at every step, and may be said to be data.
type cut struct {
	block.Device
	step int64
	data bool
}

func (c *cut) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	base := len(buf)
	buf, err := c.Device.Extents(ctx, m, off, min(n, c.step), buf)
	for i := base; c.data && i < len(buf); i++ {
		buf[i].Flags = block.ExtData
	}
	return buf, err
}
