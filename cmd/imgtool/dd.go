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
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/internal/sizes"
)

// blockwise is one run of dd.
type blockwise struct {
	*app
	from reading
	to   string // format of the target

	input, output string
	bs            int64 // bytes
	count         int64 // blocks; -1 for all
	skip          int64 // blocks
}

// ddInfo is what was done, in JSON.
type ddInfo struct {
	Source string `json:"source"`
	Target string `json:"target"`
	Format string `json:"format"`
	Copied int64  `json:"copied"` // bytes
}

func newDD(a *app) *cobra.Command {
	v := &blockwise{app: a, bs: 512, count: -1}
	c := &cobra.Command{
		Use:   "dd [flags] if=SOURCE of=TARGET [bs=SIZE] [count=N] [skip=N]",
		Short: "Copy a range of an image into a new one",
		Long: `Copy a range of an image into a new one, which is as long as what is copied: count blocks of bs bytes, after the first skip blocks. Without
count everything to the end is copied. A block has 512 bytes unless bs says otherwise.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the source is corrupt.`,
		Example: `  imgtool dd if=disk.qcow2 of=boot.raw bs=1M skip=1 count=512
  imgtool dd -f raw -O qcow2 if=disk.img of=disk.qcow2 bs=2M`,
		Args: func(c *cobra.Command, args []string) error {
			if err := v.parse(args); err != nil {
				return usageOf(c, err)
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return v.run(c.Context()) },
	}
	v.from.flags(c)
	c.Flags().StringVarP(&v.to, "output-format", "O", raw.Name, "format of the target")
	return c
}

// parse reads the operands.
func (v *blockwise) parse(args []string) error {
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "if":
			v.input = value
		case "of":
			v.output = value
		case "bs":
			if v.bs, err = sizes.ParseSize(value); err == nil && (v.bs < 1 || v.bs > math.MaxInt32) {
				err = fmt.Errorf("%d bytes: a block has from 1 to %d", v.bs, math.MaxInt32)
			}
		case "count":
			v.count, err = sizes.ParseSize(value)
		case "skip":
			v.skip, err = sizes.ParseSize(value)
		default:
			err = errors.New("there is no such operand; known are if, of, bs, count and skip")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	if v.input == "" || v.output == "" {
		return errors.New("both if= and of= are needed")
	}
	return nil
}

func (v *blockwise) run(ctx context.Context) error {
	driver, err := v.outputDriver("-O", v.to, "")
	if err != nil {
		return err
	}
	if driver.Create == nil {
		return usagef("-O %s: dd does not write this format", driver.Name)
	}
	img, err := v.openDevice(ctx, v.input, v.from)
	if err != nil {
		return err
	}
	defer img.Close()
	if chain.SameFile(img, v.output) {
		return usagef("%s: the target is the source", v.output)
	}
	off, n := v.window(img.Device.Size())
	if off < 0 {
		v.log().Warn(fmt.Sprintf("the image has %d bytes, which are fewer than are to be skipped: nothing is copied", img.Device.Size()), "image", img.Name())
		off = 0
	}
	src, err := block.NewWindow(img.Device, off, n)
	if err != nil {
		return err
	}
	if err := v.copy(ctx, src, driver); err != nil {
		return err
	}
	if v.json {
		return v.printJSON(ddInfo{img.Name(), v.output, driver.Name, n})
	}
	return nil
}

// window returns what is copied of an image of size bytes; off is negative where all of it is to be skipped, and more.
func (v *blockwise) window(size int64) (off, n int64) {
	off, ok := block.Mul(v.skip, v.bs)
	if !ok || off > size {
		return -1, 0
	}
	n = size - off
	if most, ok := block.Mul(v.count, v.bs); ok {
		n = min(n, most)
	}
	return off, n
}

func (v *blockwise) copy(ctx context.Context, src block.Device, d *formats.Driver) error {
	t, err := chain.Create(ctx, v.output, chain.CreateOptions{Stdout: v.stdout})
	if err != nil {
		return err
	}
	defer t.Abort()
	if t.Writer != nil {
		return usagef("dd does not write to a pipe; convert does, of %s::window,offset=N,size=N too", v.input)
	}
	modTime, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	o := formats.CreateOptions{Size: src.Size(), ModTime: modTime, Memory: int64(v.memory) / 2}
	if d.Name != raw.Name || v.qemu != nil {
		if o.Size, _ = block.RoundUp(o.Size, sectorSize); o.Size < src.Size() {
			return errors.New("the image is too large")
		}
	}
	dst, err := d.Create(ctx, t, o)
	if err != nil {
		return nameFile(v.output, err)
	}
	progress, end := v.showProgress("dd")
	_, err = convert.Copy(ctx, src, dst, convert.Options{
		Memory: int64(v.memory) / 2, ZeroGranule: convert.DefaultZeroGranule, TargetIsZero: !t.InPlace, Progress: progress,
	})
	end()
	if err := errors.Join(nameFile(v.output, err), dst.Close()); err != nil {
		return err
	}
	return t.Commit(ctx)
}
