package deflate

import "slices"

const (
	minBlockSteps = 1 << 14 // in a block, unless the lane ends
	fastCodeLen   = 13      // of the longest codes: what a step takes fits into one flush
	rarest        = 11      // how rare a symbol may be for its code to be as long as it should, as a power of 2: rarer ones get somewhat shorter codes, which are found faster
)

// block writes steps as one block of the type that takes the fewest bits, and returns how many bytes they cover; src begins with those.
func (f *fast) block(w *blockWriter, src []byte, steps []step, final bool) int {
	f.counts = [2]stepCounts{}
	covered := f.count(steps)
	src = src[:covered]
	h := &f.sum
	sumTo(h, &f.counts)
	f.weigh(uint32(len(steps) >> rarest))
	w.huffman.lengths(w.lens.literal[:literalSymbols], f.weights[:firstDist], fastCodeLen)
	w.huffman.lengths(w.lens.dist[:distSymbols], f.weights[firstDist:], fastCodeLen)
	w.header.make(&w.huffman, &w.lens)

	extra := h.extraBits()
	dynamic := w.header.size + w.lens.size(h) + extra
	fixed := fixedLens.size(h) + extra
	stored := w.storedSize(covered) - headerBits
	w.out = slices.Grow(w.out, (min(fixed, dynamic, stored)+headerBits)/8+4*spare)
	lens := &w.lens
	switch {
	case stored <= min(fixed, dynamic):
		w.stored(src, final)
		return covered
	case fixed <= dynamic:
		lens = &fixedLens
		w.begin(fixedBlock, final)
	default:
		w.begin(dynamicBlock, final)
		w.header.write(&w.bitWriter)
	}
	f.codes.make(lens, w.codes.reversed[:])
	f.write(&w.bitWriter, steps)
	w.put(uint64(f.codes.end.code), uint(f.codes.end.bits))
	return covered
}

// weigh sets weights to the counts, at least least where there are any.
func (f *fast) weigh(least uint32) {
	for s, n := range &f.sum {
		if n > 0 {
			n = max(n, least)
		}
		f.weights[s] = n
	}
}
