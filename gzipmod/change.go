package gzipmod

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// idle is how long after a Flush the mark is removed, if nothing is written in between.
const idle = time.Second

// changes is the writing half of a Device.
//
// The order of things, which makes every moment repairable: the mark names a stored block and holds its old CRC, durably, before the
// block is first written. From then on it does not matter in which order blocks, index and trailer reach the disk: Repair
// recomputes the checksums from the mark. When everything is durable the mark is removed.
type changes struct {
	dev  *Device
	mark Mark

	// blocks are locks for stored blocks, by number: reading the old bytes, writing the new ones and noting the difference are one step.
	blocks [64]sync.Mutex

	mu        sync.Mutex // guards what follows
	header    []byte     // as it is in the file
	named     map[blockID]bool
	delta     map[int]uint32 // by region: what its CRC is to be changed by
	unsettled bool           // writes since checksums were last written
	durable   bool           // nothing was written since the last flush of the file
	failed    error          // a write left a block in an unknown state: the mark has to stay
	torn      error          // the mark could not be appended to: it takes no more names until it starts anew
	timer     *time.Timer
}

type blockID struct{ region, block int }

func newChanges(d *Device, m Mark, header []byte) *changes {
	return &changes{dev: d, mark: m, header: header, named: map[blockID]bool{}, delta: map[int]uint32{}, durable: true}
}

// kept returns the kept region that holds all of the range.
func (d *Device) kept(off, n int64) (int, error) {
	if d.changes == nil {
		return 0, block.ErrReadOnly
	}
	if n == 0 {
		return -1, nil
	}
	i := d.layout.regionAt(off)
	for k := i; k < len(d.layout.Regions) && d.layout.Regions[k].Off < off+n; k++ {
		if r := d.layout.Regions[k]; r.Kind != Kept || r.End() < off+n {
			at := max(off, r.Off)
			if r.Kind == Kept {
				at = r.End()
			}
			return 0, &compressedError{off, n, at}
		}
	}
	return i, nil
}

// Write implements block.Device. It returns an error that is ErrCompressed and block.ErrReadOnly where a part of the range is not kept; then nothing
// is written.
func (d *Device) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	err := d.write(ctx, p, off)
	d.life.RUnlock()
	if err == nil && f&block.FUA != 0 {
		err = d.Flush(ctx)
	}
	return err
}

func (d *Device) write(ctx context.Context, p []byte, off int64) error {
	i, err := d.kept(off, int64(len(p)))
	if err != nil || len(p) == 0 {
		return err
	}
	r := d.layout.Regions[i]
	if err := d.changes.name(ctx, i, off-r.Off, p); err != nil {
		return err
	}
	return eachStored(r, off, int64(len(p)), func(fileOff, done, n int64) error {
		return d.changes.replace(ctx, i, off+done-r.Off, p[done:done+n], fileOff)
	})
}

// Zero implements block.Device by writing zeros.
func (d *Device) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.checkChange(off, n); err != nil {
		return err
	}
	if f&block.Fast != 0 {
		return errors.ErrUnsupported
	}
	return block.WriteZeros(ctx, d, off, n, f)
}

// Discard implements block.Device: kept ranges take the same room whatever they hold, so it only checks.
func (d *Device) Discard(_ context.Context, off, n int64) error { return d.checkChange(off, n) }

func (d *Device) checkChange(off, n int64) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.life.RUnlock()
	_, err := d.kept(off, n)
	return err
}

// Flush implements block.Device: it writes the checksums and makes all durable.
func (d *Device) Flush(ctx context.Context) error {
	d.life.Lock()
	defer d.life.Unlock()
	if err := d.enterLocked(); err != nil || d.changes == nil {
		return err
	}
	return d.changes.settle(ctx)
}

func (d *Device) enterLocked() error {
	if d.closed {
		return os.ErrClosed
	}
	return nil
}

// name makes the mark name those stored blocks of region i that writing p at byte at of it would change.
func (c *changes) name(ctx context.Context, i int, at int64, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	r := c.dev.layout.Regions[i]
	var records []record
	buf := make([]byte, StoredLen)
	for len(p) > 0 {
		b, in := at/StoredLen, at%StoredLen
		part := p[:min(int64(len(p)), StoredLen-in)]
		p, at = p[len(part):], at+int64(len(part))
		if c.named[blockID{i, int(b)}] {
			continue
		}
		old := buf[:min(StoredLen, r.Len-b*StoredLen)]
		if err := c.dev.file.Read(ctx, old, r.storedOff(b*StoredLen)); err != nil {
			return err
		}
		if !bytes.Equal(part, old[in:in+int64(len(part))]) {
			records = append(records, record{uint32(i), uint32(b), crc32.ChecksumIEEE(old)})
		}
	}
	if err := c.announce(ctx, records); err != nil {
		return fmt.Errorf("the change cannot be announced: %w", err)
	}
	for _, rec := range records {
		c.named[blockID{i, int(rec.block)}] = true
	}
	return nil
}

// announce makes the mark hold the records, durably.
func (c *changes) announce(ctx context.Context, records []record) error {
	switch {
	case len(records) == 0:
		return nil
	case len(c.named) == 0:
		return c.mark.Save(ctx, marshalBatch(marshalBase(c.dev.layout.FileSize, c.header), records))
	case c.torn == nil:
		c.torn = c.mark.Append(ctx, marshalBatch(nil, records))
	}
	return c.torn
}

// replace writes p, which lies in one stored block, at byte at of region i and at fileOff of the file, and notes what that does to the CRC.
// Bytes that are there already are not written.
func (c *changes) replace(ctx context.Context, i int, at int64, p []byte, fileOff int64) error {
	id := blockID{i, int(at / StoredLen)}
	lock := &c.blocks[id.block%len(c.blocks)]
	lock.Lock()
	defer lock.Unlock()
	old := make([]byte, len(p))
	if err := c.dev.file.Read(ctx, old, fileOff); err != nil {
		return err
	}
	skip := commonPrefix(old, p)
	if skip == len(p) {
		return nil
	}
	c.mu.Lock()
	named := c.named[id]
	c.mu.Unlock()
	if !named { // it was equal when name looked, and another write came in between
		if err := c.name(ctx, i, at, p); err != nil {
			return err
		}
	}
	old, p, at, fileOff = old[skip:], p[skip:], at+int64(skip), fileOff+int64(skip)
	before := crc32.ChecksumIEEE(old)
	err := c.dev.file.Write(ctx, p, fileOff, 0)
	after := crc32.ChecksumIEEE(p)
	if err != nil {
		// Old bytes, new bytes, or a mixture: what is there now counts.
		if e := c.dev.file.Read(context.WithoutCancel(ctx), old, fileOff); e != nil {
			c.mu.Lock()
			c.failed = errors.Join(err, e)
			c.mu.Unlock()
			return err
		}
		after = crc32.ChecksumIEEE(old)
	}
	r := c.dev.layout.Regions[i]
	delta := crcmath.Across(r.Len - at - int64(len(p))).Shift(before ^ after)
	c.mu.Lock()
	c.delta[i] ^= delta
	c.unsettled, c.durable = true, false
	c.mu.Unlock()
	return err
}

// commonPrefix returns how many bytes a and b, of the same length, have in common at the start, in whole pages.
func commonPrefix(a, b []byte) int {
	n := 0
	for ; n < len(a); n += KeepUnit {
		if end := min(n+KeepUnit, len(a)); !bytes.Equal(a[n:end], b[n:end]) {
			return n
		}
	}
	return len(a)
}

// settle writes the checksums and makes everything durable. The caller holds dev.life for writing, so that no write is in flight.
func (c *changes) settle(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return fmt.Errorf("the checksums cannot be settled, a write failed before: %w", c.failed)
	}
	if c.unsettled {
		if err := c.writeSums(ctx); err != nil {
			return err
		}
	}
	if !c.durable {
		if err := c.dev.file.Flush(ctx); err != nil {
			return err
		}
		c.durable = true
	}
	if len(c.named) > 0 && c.timer == nil {
		c.timer = time.AfterFunc(idle, c.removeIdle)
	} else if c.timer != nil {
		c.timer.Reset(idle)
	}
	return nil
}

// writeSums brings the layout, the index and the trailer in line with what was written.
func (c *changes) writeSums(ctx context.Context) error {
	l := c.dev.layout
	for i, delta := range c.delta {
		l.Regions[i].CRC ^= delta
	}
	clear(c.delta)
	index := l.marshalIndex()
	copy(c.header[indexOff:], index)
	if err := c.dev.file.Write(ctx, index, indexOff, 0); err != nil {
		return err
	}
	trailer := binary.LittleEndian.AppendUint32(nil, l.CRC())
	if err := c.dev.file.Write(ctx, trailer, l.FileSize-8, 0); err != nil {
		return err
	}
	c.unsettled = false
	return nil
}

// removeIdle removes the mark when nothing was written for a while.
func (c *changes) removeIdle() {
	c.dev.life.Lock()
	defer c.dev.life.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dev.closed || c.unsettled || !c.durable || c.failed != nil || len(c.named) == 0 {
		return
	}
	if c.mark.Clear(context.Background()) == nil {
		clear(c.named)
		c.torn = nil
	}
}

// finish settles and removes the mark, for Close.
func (c *changes) finish(ctx context.Context) error {
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	named := len(c.named) > 0
	c.mu.Unlock()
	if !named {
		return nil
	}
	if err := c.settle(ctx); err != nil {
		if dirty, e := Marked(ctx, c.mark); dirty || e != nil {
			return fmt.Errorf("%w: %w", ErrDirty, err)
		}
		return err // nobody will repair a file that has no name yet
	}
	c.timer.Stop()
	if err := c.mark.Clear(ctx); err != nil {
		return fmt.Errorf("the change is complete, but its mark could not be removed: %w", err)
	}
	return nil
}
