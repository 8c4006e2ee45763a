package raw_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

var ctx = context.Background()

func TestOpen(t *testing.T) {
	d := raw.Driver()
	mem := block.NewMemory(1000)
	dev, err := d.Open(ctx, mem, formats.OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if dev.Info().Format != "raw" || dev.Size() != 1000 {
		t.Errorf("format %q, size %d", dev.Info().Format, dev.Size())
	}
	if err := dev.Write(ctx, []byte("hello"), 990, 0); err != nil {
		t.Error(err)
	}
	got := make([]byte, 5)
	if err := mem.Read(ctx, got, 990); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v: not the bytes below", got, err)
	}
	if m, ok := block.As[*block.Memory](dev); !ok || m != mem {
		t.Error("what the device below can do more is hidden")
	}
	if _, err := d.Open(ctx, block.Protect(mem), formats.OpenOptions{Write: true}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("open for writing what cannot be written: %v", err)
	}
	if _, err := d.Open(ctx, mem, formats.OpenOptions{Values: map[string]string{"x": "y"}}); err == nil {
		t.Error("an option is accepted")
	}
	if s := d.Probe(formats.StreamHead(nil, false)); s != formats.Fallback {
		t.Errorf("Probe = %d", s)
	}
}

// store is a Store of one device.
type store struct{ dev block.Device }

func (s *store) Name() string                                         { return "x" }
func (s *store) Create(context.Context, string) (block.Device, error) { return s.dev, nil }
func (s *store) Commit(context.Context) error                         { return nil }
func (s *store) Abort() error                                         { return nil }

func TestCreate(t *testing.T) {
	d := raw.Driver()
	dev, err := d.Create(ctx, &store{block.NewMemory(0)}, formats.CreateOptions{Size: 777})
	if err != nil || dev.Size() != 777 || dev.Info().Format != "raw" {
		t.Errorf("a new file: %v", err)
	}
	disk, err := block.NewWindow(block.NewMemory(2000), 0, 1000) // of fixed size
	if err != nil {
		t.Fatal(err)
	}
	dev, err = d.Create(ctx, &store{disk}, formats.CreateOptions{Size: 777})
	if err != nil || dev.Size() != 777 {
		t.Errorf("a disk: %v", err)
	}
	for _, o := range []formats.CreateOptions{{Size: 1001}, {Size: -1}, {Size: 1, Values: map[string]string{"x": "y"}}} {
		if _, err := d.Create(ctx, &store{disk}, o); err == nil {
			t.Errorf("%+v is made on a disk of 1000 bytes", o)
		}
	}
}

func TestMeasure(t *testing.T) {
	want := formats.Measurement{Required: 1000, FullyAllocated: 1000}
	for _, src := range []block.Device{nil, block.NewNull(1000)} {
		o := formats.CreateOptions{Size: 1000, Values: map[string]string{"preallocation": "full"}}
		if got, err := raw.Driver().Measure(t.Context(), src, o); err != nil || got != want {
			t.Errorf("%v, %v", got, err)
		}
	}
	if _, err := raw.Driver().Measure(t.Context(), nil, formats.CreateOptions{Values: map[string]string{"x": "1"}}); err == nil {
		t.Error("an option that does not exist is accepted")
	}
}

func TestDecode(t *testing.T) {
	const unit = 64 << 10
	data := bytes.Repeat([]byte("x"), unit)
	zeros := make([]byte, unit)
	image := bytes.Join([][]byte{data, zeros, zeros, data, []byte("end\x00")}, nil)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(image), "in pieces": iotest.HalfReader(bytes.NewReader(image)), "with EOF": iotest.DataErrReader(bytes.NewReader(image))} {
		s, err := raw.Driver().Decode(ctx, r, formats.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n, known := s.Size(); known {
			t.Errorf("the size is known: %d", n)
		}
		var got []byte
		var kinds strings.Builder
		for {
			run, err := s.Next(ctx)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if run.Zero {
				kinds.WriteByte('0')
				run.Data = make([]byte, run.Len)
			} else {
				kinds.WriteByte('d')
			}
			if int64(len(run.Data)) != run.Len {
				t.Fatalf("%s: a run of %d bytes says %d", name, len(run.Data), run.Len)
			}
			got = append(got, run.Data...)
		}
		if !bytes.Equal(got, image) || kinds.String() != "d00dd" {
			t.Errorf("%s: %d bytes in runs %s", name, len(got), kinds.String())
		}
		if _, err := s.Next(ctx); err != io.EOF {
			t.Errorf("%s: after the end: %v", name, err)
		}
	}
}

// TestDecodeError checks that what is read before an error is delivered, and that the error is not taken for the end.
func TestDecodeError(t *testing.T) {
	for _, cause := range []error{io.ErrUnexpectedEOF, errors.New("bad sector")} {
		r := io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(cause))
		s, err := raw.Driver().Decode(ctx, r, formats.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if run, err := s.Next(ctx); err != nil || string(run.Data) != "hello" {
			t.Errorf("Next = %q, %v", run.Data, err)
		}
		for range 2 {
			if _, err := s.Next(ctx); err != cause {
				t.Errorf("error %v, want %v", err, cause)
			}
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	s, err := raw.Driver().Decode(ctx, strings.NewReader("x"), formats.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// endless is a reader of data.
type endless struct{ data []byte }

func (r endless) Read(p []byte) (int, error) { return copy(p, r.data), nil }

func BenchmarkDecode(b *testing.B) {
	for name, fill := range map[string]byte{"data": 'x', "zeros": 0} {
		b.Run(name, func(b *testing.B) {
			s, err := raw.Driver().Decode(ctx, endless{bytes.Repeat([]byte{fill}, 64<<10)}, formats.OpenOptions{})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(64 << 10)
			for b.Loop() {
				if _, err := s.Next(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
