package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/source/file"
)

// errNotPlain: a map for people tells where bytes can be read in files, and these cannot.
var errNotPlain = errors.New("the file contains external, encrypted or compressed clusters")

// printQemuMap prints a map as qemu-img does.
func (v *mapping) printQemuMap(ctx context.Context, img *chain.Image) error {
	holes := holeFinder{}
	defer holes.close()
	if v.json {
		return v.printQemuMapJSON(ctx, img, holes)
	}
	v.printf("%-16s%-16s%-16s%s", "Offset", "Length", "Mapped to", "File")
	return v.eachExtent(ctx, img.Device, func(e block.Extent) error {
		if e.Flags&block.ExtZero == 0 && e.Node == "" {
			return errNotPlain
		}
		return holes.split(ctx, e, func(e block.Extent, zero bool) {
			if !zero {
				v.printf("%-16s%-16s%-16s%s", cHex(e.Off), cHex(e.Len), cHex(e.NodeOff), printable(e.Node))
			}
		})
	})
}

// cHex returns a number as C prints it with %#x.
func cHex(n int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}

func (v *mapping) printQemuMapJSON(ctx context.Context, img *chain.Image, holes holeFinder) error {
	raws := rawLevels(ctx, img)
	sep := "["
	err := v.eachExtent(ctx, img.Device, func(e block.Extent) error {
		return holes.split(ctx, e, func(e block.Extent, zero bool) {
			m := entry(e, e.Depth < len(raws) && raws[e.Depth])
			fmt.Fprintf(v.out, `%s{ "start": %d, "length": %d, "depth": %d, "present": %t, "zero": %t, "data": %t`, sep, m.Start, m.Length, m.Depth, m.Present, zero, m.Data)
			if m.Offset != nil {
				fmt.Fprintf(v.out, `, "offset": %d`, *m.Offset)
			}
			v.out.WriteByte('}')
			sep = ",\n"
		})
	})
	if sep == "[" {
		v.out.WriteByte('[')
	}
	v.printf("]")
	return err
}

// holeFinder holds the files in which images have their data: where one has a hole, qemu-img says that the data is zero.
type holeFinder map[string]*file.Device

// split calls f for the parts of an extent, and says of each whether it is zero. What a file does not tell is data.
func (h holeFinder) split(ctx context.Context, e block.Extent, f func(e block.Extent, zero bool)) error {
	d := h[e.Node]
	if d == nil && e.Node != "" && e.Flags&block.ExtZero == 0 {
		var err error
		if d, err = file.Open(ctx, e.Node, file.Options{NoLock: true}); err != nil {
			d = nil
		}
		h[e.Node] = d
	}
	if d == nil || e.Flags&block.ExtZero != 0 {
		f(e, e.Flags&block.ExtZero != 0)
		return nil
	}
	for e.Len > 0 {
		parts, err := d.Extents(ctx, block.Map{}, e.NodeOff, min(e.Len, max(d.Size()-e.NodeOff, 0)), nil)
		if err != nil {
			return err
		}
		if len(parts) == 0 { // past the end of the file
			parts = []block.Extent{{Len: e.Len}}
		}
		for _, p := range parts {
			part := e
			part.Len = p.Len
			f(part, p.Flags&block.ExtZero != 0)
			e.Off, e.NodeOff, e.Len = e.Off+p.Len, e.NodeOff+p.Len, e.Len-p.Len
		}
	}
	return nil
}

func (h holeFinder) close() {
	for _, d := range h {
		if d != nil {
			_ = d.Close() // it was only read
		}
	}
}
