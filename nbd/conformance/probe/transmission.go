package probe

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/imgtool/imgtool/nbd/wire"
)

// maxRead is how long a READ may be whose data is kept, in bytes.
const maxRead = 128 << 20

// Piece is a content chunk of the answer to a READ.
type Piece struct {
	Offset, Length uint64 // in bytes
	Hole           bool
}

// Extent is one extent of a block status.
type Extent struct {
	Length uint64 // in bytes
	Flags  uint64
}

// Answer is what the server answered to one request.
type Answer struct {
	Request wire.Request
	Errno   wire.Errno // OK for success
	Text    string     // of the error
	Simple  bool       // it was a simple reply
	Data    []byte     // of a successful READ
	Pieces  []Piece    // of a READ, in the order of arrival
	Status  map[uint32][]Extent
	Chunks  int

	done bool
	ids  []uint32 // of the contexts that a BLOCK_STATUS asks for
}

// Cookie returns a cookie that no other request of the connection has.
func (c *Conn) Cookie() uint64 {
	c.cookie++
	return c.cookie
}

// Frame returns a request as the mode has it, its payload included. WRITE gets PAYLOAD_LEN where the mode wants it and the request has a payload.
func (c *Conn) Frame(r wire.Request, payload []byte) []byte {
	b := make([]byte, wire.ExtendedRequestSize, wire.ExtendedRequestSize+len(payload))
	if c.Mode == Extended {
		if r.Type == wire.CmdWrite && payload != nil {
			r.Flags |= wire.FlagPayloadLen
		}
		r.PutExtended(b)
	} else {
		b = b[:wire.RequestSize]
		r.Put(b)
	}
	return append(b, payload...)
}

// Expect says that an answer to r will come: r is sent by the caller.
func (c *Conn) Expect(r wire.Request, ids ...uint32) *Answer {
	a := &Answer{Request: r, Status: map[uint32][]Extent{}, ids: ids}
	if ids == nil {
		for _, x := range c.Contexts {
			a.ids = append(a.ids, x.ID)
		}
	}
	c.pending[r.Cookie] = a
	return a
}

// Start sends a request. A zero cookie is replaced by one of the connection's own.
func (c *Conn) Start(r wire.Request, payload []byte) (*Answer, error) {
	if r.Cookie == 0 {
		r.Cookie = c.Cookie()
	}
	a := c.Expect(r)
	return a, c.Send(c.Frame(r, payload))
}

// Do sends a request and waits for the answer.
func (c *Conn) Do(r wire.Request, payload []byte) (*Answer, error) {
	a, err := c.Start(r, payload)
	if got := c.Wait(a); err == nil || got == nil {
		err = got // a server may answer a request of which it does not take all
	}
	return a, err
}

// Wait reads until the request of a is answered. Answers to others that come first are theirs.
func (c *Conn) Wait(a *Answer) error {
	for !a.done {
		if err := c.frame(); err != nil {
			return err
		}
	}
	return nil
}

// frame reads one reply or chunk.
func (c *Conn) frame() error {
	var b [wire.ExtendedReplySize]byte
	if err := c.receive(b[:4]); err != nil {
		return err
	}
	switch magic := be.Uint32(b[:]); {
	case magic == wire.SimpleReplyMagic && c.Mode != Extended:
		if err := c.receive(b[4:wire.SimpleReplySize]); err != nil {
			return err
		}
		r, _ := wire.ParseSimpleReply(b[:])
		return c.simple(r)
	case magic == wire.StructuredReplyMagic && c.Mode == Structured:
		if err := c.receive(b[4:wire.StructuredReplySize]); err != nil {
			return err
		}
		h, _ := wire.ParseChunk(b[:])
		return c.chunk(h)
	case magic == wire.ExtendedReplyMagic && c.Mode == Extended:
		if err := c.receive(b[4:]); err != nil {
			return err
		}
		h, _ := wire.ParseExtendedChunk(b[:])
		return c.chunk(h)
	default:
		return violated("a reply begins with %#x, which is not one of %s mode", magic, c.Mode)
	}
}

func (c *Conn) answer(cookie uint64) (*Answer, error) {
	if a := c.pending[cookie]; a != nil {
		return a, nil
	}
	return nil, violated("a reply has the cookie %#x, which is of no request in flight", cookie)
}

func (c *Conn) simple(r wire.SimpleReply) error {
	a, err := c.answer(r.Cookie)
	if err != nil {
		return err
	}
	a.Simple = true
	delete(c.pending, r.Cookie)
	a.done = true
	if r.Error != wire.OK {
		return a.fail(r.Error, "")
	}
	switch q := a.Request; {
	case q.Type == wire.CmdRead && c.Mode != Simple:
		return violated("READ is answered with a simple reply although %s replies were agreed on", c.Mode)
	case q.Type == wire.CmdBlockStatus:
		return violated("BLOCK_STATUS succeeds with a simple reply")
	case q.Type == wire.CmdRead:
		if q.Length > maxRead {
			return violated("a READ of %d bytes succeeds", q.Length)
		}
		a.Data = make([]byte, q.Length)
		return c.receive(a.Data)
	}
	return nil
}

// fail notes the error of an answer.
func (a *Answer) fail(e wire.Errno, text string) error {
	if e.Known() != e {
		return violated("%s is answered with the error number %d, which the protocol does not have", a.Request.Type, uint32(e))
	}
	if a.Simple && a.Request.Type == wire.CmdRead && a.Chunks > 0 {
		return violated("READ is answered with chunks and with a simple reply")
	}
	a.Errno, a.Text = e, text
	return nil
}

// chunk reads the payload of a chunk, judges it, and adds it to the answer.
func (c *Conn) chunk(h wire.Chunk) error {
	a, err := c.answer(h.Cookie)
	if err != nil {
		return err
	}
	a.Chunks++
	switch {
	case c.Mode == Extended && h.Offset != a.Request.Offset:
		return violated("a reply repeats the offset %#x instead of the request's %#x", h.Offset, a.Request.Offset)
	case h.Flags&^wire.ChunkDone != 0:
		return violated("a chunk has the flags %#x, of which only DONE is known", uint16(h.Flags))
	case h.Length > a.longest():
		return violated("a chunk of type %s has a payload of %d bytes", h.Type, h.Length)
	}
	p := make([]byte, h.Length)
	if err := c.receive(p); err != nil {
		return err
	}
	if err := a.add(c, h, p); err != nil {
		return err
	}
	if h.Flags&wire.ChunkDone == 0 {
		return nil
	}
	a.done = true
	delete(c.pending, h.Cookie)
	return a.complete()
}

// longest is how long the payload of a chunk may be, in bytes.
func (a *Answer) longest() uint64 {
	n := uint64(wire.MaxString + 14) // an error at an offset
	switch q := a.Request; q.Type {
	case wire.CmdRead:
		n = max(n, min(q.Length, maxRead)+8)
	case wire.CmdBlockStatus:
		n = 8 + 16*(wire.MaxExtents+1) // so that the caller can tell of too many
	}
	return n
}

func (a *Answer) add(c *Conn, h wire.Chunk, p []byte) error {
	q := a.Request
	switch h.Type {
	case wire.ChunkNone:
		if len(p) != 0 || h.Flags&wire.ChunkDone == 0 {
			return violated("a chunk of type NONE has %d bytes of payload and the flags %#x", len(p), uint16(h.Flags))
		}
		return nil
	case wire.ChunkOffsetData:
		if q.Type != wire.CmdRead || len(p) < 9 {
			return violated("%s is answered with OFFSET_DATA of %d bytes", q.Type, len(p))
		}
		return a.piece(Piece{be.Uint64(p), uint64(len(p) - 8), false}, p[8:])
	case wire.ChunkOffsetHole:
		if q.Type != wire.CmdRead || len(p) != 12 {
			return violated("%s is answered with OFFSET_HOLE of %d bytes", q.Type, len(p))
		}
		return a.piece(Piece{be.Uint64(p), uint64(be.Uint32(p[8:])), true}, nil)
	case wire.ChunkBlockStatus, wire.ChunkBlockStatusExt:
		if q.Type != wire.CmdBlockStatus || (h.Type == wire.ChunkBlockStatusExt) != (c.Mode == Extended) {
			return violated("%s is answered with a chunk of type %s in %s mode", q.Type, h.Type, c.Mode)
		}
		return a.status(c, h.Type, p)
	case wire.ChunkError, wire.ChunkErrorOffset:
		return a.error(h.Type, p)
	}
	return violated("a chunk has the type %s", h.Type)
}

func (a *Answer) error(t wire.ChunkType, p []byte) error {
	fixed := 6
	if t == wire.ChunkErrorOffset {
		fixed = 14
	}
	if len(p) < fixed || int(be.Uint16(p[4:])) > len(p)-fixed {
		return violated("a chunk of type %s has %d bytes, and a message that does not fit", t, len(p))
	}
	e, n := wire.Errno(be.Uint32(p)), int(be.Uint16(p[4:]))
	if e == wire.OK {
		return violated("a chunk of type %s has the error number 0", t)
	}
	message := string(p[6 : 6+n])
	if err := text(message, "the message of an error"); err != nil {
		return err
	}
	if t == wire.ChunkErrorOffset {
		if at := be.Uint64(p[6+n:]); at < a.Request.Offset || at-a.Request.Offset >= max(a.Request.Length, 1) {
			return violated("an error is told for byte %#x, which is not in the request", at)
		}
	}
	return a.fail(e, message)
}

// piece adds a content chunk.
func (a *Answer) piece(p Piece, data []byte) error {
	q := a.Request
	if p.Length == 0 {
		return violated("OFFSET_HOLE describes no byte")
	}
	if p.Offset < q.Offset || p.Offset-q.Offset > q.Length || p.Length > q.Length-(p.Offset-q.Offset) {
		return violated("a chunk describes %d bytes at %#x, which the READ of %d bytes at %#x did not ask for", p.Length, p.Offset, q.Length, q.Offset)
	}
	for _, old := range a.Pieces {
		if p.Offset < old.Offset+old.Length && old.Offset < p.Offset+p.Length {
			return violated("chunks overlap: %d bytes at %#x, and %d bytes at %#x", old.Length, old.Offset, p.Length, p.Offset)
		}
	}
	if len(a.Pieces) > 0 && q.Flags&wire.FlagDF != 0 {
		return violated("a READ with DF is answered with more than one content chunk")
	}
	if len(a.Pieces) == 1<<14 {
		return violated("a READ is answered with more than %d chunks", len(a.Pieces))
	}
	a.Pieces = append(a.Pieces, p)
	if q.Length <= maxRead {
		if a.Data == nil {
			a.Data = make([]byte, q.Length)
		}
		copy(a.Data[p.Offset-q.Offset:], data)
	}
	return nil
}

// status adds the extents of one context.
func (a *Answer) status(c *Conn, t wire.ChunkType, p []byte) error {
	head, each := 4, 8
	if t == wire.ChunkBlockStatusExt {
		head, each = 8, 16
	}
	if len(p) <= head || (len(p)-head)%each != 0 {
		return violated("a chunk of type %s has %d bytes", t, len(p))
	}
	count := (len(p) - head) / each
	if head == 8 && int64(be.Uint32(p[4:])) != int64(count) {
		return violated("BLOCK_STATUS_EXT says that it holds %d extents, and holds %d", be.Uint32(p[4:]), count)
	}
	id := be.Uint32(p)
	if !slices.Contains(a.ids, id) {
		return violated("BLOCK_STATUS is answered for the context %d, which was not asked for", id)
	}
	if a.Status[id] != nil {
		return violated("BLOCK_STATUS is answered twice for the context %d", id)
	}
	extents := make([]Extent, 0, count)
	at := a.Request.Offset
	length := a.statusLength()
	for p := p[head:]; len(p) > 0; p = p[each:] {
		e := Extent{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))}
		if each == 16 {
			e = Extent{be.Uint64(p), be.Uint64(p[8:])}
		}
		switch {
		case e.Length == 0:
			return violated("an extent at %#x is empty", at)
		case len(extents) > 0 && at-a.Request.Offset >= length:
			return violated("an extent begins at %#x, beyond what was asked for", at)
		case e.Length > c.Size-min(at, c.Size):
			return violated("an extent of %d bytes at %#x goes beyond the end of the export", e.Length, at)
		}
		at += e.Length
		extents = append(extents, e)
	}
	if a.Request.Flags&wire.FlagReqOne != 0 && (count > 1 || at-a.Request.Offset > length) {
		return violated("with REQ_ONE, %d extents over %d bytes came where %d were asked for", count, at-a.Request.Offset, length)
	}
	a.Status[id] = extents
	return nil
}

// statusLength is how many bytes a BLOCK_STATUS is about. A request with a payload has its length in there, so that nothing can be said.
func (a *Answer) statusLength() uint64 {
	if a.Request.Flags&wire.FlagPayloadLen != 0 {
		return 1 << 62
	}
	return a.Request.Length
}

// complete judges an answer after its last chunk.
func (a *Answer) complete() error {
	if a.Errno != wire.OK {
		return nil
	}
	switch a.Request.Type {
	case wire.CmdRead:
		var sum uint64
		for _, p := range a.Pieces {
			sum += p.Length
		}
		if sum != a.Request.Length {
			return violated("a READ of %d bytes succeeds with chunks of %d bytes", a.Request.Length, sum)
		}
	case wire.CmdBlockStatus:
		if a.Request.Length > 0 && (len(a.Status) != len(a.ids) || len(a.ids) == 0) {
			return violated("BLOCK_STATUS is answered for %d contexts instead of %d", len(a.Status), len(a.ids))
		}
	}
	return nil
}

// String describes the answer.
func (a *Answer) String() string {
	switch {
	case a.Errno == wire.OK:
		return "success"
	case a.Text != "":
		return fmt.Sprintf("%s (%s)", a.Errno, a.Text)
	}
	return a.Errno.String()
}

// IsZero reports whether all bytes are zero.
func IsZero(b []byte) bool {
	var zeroes [4096]byte
	for ; len(b) > len(zeroes); b = b[len(zeroes):] {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
	}
	return bytes.Equal(b, zeroes[:len(b)])
}
