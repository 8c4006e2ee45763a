package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// status is a range of an export for which a context says the same.
type status struct {
	off, n int64
	flags  uint64
}

// statuses yields what a context says of [off, end), in order, neighbours of the same kind joined. It stops at the first error.
func statuses(ctx context.Context, c *client.Conn, m client.MetaContext, off, end int64) iter.Seq2[status, error] {
	return func(yield func(status, error) bool) {
		last := status{off: off}
		for at := off; at < end; {
			list, err := statusesFrom(ctx, c, m, at, end)
			if err != nil {
				yield(status{}, err)
				return
			}
			for _, s := range list {
				at += s.n
				if s.flags == last.flags || last.n == 0 {
					last.n, last.flags = last.n+s.n, s.flags
					continue
				}
				if !yield(last, nil) {
					return
				}
				last = s
			}
		}
		if last.n > 0 {
			yield(last, nil)
		}
	}
}

// statusesFrom asks once, and returns what the answer says of [off, end), which may be less but never nothing.
func statusesFrom(ctx context.Context, c *client.Conn, m client.MetaContext, off, end int64) ([]status, error) {
	e := c.Export()
	from := block.RoundDown(off, e.MinBlock)
	n := end - from
	if up, ok := block.RoundUp(n, e.MinBlock); ok {
		n = min(up, e.Size-from)
	}
	var ids []uint32
	if len(c.Contexts()) > 1 && e.Flags&wire.BlockStatusPayload != 0 {
		ids = []uint32{m.ID}
	}
	var list []status
	err := c.BlockStatus(ctx, from, n, 0, ids, func(of client.MetaContext, extents []client.Extent) {
		if of.ID != m.ID {
			return
		}
		at := from
		for _, x := range extents {
			next, ok := block.Add(at, x.Length)
			if !ok || next > end {
				next = end
			}
			if start := max(at, off); next > start {
				list = append(list, status{start, next - start, x.Flags})
			}
			if at = next; at >= end {
				return
			}
		}
	})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("the server says nothing about byte %d in context %s", off, shown(m.Name))
	}
	return list, err
}

// meaning returns what the flags of a context say, "" where nobody knows, and the color to say it in.
func meaning(context string, flags uint64) (word, color string) {
	switch {
	case context == wire.BaseAllocation && flags < 4:
		return []string{"data", "hole", "zero", "hole,zero"}[flags], []string{colorBold, colorNone, colorNone, colorNone}[flags]
	case strings.HasPrefix(context, wire.DirtyBitmap) && flags < 2:
		return []string{"clean", "dirty"}[flags], []string{colorGreen, colorRed}[flags]
	case context == wire.AllocationDepth && flags == 0:
		return "absent", colorNone
	case context == wire.AllocationDepth && flags == 1:
		return "local", colorBold
	case context == wire.AllocationDepth:
		return fmt.Sprintf("backing depth %d", flags), colorDim
	}
	return "", colorNone
}

// selectContexts selects contexts of the export for transmission, all that the server offers where names is nil, and returns them in this order.
func (s *nbdSession) selectContexts(export string, names []string) ([]client.MetaContext, error) {
	if !s.Structured() {
		return nil, s.named(errors.New("the server tells no maps: it knows no structured replies"))
	}
	offered, err := s.ListMetaContexts(s.ctx, export)
	if names == nil {
		if err != nil {
			return nil, s.named(err)
		}
		for _, c := range offered {
			names = append(names, c.Name)
		}
		if names == nil {
			return nil, s.named(errors.New("the server tells no maps of this export"))
		}
	}
	selected, err := s.SetMetaContexts(s.ctx, export, names...)
	if err != nil {
		return nil, s.named(err)
	}
	var list []client.MetaContext
	for _, name := range names {
		i := slices.IndexFunc(selected, func(c client.MetaContext) bool { return c.Name == name })
		if i < 0 {
			return nil, s.named(noContext(name, offered))
		}
		list = append(list, selected[i])
	}
	return list, nil
}

// noContext says that a server does not have a context, and which it has.
func noContext(name string, offered []client.MetaContext) error {
	err := fmt.Errorf("the server has no context %s", shown(name))
	if len(offered) == 0 {
		return err
	}
	const most = 20
	var names []string
	for _, c := range offered[:min(len(offered), most)] {
		names = append(names, shown(c.Name).String())
	}
	if len(offered) > most {
		names = append(names, "...")
	}
	return block.WithHint(err, "it has "+strings.Join(names, ", "))
}
