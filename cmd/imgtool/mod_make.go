package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/segment"
)

func newModMake(a *app) *cobra.Command {
	var keep []string
	var level, workers int
	var sync bool
	cmd := &cobra.Command{
		Use:   "make [--keep SELECTOR]... SOURCE TARGET.gz",
		Short: "Make a modifiable gzipped image",
		Long: `Compress an image into an ordinary .gz file of which the kept ranges can be changed later. TARGET - is standard output; what was
written to a pipe needs "imgtool mod index" before it can be changed.

` + selectorHelp,
		Example: "  imgtool mod make --keep name=boot --keep gpt disk.raw disk.raw.gz",
		Args:    exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if level < 1 || level > 9 {
				return usagef("--level %d is not in 1 to 9", level)
			}
			img, l, o, err := a.planMod(ctx, args[0], keep)
			if err != nil {
				return err
			}
			defer img.Close()
			if chain.SameFile(img, args[1]) {
				return usagef("%s: the target is the source", args[1])
			}
			if o.ModTime, err = sourceDateEpoch(); err != nil {
				return err
			}
			o.Level = level
			plan, err := l.Plan(img.Device, o)
			if err != nil {
				return err
			}
			if err := a.writeMod(ctx, plan, args[1], workers, sync); err != nil {
				return err
			}
			if args[1] == chain.Standard {
				return nil
			}
			if chain.IsFile(args[1]) {
				if err := clearMark(ctx, args[1]); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(newLayoutJSON(args[1], l))
			}
			kept := "nothing is kept, so that nothing can be changed later"
			if bytes, count := totals(l); count[gzipmod.Kept] > 0 {
				kept = sizes.FormatSize(bytes[gzipmod.Kept]) + " kept in " + plural(count[gzipmod.Kept], "range")
			}
			a.printf("%s: %s of image in %s; %s", args[1], sizes.FormatSize(l.Size), sizes.FormatSize(l.FileSize), kept)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&keep, "keep", "k", nil, "a selector of what stays modifiable; may be given several times")
	f.IntVar(&level, "level", gzipmod.DefaultLevel, "effort of compression, 1 (fast) to 9 (small)")
	f.IntVarP(&workers, "workers", "m", 0, "how many processors to use; 0 means all")
	f.BoolVar(&sync, "sync", false, "return when the file is on the disk")
	return cmd
}

// writeMod writes a planned image to a target, which gets its name when all went well.
func (a *app) writeMod(ctx context.Context, plan *segment.Plan, target string, workers int, sync bool) error {
	t, err := chain.Create(ctx, target, chain.CreateOptions{Sync: sync, Stdout: a.stdout})
	if err != nil {
		return err
	}
	defer t.Abort()
	sink := segment.ToWriter(t.Writer)
	if t.Device != nil {
		sink = segment.ToDevice(t.Device)
	}
	progress, end := a.showProgress("make")
	_, err = segment.Write(ctx, sink, plan, segment.Options{Workers: workers, Memory: int64(a.memory), Progress: progress})
	end()
	if err != nil {
		return err
	}
	return t.Commit(ctx)
}

// plural returns n things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
