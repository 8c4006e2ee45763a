package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// amendInfo is what was done, in JSON.
type amendInfo struct {
	Filename string            `json:"filename"`
	Options  map[string]string `json:"options"` // that were given
}

func newAmend(a *app) *cobra.Command {
	var from reading
	var options []string
	c := &cobra.Command{
		Use:   "amend [flags] -o NAME=VALUE,... IMAGE",
		Short: "Change options of an image that exists",
		Long: `Change options of an image that exists, in place. The names are those of create; what the format cannot change afterwards is refused before
anything is changed.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt.`,
		Example: `  imgtool amend -o compat=1.1,lazy_refcounts=on disk.qcow2
  imgtool amend -o help disk.qcow2`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			values, help, err := parseOptions(options)
			switch {
			case err != nil:
				return err
			case len(values) == 0 && !help:
				return usageOf(c, errors.New("-o is missing: what to change"))
			}
			return a.amend(c.Context(), args[0], from, values, help)
		},
	}
	from.formatFlag(c)
	c.Flags().StringArrayVarP(&options, "options", "o", nil, "options and their new values, k=v,...; help lists them")
	return c
}

func (a *app) amend(ctx context.Context, image string, from reading, values map[string]string, help bool) error {
	if help {
		return a.amendHelp(ctx, image, from)
	}
	from.lazy = true
	info := amendInfo{Options: values}
	err := a.change(ctx, image, from, func(img *chain.Image) error {
		info.Filename = img.Name()
		d, err := feature[formats.Amender](img, "cannot be amended")
		if err != nil {
			return err
		}
		if err := mayAmend(img.Format(), a.registry(), d, values); err != nil {
			return err
		}
		return d.Amend(ctx, values)
	})
	if err == nil && a.json {
		return a.printJSON(info)
	}
	return err
}

// newOnlyError says that only new images can have an option of their format.
type newOnlyError struct{ option string }

func (e *newOnlyError) Error() string {
	return fmt.Sprintf("option %s is for new images only", e.option)
}

// mayAmend refuses options of a format that are not among those which d can change. Of names that nobody knows d tells.
func mayAmend(format string, registry formats.Registry, d formats.Amender, values map[string]string) error {
	docs := d.Amendable()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		amendable := slices.ContainsFunc(docs, func(o formats.OptionDoc) bool { return o.Name == name })
		if !amendable && name != backingFile && name != backingFormat && hasOption(registry.Lookup(format), name) {
			return &newOnlyError{name}
		}
	}
	return nil
}

// amendHelp lists the options that the image can change, with what they are.
func (a *app) amendHelp(ctx context.Context, image string, from reading) error {
	from.lazy = true
	img, err := a.openDevice(ctx, image, from)
	if err != nil {
		return err
	}
	defer img.Close()
	d, err := feature[formats.Amender](img, "cannot be amended")
	if err != nil {
		return err
	}
	return a.printOptionDocs("Options of "+img.Name(), d.Amendable())
}
