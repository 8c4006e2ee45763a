package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
)

// formatFlag adds -f to a command.
func formatFlag(c *cobra.Command, format *string) {
	c.Flags().StringVarP(format, "format", "f", "", "format of the image, put last, with nothing guessed behind it; without it the bytes tell")
}

// openDevice opens an image to be read at any offset.
func (a *app) openDevice(ctx context.Context, text, format string) (*chain.Image, error) {
	img, err := chain.Open(ctx, text, a.openOptions(format))
	if err != nil {
		return nil, err
	}
	if img.Device == nil {
		_ = img.Close() // the error below matters more
		return nil, &chain.Error{Name: img.Name(), Err: errOneWay}
	}
	return img, nil
}

// errOneWay: an image is a pipe where any offset has to be read.
var errOneWay = block.WithHint(errors.New("it can be read from front to back only, and this needs any offset"), "save it to a file first")

// nameError returns err with the name of the image, unless it has one.
func nameError(img *chain.Image, err error) error {
	var named *chain.Error
	if err == nil || errors.As(err, &named) || errors.Is(err, context.Canceled) {
		return err
	}
	return &chain.Error{Name: img.Name(), Err: err}
}
