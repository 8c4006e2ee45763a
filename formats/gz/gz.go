// Package gz is the gzip format (RFC 1952) around a disk image.
//
// Files that imgtool wrote hold an index and are read at random and in parallel; see package gzipmod. Foreign files have none: as a stream they
// are decoded once, front to back; as a device they are read by an index that is made on the way, or kept beside them; see package gzindex.
package gz

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/gzindex"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/segment"
)

// Name is the name of the driver.
const Name = "gz"

// Options are what -o takes.
type Options struct {
	Level int `option:"level" help:"effort of compression, 1 (fast) to 9 (small)"`
}

// Driver returns the driver.
func Driver() formats.Driver {
	return formats.Driver{
		Name:       Name,
		Aliases:    []string{"gzip"},
		Doc:        "gzip; what imgtool writes is one member with an index in its header, readable at random",
		Transport:  true,
		Indexes:    true,
		Extensions: []string{".gz"},
		Probe:      probe,
		Open:       open,
		Decode:     decode,
		Plan:       plan,
		PlanStream: planStream,
		Options:    &Options{Level: gzipmod.DefaultLevel},
	}
}

// Header fields that every gzip file shares (RFC 1952 section 2.3).
const (
	magic      = "\x1f\x8b"
	deflate    = 8
	headerLen  = 10
	knownFlags = 0x1f // FTEXT FHCRC FEXTRA FNAME FCOMMENT; the others must be zero
)

func probe(h formats.Head) formats.Score {
	p := h.First()
	if len(p) < headerLen || !h.HasPrefix(magic) || p[2] != deflate || p[3]&^knownFlags != 0 {
		return formats.No
	}
	return formats.Likely
}

func open(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
	if _, err := formats.ParseOptions[any](nil, o.Values); err != nil {
		return nil, err
	}
	opts := gzipmod.OpenOptions{Write: o.Write, Cache: o.Memory / 2, Mark: MarkOf(dev)}
	d, err := gzipmod.Open(ctx, dev, opts)
	switch {
	case err == nil:
		if d.Dirty() {
			o.Logger().Warn("a change was interrupted, the checksums may be wrong; hint: imgtool mod repair", "file", o.Name)
		}
		return d, nil
	case errors.Is(err, gzipmod.ErrDirty):
		return nil, block.WithHint(err, "imgtool mod repair puts them right")
	case errors.Is(err, gzipmod.ErrIncomplete) && o.Write:
		return nil, block.WithHint(err, "imgtool mod index fills it in")
	case errors.Is(err, gzipmod.ErrNoIndex) && o.Write:
		return nil, block.WithHint(errors.Join(block.ErrReadOnly, err), "imgtool mod make makes a modifiable image")
	case !errors.Is(err, gzipmod.ErrIncomplete) && !errors.Is(err, gzipmod.ErrNoIndex):
		return nil, err
	}
	return openForeign(ctx, dev, o)
}

// MarkOf returns where the mark of unfinished changes to the image in dev is kept, or nil where dev is not a local file. A disk has none
// either: what lies beside its name does not outlive the system.
func MarkOf(dev block.Device) mark.Store {
	f, ok := block.As[interface{ File() *os.File }](dev)
	if !ok {
		return nil
	}
	if st, err := f.File().Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	return mark.File(f.File().Name())
}

// decode returns the content of r, be it one of our files or not.
func decode(_ context.Context, r io.Reader, o formats.OpenOptions) (block.Stream, error) {
	if _, err := formats.ParseOptions[any](nil, o.Values); err != nil {
		return nil, err
	}
	if o.IndexFile == nil {
		return newStream(r, o.Memory, gzindex.ScanOptions{}, nil), nil
	}
	x, err := o.IndexFile.Open()
	if err == nil {
		o.Logger().Warn("the index is not used for what is read from front to back only", "file", o.Name)
		return newStream(r, o.Memory, gzindex.ScanOptions{}, nil), x.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	index := gzindex.ScanOptions{Index: true, Limit: o.Memory / 4}
	return newStream(r, o.Memory, index, func(x *gzindex.Index) error { return saveIndex(o.IndexFile, x) }), nil
}

func planStream(ctx context.Context, src block.Stream, o formats.CreateOptions) (*segment.Plan, error) {
	opts, err := formats.ParseOptions(&Options{Level: gzipmod.DefaultLevel}, o.Values)
	if err != nil {
		return nil, err
	}
	return gzipmod.PlanStream(ctx, src, gzipmod.Options{Level: opts.Level, ModTime: o.ModTime})
}

func plan(ctx context.Context, src block.Device, o formats.CreateOptions) (*segment.Plan, error) {
	opts, err := formats.ParseOptions(&Options{Level: gzipmod.DefaultLevel}, o.Values)
	if err != nil {
		return nil, err
	}
	_, apart, err := gzipmod.Select(ctx, src, nil)
	if err != nil {
		return nil, err
	}
	mod := gzipmod.Options{Level: opts.Level, ModTime: o.ModTime, Apart: apart}
	l, err := gzipmod.NewLayout(ctx, src, mod)
	if err != nil {
		return nil, err
	}
	return l.Plan(src, mod)
}
