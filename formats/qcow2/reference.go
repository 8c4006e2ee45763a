package qcow2

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// reference is another file that the image names.
type reference struct {
	ref   formats.Ref
	named bool // there is one
	write bool
	o     formats.OpenOptions

	dev     atomic.Pointer[block.Device]
	opening sync.Mutex
}

// open opens what the image refers to.
func (r *reference) open(ctx context.Context) (block.Device, error) {
	if dev := r.dev.Load(); dev != nil {
		return *dev, nil
	}
	r.opening.Lock()
	defer r.opening.Unlock()
	if dev := r.dev.Load(); dev != nil {
		return *dev, nil
	}
	dev, err := r.o.Refer.Open(ctx, r.ref, r.write)
	if err != nil {
		return nil, err
	}
	r.dev.Store(&dev)
	return dev, nil
}

// prepare says what is referred to, and opens it unless that has time.
func (r *reference) prepare(ctx context.Context, ref formats.Ref, write bool, o formats.OpenOptions) error {
	r.ref, r.named, r.write, r.o = ref, true, write, o
	if o.Lazy {
		return nil
	}
	_, err := r.open(ctx)
	return err
}

func (r *reference) close() error {
	if dev := r.dev.Swap(nil); dev != nil {
		return (*dev).Close()
	}
	return nil
}

// prepareData opens the file in which the data lies, where that is not the image itself.
func (d *Device) prepareData(ctx context.Context) error {
	if !d.h.HasDataFile() {
		return nil
	}
	name := d.h.DataFile()
	if name == "" {
		return d.corrupt("header", -1, "the data is in another file, of which the name is missing")
	}
	return d.data.prepare(ctx, formats.Ref{Kind: "data file", Name: name, Format: "raw", From: d.o.Name}, d.writable, d.o)
}

// dataFile returns the file in which the data lies.
func (d *Device) dataFile(ctx context.Context) (block.Device, error) {
	if !d.data.named {
		return d.file, nil
	}
	return d.data.open(ctx)
}

// backingRef returns how the image names its backing file, and whether it does.
func (d *Device) backingRef() (formats.Ref, bool) {
	name := d.h.BackingFile
	return formats.Ref{Kind: "backing file", Name: name, Format: d.h.BackingFormat(), From: d.o.Name}, name != ""
}

func (d *Device) prepareBacking(ctx context.Context) error {
	ref, ok := d.backingRef()
	if !ok {
		return nil
	}
	return d.backing.prepare(ctx, ref, false, d.o)
}

// Backing implements formats.Backed.
func (d *Device) Backing() (formats.Ref, bool) {
	if d.calls.begin(context.Background()) != nil {
		return formats.Ref{}, false
	}
	defer d.calls.end()
	return d.backingRef()
}

// BackingDevice implements formats.Backed.
func (d *Device) BackingDevice(ctx context.Context) (block.Device, error) {
	if err := d.calls.begin(ctx); err != nil {
		return nil, err
	}
	defer d.calls.end()
	return d.backingDevice(ctx)
}

// SetBacking implements formats.Backed.
func (d *Device) SetBacking(ctx context.Context, name, format string) error {
	return d.alone(ctx, func(ctx context.Context) error {
		switch {
		case len(name) > ondisk.MaxNameLen:
			return fmt.Errorf("the name of the backing file has %d bytes, and at most %d are possible", len(name), ondisk.MaxNameLen)
		case name != "" && d.rawData():
			return fmt.Errorf("an image with a raw data file cannot have a backing file: %w", errors.ErrUnsupported)
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

// backingDevice returns the backing image, or nil where there is none.
func (d *Device) backingDevice(ctx context.Context) (block.Device, error) {
	if !d.backing.named {
		return nil, nil
	}
	return d.backing.open(ctx)
}

// readBacking reads what the backing image shows; behind its end there are zeros.
func (d *Device) readBacking(ctx context.Context, p []byte, off int64) error {
	back, err := d.backingDevice(ctx)
	if err != nil {
		return err
	}
	var n int64
	if back != nil {
		n = max(0, min(int64(len(p)), back.Size()-off))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return back.Read(ctx, p[:n], off)
}
