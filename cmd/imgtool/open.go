package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
)

// reading is what the user says about the image that a command reads.
type reading struct {
	format string // "" to find out
	index  string // file that holds the index, or will; "" for none
	glance bool   // the command looks at little of it: its size may be a guess
}

// flags adds the flags of r to a command.
func (r *reading) flags(c *cobra.Command) {
	c.Flags().StringVarP(&r.format, "format", "f", "", "format of the image, put last, with nothing guessed behind it; without it the bytes tell")
	c.Flags().StringVar(&r.index, "index-file", "", "index of a gzip file that another program made: read where it exists, written where it does not")
}

// openDevice opens an image to be read at any offset.
func (a *app) openDevice(ctx context.Context, text string, r reading) (*chain.Image, error) {
	img, err := chain.Open(ctx, text, a.openOptions(r))
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
