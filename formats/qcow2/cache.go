package qcow2

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// slice is a part of an L2 table in memory.
type slice struct {
	host int64 // where it lies in the file
	pins atomic.Int32
	used atomic.Bool

	mu      sync.RWMutex
	err     error    // of reading it; then it is in no cache any more
	entries []uint64 // words; an extended entry has two
	dirty   bool     // it has changed since it was last written
	lo, hi  int      // the words that have
	counted bool     // its table was found to be used by nothing else
	// writable has a bit for each entry of which the place was found to be a good one to write to. Those that were made here are.
	writable []uint64
}

const cacheShards = 16

// sliceCache holds slices that have been used lately. It has room for a number of them; those that are pinned or dirty stay whatever it is.
type sliceCache struct {
	shards [cacheShards]cacheShard
	room   int // slices in a shard

	mu    sync.Mutex
	dirty []*slice // and some that were
}

type cacheShard struct {
	mu     sync.RWMutex
	slices map[int64]*slice
	ring   []*slice // in the order of arrival, as far as none was replaced
	hand   int
}

func newSliceCache(memory, sliceLen int64) *sliceCache {
	c := &sliceCache{room: int(max(1, memory/sliceLen/cacheShards))}
	for i := range c.shards {
		c.shards[i].slices = map[int64]*slice{}
	}
	return c
}

func (c *sliceCache) shard(host int64) *cacheShard {
	return &c.shards[uint64(host)*0x9e3779b97f4a7c15>>32%cacheShards]
}

// get returns the slice at host, pinned, reading it with load where it is not there. Whoever pins may change it and must unpin.
func (c *sliceCache) get(host, n int64, load func(p []byte) error) (*slice, error) {
	sh := c.shard(host)
	sh.mu.RLock()
	s := sh.slices[host]
	if s != nil {
		s.pins.Add(1)
		if !s.used.Load() {
			s.used.Store(true)
		}
	}
	sh.mu.RUnlock()
	if s == nil {
		if s = sh.insert(host, c.room); s.entries == nil && s.err == nil {
			s.fill(sh, n, load)
		}
	}
	s.mu.RLock()
	err := s.err
	s.mu.RUnlock()
	if err != nil {
		s.pins.Add(-1)
		return nil, err
	}
	return s, nil
}

// insert returns the slice at host, pinned. Where it was not there yet, it has no entries, and is locked until fill has been called.
func (sh *cacheShard) insert(host int64, room int) *slice {
	sh.mu.Lock()
	if s := sh.slices[host]; s != nil {
		s.pins.Add(1)
		sh.mu.Unlock()
		s.mu.RLock() // until it is filled
		defer s.mu.RUnlock()
		return s
	}
	s := &slice{host: host}
	s.pins.Store(1)
	s.mu.Lock()
	sh.slices[host] = s
	sh.place(s, room)
	sh.mu.Unlock()
	return s
}

// place puts s into the ring: in place of one that nobody has used for a round, or behind the others.
func (sh *cacheShard) place(s *slice, room int) {
	for range 2 * len(sh.ring) {
		if len(sh.ring) < room {
			break
		}
		sh.hand = (sh.hand + 1) % len(sh.ring)
		old := sh.ring[sh.hand]
		if old.pins.Load() > 0 || old.used.Swap(false) || !old.clean() {
			continue
		}
		delete(sh.slices, old.host)
		sh.ring[sh.hand] = s
		return
	}
	sh.ring = append(sh.ring, s)
}

// clean reports whether s, which nobody has pinned, can be forgotten. Flushes lock slices without a pin.
func (s *slice) clean() bool {
	if !s.mu.TryRLock() {
		return false
	}
	defer s.mu.RUnlock()
	return !s.dirty
}

// fill reads the entries of a slice that insert has made.
func (s *slice) fill(sh *cacheShard, n int64, load func(p []byte) error) {
	defer s.mu.Unlock()
	p := make([]byte, n)
	if s.err = load(p); s.err != nil {
		sh.mu.Lock()
		sh.forget(s)
		sh.mu.Unlock()
		return
	}
	s.entries = make([]uint64, n/8)
	for i := range s.entries {
		s.entries[i] = binary.BigEndian.Uint64(p[8*i:])
	}
}

func (s *slice) unpin() { s.pins.Add(-1) }

// forget takes a slice out of the shard, which is locked.
func (sh *cacheShard) forget(s *slice) {
	if sh.slices[s.host] != s {
		return
	}
	delete(sh.slices, s.host)
	for i, r := range sh.ring {
		if r == s {
			last := len(sh.ring) - 1
			sh.ring[i] = sh.ring[last]
			sh.ring = sh.ring[:last]
			break
		}
	}
	if len(sh.ring) == 0 {
		sh.hand = 0
	} else {
		sh.hand %= len(sh.ring)
	}
}

// drop forgets the slices of the n bytes of the file from host on, changed or not: there is no table any more.
func (c *sliceCache) drop(host, n, sliceLen int64) {
	for end := host + n; host < end; host += sliceLen {
		sh := c.shard(host)
		sh.mu.Lock()
		s := sh.slices[host]
		if s != nil {
			sh.forget(s)
		}
		sh.mu.Unlock()
		if s != nil {
			s.mu.Lock()
			s.dirty = false
			s.mu.Unlock()
		}
	}
}

// dropAll forgets everything; nothing may be dirty or pinned.
func (c *sliceCache) dropAll() {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		clear(sh.slices)
		sh.ring, sh.hand = nil, 0
		sh.mu.Unlock()
	}
}

// changed notes that words of s have changed; the caller holds its lock.
func (c *sliceCache) changed(s *slice, lo, hi int) {
	if s.dirty {
		s.lo, s.hi = min(s.lo, lo), max(s.hi, hi)
		return
	}
	s.dirty, s.lo, s.hi = true, lo, hi
	c.mu.Lock()
	c.dirty = append(c.dirty, s)
	c.mu.Unlock()
}

// crowded reports whether so many slices have changed that they should be written.
func (c *sliceCache) crowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty) > max(4, c.room*cacheShards/2)
}

// takeDirty returns the slices that have changed since it was called last, pinned, and some that were dropped.
func (c *sliceCache) takeDirty() []*slice {
	c.mu.Lock()
	list := c.dirty
	c.dirty = nil
	c.mu.Unlock()
	for _, s := range list {
		sh := c.shard(s.host)
		sh.mu.RLock() // keeps out those who look for slices to forget
		s.pins.Add(1)
		sh.mu.RUnlock()
	}
	return list
}

// slice returns the slice of L2 table table in which the byte off of the disk has its entry, pinned.
func (d *Device) slice(ctx context.Context, table, off int64) (*slice, error) {
	within := off & (1<<d.l1Bits - 1) >> d.sliceBits * d.sliceLen
	host := table + within
	return d.tables.get(host, d.sliceLen, func(p []byte) error {
		if host+d.sliceLen > d.file.Size() {
			return d.corrupt("L2 table", table, "it ends at byte %d, behind the end of the file at %d", table+d.clusterSize, d.file.Size())
		}
		// Others may wait for this read, whose calls are not cancelled.
		return d.file.Read(context.WithoutCancel(ctx), p, host)
	})
}
