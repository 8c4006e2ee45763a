package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/gz"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/partition"
)

// imageInfo is an image in JSON. The names are those of qemu-img info, except for what stands after encrypted and is ours.
type imageInfo struct {
	VirtualSize   *int64         `json:"virtual-size"`                    // null where only reading all of it would tell
	Probable      *int64         `json:"probable-virtual-size,omitempty"` // then what the file suggests; ours
	Filename      string         `json:"filename"`
	ClusterSize   int64          `json:"cluster-size,omitempty"`
	Format        string         `json:"format"`
	ActualSize    *int64         `json:"actual-size,omitempty"` // what a local file occupies
	Specific      *specificInfo  `json:"format-specific,omitempty"`
	Backing       string         `json:"backing-filename,omitempty"` // as the image has it
	FullBacking   string         `json:"full-backing-filename,omitempty"`
	BackingFormat string         `json:"backing-filename-format,omitempty"`
	Snapshots     []snapshotInfo `json:"snapshots,omitempty"`
	DirtyFlag     bool           `json:"dirty-flag"`
	Encrypted     bool           `json:"encrypted,omitempty"`

	Refused    []refusal     `json:"refused-references,omitempty"`
	Error      string        `json:"error,omitempty"` // why the format does not open: then only the file is described
	Layers     []layerInfo   `json:"layers"`
	Partitions *partsSummary `json:"partitions,omitempty"`
}

// specificInfo is what only one format has.
type specificInfo struct {
	Type string         `json:"type"`
	Data formats.Fields `json:"data"`
}

// refusal is a reference that would not be followed.
type refusal struct {
	Kind   string `json:"kind"` // backing file, data file
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// layerInfo says what stands over the source, and how it came there: given or sniffed.
type layerInfo struct {
	Name string `json:"name"`
	How  string `json:"how"`
}

// partsSummary summarises a partition table.
type partsSummary struct {
	Scheme string `json:"scheme"`
	Count  int    `json:"count"`
}

// describe gathers what there is to know about an image without reading all of it.
func (a *app) describe(ctx context.Context, img *chain.Image) (imageInfo, error) {
	info := a.describeFile(img)
	if img.Device == nil {
		if n, known := img.Stream.Size(); known {
			info.VirtualSize = &n
		}
		return info, nil
	}
	err := a.describeDevice(ctx, img.Device, &info)
	return info, nameError(img, err)
}

// describeFile describes what is known of an image without its format's help.
func (a *app) describeFile(img *chain.Image) imageInfo {
	info := imageInfo{Filename: img.Name(), Format: img.Format(), Layers: []layerInfo{}}
	for _, l := range img.Layers {
		info.Layers = append(info.Layers, layerInfo(l))
	}
	if img.Path != "" {
		info.ActualSize = actualSize(img.Path)
	}
	return info
}

// actualSize returns what a file occupies, or nil where nobody says.
func actualSize(path string) *int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return nil
	}
	n := occupied(fi)
	return &n
}

// describeDevice adds to info what the device has to say. Trouble with the disk's content is no trouble of the image, and is logged.
func (a *app) describeDevice(ctx context.Context, dev block.Device, info *imageInfo) error {
	n := dev.Size()
	if dev.Info().Probable {
		info.Probable = &n
	} else {
		info.VirtualSize = &n
	}
	if d, ok := block.As[*gzipmod.Device](dev); ok {
		info.DirtyFlag = d.Dirty()
		info.Specific = &specificInfo{gz.Name, describeGzip(d.Layout())}
	}
	if d, ok := block.As[formats.Describer](dev); ok {
		said, err := d.Describe(ctx)
		if err != nil {
			return err
		}
		a.addDescription(ctx, dev.Info().Format, said, info)
	}
	if a.qemu != nil { // which says nothing of what the disk holds
		return nil
	}
	t, err := partition.Read(ctx, block.NoClose(dev))
	switch {
	case err == nil:
		info.Partitions = &partsSummary{t.Scheme, len(t.Partitions)}
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, partition.ErrNone), errors.Is(err, block.ErrKey), errors.Is(err, block.ErrDenied), errors.Is(err, fs.ErrNotExist):
	default:
		a.log().Warn(unnamed(info.Filename, err), "image", info.Filename)
	}
	return nil
}

// addDescription adds what a format has said of an image.
func (a *app) addDescription(ctx context.Context, format string, d formats.Description, info *imageInfo) {
	info.ClusterSize, info.DirtyFlag, info.Encrypted = d.ClusterSize, d.Dirty, d.Encrypted
	if len(d.Specific) > 0 {
		info.Specific = &specificInfo{format, d.Specific}
	}
	for _, s := range d.Snapshots {
		info.Snapshots = append(info.Snapshots, describeSnapshot(s))
	}
	refs := d.Others
	if d.Backing != nil {
		info.Backing, info.BackingFormat = d.Backing.Name, d.Backing.Format
		info.FullBacking = d.Backing.Name
		if path, err := chain.Path(*d.Backing); err == nil {
			info.FullBacking = path
		}
		refs = append([]formats.Ref{*d.Backing}, refs...)
	}
	for _, ref := range refs {
		if err := a.refuses(ctx, ref); err != nil {
			info.Refused = append(info.Refused, refusal{ref.Kind, ref.Name, err.Error()})
		}
	}
}

// refuses returns why a reference would not be followed, or nil: what does not exist is not refused.
func (a *app) refuses(ctx context.Context, ref formats.Ref) error {
	err := a.gate().Ask(ctx, ref)
	if err == nil {
		_, err = chain.Path(ref)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// describeGzip tells of a gzip file with an index. Sizes are in bytes; kept ranges of the image can be changed in place.
func describeGzip(l *gzipmod.Layout) formats.Fields {
	kept := []formats.Fields{}
	for _, r := range l.Regions {
		if r.Kind == gzipmod.Kept {
			kept = append(kept, formats.Fields{{Name: "offset", Value: r.Off}, {Name: "length", Value: r.Len}})
		}
	}
	return formats.Fields{{Name: "chunk-size", Value: l.ChunkSize}, {Name: "kept", Value: kept}}
}
