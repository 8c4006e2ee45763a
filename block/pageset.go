package block

import "sync"

// pageSet is a set of pages that only grows, addressed by bytes and safe for concurrent use.
type pageSet struct {
	mu   sync.RWMutex
	bits bitset
}

// add puts every page that holds a byte of [off, end) into the set. off is below end.
func (s *pageSet) add(off, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bits.add(off/pageSize, (end-1)/pageSize+1)
}

// run reports whether the byte at off is in the set, and up to where (end at most) the same holds. off is below end.
func (s *pageSet) run(off, end int64) (in bool, next int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in, last := s.bits.run(off/pageSize, (end-1)/pageSize+1)
	if last > (end-1)/pageSize { // compared as pages: the end of the last one may not fit
		return in, end
	}
	return in, last * pageSize
}

// covers reports whether all of [off, end) is in the set.
func (s *pageSet) covers(off, end int64) bool {
	if off >= end {
		return true
	}
	in, next := s.run(off, end)
	return in && next == end
}
