package qcow2

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

var _ formats.Emptier = (*Device)(nil)

// Empty implements formats.Emptier. Wherever the power fails, every cluster either still holds what it did or shows the backing image.
func (d *Device) Empty(ctx context.Context) error {
	return d.alone(ctx, func(ctx context.Context) error {
		if d.rawData() {
			return block.ErrorOf(errors.ErrUnsupported, "an image with a raw data file cannot be emptied")
		}
		all := func(context.Context, int64) (bool, error) { return true, nil }
		err := d.eachSlice(ctx, 0, d.ceil(d.Size()), all, func(s *slice, off, end int64) error {
			for ; off < end; off += d.clusterSize {
				if err := d.dropCluster(ctx, s, off); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := d.flush(ctx); err != nil { // what no table in the file points to can go
			return err
		}
		d.dropTables(0)
		return nil
	})
}
