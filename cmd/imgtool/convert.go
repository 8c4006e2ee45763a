package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// conversion is one run of convert.
type conversion struct {
	*app
	from     reading
	to       string // format; "" to find out
	values   []string
	granule  size
	workers  int
	inPlace  bool
	sync     bool
	size     size // of the image, where the source does not say; -1 for not given
	progress report
}

// convertInfo is what was done, in JSON. Sizes are in bytes.
type convertInfo struct {
	Source      string `json:"source"`
	Target      string `json:"target"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
}

func newConvert(a *app) *cobra.Command {
	v := &conversion{app: a, granule: convert.DefaultZeroGranule, size: -1}
	c := &cobra.Command{
		Use:   "convert [flags] SOURCE TARGET",
		Short: "Copy an image to another, in any format",
		Long: `Copy an image to another, in any format. Holes and zeros of the source become holes of the target.

A file is written under a temporary name and takes the place of TARGET when all is done; a disk is written in place, and so
is everything with -n. - is standard input and output.`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error { return v.run(c.Context(), args[0], args[1]) },
	}
	v.from.flags(c)
	f := c.Flags()
	f.StringVarP(&v.to, "output-format", "O", "", "format of the target; without it the name's ending tells, and else it is raw")
	f.StringArrayVarP(&v.values, "options", "o", nil, "options of the target's format, k=v,...; help lists them")
	f.VarP(&v.granule, "sparse", "S", "shortest run of zeros that becomes a hole; 0 allocates everything")
	f.IntVarP(&v.workers, "workers", "m", 0, "requests, or goroutines that compress, at a time; 0 for one per processor")
	f.BoolVarP(&v.inPlace, "no-create", "n", false, "write into the image that TARGET is, which must be large enough and keeps its size")
	f.BoolVar(&v.sync, "sync", false, "wait until a new file is on the disk")
	f.Var(&v.size, "size", "size of the image, for a source that does not say")
	f.Lookup("size").DefValue = ""
	f.BoolP("unordered", "W", false, "accepted, and without effect: writes are in no order anyway")
	return c
}

func (v *conversion) run(ctx context.Context, source, target string) error {
	driver, values, err := v.target(target)
	if err != nil {
		return err
	}
	if v.inPlace && len(values) > 0 {
		return usagef("-o is for new images, and -n writes into one that exists")
	}
	if len(v.values) == 1 && v.values[0] == "help" {
		return v.printOptions(driver)
	}
	open := v.openOptions(v.from)
	open.Sequential, open.Workers = true, v.workers
	img, err := chain.Open(ctx, source, open)
	if err != nil {
		return err
	}
	defer img.Close()
	if chain.SameFile(img, target) {
		return &usageError{err: fmt.Errorf("%s: the target is the source", target)}
	}
	if v.from.index != "" && sameName(v.from.index, target) {
		return usagef("%s: the target is the index file", target)
	}
	progress, end := v.showProgress()
	v.progress = progress
	var n int64
	if v.inPlace {
		n, err = v.intoExisting(ctx, img, target)
	} else {
		n, err = v.create(ctx, img, driver, values, target)
	}
	end()
	if err == nil && v.json && target != chain.Standard {
		return v.printJSON(convertInfo{img.Name(), target, driver.Name, n})
	}
	return err
}

// target returns the driver of the target and the options for it.
func (v *conversion) target(name string) (*formats.Driver, map[string]string, error) {
	registry := v.registry()
	driver := registry.ForFile(name)
	switch {
	case v.to != "":
		if driver = registry.Lookup(v.to); driver == nil {
			return nil, nil, usagef("-O %s: there is no such format; known are %s", v.to, strings.Join(registry.Names(), ", "))
		}
	case driver == nil:
		driver = registry.Lookup(raw.Name)
	}
	values := map[string]string{}
	for _, list := range v.values {
		if list == "help" {
			continue
		}
		for _, pair := range strings.Split(list, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok {
				return nil, nil, usagef("-o %s: say NAME=VALUE, or help", pair)
			}
			values[key] = value
		}
	}
	if driver.Options == nil && len(values) > 0 {
		return nil, nil, usagef("-o: format %s has no options", driver.Name)
	}
	if driver.Options != nil {
		if _, err := formats.ParseOptions(driver.Options, values); err != nil {
			return nil, nil, &usageError{err: fmt.Errorf("-o: %w", err)}
		}
	}
	return driver, values, nil
}

func (v *conversion) printOptions(d *formats.Driver) error {
	v.printf("Options of %s", d.Name)
	w := tabwriter.NewWriter(v.out, 0, 8, 2, ' ', 0)
	for _, o := range formats.OptionsHelp(d.Options) {
		fmt.Fprintf(w, "  %s=%s\t%s (%s)\n", o.Name, o.Kind, o.Help, o.Default)
	}
	return w.Flush()
}

// copyOptions returns how devices are copied. fresh says that the target is a new file.
func (v *conversion) copyOptions(fresh bool) convert.Options {
	return convert.Options{
		Workers: v.workers, Memory: int64(v.memory) / 2, ZeroGranule: int64(v.granule), TargetIsZero: fresh,
		Kernel: convert.Kernel{Reflink: file.Reflink, CopyRange: file.CopyRange}, Progress: v.progress,
	}
}

// intoExisting copies into an image that exists.
func (v *conversion) intoExisting(ctx context.Context, img *chain.Image, target string) (int64, error) {
	o := v.openOptions(reading{format: v.to})
	o.Write = true
	to, err := chain.Open(ctx, target, o)
	if err != nil {
		return 0, err
	}
	n, err := v.overwrite(ctx, img, to)
	return n, errors.Join(err, to.Close())
}

func (v *conversion) overwrite(ctx context.Context, img, to *chain.Image) (int64, error) {
	if to.Device == nil {
		return 0, &chain.Error{Name: to.Name(), Err: errOneWay}
	}
	fixed, err := block.NewWindow(to.Device, 0, to.Device.Size())
	if err != nil {
		return 0, err
	}
	st, err := v.copyTo(ctx, img, fixed, false)
	if err != nil {
		return 0, nameError(to, err)
	}
	return st.Size, to.Device.Flush(ctx)
}

// copyTo copies a device or a stream.
func (v *conversion) copyTo(ctx context.Context, img *chain.Image, dst block.Device, fresh bool) (convert.Stats, error) {
	if img.Device != nil {
		return convert.Copy(ctx, img.Device, dst, v.copyOptions(fresh))
	}
	return convert.CopyStream(ctx, img.Stream, dst, v.copyOptions(fresh))
}

// create makes a new image, and returns its size.
func (v *conversion) create(ctx context.Context, img *chain.Image, d *formats.Driver, values map[string]string, target string) (int64, error) {
	modTime, err := sourceDateEpoch()
	if err != nil {
		return 0, err
	}
	t, err := chain.Create(ctx, target, chain.CreateOptions{Sync: v.sync, Stdout: v.stdout})
	if err != nil {
		return 0, err
	}
	defer t.Abort()
	o := formats.CreateOptions{Values: values, ModTime: modTime, Memory: int64(v.memory) / 2, Workers: v.workers}
	o.Size = v.imageSize(img)
	n, err := v.write(ctx, img, d, o, t)
	if err != nil {
		return 0, err
	}
	if err := t.Commit(ctx); err != nil || t.Writer != nil || t.InPlace {
		return n, err
	}
	return n, clearMark(ctx, target)
}

// imageSize returns the size of the image, or -1 where nobody knows.
func (v *conversion) imageSize(img *chain.Image) int64 {
	if img.Device != nil {
		return img.Device.Size()
	}
	if n, known := img.Stream.Size(); known {
		return n
	}
	return int64(v.size)
}

// write writes the image in the way that source, format and target allow.
func (v *conversion) write(ctx context.Context, img *chain.Image, d *formats.Driver, o formats.CreateOptions, t *chain.Target) (int64, error) {
	fail := func(format string, args ...any) error { return nameError(img, fmt.Errorf(format, args...)) }
	switch {
	case img.Device != nil && d.Plan != nil:
		p, err := d.Plan(ctx, img.Device, o)
		if err != nil {
			return 0, err
		}
		return o.Size, v.writePlan(ctx, p, t)
	case img.Stream != nil && d.PlanStream != nil:
		p, err := d.PlanStream(ctx, img.Stream, o)
		if err != nil {
			return 0, err
		}
		return max(o.Size, 0), v.writePlan(ctx, p, t)
	case t.Writer != nil && d.Name == raw.Name:
		st, err := v.writeRaw(ctx, img, t)
		return st.Size, err
	case d.Create == nil && d.Plan != nil:
		return 0, block.WithHint(fail("format %s is not written from a source that goes one way only", d.Name), "save it to a file first")
	case d.Create == nil:
		return 0, usagef("format %s cannot be written", d.Name)
	case t.Writer != nil:
		return 0, block.WithHint(fail("format %s is not written to a pipe", d.Name), "name a file as the target")
	}
	if o.Size < 0 && d.Name == raw.Name { // it grows with the stream; a disk has the size it has
		o.Size = t.Device.Size()
	}
	if o.Size < 0 {
		return 0, block.WithHint(fail("nobody knows its size yet, which format %s needs first", d.Name), "give it with --size")
	}
	dst, err := d.Create(ctx, t, o)
	if err != nil {
		return 0, err
	}
	st, err := v.copyTo(ctx, img, dst, !t.InPlace)
	return st.Size, errors.Join(err, dst.Close())
}

func (v *conversion) writeRaw(ctx context.Context, img *chain.Image, t *chain.Target) (convert.Stats, error) {
	if img.Device != nil {
		return convert.WriteTo(ctx, img.Device, t.Writer, v.copyOptions(true))
	}
	return convert.WriteStreamTo(ctx, img.Stream, t.Writer, v.copyOptions(true))
}

func (v *conversion) writePlan(ctx context.Context, p *segment.Plan, t *chain.Target) error {
	o := segment.Options{Workers: v.workers, Memory: int64(v.memory) / 2, Progress: v.progress}
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

// sourceDateEpoch returns the time that an image records as its own: that of SOURCE_DATE_EPOCH, or none.
func sourceDateEpoch() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, usagef("SOURCE_DATE_EPOCH=%s: not a number of seconds", text)
	}
	return time.Unix(n, 0).UTC(), nil
}

// sameName reports whether two paths lead to one file, be it there or not.
func sameName(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errX == nil && errY == nil {
		return os.SameFile(x, y)
	}
	a, errX = filepath.Abs(a)
	b, errY = filepath.Abs(b)
	return errX == nil && errY == nil && a == b
}
