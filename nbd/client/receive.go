package client

import (
	"cmp"
	"errors"
	"os"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// How many chunks one reply may have, and how many of them may be errors.
const (
	maxChunks = 1 << 17
	maxErrors = 1 << 10
)

// receive reads replies until the connection ends.
func (c *Conn) receive() {
	for {
		err := c.receiveOne()
		if c.current != nil {
			c.mu.Lock()
			c.letGo()
			c.mu.Unlock()
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// receiveOne reads a simple reply, or a chunk.
func (c *Conn) receiveOne() error {
	b, err := c.in.peek(4)
	if err != nil {
		return err
	}
	switch magic := be.Uint32(b); {
	case magic == wire.SimpleReplyMagic && !c.extended:
		return c.receiveSimple()
	case magic == wire.StructuredReplyMagic && c.structured && !c.extended:
		b, err := c.in.next(wire.StructuredReplySize)
		if err != nil {
			return err
		}
		h, _ := wire.ParseChunk(b)
		return c.receiveChunk(h)
	case magic == wire.ExtendedReplyMagic && c.extended:
		b, err := c.in.next(wire.ExtendedReplySize)
		if err != nil {
			return err
		}
		h, _ := wire.ParseExtendedChunk(b)
		return c.receiveChunk(h)
	default:
		return broken("reply", "the magic number %#x was not agreed on", magic)
	}
}

// letGo says, with mu held, that the receiver has no more to do with the current call.
func (c *Conn) letGo() {
	k := c.current
	c.current = nil
	c.settle(k)
}

// lookup returns the call that a reply is for, and makes it the current one: until letGo it is nobody else's, even if the connection ends.
func (c *Conn) lookup(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k == nil || k.finished || k.queued {
		return nil, broken("reply", "it is for the cookie %#x, of which no request is in flight", cookie)
	}
	c.current = k
	return k, nil
}

func (c *Conn) receiveSimple() error {
	b, err := c.in.next(wire.SimpleReplySize)
	if err != nil {
		return err
	}
	h, _ := wire.ParseSimpleReply(b)
	k, err := c.lookup(h.Cookie)
	if err != nil {
		return err
	}
	name := k.request.Type.String()
	if k.raw != nil {
		return c.receiveRawSimple(k, h)
	}
	read, status := k.request.Type == wire.CmdRead, k.request.Type == wire.CmdBlockStatus
	switch {
	case k.chunks > 0:
		return broken(name, "a simple reply follows chunks")
	case read && c.structured:
		return broken(name, "a simple reply, where a structured one was agreed on")
	case h.Error != wire.OK:
		c.finish(k, &CommandError{Command: k.request.Type, Errno: h.Error, Offset: -1})
		return nil
	case status:
		return broken(name, "a reply without extents")
	case read:
		if err := c.receiveInto(k, 0, int64(k.request.Length)); err != nil {
			return err
		}
		k.tell(Piece{Offset: int64(k.request.Offset), Length: int64(k.request.Length)})
	}
	c.finish(k, nil)
	return nil
}

// receiveInto reads n bytes into the buffer of a READ from byte at on, or into nothing where its caller has gone.
func (c *Conn) receiveInto(k *call, at, n int64) error {
	p := c.fill(k, at, n)
	if p == nil {
		return c.in.discard(n)
	}
	c.in.bulk = n >= bulkRead
	for len(p) > 0 {
		got, err := c.in.read(p)
		if p = p[got:]; err != nil && len(p) > 0 {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.leftBehind(k) {
				c.filled()
				return c.in.discard(int64(len(p)))
			}
			c.filled()
			return noEOF(err)
		}
	}
	c.filled()
	return nil
}

// fill marks the buffer of a call as being written, and returns the part of n bytes from byte at on; nil where the caller has gone.
func (c *Conn) fill(k *call, at, n int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.left {
		return nil
	}
	c.filling = k
	return k.buf[at:][:n]
}

// filled takes the mark away, and the deadline by which a caller got his buffer back.
func (c *Conn) filled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.filling
	c.filling = nil
	if k.left {
		c.conn.SetReadDeadline(time.Time{})
	}
	c.settle(k)
}

// leftBehind reports whether the caller of k has gone.
func (c *Conn) leftBehind(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return k.left
}

// receiveChunk reads the payload of a chunk.
func (c *Conn) receiveChunk(h wire.Chunk) error {
	k, err := c.lookup(h.Cookie)
	if err != nil {
		return err
	}
	if k.raw != nil {
		return c.receiveRawChunk(k, h)
	}
	name := k.request.Type.String()
	if k.chunks++; k.chunks > maxChunks {
		return broken(name, "a reply of more than %d chunks", maxChunks)
	}
	if c.extended && h.Offset != k.request.Offset {
		return broken(name, "the reply is about offset %d, the request is about %d", h.Offset, k.request.Offset)
	}
	switch {
	case h.Type == wire.ChunkNone:
		if h.Length != 0 || h.Flags&wire.ChunkDone == 0 {
			err = broken(name, "a chunk NONE of %d bytes, or not the last", h.Length)
		}
	case h.Type&wire.ChunkIsError != 0:
		err = c.receiveError(k, h)
	case h.Type == wire.ChunkOffsetData && k.request.Type == wire.CmdRead:
		err = c.receiveData(k, h)
	case h.Type == wire.ChunkOffsetHole && k.request.Type == wire.CmdRead:
		err = c.receiveHole(k, h)
	case h.Type == c.statusType() && k.request.Type == wire.CmdBlockStatus:
		err = c.receiveStatus(k, h)
	default:
		err = broken(name, "a chunk %s does not fit", h.Type)
	}
	if err != nil || h.Flags&wire.ChunkDone == 0 {
		return err
	}
	return c.done(k)
}

// done ends a reply of chunks.
func (c *Conn) done(k *call) error {
	if k.refusal != nil {
		c.finish(k, k.refusal)
		return nil
	}
	name := k.request.Type.String()
	switch k.request.Type {
	case wire.CmdRead:
		if err := k.content.complete(int64(k.request.Length)); err != nil {
			return &ProtocolError{During: name, Err: err}
		}
	case wire.CmdBlockStatus:
		if err := c.statusComplete(k); err != nil {
			return &ProtocolError{During: name, Err: err}
		}
	}
	c.finish(k, nil)
	return nil
}

// receiveError reads an error chunk: error, length of the message, message, and offset of the error.
func (c *Conn) receiveError(k *call, h wire.Chunk) error {
	name := k.request.Type.String()
	if k.errors++; k.errors > maxErrors {
		return broken(name, "a reply of more than %d errors", maxErrors)
	}
	if h.Length < 6 || h.Length > 6+8+2*wire.MaxString {
		return broken(name, "an error chunk of %d bytes", h.Length)
	}
	b := make([]byte, h.Length)
	if err := c.in.full(b); err != nil {
		return err
	}
	e := &CommandError{Command: k.request.Type, Errno: wire.Errno(be.Uint32(b)), Offset: -1}
	n := int(be.Uint16(b[4:]))
	if b = b[6:]; n > len(b) || n > wire.MaxString {
		return broken(name, "the message of an error chunk has %d bytes in %d", n, len(b))
	}
	if e.Errno == wire.OK {
		return broken(name, "an error chunk without an error")
	}
	e.Text = clean(b[:n])
	b = b[n:]
	switch h.Type {
	case wire.ChunkErrorOffset:
		if len(b) != 8 {
			return broken(name, "the offset of an error has %d bytes", len(b))
		}
		at := be.Uint64(b)
		if at < k.request.Offset || at-k.request.Offset >= max(cmp.Or(k.about, k.request.Length), 1) {
			return broken(name, "an error at byte %d, outside the request", at)
		}
		e.Offset = int64(at)
	case wire.ChunkError:
		if len(b) != 0 {
			return broken(name, "%d bytes follow the message of an error", len(b))
		}
	}
	if k.refusal == nil {
		k.refusal = e
	}
	k.tell(Piece{Offset: e.Offset, Err: e})
	return nil
}

// inRequest checks that a chunk's content lies in its request, and returns where in the buffer.
func inRequest(k *call, off, n uint64) (at int64, err error) {
	at = int64(off - k.request.Offset)
	if off < k.request.Offset || n > k.request.Length || uint64(at) > k.request.Length-n {
		return 0, broken(k.request.Type.String(), "content of %d bytes at %d, outside the request", n, off)
	}
	if k.request.Flags&wire.FlagDF != 0 && k.content.any() {
		return 0, broken(k.request.Type.String(), "more than one piece of content, which DF forbids")
	}
	return at, nil
}

func (c *Conn) receiveData(k *call, h wire.Chunk) error {
	if h.Length < 9 {
		return broken(k.request.Type.String(), "a chunk %s of %d bytes", h.Type, h.Length)
	}
	b, err := c.in.next(8)
	if err != nil {
		return err
	}
	off, n := be.Uint64(b), h.Length-8
	at, err := inRequest(k, off, n)
	if err != nil {
		return err
	}
	k.content.add(at, int64(n))
	k.tell(Piece{Offset: int64(off), Length: int64(n)})
	return c.receiveInto(k, at, int64(n))
}

func (c *Conn) receiveHole(k *call, h wire.Chunk) error {
	if h.Length != 12 {
		return broken(k.request.Type.String(), "a chunk %s of %d bytes", h.Type, h.Length)
	}
	b, err := c.in.next(12)
	if err != nil {
		return err
	}
	off, n := be.Uint64(b), uint64(be.Uint32(b[8:]))
	if n == 0 {
		return broken(k.request.Type.String(), "a hole of no bytes")
	}
	at, err := inRequest(k, off, n)
	if err != nil {
		return err
	}
	k.content.add(at, int64(n))
	k.tell(Piece{Offset: int64(off), Length: int64(n), Hole: true})
	if p := c.fill(k, at, int64(n)); p != nil {
		clear(p)
		c.filled()
	}
	return nil
}
