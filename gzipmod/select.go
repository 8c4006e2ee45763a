package gzipmod

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/partition"
)

// Select returns the ranges of src that the selectors mean, to be kept, and those of the partition table, which get chunks of their own so that
// looking at the table is cheap. It reads the table, and file system labels where a selector asks for one. A disk without a table is
// no error unless a selector needs one.
func Select(ctx context.Context, src block.Device, selectors []partition.Selector) (keep, apart []Range, err error) {
	table, err := partition.Read(ctx, src)
	damaged := errors.As(err, new(*block.CorruptError)) && len(selectors) == 0 // nobody asked
	if err != nil && !errors.Is(err, partition.ErrNone) && !damaged {
		return nil, nil, err
	}
	for _, s := range selectors {
		ranges, _, err := table.Select(ctx, src, s)
		if err != nil {
			return nil, nil, err
		}
		keep = append(keep, ranges...)
	}
	if table != nil {
		apart = table.Metadata
	}
	return keep, apart, nil
}
