package main

import (
	"context"
	"errors"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// openFile opens a file that the user has named, but not as a chain, such as a backing file: it needs nobody's leave, what it refers to does.
func (a *app) openFile(ctx context.Context, path string, r reading) (*chain.Image, error) {
	return oneOfAnyOffset(chain.OpenFile(ctx, path, a.openOptions(r)))
}

// refuseLoop returns an error where the image at path is one of those that its new backing file consists of. It looks at headers, beside whoever
// holds the files, as the image itself may be open for writing.
func (a *app) refuseLoop(ctx context.Context, backing, format, path string) error {
	o := a.openOptions(reading{format: format, lazy: true})
	o.NoLock = true
	base, err := oneOfAnyOffset(chain.OpenFile(ctx, backing, o))
	if err != nil {
		return err
	}
	return errors.Join(a.refuseMember(ctx, base, path), base.Close())
}

// findLoop returns an error where the images that show through text refer to each other in a circle. It looks at headers, beside whoever holds the
// files, as this program itself may. What else is wrong with them is told when they are opened.
func (a *app) findLoop(ctx context.Context, text string, r reading) error {
	r.lazy, r.share = true, true
	img, err := a.openDevice(ctx, text, r)
	if err != nil {
		return nil
	}
	defer img.Close()
	for dev := img.Device; dev != nil && err == nil; {
		_, dev, err = backingOf(ctx, dev)
	}
	if errors.Is(err, chain.ErrLoop) {
		return nameError(img, err)
	}
	return nil
}

// refuseMember returns an error where a path is one of the files that base consists of, which would be lost if the path were written anew.
func (a *app) refuseMember(ctx context.Context, base *chain.Image, path string) error {
	if chain.SameFile(base, path) {
		return usagef("%s: it is its own backing file", path)
	}
	for dev := base.Device; dev != nil; {
		ref, below, err := backingOf(ctx, dev)
		if err != nil || below == nil {
			return nameError(base, err)
		}
		if at, err := chain.Path(ref); err == nil && sameName(at, path) {
			return usagef("%s: %s shows it through as a backing file", path, base.Name())
		}
		dev = below
	}
	return nil
}

// backingOf returns what dev refers to as its backing file, and the device; nil where there is none.
func backingOf(ctx context.Context, dev block.Device) (formats.Ref, block.Device, error) {
	backed, ok := block.As[formats.Backed](dev)
	if !ok {
		return formats.Ref{}, nil, nil
	}
	ref, ok := backed.Backing()
	if !ok {
		return formats.Ref{}, nil, nil
	}
	below, err := backed.BackingDevice(ctx)
	return ref, below, err
}

// checkBackingFormat refuses a backing file of which the format is not given: whoever guesses one lets the guest that writes a raw disk choose
// it. It warns of a file that will not be followed.
func (a *app) checkBackingFormat(ctx context.Context, ref formats.Ref) error {
	path, err := chain.Path(ref)
	switch {
	case err != nil:
		return err
	case ref.Format == "":
		text := ""
		if img, err := a.openFile(ctx, path, reading{lazy: true, share: true}); err == nil {
			text = "; it looks like " + img.Format()
			_ = img.Close() // nothing was written to it
		}
		return usagef("%s: the format of a backing file has to be given, with -F%s", ref.Name, text)
	case a.registry().Lookup(ref.Format) == nil:
		return usagef("-F %s: there is no such format; known are %s", ref.Format, strings.Join(a.registry().Names(), ", "))
	}
	if err := a.refuses(ctx, ref); errors.Is(err, block.ErrDenied) {
		a.log().Warn("the image will need --allow-references to be opened: "+err.Error(), "image", ref.From)
	}
	return nil
}
