package chain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/source/file"
)

// maxSniffed bounds how many wrappers are found inside each other by their bytes. Whoever needs more writes them.
const maxSniffed = 8

// Open opens what text names. What is written wrongly, or does not exist in this version, is a *UsageError and is found before anything is
// opened. Every other error is an *Error that names the source, here and in the methods of the device or the stream, and wraps what the layers
// return. ctx bounds the opening, and all reading of a Stream.
func Open(ctx context.Context, text string, o Options) (*Image, error) {
	img, err := openText(ctx, text, o)
	if errors.As(err, new(*UsageError)) && strings.Contains(text, betweenLayers) {
		if _, e := os.Lstat(text); e == nil {
			return nil, block.WithHint(err, fmt.Sprintf("a :: in a name is written \\::, the file of this name as '%s'", escape(text, betweenLayers)))
		}
	}
	return img, err
}

func openText(ctx context.Context, text string, o Options) (*Image, error) {
	spec, err := Parse(text)
	if err != nil {
		return nil, err
	}
	src, arg, err := findSource(spec.Source)
	if err != nil {
		return nil, err
	}
	return open(ctx, spec, src, arg, o, nil)
}

// OpenFile opens the file at path, whatever its name looks like, as Open opens a chain of nothing but a source. What Path returns may be the URI of an
// NBD export as well.
func OpenFile(ctx context.Context, path string, o Options) (*Image, error) {
	src, arg := placeOf(path)
	return open(ctx, Spec{Source: path}, src, arg, o, nil)
}

// open opens a parsed chain over a source. parents are the files that refer to it, the outermost first.
func open(ctx context.Context, spec Spec, src source, arg string, o Options, parents []os.FileInfo) (*Image, error) {
	steps, err := plan(spec, o)
	if err != nil {
		return nil, err
	}
	name := naming(sourceName(spec.Source))
	write := o.Write
	o.Write = write && !slices.ContainsFunc(steps, func(s step) bool { return s.layer.covers })
	in, err := src.open(ctx, arg, o)
	if err != nil {
		return nil, name.opening(err)
	}
	if st, err := os.Stat(o.IndexFile); err == nil && in.stat != nil && os.SameFile(st, in.stat) {
		return nil, errors.Join(usage("index file %s: it is the image", o.IndexFile), in.abandon())
	}
	op := &opening{ctx: ctx, o: o, img: &Image{Spec: spec, Path: in.path, stat: in.stat}, dev: in.dev, reader: in.reader, parents: parents, write: write}
	inFlight := 0
	if in.dev != nil {
		inFlight = in.dev.Info().InFlight
	}
	if in.close != nil {
		op.img.closers = append(op.img.closers, in.close)
	}
	if err = op.run(steps); err == nil && op.o.IndexFile != "" {
		err = usage("index file %s: nothing in %s is entered by an index", op.o.IndexFile, sourceName(spec.Source))
	}
	if err != nil {
		op.abandon()
		if o.Sequential && in.dev != nil && errors.Is(err, errOneWay) { // a layer further in needs any offset after all
			o.Sequential, o.Write = false, write
			return open(ctx, spec, src, arg, o, parents)
		}
		return nil, name.opening(err)
	}
	if op.dev != nil {
		op.img.Device = &named{Filter: block.Filter{Device: op.dev}, name: name, inFlight: inFlight}
	} else {
		op.img.Stream = &namedStream{op.stream, name}
	}
	return op.img, nil
}

// file returns the options for a local source.
func (o Options) file() file.Options {
	return file.Options{Write: o.Write, NoLock: o.NoLock, AllowBusy: o.AllowBusy}
}

// step is a written layer that is known: a format, or else a layer.
type step struct {
	written Layer
	driver  *formats.Driver
	values  map[string]string // for the driver
	layer   layer
	last    bool // nothing is sniffed behind it
}

// plan finds out what the layers of a chain are, and checks all that can be checked before the source is opened.
func plan(spec Spec, o Options) ([]step, error) {
	written := spec.Layers
	if o.Format != "" {
		if o.Registry.Lookup(o.Format) == nil {
			return nil, usage("unknown format %q: known are %s", o.Format, strings.Join(o.Registry.Names(), ", "))
		}
		written = append(slices.Clone(written), Layer{Name: o.Format})
	}
	var steps []step
	for _, l := range written {
		s, err := planLayer(l, o.Registry)
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
	}
	if o.Format != "" {
		steps[len(steps)-1].last = true
	}
	return steps, nil
}

// planLayer finds out what one written layer is.
func planLayer(l Layer, r formats.Registry) (step, error) {
	if d := r.Lookup(l.Name); d != nil {
		values, err := driverValues(d, l)
		if err != nil {
			return step{}, &UsageError{fmt.Errorf("layer %s: %w", l.Name, err)}
		}
		return step{written: l, driver: d, values: values}, nil
	}
	known := layers()
	i := slices.IndexFunc(known, func(k layer) bool { return strings.EqualFold(k.name, l.Name) })
	if i < 0 {
		names := r.Names()
		for _, k := range known {
			names = append(names, k.name)
		}
		return step{}, usage("unknown layer %q: known are %s", l.Name, strings.Join(names, ", "))
	}
	if err := known[i].check(l); err != nil {
		return step{}, err
	}
	if _, err := formats.ParseOptions(known[i].options, l.values()); err != nil {
		return step{}, &UsageError{fmt.Errorf("layer %s: %w", l.Name, err)}
	}
	return step{written: l, layer: known[i]}, nil
}

// driverValues returns the options of a layer that is a format. Its argument is the first option that the driver has.
func driverValues(d *formats.Driver, l Layer) (map[string]string, error) {
	values := l.values()
	if l.Arg != "" {
		known := formats.OptionsHelp(d.OpenOptions)
		if len(known) == 0 {
			return nil, fmt.Errorf("nothing can follow its =")
		}
		if _, twice := values[known[0].Name]; twice {
			return nil, fmt.Errorf("%s is given twice", known[0].Name)
		}
		values[known[0].Name] = l.Arg
	}
	_, err := formats.ParseOptions(d.OpenOptions, values)
	return values, err
}

// opening is a chain that is being opened. Exactly one of dev, stream and reader is set: what the next layer stands on.
type opening struct {
	ctx     context.Context
	o       Options
	img     *Image
	dev     block.Device
	stream  *replay
	reader  *bufio.Reader
	parents []os.FileInfo // of the images that refer to this one
	write   bool          // what is opened above the first layer that covers what lies below it

	// settled says that nothing may be sniffed any more: a disk format or a view of a disk has been reached.
	settled bool
	last    bool // all that is written has been opened
}

// run puts the written layers over the source, and what is found by sniffing.
func (op *opening) run(steps []step) error {
	for i, s := range steps {
		if s.driver != nil {
			op.settled = s.last || !s.driver.Transport
			if op.settled && op.o.below && i == len(steps)-1 {
				return op.stop(s.driver, s.values)
			}
			if err := op.format(s.driver, s.values, Given); err != nil {
				return err
			}
			continue
		}
		// A view of a disk needs a disk: what was written so far may still be wrapped up.
		if err := op.sniff(); err != nil {
			return err
		}
		if op.dev == nil {
			return oneWay("layer " + s.layer.name)
		}
		if err := op.layer(s); err != nil {
			return err
		}
	}
	op.last = true
	return op.sniff()
}

// layer puts a layer that is no format on top.
func (op *opening) layer(s step) error {
	if s.layer.covers {
		op.o.Write = op.write
	}
	if op.o.Write || !s.layer.covers {
		dev, err := s.layer.apply(op.ctx, op.dev, s.written)
		if err != nil {
			return err
		}
		op.dev = dev
	}
	op.img.Layers = append(op.img.Layers, LayerInfo{s.layer.name, Given})
	return nil
}

// sniff finds formats by their bytes until one is settled.
func (op *opening) sniff() error {
	for n := 0; !op.settled; n++ {
		if n == maxSniffed {
			return block.WithHint(fmt.Errorf("more than %d wrappers inside each other", maxSniffed),
				"name the layers (::gz::gz...), if this is what you want")
		}
		if err := op.sniffOne(); err != nil {
			return err
		}
	}
	return nil
}

// sniffOne finds one format by its bytes and puts it on top.
func (op *opening) sniffOne() error {
	head, err := op.head()
	if err != nil {
		return err
	}
	candidates := slices.Clone(op.o.Registry)
	for {
		d, _ := candidates.Probe(head)
		if err := head.Err(); err != nil {
			return err
		}
		if d == nil {
			return block.WithHint(block.ErrNotFormat, "no known format fits; name one with -f")
		}
		if op.dev == nil && d.Decode == nil {
			return oneWay("format " + d.Name)
		}
		found := *d
		if op.last && op.o.below && !found.Transport {
			op.settled = true
			return op.stop(&found, nil)
		}
		onDevice := op.dev != nil
		err := op.format(&found, nil, Sniffed)
		if onDevice && errors.Is(err, block.ErrNotFormat) { // a stream has moved on, a device has not
			candidates = slices.DeleteFunc(candidates, func(c formats.Driver) bool { return c.Name == found.Name })
			continue
		}
		op.settled = !found.Transport
		return err
	}
}

// head returns what probes may see of what the next layer stands on.
func (op *opening) head() (formats.Head, error) {
	switch {
	case op.dev != nil:
		return formats.NewHead(op.ctx, op.dev), nil
	case op.stream != nil:
		first, whole, err := op.stream.peek(op.ctx, formats.HeadSize)
		return formats.StreamHead(first, whole), err
	}
	first, err := op.reader.Peek(formats.HeadSize)
	if err != nil && err != io.EOF {
		return formats.Head{}, bare(err)
	}
	return formats.StreamHead(first, err == io.EOF), nil
}

// format puts a format on top. Where it cannot be read at any offset, it is read from front to back.
func (op *opening) format(d *formats.Driver, values map[string]string, how string) error {
	o := op.driverOptions(values)
	if d.Indexes && op.o.IndexFile != "" {
		o.IndexFile, op.o.IndexFile = indexFile{op.o.IndexFile}, "" // of the outermost layer that has one
	}
	if err := op.openOrDecode(d, o); err != nil {
		return err
	}
	op.img.format = d.Name
	op.img.Layers = append(op.img.Layers, LayerInfo{d.Name, how})
	return nil
}

// driverOptions returns what a driver of this chain gets.
func (op *opening) driverOptions(values map[string]string) formats.OpenOptions {
	return formats.OpenOptions{
		Name: op.img.Path, Values: maps.Clone(values), Write: op.o.Write, Sequential: op.o.Sequential, Glance: op.o.Glance,
		Lazy: op.o.Lazy, Refer: op.refer, Log: op.o.Log, Memory: op.o.Memory, Workers: op.o.Workers,
	}
}

func (op *opening) openOrDecode(d *formats.Driver, o formats.OpenOptions) error {
	if op.dev != nil && d.Open != nil {
		dev, err := d.Open(op.ctx, op.dev, o)
		if err == nil {
			op.dev = dev
			return nil
		}
		if !errors.Is(err, errors.ErrUnsupported) || d.Decode == nil || o.Write {
			return err
		}
	}
	switch {
	case d.Decode == nil && op.dev == nil:
		return oneWay("format " + d.Name)
	case d.Decode == nil:
		return block.ErrorOf(errors.ErrUnsupported, "format %s cannot be read", d.Name)
	case o.Write:
		return fmt.Errorf("format %s goes one way only: %w", d.Name, block.ErrReadOnly)
	case op.stream != nil && d.Name == raw.Name:
		return nil // the stream is it, and knows where its zeros are
	}
	var r io.Reader
	switch {
	case op.dev != nil:
		r = bufio.NewReaderSize(io.NewSectionReader(block.At(op.ctx, op.dev), 0, op.dev.Size()), 1<<20)
	case op.stream != nil:
		r = &streamReader{ctx: op.ctx, s: op.stream}
	default:
		r = op.reader
	}
	s, err := d.Decode(op.ctx, r, o)
	if err != nil {
		return err
	}
	if op.dev != nil {
		op.img.closers = append(op.img.closers, op.dev)
	} else if op.stream != nil {
		op.img.closers = append(op.img.closers, op.stream)
	}
	op.dev, op.reader, op.stream = nil, nil, &replay{Stream: s}
	return nil
}

// abandon closes what has been opened. The error that led here matters more than what closing says.
func (op *opening) abandon() {
	if op.dev != nil {
		_ = op.dev.Close()
	}
	if op.stream != nil {
		_ = op.stream.Close()
	}
	_ = op.img.Close()
}

// oneWay returns the error for what needs to read at any offset.
func oneWay(what string) error {
	return block.WithHint(fmt.Errorf("%s %w", what, errOneWay), oneWayHint)
}

const oneWayHint = "save it to a file first"

var errOneWay = errors.New("cannot be read from a pipe, or from another source that goes one way only")
