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
	if o.IndexFile == nil {
		d, err := gzindex.Open(ctx, dev, opts)
		if err != nil {
			return nil, err // not a nil *gzindex.Device
		}
		return d, nil
	}
	d, err := gzindex.Open(ctx, block.NoClose(dev), opts) // dev stays the caller's until the index is saved
	if err != nil {
		return nil, err
	}
	if table := d.Index().Table(); table != "" {
		o.Logger().Info("no index file is needed: the image has a table of its own", "file", o.Name, "table", table)
	} else if err := saveIndex(o.IndexFile, d.Index()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &closing{block.Filter{Device: d}, dev}, nil
}

// openIndexed opens a file by the index beside it. The error is fs.ErrNotExist where there is none.
func openIndexed(ctx context.Context, dev block.Device, file formats.IndexFile, opts gzindex.Options) (block.Device, error) {
	r, err := file.Open()
	if err != nil {
		return nil, err
	}
	if opts.Index, err = gzindex.ReadIndex(r, r.Size()); err != nil {
		if errors.Is(err, block.ErrNotFormat) { // which would be said of the image
			err = block.WithHint(errors.New("it holds something else than the index of a gzip file"), "name another file")
		} else {
			err = block.WithHint(err, remakeHint)
		}
		return nil, errors.Join(file.Wrap(err), r.Close())
	}
	d, err := gzindex.Open(ctx, dev, opts)
	if err != nil {
		if errors.Is(err, gzindex.ErrOtherFile) {
			err = block.WithHint(file.Wrap(err), remakeHint)
		}
		return nil, errors.Join(err, r.Close())
	}
	return &closing{block.Filter{Device: d}, r}, nil
}

const remakeHint = "remove the index, and it will be made anew"

// closing is a device that closes something else after it.
type closing struct {
	block.Filter
	after io.Closer
}

// Close implements block.Device.
func (d *closing) Close() error { return errors.Join(d.Filter.Close(), d.after.Close()) }

// saveIndex writes an index into the file that is for it.
func saveIndex(file formats.IndexFile, x *gzindex.Index) error {
	return file.Write(func(w io.Writer) error {
		_, err := x.WriteTo(w)
		return err
	})
}
