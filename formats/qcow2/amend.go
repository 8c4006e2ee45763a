package qcow2

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/formats/qcow2/plan"
)

var _ formats.Amender = (*Device)(nil)

// amendment is what can be changed of an image that exists.
type amendment struct {
	Compat        string `option:"compat" enum:"1.1|v3|0.10|v2"`
	RefcountBits  int    `option:"refcount_bits"`
	LazyRefcounts bool   `option:"lazy_refcounts"`
	DataFile      string `option:"data_file"`
	DataFileRaw   bool   `option:"data_file_raw"`
	Size          int64  `option:"size" help:"of the disk, which can only grow"`
}

// present returns what the image has.
func (d *Device) present() *amendment {
	return &amendment{
		Compat: compatOf(d.h), RefcountBits: 1 << d.h.RefcountOrder, LazyRefcounts: d.h.CompatibleFeatures&ondisk.CompatLazyRefcounts != 0,
		DataFile: d.h.DataFile(), DataFileRaw: d.rawData(), Size: d.Size(),
	}
}

// Amendable implements formats.Amender.
func (d *Device) Amendable() []formats.OptionDoc {
	if d.calls.Begin(context.Background()) != nil {
		return nil
	}
	defer d.calls.End()
	docs := formats.OptionsHelp(d.present())
	for _, created := range formats.OptionsHelp(plan.Defaults()) {
		for i := range docs {
			if docs[i].Name == created.Name {
				docs[i].Help = created.Help
			}
		}
	}
	return docs
}

// version returns the version of the format that is asked for.
func (a *amendment) version() uint32 {
	if a.Compat == "0.10" || a.Compat == "v2" {
		return 2
	}
	return 3
}

// order returns the refcount order that is asked for.
func (a *amendment) order() uint32 { return uint32(bits.TrailingZeros(uint(a.RefcountBits))) }

// Amend implements formats.Amender. Wherever the power fails, the image has some of the changes, and is whole.
//
// Version 2 has no zero clusters. Where a backing file shows through, they become data.
func (d *Device) Amend(ctx context.Context, values map[string]string) error {
	if !d.writable {
		return block.ErrReadOnly
	}
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	_, err := d.mayAmend(ctx, values)
	d.calls.End()
	if err != nil {
		return err
	}
	return d.alone(ctx, func(ctx context.Context) error {
		a, err := d.mayAmend(ctx, values)
		if err != nil {
			return err
		}
		return d.amend(ctx, a)
	})
}

// mayAmend returns the changes that are asked for, or why they are refused.
func (d *Device) mayAmend(ctx context.Context, values map[string]string) (*amendment, error) {
	created := formats.OptionsHelp(plan.Defaults())
	amended := formats.OptionsHelp(&amendment{})
	for _, key := range slices.Sorted(maps.Keys(values)) {
		named := func(o formats.OptionDoc) bool { return o.Name == key }
		switch {
		case key == "backing_file" || key == "backing_fmt":
			return nil, block.WithHint(fmt.Errorf("option %s cannot be amended", key), "`imgtool rebase` changes the backing file")
		case slices.ContainsFunc(created, named) && !slices.ContainsFunc(amended, named):
			return nil, fmt.Errorf("option %s is for new images only", key)
		}
	}
	if version, asked := values["compat"]; asked && (version == "0.10" || version == "v2") {
		if _, asked := values["lazy_refcounts"]; !asked { // what only speeds up writing goes with the version
			values = maps.Clone(values)
			values["lazy_refcounts"] = "off"
		}
	}
	a, err := formats.ParseOptions(d.present(), values)
	if err != nil {
		return nil, err
	}
	return a, d.mayBecome(ctx, a)
}

// mayBecome refuses what the image cannot be.
func (d *Device) mayBecome(ctx context.Context, a *amendment) error {
	old := d.present()
	newer := func(what string) error {
		return block.WithHint(fmt.Errorf("version 2 does not have %s", what), "say compat=1.1 as well")
	}
	switch n := a.RefcountBits; {
	case n < 1 || n > 1<<ondisk.MaxRefcountOrder || n&(n-1) != 0:
		return fmt.Errorf("refcount_bits is %d, and has to be a power of two from 1 to %d", n, 1<<ondisk.MaxRefcountOrder)
	case a.version() < 3 && n != 16:
		return newer("refcount_bits other than 16")
	case a.version() < 3 && a.LazyRefcounts:
		return newer("lazy_refcounts")
	case a.DataFileRaw && !old.DataFileRaw:
		return errors.New("data_file_raw can be set of new images only")
	case a.DataFile != old.DataFile && !d.h.HasDataFile():
		return errors.New("data_file can be changed only where the data is in another file already")
	case d.h.HasDataFile() && a.DataFile == "":
		return errors.New("the data is in another file, and data_file must say in which")
	case len(a.DataFile) > ondisk.MaxNameLen:
		return fmt.Errorf("the name of the data file has %d bytes, and at most %d are possible", len(a.DataFile), ondisk.MaxNameLen)
	case a.Size < old.Size:
		return block.WithHint(fmt.Errorf("size is %d, less than the %d bytes of the disk", a.Size, old.Size), "`imgtool resize --shrink` cuts a disk off")
	}
	if a.Size != old.Size {
		if err := d.mayResize(a.Size, formats.PreallocOff); err != nil {
			return err
		}
	}
	if a.version() < d.h.Version {
		if err := d.mayDowngrade(ctx, a.Size); err != nil {
			return err
		}
	}
	if a.order() >= d.h.RefcountOrder {
		return nil
	}
	_, err := d.countsToKeep(ctx, a.order())
	return err
}

// amend changes the image step by step; between any two it is whole.
func (d *Device) amend(ctx context.Context, a *amendment) error {
	if a.version() > d.h.Version {
		if err := d.upgrade(ctx); err != nil {
			return err
		}
	}
	if a.Size != d.Size() {
		if err := d.resize(ctx, a.Size, formats.PreallocOff); err != nil {
			return err
		}
	}
	if a.order() != d.h.RefcountOrder {
		if err := d.setRefcountOrder(ctx, a.order()); err != nil {
			return err
		}
	}
	if err := d.setOptions(ctx, a); err != nil {
		return err
	}
	if a.version() < d.h.Version {
		return d.downgrade(ctx)
	}
	return nil
}

// setOptions changes what lies in the header alone.
func (d *Device) setOptions(ctx context.Context, a *amendment) error {
	old := d.present()
	h := *d.h
	if a.LazyRefcounts != old.LazyRefcounts {
		h.CompatibleFeatures ^= ondisk.CompatLazyRefcounts
	}
	if a.DataFileRaw != old.DataFileRaw {
		h.AutoclearFeatures ^= ondisk.AutoclearDataFileRaw
	}
	if a.DataFile != old.DataFile {
		h.SetExtension(ondisk.ExtDataFile, []byte(a.DataFile))
	}
	if h.CompatibleFeatures == d.h.CompatibleFeatures && h.AutoclearFeatures == d.h.AutoclearFeatures && a.DataFile == old.DataFile {
		return nil
	}
	return d.setHeader(ctx, &h)
}

// upgrade makes version 3 of version 2.
func (d *Device) upgrade(ctx context.Context) error {
	if d.h.NbSnapshots > 0 { // which say how large the disk was
		list, err := d.readSnapshots(ctx)
		if err != nil {
			return err
		}
		if err := d.setSnapshots(ctx, list); err != nil {
			return err
		}
	}
	h := *d.h
	h.Version = 3
	h.SetExtension(ondisk.ExtFeatureNames, ondisk.EncodeFeatureNames(ondisk.KnownFeatureNames()))
	if _, err := h.Encode(); err != nil { // there is no room for the names
		h.SetExtension(ondisk.ExtFeatureNames, nil)
	}
	return d.setHeader(ctx, &h)
}
