package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/partition"
)

// contentOf says in a few words what a device holds, as its first bytes have it: an image format, a partition table, a file system, or data.
func contentOf(ctx context.Context, d block.Device, registry formats.Registry) (string, error) {
	if d.Size() == 0 {
		return "empty", nil
	}
	head := formats.NewHead(ctx, d)
	driver, _ := registry.Probe(head)
	if err := head.Err(); err != nil {
		return "", err
	}
	if driver != nil && driver.Name != raw.Name {
		return driver.Name + " image", nil
	}
	table, err := partition.Read(ctx, block.NoClose(d))
	switch {
	case err == nil:
		return fmt.Sprintf("%s partition table, %s", table.Scheme, plural(len(table.Partitions), "partition")), nil
	case !errors.Is(err, partition.ErrNone):
		return "", err
	}
	fs, err := partition.Probe(ctx, d)
	switch {
	case err != nil:
		return "", err
	case fs.Type == "":
		return "data", nil
	}
	text := fs.Type
	if fs.Label != "" {
		text += fmt.Sprintf(", label %q", fs.Label)
	}
	if fs.UUID != "" {
		text += ", UUID " + fs.UUID
	}
	return text, nil
}

// connDevice is the export of a connection in transmission as a device that is read by few.
type connDevice struct {
	block.ReadOnly
	conn *client.Conn
}

// newConnDevice returns it for reads of any alignment and length. Closing it leaves the connection open.
func newConnDevice(c *client.Conn) block.Device { return block.Align(connDevice{conn: c}, 0) }

// Info implements block.Device.
func (d connDevice) Info() block.Info {
	e := d.conn.Export()
	return block.Info{Name: "nbd", Format: raw.Name, MinBlock: e.MinBlock, PreferredBlock: max(e.MinBlock, e.PreferredBlock), MaxBlock: d.conn.MaxPayload()}
}

// Size implements block.Device.
func (d connDevice) Size() int64 { return d.conn.Export().Size }

// Read implements block.Device.
func (d connDevice) Read(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), d.Size()); err != nil || len(p) == 0 {
		return err
	}
	return d.conn.Read(ctx, p, off, 0)
}

// Extents describes everything as data.
func (d connDevice) Extents(_ context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := block.CheckRange(off, n, d.Size()); err != nil || n == 0 {
		return buf, err
	}
	if m.Bitmap != "" {
		return buf, errors.ErrUnsupported
	}
	return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
}

// Prefetch does nothing.
func (d connDevice) Prefetch(context.Context, int64, int64) error { return nil }

// Close does nothing.
func (d connDevice) Close() error { return nil }
