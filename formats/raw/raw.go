// Package raw is the format of an image that is nothing but its bytes: the byte at offset x of the disk is the byte at offset x of the
// file, and the file is as long as the disk. There is nothing to recognise it by, so it is what is left when no other format is found.
package raw

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// Name is the name of the driver.
const Name = "raw"

// Driver returns the driver. Its options are those of Create.
func Driver() formats.Driver {
	return formats.Driver{
		Name:       Name,
		Doc:        "the bytes of the disk and nothing else",
		Extensions: []string{".raw", ".img", ".dd"},
		Probe:      func(formats.Head) formats.Score { return formats.Fallback },
		Open:       open,
		Decode:     decode,
		Create:     create,
		Measure:    measure,
		Options:    &options{Preallocation: string(formats.PreallocOff)},
	}
}

// device is a block device of which only the name of the format is changed.
type device struct{ block.Filter }

var _ formats.Preallocator = (*device)(nil)

func (d *device) Info() block.Info {
	i := d.Filter.Info()
	i.Format = Name
	return i
}

func open(_ context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
	if err := refuseOptions(o.Values); err != nil {
		return nil, err
	}
	if o.Write && !dev.Info().Caps.Write {
		return nil, block.ErrReadOnly
	}
	return &device{block.Filter{Device: dev}}, nil
}

func create(ctx context.Context, s formats.Store, o formats.CreateOptions) (block.Device, error) {
	opt, err := formats.ParseOptions(Driver().Options.(*options), o.Values)
	if err != nil {
		return nil, err
	}
	if o.Size < 0 {
		return nil, errors.New("the size of the image is not known, and raw needs it before the first byte")
	}
	dev, err := s.Create(ctx, "")
	if err != nil {
		return nil, err
	}
	if !dev.Info().Caps.Resize {
		return onDisk(dev, o.Size, opt.preallocation())
	}
	d := &device{block.Filter{Device: dev}}
	return d, d.ResizePreallocated(ctx, o.Size, opt.preallocation())
}

// onDisk returns the first size bytes of what has a size of its own.
func onDisk(dev block.Device, size int64, p formats.Preallocation) (block.Device, error) {
	if dev.Size() < size {
		return nil, fmt.Errorf("the target has %d bytes, the image %d", dev.Size(), size)
	}
	if p != formats.PreallocOff {
		return nil, block.ErrorOf(errors.ErrUnsupported, "preallocation=%s: only files are preallocated", p)
	}
	w, err := block.NewWindow(dev, 0, size)
	if err != nil {
		return nil, err
	}
	return &device{block.Filter{Device: w}}, nil
}

// measure returns the size of the disk: holes of the file are not told apart.
func measure(_ context.Context, src block.Device, o formats.CreateOptions) (formats.Measurement, error) {
	_, err := formats.ParseOptions(Driver().Options.(*options), o.Values)
	size := o.Size
	if src != nil {
		size = src.Size()
	}
	return formats.Measurement{Required: size, FullyAllocated: size}, err
}

func refuseOptions(values map[string]string) error {
	_, err := formats.ParseOptions[any](nil, values)
	return err
}

// runSize is how much a stream reads at a time, in bytes: the unit in which it finds zeros. It suits a pipe, which holds as much.
const runSize = 64 << 10

func decode(_ context.Context, r io.Reader, o formats.OpenOptions) (block.Stream, error) {
	if err := refuseOptions(o.Values); err != nil {
		return nil, err
	}
	return &stream{r: r, buf: make([]byte, runSize)}, nil
}

// stream is a raw image that is read from a pipe. Blocks of zeros become zero runs, because a pipe cannot say where its holes are.
type stream struct {
	r   io.Reader
	buf []byte
	err error // what every further Next returns
}

// Size is not known: a pipe does not say.
func (s *stream) Size() (int64, bool) { return 0, false }

func (s *stream) Next(ctx context.Context) (block.Run, error) {
	if s.err != nil {
		return block.Run{}, s.err
	}
	if err := ctx.Err(); err != nil {
		return block.Run{}, err
	}
	n := 0
	for n < len(s.buf) && s.err == nil { // not io.ReadFull, which cannot tell the end from a reader's own io.ErrUnexpectedEOF
		var k int
		k, s.err = s.r.Read(s.buf[n:])
		n += k
	}
	switch {
	case n == 0:
		return block.Run{}, s.err
	case block.IsZero(s.buf[:n]):
		return block.Run{Len: int64(n), Zero: true}, nil
	}
	return block.Run{Len: int64(n), Data: s.buf[:n]}, nil
}

// Close implements block.Stream.
func (s *stream) Close() error { return nil }
