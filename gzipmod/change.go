package gzipmod

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod/mark"
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
	mark mark.Store

	// blocks are locks for stored blocks, by number: reading the old bytes, announcing, writing the new ones and noting the difference are
	// one step.
	blocks  [64]sync.Mutex
	buffers sync.Pool // of *[batchLen]byte

	mu        sync.Mutex // guards what follows
	header    []byte     // as it is in the file
	named     map[blockID]bool
	delta     map[int]uint32 // by region: what its CRC is to be changed by
	changed   int64          // bytes that were not there before
	unsettled bool           // writes since checksums were last written
	durable   bool           // nothing was written since the last flush of the file
	failed    error          // a write left a block in an unknown state: the mark has to stay
	torn      error          // the mark could not be appended to: it takes no more names until it starts anew
	timer     *time.Timer
}

type blockID struct{ region, block int }

func newChanges(d *Device, m mark.Store, header []byte) *changes {
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
	if err := d.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	err := d.write(ctx, p, off)
	d.calls.End()
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
	at := off - d.layout.Regions[i].Off
	if int64(len(p)) > batch {
		// All at once, because each announcement waits for the disk.
		if err := d.changes.name(ctx, i, at, int64(len(p))); err != nil {
			return err
		}
	}
	for len(p) > 0 {
		n := min(int64(len(p)), batch-at%StoredLen)
		if err := d.changes.replace(ctx, i, at, p[:n]); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	return nil
}

// Announce says that the range, all of it kept, will be written. It need not be called; after it the writes do not wait for the disk one by one.
func (d *Device) Announce(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.End()
	i, err := d.kept(off, n)
	if err != nil || n == 0 {
		return err
	}
	return d.changes.name(ctx, i, off-d.layout.Regions[i].Off, n)
}

// Changed returns how many bytes of all Writes since Open differed from what was there.
func (d *Device) Changed() int64 {
	if d.changes == nil {
		return 0
	}
	d.changes.mu.Lock()
	defer d.changes.mu.Unlock()
	return d.changes.changed
}

// Zero implements block.Device by writing zeros.
func (d *Device) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.checkChange(ctx, off, n); err != nil {
		return err
	}
	if f&block.Fast != 0 {
		return errors.ErrUnsupported
	}
	for n > 0 {
		k := min(n, zeroWindow)
		if err := d.Announce(ctx, off, k); err != nil {
			return err
		}
		if err := block.WriteZeros(ctx, d, off, k, 0); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	if f&block.FUA != 0 {
		return d.Flush(ctx)
	}
	return nil
}

// zeroWindow is how much Zero announces at once, in bytes.
const zeroWindow = 1 << 30

// Discard implements block.Device: kept ranges take the same room whatever they hold, so it only checks.
func (d *Device) Discard(ctx context.Context, off, n int64) error { return d.checkChange(ctx, off, n) }

func (d *Device) checkChange(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.End()
	_, err := d.kept(off, n)
	return err
}

// Flush implements block.Device: it writes the checksums and makes all durable.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.calls.BeginAlone(ctx); err != nil {
		return err
	}
	defer d.calls.EndAlone()
	if d.changes == nil {
		return nil
	}
	return d.changes.settle(ctx)
}

// batch is how much of a region is changed in one step at most. It is small, since memory that was not used before costs more than
// another call of the system.
const batch = batchBlocks * StoredLen

const batchBlocks = 4

// batchLen is the length of a batch in the file.
const batchLen = batchBlocks * (StoredLen + storedHeader)

// storedSpan is a range of the file that holds stored blocks of a region.
type storedSpan struct {
	region Region
	off    int64 // in the file
	bytes  []byte
}

// readSpan reads bytes from to to of a region, with the headers between them, into buf.
func (c *changes) readSpan(ctx context.Context, r Region, from, to int64, buf *[batchLen]byte) (storedSpan, error) {
	s := storedSpan{region: r, off: r.storedOff(from)}
	s.bytes = buf[:r.storedOff(to-1)+1-s.off]
	return s, c.dev.file.Read(ctx, s.bytes, s.off)
}

// at returns bytes from to to of the region, which lie in one block.
func (s storedSpan) at(from, to int64) []byte {
	return s.bytes[s.region.storedOff(from)-s.off : s.region.storedOff(to-1)+1-s.off]
}

// name makes the mark name the stored blocks of the n bytes from byte at of region i.
func (c *changes) name(ctx context.Context, i int, at, n int64) error {
	buf := c.buffer()
	defer c.buffers.Put(buf)
	r := c.dev.layout.Regions[i]
	var records []mark.Record
	for b := at / StoredLen; b <= (at+n-1)/StoredLen; b++ {
		if c.areNamed(i, b, b) {
			continue
		}
		unlock := c.lock(b, b)
		s, err := c.readSpan(ctx, r, b*StoredLen, min((b+1)*StoredLen, r.Len), buf)
		unlock()
		if err != nil {
			return err
		}
		records = append(records, mark.Record{Region: uint32(i), Block: uint32(b), CRC: crc32.ChecksumIEEE(s.bytes)})
	}
	return c.announce(ctx, records)
}

func (c *changes) buffer() *[batchLen]byte {
	if buf, ok := c.buffers.Get().(*[batchLen]byte); ok {
		return buf
	}
	return new([batchLen]byte)
}

// replace writes p, which lies in at most batchBlocks stored blocks, at byte at of region i, and notes what that does to the CRC.
// Blocks that hold these bytes already are not touched.
func (c *changes) replace(ctx context.Context, i int, at int64, p []byte) error {
	r, n := c.dev.layout.Regions[i], int64(len(p))
	first, last := at/StoredLen, (at+n-1)/StoredLen
	defer c.lock(first, last)()
	buf := c.buffer()
	defer c.buffers.Put(buf)

	// The mark wants the old CRC of whole blocks, where it does not know it yet.
	from, to := at, at+n
	if !c.areNamed(i, first, last) {
		from, to = first*StoredLen, min((last+1)*StoredLen, r.Len)
	}
	s, err := c.readSpan(ctx, r, from, to, buf)
	if err != nil {
		return err
	}
	var edits []edit
	var records []mark.Record
	for b := first; b <= last; b++ {
		e := edit{off: max(at, b*StoredLen), end: min(at+n, (b+1)*StoredLen)}
		e.old, e.new = s.at(e.off, e.end), p[e.off-at:e.end-at]
		if e.differ = differing(e.old, e.new); e.differ == 0 {
			continue
		}
		e.before = crc32.ChecksumIEEE(e.old)
		edits = append(edits, e)
		if !c.areNamed(i, b, b) {
			whole := s.at(b*StoredLen, min((b+1)*StoredLen, r.Len))
			records = append(records, mark.Record{Region: uint32(i), Block: uint32(b), CRC: crc32.ChecksumIEEE(whole)})
		}
	}
	if len(edits) == 0 {
		return nil
	}
	if err := c.announce(ctx, records); err != nil {
		return err
	}
	for _, e := range edits {
		copy(e.old, e.new)
	}
	// Headers of blocks in between, and blocks that do not differ, are written again as they are.
	low, high := r.storedOff(edits[0].off), r.storedOff(edits[len(edits)-1].end-1)+1
	err = c.dev.file.Write(ctx, s.bytes[low-s.off:high-s.off], low, 0)
	if err != nil {
		// Old bytes, new bytes, or a mixture: what is there now counts.
		if e := c.dev.file.Read(context.WithoutCancel(ctx), s.bytes, s.off); e != nil {
			c.mu.Lock()
			c.failed = errors.Join(err, e)
			c.mu.Unlock()
			return err
		}
	}
	c.note(i, edits)
	return err
}

// edit is the part of a change that lies in one stored block.
type edit struct {
	off, end int64  // in the region
	old, new []byte // old is part of the span, and holds the new bytes once they are written
	before   uint32 // CRC-32 of what was there
	differ   int64
}

// note adds what edits have done to the CRC of region i.
func (c *changes) note(i int, edits []edit) {
	end := c.dev.layout.Regions[i].Len
	var delta uint32
	var differ int64
	for _, e := range edits {
		delta ^= crcmath.Across(end - e.end).Shift(e.before ^ crc32.ChecksumIEEE(e.old))
		differ += e.differ
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delta[i] ^= delta
	c.changed += differ
	c.unsettled, c.durable = true, false
}

// lock takes the locks of the blocks first to last of a region, always in the same order, and returns what releases them.
func (c *changes) lock(first, last int64) (unlock func()) {
	n := int64(len(c.blocks))
	held := func(k int64) bool { return (k-first%n+n)%n <= last-first }
	for k := range n {
		if held(k) {
			c.blocks[k].Lock()
		}
	}
	return func() {
		for k := range n {
			if held(k) {
				c.blocks[k].Unlock()
			}
		}
	}
}

// areNamed reports whether the mark names all of the blocks.
func (c *changes) areNamed(region int, first, last int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := first; b <= last; b++ {
		if !c.named[blockID{region, int(b)}] {
			return false
		}
	}
	return true
}

// announce makes the mark name the blocks of the records, durably. The first record of a block counts.
func (c *changes) announce(ctx context.Context, records []mark.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	var err error
	switch {
	case len(records) == 0:
	case len(c.named) == 0:
		err = c.mark.Save(ctx, mark.AppendBatch(mark.AppendBase(nil, c.dev.layout.FileSize, c.header), records))
	case c.torn == nil:
		c.torn = c.mark.Append(ctx, mark.AppendBatch(nil, records))
		err = c.torn
	default:
		err = c.torn
	}
	if err != nil {
		return fmt.Errorf("the change cannot be announced: %w", err)
	}
	for _, rec := range records {
		c.named[blockID{int(rec.Region), int(rec.Block)}] = true
	}
	return nil
}

// differing returns how many bytes of a and b, which have the same length, differ.
func differing(a, b []byte) (n int64) {
	if bytes.Equal(a, b) {
		return 0
	}
	const low = 0x7f7f7f7f7f7f7f7f
	for ; len(a) >= 8; a, b = a[8:], b[8:] {
		x := binary.LittleEndian.Uint64(a) ^ binary.LittleEndian.Uint64(b)
		n += int64(bits.OnesCount64((x&low + low | x) &^ low)) // the top bit of each byte that is not zero
	}
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
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
	if c.dev.calls.BeginAlone(context.Background()) != nil {
		return
	}
	defer c.dev.calls.EndAlone()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unsettled || !c.durable || c.failed != nil || len(c.named) == 0 {
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
		if dirty, e := mark.Exists(ctx, c.mark); dirty || e != nil {
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
