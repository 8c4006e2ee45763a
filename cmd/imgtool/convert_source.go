package main

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
)

// origin is what is copied. One of device and stream is set.
type origin struct {
	images   []*chain.Image
	device   block.Device
	stream   block.Stream
	salvages []*convert.Salvage // of the images, with --salvage
	bitmaps  []formats.Bitmap   // to be copied
}

// name returns what messages about all sources call them.
func (s *origin) name() string { return s.images[0].Name() }

// lost returns how many bytes could not be read.
func (s *origin) lost() (n int64) {
	for _, l := range s.salvages {
		n += l.Lost()
	}
	return n
}

func (s *origin) Close() error {
	var errs []error
	for _, img := range s.images {
		errs = append(errs, img.Close())
	}
	return errors.Join(errs...)
}

// openSources opens what is to be copied, with what stands between it and the copy.
func (v *conversion) openSources(ctx context.Context, names []string) (*origin, error) {
	s := &origin{}
	for _, name := range names {
		img, err := v.openSource(ctx, name, len(names) > 1)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.images = append(s.images, img)
	}
	var err error
	if v.bitmaps {
		s.bitmaps, err = v.findBitmaps(s.images[0])
	}
	if err == nil {
		err = v.join(s)
	}
	if err == nil {
		err = v.withSize(s)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openSource opens one source. A stream does where it is read once.
func (v *conversion) openSource(ctx context.Context, name string, joined bool) (*chain.Image, error) {
	o := v.openOptions(v.from)
	o.Workers = v.workers
	anyOffset := joined || v.verify || v.snapshot != "" || v.bitmaps
	o.Sequential = !anyOffset && !v.salvage // of a damaged stream, all that follows the damage is lost
	img, err := chain.Open(ctx, name, o)
	if err == nil && v.snapshot != "" {
		img, err = atSnapshot(ctx, img, v.snapshot, o)
	}
	if anyOffset {
		return oneOfAnyOffset(img, err)
	}
	return img, err
}

// join makes one source of the images.
func (v *conversion) join(s *origin) error {
	if s.stream = s.images[0].Stream; s.stream != nil {
		if v.rate > 0 {
			s.stream = convert.LimitStream(s.stream, int64(v.rate))
		}
		return nil
	}
	sectors := len(s.images) > 1 || v.inSectors()
	var parts []block.Device
	for _, img := range s.images {
		d := img.Device
		if v.salvage {
			l := convert.NewSalvage(d, v.tellLoss(img))
			s.salvages, d = append(s.salvages, l), l
		}
		parts = append(parts, d)
		if rest := d.Size() % sectorSize; sectors && rest > 0 {
			parts = append(parts, block.NewNull(sectorSize-rest))
		}
	}
	s.device = parts[0]
	if len(parts) > 1 {
		var err error
		if s.device, err = block.Concat(parts...); err != nil {
			return err
		}
	}
	if v.rate > 0 {
		s.device = convert.Limit(s.device, int64(v.rate))
	}
	return nil
}

// inSectors reports whether the target is a disk of whole sectors, rather than any sequence of bytes.
func (v *conversion) inSectors() bool {
	return v.driver.Name != rawFormat && !v.driver.Transport || v.qemu != nil // to which every image is whole sectors
}

// tellLoss returns what tells of losses. They are errors: -q does not hide them.
func (v *conversion) tellLoss(img *chain.Image) func(convert.Loss) {
	log := v.log()
	return func(l convert.Loss) {
		log.Error("cannot be read, and is zero in the copy", "image", img.Name(), "offset", l.Off, "length", l.Len, "reason", unnamed(img.Name(), l.Err))
	}
}

// atSnapshot closes img and opens it again as it was at the snapshot.
func atSnapshot(ctx context.Context, img *chain.Image, snapshot string, o chain.Options) (*chain.Image, error) {
	text, err := chainAt(img, snapshot)
	if err = errors.Join(err, img.Close()); err != nil {
		return nil, err
	}
	o.Format = "" // text has it
	return chain.Open(ctx, text, o)
}

// chainAt returns the chain that shows img at a snapshot.
func chainAt(img *chain.Image, snapshot string) (string, error) {
	if img.Device == nil {
		return "", &chain.Error{Name: img.Name(), Err: errOneWay}
	}
	keeper, err := feature[formats.Snapshotter](img, "keeps no snapshots")
	if err != nil {
		return "", err
	}
	id, err := findSnapshot(keeper.Snapshots(), snapshot)
	if err != nil {
		return "", nameError(img, err)
	}
	spec, written := chain.Spec{Source: img.Spec.Source}, img.Spec.Layers
	for _, found := range img.Layers {
		l := chain.Layer{Name: found.Name}
		if found.How == chain.Given && len(written) > 0 {
			l, written = written[0], written[1:]
		}
		spec.Layers = append(spec.Layers, l)
	}
	last := &spec.Layers[len(spec.Layers)-1]
	last.Options = append(last.Options, chain.Option{Key: "snapshot", Value: id})
	return spec.String(), nil
}

// findSnapshot returns the ID of the snapshot that text names: by snapshot.id=ID, snapshot.name=NAME or both, or else by its ID or its name.
func findSnapshot(list []formats.Snapshot, text string) (string, error) {
	var id, name string
	fits := func(s formats.Snapshot) bool { return (id == "" || s.ID == id) && (name == "" || s.Name == name) }
	if strings.HasPrefix(text, "snapshot.") {
		for _, pair := range splitOptions(text) {
			key, value, _ := strings.Cut(pair, "=")
			switch {
			case key == "snapshot.id" && value != "":
				id = value
			case key == "snapshot.name" && value != "":
				name = value
			default:
				return "", usagef("-l %s: say snapshot.id=ID, snapshot.name=NAME or both", text)
			}
		}
	} else {
		for _, s := range list {
			if s.ID == text {
				return s.ID, nil
			}
		}
		name = text
	}
	for _, s := range list {
		if fits(s) {
			return s.ID, nil
		}
	}
	return "", noSnapshot(text, fs.ErrNotExist)
}
