package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/nbd"
)

// reading is what the user says about the image that a command reads.
type reading struct {
	format string // "" to find out
	index  string // file that holds the index, or will; "" for none
	glance bool   // the command looks at little of it: its size may be a guess
	share  bool   // another program may be writing the image
	lazy   bool   // the command looks at the image but not at what it holds: references are opened when first needed
	nbd    chain.NBDOptions
}

// flags adds the flags of r to a command that reads an image.
func (r *reading) flags(c *cobra.Command) {
	r.formatFlag(c)
	r.shareFlag(c)
	c.Flags().StringVar(&r.index, "index-file", "", "index of a gzip file that another program made: read where it exists, written where it does not")
}

// formatFlag adds the flag of r that commands have which change an image.
func (r *reading) formatFlag(c *cobra.Command) {
	c.Flags().StringVarP(&r.format, "format", "f", "", "format of the image, put last, with nothing guessed behind it; without it the bytes tell")
}

// shareFlag adds the flag of r that commands have which only read.
func (r *reading) shareFlag(c *cobra.Command) {
	c.Flags().BoolVarP(&r.share, "force-share", "U", false, "read the image although another program may be writing it: what is read may not fit together")
}

// connectionFlags adds the flags of r to a command that reads, or writes, much of an NBD export.
func (r *reading) connectionFlags(c *cobra.Command) {
	c.Flags().IntVar(&r.nbd.Connections, "connections", nbd.DefaultConnections, "connections to an NBD export, if its server allows as many")
	c.Flags().IntVar(&r.nbd.Retries, "retries", nbd.DefaultRetries, "how often a lost connection to an NBD server is made again before it is an error")
}

// checkConnections looks at the flags of connectionFlags.
func (r *reading) checkConnections() error {
	switch {
	case r.nbd.Connections < 1:
		return usagef("--connections=%d: there has to be one", r.nbd.Connections)
	case r.nbd.Retries < 0:
		return usagef("--retries=%d: say how often, or 0", r.nbd.Retries)
	case r.nbd.Retries == 0:
		r.nbd.Retries = -1
	}
	return nil
}

// openDevice opens an image to be read at any offset.
func (a *app) openDevice(ctx context.Context, text string, r reading) (*chain.Image, error) {
	return oneOfAnyOffset(chain.Open(ctx, text, a.openOptions(r)))
}

// change opens an image for writing in place and calls f. Where f succeeds, what it has changed is durable when change returns.
func (a *app) change(ctx context.Context, text string, r reading, f func(*chain.Image) error) error {
	o := a.openOptions(r)
	o.Write = true
	img, err := oneOfAnyOffset(chain.Open(ctx, text, o))
	if err != nil {
		return err
	}
	err = nameError(img, f(img))
	if err == nil {
		err = img.Device.Flush(ctx)
	}
	return errors.Join(err, img.Close())
}

// oneOfAnyOffset passes on an image that has been opened, unless it goes one way only.
func oneOfAnyOffset(img *chain.Image, err error) (*chain.Image, error) {
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

// feature returns what only some formats have; what says it in words.
func feature[T any](img *chain.Image, what string) (T, error) {
	t, ok := block.As[T](img.Device)
	if !ok {
		return t, &chain.Error{Name: img.Name(), Err: &lackError{img.Format(), what}}
	}
	return t, nil
}

// lackError says that a format has not what a command needs.
type lackError struct{ format, what string }

func (e *lackError) Error() string { return fmt.Sprintf("format %s %s", e.format, e.what) }
func (e *lackError) Unwrap() error { return errors.ErrUnsupported }

// gate returns what decides whether references may be followed.
func (a *app) gate() formats.Gate {
	if a.allow {
		return formats.AllowAll
	}
	return formats.DirGate
}

// nameError returns err with the name of the image, unless it has one.
func nameError(img *chain.Image, err error) error { return nameFile(img.Name(), err) }
