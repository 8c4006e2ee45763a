package chain

import (
	"context"
	"errors"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// Reopen opens what has been written to the target so far as an image of the format o.Format, which must be set: before Commit, so that it
// can still be looked at, completed, or thrown away. What it refers to is looked for among the files of the target, and then as Open does. The
// image has to be closed before Commit or Abort.
func (t *Target) Reopen(ctx context.Context, o Options) (*Image, error) {
	dev := t.disk
	switch {
	case t.Device == nil:
		return nil, t.name.wrap(errors.New("what went into a pipe cannot be read again"))
	case len(t.files) > 0:
		dev = t.files[0].Device()
	case dev == nil:
		return nil, t.name.wrap(errors.New("what it has forgotten cannot be read again"))
	}
	o.pending, o.Sequential = t, false
	spec := Spec{Source: string(t.name)}
	steps, err := plan(spec, o)
	if err != nil {
		return nil, err
	}
	op := &opening{ctx: ctx, o: o, img: &Image{Spec: spec, Path: t.path}, dev: block.NoClose(dev)}
	if err = op.run(steps); err == nil && op.dev == nil {
		err = oneWay("format " + o.Format)
	}
	if err != nil {
		op.abandon()
		return nil, t.name.wrap(err)
	}
	op.img.Device = &named{Filter: block.Filter{Device: op.dev}, name: t.name, inFlight: dev.Info().InFlight}
	return op.img, nil
}

// file returns the device of a further file of the target, or nil. Close of it does nothing.
func (t *Target) file(name string) block.Device {
	if t == nil {
		return nil
	}
	i := slices.Index(t.names, name)
	if i < 0 {
		return nil
	}
	return t.device(t.files[i+1], naming(name))
}
