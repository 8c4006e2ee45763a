package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// ErrLoop: an image refers to itself, perhaps by way of others. It comes with block.ErrDenied.
var ErrLoop = errors.New("the image refers to itself")

// maxDepth bounds how many images may refer to each other in a row.
const maxDepth = 256

// refer opens what an image of this chain refers to, if the gate lets it.
func (op *opening) refer(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
	if op.o.Alone && ref.Kind == formats.BackingFile {
		return block.NewNull(0), nil
	}
	if dev := op.o.pending.file(ref.Name); dev != nil {
		return dev, nil
	}
	if err := op.o.Gate.Ask(ctx, ref); err != nil {
		return nil, err
	}
	parents := append(slices.Clone(op.parents), op.img.stat)
	text, err := Path(ref)
	if err == nil {
		err = checkLoop(text, parents)
	}
	if err != nil {
		return nil, err
	}
	if len(parents) > maxDepth {
		return nil, block.ErrorOf(block.ErrDenied, "%s %q: more than %d images refer to each other", ref.Kind, ref.Name, maxDepth)
	}
	if ref.Format != "" && op.o.Registry.Lookup(ref.Format) == nil {
		return nil, block.ErrorOf(errors.ErrUnsupported, "%s %q: format %q is not known", ref.Kind, ref.Name, ref.Format)
	}
	o := Options{
		Registry: op.o.Registry, Write: write, Format: ref.Format, Gate: op.o.Gate, Log: op.o.Log, Memory: op.o.Memory / 2, Workers: op.o.Workers,
		Lazy: op.o.Lazy, NoLock: op.o.NoLock, NBD: op.o.NBD, referred: true,
	}
	src, arg := placeOf(text)
	img, err := open(ctx, Spec{Source: text}, src, arg, o, parents)
	if err != nil {
		return nil, err
	}
	if img.Device == nil {
		return nil, errors.Join(naming(text).wrap(oneWay(ref.Kind)), img.Close())
	}
	return img.Device, nil
}

// placeOf returns the source of what Path returns, and its argument: an export or a file, and nothing else whatever it looks like.
func placeOf(path string) (source, string) {
	if src, arg, err := findSource(path); err == nil && src.prefix != "" && src.target {
		return src, arg
	}
	return source{open: openPath}, path
}

// Path returns the path of the file that ref means: relative names are relative to the folder of the image that has it. Of an NBD export it returns the
// URI. It neither asks a gate nor looks whether there is such a file.
func Path(ref formats.Ref) (string, error) {
	if src, _ := placeOf(ref.Name); src.target {
		return ref.Name, nil
	}
	if uri, ok := NBDURI(ref.Name); ok {
		return uri, nil
	}
	name := strings.TrimPrefix(ref.Name, "file:")
	if scheme, _, ok := strings.Cut(name, ":"); ok && len(scheme) > 1 && !strings.ContainsAny(scheme, `/\`) {
		return "", block.ErrorOf(errors.ErrUnsupported, "%s %q: names that begin with %s: are not followed", ref.Kind, ref.Name, scheme)
	}
	switch {
	case name == "" || strings.ContainsRune(name, 0):
		return "", block.ErrorOf(block.ErrDenied, "%s %q: not the name of a file", ref.Kind, ref.Name)
	case filepath.IsAbs(name):
		return name, nil
	case ref.From == "":
		return "", block.ErrorOf(block.ErrDenied, "%s %q: the image that refers to it has no folder", ref.Kind, ref.Name)
	}
	// Not joined, which would take x/.. away: where x is a symbolic link, that leads elsewhere.
	dir, _ := filepath.Split(ref.From)
	return dir + name, nil
}

// checkLoop refuses path where it leads to one of the images that refer to it, before anybody holds that file against itself.
func checkLoop(path string, parents []os.FileInfo) error {
	stat, err := os.Stat(path)
	if err != nil {
		return nil // which is told by whoever opens it
	}
	i := slices.IndexFunc(parents, func(p os.FileInfo) bool { return p != nil && os.SameFile(p, stat) })
	if i < 0 {
		return nil
	}
	others := ""
	switch n := len(parents) - 1 - i; n {
	case 0:
	case 1:
		others = ", by way of 1 other"
	default:
		others = fmt.Sprintf(", by way of %d others", n)
	}
	err = block.ErrorOf(block.ErrDenied, "%w%s", ErrLoop, others)
	return naming(path).wrap(block.WithHint(err, "rebase -u gives one of them another backing file"))
}
