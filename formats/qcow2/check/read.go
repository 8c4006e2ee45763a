package check

import (
	"context"
	"iter"

	"github.com/imgtool/imgtool/block"
)

const (
	batchBytes  = 1 << 20 // of tables that are read and judged at a time
	batchTables = 4096    // as many at most
	batches     = 4       // that are read ahead
)

// batch is some tables that are read together.
type batch struct {
	offs []int64  // where they lie
	data [][]byte // nil where a table is zero
	err  error
	done chan struct{}
}

// readTables reads the tables of n bytes that lie at the offsets, all of which are inside the file, several at a time, and calls use for one after
// the other in the given order. Where a table is zero, as in a hole of the file, data is nil. What the file has not of the last
// cluster reads as zero. data belongs to use until it returns.
func (c *checker) readTables(offs iter.Seq[int64], n int64, use func(off int64, data []byte) error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	queue := make(chan *batch, batches)
	go func() {
		defer close(queue)
		send := func(b *batch) bool {
			select {
			case queue <- b:
				go c.readBatch(ctx, b, n)
				return true
			case <-ctx.Done():
				return false
			}
		}
		h := holes{dev: c.dev, size: c.size, step: batchBytes}
		b, room := newBatch(), max(batchBytes, n)
		for off := range offs {
			var data []byte
			if !h.zero(ctx, off, n) {
				data = []byte{} // to be read
				room -= n
			}
			b.offs, b.data = append(b.offs, off), append(b.data, data)
			if room < n || len(b.offs) == batchTables {
				if !send(b) {
					return
				}
				b, room = newBatch(), max(batchBytes, n)
			}
		}
		send(b)
	}()
	var err error
	for b := range queue {
		<-b.done
		if err == nil {
			err = b.err
		}
		for i := 0; i < len(b.offs) && err == nil; i++ {
			err = use(b.offs[i], b.data[i])
		}
		if err != nil {
			cancel()
		}
	}
	if err == nil {
		err = c.ctx.Err()
	}
	return err
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// readBatch reads the tables of a batch, neighbours at once.
func (c *checker) readBatch(ctx context.Context, b *batch, n int64) {
	defer close(b.done)
	for i := 0; i < len(b.offs); {
		if b.data[i] == nil {
			i++
			continue
		}
		j := i + 1
		for j < len(b.offs) && b.data[j] != nil && b.offs[j] == b.offs[j-1]+n {
			j++
		}
		buf := make([]byte, int64(j-i)*n)
		if b.err = c.readAt(ctx, buf, b.offs[i]); b.err != nil {
			return
		}
		for k := range j - i {
			b.data[i+k] = buf[int64(k)*n:][:n:n]
		}
		i = j
	}
}

// readAt reads p, of which the file may hold less.
func (c *checker) readAt(ctx context.Context, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), c.size-off))
	clear(p[n:])
	return c.dev.Read(ctx, p[:n], off)
}

// holes answers where a file is zero, and asks the device rarely while the answers are alike.
type holes struct {
	dev   block.Device
	size  int64
	step  int64          // bytes to ask about next time
	known []block.Extent // in order
}

// zero reports whether the n bytes from off are known to be zero.
func (h *holes) zero(ctx context.Context, off, n int64) bool {
	n = min(n, h.size-off)
	for len(h.known) > 0 && (h.known[0].End() <= off || h.known[0].Off > off) {
		if h.known[0].Off > off {
			h.known = nil
			break
		}
		h.known = h.known[1:]
	}
	if len(h.known) == 0 {
		list, err := h.dev.Extents(ctx, block.Map{}, off, max(n, min(h.step, h.size-off)), nil)
		if err != nil || len(list) == 0 { // who cannot tell has data
			return false
		}
		if h.known = list; len(list) == 1 {
			h.step = min(h.step*2, 1<<50)
		} else {
			h.step = batchBytes
		}
	}
	return h.known[0].Flags&block.ExtZero != 0 && h.known[0].End() >= off+n
}
