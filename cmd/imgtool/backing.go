package main

import (
	"context"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// openFile opens a file that the user has named, but not as a chain, such as a backing file: it needs nobody's leave, what it refers to does.
func (a *app) openFile(ctx context.Context, path string, r reading) (*chain.Image, error) {
	return oneOfAnyOffset(chain.OpenFile(ctx, path, a.openOptions(r)))
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
