package block

import (
	"math/bits"
	"slices"
)

// sparse is an array of values of which few exist, in the order of their keys. Sequential filling appends; anything else
// costs a search and a move of the keys behind.
type sparse[V any] struct {
	keys []int64
	vals []V
}

// search returns the index of the first key that is at least key, and whether it is key itself.
func (s *sparse[V]) search(key int64) (int, bool) { return slices.BinarySearch(s.keys, key) }

// insert puts a value at the index that search gave for key.
func (s *sparse[V]) insert(i int, key int64, v V) {
	s.keys = slices.Insert(s.keys, i, key)
	s.vals = slices.Insert(s.vals, i, v)
}

// remove takes out the values at the indexes from i up to j.
func (s *sparse[V]) remove(i, j int) {
	s.keys = slices.Delete(s.keys, i, j)
	s.vals = slices.Delete(s.vals, i, j)
}

const (
	bitsPerWord  = 64
	bitsPerBlock = bitsPerWord * len(bitBlock{})
)

type bitBlock [64]uint64

// bitset is a set of non-negative numbers that only grows, small where it is sparse. It does no locking.
type bitset struct{ blocks sparse[*bitBlock] }

// add puts the numbers from a up to b, not including b, into the set.
func (s *bitset) add(a, b int64) {
	for a < b {
		key := a / int64(bitsPerBlock)
		i, found := s.blocks.search(key)
		if !found {
			s.blocks.insert(i, key, new(bitBlock))
		}
		block := s.blocks.vals[i]
		from := int(a % int64(bitsPerBlock))
		to := int(min(int64(bitsPerBlock), int64(from)+b-a))
		a += int64(to - from)
		for from < to {
			next := min(to, (from/bitsPerWord+1)*bitsPerWord)
			block[from/bitsPerWord] |= (^uint64(0) >> (bitsPerWord - (next - from))) << (from % bitsPerWord)
			from = next
		}
	}
}

// run reports whether a is in the set, and up to where (end at most) the same holds for all numbers. a is below end.
func (s *bitset) run(a, end int64) (in bool, next int64) {
	first := true
	for a < end {
		key, bit := a/int64(bitsPerBlock), int(a%int64(bitsPerBlock))
		i, found := s.blocks.search(key)
		if !found {
			if in {
				return in, a
			}
			first, a = false, end
			if i < len(s.blocks.keys) {
				a = min(end, s.blocks.keys[i]*int64(bitsPerBlock))
			}
			continue
		}
		word := s.blocks.vals[i][bit/bitsPerWord]
		if first {
			first, in = false, word>>(bit%bitsPerWord)&1 != 0
		}
		if in {
			word = ^word
		}
		if word >>= bit % bitsPerWord; word != 0 {
			return in, min(end, a+int64(bits.TrailingZeros64(word)))
		}
		a += int64(bitsPerWord - bit%bitsPerWord)
	}
	return in, end
}
