package server

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// inlineLimit is the longest read or write that the reading goroutine does itself, in bytes.
const inlineLimit = 32 << 10

// request is a request with what is known of it.
type request struct {
	wire.Request
	payload uint64 // bytes that follow the header
	began   time.Duration
}

// has reports whether a flag is set.
func (r *request) has(f wire.CommandFlags) bool { return r.Flags&f != 0 }

// transmit answers requests until the client leaves. It returns errLeft where it does so properly, after every reply was sent.
func (c *conn) transmit() error {
	c.transmitting.Store(true)
	c.server.config.Log.Info("serving", "client", c.id, "address", addrText(c.plain), "export", c.exp.canonical(), "identity", c.client.Identity)
	err := c.requests()
	if err != nil && !errors.Is(err, io.EOF) && !c.drained(err) {
		return err
	}
	c.flush()
	c.working.Wait()
	c.out.flushed()
	return errLeft
}

// requests reads and serves requests. It returns nil after DISC.
func (c *conn) requests() error {
	size := wire.RequestSize
	if c.extended {
		size = wire.ExtendedRequestSize
	}
	for {
		if c.in.buffered() < size {
			c.flush()
		}
		p, err := c.in.next(size)
		if err != nil {
			return err
		}
		r, ok := c.parse(p)
		switch {
		case !ok:
			return fmt.Errorf("a request has the magic number %#x", be.Uint32(p))
		case r.Type == wire.CmdDisc && r.payload == 0:
			return nil
		case c.extended && r.payload > wire.DefaultMaxPayload:
			return fmt.Errorf("%v has a payload of %d bytes, more than %d", r.Type, r.payload, uint32(wire.DefaultMaxPayload))
		}
		c.in.owed = r.payload > 0
		if err := c.request(r); err != nil {
			return err
		}
		if c.in.owed = false; c.in.lifted {
			c.in.lifted = false
			c.lower()
		}
	}
}

// parse reads the header of a request.
func (c *conn) parse(p []byte) (r request, ok bool) {
	if c.extended {
		r.Request, ok = wire.ParseExtendedRequest(p)
		if r.has(wire.FlagPayloadLen) {
			r.payload = r.Length
		}
	} else {
		r.Request, ok = wire.ParseRequest(p)
		if r.Type == wire.CmdWrite {
			r.payload = r.Length
		}
	}
	r.began = time.Since(c.since)
	return r, ok
}

// request serves one request, or starts a goroutine that does. An error ends the connection.
func (c *conn) request(r request) error {
	if err := c.check(&r); err != nil {
		if r.payload > 0 {
			c.flush()
			if err := c.in.skip(r.payload); err != nil {
				return err
			}
		}
		c.begin()
		c.finish(&r, err)
		return nil
	}
	small := r.Length <= inlineLimit && r.Length > 0
	switch {
	case r.Type == wire.CmdWrite && small && c.in.holds(int(r.Length)):
		return c.smallWrite(r)
	case r.Type == wire.CmdRead && small && c.small.quick():
		c.inlineRead(&r)
	case r.Type == wire.CmdWrite && r.Length > 0:
		return c.bigWrite(r)
	case r.Type == wire.CmdBlockStatus && r.payload > 0:
		return c.filteredStatus(r)
	case r.Type == wire.CmdRead && !small && c.bulk.quick():
		c.flush()
		c.begin()
		c.run(&r)
	default:
		c.spawn(r, c.run)
	}
	return nil
}

// begin takes a slot for a request, which its last frame gives back.
func (c *conn) begin() {
	select {
	case c.slots <- struct{}{}:
	default:
		c.flush()
		c.slots <- struct{}{}
	}
}

// spawn lets a goroutine work on a request.
func (c *conn) spawn(r request, work func(*request)) {
	c.begin()
	c.working.Go(func() { work(&r) })
}

// run serves every request that has no payload.
func (c *conn) run(r *request) {
	off, n := int64(r.Offset), int64(r.Length)
	switch {
	case r.Type == wire.CmdFlush:
		c.finish(r, c.exp.Device.Flush(c.ctx))
	case r.Type == wire.CmdBlockStatus:
		c.status(r, c.contexts)
	case n == 0:
		c.finish(r, nil)
	case r.Type == wire.CmdRead:
		c.read(r)
	case r.Type == wire.CmdTrim:
		c.finish(r, c.trim(off, n, r.has(wire.FlagFUA)))
	case r.Type == wire.CmdCache:
		c.finish(r, c.cache(off, n))
	case r.Type == wire.CmdWriteZeroes:
		c.finish(r, c.zero(off, n, r))
	default:
		c.finish(r, wire.EINVAL)
	}
}

// pace decides whether the reading goroutine serves requests itself, which is cheaper, or starts goroutines, which a device that lets its callers
// wait needs to be kept busy. It is the moving average of the time that the device has taken, in nanoseconds. The average goes back slowly, so that
// a device that is quick but for a few requests, such as one with a cache, counts as one that lets its callers wait.
type pace struct {
	limit   int64 // of the average, above which the device waits for something
	average atomic.Int64
}

const (
	smallTime = 25 * time.Microsecond  // for a request of up to inlineLimit bytes
	bulkTime  = 200 * time.Microsecond // for pieceSize bytes
	slowTime  = time.Second            // more than this counts as this
	paceShare = 64                     // one part in so many of the average is the newest time
)

func (p *pace) init(limit time.Duration) {
	p.limit = int64(limit)
	p.average.Store(2 * p.limit) // until something is known
}

func (p *pace) quick() bool { return p.average.Load() < p.limit }

// took tells of one call of the device. Of calls that end at the same time one may be forgotten.
func (p *pace) took(d time.Duration) {
	average := p.average.Load()
	p.average.Store(average + (min(int64(d), int64(slowTime))-average)/paceShare)
}

// timed runs a call of the device for n bytes, and tells its time to the pace of such requests.
func (c *conn) timed(n int, call func() error) error {
	began := time.Now()
	err := call()
	if d := time.Since(began); n <= inlineLimit {
		c.small.took(d)
	} else {
		c.bulk.took(d * pieceSize / time.Duration(max(n, pieceSize/4)))
	}
	return err
}

// changes splits what is done to a range into pieces that the device takes.
func (c *conn) changes(off, n int64, do func(off, n int64) error) error {
	for n > 0 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		k := min(n, c.exp.maxPiece)
		if err := do(off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *conn) trim(off, n int64, fua bool) error {
	dev := c.exp.Device
	err := c.changes(off, n, func(off, n int64) error { return dev.Discard(c.ctx, off, n) })
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil // it is a hint
	}
	if err == nil && fua {
		err = dev.Flush(c.ctx)
	}
	return err
}

func (c *conn) cache(off, n int64) error {
	err := c.changes(off, n, func(off, n int64) error { return c.exp.Device.Prefetch(c.ctx, off, n) })
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // it is a hint
	}
	return err
}

func (c *conn) zero(off, n int64, r *request) error {
	dev := c.exp.Device
	var f block.Flags
	if r.has(wire.FlagNoHole) {
		f |= block.NoHole
	}
	whole := n <= c.exp.maxPiece
	if r.has(wire.FlagFUA) && whole {
		f |= block.FUA
	}
	if r.has(wire.FlagFastZero) {
		f |= block.Fast
	}
	err := c.changes(off, n, func(off, n int64) error {
		err := dev.Zero(c.ctx, off, n, f)
		if errors.Is(err, errors.ErrUnsupported) && f&block.Fast == 0 {
			err = block.WriteZeros(c.ctx, dev, off, n, f)
		}
		return err
	})
	if err == nil && r.has(wire.FlagFUA) && !whole {
		err = dev.Flush(c.ctx)
	}
	return err
}

// smallWrite takes a payload that fits into the input buffer.
func (c *conn) smallWrite(r request) error {
	if uint64(c.in.buffered()) < r.payload {
		c.flush()
	}
	p, err := c.in.next(int(r.payload))
	if err != nil {
		return unexpected(err)
	}
	c.counters.in.Add(int64(len(p)))
	if c.small.quick() && !r.has(wire.FlagFUA) && int64(len(p)) <= c.exp.maxPiece {
		c.finishInline(&r, c.exp.Device.Write(c.ctx, p, int64(r.Offset), 0))
	} else {
		c.laterWrite(r, p)
	}
	return nil
}

// laterWrite copies a payload of at most inlineLimit bytes, and lets a goroutine write it.
func (c *conn) laterWrite(r request, p []byte) {
	if !c.memory.tryTake(int64(len(p))) {
		c.flush()
		c.memory.take(int64(len(p))) // never less: inlineLimit is below the reserve
	}
	buffer := c.server.buffers.get(len(p))
	copy(*buffer, p)
	c.spawn(r, func(r *request) {
		err := c.writePiece(*buffer, int64(r.Offset), r.has(wire.FlagFUA))
		c.server.buffers.put(buffer)
		c.memory.give(int64(r.payload))
		c.finish(r, err)
	})
}

// unexpected turns the end of the stream into an error where something was still to come.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writePiece writes p, split as the device wants it.
func (c *conn) writePiece(p []byte, off int64, fua bool) (err error) {
	var f block.Flags
	whole := int64(len(p)) <= c.exp.maxPiece
	if fua && whole {
		f = block.FUA
	}
	write := func() error {
		return c.changes(off, int64(len(p)), func(at, n int64) error { return c.exp.Device.Write(c.ctx, p[at-off:][:n], at, f) })
	}
	if fua {
		err = write()
	} else {
		err = c.timed(len(p), write)
	}
	if err == nil && fua && !whole {
		err = c.exp.Device.Flush(c.ctx)
	}
	return err
}

// writing is a big write, of which the pieces are written one by one as they come.
type writing struct {
	c     *conn
	r     request
	flush bool         // FUA was asked for, and the device got more than one piece
	left  atomic.Int32 // pieces, and the reading goroutine while it takes the payload
	mu    sync.Mutex
	err   error // of the first piece that failed; guarded by mu
}

// bigWrite takes a payload in pieces, and has each written as soon as it is there.
func (c *conn) bigWrite(r request) error {
	c.flush()
	c.begin()
	w := &writing{c: c, r: r}
	w.left.Store(1)
	for off, end := int64(r.Offset), int64(r.Offset+r.payload); off < end; {
		n := c.memory.take(min(end-off, pieceSize))
		buffer := c.server.buffers.get(int(n))
		if err := c.in.full(*buffer); err != nil {
			c.server.buffers.put(buffer)
			c.memory.give(n)
			w.end(err)
			return err
		}
		c.counters.in.Add(n)
		w.piece(buffer, off)
		off += n
	}
	w.end(nil)
	return nil
}

// piece writes what is in buffer, and gives that back.
func (w *writing) piece(buffer *[]byte, off int64) {
	c, n := w.c, int64(len(*buffer))
	fua := w.r.has(wire.FlagFUA)
	whole := uint64(n) == w.r.payload
	w.flush = fua && !whole
	w.left.Add(1)
	write := func() {
		err := c.writePiece(*buffer, off, fua && whole)
		c.server.buffers.put(buffer)
		c.memory.give(n)
		w.end(err)
	}
	if whole && c.bulk.quick() && !fua { // else the next piece comes meanwhile
		write()
	} else {
		c.working.Go(write)
	}
}

// end tells of a piece, and replies after the last one.
func (w *writing) end(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	err = w.err
	w.mu.Unlock()
	if w.left.Add(-1) > 0 {
		return
	}
	if err == nil && w.flush {
		err = w.c.exp.Device.Flush(w.c.ctx)
	}
	w.c.finish(&w.r, err)
}
