package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
)

func newModPlan(a *app) *cobra.Command {
	var keep []string
	cmd := &cobra.Command{
		Use:   "plan [--keep SELECTOR]... SOURCE",
		Short: "Show what a modifiable image would keep, compress and skip",
		Long: `Show how an image would be laid out, without making it. No data is read but the partition table.

` + selectorHelp,
		Example: "  imgtool mod plan --keep name=boot --keep gpt disk.raw",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, l, _, err := a.planMod(cmd.Context(), args[0], keep)
			if err != nil {
				return err
			}
			defer img.Close()
			if a.json {
				return a.printJSON(newLayoutJSON("", l))
			}
			a.sayLayout(l)
			a.sayKept(l)
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&keep, "keep", "k", nil, "a selector of what stays modifiable; may be given several times")
	return cmd
}

// planMod opens a source and plans a modifiable image of it. The caller closes the source.
func (a *app) planMod(ctx context.Context, source string, keep []string) (*chain.Image, *gzipmod.Layout, gzipmod.Options, error) {
	var o gzipmod.Options
	selectors, err := parseSelectors(keep)
	if err != nil {
		return nil, nil, o, err
	}
	img, err := a.openDevice(ctx, source, reading{})
	if err != nil {
		return nil, nil, o, err
	}
	l, err := planDevice(ctx, img, selectors, &o)
	if err != nil {
		img.Close()
		return nil, nil, o, err
	}
	return img, l, o, nil
}

// planDevice plans a modifiable image of what img holds, and fills in o.
func planDevice(ctx context.Context, img *chain.Image, selectors []partition.Selector, o *gzipmod.Options) (*gzipmod.Layout, error) {
	keep, apart, err := gzipmod.Select(ctx, img.Device, selectors)
	if err != nil {
		return nil, nameError(img, err)
	}
	o.Keep, o.Apart = keep, apart
	l, err := gzipmod.NewLayout(ctx, img.Device, *o)
	return l, nameError(img, err)
}

// sayKept lists the kept ranges.
func (a *app) sayKept(l *gzipmod.Layout) {
	for _, r := range l.Regions {
		if r.Kind == gzipmod.Kept {
			a.printf("  kept from byte %d, %s", r.Off, sizes.FormatSize(r.Len))
		}
	}
}
