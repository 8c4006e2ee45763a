package client

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	batchBytes    = 64 << 10 // of headers and copied payloads that are gathered for one write
	batchCalls    = 64       // whose requests are gathered
	batchPayload  = 1 << 20  // bytes of payloads pointed to from which on no more requests are gathered: they may have to be copied
	smallPayload  = 8 << 10  // bytes up to which a payload is gathered with the headers rather than pointed to
	batchesAtOnce = 4        // batches that one caller sends, of which all but the first are others'
	keptBuffer    = 1 << 20  // bytes of a buffer that is kept from batch to batch
)

// sender sends requests. Whoever finds nobody sending takes the role, and sends what others queue meanwhile together with his own. He never waits
// for the connection: what it does not take at once, and all that goes over an encrypted one, is left to a goroutine. Over an encrypted connection
// all payloads are copied, because a write that was broken off there cannot be resumed.
type sender struct {
	raw        syscall.RawConn // of a plain connection; else nil
	background sync.WaitGroup  // goroutines that send

	// Guarded by Conn.mu.
	queue  []*call
	busy   bool // somebody has the role
	broken bool // the write deadline was set, to make the sender let go of somebody's payload

	// Of who has the role.
	batch  []*call  // whose payloads are in vecs
	buf    []byte   // headers and small payloads
	vecs   [][]byte // what is left to send: parts of buf, and payloads
	space  [][]byte // where vecs begins
	copied []byte   // what vecs holds after copyBatch
	wrote  int
	werr   error
	try    func(fd uintptr) bool
}

// start makes the sender ready for transmission over conn.
func (s *sender) start(conn net.Conn) {
	s.raw = rawConn(conn)
	s.try = func(fd uintptr) bool {
		s.wrote, s.werr = writeNow(int(fd), s.vecs)
		return true
	}
}

// forget takes a call out of the queue, and reports whether it was there. The request will never be sent, so that no reply has to be awaited.
func (s *sender) forget(k *call) bool {
	if !k.queued {
		return false
	}
	i := slices.Index(s.queue, k)
	s.queue = slices.Delete(s.queue, i, i+1)
	k.queued, k.finished = false, true
	return true
}

// submit registers a call and sends its request, or leaves that to who sends just now.
func (c *Conn) submit(k *call) error {
	c.mu.Lock()
	if c.phase != transmission || c.leaving {
		defer c.mu.Unlock()
		if c.phase == negotiation {
			return errors.New("nbd: commands are sent in transmission only")
		}
		return cmp.Or(c.dead(), ErrDisconnected)
	}
	if err := c.register(k); err != nil {
		c.mu.Unlock()
		return err
	}
	c.out.queue = append(c.out.queue, k)
	k.queued = true
	if c.out.busy {
		c.mu.Unlock()
		return nil
	}
	c.out.busy = true
	alone := len(c.calls) == 1
	if c.out.raw == nil {
		c.out.background.Go(c.sendWaiting)
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	if !alone {
		runtime.Gosched() // who is about to send as well queues now, and one write takes it all
	}
	c.sendNow()
	return nil
}

// register gives a call its cookie, with mu held.
func (c *Conn) register(k *call) error {
	if k.raw != nil {
		if c.calls[k.request.Cookie] != nil {
			return errors.New("nbd: a request with this cookie is in flight")
		}
	} else {
		for c.cookie++; c.calls[c.cookie] != nil; c.cookie++ {
		}
		k.request.Cookie = c.cookie
	}
	c.calls[k.request.Cookie] = k
	return nil
}

// sendNow sends what is queued as far as the connection takes it without waiting.
func (c *Conn) sendNow() {
	for range batchesAtOnce {
		if !c.nextBatch() {
			return
		}
		if err := c.out.tryBatch(); err != nil {
			c.sent(err)
			return
		}
		if len(c.out.vecs) > 0 {
			break
		}
		c.sent(nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == ended:
		c.release()
		c.out.busy = false
	case len(c.out.vecs) == 0 && len(c.out.queue) == 0:
		c.out.busy = false
	default:
		c.out.background.Go(c.sendWaiting)
	}
}

// tryBatch writes what the connection takes of the batch without waiting.
func (s *sender) tryBatch() error {
	err := s.raw.Write(s.try)
	if err == nil {
		err = s.werr
	}
	switch {
	case err == nil:
		s.advance(s.wrote)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR), errors.Is(err, os.ErrDeadlineExceeded):
		err = nil
	}
	return err
}

// sendWaiting sends what is queued, and waits for the connection where it has to.
func (c *Conn) sendWaiting() {
	for len(c.out.vecs) > 0 || c.nextBatch() {
		if !c.sent(c.writeBatch()) {
			return
		}
	}
}

// writeBatch writes what is left of the batch.
func (c *Conn) writeBatch() error {
	if c.out.raw == nil {
		c.copyBatch()
	}
	for {
		err := c.writeVecs()
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		c.copyBatch()
	}
}

// copyBatch copies what is left of the batch, and gives the payloads back to their owners.
func (c *Conn) copyBatch() {
	s := &c.out
	rest := s.copied[:0]
	if cap(rest) > keptBuffer {
		rest = nil
	}
	for _, v := range s.vecs {
		rest = append(rest, v...)
	}
	s.copied = rest
	s.space = append(s.space[:0], rest)
	s.vecs = s.space
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
}

// writeVecs writes the vectors, and cuts off what was written.
func (c *Conn) writeVecs() error {
	left := net.Buffers(c.out.vecs)
	_, err := left.WriteTo(c.conn)
	c.out.vecs = left
	return err
}

// sent ends a batch, and reports whether the connection lives.
func (c *Conn) sent(err error) bool {
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
	clear(c.out.space) // lets go of the callers' memory
	c.out.vecs = nil
	if err != nil {
		c.out.busy = false
	}
	return err == nil
}

// release gives payloads back to their owners, with mu held.
func (c *Conn) release() {
	for _, k := range c.out.batch {
		if k.sending {
			k.sending = false
			c.settle(k)
		}
	}
	clear(c.out.batch)
	c.out.batch = c.out.batch[:0]
	if c.out.broken {
		c.out.broken = false
		c.conn.SetWriteDeadline(time.Time{})
	}
}

// nextBatch takes requests off the queue and makes vectors of them. It reports false, and gives the role up, where there are none.
func (c *Conn) nextBatch() bool {
	s := &c.out
	c.mu.Lock()
	defer c.mu.Unlock()
	s.buf, s.space = s.buf[:0], s.space[:0]
	if cap(s.buf) == 0 {
		s.buf = make([]byte, 0, batchBytes+smallPayload+wire.ExtendedRequestSize)
	}
	n, pointed := 0, 0
	from := 0 // where the part of buf begins that is not yet in vecs
	for n < len(s.queue) && n < batchCalls && len(s.buf) < batchBytes && pointed < batchPayload {
		k := s.queue[n]
		n++
		k.queued = false
		s.buf = c.appendRequest(s.buf, k)
		if len(k.payload) <= smallPayload {
			s.buf = append(s.buf, k.payload...)
			continue
		}
		pointed += len(k.payload)
		k.sending = true
		s.batch = append(s.batch, k)
		s.space = append(s.space, s.buf[from:], k.payload)
		from = len(s.buf)
	}
	if n == 0 {
		s.busy = false
		return false
	}
	if from < len(s.buf) {
		s.space = append(s.space, s.buf[from:])
	}
	s.vecs = s.space
	s.queue = slices.Delete(s.queue, 0, n)
	return true
}

func (c *Conn) appendRequest(b []byte, k *call) []byte {
	size := wire.RequestSize
	if c.extended {
		size = wire.ExtendedRequestSize
	}
	b = append(b, make([]byte, size)...)
	if c.extended {
		k.request.PutExtended(b[len(b)-size:])
	} else {
		k.request.Put(b[len(b)-size:])
	}
	return b
}

// advance cuts n bytes off the vectors.
func (s *sender) advance(n int) {
	for len(s.vecs) > 0 && n >= len(s.vecs[0]) {
		n -= len(s.vecs[0])
		s.vecs = s.vecs[1:]
	}
	if n > 0 {
		s.vecs[0] = s.vecs[0][n:]
	}
}

// sendDisc sends DISC, which has no reply. The connection has no calls.
func (c *Conn) sendDisc(ctx context.Context, r wire.Request) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetWriteDeadline(past) })
	defer stop()
	_, err := c.conn.Write(c.appendRequest(nil, &call{request: r}))
	return err
}
