package tables

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
)

// eStargz: docs/estargz.md of the stargz-snapshotter project.
const (
	footerLen   = 51 // an empty member whose FEXTRA says where the TOC is
	footerHead  = "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00"
	footerExtra = "\x1a\x00SG\x16\x00" // XLEN; identifier and LEN of the subfield, which holds 16 hexadecimal digits and the magic
	footerMagic = "STARGZ"
	offsetLen   = 16
	tocName     = "stargz.index.json"
	maxTOC      = 16 << 20 // bytes of it that are read, as memory allows; what follows is done without
	maxMembers  = 1 << 20
)

// readEStargz reads the TOC, a member with a tar archive with a JSON file, which has the file offsets of members.
func readEStargz(ctx context.Context, file block.Device, o Options) (*Table, error) {
	end := file.Size()
	if end < footerLen {
		return nil, nil
	}
	p := make([]byte, footerLen)
	if err := file.Read(ctx, p, end-footerLen); err != nil {
		return nil, err
	}
	at, ok := tocOffset(p)
	if !ok || at >= end-footerLen {
		return nil, nil
	}
	in := &failing{r: io.NewSectionReader(block.At(ctx, file), at, end-footerLen-at)}
	offsets := tocMembers(in, min(o.Memory/2, maxTOC))
	if in.err != nil {
		return nil, in.err
	}
	c := places{o: o}
	c.add(Place{Member: true}, 0)
	slices.Sort(offsets)
	for _, off := range offsets {
		if off < at {
			c.add(Place{Image: -1, File: off, Member: true}, off)
		}
	}
	return &Table{Name: "eStargz", Size: -1, Summed: true, Places: c.list}, nil
}

// tocOffset returns where a footer says that the TOC is.
func tocOffset(p []byte) (int64, bool) {
	extra := p[len(footerHead)+1:] // after OS, which is any
	if string(p[:len(footerHead)]) != footerHead || string(extra[:len(footerExtra)]) != footerExtra {
		return 0, false
	}
	extra = extra[len(footerExtra):]
	at, err := strconv.ParseInt(string(extra[:offsetLen]), 16, 64)
	return at, err == nil && at > 0 && string(extra[offsetLen:offsetLen+len(footerMagic)]) == footerMagic
}

// tocMembers returns the offsets that the TOC at the beginning of r has, in its first bytes, most of them: none where it is no TOC.
func tocMembers(r io.Reader, most int64) []int64 {
	z := inflate.NewReader(r)
	if _, err := z.Begin(inflate.Gzip); err != nil {
		return nil
	}
	t := tar.NewReader(io.LimitReader(z, most))
	if h, err := t.Next(); err != nil || h.Name != tocName {
		return nil
	}
	var offsets []int64
	j := json.NewDecoder(t)
	for {
		token, err := j.Token()
		if err != nil {
			return offsets
		}
		if token != "entries" {
			continue
		}
		if token, err = j.Token(); err != nil || token != json.Delim('[') {
			return offsets
		}
		for j.More() && len(offsets) < maxMembers {
			var entry struct{ Offset int64 }
			if j.Decode(&entry) != nil {
				return offsets
			}
			if entry.Offset > 0 {
				offsets = append(offsets, entry.Offset)
			}
		}
		return offsets
	}
}

// failing passes a reader on and remembers its error, which those that parse would take for damage.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}
