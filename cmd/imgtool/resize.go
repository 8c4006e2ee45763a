package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/internal/sizes"
)

// resizing is one run of resize.
type resizing struct {
	*app
	from   reading
	alloc  string
	shrink bool
}

// What a resize can be refused for.
var (
	errNotSectors  = fmt.Errorf("the new size must be a multiple of %d", sectorSize)
	errNotPositive = errors.New("the new size must be positive, and below 8 EiB")
	errShorter     = errors.New("it would become shorter")
	errPreallocate = errors.New("preallocation is only for what an image grows by")
)

// resizeInfo is what was done, in JSON. Sizes are in bytes.
type resizeInfo struct {
	Filename    string `json:"filename"`
	Format      string `json:"format"`
	OldSize     int64  `json:"old-virtual-size"`
	VirtualSize int64  `json:"virtual-size"`
}

func newResize(a *app) *cobra.Command {
	v := &resizing{app: a}
	c := &cobra.Command{
		Use:   "resize [flags] IMAGE [+-]SIZE",
		Short: "Make the disk in an image longer or shorter",
		Long: `Make the disk in an image longer or shorter, in place. What is new reads as zero; partitions and file systems stay as they are, and a
file system has to be made smaller before the disk is.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt.`,
		Example: `  imgtool resize disk.qcow2 40G
  imgtool resize disk.qcow2 +10G
  imgtool resize --shrink -f raw disk.img -1G`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			sign, n, err := parseChange(args[1])
			if err != nil {
				return usageOf(c, err)
			}
			switch formats.Preallocation(v.alloc) {
			case formats.PreallocOff, formats.PreallocMetadata, formats.PreallocFalloc, formats.PreallocFull:
			default:
				return usageOf(c, fmt.Errorf("--preallocation=%s: say off, metadata, falloc or full", v.alloc))
			}
			return v.run(c.Context(), args[0], sign, n)
		},
	}
	v.from.formatFlag(c)
	c.Flags().StringVar(&v.alloc, "preallocation", string(formats.PreallocOff), "how new bytes are allocated: off, metadata, falloc or full")
	c.Flags().BoolVar(&v.shrink, "shrink", false, "make it shorter: what lies after the new end is lost")
	return c
}

// negativeLast returns arguments in which a SIZE with a minus stands behind --, so that it is not taken for a flag.
func negativeLast(args []string) []string {
	i := slices.IndexFunc(args, func(s string) bool { return s == "--" || len(s) > 1 && s[0] == '-' && '0' <= s[1] && s[1] <= '9' })
	if i < 0 || args[i] == "--" {
		return args
	}
	return slices.Concat(args[:i], args[i+1:], []string{"--", args[i]})
}

// parseChange reads a size that may have a sign: then it is a difference.
func parseChange(text string) (sign int64, n int64, err error) {
	number := strings.TrimLeft(text, "+-")
	if len(text)-len(number) > 1 {
		return 0, 0, fmt.Errorf("size %q: more than one sign", text)
	}
	switch {
	case strings.HasPrefix(text, "+"):
		sign = 1
	case strings.HasPrefix(text, "-"):
		sign = -1
	}
	n, err = sizes.ParseSize(number)
	return sign, n, err
}

func (v *resizing) run(ctx context.Context, image string, sign, n int64) error {
	var info resizeInfo
	v.from.lazy = true
	err := v.change(ctx, image, v.from, func(img *chain.Image) error {
		old := img.Device.Size()
		size, ok := n, true
		switch sign {
		case 1:
			size, ok = block.Add(old, n)
		case -1:
			size = old - n
		}
		if !ok || size <= 0 {
			return errNotPositive
		}
		info = resizeInfo{img.Name(), img.Format(), old, size}
		return v.resize(ctx, img, size)
	})
	switch {
	case err != nil:
		return err
	case v.json:
		return v.printJSON(info)
	case !v.quiet:
		v.printf("Image resized.")
	}
	return nil
}

func (v *resizing) resize(ctx context.Context, img *chain.Image, size int64) error {
	dev := img.Device
	alloc := formats.Preallocation(v.alloc)
	switch {
	case size < dev.Size() && alloc != formats.PreallocOff:
		return errPreallocate
	case size < dev.Size() && !v.shrink:
		return block.WithHint(fmt.Errorf("%w: %d bytes are fewer than the %d that it has", errShorter, size, dev.Size()), "--shrink makes it shorter: what lies after the new end is lost")
	case img.Format() != raw.Name && size%sectorSize != 0:
		return fmt.Errorf("%d bytes: %w", size, errNotSectors)
	case !dev.Info().Caps.Resize:
		return block.ErrorOf(errors.ErrUnsupported, "it cannot be resized")
	case alloc == formats.PreallocOff:
		return dev.Resize(ctx, size)
	}
	p, ok := block.As[formats.Preallocator](dev)
	if !ok {
		return block.ErrorOf(errors.ErrUnsupported, "--preallocation=%s: what format %s grows by cannot be preallocated", alloc, img.Format())
	}
	return p.ResizePreallocated(ctx, size, alloc)
}
