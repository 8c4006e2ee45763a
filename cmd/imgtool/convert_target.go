package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// rawFormat is the format that every image can be written in, to everything.
const rawFormat = raw.Name

// What progress calls the two passes over an image.
const (
	passConvert = "convert"
	passVerify  = "verify"
)

// copyOptions returns how devices are copied. zero says that the target reads as zero.
func (v *conversion) copyOptions(zero bool, progress report) convert.Options {
	o := convert.Options{
		Workers: v.workers, Request: int64(v.request), Memory: int64(v.memory) / 2, ZeroGranule: int64(v.granule), TargetIsZero: zero && v.backing == "",
		KeepBacking: v.backing != "", Progress: progress,
	}
	if len(v.values) == 0 { // sharing blocks would undo a preallocation
		o.Kernel = convert.Kernel{Reflink: file.Reflink, CopyRange: file.CopyRange}
	}
	return o
}

// copyTo copies a device or a stream.
func (v *conversion) copyTo(ctx context.Context, src *origin, dst block.Device, zero bool) (int64, error) {
	progress, end := v.showProgress(passConvert)
	defer end()
	if src.device != nil {
		st, err := convert.Copy(ctx, src.device, dst, v.copyOptions(zero, progress))
		return st.Size, err
	}
	st, err := convert.CopyStream(ctx, src.stream, dst, v.copyOptions(zero, progress))
	return st.Size, err
}

// maxCopies is how often a target in place is written where its server may have lost what it has been sent.
const maxCopies = 5

// copyInPlace copies into what exists, and makes that durable. Where a connection was lost, and with it perhaps writes, all is copied again.
func (v *conversion) copyInPlace(ctx context.Context, src *origin, dst block.Device) (int64, error) {
	zero := v.targetIsZero
	for copies := 1; ; copies++ {
		n, err := v.copyTo(ctx, src, dst, zero)
		if err == nil {
			err = dst.Flush(ctx)
		}
		if !errors.Is(err, nbd.ErrUnflushed) || src.device == nil || copies == maxCopies {
			return n, err
		}
		v.log().Warn("the copy is made again: "+message(err), "source", src.name())
		zero = false
	}
}

// intoExisting copies into an image that exists, and returns how many bytes.
func (v *conversion) intoExisting(ctx context.Context, src *origin, target string) (int64, error) {
	o := v.openOptions(reading{format: v.to})
	o.Write = true
	to, err := oneOfAnyOffset(chain.Open(ctx, target, o))
	if err != nil {
		return 0, err
	}
	if d := v.registry().Lookup(to.Format()); d != nil {
		v.driver = d
	}
	n, err := v.overwrite(ctx, src, to)
	if err = errors.Join(nameError(to, err), to.Close()); err != nil || !v.verify {
		return n, err
	}
	o.Write = false
	return n, v.compare(ctx, src, func() (*chain.Image, error) { return oneOfAnyOffset(chain.Open(ctx, target, o)) })
}

func (v *conversion) overwrite(ctx context.Context, src *origin, to *chain.Image) (int64, error) {
	ref, below, err := backingOf(ctx, to.Device)
	switch {
	case err != nil:
		return 0, err
	case below == nil && v.backing != "":
		return 0, usagef("-B %s: %s has no backing file", v.backing, to.Name())
	case below != nil && v.targetIsZero:
		return 0, usagef("--target-is-zero: %s has a backing file, %s", to.Name(), ref.Name)
	}
	fixed, err := block.NewWindow(to.Device, 0, to.Device.Size())
	if err != nil {
		return 0, err
	}
	n, err := v.copyInPlace(ctx, src, fixed)
	if err == nil && v.bitmaps {
		err = v.copyBitmaps(ctx, src, to.Device)
	}
	if err != nil {
		return 0, err
	}
	return n, to.Device.Flush(ctx)
}

// create makes a new image, and returns its size.
func (v *conversion) create(ctx context.Context, src *origin, target string) (int64, error) {
	modTime, err := sourceDateEpoch()
	if err != nil {
		return 0, err
	}
	t, err := chain.Create(ctx, target, chain.CreateOptions{Sync: v.sync, Stdout: v.stdout, NBD: v.from.nbd, Log: v.log()})
	if err != nil {
		return 0, err
	}
	defer t.Abort()
	if t.Writer != nil && (v.verify || v.bitmaps) {
		return 0, usagef("%s: it is a pipe, which --verify and --bitmaps would have to read", target)
	}
	if v.targetIsZero && !t.InPlace {
		return 0, usagef("--target-is-zero is about what exists: it needs -n, or a disk or an NBD export as the target")
	}
	o := formats.CreateOptions{
		Values: v.values, ModTime: modTime, Memory: int64(v.memory) / 2, Workers: v.workers, Compress: v.compress, OneWay: t.Writer != nil,
	}
	o.Size = v.imageSize(src)
	n, err := v.write(ctx, src, o, t, target)
	if err == nil {
		err = v.look(ctx, src, t, target)
	}
	if err != nil {
		return 0, err
	}
	if err := t.Commit(ctx); err != nil || t.Writer != nil || t.InPlace || !chain.IsFile(target) {
		return n, err
	}
	return n, clearMark(ctx, target)
}

// imageSize returns the size of the image, or -1 where nobody knows.
func (v *conversion) imageSize(src *origin) int64 {
	if src.device != nil {
		return src.device.Size()
	}
	n, known := src.stream.Size()
	if !known {
		n = -1
	}
	if whole, ok := block.RoundUp(max(n, 0), sectorSize); ok && n > 0 && v.inSectors() {
		return whole
	}
	return n
}

// write writes the image in the way that source, format and target allow.
func (v *conversion) write(ctx context.Context, src *origin, o formats.CreateOptions, t *chain.Target, target string) (int64, error) {
	d := v.driver
	fail := func(format string, args ...any) error { return nameFile(src.name(), fmt.Errorf(format, args...)) }
	p, err := v.plan(ctx, src, o)
	if err != nil {
		return 0, err
	}
	switch {
	case p != nil:
		return max(o.Size, 0), v.writePlan(ctx, src, p, t)
	case t.Writer != nil && d.Name == rawFormat:
		return v.writeRaw(ctx, src, t)
	case d.Create == nil && d.Plan != nil, o.Compress && !d.Transport:
		return 0, block.WithHint(fail("format %s is not written so from a source that goes one way only", d.Name), "save it to a file first")
	case d.Create == nil:
		return 0, usagef("format %s cannot be written", d.Name)
	case t.Writer != nil:
		return 0, block.WithHint(fail("format %s is not written to a pipe", d.Name), "name a file as the target")
	}
	if o.Size < 0 && d.Name == rawFormat { // it grows with the stream; a disk has the size it has
		o.Size = t.Device.Size()
	}
	if o.Size < 0 {
		return 0, block.WithHint(fail("nobody knows its size yet, which format %s needs first", d.Name), "give it with --size")
	}
	dst, err := d.Create(ctx, t, o)
	if err != nil {
		return 0, nameFile(target, err)
	}
	var n int64
	if t.InPlace {
		n, err = v.copyInPlace(ctx, src, dst)
		if errors.Is(err, convert.ErrTooSmall) {
			err = nameFile(target, err)
		}
	} else {
		n, err = v.copyTo(ctx, src, dst, true)
	}
	return n, errors.Join(err, dst.Close())
}

// plan returns the image as a plan, or nil where it has to be created and written to.
func (v *conversion) plan(ctx context.Context, src *origin, o formats.CreateOptions) (p *segment.Plan, err error) {
	d := v.driver
	holes := v.granule != 0 || o.Compress || o.OneWay || v.backing != "" || d.Create == nil // a plan leaves out the zeros that it finds
	switch {
	case src.device != nil && d.Plan != nil && holes:
		p, err = d.Plan(ctx, src.device, o)
	case src.stream != nil && d.PlanStream != nil:
		p, err = d.PlanStream(ctx, src.stream, o)
	}
	if errors.Is(err, errors.ErrUnsupported) && d.Create != nil && !o.Compress && !o.OneWay { // an image of several files
		return nil, nil
	}
	return p, err
}

func (v *conversion) writeRaw(ctx context.Context, src *origin, t *chain.Target) (int64, error) {
	progress, end := v.showProgress(passConvert)
	defer end()
	o := v.copyOptions(true, progress)
	if src.device != nil {
		st, err := convert.WriteTo(ctx, src.device, t.Writer, o)
		return st.Size, err
	}
	st, err := convert.WriteStreamTo(ctx, src.stream, t.Writer, o)
	return st.Size, err
}

func (v *conversion) writePlan(ctx context.Context, src *origin, p *segment.Plan, t *chain.Target) error {
	progress, end := v.showProgress(passConvert)
	defer end()
	o := segment.Options{Workers: v.planWorkers(src, t), Memory: int64(v.memory) / 2, Progress: progress}
	if t.Writer != nil {
		_, err := segment.Write(ctx, segment.ToWriter(t.Writer), p, o)
		return err
	}
	d, err := t.Create(ctx, "")
	if err != nil {
		return err
	}
	_, err = segment.Write(ctx, segment.ToDevice(d), p, o)
	return err
}

// maxPackers is how many segments are compressed at a time where they wait for something far away: each has tables of its own.
const maxPackers = 16

// planWorkers returns how many segments of a plan are made at a time; 0 for one per processor. More are where each waits for something far away.
func (v *conversion) planWorkers(src *origin, t *chain.Target) int {
	n := v.workers
	if n > 0 {
		return n
	}
	for _, d := range []block.Device{src.device, t.Device} {
		if d != nil {
			n = max(n, d.Info().InFlight)
		}
	}
	switch {
	case n == 0:
	case v.compress || v.driver.Transport:
		n = max(min(n, maxPackers), runtime.GOMAXPROCS(0))
	default:
		n = max(n, runtime.GOMAXPROCS(0))
	}
	return n
}

// look opens what has been written, before it has its name, to complete it and to compare it with the source.
func (v *conversion) look(ctx context.Context, src *origin, t *chain.Target, target string) error {
	o := v.openOptions(reading{format: v.driver.Name})
	gate := o.Gate
	o.Gate = func(ctx context.Context, ref formats.Ref) error {
		if ref.Name == v.backing && ref.From == target { // the user has named it
			return nil
		}
		return gate.Ask(ctx, ref)
	}
	if v.bitmaps {
		o.Write = true
		img, err := t.Reopen(ctx, o)
		if err != nil {
			return err
		}
		if err := errors.Join(v.copyBitmaps(ctx, src, img.Device), img.Close()); err != nil {
			return err
		}
		o.Write = false
	}
	if !v.verify {
		return nil
	}
	return v.compare(ctx, src, func() (*chain.Image, error) { return t.Reopen(ctx, o) })
}

// compare reads the target again, and returns an error where it is not what the source is.
func (v *conversion) compare(ctx context.Context, src *origin, open func() (*chain.Image, error)) error {
	img, err := open()
	if err != nil {
		return fmt.Errorf("the copy cannot be read again: %w", err)
	}
	defer img.Close()
	d := img.Device
	if size := src.device.Size(); d.Size() > size { // the rest is that of a disk, or of an image that existed
		if d, err = block.NewWindow(d, 0, size); err != nil {
			return err
		}
	}
	progress, end := v.showProgress(passVerify)
	defer end()
	r, err := convert.Compare(ctx, src.device, d, false, convert.Options{
		Workers: v.workers, Request: int64(v.request), Memory: int64(v.memory) / 2, Progress: progress,
	})
	if err == nil && r.Difference != convert.Same {
		err = nameError(img, fmt.Errorf("the copy differs from the source at byte %d", r.Off))
	}
	return err
}

// findBitmaps returns the bitmaps of the source that are to be copied.
func (v *conversion) findBitmaps(img *chain.Image) (list []formats.Bitmap, err error) {
	from, err := feature[formats.BitmapKeeper](img, "keeps no bitmaps")
	if err != nil {
		return nil, err
	}
	for _, b := range from.Bitmaps() {
		switch {
		case !b.InUse:
			list = append(list, b)
		case v.skipBroken:
			v.log().Warn("a bitmap that is not complete is left out", "image", img.Name(), "bitmap", b.Name)
		default:
			err := fmt.Errorf("bitmap %q is not complete: the program that wrote the image last has not ended properly", b.Name)
			return nil, block.WithHint(nameError(img, err), "--skip-broken-bitmaps leaves it out")
		}
	}
	return list, nil
}

// copyBitmaps gives the target the bitmaps of the source.
func (v *conversion) copyBitmaps(ctx context.Context, src *origin, dst block.Device) error {
	to, ok := block.As[formats.BitmapKeeper](dst)
	if !ok {
		return usagef("--bitmaps: the target keeps none")
	}
	for _, b := range src.bitmaps {
		err := to.AddBitmap(ctx, b.Name, b.Granularity, b.Enabled)
		if err == nil {
			err = to.MergeBitmap(ctx, b.Name, src.images[0].Device, b.Name)
		}
		if err != nil {
			return fmt.Errorf("bitmap %q: %w", b.Name, err)
		}
	}
	return nil
}
