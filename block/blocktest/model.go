package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
)

// model is what a device, or a range of it from base on, must hold.
type model struct {
	base    int64
	data    []byte
	undef   []bool // discarded: any byte may be there
	forgets bool
}

// newModel returns what a fresh device of c holds.
func newModel(c Config) (*model, error) {
	m := &model{data: make([]byte, c.Size), undef: make([]bool, c.Size), forgets: c.Forgets}
	if c.Content != nil {
		if n, err := c.Content.ReadAt(m.data, 0); n < len(m.data) {
			return nil, fmt.Errorf("got %d of %d bytes: %w", n, len(m.data), err)
		}
	}
	return m, nil
}

func (m *model) end() int64 { return m.base + int64(len(m.data)) }

// part returns the model of the range [off, off+n), which shares its content.
func (m *model) part(off, n int64) *model {
	at := off - m.base
	return &model{base: off, data: m.data[at : at+n], undef: m.undef[at : at+n], forgets: m.forgets}
}

// write puts p at off, or zeros where p is nil, and grows where that is past the end.
func (m *model) write(p []byte, off, n int64) {
	if off+n > m.end() {
		m.resize(off + n)
	}
	if m.forgets {
		return
	}
	part := m.part(off, n)
	clear(part.data)
	copy(part.data, p)
	clear(part.undef)
}

func (m *model) discard(off, n int64) {
	for i := range m.part(off, n).undef {
		m.undef[off-m.base+int64(i)] = !m.forgets
	}
}

func (m *model) resize(size int64) {
	if grow := size - m.end(); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
		m.undef = append(m.undef, make([]bool, grow)...)
	}
	m.data, m.undef = m.data[:size-m.base], m.undef[:size-m.base]
}

// match compares bytes read from off with the model.
func (m *model) match(got []byte, off int64) error {
	part := m.part(off, int64(len(got)))
	if bytes.Equal(got, part.data) {
		return nil
	}
	for i, b := range got {
		if b != part.data[i] && !part.undef[i] {
			return fmt.Errorf("byte %d reads as %#02x, want %#02x", off+int64(i), b, part.data[i])
		}
	}
	return nil
}

// read reads a range of d and compares it.
func (m *model) read(ctx context.Context, d block.Device, off, n int64) error {
	got, err := readRange(ctx, d, off, n)
	if err == nil {
		err = m.match(got, off)
	}
	if err != nil {
		return fmt.Errorf("read of %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// readRange reads a range into a buffer that held something else, so that bytes which are not filled show.
func readRange(ctx context.Context, d block.Device, off, n int64) ([]byte, error) {
	got := bytes.Repeat([]byte{0xa7}, int(n))
	return got, d.Read(ctx, got, off)
}

// compare reads all that the model covers.
func (m *model) compare(ctx context.Context, d block.Device) error {
	if m.base == 0 && d.Size() != m.end() {
		return fmt.Errorf("the size is %d, want %d", d.Size(), m.end())
	}
	const piece = 1 << 20
	for off := m.base; off < m.end(); off += piece {
		if err := m.read(ctx, d, off, min(piece, m.end()-off)); err != nil {
			return err
		}
	}
	return nil
}

// absorb takes over a range in which a change was refused: every byte is the old one or the new one of p (zero where p is nil).
func (m *model) absorb(ctx context.Context, d block.Device, p []byte, off, n int64) error {
	got, err := readRange(ctx, d, off, n)
	if err != nil {
		return err
	}
	part := m.part(off, n)
	for i, b := range got {
		var fresh byte
		if p != nil {
			fresh = p[i]
		}
		if b != part.data[i] && b != fresh && !part.undef[i] {
			return fmt.Errorf("after a refused change byte %d reads as %#02x, neither the old %#02x nor the new %#02x", off+int64(i), b, part.data[i], fresh)
		}
	}
	copy(part.data, got)
	clear(part.undef)
	return nil
}

// extents asks for all extents of a range, call by call, and checks what the contract says of each call.
func extents(ctx context.Context, d block.Device, m block.Map, off, n int64) ([]block.Extent, error) {
	// What the caller has already ends where the answer begins, so that a device which merges the two shows: a hole or data, by turns.
	own := []block.Extent{{Len: 1, Flags: block.ExtZero}, {Len: 1, Flags: block.ExtData}}
	var all []block.Extent
	for end := off + n; off < end; {
		if own[0].Off, own[1].Off = off-1, off-1; off%2 == 1 {
			own[0], own[1] = own[1], own[0]
		}
		buf := append(make([]block.Extent, 0, 64), own...)
		got, err := d.Extents(ctx, m, off, end-off, buf)
		if err != nil {
			return all, fmt.Errorf("extents of %d bytes at %d: %w", end-off, off, err)
		}
		if len(got) < 2 || got[0] != own[0] || got[1] != own[1] {
			return all, fmt.Errorf("extents at %d: what was in the buffer before has changed from %v to %v", off, own, got)
		}
		if got = got[2:]; len(got) == 0 {
			return all, fmt.Errorf("extents of %d bytes at %d: none", end-off, off)
		}
		for _, e := range got {
			if e.Off != off || e.Len < 1 || e.Len > end-e.Off || e.Depth < 0 {
				return all, fmt.Errorf("extent %+v, want one that starts at %d and does not reach past %d", e, off, end)
			}
			off = e.End()
		}
		all = append(all, got...)
	}
	return all, nil
}

// mapped checks the extents of a range, and that those which read as zero do.
func mapped(ctx context.Context, d block.Device, off, n int64) ([]block.Extent, error) {
	all, err := extents(ctx, d, block.Map{}, off, n)
	if err != nil {
		return all, err
	}
	for _, e := range all {
		if e.Flags&block.ExtZero == 0 {
			continue
		}
		got, err := readRange(ctx, d, e.Off, e.Len)
		if err != nil {
			return all, err
		}
		if !block.IsZero(got) {
			return all, fmt.Errorf("extent %+v is said to be zero and is not", e)
		}
	}
	return all, nil
}

// refused reports whether err is a refusal that the extents explain: a part of the range is read-only.
func refused(ctx context.Context, d block.Device, err error, off, n int64) bool {
	if !errors.Is(err, block.ErrReadOnly) || block.CheckRange(off, n, d.Size()) != nil {
		return false
	}
	all, err := extents(ctx, d, block.Map{}, off, n)
	for _, e := range all {
		if e.Flags&block.ExtReadOnly != 0 {
			return err == nil
		}
	}
	return false
}
