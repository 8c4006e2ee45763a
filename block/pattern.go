package block

import (
	"context"
	"encoding/binary"
)

// NewPattern returns a device of size bytes, to be read only, whose content tells where it comes from: the 8 bytes at every multiple
// of 8 are their own offset as a big-endian number (the content of nbdkit-pattern-plugin). It panics where size is negative.
func NewPattern(size int64) Device {
	if size < 0 {
		panic("block: NewPattern of a negative size")
	}
	return &pattern{size: size}
}

type pattern struct {
	ReadOnly
	calls Calls
	size  int64
}

func (d *pattern) Info() Info {
	return Info{Name: "pattern", Format: "pattern", MinBlock: 1, PreferredBlock: pageSize, Caps: Caps{MultiConn: true}}
}

func (d *pattern) Size() int64 { return d.size }

func (d *pattern) check(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	defer d.calls.End()
	return CheckRange(off, n, d.size)
}

func (d *pattern) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.check(ctx, off, int64(len(p))); err != nil {
		return err
	}
	var word [8]byte
	if in := off % 8; in != 0 {
		binary.BigEndian.PutUint64(word[:], uint64(off-in))
		k := copy(p, word[in:])
		p, off = p[k:], off+int64(k)
	}
	for ; len(p) >= 8; p, off = p[8:], off+8 {
		binary.BigEndian.PutUint64(p, uint64(off))
	}
	binary.BigEndian.PutUint64(word[:], uint64(off))
	copy(p, word[:])
	return nil
}

func (d *pattern) Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error) {
	return oneExtent(d.check(ctx, off, n), m, Extent{Off: off, Len: n, Flags: ExtData}, buf)
}

func (d *pattern) Prefetch(ctx context.Context, off, n int64) error { return d.check(ctx, off, n) }
func (d *pattern) Close() error                                     { return d.calls.Close() }
