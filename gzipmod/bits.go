package gzipmod

// bitWriter packs bits from the least significant bit of each byte, as RFC 1951 section 3.1.1 has it.
type bitWriter struct {
	out  []byte
	bits int64 // written in all
}

// put appends the n low bits of v, the lowest first: the order of everything but Huffman codes.
func (w *bitWriter) put(v uint32, n int) {
	for i := range n {
		if w.bits%8 == 0 {
			w.out = append(w.out, 0)
		}
		w.out[len(w.out)-1] |= byte(v>>i&1) << (w.bits % 8)
		w.bits++
	}
}

// code appends a Huffman code of n bits, the highest first.
func (w *bitWriter) code(v uint32, n int) {
	for i := n - 1; i >= 0; i-- {
		w.put(v>>i&1, 1)
	}
}

// align fills the last byte with zero bits.
func (w *bitWriter) align() { w.bits = int64(len(w.out)) * 8 }
