package qcow2

import (
	"encoding/binary"
	"math/bits"
)

// Bits of a bitmap lie in bytes from the least significant one on.

// setBits sets the bits [from, to) of p.
func setBits(p []byte, from, to int64) {
	changeBits(p, from, to, func(b *byte, mask byte) { *b |= mask })
}

// clearBits clears the bits [from, to) of p.
func clearBits(p []byte, from, to int64) {
	changeBits(p, from, to, func(b *byte, mask byte) { *b &^= mask })
}

func changeBits(p []byte, from, to int64, change func(b *byte, mask byte)) {
	for from < to {
		n := min(to-from, 8-from%8)
		change(&p[from/8], byte(1<<n-1)<<(from%8))
		from += n
	}
}

// orBits sets in p what is set in q, which is as long.
func orBits(p, q []byte) {
	for i := range p {
		p[i] |= q[i]
	}
}

func bitIsSet(p []byte, i int64) bool { return p[i/8]>>(i%8)&1 != 0 }

// endOfRun returns up to where, from bit from on and before bit to, all bits of p are as the first one is.
func endOfRun(p []byte, from, to int64) int64 {
	flip := uint64(0)
	if bitIsSet(p, from) {
		flip = ^uint64(0)
	}
	for from < to {
		if rest := p[from/8:]; from%8 == 0 && len(rest) >= 8 {
			word := binary.LittleEndian.Uint64(rest) ^ flip
			if word != 0 {
				return min(to, from+int64(bits.TrailingZeros64(word)))
			}
			from += 64
			continue
		}
		if bitIsSet(p, from) != (flip != 0) {
			return from
		}
		from++
	}
	return to
}
