package deflate

import "slices"

// A run of zeros of any length is one dynamic block, whose codes are chosen so that the pair "length 258, distance 1" is two zero bits:
// 1032 zero bytes are one zero byte of the output, and a hole of an image is a hole of the file.
//
//	literal/length alphabet:   285 (length 258) = 0,  literal 0 = 10,  256 (end of block) = 11
//	distance alphabet:         0 (distance 1)   = 0,  1 (distance 2, never used, makes the code complete) = 1
//
// The run starts with literals, the first byte and what 258 does not divide, so that nothing refers back to what lies before the run. An
// empty stored block after it ends on a byte boundary.
const (
	zeroLiteral     = 0b01 // reversed
	zeroLiteralBits = 2
	zeroMatchBits   = 2 // length 258 and distance 1
	zeroEnd         = 0b11
	zeroEndBits     = 2

	zeroHeaderBits = headerBits + 14 + 18*3 + 5*2 + 3*(1+7) // what zeroHeader writes
)

// ZeroRun is the DEFLATE form of a run of zeros: Prefix, then Middle zero bytes, then Suffix. It refers to nothing before it, is not final,
// and ends on a byte boundary as pieces do that end with [Sync].
type ZeroRun struct {
	Prefix []byte
	Middle int64
	Suffix []byte
}

// ZerosLen returns the length in bytes of the DEFLATE form of n zero bytes, n > 0.
func ZerosLen(n int64) int64 {
	matches, rest := (n-1)/maxMatch, (n-1)%maxMatch
	bits := zeroHeaderBits + (1+rest)*zeroLiteralBits + matches*zeroMatchBits + zeroEndBits + headerBits
	return (bits+7)/8 + storedHeader
}

// Zeros returns the DEFLATE form of n zero bytes, n > 0.
func Zeros(n int64) ZeroRun {
	matches, rest := (n-1)/maxMatch, (n-1)%maxMatch
	var w bitWriter
	zeroHeader(&w)
	for range 1 + rest {
		w.put(zeroLiteral, zeroLiteralBits)
	}
	var z ZeroRun
	// The bits of all matches are zero: whole bytes of them are the middle.
	tail := matches * zeroMatchBits
	if free := int64(-w.n & 7); tail > free {
		tail -= free
		w.align()
		z = ZeroRun{Prefix: w.out, Middle: tail / 8}
		tail %= 8
		w = bitWriter{}
	}
	w.put(0, uint(tail))
	w.put(zeroEnd, zeroEndBits)
	w.sync()
	z.Suffix = w.out
	return z
}

// AppendZeros appends the DEFLATE form of n zero bytes to dst, n > 0.
func AppendZeros(dst []byte, n int64) []byte { return Zeros(n).Append(dst) }

// Append appends the run's bytes to dst.
func (z ZeroRun) Append(dst []byte) []byte {
	dst = slices.Grow(dst, len(z.Prefix)+int(z.Middle)+len(z.Suffix))
	dst = append(dst, z.Prefix...)
	at := len(dst)
	dst = dst[:at+int(z.Middle)]
	clear(dst[at:])
	return append(dst, z.Suffix...)
}

// zeroHeader writes the header of the block.
func zeroHeader(w *bitWriter) {
	w.put(dynamicBlock<<1, headerBits)
	w.put(29, 5) // HLIT: 286 literal/length codes
	w.put(1, 5)  // HDIST: 2 distance codes
	w.put(14, 4) // HCLEN: 18 codes of code lengths

	// The precode: manyZeros = 0, length 1 = 10, length 2 = 11.
	lens := [precodeSymbols]uint64{manyZeros: 1, 1: 2, 2: 2}
	for _, s := range precodeOrder[:18] {
		w.put(lens[s], 3)
	}
	const one, two = 0b01, 0b11 // the codes, reversed
	zeros := func(n uint64) { w.put((n-11)<<1, 1+7) }
	w.put(two, 2) // literal 0: 2 bits
	zeros(138)
	zeros(117)
	w.put(two, 2) // end of block: 2 bits
	zeros(28)
	w.put(one, 2) // length 258: 1 bit
	w.put(one, 2) // distance 1: 1 bit
	w.put(one, 2) // distance 2: 1 bit
}
