package deflate

import (
	"encoding/binary"
	"math/bits"
)

func load32(s []byte, i int) uint32 { return binary.LittleEndian.Uint32(s[i:]) }
func load64(s []byte, i int) uint64 { return binary.LittleEndian.Uint64(s[i:]) }

// matchLen returns how many bytes from a and from b on are equal, at most limit. a < b, and s has limit bytes from b on.
func matchLen(s []byte, a, b, limit int) int {
	x, y := s[a:], s[b:b+limit]
	n := 0
	for len(y) >= 8 {
		x = x[:len(y)]
		if d := binary.LittleEndian.Uint64(x) ^ binary.LittleEndian.Uint64(y); d != 0 {
			return n + bits.TrailingZeros64(d)>>3
		}
		x, y = x[8:], y[8:]
		n += 8
	}
	for i := range y {
		if x[i] != y[i] {
			break
		}
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
