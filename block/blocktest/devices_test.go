package blocktest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

func TestHealthyFaulty(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: brokenSize, Ops: 100,
		New: func(*testing.T) block.Device {
			return blocktest.NewFaulty(block.NewMemory(brokenSize), blocktest.Fault{Ops: blocktest.OpAny, Nth: 50, Times: 200, Delay: time.Microsecond})
		},
	})
}

func TestRecorder(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: brokenSize, Ops: 100,
		New: func(*testing.T) block.Device { return blocktest.NewRecorder(block.NewMemory(brokenSize)) },
	})
}

var errDisk = errors.New("the disk is on fire")

func TestFaultyNth(t *testing.T) {
	ctx := t.Context()
	f := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpWrite | blocktest.OpFlush, Nth: 3, Times: 2, Err: errDisk})
	var got []bool
	for i := range int64(6) {
		if err := f.Read(ctx, make([]byte, 10), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		var err error
		if i == 3 {
			err = f.Flush(ctx)
		} else {
			err = f.Write(ctx, []byte("x"), i, 0)
		}
		got = append(got, errors.Is(err, errDisk))
	}
	want := []bool{false, false, true, true, false, false}
	p := make([]byte, 6)
	if err := f.Read(ctx, p, 0); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if got[i] != want[i] || (p[i] == 'x') == (want[i] || i == 3) {
			t.Fatalf("operations failed: %v, want %v; content %q", got, want, p)
		}
	}
	if hits := f.Hits(); len(hits) != 1 || hits[0] != 2 {
		t.Errorf("hits %v, want 2", hits)
	}
	f.Plan()
	if err := f.Write(ctx, []byte("x"), 0, 0); err != nil {
		t.Errorf("without a plan: %v", err)
	}
}

func TestFaultyRange(t *testing.T) {
	ctx := t.Context()
	f := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Off: 1000, Len: 10, Err: errDisk})
	for _, c := range []struct {
		off, n int64
		fails  bool
	}{{0, 1000, false}, {0, 1001, true}, {1009, 1, true}, {1010, 5, false}, {0, 1 << 20, true}} {
		if err := f.Read(ctx, make([]byte, c.n), c.off); errors.Is(err, errDisk) != c.fails {
			t.Errorf("read of %d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if err := f.Write(ctx, []byte("x"), 1005, 0); err != nil {
		t.Errorf("write: %v", err)
	}
}

// A write that passes the limit is stored up to it, as when a disk is full.
func TestFaultyBytes(t *testing.T) {
	ctx := t.Context()
	m := block.NewMemory(0)
	f := blocktest.NewFaulty(m, blocktest.Fault{Ops: blocktest.OpWrite, Bytes: 25, Err: errDisk})
	for i := range int64(5) {
		err := f.Write(ctx, []byte("0123456789"), i*10, 0)
		if errors.Is(err, errDisk) != (i >= 2) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if m.Size() != 25 {
		t.Errorf("%d bytes were written, want 25", m.Size())
	}
}

func TestFaultyDelayEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := blocktest.NewFaulty(block.NewMemory(10), blocktest.Fault{Delay: time.Hour})
	time.AfterFunc(time.Millisecond, cancel)
	if err := f.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("delayed flush: %v, want %v", err, context.Canceled)
	}
}

// A byte string drives operations over a Memory.
func FuzzMemory(f *testing.F) {
	f.Add([]byte{0, 3, 0, 0, 1, 0x10, 0x20, 1, 0, 7, 4, 1, 2, 3, 4})
	f.Add([]byte("writes, zeros, discards and resizes at places that this text chooses"))
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 4096 {
			return
		}
		const size = 3*4096 + 17
		m := block.NewMemory(size)
		c := blocktest.Config{Size: size}
		if err := blocktest.Drive(t.Context(), c, m, script); err != nil {
			t.Fatal(err)
		}
	})
}

// The same over everything that splits, moves or copies.
func FuzzStack(f *testing.F) {
	f.Add([]byte("a window of an aligned overlay of two devices"), uint16(5000))
	f.Fuzz(func(t *testing.T, script []byte, join uint16) {
		if len(script) > 4096 {
			return
		}
		const size, before = 9*4096 + 17, 1001
		lower, err := block.Concat(block.NewMemory(int64(join)), block.NewMemory(before+size))
		if err != nil {
			t.Fatal(err)
		}
		overlay, err := block.NewOverlay(lower, nil)
		if err != nil {
			t.Fatal(err)
		}
		window, err := block.NewWindow(block.Align(overlay, 512), before, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := blocktest.Drive(t.Context(), blocktest.Config{Size: size}, window, script); err != nil {
			t.Fatal(err)
		}
	})
}
