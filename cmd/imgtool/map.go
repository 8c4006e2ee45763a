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

// mapping is one run of map.
type mapping struct {
	*app
	from   reading
	start  size
	length size // -1 for all

	view func(block.Extent) block.Extent // changes extents before neighbours are joined; nil for none
}

func newMap(a *app) *cobra.Command {
	v := &mapping{app: a, length: -1}
	c := &cobra.Command{
		Use:   "map [flags] IMAGE",
		Short: "Show where an image holds data, and where zeros",
		Long: `Show where an image holds data, and where zeros; which image of a chain of backing files has it (depth 0 is the image itself), and where in
which file the bytes lie as they are.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt, 5 a backing file is refused.`,
		Example: `  imgtool map disk.qcow2
  imgtool map --json --start-offset 1G --max-length 512M overlay.qcow2`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := a.openDevice(c.Context(), args[0], v.from)
			if err != nil {
				return err
			}
			defer img.Close()
			if a.qemu != nil {
				return v.printQemuMap(c.Context(), img)
			}
			if a.json {
				return v.printAsJSON(c.Context(), img)
			}
			return v.printAsText(c.Context(), img)
		},
	}
	v.from.flags(c)
	c.Flags().VarP(&v.start, "start-offset", "s", "where to begin")
	c.Flags().VarP(&v.length, "max-length", "l", "how many bytes to describe at most")
	c.Flags().Lookup("max-length").DefValue = ""
	return c
}

// eachExtent calls f for the extents of the part of the device that is asked for, neighbours of the same kind joined.
func (v *mapping) eachExtent(ctx context.Context, d block.Device, f func(block.Extent) error) error {
	off, end := int64(v.start), d.Size()
	if n := int64(v.length); n >= 0 && n < end-off {
		end = off + n
	}
	var joined []block.Extent // all but the last are done with
	for e, err := range block.Walk(ctx, d, block.Map{}, off, end) {
		if err != nil {
			return err
		}
		if v.view != nil {
			e = v.view(e)
		}
		joined = block.AppendExtent(joined, 0, e)
		for ; len(joined) > 1; joined = joined[1:] {
			if err := f(joined[0]); err != nil {
				return err
			}
		}
	}
	for _, e := range joined {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func (v *mapping) printAsJSON(ctx context.Context, img *chain.Image) error {
	levels := levelsOf(ctx, img)
	sep := "["
	err := v.eachExtent(ctx, img.Device, func(e block.Extent) error {
		line, err := json.Marshal(entry(e, levels.isRaw(e)))
		fmt.Fprintf(v.out, "%s%s", sep, line)
		sep = ",\n"
		return err
	})
	if sep == "[" {
		v.out.WriteByte('[')
	}
	v.printf("]")
	return err
}

// level is an image of a chain of backing files.
type level struct {
	raw  bool
	path string // "" for none
}

// levels are an image and those below it.
type levels []level

// isRaw reports whether the image that has an extent is raw.
func (l levels) isRaw(e block.Extent) bool { return e.Depth < len(l) && l[e.Depth].raw }

// levelsOf returns an image and those below it.
func levelsOf(ctx context.Context, img *chain.Image) levels {
	list := levels{{img.Format() == raw.Name, img.Path}}
	for dev := img.Device; ; {
		ref, below, err := backingOf(ctx, dev)
		if err != nil || below == nil { // what cannot be opened says so when it is asked for extents
			return list
		}
		path, err := chain.Path(ref)
		if err != nil {
			path = ""
		}
		list = append(list, level{below.Info().Format == raw.Name, path})
		dev = below
	}
}

// entry returns what qemu-img would say of an extent. A raw image is always present: there is nothing below it that could show through.
func entry(e block.Extent, isRaw bool) mapEntry {
	alloc, zero := e.Flags&block.ExtAlloc != 0, e.Flags&block.ExtZero != 0
	m := mapEntry{
		Start: e.Off, Length: e.Len, Depth: e.Depth, Present: alloc || isRaw, Zero: zero, Data: !zero,
		Compressed: e.Flags&block.ExtPacked != 0, Filename: e.Node,
	}
	if e.Node != "" {
		m.Offset = &e.NodeOff
	}
	return m
}

func (v *mapping) printAsText(ctx context.Context, img *chain.Image) error {
	v.printf("%-16s %-16s %-6s %-5s %-16s %s", "Offset", "Length", "Kind", "Depth", "Mapped to", "File")
	return v.eachExtent(ctx, img.Device, func(e block.Extent) error {
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
		v.printf("%-16s %-16s %-6s %-5d %-16s %s", fmt.Sprintf("%#x", e.Off), fmt.Sprintf("%#x", e.Len), kind, e.Depth, to, printable(e.Node))
		return nil
	})
}
