package chain

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// Below is an image of which the last format is known but not opened: what formats.Driver.Check needs, and what can be said of an image
// that its format refuses.
type Below struct {
	*Image // of what lies below; Format is the last format that has been opened, or ""

	Driver formats.Driver      // of the last format
	Open   formats.OpenOptions // what Open would have given to it
}

// Format returns the name of the last format, which is not open.
func (b *Below) Format() string { return b.Driver.Name }

// OpenBelow opens what text names up to its last format, written or found by its bytes: Device is the device that the format lies on. Errors are
// those of Open; a chain that ends in a layer that is no format, or one that goes one way only, is an error.
func OpenBelow(ctx context.Context, text string, o Options) (*Below, error) {
	o.below, o.Sequential = true, false
	img, err := Open(ctx, text, o)
	if err != nil {
		return nil, err
	}
	if img.below == nil {
		return nil, errors.Join(usage("%q: the last layer of the chain is not a format", text), img.Close())
	}
	return img.below, nil
}

// stop ends the opening below the format of d, which needs a device there.
func (op *opening) stop(d *formats.Driver, values map[string]string) error {
	switch {
	case op.dev == nil && d.Decode == nil:
		return oneWay("format " + d.Name)
	case op.dev == nil:
		return block.WithHint(fmt.Errorf("what format %s lies on goes one way only, and this needs any offset", d.Name), oneWayHint)
	}
	op.img.below = &Below{Image: op.img, Driver: *d, Open: op.driverOptions(values)}
	return nil
}
