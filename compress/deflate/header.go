package deflate

// precodeOrder is the order in which the lengths of the precode, the code of code lengths, are written (section 3.2.7).
var precodeOrder = [precodeSymbols]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

const (
	copyPrevious = 16 // the symbols of the precode that stand for several lengths
	fewZeros     = 17
	manyZeros    = 18

	unusedCost = maxPrecodeLen // what a symbol without a code is taken to cost
)

// precodeExtra is how many extra bits follow a symbol of the precode.
var precodeExtra = [precodeSymbols]uint8{copyPrevious: 2, fewZeros: 3, manyZeros: 7}

// run is one symbol of a header: a code length, or a number of them.
type run struct{ symbol, count uint8 }

// header is that of a dynamic block: the code lengths, run-length coded.
type header struct {
	size          int // bits, without BFINAL and BTYPE
	literal, dist int // how many lengths of either alphabet are written, HLIT+257 and HDIST+1
	precode       int // how many of the precode, HCLEN+4
	lens          [precodeSymbols]uint8
	runs          []run

	all  [literalSymbols + distSymbols]uint8 // the lengths of both alphabets
	best [literalSymbols + distSymbols + 1]struct {
		cost uint32 // bits from here to the end
		run  run
	}
}

// make finds runs and a precode for the code lengths. Which runs are best depends on the precode and the precode on the runs:
// the first are found for a typical precode, the second for the one that the first ask for.
func (h *header) make(huff *huffman, l *codeLens) {
	h.literal, h.dist = literalSymbols, distSymbols
	for l.literal[h.literal-1] == 0 {
		h.literal--
	}
	for h.dist > 1 && l.dist[h.dist-1] == 0 {
		h.dist--
	}
	all := h.all[:0]
	all = append(all, l.literal[:h.literal]...)
	all = append(all, l.dist[:h.dist]...)

	costs := [precodeSymbols]uint8{3, 6, 6, 5, 4, 4, 4, 3, 3, 3, 4, 4, 5, 6, 6, 6, 4, 4, 4}
	for range 2 {
		h.findRuns(all, &costs)
		h.measure(huff)
		for s, n := range h.lens {
			costs[s] = n
			if n == 0 {
				costs[s] = unusedCost
			}
		}
	}
}

// findRuns sets runs to those that cost least. It looks from the end for the cheapest way to write what is left.
func (h *header) findRuns(all []uint8, costs *[precodeSymbols]uint8) {
	best := h.best[:len(all)+1]
	best[len(all)].cost = 0
	same := 0 // how many lengths from here on are equal
	for i := len(all) - 1; i >= 0; i-- {
		v := all[i]
		if i+1 < len(all) && all[i+1] == v {
			same++
		} else {
			same = 1
		}
		cost, with := best[i+1].cost+uint32(costs[v]), run{v, 1}
		try := func(symbol uint8, from, to int) {
			own := uint32(costs[symbol] + precodeExtra[symbol])
			for n := from; n <= to; n++ {
				if c := best[i+n].cost + own; c <= cost {
					cost, with = c, run{symbol, uint8(n)}
				}
			}
		}
		if v == 0 {
			try(fewZeros, 3, min(same, 10))
			if same >= 11 {
				try(manyZeros, min(same, 138), min(same, 138))
			}
		}
		if i > 0 && all[i-1] == v {
			try(copyPrevious, 3, min(same, 6))
		}
		best[i].cost, best[i].run = cost, with
	}
	h.runs = h.runs[:0]
	for i := 0; i < len(all); i += int(best[i].run.count) {
		h.runs = append(h.runs, best[i].run)
	}
}

// measure makes the precode for the runs, and sets size.
func (h *header) measure(huff *huffman) {
	var freq [precodeSymbols]uint32
	for _, r := range h.runs {
		freq[r.symbol]++
	}
	huff.lengths(h.lens[:], freq[:], maxPrecodeLen)
	h.precode = precodeSymbols
	for h.precode > 4 && h.lens[precodeOrder[h.precode-1]] == 0 {
		h.precode--
	}
	h.size = 5 + 5 + 4 + 3*h.precode
	for s, n := range freq {
		h.size += int(n) * int(h.lens[s]+precodeExtra[s])
	}
}

// write writes the header that make made.
func (h *header) write(w *bitWriter) {
	w.put(uint64(h.literal-257), 5)
	w.put(uint64(h.dist-1), 5)
	w.put(uint64(h.precode-4), 4)
	for _, s := range precodeOrder[:h.precode] {
		w.put(uint64(h.lens[s]), 3)
	}
	var codes [precodeSymbols]uint16
	canonical(codes[:], h.lens[:])
	for _, r := range h.runs {
		n := uint(h.lens[r.symbol])
		v := uint64(codes[r.symbol])
		switch r.symbol {
		case copyPrevious, fewZeros:
			v |= uint64(r.count-3) << n
		case manyZeros:
			v |= uint64(r.count-11) << n
		}
		w.put(v, n+uint(precodeExtra[r.symbol]))
	}
}
