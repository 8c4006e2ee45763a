package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/segment"
)

// creation is one run of create.
type creation struct {
	*app
	format        string // "" to find out by the name
	backing       string // what the new image will have as its backing file; "" for none
	backingFormat string
	unchecked     bool // the backing file is not opened
	options       []string
	sync          bool

	driver *formats.Driver
	values map[string]string
}

// createInfo is what was made, in JSON. Sizes are in bytes.
type createInfo struct {
	Filename    string `json:"filename"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	Backing     string `json:"backing-filename,omitempty"`
}

// What the options of -o are called that -b and -F set, in every format that can have a backing file.
const (
	backingFile   = "backing_file"
	backingFormat = "backing_fmt"
)

// sectorSize is the unit of disks, in bytes: new ones are whole sectors long.
const sectorSize = 512

func newCreate(a *app) *cobra.Command {
	v := &creation{app: a}
	c := &cobra.Command{
		Use:   "create [flags] IMAGE [SIZE]",
		Short: "Make an empty image, or one over a backing file",
		Long: `Make an empty image. SIZE is rounded up to whole sectors of 512 bytes. With -b the new image shows another one through where it holds
nothing yet, and is as large unless SIZE says otherwise; a relative name is looked up from the new image's folder, and the image will keep it as it is
written. A file that exists is replaced when the new one is done.

Exit codes: 0 done, 1 failed, 2 the command line is wrong.`,
		Example: `  imgtool create disk.qcow2 40G
  imgtool create -f qcow2 -o preallocation=metadata,cluster_size=2M disk.img 40G
  imgtool create -b base.qcow2 -F qcow2 overlay.qcow2
  imgtool create -f qcow2 -o help disk.qcow2`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return v.run(c, args) },
	}
	f := c.Flags()
	f.StringVarP(&v.format, "format", "f", "", "format of the image; without it the name's ending tells, and else it is raw")
	f.StringArrayVarP(&v.options, "options", "o", nil, "options of the format, k=v,...; help lists them")
	f.StringVarP(&v.backing, "backing", "b", "", "backing file")
	f.StringVarP(&v.backingFormat, "backing-format", "F", "", "format of the backing file")
	f.BoolVarP(&v.unchecked, "unchecked", "u", false, "do not open the backing file: it need not exist yet, and SIZE has to be given")
	f.BoolVar(&v.sync, "sync", false, "wait until the new file is on the disk")
	return c
}

func (v *creation) run(c *cobra.Command, args []string) error {
	image := strings.Join(args[:min(1, len(args))], "")
	help, err := v.parse(image)
	switch {
	case err != nil:
		return err
	case help:
		return v.printOptions(v.driver)
	case len(args) < 1 || len(args) > 2:
		return usageOf(c, fmt.Errorf("create takes an image and perhaps a size, and %s came: %s", plural(len(args), "argument"), c.UseLine()))
	}
	size := int64(-1)
	if len(args) == 2 {
		if size, err = sizes.ParseSize(args[1]); err != nil {
			return usageOf(c, err)
		}
	}
	if size, err = v.checkBacking(c.Context(), image, size); err != nil {
		return err
	}
	if size < 0 {
		return usageOf(c, errors.New("the size is missing"))
	}
	rounded, ok := block.RoundUp(size, sectorSize)
	if !ok {
		return usageOf(c, fmt.Errorf("%s: %d bytes are too large, and %d are the most", image, size, math.MaxInt64/sectorSize*sectorSize))
	}
	size = rounded
	if v.qemu != nil && !v.quiet {
		v.printFormatting(size)
	}
	if err := v.create(c.Context(), image, size); err != nil {
		return err
	}
	if v.json {
		return v.printJSON(createInfo{image, v.driver.Name, size, v.backing})
	}
	if !v.quiet && v.qemu == nil {
		v.printf("Formatting '%s', fmt=%s size=%d%s", image, v.driver.Name, size, v.optionsText())
	}
	return nil
}

// parse finds out what the flags mean.
func (v *creation) parse(image string) (help bool, err error) {
	if v.driver, err = v.outputDriver("-f", v.format, image); err != nil {
		return false, err
	}
	if v.values, help, err = parseOptions(v.options); err != nil || help {
		return help, err
	}
	if v.backing == "" {
		v.backing = v.values[backingFile]
	}
	if v.backingFormat == "" {
		v.backingFormat = v.values[backingFormat]
	}
	if v.backing != "" {
		if !hasOption(v.driver, backingFile) {
			return false, usagef("format %s has no backing file; -f names another", v.driver.Name)
		}
		v.values[backingFile] = v.backing
	}
	if v.backingFormat != "" {
		if v.backing == "" {
			return false, usagef("-F %s: there is no backing file", v.backingFormat)
		}
		v.values[backingFormat] = v.backingFormat
	}
	return false, checkOptions(v.driver, v.values)
}

// checkBacking looks at the backing file, and returns the size of the new image: that of the backing file where size is negative.
func (v *creation) checkBacking(ctx context.Context, image string, size int64) (int64, error) {
	if v.backing == "" {
		return size, nil
	}
	ref := formats.Ref{Kind: formats.BackingFile, Name: v.backing, Format: v.backingFormat, From: image}
	path, err := chain.Path(ref)
	switch {
	case err != nil:
		return 0, err
	case sameName(path, image):
		return 0, usagef("%s: the new image would be its own backing file", image)
	}
	if err := v.checkBackingFormat(ctx, ref); err != nil || v.unchecked {
		return size, err
	}
	base, err := v.openFile(ctx, path, reading{format: v.backingFormat, share: true}) // for its size: whoever has it open may go on
	if err != nil {
		return 0, err
	}
	defer base.Close()
	if err := v.refuseMember(ctx, base, image); err != nil {
		return 0, err
	}
	if size < 0 {
		size = base.Device.Size()
	}
	return size, nil
}

func (v *creation) create(ctx context.Context, image string, size int64) error {
	modTime, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	t, err := chain.Create(ctx, image, chain.CreateOptions{Sync: v.sync, Stdout: v.stdout})
	if err != nil {
		return err
	}
	defer t.Abort()
	o := formats.CreateOptions{Size: size, Values: v.values, ModTime: modTime, Memory: int64(v.memory) / 2}
	if err := v.fill(ctx, t, o); err != nil {
		return nameFile(image, err)
	}
	return t.Commit(ctx)
}

// fill makes the image in its target.
func (v *creation) fill(ctx context.Context, t *chain.Target, o formats.CreateOptions) error {
	switch {
	case t.Writer != nil:
		return usagef("an empty image is not written to a pipe: name a file")
	case v.driver.Create != nil:
		d, err := v.driver.Create(ctx, t, o)
		if err != nil {
			return err
		}
		return d.Close()
	case v.driver.Plan == nil:
		return usagef("format %s cannot be written", v.driver.Name)
	}
	p, err := v.driver.Plan(ctx, block.NewNull(o.Size), o)
	if err != nil {
		return err
	}
	d, err := t.Create(ctx, "")
	if err != nil {
		return err
	}
	_, err = segment.Write(ctx, segment.ToDevice(d), p, segment.Options{Memory: o.Memory})
	return err
}

// optionsText returns the options as they are in force, each with a space before it.
func (v *creation) optionsText() string {
	var b strings.Builder
	for _, o := range formats.OptionsHelp(v.driver.Options) {
		value, set := v.values[o.Name]
		if !set {
			value = o.Default
		}
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", o.Name, value)
		}
	}
	return b.String()
}
