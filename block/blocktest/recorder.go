package blocktest

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// Log is what reached one or several devices, in order. The zero value is an empty log; it must not be copied.
type Log struct {
	mu      sync.Mutex
	clock   int
	entries []Entry
	sizes   []int64 // of the devices when their recorders were made
}

// Entry is an operation in a Log.
type Entry struct {
	Dev  int // which device: 0 is that of the first recorder
	Op   Op  // OpWrite, OpZero, OpDiscard, OpResize, OpFlush or OpMark
	Off  int64
	Len  int64  // bytes; of a Resize the new size
	Data []byte // of a Write
	// Flags are those of a Write or Zero.
	Flags block.Flags
	// Mark is the number of an OpMark.
	Mark int

	// Start and End say when the operation was called and when it returned, in ticks of the log from 1 on. End is 0 where it failed
	// or has not returned: then nobody knows how much of it was done.
	Start, End int
}

// Recorder is a device whose changes are recorded. Everything else passes through, except for the rare extras of devices below.
type Recorder struct {
	block.Filter
	log *Log
	dev int
}

// NewRecorder returns d with a log of its own.
func NewRecorder(d block.Device) *Recorder { return new(Log).Recorder(d) }

// Recorder returns d with its changes going to the log, as the next device of it.
func (l *Log) Recorder(d block.Device) *Recorder {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes = append(l.sizes, d.Size())
	return &Recorder{Filter: block.Filter{Device: d}, log: l, dev: len(l.sizes) - 1}
}

// Log returns the log to which the changes go.
func (r *Recorder) Log() *Log { return r.log }

// Mark notes that something has happened, such as an answer to a user that relies on the changes before. States of a replay tell the
// last mark before the crash.
func (l *Log) Mark(number int) {
	i := l.begin(Entry{Op: OpMark, Mark: number})
	l.end(i, nil)
}

// Entries returns the operations so far, in the order in which they were called. Those that had no effect (a range outside the
// device, an operation that is not supported) are left out. The data belong to the log.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.entries), func(e Entry) bool { return e.Op == 0 })
}

func (l *Log) begin(e Entry) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	e.Start = l.clock
	l.entries = append(l.entries, e)
	return len(l.entries) - 1
}

func (l *Log) end(i int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[i]
	if err == nil {
		l.clock++
		e.End = l.clock
	} else if harmless(err) {
		e.Op = 0
	}
}

// harmless reports whether an operation that returned err has changed nothing.
func harmless(err error) bool {
	var outside *block.RangeError
	return errors.As(err, &outside) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, block.ErrReadOnly) || errors.Is(err, os.ErrClosed)
}

// record does an operation and notes when it began and ended.
func (r *Recorder) record(e Entry, do func() error) error {
	e.Dev = r.dev
	i := r.log.begin(e)
	err := do()
	r.log.end(i, err)
	return err
}

// Write implements block.Device.
func (r *Recorder) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if len(p) == 0 {
		return r.Device.Write(ctx, p, off, f)
	}
	e := Entry{Op: OpWrite, Off: off, Len: int64(len(p)), Data: slices.Clone(p), Flags: f}
	return r.record(e, func() error { return r.Device.Write(ctx, p, off, f) })
}

// Zero implements block.Device.
func (r *Recorder) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if n == 0 {
		return r.Device.Zero(ctx, off, n, f)
	}
	return r.record(Entry{Op: OpZero, Off: off, Len: n, Flags: f}, func() error { return r.Device.Zero(ctx, off, n, f) })
}

// Discard implements block.Device.
func (r *Recorder) Discard(ctx context.Context, off, n int64) error {
	if n == 0 {
		return r.Device.Discard(ctx, off, n)
	}
	return r.record(Entry{Op: OpDiscard, Off: off, Len: n}, func() error { return r.Device.Discard(ctx, off, n) })
}

// Resize implements block.Device.
func (r *Recorder) Resize(ctx context.Context, size int64) error {
	if size < 0 {
		return r.Device.Resize(ctx, size)
	}
	return r.record(Entry{Op: OpResize, Len: size}, func() error { return r.Device.Resize(ctx, size) })
}

// Flush implements block.Device.
func (r *Recorder) Flush(ctx context.Context) error {
	return r.record(Entry{Op: OpFlush}, func() error { return r.Device.Flush(ctx) })
}

// Unwrap hides the lower device: its extras could change it unseen.
func (r *Recorder) Unwrap() block.Device { return nil }
