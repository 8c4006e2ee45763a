package file

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
)

// newFile makes a file with the content and returns its path.
func newFile(t testing.TB, dir string, content []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "image")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// open opens a device that the test closes at its end, if it has not before.
func open(t testing.TB, path string, o Options) *Device {
	t.Helper()
	d, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// ok fails the test on an error.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails the test unless err is target.
func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

// noise returns n bytes of which none is zero.
func noise(random *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + random.IntN(255))
	}
	return p
}

// folders returns a folder on each kind of file system at hand.
func folders(t testing.TB) []string {
	dirs := []string{t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "imgtool-test"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs = append(dirs, dir)
	}
	return dirs
}

func TestReadOnly(t *testing.T) {
	ctx := t.Context()
	d := open(t, newFile(t, t.TempDir(), []byte("0123456789")), Options{})
	if d.Size() != 10 || d.Info().Caps.Write || d.Info().Name != d.File().Name() {
		t.Fatalf("size %d, %+v", d.Size(), d.Info())
	}
	p := make([]byte, 4)
	ok(t, d.Read(ctx, p, 6))
	if string(p) != "6789" {
		t.Fatalf("read %q", p)
	}
	var outside *block.RangeError
	for _, off := range []int64{-1, 7, 10, 11, math.MaxInt64, math.MinInt64} {
		if err := d.Read(ctx, p, off); !errors.As(err, &outside) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	ok(t, d.Read(ctx, nil, 10))
	want(t, d.Write(ctx, p, 0, 0), block.ErrReadOnly)
	want(t, d.Zero(ctx, 0, 4, 0), block.ErrReadOnly)
	want(t, d.Zero(ctx, 8, 4, 0), block.ErrReadOnly)
	want(t, d.Discard(ctx, 0, 4), block.ErrReadOnly)
	want(t, d.Resize(ctx, 4), block.ErrReadOnly)
	ok(t, d.Flush(ctx))
	ok(t, d.Prefetch(ctx, 0, 10))

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	want(t, d.Read(cancelled, p, 0), context.Canceled)
	_, err := Open(cancelled, d.File().Name(), Options{})
	want(t, err, context.Canceled)
}

func TestFileGotShorter(t *testing.T) {
	path := newFile(t, t.TempDir(), make([]byte, 1000))
	d := open(t, path, Options{})
	ok(t, os.Truncate(path, 10))
	want(t, d.Read(t.Context(), make([]byte, 20), 0), io.ErrUnexpectedEOF)
	if _, err := d.Extents(t.Context(), block.Map{}, 0, 1000, nil); err != nil {
		t.Error(err)
	}
}

// TestModel writes, zeroes, discards and resizes at random, and compares with a slice of bytes.
func TestModel(t *testing.T) {
	for _, dir := range folders(t) {
		d := open(t, newFile(t, dir, nil), Options{Write: true})
		model := []byte{}
		seed := rand.Uint64()
		t.Log("seed", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		for range 500 {
			model = step(t, random, d, model)
			if d.Size() != int64(len(model)) {
				t.Fatalf("size %d, want %d", d.Size(), len(model))
			}
		}
		got := make([]byte, d.Size())
		ok(t, d.Read(t.Context(), got, 0))
		if !bytes.Equal(got, model) {
			t.Fatal("content differs from the model")
		}
		info, err := d.File().Stat()
		ok(t, err)
		if info.Size() != d.Size() {
			t.Fatalf("the file has %d bytes, the device %d", info.Size(), d.Size())
		}
		checkExtents(t, d, model)
	}
}

// step does one random thing to the device and to the model, which it returns.
func step(t *testing.T, random *rand.Rand, d *Device, model []byte) []byte {
	t.Helper()
	ctx := t.Context()
	off, n := random.Int64N(1<<20), random.Int64N(100<<10)
	grow := func() {
		if short := off + n - int64(len(model)); short > 0 && n > 0 {
			model = append(model, make([]byte, short)...)
		}
	}
	if n == 0 && off > int64(len(model)) {
		return model
	}
	flags := block.Flags(random.IntN(2)) * block.NoHole
	if random.IntN(50) == 0 {
		flags |= block.FUA
	}
	switch random.IntN(8) {
	case 0, 1, 2:
		p := noise(random, int(n))
		ok(t, d.Write(ctx, p, off, flags))
		grow()
		copy(model[min(off, int64(len(model))):], p)
	case 3, 4:
		ok(t, d.Zero(ctx, off, n, flags))
		grow()
		clear(model[min(off, int64(len(model))):min(off+n, int64(len(model)))])
	case 5:
		off, n = min(off, int64(len(model))), min(n, int64(len(model))-min(off, int64(len(model))))
		ok(t, d.Discard(ctx, off, n))
		ok(t, d.Read(ctx, model[off:off+n], off)) // whatever it is now
	case 6:
		if random.IntN(10) == 0 {
			n = random.Int64N(2 << 20)
			ok(t, d.Resize(ctx, n))
			short := max(0, n-int64(len(model)))
			model = append(model, make([]byte, short)...)[:n]
		}
	default:
		off = min(off, int64(len(model)))
		p := make([]byte, min(n, int64(len(model))-off))
		ok(t, d.Read(ctx, p, off))
		if !bytes.Equal(p, model[off:off+int64(len(p))]) {
			t.Fatalf("%d bytes at %d differ from the model", len(p), off)
		}
	}
	return model
}

// checkExtents fails the test unless the extents of the whole device are complete, and zero where they say so.
func checkExtents(t *testing.T, d block.Device, content []byte) {
	t.Helper()
	var at int64
	for size := int64(len(content)); at < size; {
		es, err := d.Extents(t.Context(), block.Map{}, at, size-at, nil)
		ok(t, err)
		if len(es) == 0 || len(es) > maxExtents+1 {
			t.Fatalf("%d extents in one answer", len(es))
		}
		for _, e := range es {
			if e.Off != at || e.Len < 1 || e.End() > size || e.Node == "" || e.NodeOff != e.Off {
				t.Fatalf("at %d of %d: %+v", at, size, e)
			}
			if e.Flags&block.ExtZero != 0 && !block.IsZero(content[e.Off:e.End()]) {
				t.Fatalf("not zero: %+v", e)
			}
			at = e.End()
		}
	}
}

func TestGrow(t *testing.T) {
	ctx := t.Context()
	d := open(t, newFile(t, t.TempDir(), []byte("abc")), Options{Write: true})
	ok(t, d.Write(ctx, []byte("xyz"), 1<<20, block.FUA))
	if d.Size() != 1<<20+3 {
		t.Fatalf("size %d", d.Size())
	}
	ok(t, d.Zero(ctx, 2, 3<<20, 0))
	if d.Size() != 3<<20+2 {
		t.Fatalf("size %d", d.Size())
	}
	p := make([]byte, 2<<20)
	ok(t, d.Read(ctx, p, 0))
	if string(p[:2]) != "ab" || !block.IsZero(p[2:]) {
		t.Fatal("zero past the end left something behind")
	}
	var outside *block.RangeError
	for _, r := range [][2]int64{{-1, 1}, {math.MaxInt64, 1}, {0, -1}, {d.Size() + 1, 0}} {
		if err := d.Zero(ctx, r[0], r[1], 0); !errors.As(err, &outside) {
			t.Errorf("zero %v: %v", r, err)
		}
	}
	if err := d.Write(ctx, p, math.MaxInt64-1, 0); !errors.As(err, &outside) {
		t.Errorf("write: %v", err)
	}
	if err := d.Resize(ctx, -1); !errors.As(err, &outside) {
		t.Errorf("resize: %v", err)
	}
	if _, err := d.Extents(ctx, block.Map{Bitmap: "b"}, 0, 1, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a bitmap: %v", err)
	}
}

// TestGrowConcurrently appends by writing and by zeroing at once: no truncation may cut off what was written.
func TestGrowConcurrently(t *testing.T) {
	const workers, each, piece = 8, 40, 5000
	d := open(t, newFile(t, t.TempDir(), nil), Options{Write: true})
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				off := int64(i*workers+w) * piece
				var err error
				if w%2 == 0 {
					err = d.Write(t.Context(), bytes.Repeat([]byte{byte(w + 1)}, piece), off, 0)
				} else {
					err = d.Zero(t.Context(), off, piece, 0)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if d.Size() != workers*each*piece {
		t.Fatalf("size %d", d.Size())
	}
	p := make([]byte, piece)
	for i := range workers * each {
		ok(t, d.Read(t.Context(), p, int64(i)*piece))
		b := byte(i%workers + 1)
		if i%2 != 0 {
			b = 0
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{b}, piece)) {
			t.Fatalf("piece %d is damaged", i)
		}
	}
}

func TestClose(t *testing.T) {
	ctx := t.Context()
	d := open(t, newFile(t, t.TempDir(), make([]byte, 100)), Options{Write: true})
	if _, _, is := block.Pin(ctx, d, 10, 1000); is {
		t.Fatal("pinned past the end")
	}
	r, release, is := d.Pin(ctx, 10, 1000)
	if !is || r.Off != 10 || r.Len != 90 || r.File != d.File() {
		t.Fatalf("%+v, %v", r, is)
	}
	closed := make(chan error)
	go func() { closed <- d.Close() }()
	for d.Flush(ctx) == nil {
		runtime.Gosched() // until Close has begun
	}
	select {
	case <-closed:
		t.Fatal("closed while pinned")
	case <-time.After(time.Millisecond):
	}
	if _, err := r.File.ReadAt(make([]byte, 90), 10); err != nil {
		t.Fatal(err)
	}
	release()
	release()
	ok(t, <-closed)
	want(t, d.Close(), os.ErrClosed)
	want(t, d.Read(ctx, nil, 0), os.ErrClosed)
	want(t, d.Write(ctx, nil, 0, 0), os.ErrClosed)
	want(t, d.Zero(ctx, 0, 0, 0), os.ErrClosed)
	want(t, d.Zero(ctx, 0, 200, 0), os.ErrClosed)
	want(t, d.Discard(ctx, 0, 0), os.ErrClosed)
	want(t, d.Resize(ctx, 0), os.ErrClosed)
	want(t, d.Flush(ctx), os.ErrClosed)
	want(t, d.Prefetch(ctx, 0, 0), os.ErrClosed)
	_, err := d.Extents(ctx, block.Map{}, 0, 0, nil)
	want(t, err, os.ErrClosed)
	if _, _, is := d.Pin(ctx, 0, 1); is {
		t.Fatal("pinned a closed file")
	}
}

func TestKinds(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), dir, Options{}); err == nil || errors.Is(err, ErrNotSeekable) {
		t.Errorf("a folder: %v", err)
	}
	_, err := Open(t.Context(), filepath.Join(dir, "none"), Options{})
	want(t, err, fs.ErrNotExist)
	if bytes.Contains([]byte(err.Error()), []byte("none")) {
		t.Errorf("the error names the file, as its caller will: %v", err)
	}
	r, w, err := os.Pipe()
	ok(t, err)
	defer r.Close()
	defer w.Close()
	_, err = New(r, Options{})
	want(t, err, ErrNotSeekable)
	go w.Write([]byte("x"))
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Errorf("the pipe was closed: %v", err)
	}
	null, err := os.Open(os.DevNull)
	ok(t, err)
	defer null.Close()
	_, err = New(null, Options{})
	want(t, err, ErrNotSeekable)
}

func TestSame(t *testing.T) {
	dir := t.TempDir()
	a, b := newFile(t, dir, nil), newFile(t, dir, nil)
	link := filepath.Join(dir, "link")
	ok(t, os.Link(a, link))
	x, y, z := open(t, a, Options{}), open(t, link, Options{}), open(t, b, Options{})
	if !Same(x.File(), y.File()) || Same(x.File(), z.File()) {
		t.Error("open files")
	}
	if !SamePath(a, link) || SamePath(a, b) || SamePath(a, filepath.Join(dir, "none")) {
		t.Error("paths")
	}
}
