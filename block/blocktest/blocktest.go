// Package blocktest checks that a [block.Device] keeps its contract, and helps to test what devices do when things go wrong.
//
// [Run] is the conformance suite: every device, layer and driver runs it, with -race. [Drive] is its core for fuzz tests: a byte
// string chooses operations, which are compared with a model in memory. [NewXOR] is the smallest layer that changes bytes.
// [NewFaulty] injects errors and delays. [Log] records what reaches devices, and replays every state that a crash could leave.
package blocktest

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
)

// Config says what to test.
type Config struct {
	// New returns a fresh device of Size bytes, with nothing written to it yet. The suite closes it.
	New func(t *testing.T) block.Device
	// Size is the size of a fresh device in bytes: from 4096 to 64 MiB. Small devices are tested more thoroughly; a size that is
	// not a multiple of the device's blocks finds more.
	Size int64
	// Content is what a fresh device holds, Size bytes. Nil means zeros.
	Content io.ReaderAt
	// ReadOnly is set for devices that refuse every change.
	ReadOnly bool
	// Reopen, where set, closes d and opens again what it stored: what was flushed must be there.
	Reopen func(t *testing.T, d block.Device) block.Device
	// ResizeUnit is what sizes given to Resize must be multiples of, in bytes; 0 means any size.
	ResizeUnit int64
	// Ops is how many random operations each test makes; 0 means 300, or 100 with -short.
	Ops int
	// Forgets is set for devices that swallow what is written.
	Forgets bool
	// StaysOpen is set for devices whose Close does nothing.
	StaysOpen bool
	// Pins is set for devices of which at least one range of a fresh device must be pinnable.
	Pins bool
	// Seed varies the random operations.
	Seed uint64
}

const (
	minSize = 4096
	maxSize = 64 << 20

	// patience is how long a call that must return promptly may take before it is taken to hang.
	patience = time.Minute
)

// Run runs the suite as subtests of t.
func Run(t *testing.T, c Config) {
	t.Helper()
	if c.Size < minSize || c.Size > maxSize {
		t.Fatalf("blocktest: size of %d bytes, want one from %d to %d", c.Size, minSize, maxSize)
	}
	if c.Ops == 0 {
		c.Ops = 300
		if testing.Short() {
			c.Ops = 100
		}
	}
	c.ResizeUnit = max(c.ResizeUnit, 1)
	s := suite{c}
	t.Run("Info", s.info)
	t.Run("Content", s.content)
	t.Run("ZeroLength", s.zeroLength)
	t.Run("Range", s.ranges)
	t.Run("Extents", s.extents)
	t.Run("Random", s.random)
	t.Run("Cancel", s.cancel)
	t.Run("Pin", s.pin)
	t.Run("Close", s.close)
	t.Run("Transform", s.transform)
	if c.ReadOnly {
		t.Run("ReadOnly", s.readOnly)
		return
	}
	t.Run("Edges", s.edges)
	t.Run("ZeroFlags", s.zeroFlags)
	t.Run("Size", s.size)
	t.Run("Concurrent", s.concurrent)
	if c.Reopen != nil {
		t.Run("Reopen", s.reopen)
	}
}

// suite holds the tests; each opens a fresh device.
type suite struct{ Config }

// open returns a fresh device that is closed with the test.
func (s suite) open(t *testing.T) block.Device {
	t.Helper()
	d := s.New(t)
	t.Cleanup(func() { d.Close() })
	if d.Size() != s.Size {
		t.Fatalf("a fresh device has %d bytes, want %d", d.Size(), s.Size)
	}
	return d
}

// model returns what a fresh device holds.
func (s suite) model(t *testing.T) *model {
	t.Helper()
	m, err := newModel(s.Config)
	if err != nil {
		t.Fatalf("reading Config.Content: %v", err)
	}
	return m
}

func (s suite) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s.Seed+1, stream)) }

// check compares the whole device with the model.
func check(t *testing.T, d block.Device, m *model, when string) {
	t.Helper()
	if err := m.compare(t.Context(), d); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
}

// info checks that the constants agree with each other.
func (s suite) info(t *testing.T) {
	d := s.open(t)
	i := d.Info()
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if !power(i.MinBlock) || !power(i.PreferredBlock) || i.PreferredBlock < i.MinBlock {
		t.Errorf("MinBlock %d, PreferredBlock %d: want powers of two, the first at most the second", i.MinBlock, i.PreferredBlock)
	}
	if i.MaxBlock != 0 && i.MaxBlock < i.MinBlock {
		t.Errorf("MaxBlock %d is less than MinBlock %d", i.MaxBlock, i.MinBlock)
	}
	c := i.Caps
	if c.Write == s.ReadOnly {
		t.Errorf("Caps.Write is %v, Config.ReadOnly is %v", c.Write, s.ReadOnly)
	}
	if !c.Write && (c.Grow || c.Resize || c.FUA || c.Zero || c.FastZero || c.Discard) {
		t.Errorf("a device that cannot write claims %+v", c)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Errorf("Flush of a fresh device: %v", err)
	}
	if again := d.Info(); again != i {
		t.Errorf("Info changed from %+v to %+v", i, again)
	}
}

// content reads a fresh device in pieces of many lengths.
func (s suite) content(t *testing.T) {
	d, m := s.open(t), s.model(t)
	check(t, d, m, "fresh device")
	rnd := s.rand(1)
	for range s.Ops {
		off := rnd.Int64N(s.Size)
		n := 1 + rnd.Int64N(min(s.Size-off, 10000))
		if err := m.read(t.Context(), d, off, n); err != nil {
			t.Fatal(err)
		}
	}
}

// random makes random operations, and compares the device with the model on the way and at the end.
func (s suite) random(t *testing.T) {
	d := s.open(t)
	m := s.drive(t, d, 2)
	check(t, d, m, "after random operations")
}

// drive makes random operations on d and returns what it must hold now.
func (s suite) drive(t *testing.T, d block.Device, stream uint64) *model {
	t.Helper()
	r := newRunner(s.Config, d, s.model(t), &dice{rnd: s.rand(stream)})
	r.whole = true
	for i := range s.Ops {
		if err := r.step(t.Context()); err != nil {
			t.Fatalf("operation %d (Seed %d): %v", i, s.Seed, err)
		}
	}
	return r.m
}

// reopen checks that what was flushed is there when the device is opened again.
func (s suite) reopen(t *testing.T) {
	d := s.New(t)
	m := s.drive(t, d, 3)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
	d = s.Reopen(t, d)
	t.Cleanup(func() { d.Close() })
	check(t, d, m, "opened again")
}

// Drive makes operations on the fresh device d of c, chosen by script until it ends, and compares with a model: the body of a fuzz
// test. It returns an error that says which operation went wrong. c.New and c.Reopen are not used.
func Drive(ctx context.Context, c Config, d block.Device, script []byte) error {
	m, err := newModel(c)
	if err != nil {
		return err
	}
	c.ResizeUnit = max(c.ResizeUnit, 1)
	r := newRunner(c, d, m, &dice{script: script})
	r.whole = true
	for !r.over() {
		if err := r.step(ctx); err != nil {
			return err
		}
	}
	return r.m.compare(ctx, d)
}

// Snapshot returns the content of d in memory: what to give [Log.Replay] to start from.
func Snapshot(ctx context.Context, d block.Device) (*block.Memory, error) {
	size := d.Size()
	m := block.NewMemory(size)
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := d.Read(ctx, buf, off); err != nil {
			return nil, err
		}
		if err := m.Write(ctx, buf, off, 0); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// within runs f and fails the test where it does not return.
func within(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s does not return", what)
		return os.ErrDeadlineExceeded
	}
}
