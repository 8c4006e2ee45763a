package deflate

const (
	minBlockSteps = 1 << 14 // in a block, unless noise or the input ends it

	// The longest codes, bits: less than the format allows, so that a step fits into one flush. Symbols rarer than one in 1<<rarest steps
	// count as if they were not, because the codes are found faster if the limits do not matter.
	fastCodeLen = 13
	fastDistLen = 12
	rarest      = 11
)

// fastBlock is the block that is being made.
type fastBlock struct {
	parts   [][]step // what it holds
	held    int      // how many steps that are
	counts  [2]stepCounts
	sum     histogram
	weights histogram
	codes   stepCodes
}

// add adds steps to the block, and writes as many blocks as are long enough. src begins with what the block covers. It returns how many bytes
// the written blocks cover.
func (f *fast) add(w *blockWriter, src []byte, steps []step) int {
	covered := 0
	for f.held+len(steps) >= 2*minBlockSteps {
		n := max(0, minBlockSteps-f.held)
		f.parts = append(f.parts, steps[:n])
		f.held += n
		covered += f.flush(w, src[covered:], false)
		steps = steps[n:]
	}
	f.parts = append(f.parts, steps)
	f.held += len(steps)
	return covered
}

// flush writes the block if it holds anything, and returns how many bytes it covers; src begins with those.
func (f *fast) flush(w *blockWriter, src []byte, final bool) int {
	covered := 0
	if f.held > 0 {
		f.counts = [2]stepCounts{}
		for _, steps := range f.parts {
			if len(steps) > 0 {
				covered += f.count(steps)
			}
		}
		f.block(w, src[:covered], final)
	}
	clear(f.parts)
	f.parts, f.held = f.parts[:0], 0
	return covered
}

// block writes the block, whose steps have been counted and cover src, in the type that takes the fewest bits.
func (f *fast) block(w *blockWriter, src []byte, final bool) {
	h := &f.sum
	sumTo(h, &f.counts)
	f.weigh(uint32(f.held >> rarest))
	w.huffman.lengths(w.lens.literal[:literalSymbols], f.weights[:firstDist], fastCodeLen)
	w.huffman.lengths(w.lens.dist[:distSymbols], f.weights[firstDist:], fastDistLen)
	w.header.make(&w.huffman, &w.lens)

	lens := &w.lens
	switch w.choose(h, len(src)) {
	case storedBlock:
		w.stored(src, final)
		return
	case fixedBlock:
		lens = &fixedLens
		w.begin(fixedBlock, final)
	default:
		w.begin(dynamicBlock, final)
		w.header.write(&w.bitWriter)
	}
	f.codes.make(lens, w.codes.reversed[:])
	for _, steps := range f.parts {
		if len(steps) > 0 {
			f.write(&w.bitWriter, steps)
		}
	}
	w.put(uint64(f.codes.end.code), uint(f.codes.end.bits))
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
