package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats/gz"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
)

// imageInfo is an image in JSON. The names are those of qemu-img info; layers and partitions are ours.
type imageInfo struct {
	Filename    string        `json:"filename"`
	Format      string        `json:"format"`
	VirtualSize *int64        `json:"virtual-size"`                    // null where only reading all of it would tell
	Probable    *int64        `json:"probable-virtual-size,omitempty"` // what the file suggests where virtual-size is null
	ActualSize  *int64        `json:"actual-size,omitempty"`           // what a local file occupies
	DirtyFlag   bool          `json:"dirty-flag"`
	Specific    *specificInfo `json:"format-specific,omitempty"`
	Layers      []layerInfo   `json:"layers"`
	Partitions  *partsInfo    `json:"partitions,omitempty"`
}

// layerInfo says what stands over the source, and how it came there: given or sniffed.
type layerInfo struct {
	Name string `json:"name"`
	How  string `json:"how"`
}

// specificInfo is what only one format has.
type specificInfo struct {
	Type string `json:"type"`
	Data gzInfo `json:"data"`
}

// gzInfo is what a gzip file with an index tells of itself. Sizes are in bytes.
type gzInfo struct {
	ChunkSize int64      `json:"chunk-size"`
	Kept      []gzRegion `json:"kept"` // the ranges of the image that can be changed in place
}

type gzRegion struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// partsInfo summarises a partition table.
type partsInfo struct {
	Scheme string `json:"scheme"`
	Count  int    `json:"count"`
}

func newInfo(a *app) *cobra.Command {
	from := reading{glance: true}
	c := &cobra.Command{
		Use:   "info [flags] IMAGE",
		Short: "Show what an image is",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := chain.Open(c.Context(), args[0], a.openOptions(from))
			if err != nil {
				return err
			}
			defer img.Close()
			info, err := a.describe(c.Context(), img)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			a.printInfo(info)
			return nil
		},
	}
	from.flags(c)
	return c
}

// describe gathers what there is to know about an image without reading all of it.
func (a *app) describe(ctx context.Context, img *chain.Image) (imageInfo, error) {
	info := imageInfo{Filename: img.Name(), Format: img.Format(), Layers: []layerInfo{}}
	for _, l := range img.Layers {
		info.Layers = append(info.Layers, layerInfo(l))
	}
	if img.Path != "" {
		if fi, err := os.Stat(img.Path); err == nil {
			n := occupied(fi)
			info.ActualSize = &n
		}
	}
	if img.Device == nil {
		if n, known := img.Stream.Size(); known {
			info.VirtualSize = &n
		}
		return info, nil
	}
	n := img.Device.Size()
	if img.Device.Info().Probable {
		info.Probable = &n
	} else {
		info.VirtualSize = &n
	}
	if d, ok := block.As[*gzipmod.Device](img.Device); ok {
		info.DirtyFlag = d.Dirty()
		info.Specific = &specificInfo{gz.Name, describeGzip(d.Layout())}
	}
	t, err := partition.Read(ctx, block.NoClose(img.Device))
	var corrupt *block.CorruptError
	switch {
	case err == nil:
		info.Partitions = &partsInfo{t.Scheme, len(t.Partitions)}
	case errors.As(err, &corrupt): // the disk's trouble, not the image's
		a.log().Warn(err.Error(), "image", img.Name())
	case !errors.Is(err, partition.ErrNone):
		return info, nameError(img, err)
	}
	return info, nil
}

func describeGzip(l *gzipmod.Layout) gzInfo {
	g := gzInfo{ChunkSize: l.ChunkSize, Kept: []gzRegion{}}
	for _, r := range l.Regions {
		if r.Kind == gzipmod.Kept {
			g.Kept = append(g.Kept, gzRegion{r.Off, r.Len})
		}
	}
	return g
}

// printInfo prints for people, in the order that qemu-img has.
func (a *app) printInfo(i imageInfo) {
	a.printf("image: %s", i.Filename)
	a.printf("file format: %s", i.Format)
	switch {
	case i.VirtualSize != nil:
		a.printf("virtual size: %s", sizes.FormatSize(*i.VirtualSize))
	case i.Probable != nil:
		a.printf("virtual size: ~ %s; to find out: imgtool info --index-file FILE %s", sizes.FormatSize(*i.Probable), i.Filename)
	default:
		a.printf("virtual size: known only after reading all of it")
	}
	if i.ActualSize != nil {
		a.printf("disk size: %s", sizes.FormatSize(*i.ActualSize))
	}
	for _, l := range i.Layers {
		a.printf("layer: %s (%s)", l.Name, l.How)
	}
	if i.DirtyFlag {
		a.printf("dirty: a change was interrupted")
	}
	if i.Partitions != nil {
		a.printf("partition table: %s with %d partitions", i.Partitions.Scheme, i.Partitions.Count)
	}
	if i.Specific == nil {
		return
	}
	a.printf("Format specific information:")
	a.printf("    chunk size: %s", sizes.FormatSize(i.Specific.Data.ChunkSize))
	for _, r := range i.Specific.Data.Kept {
		a.printf("    can be changed: %d bytes at %d", r.Length, r.Offset)
	}
}
