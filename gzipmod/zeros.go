package gzipmod

import "github.com/imgtool/imgtool/block"

// A run of zeros of any length is one dynamic Huffman block (RFC 1951 section 3.2.7), whose codes are chosen so that the pair "length 258,
// distance 1" is two zero bits: 1032 zero bytes of the image are one zero byte of the file, and a hole of the image is a hole of the file.
//
//	literal/length alphabet:   285 (length 258) = 0,  literal 0 = 10,  256 (end of block) = 11
//	distance alphabet:         0 (distance 1)   = 0,  1 (distance 2, never used, makes the code complete) = 1
//
// The run starts with literals, the first byte and what 258 does not divide, so that nothing refers back to what lies before the run. An
// empty stored block after it ends on a byte boundary.
const (
	longestMatch  = 258
	literalBits   = 2 // a literal zero
	matchBits     = 2 // length 258 and distance 1
	endBits       = 2 // end of block
	storedBits    = 3 // the header of the empty stored block that follows
	storedLengths = 4 // LEN and NLEN of a stored block, bytes

	zeroHeaderBits = 17 + 18*3 + 5*2 + 3*(1+7) // what zeroHeader writes
)

// zerosLen returns the length of the DEFLATE form of n zero bytes.
func zerosLen(n int64) int64 {
	matches, rest := (n-1)/longestMatch, (n-1)%longestMatch
	bits := zeroHeaderBits + (1+rest)*literalBits + matches*matchBits + endBits + storedBits
	return (bits+7)/8 + storedLengths
}

// zeroHeader holds the header bits of the block.
func zeroHeader() bitWriter {
	var w bitWriter
	w.put(0, 1)  // BFINAL
	w.put(2, 2)  // BTYPE: dynamic
	w.put(29, 5) // HLIT: 286 literal/length codes
	w.put(1, 5)  // HDIST: 2 distance codes
	w.put(14, 4) // HCLEN: 18 code length codes

	// The code length code: 18 (repeat zero 11 to 138 times) = 0, 1 = 10, 2 = 11; lengths in the order of section 3.2.7.
	for _, symbol := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1} {
		w.put(map[int]uint32{18: 1, 1: 2, 2: 2}[symbol], 3)
	}
	repeatZero := func(n uint32) {
		w.code(0, 1)
		w.put(n-11, 7)
	}
	w.code(3, 2) // literal 0: 2 bits
	repeatZero(138)
	repeatZero(117)
	w.code(3, 2) // end of block: 2 bits
	repeatZero(28)
	w.code(2, 2) // length 258: 1 bit
	w.code(2, 2) // distance 1: 1 bit
	w.code(2, 2) // distance 2: 1 bit
	return w
}

// zeroRun is the DEFLATE form of a run of zeros: prefix, middle zero bytes, suffix.
type zeroRun struct {
	prefix []byte
	middle int64
	suffix []byte
}

// encodeZeros returns the DEFLATE form of n zero bytes, n > 0.
func encodeZeros(n int64) zeroRun {
	matches, rest := (n-1)/longestMatch, (n-1)%longestMatch
	w := zeroHeader()
	for range 1 + rest {
		w.code(2, literalBits)
	}
	var z zeroRun
	// The bits of all matches are zero: whole bytes of them are the middle.
	tail := matches * matchBits
	if free := int64(len(w.out))*8 - w.bits; tail > free {
		tail -= free
		z.middle = tail / 8
		tail %= 8
		z.prefix = w.out
		w = bitWriter{}
	}
	w.put(0, int(tail))
	w.code(3, endBits)
	w.put(0, storedBits)
	w.align()
	w.out = append(w.out, 0, 0, 0xff, 0xff)
	z.suffix = w.out
	return z
}

// append appends the run's bytes to buf. It is meant for runs as long as a chunk.
func (z zeroRun) append(buf []byte) []byte {
	buf = append(buf, z.prefix...)
	buf = append(buf, make([]byte, z.middle)...)
	return append(buf, z.suffix...)
}

// matches reports whether p starts with the run.
func (z zeroRun) matches(p []byte) bool {
	n := len(z.prefix)
	if int64(len(p)) < int64(n)+z.middle+int64(len(z.suffix)) || string(p[:n]) != string(z.prefix) {
		return false
	}
	middle, rest := p[n:int64(n)+z.middle], p[int64(n)+z.middle:]
	return block.IsZero(middle) && string(rest[:len(z.suffix)]) == string(z.suffix)
}
