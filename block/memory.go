package block

import (
	"context"
	"errors"
	"math"
	"sync"
)

const (
	pageSize   = 4096 // bytes; the granularity of Memory and Overlay
	chunkPages = 512
	chunkSize  = pageSize * chunkPages

	// extentBatch is about how many extents one call of Extents describes.
	extentBatch = 1024
)

// Memory is a sparse device in memory. It stores pages of 4096 bytes, and none that hold only zeros unless Zero was asked to keep
// them, so that a device of any size costs what was written to it. It grows by writing past its end. Nothing of it is durable,
// and Flush and FUA cost nothing.
type Memory struct {
	calls Calls

	// mu guards size and chunks. With it held for reading, a chunk's pages are guarded by the chunk's own lock.
	mu     sync.RWMutex
	size   int64
	chunks sparse[*chunk]
}

// NewMemory returns a device of size bytes that reads as zero. It panics where size is negative.
func NewMemory(size int64) *Memory {
	if size < 0 {
		panic("block: NewMemory of a negative size")
	}
	return &Memory{size: size}
}

// Clone returns an independent device with the content that m has now. The two share pages until one of them writes, so that it
// costs time and memory for pointers only: 8 bytes for each page of a region that holds any.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Memory{size: m.size}
	for i, old := range m.chunks.vals {
		old.shareAll()
		c.chunks.insert(i, m.chunks.keys[i], &chunk{pages: old.pages, used: old.used, shared: old.shared})
	}
	return c
}

// Info implements Device.
func (m *Memory) Info() Info {
	return Info{
		Name: "memory", Format: "memory", MinBlock: 1, PreferredBlock: pageSize,
		Caps: Caps{Write: true, Grow: true, Resize: true, FUA: true, Zero: true, FastZero: true, Discard: true, MultiConn: true},
	}
}

// Size implements Device.
func (m *Memory) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// Read implements Device.
func (m *Memory) Read(ctx context.Context, p []byte, off int64) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := off % chunkSize
		k := int(min(int64(len(p)), chunkSize-at))
		if i, found := m.chunks.search(off / chunkSize); found {
			m.chunks.vals[i].read(p[:k], int(at))
		} else {
			clear(p[:k])
		}
		p, off = p[k:], off+int64(k)
	}
	return nil
}

// Write implements Device. Zeros that are written are not stored.
func (m *Memory) Write(ctx context.Context, p []byte, off int64, _ Flags) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	if err := m.checkGrow(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := int(min(int64(len(p)), chunkSize-off%chunkSize))
		m.writeChunk(p[:k], off)
		p, off = p[k:], off+int64(k)
	}
	return nil
}

// checkGrow is CheckRange for calls that may extend the device.
func (m *Memory) checkGrow(off, n int64) error {
	size := m.Size()
	if n == 0 {
		return CheckRange(off, n, size)
	}
	if CheckRange(off, n, math.MaxInt64) != nil {
		return &RangeError{Off: off, Len: n, Size: size}
	}
	return nil
}

// writeChunk writes p, which lies inside one chunk.
func (m *Memory) writeChunk(p []byte, off int64) {
	key, at, end := off/chunkSize, int(off%chunkSize), off+int64(len(p))
	if m.writeInPlace(p, key, at, end) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = max(m.size, end)
	i, found := m.chunks.search(key)
	if !found {
		if IsZero(p) {
			return
		}
		m.chunks.insert(i, key, new(chunk))
	}
	m.chunks.vals[i].write(p, at)
}

// writeInPlace writes p where that needs neither a new chunk nor a new size, and reports whether it did.
func (m *Memory) writeInPlace(p []byte, key int64, at int, end int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, found := m.chunks.search(key)
	if !found || end > m.size {
		return false
	}
	c := m.chunks.vals[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write(p, at)
	return true
}

// Zero implements Device. With NoHole the pages that are stored stay; this takes the time of writing them, so that NoHole with Fast
// is not supported.
func (m *Memory) Zero(ctx context.Context, off, n int64, f Flags) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	if err := m.checkGrow(off, n); err != nil || n == 0 {
		return err
	}
	if f&Fast != 0 && f&NoHole != 0 {
		return errors.ErrUnsupported
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = max(m.size, off+n)
	m.zero(off, off+n, f&NoHole != 0)
	return nil
}

// Discard implements Device: the range reads as zero afterwards.
func (m *Memory) Discard(ctx context.Context, off, n int64) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := CheckRange(off, n, m.size); err != nil {
		return err
	}
	m.zero(off, off+n, false)
	return nil
}

// zero makes [off, end) zero, and forgets its pages unless keep is set. The caller holds mu.
func (m *Memory) zero(off, end int64, keep bool) {
	first, _ := m.chunks.search(off / chunkSize)
	last, kept := first, first
	for ; last < len(m.chunks.keys) && m.chunks.keys[last]*chunkSize < end; last++ {
		c, start := m.chunks.vals[last], m.chunks.keys[last]*chunkSize
		from, to := max(off-start, 0), min(end-start, chunkSize)
		if whole := from == 0 && to == chunkSize; whole && !keep {
			continue
		}
		c.zero(int(from), int(to), keep)
		if c.used > 0 {
			m.chunks.keys[kept], m.chunks.vals[kept] = m.chunks.keys[last], c
			kept++
		}
	}
	m.chunks.remove(kept, last)
}

// Extents implements Device. It is exact: a page that is stored is data, every other one a hole that reads as zero.
func (m *Memory) Extents(ctx context.Context, mp Map, off, n int64, buf []Extent) ([]Extent, error) {
	if err := m.calls.Begin(ctx); err != nil {
		return buf, err
	}
	defer m.calls.End()
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := CheckRange(off, n, m.size); err != nil {
		return buf, err
	}
	if mp != (Map{}) {
		return buf, errors.ErrUnsupported
	}
	base, pos, end := len(buf), off, off+n
	i, _ := m.chunks.search(off / chunkSize)
	for pos < end && len(buf)-base < extentBatch {
		next := end
		if i < len(m.chunks.keys) {
			next = min(end, max(pos, m.chunks.keys[i]*chunkSize))
		}
		if pos < next {
			buf = AppendExtent(buf, base, Extent{Off: pos, Len: next - pos, Flags: ExtZero})
		}
		if next < end {
			buf = m.chunks.vals[i].extents(buf, base, m.chunks.keys[i]*chunkSize, next, end)
			i++
		}
		pos = buf[len(buf)-1].End()
	}
	return buf, nil
}

// Prefetch checks the range; there is nothing to fetch.
func (m *Memory) Prefetch(ctx context.Context, off, n int64) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	return CheckRange(off, n, m.Size())
}

// Resize implements Device.
func (m *Memory) Resize(ctx context.Context, size int64) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	defer m.calls.End()
	m.mu.Lock()
	defer m.mu.Unlock()
	if size < 0 {
		return &RangeError{Off: size, Size: m.size}
	}
	if size < m.size {
		m.zero(size, m.size, false)
	}
	m.size = size
	return nil
}

// Flush has nothing to do.
func (m *Memory) Flush(ctx context.Context) error {
	if err := m.calls.Begin(ctx); err != nil {
		return err
	}
	m.calls.End()
	return nil
}

// Close forgets the content.
func (m *Memory) Close() error {
	if err := m.calls.Close(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks = sparse[*chunk]{}
	return nil
}
