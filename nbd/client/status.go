package client

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/imgtool/imgtool/nbd/wire"
)

// statusOf is what one chunk tells of one context.
type statusOf struct {
	context uint32
	extents []Extent
}

// maxCompactStatus is the longest range that a compact request asks about; a multiple of every block size.
const maxCompactStatus = 1<<32 - wire.MinBlockLimit

// BlockStatus calls each with what the server tells for every selected context, the extents of one context in order from off, which may reach less far than
// asked and, without FlagReqOne, the last farther, but not past the end of the export. With ids, which need extended headers, only those contexts are asked for.
func (c *Conn) BlockStatus(ctx context.Context, off, n int64, f wire.CommandFlags, ids []uint32, each func(context MetaContext, extents []Extent)) error {
	const cmd = wire.CmdBlockStatus
	if done, err := c.check(cmd, off, n, f); done || err != nil {
		return err
	}
	if !c.extended {
		n = min(n, maxCompactStatus)
	}
	k := newCall(cmd, off, n, f)
	if ids != nil {
		k.ids, k.about = ids, uint64(n)
		k.payload = be.AppendUint64(make([]byte, 0, 8+4*len(ids)), uint64(n))
		for _, id := range ids {
			k.payload = be.AppendUint32(k.payload, id)
		}
		k.request.Flags |= wire.FlagPayloadLen
		k.request.Length = uint64(len(k.payload))
	}
	kept, err := c.do(ctx, k)
	if !kept {
		return err
	}
	status := k.status
	k.free()
	if err != nil {
		return err
	}
	for _, s := range status {
		i := slices.IndexFunc(c.contexts, func(m MetaContext) bool { return m.ID == s.context })
		each(c.contexts[i], s.extents)
	}
	return nil
}

// statusType is the type of chunk that tells of a context.
func (c *Conn) statusType() wire.ChunkType {
	if c.extended {
		return wire.ChunkBlockStatusExt
	}
	return wire.ChunkBlockStatus
}

// receiveStatus reads a chunk that tells of a context.
func (c *Conn) receiveStatus(k *call, h wire.Chunk) error {
	name := k.request.Type.String()
	header, each := uint64(4), uint64(8)
	if c.extended {
		header, each = 8, 16
	}
	if h.Length < header+each || (h.Length-header)%each != 0 || (h.Length-header)/each > wire.MaxExtents {
		return broken(name, "a chunk %s of %d bytes", h.Type, h.Length)
	}
	b, err := c.in.next(int(header))
	if err != nil {
		return err
	}
	s := statusOf{context: be.Uint32(b)}
	count := (h.Length - header) / each
	if c.extended && uint64(be.Uint32(b[4:])) != count {
		return broken(name, "%d extents in a chunk of %d bytes", be.Uint32(b[4:]), h.Length)
	}
	if err := c.expected(k, s.context); err != nil {
		return &ProtocolError{During: name, Err: err}
	}
	if s.extents, err = c.receiveExtents(k, count); err != nil {
		return err
	}
	k.status = append(k.status, s)
	return nil
}

// expected checks that a context was asked for and not yet told of.
func (c *Conn) expected(k *call, id uint32) error {
	selected := func(m MetaContext) bool { return m.ID == id }
	if !slices.ContainsFunc(c.contexts, selected) || k.ids != nil && !slices.Contains(k.ids, id) {
		return fmt.Errorf("it tells of the context %d, which was not asked for", id)
	}
	if slices.ContainsFunc(k.status, func(s statusOf) bool { return s.context == id }) {
		return fmt.Errorf("it tells of the context %d twice", id)
	}
	return nil
}

// receiveExtents reads the extents of a context.
func (c *Conn) receiveExtents(k *call, count uint64) ([]Extent, error) {
	name := k.request.Type.String()
	if k.request.Flags&wire.FlagReqOne != 0 && count != 1 {
		return nil, broken(name, "%d extents, where one was asked for", count)
	}
	asked, limit := int64(cmp.Or(k.about, k.request.Length)), c.export.Size-int64(k.request.Offset)
	if c.config.Unchecked {
		limit = math.MaxInt64
	}
	// The memory grows with what comes, not with what is announced.
	all := make([]Extent, 0, min(count, 1024))
	end := int64(0)
	for range count {
		e, ok, err := c.receiveExtent()
		if err != nil {
			return nil, err
		}
		if !ok || e.Length <= 0 || end >= asked {
			return nil, broken(name, "extent %d is empty, too long, or begins past the end of the request", len(all))
		}
		if k.request.Flags&wire.FlagReqOne != 0 && e.Length > asked {
			return nil, broken(name, "an extent of %d bytes, more than asked for with REQ_ONE", e.Length)
		}
		e.Length = min(e.Length, limit-end)
		end += e.Length
		all = append(all, e)
	}
	return all, nil
}

// receiveExtent reads one extent. It reports false where the length is not below 2^63.
func (c *Conn) receiveExtent() (Extent, bool, error) {
	if c.extended {
		b, err := c.in.next(16)
		if err != nil {
			return Extent{}, false, err
		}
		return Extent{Length: int64(be.Uint64(b)), Flags: be.Uint64(b[8:])}, be.Uint64(b) <= math.MaxInt64, nil
	}
	b, err := c.in.next(8)
	if err != nil {
		return Extent{}, false, err
	}
	return Extent{Length: int64(be.Uint32(b)), Flags: uint64(be.Uint32(b[4:]))}, true, nil
}

// statusComplete checks that every context that was asked for was told of.
func (c *Conn) statusComplete(k *call) error {
	want := len(c.contexts)
	if k.ids != nil {
		want = len(k.ids)
	}
	if len(k.status) != want {
		return fmt.Errorf("it tells of %d contexts, %d were asked for", len(k.status), want)
	}
	return nil
}
