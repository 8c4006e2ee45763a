package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// bitmapping is one run of bitmap.
type bitmapping struct {
	*app
	from         reading
	actions      []bitmapAction // in the order in which they were written
	source       string         // file of the bitmaps to merge; "" for the image itself
	sourceFormat string
	granularity  size
}

// bitmapAction is one thing to do.
type bitmapAction struct {
	name   string
	source string // of merge: a bitmap
}

// bitmapInfo is what was done, in JSON.
type bitmapInfo struct {
	Filename string   `json:"filename"`
	Bitmap   string   `json:"bitmap"`
	Actions  []string `json:"actions"` // in the order in which they were done
}

func newBitmap(a *app) *cobra.Command {
	v := &bitmapping{app: a}
	c := &cobra.Command{
		Use:   "bitmap {--add | --remove | --clear | --enable | --disable | --merge SOURCE}... [flags] IMAGE BITMAP",
		Short: "Change the bitmaps inside an image that record what is written",
		Long: `Change a bitmap inside an image, which records what is written, for incremental backups. Several actions are done in the order in which they
are written. --merge sets in the bitmap what is set in another one, of the same image or of the one that -b names.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt.`,
		Example: `  imgtool bitmap --add -g 64k disk.qcow2 monday
  imgtool bitmap --disable disk.qcow2 monday
  imgtool bitmap --clear --merge tuesday -b other.qcow2 -F qcow2 disk.qcow2 monday`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := v.checkUse(); err != nil {
				return usageOf(c, err)
			}
			return v.run(c.Context(), args[0], args[1])
		},
	}
	v.from.formatFlag(c)
	f := c.Flags()
	for _, action := range []struct{ name, help string }{
		{"add", "add an empty bitmap"}, {"remove", "remove it"}, {"clear", "make it empty"},
		{"enable", "record what is written from now on"}, {"disable", "do not record any more; with --add, from the beginning"},
	} {
		f.Var(&actionFlag{&v.actions, action.name, true}, action.name, action.help)
		f.Lookup(action.name).NoOptDefVal = "true"
	}
	f.Var(&actionFlag{&v.actions, "merge", false}, "merge", "set what is set in this bitmap")
	f.StringVarP(&v.source, "source", "b", "", "image that has the bitmaps to merge")
	f.StringVarP(&v.sourceFormat, "source-format", "F", "", "format of that image")
	f.VarP(&v.granularity, "granularity", "g", "bytes for which a bit stands, for --add: a power of two from 512; 0 for the format's default")
	return c
}

// actionFlag appends to a list of actions, so that their order is kept.
type actionFlag struct {
	list *[]bitmapAction
	name string
	bare bool // it has no value
}

func (f *actionFlag) String() string { return "" }
func (f *actionFlag) Type() string {
	if f.bare {
		return "bool"
	}
	return "bitmap"
}

func (f *actionFlag) Set(text string) error {
	if !f.bare {
		*f.list = append(*f.list, bitmapAction{f.name, text})
		return nil
	}
	on, err := strconv.ParseBool(text)
	if on {
		*f.list = append(*f.list, bitmapAction{name: f.name})
	}
	return err
}

// checkUse refuses flags that do not fit each other.
func (v *bitmapping) checkUse() error {
	has := map[string]bool{}
	for _, a := range v.actions {
		has[a.name] = true
	}
	switch {
	case len(v.actions) == 0:
		return errors.New("nothing to do: say --add, --remove, --clear, --enable, --disable or --merge")
	case v.granularity != 0 && !has["add"]:
		return errors.New("-g is for --add")
	case v.source != "" && !has["merge"]:
		return errors.New("-b is for --merge")
	case v.sourceFormat != "" && v.source == "":
		return errors.New("-F is for -b")
	}
	return nil
}

func (v *bitmapping) run(ctx context.Context, image, bitmap string) error {
	v.from.lazy = true
	info := bitmapInfo{Bitmap: bitmap}
	err := v.change(ctx, image, v.from, func(img *chain.Image) error {
		info.Filename = img.Name()
		keeper, err := feature[formats.BitmapKeeper](img, "keeps no bitmaps")
		if err != nil {
			return err
		}
		from := img.Device
		if v.source != "" {
			source, err := v.openDevice(ctx, v.source, reading{format: v.sourceFormat, lazy: true})
			if err != nil {
				return err
			}
			defer source.Close()
			from = source.Device
		}
		for _, a := range v.actions {
			err := v.do(ctx, keeper, a, bitmap, from)
			if errors.Is(err, fs.ErrNotExist) {
				err = block.WithHint(err, "imgtool info shows the bitmaps there are")
			}
			if err != nil {
				return fmt.Errorf("%s bitmap %q: %w", a.name, bitmap, err)
			}
			info.Actions = append(info.Actions, a.name)
		}
		return nil
	})
	if err == nil && v.json {
		return v.printJSON(info)
	}
	return err
}

// do does one thing.
func (v *bitmapping) do(ctx context.Context, keeper formats.BitmapKeeper, a bitmapAction, bitmap string, from block.Device) error {
	switch a.name {
	case "add":
		return keeper.AddBitmap(ctx, bitmap, int64(v.granularity), true)
	case "remove":
		return keeper.RemoveBitmap(ctx, bitmap)
	case "clear":
		return keeper.ClearBitmap(ctx, bitmap)
	case "enable", "disable":
		return keeper.EnableBitmap(ctx, bitmap, a.name == "enable")
	}
	return keeper.MergeBitmap(ctx, bitmap, from, a.source)
}
