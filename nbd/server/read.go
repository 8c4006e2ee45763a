package server

import (
	"fmt"
	"math"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// The shortest runs of zeros that are told as holes, in bytes.
const (
	minHole      = 4 << 10
	minSmallHole = 512 // where all of a small read is zero
)

// readFor is readInto, timed.
func (c *conn) readFor(p []byte, off int64) error {
	return c.timed(len(p), func() error { return c.readInto(p, off) })
}

// readInto fills p, split as the device wants it.
func (c *conn) readInto(p []byte, off int64) error {
	if int64(len(p)) <= c.exp.maxPiece {
		return c.exp.Device.Read(c.ctx, p, off)
	}
	return c.changes(off, int64(len(p)), func(at, n int64) error { return c.exp.Device.Read(c.ctx, p[at-off:][:n], at) })
}

// read serves a read of at least one byte that has a slot.
func (c *conn) read(r *request) {
	if c.structured && !r.has(wire.FlagDF) {
		c.readChunks(r)
		return
	}
	n := int64(r.Length)
	f := &frame{last: true}
	if n <= pieceSize && c.pipePiece(f, int64(r.Offset), n) == n {
		f.headLen = c.dataHead()
		c.putData(f.head[:], r, int64(r.Offset), int(n), wire.ChunkDone)
		c.counters.out.Add(n)
		c.count(r, nil)
		c.out.send(f)
		return
	}
	if f.pipe != nil { // of which there is not all
		c.server.pipes.put(f.pipe)
	}
	if c.memory.take(n) < n {
		c.readStream(r)
	} else {
		c.readWhole(r)
	}
}

// readWhole replies with all the data at once. The memory for it has been taken.
func (c *conn) readWhole(r *request) {
	n := int(r.Length)
	buffer := c.server.buffers.get(n)
	f := &frame{buffer: buffer, held: int64(n), last: true}
	if err := c.readFor(*buffer, int64(r.Offset)); err != nil {
		f.body = c.appendEnd(f.head[:0], r, err)
		c.count(r, err)
	} else {
		f.headLen, f.body = c.dataHead(), *buffer
		c.putData(f.head[:], r, int64(r.Offset), n, wire.ChunkDone)
		c.counters.out.Add(int64(n))
		c.count(r, nil)
	}
	c.out.send(f)
}

// readStream replies with one run of data that is read while it is sent, because there is no memory for all of it. reserve bytes have been taken.
// An error after the beginning ends a simple reply with the connection, and the data of a chunk with zeros and an error chunk.
func (c *conn) readStream(r *request) {
	buffer := c.server.buffers.get(reserve)
	defer c.server.buffers.put(buffer)
	defer c.memory.give(reserve)
	p, off, end := *buffer, int64(r.Offset), int64(r.Offset+r.Length)
	err := c.readInto(p, off)
	if err != nil {
		c.finish(r, err)
		return
	}
	c.out.alone()
	defer c.out.giveBack()
	f := &frame{headLen: c.dataHead(), body: p}
	c.putData(f.head[:], r, off, int(r.Length), 0)
	failed := error(nil)
	for {
		if c.out.sendAlone(f) != nil {
			break
		}
		if off += int64(len(p)); off == end {
			break
		}
		p = p[:min(reserve, end-off)]
		if failed == nil {
			if failed = c.readInto(p, off); failed != nil {
				clear(*buffer)
			}
		}
		if failed != nil && !c.structured {
			c.cancel(fmt.Errorf("reading at byte %d, in the middle of a simple reply: %w", off, failed))
			break
		}
		*f = frame{body: p}
	}
	c.counters.out.Add(int64(r.Length))
	c.count(r, failed)
	*f = frame{last: true}
	if c.structured {
		f.body = c.appendEnd(f.head[:0], r, failed)
	}
	_ = c.out.sendAlone(f)
}

// readChunks replies with a chunk for each piece that was read, and each hole.
func (c *conn) readChunks(r *request) {
	for off, end := int64(r.Offset), int64(r.Offset+r.Length); off < end; {
		n, hole := c.alike(off, end)
		f := new(frame)
		var err error
		if !hole {
			hole, n, err = c.readPiece(f, off, n)
		}
		done := wire.ChunkFlags(0)
		if off+n == end {
			done, f.last = wire.ChunkDone, true
		}
		switch {
		case err != nil:
			f.last = true
			f.body = c.appendEnd(f.head[:0], r, err)
			c.count(r, err)
			c.out.send(f)
			return
		case hole:
			f.headLen = c.putHole(f.head[:], r, off, n, done)
		default:
			f.headLen = c.dataHead()
			c.putData(f.head[:], r, off, int(n), done)
			c.counters.out.Add(n)
		}
		if f.last {
			c.count(r, nil)
		}
		c.out.send(f)
		off += n
	}
}

// minPipe is how much is sent without a copy at least, in bytes: less is copied faster than moved.
const minPipe = 128 << 10

// pipePiece gets up to n bytes into a pipe that f holds from then on, and reports how many, 0 where that cannot be. What begins with zeros is read
// instead: it may be a hole.
func (c *conn) pipePiece(f *frame, off, n int64) int64 {
	if n < minPipe || c.out.raw == nil || !c.exp.steady {
		return 0
	}
	var start [minSmallHole]byte
	if c.structured && (c.readInto(start[:], off) != nil || block.IsZero(start[:])) {
		return 0
	}
	x := c.server.pipes.get()
	if x == nil {
		return 0
	}
	_ = c.timed(int(min(n, pieceSize)), func() error {
		n = x.fill(c.ctx, c.exp.Device, off, n)
		return nil
	})
	if n == 0 {
		c.server.pipes.put(x)
		return 0
	}
	f.pipe = x
	return n
}

// readPiece reads up to n bytes into a buffer that f holds from then on, and says how many, and whether all of them are zero.
func (c *conn) readPiece(f *frame, off, n int64) (zero bool, got int64, err error) {
	if n := c.pipePiece(f, off, n); n > 0 {
		return false, n, nil
	}
	n = c.memory.take(min(n, pieceSize))
	f.buffer, f.held = c.server.buffers.get(int(n)), n
	if err := c.readFor(*f.buffer, off); err != nil {
		return false, n, err
	}
	if n >= minSmallHole && block.IsZero(*f.buffer) {
		c.sparse.found()
		return true, n, nil
	}
	f.body = *f.buffer
	return false, n, nil
}

// alike returns how many of the bytes from off on are alike, as far as is worth asking: a hole, or anything else.
func (c *conn) alike(off, end int64) (n int64, hole bool) {
	n = end - off
	if n < minHole || !c.sparse.worthAsking() {
		return n, false
	}
	var few [16]block.Extent
	extents, err := c.exp.Device.Extents(c.ctx, block.Map{}, off, n, few[:0])
	if err != nil {
		return n, false // reading it will show what is wrong
	}
	data := int64(0)
	for i, zeros := 0, int64(0); i < len(extents); i++ {
		e := extents[i]
		if e.Flags&block.ExtZero == 0 {
			data += zeros + e.Len
			zeros = 0
			continue
		}
		if zeros += e.Len; zeros < minHole && e.End() < end {
			continue
		}
		if data > 0 {
			return data, false
		}
		for i++; i < len(extents) && extents[i].Flags&block.ExtZero != 0; i++ {
			zeros += extents[i].Len
		}
		c.sparse.found()
		return min(zeros, math.MaxUint32&^0xffff), true
	}
	c.sparse.missed()
	if data == 0 {
		return n, false
	}
	return data, false
}

// sparseness decides whether a device is asked for its holes before it is read. Asking costs the device a look, and saves nothing where there is
// only data; but where zeros have been read, there are often more.
type sparseness struct{ credit atomic.Int32 }

const holeCredit = 8 // questions in vain after which no more are asked

func (s *sparseness) worthAsking() bool { return s.credit.Load() > 0 }
func (s *sparseness) found()            { s.credit.Store(holeCredit) }
func (s *sparseness) missed()           { s.credit.Add(-1) }
