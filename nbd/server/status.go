package server

import (
	"errors"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	// maxDescriptors is how many extents one chunk tells of: 32 KiB of them, or twice that with extended headers.
	maxDescriptors = 4 << 10
	// maxVisited is how many extents of the device are looked at for one chunk: neighbours of one status become one descriptor.
	maxVisited = 64 << 10
)

// filteredStatus reads the payload that chooses contexts, and answers for these.
func (c *conn) filteredStatus(r request) error {
	if uint64(c.in.buffered()) < r.payload {
		c.flush()
	}
	p, err := c.in.next(int(r.payload)) // check has seen that it is short
	if err != nil {
		return unexpected(err)
	}
	r.Length = be.Uint64(p)
	chosen, err := c.choose(p[8:])
	if err == nil && r.Length == 0 {
		err = refuse(wire.EINVAL, "BLOCK_STATUS of nothing")
	}
	if err == nil {
		err = c.checkRange(&r, r.Offset, r.Length)
	}
	if err != nil {
		c.begin()
		c.finish(&r, err)
		return nil
	}
	c.spawn(r, func(r *request) { c.status(r, chosen) })
	return nil
}

// choose returns the contexts whose ids stand in p, each once.
func (c *conn) choose(p []byte) ([]metaContext, error) {
	var chosen []metaContext
	for ; len(p) > 0; p = p[4:] {
		id := be.Uint32(p)
		same := func(m metaContext) bool { return m.id == id }
		i := slices.IndexFunc(c.contexts, same)
		if i < 0 || slices.ContainsFunc(chosen, same) {
			return nil, refuse(wire.EINVAL, "BLOCK_STATUS for the context %d, which was not set or stands there twice", id)
		}
		chosen = append(chosen, c.contexts[i])
	}
	return chosen, nil
}

// status replies with one chunk for each context.
func (c *conn) status(r *request, contexts []metaContext) {
	if len(contexts) == 0 {
		c.finish(r, nil)
		return
	}
	for i, m := range contexts {
		held := c.memory.take(reserve)
		list, err := c.describe(r, m)
		if err != nil {
			c.memory.give(held)
			c.finish(r, err)
			return
		}
		done := wire.ChunkFlags(0)
		last := i == len(contexts)-1
		if last {
			done = wire.ChunkDone
			c.count(r, nil)
		}
		f := c.statusFrame(r, m, list, done)
		f.held, f.last = held, last
		c.out.send(f)
	}
}

// descriptor is a run of one status.
type descriptor struct {
	length int64
	flags  uint32
}

// describe returns what a range consists of in a context, or the beginning of that, with neighbours that are alike as one.
func (c *conn) describe(r *request, m metaContext) ([]descriptor, error) {
	off, end := int64(r.Offset), int64(r.Offset+r.Length)
	runs := runs{most: maxDescriptors, unit: 1, mix: m.mix}
	if c.exp.strict {
		runs.unit = int64(c.exp.minBlock)
	}
	if r.has(wire.FlagReqOne) {
		runs.most = 1
	}
	var extents []block.Extent
	for visited := 0; off < end && visited < maxVisited; visited += len(extents) {
		var err error
		extents, err = c.exp.Device.Extents(c.ctx, m.from, off, end-off, extents[:0])
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			runs.add(descriptor{length: end - off}) // nothing is known
			return runs.list, nil
		case err != nil:
			return nil, err
		case len(extents) == 0:
			return nil, refuse(wire.EIO, "the device does not tell what is at byte %d", off)
		}
		for _, e := range extents {
			if off = e.End(); !runs.add(descriptor{e.Len, m.flags(e)}) {
				return runs.list, nil
			}
		}
	}
	return runs.list, nil
}

// runs are descriptors in the making. Neighbours that are alike become one, and blocks of which only a part is of one status get one that holds for all.
type runs struct {
	list []descriptor
	most int   // descriptors
	unit int64 // bytes of a block
	part descriptor
	mix  func(a, b uint32) uint32
}

// add appends a run, and reports whether another one may follow.
func (r *runs) add(d descriptor) bool {
	if r.part.length > 0 {
		k := min(r.unit-r.part.length, d.length)
		r.part = descriptor{r.part.length + k, r.mix(r.part.flags, d.flags)}
		if d.length -= k; r.part.length < r.unit {
			return true
		}
		if !r.append(r.part) {
			return false
		}
	}
	r.part = descriptor{d.length % r.unit, d.flags}
	d.length -= r.part.length
	return d.length == 0 || r.append(d)
}

// append appends whole blocks.
func (r *runs) append(d descriptor) bool {
	switch last := len(r.list) - 1; {
	case last >= 0 && r.list[last].flags == d.flags:
		r.list[last].length += d.length
	case len(r.list) == r.most:
		return false
	default:
		r.list = append(r.list, d)
	}
	return true
}

// statusFrame makes a chunk of descriptors.
func (c *conn) statusFrame(r *request, m metaContext, list []descriptor, done wire.ChunkFlags) *frame {
	f := new(frame)
	var body []byte
	if c.extended {
		f.headLen = c.putChunk(f.head[:], r, wire.ChunkBlockStatusExt, done, uint64(8+16*len(list)))
		body = be.AppendUint32(be.AppendUint32(nil, m.id), uint32(len(list)))
		for _, d := range list {
			body = be.AppendUint64(be.AppendUint64(body, uint64(d.length)), uint64(d.flags))
		}
	} else {
		f.headLen = c.putChunk(f.head[:], r, wire.ChunkBlockStatus, done, uint64(4+8*len(list)))
		body = be.AppendUint32(nil, m.id)
		for _, d := range list {
			body = be.AppendUint32(be.AppendUint32(body, uint32(d.length)), d.flags)
		}
	}
	f.body = body
	return f
}
