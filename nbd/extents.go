package nbd

import (
	"context"
	"errors"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// Extents implements block.Device, by block status.
func (e *export) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := e.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer e.calls.End()
	base := len(buf)
	err := e.links.do(ctx, loadOf(0), e.links.take, func(l *link) error {
		var err error
		buf, err = extentsOf(ctx, l.conn, m, off, n, buf[:base])
		return err
	})
	if err != nil {
		return buf[:base], err
	}
	return buf, nil
}

// extentsOf asks one connection. Without base:allocation everything is data.
func extentsOf(ctx context.Context, conn *client.Conn, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	names := []string{wire.BaseAllocation, wire.AllocationDepth}
	if m.Bitmap != "" {
		names = []string{wire.DirtyBitmap + m.Bitmap}
	}
	var ids []uint32
	for _, c := range conn.Contexts() {
		if slices.Contains(names, c.Name) {
			ids = append(ids, c.ID)
		}
	}
	has := func(name string) bool {
		return slices.ContainsFunc(conn.Contexts(), func(c client.MetaContext) bool { return c.Name == name })
	}
	switch {
	case m.Bitmap != "" && !has(names[0]):
		return buf, block.ErrorOf(errors.ErrUnsupported, "nbd: the server does not offer the bitmap %q, or it was not asked for", m.Bitmap)
	case n == 0:
		return buf, nil
	case m.Bitmap == "" && !has(wire.BaseAllocation):
		return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
	}
	if len(ids) == len(conn.Contexts()) || conn.Export().Flags&wire.BlockStatusPayload == 0 {
		ids = nil // all of them
	}
	told := map[string][]client.Extent{}
	err := conn.BlockStatus(ctx, off, n, 0, ids, func(c client.MetaContext, extents []client.Extent) { told[c.Name] = extents })
	if err != nil {
		return buf, err
	}
	if m.Bitmap != "" {
		return merge(buf, off, n, told[names[0]], nil, func(dirty, _ uint64) block.Extent {
			if dirty&uint64(wire.StateDirty) != 0 {
				return block.Extent{Flags: block.ExtDirty}
			}
			return block.Extent{}
		}), nil
	}
	return merge(buf, off, n, told[wire.BaseAllocation], told[wire.AllocationDepth], allocation), nil
}

// allocation says what base:allocation and qemu:allocation-depth tell of a range; a depth of 0 is none.
func allocation(state, depth uint64) block.Extent {
	var e block.Extent
	if state&uint64(wire.StateHole) == 0 {
		e.Flags |= block.ExtAlloc
	}
	if state&uint64(wire.StateZero) != 0 {
		e.Flags |= block.ExtZero
	}
	if depth > 1 {
		e.Depth = int(min(depth-1, 1<<30))
	}
	return e
}

// merge appends the extents of [off, off+n) that one context, or two, tell of, as far as both reach.
func merge(buf []block.Extent, off, n int64, a, b []client.Extent, make func(a, b uint64) block.Extent) []block.Extent {
	base := len(buf)
	for n > 0 && len(a) > 0 {
		k := min(n, a[0].Length)
		second := uint64(0)
		if b != nil {
			if len(b) == 0 {
				break
			}
			k = min(k, b[0].Length)
			second = b[0].Flags
			b = shorten(b, k)
		}
		e := make(a[0].Flags, second)
		e.Off, e.Len = off, k
		buf = block.AppendExtent(buf, base, e)
		a = shorten(a, k)
		off, n = off+k, n-k
	}
	return buf
}

// shorten takes n bytes off the first extent, which has as many.
func shorten(all []client.Extent, n int64) []client.Extent {
	if all[0].Length == n {
		return all[1:]
	}
	all[0].Length -= n
	return all
}
