package server

import (
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// batchSize is how many bytes of replies the reading goroutine gathers before it sends them. There is always memory for them.
const batchSize = reserve

// batch is where the reading goroutine puts replies to the requests that it has served itself. It holds a buffer only while there are any.
type batch struct {
	buffer *[]byte
	n      int
	frame  frame // to send it with
}

// room returns the next n bytes of the batch, after sending what is in the way. The caller adds to batch.n what it uses of them.
func (c *conn) room(n int) []byte {
	b := &c.batch
	if b.n+n > batchSize {
		c.flush()
	}
	if b.buffer == nil {
		c.memory.take(batchSize)
		b.buffer = c.server.buffers.get(batchSize)
	}
	return (*b.buffer)[b.n:][:n]
}

// flush sends the batch. Where somebody else is writing, it leaves the batch to that one.
func (c *conn) flush() {
	b := &c.batch
	if b.n == 0 {
		return
	}
	b.frame = frame{body: (*b.buffer)[:b.n], buffer: b.buffer, held: batchSize}
	b.buffer, b.n = nil, 0
	if !c.out.trySend(&b.frame) {
		f := b.frame
		c.out.send(&f)
	}
}

// dropBatch gives back what the batch holds.
func (c *conn) dropBatch() {
	if b := &c.batch; b.buffer != nil {
		c.server.buffers.put(b.buffer)
		c.memory.give(batchSize)
		b.buffer, b.n = nil, 0
	}
}

// inlineRead serves a read of at most inlineLimit bytes.
func (c *conn) inlineRead(r *request) {
	head, n := c.dataHead(), int(r.Length)
	p := c.room(head + n)
	err := c.readInto(p[head:], int64(r.Offset))
	switch {
	case err != nil:
		c.finishInline(r, err)
		return
	case c.structured && n >= minSmallHole && block.IsZero(p[head:]):
		c.batch.n += c.putHole(p, r, int64(r.Offset), int64(n), wire.ChunkDone)
	default:
		c.putData(p, r, int64(r.Offset), n, wire.ChunkDone)
		c.batch.n += head + n
		c.counters.out.Add(int64(n))
	}
	c.small.took(c.count(r, nil))
}

// finishInline puts a reply without data into the batch.
func (c *conn) finishInline(r *request, err error) {
	c.small.took(c.count(r, err))
	c.batch.n += len(c.appendEnd(c.room(maxEnd)[:0], r, err))
}

// maxEnd is the longest that appendEnd appends, in bytes.
const maxEnd = wire.ExtendedReplySize + 6 + wire.MaxString

// finish replies to a request that has a slot and no data to return.
func (c *conn) finish(r *request, err error) {
	f := &frame{last: true}
	f.body = c.appendEnd(f.head[:0], r, err)
	c.count(r, err)
	c.out.send(f)
}

// appendEnd appends the whole reply without data, or the last chunk of one.
func (c *conn) appendEnd(p []byte, r *request, err error) []byte {
	var h [wire.ExtendedReplySize]byte
	switch {
	case !c.structured, err == nil && !c.extended && r.Type != wire.CmdRead && r.Type != wire.CmdBlockStatus:
		wire.SimpleReply{Error: c.errnoOf(r, err), Cookie: r.Cookie}.Put(h[:])
		return append(p, h[:wire.SimpleReplySize]...)
	case err == nil:
		return append(p, h[:c.putChunk(h[:], r, wire.ChunkNone, wire.ChunkDone, 0)]...)
	}
	why := text(err)
	p = append(p, h[:c.putChunk(h[:], r, wire.ChunkError, wire.ChunkDone, uint64(6+len(why)))]...)
	p = be.AppendUint32(p, uint32(c.errnoOf(r, err)))
	p = be.AppendUint16(p, uint16(len(why)))
	return append(p, why...)
}

// putChunk writes the header of a chunk and returns its length.
func (c *conn) putChunk(p []byte, r *request, t wire.ChunkType, flags wire.ChunkFlags, length uint64) int {
	h := wire.Chunk{Flags: flags, Type: t, Cookie: r.Cookie, Offset: r.Offset, Length: length}
	if c.extended {
		h.PutExtended(p)
		return wire.ExtendedReplySize
	}
	h.Put(p)
	return wire.StructuredReplySize
}

// dataHead returns how long what putData writes is.
func (c *conn) dataHead() int {
	switch {
	case c.extended:
		return wire.ExtendedReplySize + 8
	case c.structured:
		return wire.StructuredReplySize + 8
	}
	return wire.SimpleReplySize
}

// putData writes what precedes n bytes of data.
func (c *conn) putData(p []byte, r *request, off int64, n int, flags wire.ChunkFlags) {
	if !c.structured {
		wire.SimpleReply{Cookie: r.Cookie}.Put(p)
		return
	}
	k := c.putChunk(p, r, wire.ChunkOffsetData, flags, uint64(8+n))
	be.PutUint64(p[k:], uint64(off))
}

// putHole writes a chunk that says that n bytes read as zero, and returns its length. n fits into 32 bits.
func (c *conn) putHole(p []byte, r *request, off, n int64, flags wire.ChunkFlags) int {
	k := c.putChunk(p, r, wire.ChunkOffsetHole, flags, 12)
	be.PutUint64(p[k:], uint64(off))
	be.PutUint32(p[k+8:], uint32(n))
	return k + 12
}

// count keeps what happened to a request, and returns how long it took.
func (c *conn) count(r *request, err error) time.Duration {
	took := time.Since(c.since) - r.began
	if int(r.Type) >= len(c.commands) {
		return took
	}
	n := &c.commands[r.Type]
	n.count.Add(1)
	n.nanos.Add(int64(took))
	if err == nil {
		n.bytes.Add(int64(r.Length)) // which was checked
	} else {
		n.errors.Add(1)
		c.server.config.Log.Debug("request failed", "client", c.id, "command", r.Type, "offset", r.Offset, "length", r.Length, "error", err)
	}
	return took
}

// sent gives back what a frame holds.
func (c *conn) sent(f *frame) {
	if f.buffer != nil {
		c.server.buffers.put(f.buffer)
	}
	if f.pipe != nil {
		c.server.pipes.put(f.pipe)
	}
	if f.held > 0 {
		c.memory.give(f.held)
	}
	if f.last {
		<-c.slots
	}
}
