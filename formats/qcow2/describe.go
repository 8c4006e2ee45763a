package qcow2

import (
	"context"
	"math"
	"time"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

var (
	_ formats.Describer = (*Device)(nil)
	_ formats.Backed    = (*Device)(nil)
)

// Describe implements formats.Describer. The names of what only qcow2 has are qemu-img's, and so is their order. A snapshot table or a bitmap directory that
// cannot be read is told to the log, and is otherwise as if it were empty.
func (d *Device) Describe(ctx context.Context) (formats.Description, error) {
	if err := d.calls.Begin(ctx); err != nil {
		return formats.Description{}, err
	}
	defer d.calls.End()
	h := d.h
	desc := formats.Description{
		ClusterSize: d.clusterSize,
		Encrypted:   h.CryptMethod != ondisk.CryptNone,
		Dirty:       h.IncompatibleFeatures&ondisk.IncompatDirty != 0,
		Corrupt:     h.IncompatibleFeatures&ondisk.IncompatCorrupt != 0,
		Snapshots:   d.snapshotList(ctx),
		Specific:    d.specific(ctx),
	}
	if ref, ok := d.backingRef(); ok {
		desc.Backing = &ref
	}
	if h.HasDataFile() && h.DataFile() != "" {
		ref, _ := d.data.Ref()
		desc.Others = append(desc.Others, ref)
	}
	return desc, nil
}

// specific returns what only this format has.
func (d *Device) specific(ctx context.Context) formats.Fields {
	h := d.h
	var f formats.Fields
	add := func(name string, v any) { f = append(f, formats.Field{Name: name, Value: v}) }
	v3 := h.Version >= 3
	add("compat", compatOf(h))
	add("compression-type", compressionName(h.CompressionType))
	if v3 {
		add("lazy-refcounts", h.CompatibleFeatures&ondisk.CompatLazyRefcounts != 0)
	}
	if list := d.listBitmaps(ctx); len(list) > 0 {
		add("bitmaps", describeBitmaps(list))
	}
	add("refcount-bits", 1<<h.RefcountOrder)
	switch h.CryptMethod {
	case ondisk.CryptAES:
		add("encrypt", formats.Fields{{Name: "format", Value: "aes"}})
	case ondisk.CryptLUKS:
		add("encrypt", d.describeLUKS(ctx))
	}
	if h.HasDataFile() {
		if name := h.DataFile(); name != "" {
			add("data-file", name)
		}
		add("data-file-raw", d.rawData())
	}
	if v3 {
		add("corrupt", h.IncompatibleFeatures&ondisk.IncompatCorrupt != 0)
		add("extended-l2", h.ExtendedL2())
	}
	return f
}

// compatOf returns the name that qemu-img has for the version.
func compatOf(h *ondisk.Header) string {
	if h.Version < 3 {
		return compatV2
	}
	return compatV3
}

// The values of the option compat.
const (
	compatV2 = "0.10"
	compatV3 = "1.1"
)

func compressionName(t uint8) string {
	if t == ondisk.CompressionZstd {
		return "zstd"
	}
	return "zlib"
}

func describeBitmaps(list []formats.Bitmap) []formats.Fields {
	out := make([]formats.Fields, 0, len(list))
	for _, b := range list {
		flags := []string{}
		if b.InUse {
			flags = append(flags, "in-use")
		}
		if b.Enabled {
			flags = append(flags, "auto")
		}
		out = append(out, formats.Fields{{Name: "flags", Value: flags}, {Name: "name", Value: b.Name}, {Name: "granularity", Value: b.Granularity}})
	}
	return out
}

// snapshotList returns the snapshots of the image; none where they cannot be read.
func (d *Device) snapshotList(ctx context.Context) []formats.Snapshot {
	list, err := d.readSnapshots(ctx)
	if err != nil {
		d.o.Logger().Warn(err.Error(), "file", d.o.Name)
		return nil
	}
	out := make([]formats.Snapshot, len(list))
	for i, s := range list {
		out[i] = formats.Snapshot{
			ID: s.ID, Name: s.Name, Size: clamp(s.DiskSize), VMStateSize: clamp(s.VMStateSize),
			Date: time.Unix(int64(s.DateSec), int64(s.DateNsec)).UTC(), VMClock: time.Duration(clamp(s.VMClockNsec)), ICount: -1,
		}
		if s.Icount != ondisk.NoIcount {
			out[i].ICount = clamp(s.Icount)
		}
	}
	return out
}

func clamp(v uint64) int64 { return int64(min(v, math.MaxInt64)) }
