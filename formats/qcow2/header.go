package qcow2

import (
	"bytes"
	"context"
	"slices"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// setHeader writes h as the header, and takes it over. What it refers to is durable before it is. Wherever the power fails the file has the old
// header or h, because what changes at once lies in the first sector; only where a header without the names of features is longer than that, because
// the name of the backing file is, both may be mixed.
func (d *Device) setHeader(ctx context.Context, h *ondisk.Header) error {
	if h.RefcountOrder == d.h.RefcountOrder { // the table may have moved since h was copied
		h.RefcountTableOffset, h.RefcountTableClusters = d.h.RefcountTableOffset, d.h.RefcountTableClusters
	}
	p, err := h.Encode()
	if err != nil {
		return err
	}
	if d.sameLayout(h) {
		return d.putHeader(ctx, h, p[fieldsStart:fieldsEnd(h)], fieldsStart)
	}
	old, err := d.h.Encode()
	if err != nil {
		return err
	}
	if len(old) > sectorSize && len(p) > sectorSize {
		if old, err = d.shortenHeader(ctx, old); err != nil {
			return err
		}
	}
	short := len(p) <= sectorSize
	p = append(p, make([]byte, max(0, len(old)-len(p)))...) // nothing of the old header stays; in cluster 0 there is nothing else
	switch {
	case len(p) <= sectorSize, !short && len(old) > sectorSize:
		return d.putHeader(ctx, h, p, 0)
	case short: // it does not know what lies behind the sector
		if err := d.putHeader(ctx, h, p[:sectorSize], 0); err != nil {
			return err
		}
		return d.writeFile(ctx, p[sectorSize:], sectorSize)
	}
	if err := d.writeFile(ctx, p[sectorSize:], sectorSize); err != nil { // the old one does not
		return err
	}
	return d.putHeader(ctx, h, p[:sectorSize], 0)
}

// putHeader writes what has changed of the header once all else is durable, and takes h over. Where it is not known which header the file has, the image
// cannot be changed any more.
func (d *Device) putHeader(ctx context.Context, h *ondisk.Header, p []byte, off int64) error {
	if err := d.refs.write(ctx); err != nil {
		return err
	}
	if err := d.syncFile(ctx); err != nil {
		return err
	}
	err := d.writeFile(ctx, p, off)
	if err == nil {
		err = d.syncFile(ctx)
	}
	if err != nil {
		d.fail(err)
		return err
	}
	d.h = h
	return nil
}

// shortenHeader drops the names of features, which nobody needs, where the header then fits into a sector. It returns the bytes of the header.
func (d *Device) shortenHeader(ctx context.Context, old []byte) ([]byte, error) {
	h := *d.h
	h.SetExtension(ondisk.ExtFeatureNames, nil)
	p, err := h.Encode()
	if err != nil || len(p) > sectorSize {
		return old, err
	}
	return p, d.setHeader(ctx, &h)
}

// fieldsStart is where in the header the fixed fields begin that do not say where others lie, in bytes: cluster_bits is the first.
const fieldsStart = 20

// fieldsEnd returns where they end. They lie in one sector, which is written whole or not at all.
func fieldsEnd(h *ondisk.Header) int64 {
	if h.Version < 3 {
		return ondisk.HeaderLenV2
	}
	return ondisk.HeaderLenV3 - 4 // before header_length
}

// sameLayout reports whether h differs from the header in the file only between fieldsStart and fieldsEnd.
func (d *Device) sameLayout(h *ondisk.Header) bool {
	old := d.h
	return h.Version == old.Version && h.CompressionType == old.CompressionType && h.BackingFile == old.BackingFile &&
		slices.EqualFunc(h.Extensions, old.Extensions, sameExtension)
}

func sameExtension(a, b ondisk.Extension) bool {
	return a.Type == b.Type && bytes.Equal(a.Data, b.Data)
}
