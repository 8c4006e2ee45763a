package qcow2

import (
	"context"

	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Read implements block.Device.
func (d *Device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer d.calls.End()
	defer d.users.leave(d.users.enter())
	return d.read(ctx, p, off)
}

// read reads inside of a call.
func (d *Device) read(ctx context.Context, p []byte, off int64) error {
	var parts []packedPart
	for len(p) > 0 {
		r, err := d.lookup(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		q := p[:r.len]
		switch r.kind {
		case zero:
			clear(q)
		case unallocated:
			err = d.backing.Read(ctx, q, off)
		case plain:
			err = d.readPlain(ctx, q, off, r.host)
		case packed:
			parts, err = d.appendPacked(parts, q, off, r.entry)
		}
		if err != nil {
			return err
		}
		p, off = p[r.len:], off+r.len
	}
	if len(parts) == 0 {
		return nil
	}
	return d.unpacker.read(ctx, d, parts)
}

// readPlain reads bytes that lie at host in the file with the data. It may end inside the last cluster, of which the rest is zero.
func (d *Device) readPlain(ctx context.Context, p []byte, off, host int64) error {
	dev, err := d.dataFile(ctx)
	if err != nil {
		return err
	}
	if size := dev.Size(); host+int64(len(p)) > size {
		if last := d.floor(host + int64(len(p)) - 1); last >= size {
			return d.behindEnd(off, last, size)
		}
		n := max(0, size-host)
		clear(p[n:])
		p = p[:n]
		if n == 0 {
			return nil
		}
	}
	if d.h.CryptMethod != ondisk.CryptNone && d.crypt == nil {
		return d.cryptErr
	}
	if err := dev.Read(ctx, p, host); err != nil || d.crypt == nil {
		return err
	}
	return d.crypt.decrypt(p, off, host)
}

// behindEnd returns the error of a cluster that lies behind the end of a file.
func (d *Device) behindEnd(off, host, size int64) error {
	return d.corrupt("L2 entry", -1, "the cluster at byte %d of the disk lies at byte %d, behind the end of the file at %d", d.floor(off), d.floor(host), size)
}

// Prefetch implements block.Device: it reads the tables for the range, and passes the hint on for plain data.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.End()
	defer d.users.leave(d.users.enter())
	for n > 0 {
		r, err := d.lookup(ctx, off, n)
		if err != nil {
			return err
		}
		if r.kind == plain {
			dev, err := d.dataFile(ctx)
			if err != nil {
				return err
			}
			if k := min(r.len, dev.Size()-r.host); k > 0 {
				if err := dev.Prefetch(ctx, r.host, k); err != nil {
					return err
				}
			}
		}
		off, n = off+r.len, n-r.len
	}
	return nil
}
