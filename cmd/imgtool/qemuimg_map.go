package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/source/file"
)

// errNotPlain: a map for people tells where bytes can be read in files, and these cannot.
var errNotPlain = errors.New("the file contains external, encrypted or compressed clusters")

// printQemuMap prints a map as qemu-img does.
func (v *mapping) printQemuMap(ctx context.Context, img *chain.Image) error {
	holes := newHoleFinder(levelsOf(ctx, img))
	defer holes.close()
	v.view = holes.view
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

func (v *mapping) printQemuMapJSON(ctx context.Context, img *chain.Image, holes *holeFinder) error {
	sep := "["
	err := v.eachExtent(ctx, img.Device, func(e block.Extent) error {
		return holes.split(ctx, e, func(e block.Extent, zero bool) {
			m := entry(e, holes.levels.isRaw(e))
			m.Data = m.Data || holes.isHole(e)
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

// holeFinder finds the holes of files in which images have their data. qemu-img looks at those of images of which the file holds much less than it is long:
// in them clusters are allocated that nobody has written, and they are zero. Elsewhere an allocated cluster is data.
type holeFinder struct {
	levels levels
	hollow []bool                  // of the levels, whether holes are looked at
	files  map[string]*file.Device // by their names; nil for those that cannot be opened
}

func newHoleFinder(levels levels) *holeFinder {
	h := &holeFinder{levels: levels, files: map[string]*file.Device{}}
	for _, l := range levels {
		const unit = 64 << 10 // of a cluster mostly; what qemu-img counts are clusters
		st, err := os.Stat(l.path)
		held := actualSize(l.path)
		h.hollow = append(h.hollow, err == nil && !l.raw && held != nil && st.Size() >= max(*held/9*10, *held+2*unit))
	}
	return h
}

// looks reports whether the holes of the file count that has an extent.
func (h *holeFinder) looks(e block.Extent) bool { return e.Depth < len(h.hollow) && h.hollow[e.Depth] }

// open returns the file of this name, or nil.
func (h *holeFinder) open(ctx context.Context, name string) *file.Device {
	d, known := h.files[name]
	if known {
		return d
	}
	d, err := file.Open(ctx, name, file.Options{NoLock: true})
	if err != nil {
		d = nil
	}
	h.files[name] = d
	return d
}

// view makes data of clusters that are holes of a file which is not looked at.
func (h *holeFinder) view(e block.Extent) block.Extent {
	if h.isHole(e) && !h.looks(e) {
		e.Flags &^= block.ExtZero
	}
	return e
}

// isHole reports whether an extent is a hole of the file behind a cluster that is allocated. In a raw image it would be no cluster.
func (h *holeFinder) isHole(e block.Extent) bool {
	const both = block.ExtAlloc | block.ExtZero
	return e.Flags&both == both && e.Node != "" && !h.levels.isRaw(e)
}

// split calls f for the parts of an extent, and says of each whether it is zero. What a file does not tell is data.
func (h *holeFinder) split(ctx context.Context, e block.Extent, f func(e block.Extent, zero bool)) error {
	var d *file.Device
	if e.Flags&block.ExtZero == 0 && e.Node != "" && h.looks(e) {
		d = h.open(ctx, e.Node)
	}
	if d == nil {
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

func (h *holeFinder) close() {
	for _, d := range h.files {
		if d != nil {
			_ = d.Close() // it was only read
		}
	}
}
