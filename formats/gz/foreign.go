package gz

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/gzindex"
)

// openForeign opens a file that has no index of ours inside. Where there is one beside it, it is used; else reading the file once makes one.
func openForeign(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
	// Who copies everything is promised that the checksums were right; whose map is asked for an index is believed.
	opts := gzindex.Options{Memory: o.Memory, Workers: o.Workers, TrustIndex: !o.Sequential}
	if o.IndexFile != nil {
		d, err := openIndexed(ctx, dev, o.IndexFile, opts)
		if !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
	}
	opts.TrustSize = o.Glance && o.IndexFile == nil // an index takes the whole file in any case
	opts.NoScan = o.Sequential                      // once is enough
	d, err := gzindex.Open(ctx, dev, opts)
	if err != nil {
		return nil, err
	}
	if o.IndexFile != nil {
		if err := saveIndex(o.IndexFile, d.Index()); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// openIndexed opens a file by the index beside it. The error is fs.ErrNotExist where there is none.
func openIndexed(ctx context.Context, dev block.Device, file formats.IndexFile, opts gzindex.Options) (block.Device, error) {
	r, err := file.Open()
	if err != nil {
		return nil, err
	}
	opts.Index, err = gzindex.ReadIndex(r, r.Size())
	if errors.Is(err, block.ErrNotFormat) {
		err = errors.New("it holds something else than the index of a gzip file") // ErrNotFormat would be said of the image
	}
	if err == nil {
		err = opts.Index.Matches(ctx, dev)
	}
	if err != nil {
		err = block.WithHint(file.Wrap(err), "remove it, and it will be made anew")
		return nil, errors.Join(err, r.Close())
	}
	d, err := gzindex.Open(ctx, dev, opts)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &indexed{block.Filter{Device: d}, r}, nil
}

// indexed is a device that reads from its index file.
type indexed struct {
	block.Filter
	index io.Closer
}

// Close implements block.Device.
func (d *indexed) Close() error { return errors.Join(d.Filter.Close(), d.index.Close()) }

// saveIndex writes an index into the file that is for it.
func saveIndex(file formats.IndexFile, x *gzindex.Index) error {
	return file.Write(func(w io.Writer) error {
		_, err := x.WriteTo(w)
		return err
	})
}

// hasIndex reports whether there is an index beside the image, or something else under its name.
func hasIndex(file formats.IndexFile) bool {
	r, err := file.Open()
	if err == nil {
		err = r.Close()
	}
	return !errors.Is(err, fs.ErrNotExist)
}
