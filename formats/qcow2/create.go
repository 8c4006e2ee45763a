package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/plan"
	"github.com/imgtool/imgtool/segment"
)

// options returns what the user says of a new image.
func options(o formats.CreateOptions) (plan.Options, error) {
	opts, err := formats.ParseOptions(plan.Defaults(), o.Values)
	if err != nil {
		return plan.Options{}, err
	}
	return *opts, nil
}

func planImage(ctx context.Context, src block.Device, o formats.CreateOptions) (*segment.Plan, error) {
	opts, err := options(o)
	if err != nil {
		return nil, err
	}
	return plan.New(ctx, src, o, opts)
}

func planStream(ctx context.Context, src block.Stream, o formats.CreateOptions) (*segment.Plan, error) {
	opts, err := options(o)
	if err != nil {
		return nil, err
	}
	return plan.NewStream(ctx, src, o, opts)
}

func measure(ctx context.Context, src block.Device, o formats.CreateOptions) (formats.Measurement, error) {
	opts, err := options(o)
	if err != nil {
		return formats.Measurement{}, err
	}
	return plan.Measure(ctx, src, o, opts)
}

// createImage makes an image without data, and its data file where it has one, and opens it for writing. Its backing file is not opened before it is
// needed, and then refused: an image whose new clusters show it in part is to be opened again, by who may follow references.
func createImage(ctx context.Context, s formats.Store, o formats.CreateOptions) (block.Device, error) {
	opts, err := options(o)
	if err != nil {
		return nil, err
	}
	if o.Compress {
		return nil, block.ErrorOf(errors.ErrUnsupported, "an image that is written at any place is not compressed")
	}
	p, err := plan.Empty(ctx, o, opts)
	if err != nil {
		return nil, err
	}
	file, err := s.Create(ctx, "")
	if err != nil {
		return nil, err
	}
	if _, err := segment.Write(ctx, segment.ToDevice(file), p, segment.Options{Workers: o.Workers, Memory: o.Memory}); err != nil {
		return nil, err
	}
	open := formats.OpenOptions{Name: s.Name(), Write: true, Lazy: true, Memory: o.Memory, Workers: o.Workers}
	if opts.DataFile != "" {
		data, err := createDataFile(ctx, s, o.Size, opts)
		if err != nil {
			return nil, err
		}
		open.Refer = func(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
			if ref.Name == opts.DataFile && ref.Kind == formats.DataFile {
				return block.NoClose(data), nil
			}
			return formats.Opener(nil).Open(ctx, ref, write)
		}
	}
	return openCreated(ctx, file, open)
}

// createDataFile makes the file that holds the data of an image of the given size, which is the file's too.
func createDataFile(ctx context.Context, s formats.Store, size int64, opts plan.Options) (block.Device, error) {
	data, err := s.Create(ctx, opts.DataFile)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", formats.DataFile, opts.DataFile, err)
	}
	if err = data.Resize(ctx, size); err == nil {
		switch formats.Preallocation(opts.Preallocation) {
		case formats.PreallocFalloc:
			err = data.Zero(ctx, 0, size, block.NoHole)
		case formats.PreallocFull:
			err = block.WriteZeros(ctx, data, 0, size, 0)
		}
	}
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return data, nil
}
