package convert

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// Difference says in what two devices differ.
type Difference uint8

const (
	// Same: no difference.
	Same Difference = iota
	// Size: one is longer. It counts in a strict comparison only.
	Size
	// Allocation: one is allocated, or known to be zero, where the other is not. It counts in a strict comparison only.
	Allocation
	// Content: a byte differs, or one device is longer and not zero there.
	Content
)

func (d Difference) String() string {
	return [...]string{"same", "size", "allocation", "content"}[d]
}

// Result is what Compare found: the first difference, by offset.
type Result struct {
	Difference   Difference
	Off          int64 // of the first byte that differs; for Size, where the shorter one ends
	SizeA, SizeB int64 // of the devices, in bytes
}

// Compare reads a and b and reports the first difference, the same one for any number of workers. What both know as zero is not read.
// A device that is longer is compared with zeros after the end of the other; with strict, different sizes and different allocation count as
// differences, sizes first. An error means that a device could not be read at a place before any difference.
func Compare(ctx context.Context, a, b block.Device, strict bool, o Options) (Result, error) {
	r := Result{SizeA: a.Size(), SizeB: b.Size()}
	if strict && r.SizeA != r.SizeB {
		r.Difference, r.Off = Size, min(r.SizeA, r.SizeB)
		return r, nil
	}
	workers, request := o.limits(readRequest, 2, nil, a, b)
	c := &comparison{a: a, b: b, events: events{off: max(r.SizeA, r.SizeB)}}
	c.total, c.tell = max(r.SizeA, r.SizeB), o.Progress

	// The queue is handed out in order and workers finish what they took: so when something was found, everything before it
	// is looked at, and what remains as the lowest is the first of all.
	queue := make(chan task)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			var p, q []byte
			for t := range queue {
				if p == nil {
					p, q = make([]byte, request), make([]byte, request)
				}
				c.compare(ctx, t, p, q)
			}
		})
	}
	for t, err := range tasks(bothRanges(ctx, a, b, strict), request, zeroTask) {
		if err != nil {
			c.found(c.next, Same, err)
			break
		}
		c.next = t.off + t.n
		if t.kind&unlike != 0 {
			c.found(t.off, Allocation, nil)
			break
		}
		if c.before(t.off) {
			break
		}
		if t.kind == 0 {
			c.add(t.n, func(*Stats) {})
			continue
		}
		queue <- t
	}
	close(queue)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if c.err == nil && c.difference != Same {
		r.Difference, r.Off = c.difference, c.off
	}
	return r, c.err
}

type comparison struct {
	progress
	events
	a, b block.Device
	next int64 // where the next task starts
}

// events keeps the first thing found: a difference or an error.
type events struct {
	mu         sync.Mutex
	off        int64
	difference Difference
	err        error
}

// found keeps the event if it is the first one.
func (e *events) found(off int64, d Difference, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off < e.off {
		e.off, e.difference, e.err = off, d, err
	}
}

// before reports whether something was found before off.
func (e *events) before(off int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.off < off
}

// compare deals with one task; p and q have room for a request.
func (c *comparison) compare(ctx context.Context, t task, p, q []byte) {
	if c.before(t.off) {
		return
	}
	read := func(d block.Device, p []byte) bool {
		err := d.Read(ctx, p, t.off)
		if err != nil {
			c.found(t.off, Same, unread(ctx, d, p, t.off, err))
		}
		return err == nil
	}
	p, q = p[:t.n], q[:t.n]
	var at int
	switch t.kind {
	case readA | readB:
		if !read(c.a, p) || !read(c.b, q) {
			return
		}
		at = mismatch(p, q)
	case readA:
		if !read(c.a, p) {
			return
		}
		at = nonZero(p)
	case readB:
		if !read(c.b, q) {
			return
		}
		at = nonZero(q)
	}
	if at >= 0 {
		c.found(t.off+int64(at), Content, nil)
	}
	c.add(t.n, func(*Stats) {})
}

const page = 4096 // what is compared at once before bytes are looked at

// mismatch returns the index of the first byte in which p and q, of the same length, differ, or -1.
func mismatch(p, q []byte) int {
	for i := 0; i < len(p); i += page {
		end := min(i+page, len(p))
		if bytes.Equal(p[i:end], q[i:end]) {
			continue
		}
		for ; p[i] == q[i]; i++ {
		}
		return i
	}
	return -1
}

// nonZero returns the index of the first byte of p that is not zero, or -1.
func nonZero(p []byte) int {
	for i := 0; i < len(p); i += page {
		if block.IsZero(p[i:min(i+page, len(p))]) {
			continue
		}
		for ; p[i] == 0; i++ {
		}
		return i
	}
	return -1
}

// bothRanges yields the ranges in which neither device changes its kind, up to the end of the longer one.
func bothRanges(ctx context.Context, a, b block.Device, strict bool) iter.Seq2[task, error] {
	return func(yield func(task, error) bool) {
		for e, err := range together(ctx, max(a.Size(), b.Size()), a, b) {
			if err != nil {
				yield(task{}, err)
				return
			}
			t := task{off: e[0].Off, n: e[0].Len, kind: dataIn(e[0], readA) | dataIn(e[1], readB)}
			if strict && (e[0].Flags^e[1].Flags)&(block.ExtAlloc|block.ExtZero) != 0 {
				t.kind |= unlike
			}
			if !yield(t, nil) {
				return
			}
		}
	}
}
