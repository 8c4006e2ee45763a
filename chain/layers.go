package chain

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/partition"
)

// layer is a kind of layer that is not a format. On an error of apply the device below is still the caller's.
type layer struct {
	name    string
	doc     string
	options any // pointer to a struct of defaults, or nil; see formats.ParseOptions
	apply   func(ctx context.Context, dev block.Device, l Layer) (block.Device, error)
	check   func(l Layer) error // what can be said before anything is opened; options are checked already

	// covers says that changes stay in the layer: what lies below is opened for reading, and where nothing is going to be written the layer is not needed.
	covers bool
}

// windowOptions are the options of the layer window.
type windowOptions struct {
	Offset int64 `option:"offset" help:"where the window begins"`
	Size   int64 `option:"size" help:"its length; without it the window reaches to the end"`
}

// layers lists the kinds of layers that are not formats.
func layers() []layer {
	return []layer{
		{name: "part", doc: "part=SELECTOR   one partition: N, name=, label=, type=, guid=, range=OFF+LEN", check: checkPart, apply: openPart},
		{name: "window", doc: "window,offset=N,size=N   a range of bytes", options: &windowOptions{}, check: noArg, apply: openWindow},
		{name: "readonly", doc: "readonly   nothing can be written", check: noArg, apply: openReadOnly},
		{name: "cow", doc: "cow[,dir=FOLDER]   what is written is thrown away at the end", options: &cowOptions{}, check: noArg, apply: openCow, covers: true},
	}
}

// LayersHelp returns one line for every kind of layer that is not a format, for the help of commands.
func LayersHelp() []string {
	var lines []string
	for _, l := range layers() {
		lines = append(lines, l.doc)
	}
	return lines
}

func noArg(l Layer) error {
	if l.Arg != "" {
		return usage("layer %s takes nothing after its name but options: %q", l.Name, l.Arg)
	}
	return nil
}

func checkPart(l Layer) error {
	if l.Arg == "" {
		return usage("layer part needs to know which partition: part=2, part=name=root")
	}
	if _, err := partition.ParseSelector(l.Arg); err != nil {
		return &UsageError{fmt.Errorf("layer part: %w", err)}
	}
	return nil
}

func openPart(ctx context.Context, dev block.Device, l Layer) (block.Device, error) {
	sel, err := partition.ParseSelector(l.Arg)
	if err != nil {
		return nil, err
	}
	if sel.Kind == partition.ByRange {
		return block.NewWindow(dev, sel.Range.Off, sel.Range.Len)
	}
	t, err := partition.Read(ctx, dev)
	if err != nil {
		return nil, err
	}
	p, err := t.SelectOne(ctx, dev, sel)
	if err != nil {
		return nil, err
	}
	return t.Window(dev, p)
}

func openWindow(_ context.Context, dev block.Device, l Layer) (block.Device, error) {
	o, err := formats.ParseOptions(&windowOptions{}, l.values())
	if err != nil {
		return nil, err
	}
	if _, given := l.option("size"); !given {
		o.Size = max(0, dev.Size()-o.Offset)
	}
	w, err := block.NewWindow(dev, o.Offset, o.Size)
	var outside *block.RangeError
	if errors.As(err, &outside) {
		return nil, fmt.Errorf("window: %w", err)
	}
	return w, err
}

func openReadOnly(_ context.Context, dev block.Device, _ Layer) (block.Device, error) {
	return block.Protect(dev), nil
}
