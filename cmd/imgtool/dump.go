package main

import (
	"context"
	"io"
	"math"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
)

// dumping is one run of dump.
type dumping struct {
	*app
	from   reading
	offset size
	length size
	color  string
}

// dumpChunk is how much is read at a time, in bytes.
const dumpChunk = 256 << 10

func newDump(a *app) *cobra.Command {
	v := &dumping{app: a, from: reading{glance: true}, length: math.MaxInt64}
	c := &cobra.Command{
		Use:   "dump [flags] IMAGE",
		Short: "Show the bytes of an image in hexadecimal",
		Long: `Show the bytes of an image in hexadecimal: an offset, sixteen bytes, and what of them is ASCII. Lines that repeat the one before are shown as
one *, but for the last line of the image. Ranges that are known to be zero are not read, so that a large sparse image takes no time.

Without a terminal, or with --color=never, the output is what nbddump prints, but that a line with fewer than sixteen bytes is never a *. The image
can be a pipe.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt.`,
		Example: `  imgtool dump -n 512 disk.qcow2
  imgtool dump --offset 1M --length 64k disk.raw.gz::part=1
  imgtool dump nbd://server/export | less`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return v.run(c.Context(), args[0]) },
	}
	v.from.flags(c)
	c.Flags().VarP(&v.offset, "offset", "o", "where to begin")
	c.Flags().VarP(&v.length, "length", "n", "how many bytes to show at most")
	c.Flags().Lookup("length").DefValue = ""
	colorFlag(c, &v.color)
	return c
}

func (v *dumping) run(ctx context.Context, text string) error {
	p, err := v.painter(v.color)
	if err != nil {
		return err
	}
	img, err := chain.Open(ctx, text, v.openOptions(v.from))
	if err != nil {
		return err
	}
	defer img.Close()
	h := newHexdump(v.out, int64(v.offset), p.on)
	whole := false
	if img.Device != nil {
		whole, err = v.dumpDevice(ctx, img, h)
	} else {
		whole, err = v.dumpStream(ctx, img, h)
	}
	if e := h.end(whole && err == nil); e != nil {
		return &chain.Error{Name: standardOutput, Err: e}
	}
	return err
}

// dumpDevice shows what is asked for of a device, and reports whether that reaches its end.
func (v *dumping) dumpDevice(ctx context.Context, img *chain.Image, h *hexdump) (whole bool, err error) {
	d := img.Device
	off, size := int64(v.offset), d.Size()
	if off > size {
		return false, pastEnd(img, off, size)
	}
	end := off + min(int64(v.length), size-off)
	chunk := int64(dumpChunk)
	if most := d.Info().MaxBlock; most > 0 {
		chunk = min(chunk, most)
	}
	buf := make([]byte, chunk)
	for e, err := range block.Walk(ctx, d, block.Map{}, off, end) {
		if err != nil {
			return false, err
		}
		if e.Flags&block.ExtZero != 0 {
			h.zeros(e.Len)
		}
		for at := e.Off; at < e.End() && e.Flags&block.ExtZero == 0 && h.err == nil; {
			p := buf[:min(chunk, e.End()-at)]
			if err := d.Read(ctx, p, at); err != nil {
				return false, err
			}
			h.bytes(p)
			at += int64(len(p))
		}
		if h.err != nil {
			return false, nil // which end tells
		}
	}
	return end == size, nil
}

// dumpStream shows what is asked for of a pipe, and reports whether that reaches its end.
func (v *dumping) dumpStream(ctx context.Context, img *chain.Image, h *hexdump) (whole bool, err error) {
	skip, left, seen := int64(v.offset), int64(v.length), int64(0)
	for left > 0 && h.err == nil {
		run, err := img.Stream.Next(ctx)
		if err == io.EOF && skip > 0 {
			return false, pastEnd(img, int64(v.offset), seen)
		}
		if err != nil {
			if err == io.EOF {
				return true, nil
			}
			return false, err
		}
		seen += run.Len
		from := min(skip, run.Len)
		n := min(run.Len-from, left)
		skip, left = skip-from, left-n
		if run.Zero {
			h.zeros(n)
		} else {
			h.bytes(run.Data[from : from+n])
		}
	}
	return false, nil
}

// pastEnd refuses an offset.
func pastEnd(img *chain.Image, off, size int64) error {
	return usagef("%s: offset %d is past the end, which is at %d", img.Name(), off, size)
}
