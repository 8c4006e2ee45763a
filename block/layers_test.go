package block_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/internal/peers"
)

func TestPatternContent(t *testing.T) {
	const far = 0x0123456789abcde0 // a multiple of 8
	d := block.NewPattern(math.MaxInt64)
	for _, from := range []int64{0, 1, 7, 8, 4093, far - 5, far, math.MaxInt64 - 40} {
		for n := range int64(40) {
			p := make([]byte, n)
			check(t, d.Read(t.Context(), p, from))
			for i, b := range p {
				var word [8]byte
				off := from + int64(i)
				binary.BigEndian.PutUint64(word[:], uint64(off&^7))
				if b != word[off%8] {
					t.Fatalf("byte %d is %#02x, want %#02x", off, b, word[off%8])
				}
			}
		}
	}
}

func TestPatternAsNbdkit(t *testing.T) {
	nbdkit, nbdcopy := peers.Need(t, "nbdkit"), peers.Need(t, "nbdcopy")
	file := filepath.Join(t.TempDir(), "pattern")
	// nbdkit runs the shell command, which gets the export's address as $uri.
	cmd := exec.Command(nbdkit, "-U", "-", "pattern", "size=100001", "--run", `exec "$NBDCOPY" "$uri" "$FILE"`)
	cmd.Env = append(os.Environ(), "NBDCOPY="+nbdcopy, "FILE="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs, err := os.ReadFile(file)
	check(t, err)
	if ours := contentOf(t, block.NewPattern(100001)); !equal(ours, bytes.NewReader(theirs)) {
		t.Error("the pattern differs from nbdkit's")
	}
}

func TestConcatExtents(t *testing.T) {
	ctx := t.Context()
	a, b, c := block.NewMemory(8192), block.NewMemory(8192), block.NewMemory(4096)
	check(t, a.Write(ctx, []byte("x"), 4096, 0))
	check(t, b.Write(ctx, []byte("x"), 0, 0))
	d := must[block.Device](t)(block.Concat(a, b, c))
	wantMap(t, d, "z0:4096 d0:8192 z0:8192 ") // joined over the joins
	wantMap(t, must[block.Device](t)(block.Concat(a, block.Protect(b))), "z0:4096 d0:4096 r0:4096 ?0:4096 ")
	if _, err := block.Concat(); err == nil {
		t.Error("nothing can be concatenated")
	}
	if _, err := block.Concat(block.NewNull(math.MaxInt64), block.NewNull(1)); err == nil {
		t.Error("sizes overflow")
	}
	huge := must[block.Device](t)(block.Concat(block.NewNull(math.MaxInt64-8192), a))
	wantMap(t, huge, "z0:9223372036854771711 d0:4096 ")
}

// A refusal comes before anything is changed.
func TestConcatRefusals(t *testing.T) {
	ctx := t.Context()
	const part = 8192
	for name, second := range map[string]block.Device{
		"read-only": block.NewPattern(part),
		"slow":      blocktest.NewXOR(block.NewMemory(part)),
	} {
		first := block.NewMemory(part)
		check(t, first.Write(ctx, bytes.Repeat([]byte("x"), part), 0, 0))
		d := must[block.Device](t)(block.Concat(first, second))
		err := d.Zero(ctx, 0, 2*part, block.Fast)
		if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
		wantMap(t, first, "d0:8192 ")
	}
	// One that could have zeroed fast, and then refuses, is zeroed all the same.
	first, second := filled(t, odd), block.NewMemory(part)
	check(t, second.Write(ctx, []byte("x"), 0, 0))
	refuses := blocktest.NewFaulty(second, blocktest.Fault{Ops: blocktest.OpZero, Times: 1, Err: errors.ErrUnsupported})
	d := must[block.Device](t)(block.Concat(first, refuses))
	check(t, d.Zero(ctx, 0, odd+part, block.Fast))
	wantMap(t, second, "z0:8192 ")
}

func TestOverlayDepth(t *testing.T) {
	ctx := t.Context()
	lower := block.NewMemory(6*4096 + 100)
	check(t, lower.Write(ctx, bytes.Repeat([]byte("l"), 6*4096), 0, 0))
	o := must[*block.Overlay](t)(block.NewOverlay(lower, nil))
	wantMap(t, o, "d1:24576 z1:100 ")
	check(t, o.Write(ctx, []byte("u"), 4096+5, 0))
	check(t, o.Zero(ctx, 3*4096, 4096, block.Fast))
	wantMap(t, o, "d1:4096 d0:4096 d1:4096 z0:4096 d1:8192 z1:100 ")
	p := make([]byte, 4096)
	check(t, o.Read(ctx, p, 4096))
	if want := append(bytes.Repeat([]byte("l"), 5), 'u', 'l'); !bytes.HasPrefix(p, want) {
		t.Errorf("what was not written is %q, want %q", p[:7], want)
	}
	second := must[*block.Overlay](t)(block.NewOverlay(o, nil))
	check(t, second.Write(ctx, []byte("z"), 6*4096+99, 0))
	wantMap(t, second, "d2:4096 d1:4096 d2:4096 z1:4096 d2:8192 d0:100 ")
	wantMap(t, lower, "d0:24576 z0:100 ")
}

func TestOverlayHuge(t *testing.T) {
	ctx := t.Context()
	const size = math.MaxInt64
	o := must[*block.Overlay](t)(block.NewOverlay(block.NewPattern(size), nil))
	for _, off := range []int64{0, 1 << 40, size - 3} {
		check(t, o.Write(ctx, []byte("abc"), off, 0))
	}
	p := make([]byte, 3)
	check(t, o.Read(ctx, p, size-3))
	if string(p) != "abc" {
		t.Errorf("the end reads %q", p)
	}
	if got, want := mapOf(t, o), "d0:4096 d1:1099511623680 d0:4096 d1:9223370937343139840 d0:4095 "; got != want {
		t.Errorf("extents %q, want %q", got, want)
	}
}

func TestOverlayRefusals(t *testing.T) {
	var outside *block.RangeError
	if _, err := block.NewOverlay(block.NewPattern(100), block.NewMemory(99)); !errors.As(err, &outside) {
		t.Errorf("an upper device that is too small: %v", err)
	}
	if _, err := block.NewOverlay(block.NewPattern(100), block.NewPattern(100)); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("an upper device that is read-only: %v", err)
	}
}

func TestAlignRequests(t *testing.T) {
	ctx := t.Context()
	const size = 10*512 + 100
	recorder := blocktest.NewRecorder(block.NewMemory(size))
	d := block.Align(newStrict(recorder, 512), 0)
	if block.Align(recorder, 0) != block.Device(recorder) {
		t.Error("a device that takes anything is wrapped")
	}
	check(t, d.Discard(ctx, 100, 300))      // nothing whole
	check(t, d.Discard(ctx, 500, 1500))     // shrinks to 512 up to 1536
	check(t, d.Discard(ctx, 5000, 220))     // the end counts as whole
	check(t, d.Zero(ctx, 512, 1024, 0))     // whole
	check(t, d.Zero(ctx, 5119, 101, 0))     // an edge and the short unit at the end
	check(t, d.Write(ctx, []byte{1}, 5, 0)) // an edge
	if err := d.Zero(ctx, 5, 300, block.Fast); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a fast zero without a whole unit: %v", err)
	}
	type request struct {
		op     blocktest.Op
		off, n int64
	}
	want := []request{
		{blocktest.OpDiscard, 512, 1024}, {blocktest.OpDiscard, 5120, 100}, {blocktest.OpZero, 512, 1024},
		{blocktest.OpZero, 5120, 100}, {blocktest.OpWrite, 4608, 512}, {blocktest.OpWrite, 0, 512},
	}
	entries := recorder.Log().Entries()
	for i, e := range entries {
		if i >= len(want) || (request{e.Op, e.Off, e.Len}) != want[i] {
			t.Errorf("request %d: %d at %d of %d bytes, want %+v", i, e.Op, e.Off, e.Len, want[min(i, len(want)-1)])
		}
	}
	if len(entries) != len(want) {
		t.Errorf("%d requests, want %d", len(entries), len(want))
	}
}

// Single bytes written side by side at the same time are all there, whoever copies what lies around them.
func TestNeighbours(t *testing.T) {
	const unit, writers, size = 4096, 8, 64 * 4096
	for name, d := range map[string]block.Device{
		"align":   block.Align(newStrict(block.NewMemory(size), unit), unit),
		"overlay": must[*block.Overlay](t)(block.NewOverlay(block.NewNull(size), slowly{block.Filter{Device: block.NewMemory(size)}})),
	} {
		var wait sync.WaitGroup
		written := func(off int64) bool { return off%unit < 64 } // so that the first bytes of many units are fought for
		for w := range int64(writers) {
			wait.Go(func() {
				for off := w; off < size; off += writers {
					if !written(off) {
						continue
					}
					if err := d.Write(t.Context(), []byte{byte(off) | 1}, off, 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
		p := make([]byte, size)
		check(t, d.Read(t.Context(), p, 0))
		for i, b := range p {
			if written(int64(i)) && b != byte(i)|1 {
				t.Fatalf("%s: byte %d is %d: a write was lost", name, i, b)
			}
		}
	}
}

// slowly lets others go first in each write.
type slowly struct{ block.Filter }

func (s slowly) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	runtime.Gosched()
	return s.Device.Write(ctx, p, off, f)
}

func TestAccessor(t *testing.T) {
	a := block.At(t.Context(), block.NewPattern(20))
	p := make([]byte, 8)
	if n, err := a.ReadAt(p, 16); n != 4 || err != io.EOF || p[3] != 0 {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := a.ReadAt(p, 20); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	var outside *block.RangeError
	if _, err := a.ReadAt(p, -1); !errors.As(err, &outside) {
		t.Errorf("before the start: %v", err)
	}
	if n, err := a.ReadAt(p, 8); n != 8 || err != nil || p[7] != 8 {
		t.Errorf("inside: %d, %v, %v", n, err, p)
	}
	if _, err := a.WriteAt(p, 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	all, err := io.ReadAll(io.NewSectionReader(a, 0, a.Size()))
	if err != nil || len(all) != 20 {
		t.Errorf("all: %d bytes, %v", len(all), err)
	}
}

func TestAs(t *testing.T) {
	m := block.NewMemory(100)
	window := must[*block.Window](t)(block.NewWindow(m, 0, 50))
	for name, c := range map[string]struct {
		d     block.Device
		found bool
	}{
		"itself": {m, true}, "filters": {block.NoClose(block.NoClose(m)), true}, "protect": {block.Protect(m), false},
		"window": {window, false}, "transform": {blocktest.NewXOR(m), false},
	} {
		if got, found := block.As[*block.Memory](c.d); found != c.found || found && got != m {
			t.Errorf("%s: found is %v", name, found)
		}
	}
}

func TestClip(t *testing.T) {
	e := block.Extent{Off: 100, Len: 50, Node: "file", NodeOff: 1000}
	for _, c := range []struct{ off, n, wantOff, wantLen, wantNode int64 }{
		{0, 1000, 100, 50, 1000}, {110, 10, 110, 10, 1010}, {0, 110, 100, 10, 1000}, {140, math.MaxInt64 - 1, 140, 10, 1040},
		{150, 10, 0, 0, 0}, {0, 100, 0, 0, 0}, {200, math.MaxInt64, 0, 0, 0},
	} {
		got, ok := e.Clip(c.off, c.n)
		if ok != (c.wantLen > 0) || ok && (got.Off != c.wantOff || got.Len != c.wantLen || got.NodeOff != c.wantNode) {
			t.Errorf("clipped to %d bytes at %d: %+v, %v", c.n, c.off, got, ok)
		}
	}
}
