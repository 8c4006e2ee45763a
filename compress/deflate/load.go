package deflate

import (
	"encoding/binary"
	"math/bits"
)

// matchLen returns how many bytes from a and from b on are equal, at most limit. a < b, and s has limit bytes from b on.
func matchLen(s []byte, a, b, limit int) int {
	n := 0
	for ; n+8 <= limit; n += 8 {
		if d := load64(s, a+n) ^ load64(s, b+n); d != 0 {
			return n + bits.TrailingZeros64(d)>>3
		}
	}
	for n < limit && s[a+n] == s[b+n] {
		n++
	}
	return n
}

// runLen returns how many bytes from i on are equal to s[i].
func runLen(s []byte, i int) int {
	y := s[i:]
	n := 0
	for x := uint64(s[i]) * 0x0101010101010101; len(y) >= 8; y = y[8:] {
		if d := binary.LittleEndian.Uint64(y) ^ x; d != 0 {
			return n + bits.TrailingZeros64(d)>>3
		}
		n += 8
	}
	for _, b := range y {
		if b != s[i] {
			break
		}
		n++
	}
	return n
}
