package main

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

// measuring is one run of measure.
type measuring struct {
	*app
	from     reading
	snapshot string // of the source; "" for its present state
	to       string
	options  []string
	size     size

	withBitmaps bool // source and new image can keep bitmaps
}

func newMeasure(a *app) *cobra.Command {
	v := &measuring{app: a, size: -1}
	c := &cobra.Command{
		Use:   "measure [flags] {--size SIZE | SOURCE}",
		Short: "Say how long the file of a new image gets",
		Long: `Say how long the file of a new image gets: one that holds what SOURCE does, or with --size an empty one; and how long it gets once every
byte of it has been written.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the source is corrupt.`,
		Example: `  imgtool measure -O qcow2 --size 1T
  imgtool measure -O qcow2 -o cluster_size=2M --json disk.raw`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			return v.run(c, args)
		},
	}
	v.from.flags(c)
	f := c.Flags()
	f.StringVarP(&v.snapshot, "snapshot", "l", "", "measure the source as it was at a snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME")
	f.StringVarP(&v.to, "output-format", "O", raw.Name, "format of the new image")
	f.StringArrayVarP(&v.options, "options", "o", nil, "options of that format, k=v,...; help lists them")
	f.Var(&v.size, "size", "size of an empty image")
	f.Lookup("size").DefValue = ""
	return c
}

func (v *measuring) run(c *cobra.Command, args []string) error {
	driver, err := v.outputDriver("-O", v.to, "")
	if err != nil {
		return err
	}
	values, help, err := parseOptions(v.options)
	switch {
	case err != nil:
		return err
	case help:
		return v.printOptions(driver)
	}
	if len(args) > 1 || (len(args) == 1) == c.Flags().Changed("size") {
		return usageOf(c, errors.New("measure takes either --size or one source"))
	}
	if err := checkOptions(driver, values); err != nil {
		return err
	}
	if driver.Measure == nil {
		return block.ErrorOf(errors.ErrUnsupported, "how long an image of format %s gets is known only after writing it", driver.Name)
	}
	m, err := v.measure(c.Context(), driver, values, strings.Join(args, ""))
	if err != nil {
		return err
	}
	if v.qemu != nil {
		return v.printQemuMeasure(m)
	}
	if v.json {
		return v.printJSON(m)
	}
	v.printf("required size: %d", m.Required)
	v.printf("fully allocated size: %d", m.FullyAllocated)
	if m.Bitmaps > 0 {
		v.printf("bitmaps size: %d", m.Bitmaps)
	}
	return nil
}

func (v *measuring) measure(ctx context.Context, d *formats.Driver, values map[string]string, source string) (formats.Measurement, error) {
	o := formats.CreateOptions{Values: values, Memory: int64(v.memory) / 2}
	if source == "" {
		size, ok := block.RoundUp(int64(v.size), sectorSize)
		if !ok {
			return formats.Measurement{}, usagef("--size %d: too large, and %d bytes are the most", int64(v.size), math.MaxInt64/sectorSize*sectorSize)
		}
		o.Size = size
		return d.Measure(ctx, nil, o)
	}
	open := v.openOptions(v.from)
	img, err := chain.Open(ctx, source, open)
	if err == nil && v.snapshot != "" {
		img, err = atSnapshot(ctx, img, v.snapshot, open)
	}
	if img, err = oneOfAnyOffset(img, err); err != nil {
		return formats.Measurement{}, err
	}
	defer img.Close()
	o.Size = img.Device.Size()
	v.withBitmaps = keepsBitmaps(ctx, img.Device) && hasOption(d, "compat") && values["compat"] != "0.10"
	m, err := d.Measure(ctx, img.Device, o)
	return m, nameError(img, err)
}
