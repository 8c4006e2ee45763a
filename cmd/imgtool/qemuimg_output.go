package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// qemuImage is an image in JSON with the fields of qemu-img alone: those that are imgtool's are hidden.
type qemuImage struct {
	imageInfo
	Probable   *struct{} `json:"probable-virtual-size,omitempty"`
	Refused    *struct{} `json:"refused-references,omitempty"`
	Error      *struct{} `json:"error,omitempty"`
	Layers     *struct{} `json:"layers,omitempty"`
	Partitions *struct{} `json:"partitions,omitempty"`
}

// printQemuInfo prints images as qemu-img info does. It says nothing of an image that cannot be opened.
func (a *app) printQemuInfo(infos []imageInfo, whole bool, failed error) error {
	if failed != nil {
		return failed
	}
	var images []qemuImage
	for i, info := range infos {
		images = append(images, qemuImage{imageInfo: info})
		if !a.json {
			if i > 0 {
				a.printf("")
			}
			a.printQemuImage(info)
		}
	}
	switch {
	case a.json && whole:
		return a.printJSON(images)
	case a.json:
		return a.printJSON(images[0])
	}
	return nil
}

func (a *app) printQemuImage(i imageInfo) {
	a.printf("image: %s", printable(i.Filename))
	a.printf("file format: %s", i.Format)
	if i.VirtualSize != nil {
		a.printf("virtual size: %s (%d bytes)", shortSize(*i.VirtualSize), *i.VirtualSize)
	}
	if i.ActualSize != nil {
		a.printf("disk size: %s", shortSize(*i.ActualSize))
	}
	a.printState(i)
	if len(i.Snapshots) > 0 {
		a.printSnapshots(i.Snapshots)
	}
	if i.Specific != nil {
		a.printf("Format specific information:")
		a.printFields(i.Specific.Data, "    ")
	}
}

// printFormatting says what is about to be made, as qemu-img does: some options even where they are not given, and in an order of its own.
func (v *creation) printFormatting(size int64) {
	values := maps.Clone(v.values)
	if v.qemu.Size >= 0 {
		size = v.qemu.Size
	}
	values["size"] = fmt.Sprint(size)
	for _, o := range formats.OptionsHelp(v.driver.Options) {
		switch o.Name {
		case "cluster_size", "extended_l2", "compression_type", "lazy_refcounts", "refcount_bits":
			if _, given := values[o.Name]; !given {
				values[o.Name] = o.Default
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Formatting '%s', fmt=%s", v.qemu.Typed[v.qemu.Written[0]], v.driver.Name)
	order := []string{
		"encrypt.format", "encrypt.key-secret", "encryption", "cluster_size", "extended_l2", "preallocation", "compression_type", "size", "compat",
		backingFile, backingFormat, "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits",
	}
	if v.driver.Name == rawFormat {
		order = []string{"size", "preallocation"}
	}
	for _, name := range order {
		if value := values[name]; value != "" {
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	v.printf("%s", b.String())
}

// printQemuProblem tells of a problem that check has found.
func (a *app) printQemuProblem(p formats.Problem) {
	kind, at, fixed := "ERROR", "", ""
	if p.Kind == formats.Leak {
		kind = "Leaked"
	}
	if p.Off >= 0 {
		at = fmt.Sprintf(" at offset %#x", p.Off)
	}
	if p.Fixed {
		fixed = " (repaired)"
	}
	fmt.Fprintf(a.stderr, "%s %s%s: %s%s\n", kind, p.Part, at, p.Text, fixed)
}

// printQemuMeasure prints a measurement as qemu-img does: it speaks of bitmaps wherever there could be some.
func (v *measuring) printQemuMeasure(m formats.Measurement) error {
	if v.json {
		type measurement struct {
			Required       int64  `json:"required"`
			FullyAllocated int64  `json:"fully-allocated"`
			Bitmaps        *int64 `json:"bitmaps,omitempty"`
		}
		j := measurement{Required: m.Required, FullyAllocated: m.FullyAllocated}
		if v.withBitmaps {
			j.Bitmaps = &m.Bitmaps
		}
		return v.printJSON(j)
	}
	v.printf("required size: %d\nfully allocated size: %d", m.Required, m.FullyAllocated)
	if v.withBitmaps {
		v.printf("bitmaps size: %d", m.Bitmaps)
	}
	return nil
}

// keepsBitmaps reports whether an image can keep bitmaps, as qcow2 can from version 3 on.
func keepsBitmaps(ctx context.Context, dev block.Device) bool {
	_, keeper := block.As[formats.BitmapKeeper](dev)
	d, ok := block.As[formats.Describer](dev)
	if !keeper || !ok {
		return false
	}
	said, err := d.Describe(ctx)
	return err == nil && !slices.ContainsFunc(said.Specific, func(f formats.Field) bool { return f.Name == "compat" && f.Value == "0.10" })
}
