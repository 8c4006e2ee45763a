package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// metaContext is a kind of block status that an export has.
type metaContext struct {
	name string
	id   uint32 // the client's handle of it, from 1 on
	from block.Map
	// flags returns the status of an extent.
	flags func(block.Extent) uint32
	// mix returns the status that holds for a whole of which two parts have a and b.
	mix func(a, b uint32) uint32
}

// available returns the contexts of an export.
func (e *export) available() []metaContext {
	all := []metaContext{{name: wire.BaseAllocation, flags: allocation, mix: both}}
	if e.Depth {
		all = append(all, metaContext{name: wire.AllocationDepth, flags: depth, mix: larger})
	}
	for _, b := range e.Bitmaps {
		if name := wire.DirtyBitmap + b; validString([]byte(name)) {
			all = append(all, metaContext{name: name, from: block.Map{Bitmap: b}, flags: dirty, mix: larger})
		}
	}
	for i := range all {
		all[i].id = uint32(i + 1)
	}
	return all
}

// allocation is the status in base:allocation.
func allocation(e block.Extent) uint32 {
	var f uint32
	if e.Flags&block.ExtAlloc == 0 {
		f |= wire.StateHole
	}
	if e.Flags&block.ExtZero != 0 {
		f |= wire.StateZero
	}
	return f
}

// depth is the status in qemu:allocation-depth: 0 is nothing, 1 the image itself, n the n-1st backing file.
func depth(e block.Extent) uint32 {
	if e.Flags&block.ExtAlloc == 0 {
		return 0
	}
	return uint32(e.Depth) + 1
}

// dirty is the status in qemu:dirty-bitmap.
func dirty(e block.Extent) uint32 {
	if e.Flags&block.ExtDirty != 0 {
		return wire.StateDirty
	}
	return 0
}

func both(a, b uint32) uint32   { return a & b }
func larger(a, b uint32) uint32 { return max(a, b) }

// matches reports whether a query finds a context. In a list, a name that ends after a colon finds all that begin so.
func matches(query, name string, list bool) bool {
	return query == name || list && strings.HasSuffix(query, ":") && strings.HasPrefix(name, query)
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (n *negotiation) metaContext(o wire.Option, data []byte) error {
	list := o == wire.OptListMetaContext
	if !n.structured {
		n.refuse(o, wire.RepErrInvalid, "structured replies or extended headers must be negotiated first")
		return nil
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		n.refuse(o, wire.RepErrInvalid, "the lengths inside the data do not add up")
		return nil
	}
	queries, ok := cutQueries(rest)
	if !ok || !validString(name) {
		n.refuse(o, wire.RepErrInvalid, "a name or a query is too long, or not text")
		return nil
	}
	if len(queries) > maxQueries {
		n.refuse(o, wire.RepErrTooBig, fmt.Sprintf("%d queries, more than %d", len(queries), maxQueries))
		return nil
	}
	e, err := n.export(string(name))
	if err != nil {
		t, why := refusal(err)
		n.refuse(o, t, why)
		return nil
	}
	found := slices.DeleteFunc(e.available(), func(m metaContext) bool {
		hit := list && len(queries) == 0
		for _, q := range queries {
			hit = hit || matches(q, m.name, list)
		}
		return !hit
	})
	if !list && len(found) > maxContexts {
		n.refuse(o, wire.RepErrTooBig, fmt.Sprintf("%d contexts, more than %d", len(found), maxContexts))
		return nil
	}
	for _, m := range found {
		id := m.id
		if list {
			id = 0
		}
		n.reply(o, wire.RepMetaContext, append(be.AppendUint32(nil, id), m.name...))
	}
	if !list {
		n.contexts, n.contextsFor = found, e.asked
	}
	n.reply(o, wire.RepAck, nil)
	return nil
}

const (
	maxQueries  = 1024 // each is compared with every context
	maxContexts = 64   // that are active: each request for block status answers for all of them
)

// cutQueries reads the queries of an option. They must end where p does.
func cutQueries(p []byte) (queries []string, ok bool) {
	count := be.Uint32(p)
	p = p[4:]
	if uint64(count)*4 > uint64(len(p)) {
		return nil, false
	}
	for range count {
		var q []byte
		if q, p, ok = cutString(p); !ok || !validString(q) {
			return nil, false
		}
		queries = append(queries, string(q))
	}
	return queries, len(p) == 0
}
