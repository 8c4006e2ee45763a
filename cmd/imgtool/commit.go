package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
)

// committing is one run of commit.
type committing struct {
	*app
	from reading
	base string // "" for the image directly below
	keep bool
}

// What a commit can be refused for.
var (
	errNoBacking = errors.New("the image has no backing file")
	errNotBelow  = errors.New("is not among the images below it")
)

// commitInfo is what was done, in JSON.
type commitInfo struct {
	Filename string `json:"filename"`
	Base     string `json:"base"`
	Emptied  bool   `json:"emptied"`
}

func newCommit(a *app) *cobra.Command {
	v := &committing{app: a}
	c := &cobra.Command{
		Use:   "commit [flags] IMAGE",
		Short: "Write what an image holds into its backing file",
		Long: `Write what an image holds into its backing file, which is made longer where it is shorter. Then the image is emptied, so that its
backing file shows through everywhere. With -d it is left as it is, as it is with -b too: the images between would show through otherwise. Other images
over the same backing file, or over those between, become useless.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 an image is corrupt, 5 a backing file is refused.`,
		Example: `  imgtool commit overlay.qcow2
  imgtool commit -d overlay.qcow2
  imgtool commit -b base.qcow2 top.qcow2`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return v.run(c.Context(), args[0]) },
	}
	v.from.formatFlag(c)
	c.Flags().StringVarP(&v.base, "base", "b", "", "an image further down to write into, instead of the one directly below")
	c.Flags().BoolVarP(&v.keep, "keep", "d", false, "do not empty the image afterwards")
	return c
}

func (v *committing) run(ctx context.Context, image string) error {
	o := v.openOptions(v.from)
	o.Alone, o.Write = true, !v.keep && v.base == ""
	top, err := oneOfAnyOffset(chain.Open(ctx, image, o))
	if err != nil {
		return err
	}
	var info commitInfo
	if err = v.findLoop(ctx, image, v.from); err == nil {
		info, err = v.commit(ctx, top)
	}
	if err = errors.Join(err, top.Close()); err != nil {
		return err
	}
	if v.json {
		return v.printJSON(info)
	}
	if !v.quiet {
		v.printf("Image committed.")
	}
	return nil
}

// commit writes what the images from top down to the base hold into the base, the lowest first.
func (v *committing) commit(ctx context.Context, top *chain.Image) (commitInfo, error) {
	info := commitInfo{Filename: top.Name(), Emptied: !v.keep && v.base == ""}
	levels, ref, err := v.levels(ctx, top)
	defer func() {
		for _, img := range levels[min(1, len(levels)):] {
			_ = img.Close() // it was only read
		}
	}()
	if err != nil {
		return info, err
	}
	var emptier formats.Emptier
	if info.Emptied {
		if emptier, err = feature[formats.Emptier](top, "cannot be emptied"); err != nil {
			return info, block.WithHint(err, "-d leaves the image as it is")
		}
	}
	if info.Base, err = chain.Path(ref); err != nil {
		return info, err
	}
	if err := v.into(ctx, info.Base, ref.Format, levels); err != nil || !info.Emptied {
		return info, err
	}
	if err := emptier.Empty(ctx); err != nil {
		return info, nameError(top, err)
	}
	return info, top.Device.Flush(ctx)
}

// levels returns the images above the base, each open as if nothing lay below it, the uppermost first; and what the lowest calls the base.
// What has been opened is returned with an error too.
func (v *committing) levels(ctx context.Context, top *chain.Image) ([]*chain.Image, formats.Ref, error) {
	const most = 256
	levels := []*chain.Image{top}
	for len(levels) < most {
		img := levels[len(levels)-1]
		ref, ok := backingRef(img)
		switch {
		case !ok && v.base == "":
			return levels, ref, nameError(img, errNoBacking)
		case !ok:
			return levels, ref, nameError(top, fmt.Errorf("%s %w", v.base, errNotBelow))
		}
		if err := v.gate().Ask(ctx, ref); err != nil {
			return levels, ref, nameError(img, err)
		}
		path, err := chain.Path(ref)
		if err != nil {
			return levels, ref, nameError(img, err)
		}
		if v.base == "" || v.base == ref.Name || sameName(v.base, path) {
			return levels, ref, nil
		}
		o := v.openOptions(reading{format: ref.Format})
		o.Alone = true
		next, err := oneOfAnyOffset(chain.OpenFile(ctx, path, o))
		if err != nil {
			return levels, ref, err
		}
		levels = append(levels, next)
	}
	return levels, formats.Ref{}, nameError(top, fmt.Errorf("more than %d images refer to each other: %w", most, block.ErrDenied))
}

// backingRef returns what an image has recorded as its backing file.
func backingRef(img *chain.Image) (formats.Ref, bool) {
	backed, ok := block.As[formats.Backed](img.Device)
	if !ok {
		return formats.Ref{}, false
	}
	return backed.Backing()
}

// into writes the levels into the base at path, and makes that durable.
func (v *committing) into(ctx context.Context, path, format string, levels []*chain.Image) error {
	o := v.openOptions(reading{format: format})
	o.Write = true
	base, err := oneOfAnyOffset(chain.OpenFile(ctx, path, o))
	if err != nil {
		return err
	}
	progress, end := v.showProgress("commit")
	for i, img := range slices.Backward(levels) {
		c := convert.Options{Memory: int64(v.memory) / 2, ZeroGranule: convert.DefaultZeroGranule, Progress: progress}
		_, err = convert.Commit(ctx, img.Device, base.Device, c)
		if err == nil && i > 0 {
			err = hideBehind(ctx, base.Device, img.Device.Size(), levels[i-1].Device.Size())
		}
		if err != nil {
			err = nameError(base, err)
			break
		}
	}
	end()
	if err == nil {
		err = base.Device.Flush(ctx)
	}
	return errors.Join(err, base.Close())
}

// hideBehind makes zero what base holds behind the end of an image that was committed into it, as far as the image above that one reaches, to which
// it has read as zero.
func hideBehind(ctx context.Context, base block.Device, end, above int64) error {
	if above = min(above, base.Size()); end >= above {
		return nil
	}
	return base.Zero(ctx, end, above-end, 0)
}
