package deflate

import (
	"encoding/binary"
	"slices"
)

// bitWriter packs bits from the least significant bit of each byte, as RFC 1951 section 3.1.1 has it.
type bitWriter struct {
	out []byte
	acc uint64 // bits that are not in out yet, the first the lowest; above them zeros
	n   uint   // how many, less than 8 between calls
}

// spare is what flush may touch behind the bytes it adds.
const spare = 8

// put appends the n low bits of v, n <= 56; the others are zero. Huffman codes are given reversed, see [huffman].
func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << (w.n & 63)
	w.n += n
	w.out = slices.Grow(w.out, spare)
	w.flush()
}

// flush moves whole bytes to out, which has room for spare more.
func (w *bitWriter) flush() {
	k := len(w.out)
	binary.LittleEndian.PutUint64(w.out[k:k+spare], w.acc)
	w.out = w.out[:k+int(w.n>>3)]
	w.acc >>= w.n &^ 7 & 63
	w.n &= 7
}

// align fills the last byte with zero bits.
func (w *bitWriter) align() {
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
}

// sync writes an empty stored block, which ends on a byte boundary.
func (w *bitWriter) sync() {
	w.put(storedBlock<<1, headerBits)
	w.align()
	w.out = append(w.out, 0, 0, 0xff, 0xff)
}
