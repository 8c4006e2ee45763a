package block

import "sync"

type page [pageSize]byte

// chunk is a stretch of chunkSize bytes of a Memory of which at least one page was written. read and extents lock it; the caller
// of the others holds mu, or the whole Memory.
type chunk struct {
	mu     sync.RWMutex
	pages  [chunkPages]*page // nil where not stored: reads as zero
	used   int               // pages that are stored
	shared [chunkPages]bool  // the page belongs to a clone as well: it must be copied rather than changed
}

// shareAll marks what is stored as belonging to a clone as well.
func (c *chunk) shareAll() {
	for i, p := range c.pages {
		c.shared[i] = p != nil
	}
}

// own returns page i, stored and not shared.
func (c *chunk) own(i int) *page {
	p := c.pages[i]
	if p != nil && !c.shared[i] {
		return p
	}
	q := new(page)
	if p != nil {
		*q = *p
	} else {
		c.used++
	}
	c.pages[i], c.shared[i] = q, false
	return q
}

// read fills p from byte at of the chunk on.
func (c *chunk) read(p []byte, at int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for len(p) > 0 {
		i, in := at/pageSize, at%pageSize
		k := min(len(p), pageSize-in)
		if stored := c.pages[i]; stored != nil {
			copy(p[:k], stored[in:])
		} else {
			clear(p[:k])
		}
		p, at = p[k:], at+k
	}
}

// write stores p from byte at of the chunk on.
func (c *chunk) write(p []byte, at int) {
	for len(p) > 0 {
		i, in := at/pageSize, at%pageSize
		k := min(len(p), pageSize-in)
		if IsZero(p[:k]) {
			c.zeroPage(i, in, k, false)
		} else {
			copy(c.own(i)[in:], p[:k])
		}
		p, at = p[k:], at+k
	}
}

// zero makes the bytes from one offset in the chunk to another zero.
func (c *chunk) zero(from, to int, keep bool) {
	for from < to {
		i, in := from/pageSize, from%pageSize
		k := min(to-from, pageSize-in)
		c.zeroPage(i, in, k, keep)
		from += k
	}
}

// zeroPage makes n bytes of page i zero, and forgets the page where nothing else is in it, unless keep is set.
func (c *chunk) zeroPage(i, in, n int, keep bool) {
	p := c.pages[i]
	if p == nil {
		return
	}
	if keep || !IsZero(p[:in]) || !IsZero(p[in+n:]) {
		clear(c.own(i)[in : in+n])
		return
	}
	c.pages[i], c.shared[i] = nil, false
	c.used--
}

// extents describes the bytes of the device from pos to end that lie in the chunk, which starts at start.
func (c *chunk) extents(buf []Extent, base int, start, pos, end int64) []Extent {
	c.mu.RLock()
	defer c.mu.RUnlock()
	end = start + min(end-start, chunkSize)
	if c.used == chunkPages {
		return AppendExtent(buf, base, Extent{Off: pos, Len: end - pos, Flags: ExtData})
	}
	for pos < end {
		flags := ExtZero
		if c.pages[(pos-start)/pageSize] != nil {
			flags = ExtData
		}
		n := min(end-pos, pageSize-pos%pageSize)
		buf = AppendExtent(buf, base, Extent{Off: pos, Len: n, Flags: flags})
		pos += n
	}
	return buf
}
