package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
)

// rebasing is one run of rebase.
type rebasing struct {
	*app
	from          reading
	backing       string // "" for none
	backingFormat string
	unsafe        bool
}

// rebaseInfo is what was done, in JSON.
type rebaseInfo struct {
	Filename      string `json:"filename"`
	Backing       string `json:"backing-filename,omitempty"`
	BackingFormat string `json:"backing-filename-format,omitempty"`
	Copied        int64  `json:"copied"` // bytes that the image had to take in
}

func newRebase(a *app) *cobra.Command {
	v := &rebasing{app: a}
	c := &cobra.Command{
		Use:   "rebase [flags] -b BACKING IMAGE",
		Short: "Give an image another backing file",
		Long: `Give an image another backing file, without changing what it reads as: what the old backing file has there and the new one has not is
copied into the image. -b "" leaves it without a backing file. With -u only the name is changed: for a backing file that was moved or converted. A relative
name is looked up from the image's folder, and the image will keep it as it is written.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 an image is corrupt, 5 a backing file is refused.`,
		Example: `  imgtool rebase -b newbase.qcow2 -F qcow2 overlay.qcow2
  imgtool rebase -u -b /new/place/base.qcow2 -F qcow2 overlay.qcow2
  imgtool rebase -b "" overlay.qcow2`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case given(c, "backing") == 0:
				return usageOf(c, errors.New(`-b is missing: the new backing file, or "" for none`))
			case v.backing == "" && v.backingFormat != "":
				return usageOf(c, errors.New("-F is for a backing file, and there is to be none"))
			}
			return v.run(c.Context(), args[0])
		},
	}
	v.from.formatFlag(c)
	f := c.Flags()
	f.StringVarP(&v.backing, "backing", "b", "", `the new backing file; "" for none`)
	f.StringVarP(&v.backingFormat, "backing-format", "F", "", "format of the new backing file")
	f.BoolVarP(&v.unsafe, "unsafe", "u", false, "change the name alone, and open neither backing file")
	return c
}

func (v *rebasing) run(ctx context.Context, image string) error {
	v.from.lazy = v.unsafe
	var info rebaseInfo
	err := v.change(ctx, image, v.from, func(img *chain.Image) error {
		backed, err := feature[formats.Backed](img, "has no backing file")
		if err != nil {
			return err
		}
		ref := formats.Ref{Kind: formats.BackingFile, Name: v.backing, Format: v.backingFormat, From: img.Path}
		if err := v.checkName(ctx, img, ref); err != nil {
			return err
		}
		copied := int64(0)
		if !v.unsafe {
			if copied, err = v.keepContent(ctx, img, backed, ref); err != nil {
				return err
			}
		}
		info = rebaseInfo{img.Name(), v.backing, v.backingFormat, copied}
		return backed.SetBacking(ctx, v.backing, v.backingFormat)
	})
	if err == nil && v.json {
		return v.printJSON(info)
	}
	return err
}

// checkName refuses what cannot be a backing file, and warns of what will be refused later.
func (v *rebasing) checkName(ctx context.Context, img *chain.Image, ref formats.Ref) error {
	if ref.Name == "" {
		return nil
	}
	path, err := chain.Path(ref)
	switch {
	case err != nil:
		return err
	case chain.SameFile(img, path):
		return usagef("%s: the image would be its own backing file", img.Name())
	}
	return v.checkBackingFormat(ctx, ref)
}

// keepContent copies into the image what it would read otherwise over its new backing file, makes that durable, and returns how many bytes it was.
func (v *rebasing) keepContent(ctx context.Context, img *chain.Image, backed formats.Backed, ref formats.Ref) (int64, error) {
	old, err := backed.BackingDevice(ctx)
	if err != nil {
		return 0, err
	}
	var to block.Device
	if ref.Name != "" {
		path, err := chain.Path(ref)
		if err != nil {
			return 0, err
		}
		if err := v.refuseLoop(ctx, path, ref.Format, img.Path); err != nil {
			return 0, err
		}
		base, err := v.openFile(ctx, path, reading{format: ref.Format})
		if err != nil {
			return 0, err
		}
		defer base.Close()
		to = base.Device
	}
	progress, end := v.showProgress("rebase")
	st, err := convert.Rebase(ctx, img.Device, old, to, convert.Options{Memory: int64(v.memory) / 2, ZeroGranule: convert.DefaultZeroGranule, Progress: progress})
	end()
	if err != nil {
		return 0, err
	}
	return st.Written, img.Device.Flush(ctx)
}
