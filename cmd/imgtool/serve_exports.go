package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/nbd/server"
)

// exports are what a server offers. The methods may be called from many goroutines, close after all others.
type exports interface {
	open(ctx context.Context, c server.Client) (*server.Export, error)
	list(ctx context.Context, c server.Client) ([]server.Listing, error)
	// close makes durable what has been written, and closes the images.
	close(ctx context.Context) error
}

// served is an open image, which all connections share.
type served struct {
	name, description string
	dev               block.Device
	readOnly          bool
	depth             bool
	bitmaps           []string
}

// export returns the image for one connection. canonical is its name where the client asked by another one.
func (i *served) export(canonical string) *server.Export {
	return &server.Export{
		Device: i.dev, Name: canonical, Description: i.description, ReadOnly: i.readOnly, Depth: i.depth, Bitmaps: i.bitmaps,
		MultiConn: true, // one device serves them all
	}
}

// close makes durable what has been written, and closes the image.
func (i *served) close(ctx context.Context) error {
	var err error
	if !i.readOnly {
		err = i.dev.Flush(ctx)
	}
	return errors.Join(err, i.dev.Close())
}

// serveImage opens an image for all connections: for writing where that is allowed and possible.
func (s *serving) serveImage(open func(chain.Options) (*chain.Image, error)) (*served, error) {
	o := s.openOptions(s.from)
	o.Memory = s.cacheMemory()
	o.Write = !s.readOnly && !s.cow
	img, err := oneOfAnyOffset(open(o))
	if o.Write && isReadOnly(err) {
		reason := err
		o.Write = false
		if img, err = oneOfAnyOffset(open(o)); err == nil {
			s.logger.Info("served read-only", "image", img.Name(), "why", message(reason))
		}
	}
	if err != nil {
		return nil, err
	}
	i := &served{dev: img.Device, readOnly: s.readOnly}
	if err := s.describe(i, img); err != nil {
		return nil, errors.Join(err, i.dev.Close())
	}
	return i, nil
}

// describe finds out what can be told of an image, and puts what is asked for over it.
func (s *serving) describe(i *served, img *chain.Image) error {
	backed, ok := block.As[formats.Backed](i.dev)
	if ok {
		_, i.depth = backed.Backing()
	}
	if _, over := block.As[*block.Overlay](i.dev); over || s.cow {
		i.depth = true
	}
	if s.depth.set {
		i.depth = s.depth.on
	}
	if keeper, ok := block.As[formats.BitmapKeeper](i.dev); ok {
		for _, b := range keeper.Bitmaps() {
			switch {
			case !slices.Contains(s.bitmaps, b.Name):
			case b.InUse:
				return nameError(img, fmt.Errorf("bitmap %q is not complete, because the program that wrote the image last has not ended properly", b.Name))
			default:
				i.bitmaps = append(i.bitmaps, b.Name)
			}
		}
	}
	if s.cow {
		dev, err := chain.ThrowAway(i.dev, s.cowDir)
		if err != nil {
			return nameError(img, err)
		}
		i.dev = dev
	}
	i.readOnly = i.readOnly || !i.dev.Info().Caps.Write
	return nil
}

// isReadOnly reports whether an image cannot be opened for writing, but perhaps for reading.
func isReadOnly(err error) bool {
	return errors.Is(err, block.ErrReadOnly) || errors.Is(err, fs.ErrPermission) || isReadOnlyFS(err)
}

// imageExports are the images of the command line.
type imageExports struct {
	images   []*served
	fallback string // the name that "" stands for
}

// openImages opens the images of the command line.
func (s *serving) openImages(ctx context.Context, texts []string) (exports, error) {
	e := &imageExports{fallback: s.fallback}
	for n, text := range texts {
		if err := s.notOneWay(text); err != nil {
			return nil, errors.Join(err, e.close(ctx))
		}
		i, err := s.serveImage(func(o chain.Options) (*chain.Image, error) {
			o.Write = o.Write && !isStandard(text)
			return chain.Open(ctx, text, o)
		})
		if err != nil {
			return nil, errors.Join(err, e.close(ctx))
		}
		if len(s.names) > 0 {
			i.name = s.names[n]
		}
		if len(s.descriptions) > 0 {
			i.description = s.descriptions[n]
		}
		e.images = append(e.images, i)
	}
	for _, b := range s.bitmaps {
		if !slices.ContainsFunc(e.images, func(i *served) bool { return slices.Contains(i.bitmaps, b) }) {
			return nil, errors.Join(block.ErrorOf(fs.ErrNotExist, "%s: there is no bitmap %q", strings.Join(texts, ", "), b), e.close(ctx))
		}
	}
	return e, nil
}

// isStandard reports whether a chain begins with standard input.
func isStandard(text string) bool {
	spec, err := chain.Parse(text)
	return err == nil && spec.Source == chain.Standard
}

// notOneWay refuses what goes one way only before it is opened, which may wait for its other end.
func (s *serving) notOneWay(text string) error {
	spec, err := chain.Parse(text)
	if err != nil {
		return err
	}
	fi, err := os.Stat(spec.Source)
	if err == nil && fi.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
		return &chain.Error{Name: spec.Source, Err: errOneWay, Opening: true}
	}
	return nil
}

// find returns the image of this name.
func (e *imageExports) find(name string) (*served, bool) {
	if name == "" {
		name = e.fallback
	}
	n := slices.IndexFunc(e.images, func(i *served) bool { return i.name == name })
	if n < 0 {
		return nil, false
	}
	return e.images[n], true
}

func (e *imageExports) open(_ context.Context, c server.Client) (*server.Export, error) {
	i, ok := e.find(c.Export)
	if !ok {
		return nil, server.ErrUnknownExport
	}
	canonical := ""
	if c.Export != i.name {
		canonical = i.name
	}
	return i.export(canonical), nil
}

func (e *imageExports) list(context.Context, server.Client) ([]server.Listing, error) {
	var list []server.Listing
	for _, i := range e.images {
		list = append(list, server.Listing{Name: i.name, Description: i.description})
	}
	return list, nil
}

func (e *imageExports) close(ctx context.Context) error {
	var errs []error
	for _, i := range e.images {
		errs = append(errs, i.close(ctx))
	}
	return errors.Join(errs...)
}

// counted are exports that tell when the last one in use is not any more.
type counted struct {
	exports
	used atomic.Int64
	left func()
}

func (c *counted) open(ctx context.Context, who server.Client) (*server.Export, error) {
	c.used.Add(1)
	e, err := c.exports.open(ctx, who)
	if err != nil {
		c.used.Add(-1)
		return nil, err
	}
	inner := e.Close
	e.Close = func() error {
		var err error
		if inner != nil {
			err = inner()
		}
		if c.used.Add(-1) == 0 {
			c.left()
		}
		return err
	}
	return e, nil
}
