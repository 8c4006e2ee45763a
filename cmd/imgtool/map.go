package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats/raw"
)

// mapEntry is a range in JSON, with the names that qemu-img map has.
type mapEntry struct {
	Start      int64  `json:"start"`
	Length     int64  `json:"length"`
	Depth      int    `json:"depth"`
	Present    bool   `json:"present"`
	Zero       bool   `json:"zero"`
	Data       bool   `json:"data"`
	Compressed bool   `json:"compressed"`
	Offset     *int64 `json:"offset,omitempty"`
	Filename   string `json:"filename,omitempty"`
}

func newMap(a *app) *cobra.Command {
	var from reading
	c := &cobra.Command{
		Use:   "map [flags] IMAGE",
		Short: "Show where an image holds data, and where zeros",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := a.openDevice(c.Context(), args[0], from)
			if err != nil {
				return err
			}
			defer img.Close()
			if a.json {
				return a.mapJSON(c.Context(), img)
			}
			return a.mapText(c.Context(), img)
		},
	}
	from.flags(c)
	return c
}

// eachExtent calls f for the extents of the whole device, neighbours of the same kind joined.
func eachExtent(ctx context.Context, d block.Device, f func(block.Extent) error) error {
	var joined []block.Extent // all but the last are done with
	for off, size := int64(0), d.Size(); off < size; {
		batch, err := d.Extents(ctx, block.Map{}, off, size-off, nil)
		if err != nil {
			return err
		}
		for _, e := range batch {
			joined = block.AppendExtent(joined, 0, e)
			for ; len(joined) > 1; joined = joined[1:] {
				if err := f(joined[0]); err != nil {
					return err
				}
			}
			off = e.End()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for _, e := range joined {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) mapJSON(ctx context.Context, img *chain.Image) error {
	sep := "["
	err := eachExtent(ctx, img.Device, func(e block.Extent) error {
		line, err := json.Marshal(entry(e, img.Format()))
		fmt.Fprintf(a.out, "%s%s", sep, line)
		sep = ",\n"
		return err
	})
	if sep == "[" {
		a.out.WriteByte('[')
	}
	a.printf("]")
	return err
}

// entry returns what qemu-img would say of an extent. A raw image is always present: there is nothing below it that could show through.
func entry(e block.Extent, format string) mapEntry {
	alloc, zero := e.Flags&block.ExtAlloc != 0, e.Flags&block.ExtZero != 0
	m := mapEntry{
		Start: e.Off, Length: e.Len, Depth: e.Depth, Present: alloc || format == raw.Name, Zero: zero, Data: !zero,
		Compressed: e.Flags&block.ExtPacked != 0, Filename: e.Node,
	}
	if e.Node != "" {
		m.Offset = &e.NodeOff
	}
	return m
}

func (a *app) mapText(ctx context.Context, img *chain.Image) error {
	a.printf("%-16s %-16s %-6s %-5s %-16s %s", "Offset", "Length", "Kind", "Depth", "Mapped to", "File")
	return eachExtent(ctx, img.Device, func(e block.Extent) error {
		kind, to := "data", ""
		switch {
		case e.Flags&block.ExtZero != 0 && e.Flags&block.ExtAlloc == 0:
			kind = "hole"
		case e.Flags&block.ExtZero != 0:
			kind = "zero"
		case e.Flags&block.ExtPacked != 0:
			kind = "packed"
		}
		if e.Node != "" {
			to = fmt.Sprintf("%#x", e.NodeOff)
		}
		a.printf("%-16s %-16s %-6s %-5d %-16s %s", fmt.Sprintf("%#x", e.Off), fmt.Sprintf("%#x", e.Len), kind, e.Depth, to, e.Node)
		return nil
	})
}
