package gzindex

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

var ctx = context.Background()

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text returns n bytes that look like a disk: words that repeat, random bytes, zeros.
func text(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = make([]byte, 3+rnd.IntN(12))
		for k := range words[i] {
			words[i][k] = 'a' + byte(rnd.IntN(20))
		}
	}
	p := make([]byte, 0, n)
	for len(p) < n {
		k := min(n-len(p), 1+rnd.IntN(200<<10))
		switch rnd.IntN(8) {
		case 0, 1:
			p = append(p, make([]byte, k)...)
		case 2:
			for range k {
				p = append(p, byte(rnd.Uint32()))
			}
		default:
			for end := len(p) + k; len(p) < end; {
				w := words[min(rnd.IntN(500), rnd.IntN(500))]
				p = append(p, w[:min(len(w), end-len(p))]...)
			}
		}
	}
	return p
}

// member returns p as a gzip member.
func member(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level)
	check(t, err)
	_, err = z.Write(p)
	check(t, err)
	check(t, z.Close())
	return b.Bytes()
}

// fileOf returns p as a device.
func fileOf(t testing.TB, p []byte) block.Device {
	t.Helper()
	d := block.NewMemory(0)
	check(t, d.Write(ctx, p, 0, 0))
	return d
}

// index scans file.
func index(t testing.TB, file []byte, o ScanOptions) *Index {
	t.Helper()
	o.Index = true
	x, err := scanAll(ctx, fileOf(t, file), o, nil)
	check(t, err)
	return x
}

// drain returns what the scanner decodes, into buffers of a size.
func drain(s *Scanner, size int) ([]byte, error) {
	var all []byte
	buf := make([]byte, windowLen+size+Slop+1)
	at := 0
	for {
		n, err := s.Fill(buf, at)
		all = append(all, buf[at:at+n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if at += n; len(buf)-at <= Slop {
			keep := min(at, windowLen)
			at = copy(buf, buf[at-keep:at])
		}
	}
}

// opened opens file with an index.
func opened(t testing.TB, file []byte, x *Index, o Options) *Device {
	t.Helper()
	o.Index = x
	d, err := Open(ctx, fileOf(t, file), o)
	check(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// readAll compares reads all over d with want.
func readAll(t testing.TB, d *Device, want []byte, seed uint64) {
	t.Helper()
	if d.Size() != int64(len(want)) {
		t.Fatalf("%d bytes, want %d", d.Size(), len(want))
	}
	rnd := rand.New(rand.NewPCG(seed, 2))
	for range 60 {
		off := rnd.IntN(len(want) + 1)
		p := make([]byte, min(len(want)-off, rnd.IntN(100<<10)))
		check(t, d.Read(ctx, p, int64(off)))
		if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("%d bytes at %d differ", len(p), off)
		}
	}
	p := make([]byte, len(want))
	check(t, d.Read(ctx, p, 0))
	if !bytes.Equal(p, want) {
		t.Fatal("the whole differs")
	}
}

func TestScanAndRead(t *testing.T) {
	want := text(1, 6<<20)
	for _, level := range []int{0, 1, 6, 9} {
		file := append(member(t, want[:4<<20], level), member(t, nil, 6)...)
		file = append(file, member(t, want[4<<20:], level)...)
		file = append(file, make([]byte, 700)...)
		got, err := drain(NewScanner(bytes.NewReader(file), ScanOptions{}), 100<<10)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatal("the stream differs")
		}
		x := index(t, file, ScanOptions{Span: 64 << 10})
		if !x.Complete() || x.Points() < 60 {
			t.Fatalf("level %d: %d points, complete %v", level, x.Points(), x.Complete())
		}
		readAll(t, opened(t, file, x, Options{}), want, uint64(level))

		var saved bytes.Buffer
		n, err := x.WriteTo(&saved)
		check(t, err)
		if n != int64(saved.Len()) {
			t.Fatalf("WriteTo says %d bytes of %d", n, saved.Len())
		}
		again, err := ReadIndex(bytes.NewReader(saved.Bytes()), n)
		check(t, err)
		readAll(t, opened(t, file, again, Options{}), want, uint64(level))
		var twice bytes.Buffer
		_, err = again.WriteTo(&twice)
		check(t, err)
		if !bytes.Equal(saved.Bytes(), twice.Bytes()) {
			t.Fatal("an index that was read is written differently")
		}
	}
}

func TestConformance(t *testing.T) {
	want := text(8, 1100777)
	file := append(member(t, want[:700000], 6), member(t, want[700000:], 1)...)
	for _, c := range []struct {
		name string
		open func(t *testing.T) (*Device, error)
	}{
		{"scanned", func(*testing.T) (*Device, error) { return Open(ctx, fileOf(t, file), Options{}) }},
		{"indexed", func(*testing.T) (*Device, error) {
			return Open(ctx, fileOf(t, file), Options{Index: index(t, file, ScanOptions{Span: 64 << 10}), Memory: 8 << 20})
		}},
		{"frontier", func(*testing.T) (*Device, error) {
			return Open(ctx, fileOf(t, member(t, want, 6)), Options{TrustSize: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				Size: int64(len(want)), Content: bytes.NewReader(want), ReadOnly: true,
				New: func(t *testing.T) block.Device {
					d, err := c.open(t)
					check(t, err)
					return d
				},
			})
		})
	}
}

func TestDamage(t *testing.T) {
	want := text(3, 3<<20)
	file := member(t, want, 6)
	x := index(t, file, ScanOptions{Span: 64 << 10})
	bad := bytes.Clone(file)
	bad[len(bad)/2] ^= 4
	d := opened(t, bad, x, Options{})
	var wrong int
	p := make([]byte, 4096)
	for off := 0; off+len(p) <= len(want); off += len(p) {
		x.mu.Lock()
		for i := range x.points {
			x.points[i].checked = false
		}
		x.mu.Unlock()
		if err := d.Read(ctx, p, int64(off)); err != nil {
			var damage *block.CorruptError
			if !errors.As(err, &damage) {
				t.Fatal(err)
			}
			wrong++
		} else if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	if wrong == 0 || wrong > 100 {
		t.Fatalf("%d pages failed", wrong)
	}
}
