package server

import (
	"net"
	"sync"
	"syscall"
)

const (
	headSize   = 64        // bytes; more than the fixed part of any message
	joinSize   = 64 << 10  // bytes that are put together for a connection that takes one slice at a time
	gatherSize = 512 << 10 // bytes from which on one writev has enough: progress is seen after each
)

// frame is a message to the client, or several, or a part of one.
type frame struct {
	head    [headSize]byte
	headLen int
	body    []byte
	buffer  *[]byte // that body lies in, to be given back; nil where it is nobody's
	pipe    *pipe   // what follows body, without a copy; nil where nothing does
	held    int64   // bytes of the budget that are free when it was sent
	last    bool    // it ends a request that has a slot
}

// output sends frames. Whoever has one sends it, and with it what others have queued meanwhile.
type output struct {
	c   *conn
	nc  net.Conn
	raw syscall.RawConn // nil where nothing can be sent without a copy

	mu    sync.Mutex
	free  sync.Cond // signalled when busy becomes false
	queue []*frame
	spare []*frame // the slice that queue was before
	busy  bool     // somebody writes
	err   error    // the first one; nothing is sent after it

	// Of whoever writes.
	vector   net.Buffers // what is gathered for the next writev
	gathered int         // bytes in it
	rest     net.Buffers // what is left of it
}

func (o *output) init(c *conn, nc net.Conn) {
	o.c, o.nc, o.raw = c, nc, rawConn(nc)
	o.free.L = &o.mu
}

// send queues frames that belong together and sees to it that they are sent: by the caller, unless somebody else is at it.
func (o *output) send(frames ...*frame) {
	o.mu.Lock()
	o.queue = append(o.queue, frames...)
	if o.busy {
		o.mu.Unlock()
		return
	}
	o.busy = true
	o.writeQueue()
}

// trySend is send for one frame, if nobody else is writing.
func (o *output) trySend(f *frame) bool {
	o.mu.Lock()
	if o.busy {
		o.mu.Unlock()
		return false
	}
	o.busy = true
	o.queue = append(o.queue, f)
	o.writeQueue()
	return true
}

// writeQueue writes until the queue is empty, and gives up the role of the writer. The caller has it, and holds mu, which is unlocked.
func (o *output) writeQueue() {
	for len(o.queue) > 0 {
		batch, failed := o.queue, o.err != nil
		o.queue = o.spare[:0]
		o.mu.Unlock()
		var err error
		if !failed {
			err = o.write(batch)
		}
		for i, f := range batch {
			o.c.sent(f)
			batch[i] = nil
		}
		o.mu.Lock()
		o.spare = batch
		o.fail(err)
	}
	o.busy = false
	o.mu.Unlock()
	o.free.Broadcast()
}

// fail keeps the first error and cuts the connection, of which the client cannot make sense any more. The caller holds mu.
func (o *output) fail(err error) {
	if err != nil && o.err == nil {
		o.err = err
		o.c.cancel(err)
	}
}

// alone gives the caller the role of the writer, for a message that is made while it is sent. giveBack ends it.
func (o *output) alone() {
	o.mu.Lock()
	for o.busy {
		o.free.Wait()
	}
	o.busy = true
	o.mu.Unlock()
}

// sendAlone sends a frame for a caller that has the role, and returns the error that has ended the connection.
func (o *output) sendAlone(f *frame) error {
	o.mu.Lock()
	err := o.err
	o.mu.Unlock()
	if err == nil {
		err = o.write([]*frame{f})
	}
	o.c.sent(f)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail(err)
	return err
}

func (o *output) giveBack() {
	o.mu.Lock()
	o.writeQueue()
}

// flushed waits until nothing is being written.
func (o *output) flushed() {
	o.alone()
	o.giveBack()
}

// stuck reports whether somebody is writing.
func (o *output) stuck() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.busy
}

// write sends frames in as few system calls as is good. The caller has the role of the writer.
func (o *output) write(frames []*frame) error {
	if !vectored(o.nc) {
		return o.writeJoined(frames)
	}
	for _, f := range frames {
		if f.pipe != nil {
			if err := o.writeVector(); err != nil {
				return err
			}
			if err := f.pipe.drainTo(o.raw, f.head[:f.headLen], &o.c.progress); err != nil {
				return err
			}
			continue
		}
		for _, p := range f.parts() {
			for len(p) > 0 {
				k := min(len(p), gatherSize)
				o.vector, o.gathered = append(o.vector, p[:k]), o.gathered+k
				if p = p[k:]; o.gathered < gatherSize {
					continue
				}
				if err := o.writeVector(); err != nil {
					return err
				}
			}
		}
	}
	return o.writeVector()
}

// writeVector sends what is gathered.
func (o *output) writeVector() error {
	if len(o.vector) == 0 {
		return nil
	}
	o.rest = o.vector
	_, err := o.rest.WriteTo(o.nc)
	clear(o.vector)
	o.vector, o.gathered = o.vector[:0], 0
	o.c.progress.Add(1)
	return err
}

// vectored reports whether the system takes several slices at a time for nc.
func vectored(nc net.Conn) bool {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// writeJoined puts small slices together: an encrypted connection makes a record of each. Without memory it does not.
func (o *output) writeJoined(frames []*frame) error {
	var joined []byte
	most := 0
	if s := o.c.server; s.budget.tryTake(joinSize) {
		defer s.budget.give(joinSize)
		buffer := s.buffers.get(joinSize)
		defer s.buffers.put(buffer)
		joined, most = (*buffer)[:0], joinSize
	}
	for _, f := range frames {
		for _, p := range f.parts() {
			small := len(p) <= most/2
			if !small || len(joined)+len(p) > most {
				if err := o.writeAll(joined); err != nil {
					return err
				}
				joined = joined[:0]
			}
			if small {
				joined = append(joined, p...)
			} else if err := o.writeAll(p); err != nil {
				return err
			}
		}
	}
	return o.writeAll(joined)
}

// parts returns what is sent of a frame before what its pipe holds.
func (f *frame) parts() [2][]byte { return [2][]byte{f.head[:f.headLen], f.body} }

// writeAll sends p.
func (o *output) writeAll(p []byte) error {
	for len(p) > 0 {
		k := min(len(p), gatherSize)
		if _, err := o.nc.Write(p[:k]); err != nil {
			return err
		}
		o.c.progress.Add(1)
		p = p[k:]
	}
	return nil
}
