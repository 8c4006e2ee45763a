package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// prepareData opens the file in which the data lies, where that is not the image itself.
func (d *Device) prepareData(ctx context.Context) error {
	if !d.h.HasDataFile() {
		return nil
	}
	name := d.h.DataFile()
	if name == "" {
		return d.corrupt("header", -1, "the data is in another file, of which the name is missing")
	}
	return d.data.Set(ctx, formats.Ref{Kind: formats.DataFile, Name: name, Format: "raw", From: d.o.Name}, d.writable, d.o)
}

// dataFile returns the file in which the data lies.
func (d *Device) dataFile(ctx context.Context) (block.Device, error) {
	if !d.data.Named() {
		return d.file, nil
	}
	return d.data.Device(ctx)
}

// backingRef returns how the image names its backing file, and whether it does.
func (d *Device) backingRef() (formats.Ref, bool) {
	name := d.h.BackingFile
	return formats.Ref{Kind: formats.BackingFile, Name: name, Format: d.h.BackingFormat(), From: d.o.Name}, name != ""
}

func (d *Device) prepareBacking(ctx context.Context) error {
	ref, ok := d.backingRef()
	if !ok {
		return nil
	}
	return d.backing.Set(ctx, ref, false, d.o)
}

// Backing implements formats.Backed.
func (d *Device) Backing() (formats.Ref, bool) {
	if d.calls.Begin(context.Background()) != nil {
		return formats.Ref{}, false
	}
	defer d.calls.End()
	return d.backingRef()
}

// BackingDevice implements formats.Backed.
func (d *Device) BackingDevice(ctx context.Context) (block.Device, error) {
	if err := d.calls.Begin(ctx); err != nil {
		return nil, err
	}
	defer d.calls.End()
	return d.backing.Device(ctx)
}

// SetBacking implements formats.Backed.
func (d *Device) SetBacking(ctx context.Context, name, format string) error {
	return d.alone(ctx, func(ctx context.Context) error {
		switch {
		case len(name) > ondisk.MaxNameLen:
			return fmt.Errorf("the name of the backing file has %d bytes, and at most %d are possible", len(name), ondisk.MaxNameLen)
		case name != "" && d.rawData():
			return block.ErrorOf(errors.ErrUnsupported, "an image with a raw data file cannot have a backing file")
		}
		h := *d.h
		h.BackingFile = name
		var data []byte
		if name != "" && format != "" {
			data = []byte(format)
		}
		h.SetExtension(ondisk.ExtBackingFormat, data)
		return d.setHeader(ctx, &h)
	})
}
