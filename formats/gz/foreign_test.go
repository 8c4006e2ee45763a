package gz

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// memoryIndex is an index file in memory.
type memoryIndex struct {
	p    []byte
	open int
}

func (m *memoryIndex) Wrap(err error) error { return err }

func (m *memoryIndex) Open() (formats.Index, error) {
	if m.p == nil {
		return nil, fs.ErrNotExist
	}
	m.open++
	return openMemory{bytes.NewReader(m.p), m}, nil
}

func (m *memoryIndex) Write(write func(io.Writer) error) error {
	if m.p != nil {
		return fs.ErrExist
	}
	var b bytes.Buffer
	err := write(&b)
	if err == nil {
		m.p = b.Bytes()
	}
	return err
}

type openMemory struct {
	*bytes.Reader
	m *memoryIndex
}

func (o openMemory) Close() error {
	o.m.open--
	return nil
}

// TestIndexFile makes an index in both ways, and reads by it.
func TestIndexFile(t *testing.T) {
	want := text(9, 7<<20)
	file := member(t, want, 8)
	streamed, opened := &memoryIndex{}, &memoryIndex{}

	// From front to back, as convert does. Nothing is written before the end.
	if _, err := open(ctx, device(t, file), formats.OpenOptions{Sequential: true, IndexFile: streamed}); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("without an index: %v", err)
	}
	s, err := decode(ctx, bytes.NewReader(file), formats.OpenOptions{IndexFile: streamed})
	check(t, err)
	_, err = s.Next(ctx)
	check(t, err)
	if streamed.p != nil {
		t.Fatal("an index was written before the end")
	}
	_, err = readStream(s)
	check(t, err)
	check(t, s.Close())

	d, err := open(ctx, device(t, file), formats.OpenOptions{IndexFile: opened})
	check(t, err)
	check(t, d.Close())

	// Even a sequential reader goes by the index once it is there.
	for _, index := range []*memoryIndex{streamed, opened} {
		d, err = open(ctx, device(t, file), formats.OpenOptions{Sequential: true, IndexFile: index})
		check(t, err)
		got := make([]byte, d.Size())
		check(t, d.Read(ctx, got, 0))
		if !bytes.Equal(got, want) || index.open != 1 {
			t.Errorf("the content differs, or the index was opened %d times", index.open)
		}
		check(t, d.Close())
		if index.open != 0 {
			t.Error("the index is left open")
		}
	}

	// What comes from a pipe is read without it, and leaves it as it is.
	s, err = decode(ctx, bytes.NewReader(file), formats.OpenOptions{IndexFile: streamed})
	check(t, err)
	if got, err := readStream(s); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a stream beside an index: %d bytes, %v", len(got), err)
	}
	check(t, s.Close())

	for name, other := range map[string]*memoryIndex{"nothing": {p: []byte{}}, "text": {p: bytes.Repeat([]byte("text"), 100)}, "cut off": {p: streamed.p[:len(streamed.p)-1]}} {
		if _, err := open(ctx, device(t, file), formats.OpenOptions{IndexFile: other}); err == nil || other.open != 0 {
			t.Errorf("index %s: %v, %d left open", name, err, other.open)
		}
	}
	changed := bytes.Clone(file)
	changed[len(changed)-1] ^= 1
	var corrupt *block.CorruptError
	if _, err := open(ctx, device(t, changed), formats.OpenOptions{IndexFile: streamed}); !errors.As(err, &corrupt) {
		t.Errorf("the index of another file: %v", err)
	}
}

// TestStreamDamage demands that no index is left of what is damaged.
func TestStreamDamage(t *testing.T) {
	file := member(t, text(10, 3<<20), 0)
	file[len(file)-7] ^= 1
	index := &memoryIndex{}
	s, err := decode(ctx, bytes.NewReader(file), formats.OpenOptions{IndexFile: index})
	check(t, err)
	var corrupt *block.CorruptError
	if _, err = readStream(s); !errors.As(err, &corrupt) || index.p != nil {
		t.Errorf("%v, and an index of %d bytes", err, len(index.p))
	}
	if _, again := s.Next(ctx); !errors.Is(again, err) {
		t.Errorf("after the end: %v", again)
	}
	check(t, s.Close())
}

// TestStreamAbandoned closes a stream that has more to give.
func TestStreamAbandoned(t *testing.T) {
	file := member(t, text(11, 9<<20), 0)
	for n := range 4 {
		s, err := decode(ctx, bytes.NewReader(file), formats.OpenOptions{Memory: 1 << 20})
		check(t, err)
		for range n {
			_, err := s.Next(ctx)
			check(t, err)
		}
		check(t, s.Close())
	}
}

// TestGlance opens a file for a look at its beginning.
func TestGlance(t *testing.T) {
	want := text(12, 16<<20)
	file := member(t, want, 0)
	dev := &counting{Filter: block.Filter{Device: device(t, file)}}
	d, err := open(ctx, dev, formats.OpenOptions{Glance: true})
	check(t, err)
	if !d.Info().Probable || d.Size() != int64(len(want)) {
		t.Errorf("size %d, probable %v", d.Size(), d.Info().Probable)
	}
	p := make([]byte, 4096)
	check(t, d.Read(ctx, p, 0))
	if !bytes.Equal(p, want[:4096]) || dev.n > len(file)/2 {
		t.Errorf("the first bytes differ, or %d of %d bytes were read for them", dev.n, len(file))
	}
	check(t, d.Close())

	// Where the last member is not all, who reads to the end learns it.
	double := append(bytes.Clone(file), file...)
	d, err = open(ctx, device(t, double), formats.OpenOptions{Glance: true})
	check(t, err)
	if d.Size() != int64(len(want)) {
		t.Errorf("size %d", d.Size())
	}
	var corrupt *block.CorruptError
	if err := d.Read(ctx, make([]byte, d.Size()), 0); !errors.As(err, &corrupt) {
		t.Errorf("read to the end of an image of another size: %v", err)
	}
	check(t, d.Close())
	d, err = open(ctx, device(t, double), formats.OpenOptions{})
	check(t, err)
	if d.Info().Probable || d.Size() != int64(2*len(want)) {
		t.Errorf("size %d, probable %v", d.Size(), d.Info().Probable)
	}
	check(t, d.Close())
}

// counting counts the bytes that are read.
type counting struct {
	block.Filter
	n int
}

func (c *counting) Read(ctx context.Context, p []byte, off int64) error {
	c.n += len(p)
	return c.Filter.Read(ctx, p, off)
}
