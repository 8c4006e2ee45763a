package gzindex

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

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

// alone skips a test in which nothing runs concurrently with -short, which is how the race detector runs.
func alone(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("nothing runs concurrently here")
	}
}

// shorter returns n, or a quarter of it with -short.
func shorter(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
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
	alone(t)
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

// TestDamage changes a bit of the file at a time: a scan notices it, and so does a device that has an index, where it is read.
func TestDamage(t *testing.T) {
	alone(t)
	want := text(3, 1<<20)
	file := append(member(t, want[:600<<10], 6), member(t, want[600<<10:], 6)...)
	x := index(t, file, ScanOptions{Span: 64 << 10})
	for at := 0; at < len(file); at += 1 + len(file)/150 {
		bad := bytes.Clone(file)
		bad[at] ^= 4
		for _, o := range []ScanOptions{{}, {Index: true}} {
			got, err := drain(NewScanner(bytes.NewReader(bad), o), 1<<20)
			if err == nil && !bytes.Equal(got, want) {
				t.Fatalf("byte %d was changed and nobody noticed", at)
			}
			if err != nil && !errors.Is(err, block.ErrNotFormat) && !errors.As(err, new(*block.CorruptError)) {
				t.Fatal(err)
			}
		}
		if at < edgeLen || at >= len(file)-edgeLen {
			continue // the index is of another file
		}
		uncheck(x)
		if failed := readPages(t, opened(t, bad, x, Options{}), want); failed == 0 {
			t.Fatalf("byte %d was changed and no reader noticed", at)
		} else if failed > 120 {
			t.Fatalf("byte %d was changed and %d pages cannot be read", at, failed)
		}
	}
}

func TestScanErrors(t *testing.T) {
	p := text(4, 100<<10)
	good := member(t, p, 6)
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		in   io.Reader
		says string
	}{
		{"no gzip file", bytes.NewReader(p), block.ErrNotFormat.Error()},
		{"empty", bytes.NewReader(nil), "corrupt header at byte 0"},
		{"half a header", bytes.NewReader(good[:5]), "corrupt header at byte 0"},
		{"cut", bytes.NewReader(good[:len(good)-9]), "truncated"},
		{"cut trailer", bytes.NewReader(good[:len(good)-1]), "truncated"},
		{"garbage", bytes.NewReader(append(bytes.Clone(good), "garbage"...)), fmt.Sprintf("corrupt file at byte %d: what follows", len(good))},
		{"garbage after padding", bytes.NewReader(append(append(bytes.Clone(good), 0, 0), "garbage"...)), fmt.Sprintf("corrupt file at byte %d: what follows", len(good)+2)},
		{"half a second header", bytes.NewReader(append(bytes.Clone(good), good[:7]...)), fmt.Sprintf("corrupt header at byte %d", len(good))},
		{"wrong CRC32", bytes.NewReader(append(bytes.Clone(good[:len(good)-8]), 1, 2, 3, 4, 0, 0x90, 1, 0)), fmt.Sprintf("corrupt trailer at byte %d", len(good)-8)},
		{"wrong ISIZE", bytes.NewReader(append(bytes.Clone(good[:len(good)-4]), 1, 2, 3, 4)), fmt.Sprintf("corrupt trailer at byte %d", len(good)-4)},
		{"reading", io.MultiReader(bytes.NewReader(good[:1000]), iotest.ErrReader(broken)), "broken"},
	} {
		for _, o := range []ScanOptions{{}, {Index: true}} {
			s := NewScanner(c.in, o)
			_, err := drain(s, 10<<10)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, index %v: %v, want %q", c.name, o.Index, err, c.says)
			}
			if _, again := s.Fill(make([]byte, 1000), 0); again != err {
				t.Errorf("%s: then %v", c.name, again)
			}
			if seek, ok := c.in.(io.Seeker); ok {
				_, err := seek.Seek(0, io.SeekStart)
				check(t, err)
			} else {
				break
			}
		}
	}
	if _, err := NewScanner(bytes.NewReader(good), ScanOptions{}).Fill(make([]byte, Slop), 0); err != io.ErrShortBuffer {
		t.Errorf("a buffer without room: %v", err)
	}
}

// TestSharedWork: many readers of one span decode it once.
func TestSharedWork(t *testing.T) {
	want := text(5, 4<<20)
	file := member(t, want, 6)
	counted := &counting{Device: fileOf(t, file)}
	d, err := Open(ctx, counted, Options{Index: index(t, file, ScanOptions{}), Workers: 1})
	check(t, err)
	defer d.Close()
	counted.n.Store(0)
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			if err := d.Read(ctx, make([]byte, 4096), 100<<10); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n := counted.n.Load(); n > 4 {
		t.Errorf("%d reads of the file for one piece", n)
	}
}

// TestCancelledLeader: who decodes for others may give up, and they get theirs all the same.
func TestCancelledLeader(t *testing.T) {
	want := text(9, 4<<20)
	file := member(t, want, 1)
	d, err := Open(ctx, &counting{Device: fileOf(t, file)}, Options{Index: index(t, file, ScanOptions{}), Workers: 1})
	check(t, err)
	defer d.Close()
	for i := range int64(5) {
		uncheck(d.index)
		limited, cancel := context.WithTimeout(ctx, 3*time.Millisecond)
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := d.Read(limited, make([]byte, 10), i*700<<10); err != nil && err != context.DeadlineExceeded {
				t.Error(err)
			}
		})
		time.Sleep(time.Millisecond)
		p := make([]byte, 10)
		check(t, d.Read(ctx, p, i*700<<10+100))
		if !bytes.Equal(p, want[i*700<<10+100:][:10]) {
			t.Error("wrong bytes")
		}
		wait.Wait()
		cancel()
	}
}

// counting counts reads.
type counting struct {
	block.Device
	n atomic.Int64
}

func (c *counting) Read(ctx context.Context, p []byte, off int64) error {
	c.n.Add(1)
	time.Sleep(5 * time.Millisecond) // so that all readers come before the first is done
	return c.Device.Read(ctx, p, off)
}

// TestAhead: who reads forward finds decoded what comes next, and so does who asks for it.
func TestAhead(t *testing.T) {
	want := text(6, 12<<20)
	file := member(t, want, 1)
	x := index(t, file, ScanOptions{Span: 512 << 10})
	cached := func(d *Device, off int64) bool {
		sp, ok := d.spanAt(off)
		if !ok {
			t.Fatalf("no span at %d", off)
		}
		_, ok = d.cache.get(sp.pieceAt(off))
		return ok
	}
	eventually := func(d *Device, off int64, what string) {
		t.Helper()
		for range 1000 {
			if cached(d, off) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatal(what)
	}
	d := opened(t, file, x, Options{Workers: 2})
	p := make([]byte, 64<<10)
	for i := range 16 {
		check(t, d.Read(ctx, p, int64(i*len(p))))
	}
	eventually(d, 3<<19, "nothing was decoded ahead")
	check(t, d.Prefetch(ctx, 9<<20, 1<<20))
	eventually(d, 9<<20+500<<10, "what was asked for was not decoded")
	if cached(d, 7<<20) {
		t.Fatal("what nobody asked for was decoded")
	}
}

// TestReadErrors: the file's errors come through, and do not stay.
func TestReadErrors(t *testing.T) {
	want := text(7, 2<<20)
	file := member(t, want, 6)
	broken := &breaking{Device: fileOf(t, file)}
	d, err := Open(ctx, broken, Options{Index: index(t, file, ScanOptions{Span: 64 << 10})})
	check(t, err)
	defer d.Close()
	broken.err.Store(true)
	if err := d.Read(ctx, make([]byte, 10), 1<<20); !errors.Is(err, errBroken) {
		t.Fatalf("%v", err)
	}
	broken.err.Store(false)
	readAll(t, d, want, 1)
	broken.err.Store(true)
	if _, err := Open(ctx, broken, Options{}); !errors.Is(err, errBroken) {
		t.Fatalf("%v", err)
	}
}

var errBroken = errors.New("broken")

// breaking fails while err is set.
type breaking struct {
	block.Device
	err atomic.Bool
}

func (b *breaking) Read(ctx context.Context, p []byte, off int64) error {
	if b.err.Load() {
		return errBroken
	}
	return b.Device.Read(ctx, p, off)
}

// TestOpenCancel: Open gives up, and leaves the file to its caller.
func TestOpenCancel(t *testing.T) {
	file := fileOf(t, member(t, text(8, shorter(8<<20)), 1))
	limited, cancel := context.WithCancel(ctx)
	_, err := Open(limited, file, Options{Progress: func(int64) { cancel() }})
	if err != context.Canceled {
		t.Fatalf("%v", err)
	}
	last := int64(0)
	d, err := Open(ctx, file, Options{Progress: func(n int64) {
		if n < last || n > file.Size() {
			t.Errorf("progress from %d to %d of %d", last, n, file.Size())
		}
		last = n
	}})
	check(t, err)
	if last < file.Size()/2 {
		t.Errorf("progress ended at %d of %d", last, file.Size())
	}
	check(t, d.Close())
}
