package deflate

import (
	"math/bits"
	"slices"
)

const (
	maxCodeLen     = 14 // of the literal/length codes: one less than the format allows, so that four of them fit into one flush
	maxDistLen     = 15 // of the distance codes, bits
	maxPrecodeLen  = 7  // of the codes of code lengths, bits
	precodeSymbols = 19
)

// huffman makes codes for one alphabet after another. Its buffers are the only state.
type huffman struct {
	keys   []uint32 // frequency and symbol of those that occur, ascending
	nodes  []uint32
	ranks  []uint8 // code length of keys[i]
	levels [maxDistLen][]bool
	wide   [2][]uint64
}

// symbolBits is how much of a key is the symbol.
const symbolBits = 9

// lengths sets lens to the lengths of an optimal prefix code for the frequencies, none longer than limit: no code whose lengths
// are within the limit has a smaller sum of frequency times length. A symbol that does not occur has length 0. Where fewer than two occur,
// two symbols get a code of one bit each, because not every reader takes a code that is not complete.
// The sum of the frequencies is less than 1<<23.
func (h *huffman) lengths(lens []uint8, freq []uint32, limit int) {
	h.keys = h.keys[:0]
	for s, f := range freq {
		lens[s] = 0
		if f > 0 {
			h.keys = append(h.keys, f<<symbolBits|uint32(s))
		}
	}
	for s := 0; len(h.keys) < 2; s++ {
		if freq[s] == 0 {
			h.keys = append(h.keys, 1<<symbolBits|uint32(s))
		}
	}
	slices.Sort(h.keys)
	h.ranks = slices.Grow(h.ranks[:0], len(h.keys))[:len(h.keys)]
	if h.minimal() > limit {
		h.limited(limit)
	}
	for i, k := range h.keys {
		lens[k&(1<<symbolBits-1)] = h.ranks[i]
	}
}

// minimal sets ranks to the lengths of a Huffman code and returns the greatest. The tree is built in place as Moffat and Katajainen
// describe it: a node's weight becomes its parent's index, and that its depth.
func (h *huffman) minimal() int {
	n := len(h.keys)
	h.nodes = slices.Grow(h.nodes[:0], n)[:n]
	nodes := h.nodes
	for i, k := range h.keys {
		nodes[i] = k >> symbolBits
	}
	// Nodes before root hold their parents, those up to next weights of trees, those from leaf on weights of leaves.
	root, leaf := 0, 0
	for next := range n - 1 {
		var weight uint32
		for range 2 {
			if leaf < n && (root >= next || nodes[leaf] <= nodes[root]) {
				weight += nodes[leaf]
				leaf++
			} else {
				weight += nodes[root]
				nodes[root] = uint32(next)
				root++
			}
		}
		nodes[next] = weight
	}
	nodes[n-2] = 0
	for i := n - 3; i >= 0; i-- {
		nodes[i] = nodes[nodes[i]] + 1
	}
	// Of the places at each depth, inner nodes take some and leaves the rest, the rarest the deepest.
	inner, rank := n-2, n-1
	depth := 0
	for places := 1; places > 0; depth++ {
		used := 0
		for inner >= 0 && int(nodes[inner]) == depth {
			used++
			inner--
		}
		for range places - used {
			h.ranks[rank] = uint8(depth)
			rank--
		}
		places = 2 * used
	}
	return depth - 1
}

// limited sets ranks to the lengths of an optimal code of at most limit bits, by the package-merge algorithm of Larmore and Hirschberg.
func (h *huffman) limited(limit int) {
	n := len(h.keys)
	// Each level's list merges the leaves with the pairs of the list below; only which are leaves is kept of it.
	below := h.wide[0][:0]
	for level := range limit {
		list, isLeaf := h.wide[(level+1)&1][:0], h.levels[level][:0]
		leaf := 0
		for pair := 0; leaf < n || pair+1 < len(below); {
			if pair+1 >= len(below) || leaf < n && uint64(h.keys[leaf]>>symbolBits) <= below[pair]+below[pair+1] {
				list = append(list, uint64(h.keys[leaf]>>symbolBits))
				isLeaf = append(isLeaf, true)
				leaf++
			} else {
				list = append(list, below[pair]+below[pair+1])
				isLeaf = append(isLeaf, false)
				pair += 2
			}
		}
		h.wide[(level+1)&1], h.levels[level], below = list, isLeaf, list
	}
	// The first 2n-2 of the topmost list are chosen, with the pairs that they are made of; each choice of a leaf is one bit of its code.
	clear(h.ranks)
	chosen := 2*n - 2
	for level := limit - 1; level >= 0; level-- {
		leaves := 0
		for _, leaf := range h.levels[level][:chosen] {
			if leaf {
				h.ranks[leaves]++
				leaves++
			}
		}
		chosen = 2 * (chosen - leaves)
	}
}

// canonical sets codes to the canonical codes of the lengths (section 3.2.2), reversed: the first bit of a code is its lowest.
func canonical(codes []uint16, lens []uint8) {
	var count, next [16]uint16
	for _, n := range lens {
		count[n&15]++
	}
	count[0] = 0
	code := uint16(0)
	for n := 1; n < len(next); n++ {
		code = (code + count[n-1]) << 1
		next[n] = code
	}
	for s, n := range lens {
		codes[s] = bits.Reverse16(next[n&15] << (16 - n))
		next[n&15]++
	}
}
