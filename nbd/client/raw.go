package client

import (
	"context"

	"github.com/imgtool/imgtool/nbd/wire"
)

// maxRawReply is how much a raw reply may hold in bytes, all chunks together.
const maxRawReply = 64 << 20

// rawReply gathers a reply as it comes.
type rawReply struct {
	chunks []RawChunk
	bytes  uint64
}

// Command sends any request as it is, with a payload where one is given, and returns the chunks of the reply in order; a simple reply is one chunk of
// type NONE or ERROR, or OFFSET_DATA with the bytes that were read. Its payload is then what an ERROR or an OFFSET_DATA chunk would hold. To try servers:
// the frames must be right, what they hold is not judged. The cookie must not be that of a request in flight. DISC, which has no reply, returns as soon
// as it is sent; no other request may be in flight.
func (c *Conn) Command(ctx context.Context, r wire.Request, payload []byte) ([]RawChunk, error) {
	if r.Type == wire.CmdDisc {
		return nil, c.sendDisc(ctx, r)
	}
	k := newCall(r.Type, 0, 0, 0)
	k.request, k.payload, k.raw = r, payload, &rawReply{}
	kept, err := c.do(ctx, k)
	if !kept {
		return nil, err
	}
	chunks := k.raw.chunks
	k.free()
	return chunks, err
}

// keep adds a chunk to a raw reply, with n more bytes from the connection behind what its payload holds already.
func (c *Conn) keep(k *call, chunk RawChunk, n uint64) error {
	k.raw.bytes += n
	if n > maxRawReply || k.raw.bytes > maxRawReply || len(k.raw.chunks) >= maxChunks {
		return broken(k.request.Type.String(), "a reply of more than %d bytes or %d chunks", maxRawReply, maxChunks)
	}
	had := len(chunk.Payload)
	chunk.Payload = append(chunk.Payload, make([]byte, n)...)
	if err := c.in.full(chunk.Payload[had:]); err != nil {
		return err
	}
	k.raw.chunks = append(k.raw.chunks, chunk)
	return nil
}

func (c *Conn) receiveRawChunk(k *call, h wire.Chunk) error {
	if err := c.keep(k, RawChunk{Header: h}, h.Length); err != nil {
		return err
	}
	if h.Flags&wire.ChunkDone != 0 {
		c.finish(k, nil)
	}
	return nil
}

func (c *Conn) receiveRawSimple(k *call, h wire.SimpleReply) error {
	chunk := RawChunk{Header: wire.Chunk{Flags: wire.ChunkDone, Cookie: h.Cookie}}
	n := uint64(0)
	switch {
	case h.Error != wire.OK:
		chunk.Header.Type = wire.ChunkError
		chunk.Payload = be.AppendUint16(be.AppendUint32(nil, uint32(h.Error)), 0)
	case k.request.Type == wire.CmdRead && !c.structured:
		chunk.Header.Type = wire.ChunkOffsetData
		chunk.Payload = be.AppendUint64(nil, k.request.Offset)
		n = k.request.Length
	}
	if err := c.keep(k, chunk, n); err != nil {
		return err
	}
	kept := &k.raw.chunks[len(k.raw.chunks)-1]
	kept.Header.Length = uint64(len(kept.Payload))
	c.finish(k, nil)
	return nil
}
