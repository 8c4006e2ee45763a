package client

import (
	"context"
	"sync"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// maxLeft is how many calls may be given up and still wait for their reply, before the server is taken to be dead.
const maxLeft = 1024

// call is a request and what is known of its reply. Conn.mu guards what is marked so; the rest belongs to the caller before submit and after the
// signal, and to the receiver between them.
type call struct {
	request wire.Request
	payload []byte // of a WRITE or a BLOCK_STATUS; it is the caller's memory
	buf     []byte // of a READ; it is the caller's memory
	signal  chan struct{}

	content content       // of the reply to a READ
	status  []statusOf    // of the reply to a BLOCK_STATUS
	ids     []uint32      // that it asked for, where it did
	about   uint64        // then: the length of the range, which stands in payload; else 0
	raw     *rawReply     // where everything is kept as it came
	telling bool          // whether pieces is filled
	pieces  []Piece       // of a READ, as they came
	chunks  int           // that came
	errors  int           // among them
	refusal *CommandError // the first of the reply

	err      error         // guarded: the result, once finished
	finished bool          // guarded: the reply is complete, or will not come
	queued   bool          // guarded: the sender has not begun with it
	sending  bool          // guarded: the sender reads payload
	left     bool          // guarded: the caller has gone
	released chan struct{} // guarded: closed when sender and receiver have let go of the caller's memory
}

// past is a deadline that has gone by: it ends reads and writes that wait.
var past = time.Unix(1, 0)

var calls = sync.Pool{New: func() any { return &call{signal: make(chan struct{}, 1)} }}

// newCall returns an empty call.
func newCall(cmd wire.Command, off, n int64, f wire.CommandFlags) *call {
	k := calls.Get().(*call)
	k.request = wire.Request{Flags: f, Type: cmd, Offset: uint64(off), Length: uint64(n)}
	return k
}

// free keeps a call whose result was taken for another one.
func (k *call) free() {
	*k = call{signal: k.signal, content: content{spans: k.content.spans[:0]}}
	calls.Put(k)
}

// do sends a call, waits for the reply and returns its error. Afterwards nothing uses the caller's memory. With kept the call is the caller's own then,
// and his to free; otherwise it is somebody else's.
func (c *Conn) do(ctx context.Context, k *call) (kept bool, err error) {
	if err := ctx.Err(); err != nil {
		return true, err
	}
	if err := c.submit(k); err != nil {
		return true, err
	}
	if done := ctx.Done(); done != nil {
		select {
		case <-k.signal:
		case <-done:
			if c.leave(k) {
				return false, ctx.Err()
			}
		}
	} else {
		<-k.signal
	}
	return true, k.err
}

// run is do for a caller who wants nothing but the error.
func (c *Conn) run(ctx context.Context, k *call) error {
	kept, err := c.do(ctx, k)
	if kept {
		k.free()
	}
	return err
}

// leave gives a call up, and returns when nothing uses the caller's memory any more. It reports false where the result is there already.
func (c *Conn) leave(k *call) bool {
	c.mu.Lock()
	if k.finished && c.calls[k.request.Cookie] != k {
		c.mu.Unlock()
		<-k.signal
		return false
	}
	k.left = true
	c.left++
	tooMany := c.left > maxLeft
	var wait chan struct{}
	if !c.out.forget(k) && (k.sending || c.filling == k) {
		wait = make(chan struct{})
		k.released = wait
		if k.sending {
			c.out.broken = true
			c.conn.SetWriteDeadline(past)
		}
		if c.filling == k {
			c.conn.SetReadDeadline(past)
		}
	} else {
		c.settle(k)
	}
	c.mu.Unlock()
	if tooMany {
		c.fail(broken(k.request.Type.String(), "%d requests were given up because no reply came", maxLeft))
	}
	if wait != nil {
		<-wait
	}
	return true
}

// finish gives the current call its result.
func (c *Conn) finish(k *call, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !k.finished {
		k.finished, k.err = true, err
	}
	c.letGo()
}

// settle looks what can be said of a call after something has changed, with mu held: that the caller's memory is his own again, that the result is there.
func (c *Conn) settle(k *call) {
	if k.sending || c.filling == k {
		return
	}
	if k.left {
		k.buf, k.payload = nil, nil
		if k.released != nil {
			close(k.released)
			k.released = nil
		}
	}
	if !k.finished || c.current == k || c.calls[k.request.Cookie] != k {
		return
	}
	delete(c.calls, k.request.Cookie)
	if k.left {
		c.left--
	} else {
		k.signal <- struct{}{}
	}
	if c.leaving && len(c.calls) == 0 {
		close(c.idle)
	}
}

// fail ends the connection and all calls, the first time.
func (c *Conn) fail(cause error) {
	c.mu.Lock()
	if c.phase != ended {
		c.phase, c.cause = ended, cause
	}
	for _, k := range c.out.queue {
		k.queued = false
	}
	c.out.queue = nil
	err := c.dead()
	for _, k := range c.calls {
		if !k.finished {
			k.finished, k.err = true, err
		}
		c.settle(k) // what the sender or the receiver still uses, it settles itself
	}
	c.mu.Unlock()
	c.conn.Close() // over an encrypted connection this may take a moment
}
