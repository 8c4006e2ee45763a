package inflate

import (
	"math/bits"
	"sync"
)

// A decoding table is indexed with the next bits of the input. Codes of up to as many bits as the main table takes are found at once, longer
// ones in a subtable behind it that the entry for their first bits points to. All entries have one form, from the lowest bit:
//
//	 0-5   bits that the symbol takes here: its code, or what is left of it in a subtable, and its extra bits
//	 8-11  bits of the code alone; of a literal: litBits; of a pointer: bits that index the subtable
//	13-15, 31  flags
//	16-   literal; base of a length, distance or number of repeated lengths; index of a subtable
//
// The extra bits of a length are thus (input & (1<<bits0to5 - 1)) >> bits8to11, and are added to its base. Bits 0 to 15 of a literal are what the
// instruction BEXTR needs to find the next index: where that is in the input, and its size.
const (
	flagEnd      = 1 << 13 // end of block
	flagPrevious = 1 << 13 // code length code: what is repeated is the previous length, not 0
	flagSub      = 1 << 14 // pointer to a subtable
	flagExcept   = 1 << 15 // neither literal nor length nor distance: end, pointer, or no symbol
	flagLit      = 1 << 31 // literal; code length code: a length
	shiftValue   = 16
)

// coded returns the entry of a symbol whose code has n bits, here.
func coded(e uint32, n int) uint32 {
	e += uint32(n)
	if e&flagLit == 0 {
		e += uint32(n) << 8
	}
	return e
}

const (
	maxCode = 15 // bits of a code, section 3.2.7

	litBits  = 11 // index the main table of the literal/length code
	distBits = 8  // of the distance code
	preBits  = 7  // of the code length code, whose codes have no more

	// Sizes of the tables. A complete code of 288 symbols takes 2342 entries at most, one of 32 symbols 402 (as zlib's examples/enough.c counts
	// them for 11 and 8 bits). Powers of two let an index be masked instead of checked.
	litSize  = 4096
	distSize = 512
	preSize  = 1 << preBits
)

const (
	endOfBlock = 256
	maxLit     = 286 // codes that HLIT may promise
	maxDist    = 30
	maxLens    = 288 + 32 // code lengths of a block, the fixed code's reserved ones included
)

// tables decode the symbols of a block.
type tables struct {
	lit  [litSize]uint32
	dist [distSize]uint32
}

// symbols holds the entries of the two alphabets and of the code length alphabet but for the bits of their codes: section 3.2.5.
var litSymbols, distSymbols, preSymbols = symbolEntries()

func symbolEntries() (lit [288]uint32, dist [32]uint32, pre [19]uint32) {
	for i := range endOfBlock {
		lit[i] = uint32(i)<<shiftValue | flagLit | litBits<<8
	}
	lit[endOfBlock] = flagExcept | flagEnd
	base := uint32(3)
	for i := range 28 {
		extra := uint32(max(i/4-1, 0))
		lit[257+i] = base<<shiftValue | extra
		base += 1 << extra
	}
	lit[285] = 258 << shiftValue
	lit[286], lit[287] = flagExcept, flagExcept
	base = 1
	for i := range maxDist {
		extra := uint32(max(i/2-1, 0))
		dist[i] = base<<shiftValue | extra
		base += 1 << extra
	}
	dist[30], dist[31] = flagExcept, flagExcept
	for i := range 16 {
		pre[i] = uint32(i)<<shiftValue | flagLit
	}
	pre[16] = 3<<shiftValue | flagPrevious | 2
	pre[17] = 3<<shiftValue | 3
	pre[18] = 11<<shiftValue | 7
	return lit, dist, pre
}

// fixedTables returns the tables of blocks with fixed codes, section 3.2.6. They are not to be written.
var fixedTables = sync.OnceValue(func() *tables {
	var lens [maxLens]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		case i < 288:
			lens[i] = 8
		default:
			lens[i] = 5
		}
	}
	t := new(tables)
	var w workspace
	if w.build(t.lit[:], litBits, lens[:288], litSymbols[:]) != nil || w.build(t.dist[:], distBits, lens[288:], distSymbols[:]) != nil {
		panic("inflate: the fixed codes are not complete")
	}
	return t
})

// workspace is what building a table needs besides the table.
type workspace struct {
	sorted [288]uint32 // entries without the bits of their codes, in the order of their codes
}

// build fills table, whose main part is indexed by main bits, for the code with these lengths: lens[i] bits, 0 to 15, for symbols[i].
//
// As zlib does, it accepts besides complete codes one code of one bit alone, and no code at all; what the bits of these leave over
// decodes to no symbol. The code length code has to be complete, which the caller checks.
//
// compress/flate and klauspost's decoder take these for the code length code too, and do not ask for a code for the end of the block; they then
// fail later, so that all accept the same streams in the end, but see another kind of damage.
func (w *workspace) build(table []uint32, main int, lens []uint8, symbols []uint32) error {
	var count, next [maxCode + 1]int
	for _, n := range lens {
		count[n&maxCode]++
	}
	count[0] = 0
	left, total := 1, 0
	for n := 1; n <= maxCode; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return errOversub
		}
		next[n] = total
		total += count[n]
	}
	if left > 0 && (total > 1 || total != count[1]) {
		return errIncomplete
	}
	for i, n := range lens {
		if n != 0 {
			w.sorted[next[n&maxCode]] = symbols[i]
			next[n&maxCode]++
		}
	}
	if left > 0 {
		for i := range 1 << main {
			table[i] = flagExcept
			if i&1 < total {
				table[i] = coded(w.sorted[0], 1)
			}
		}
		return nil
	}
	w.fill(table, main, &count)
	return nil
}

// fill writes the table of a complete code with count[n] codes of n bits.
//
// Codes enter the input from their highest bit, so that in an index they stand reversed. The part of the main table that the codes of up to n
// bits index is made first, then doubled by copying for those of n+1 bits.
func (w *workspace) fill(table []uint32, main int, count *[maxCode + 1]int) {
	n := 1
	for count[n] == 0 {
		n++
	}
	next, code := 0, uint(0)
	for ; n <= main; n++ {
		size := uint(1) << n
		for range count[n] {
			table[code] = coded(w.sorted[next], n)
			next++
			if code == size-1 {
				for ; n < main; n++ {
					copy(table[1<<n:2<<n], table[:1<<n])
				}
				return
			}
			code = successor(code, size)
		}
		if n < main {
			copy(table[size:2*size], table[:size])
		}
	}
	w.fillSub(table, main, count, n, next, code)
}

// fillSub writes the subtables: of the codes with n bits and more, of which the first is code, for the symbols from next on.
func (w *workspace) fillSub(table []uint32, main int, count *[maxCode + 1]int, n, next int, code uint) {
	prefix, start, end := ^uint(0), uint(0), uint(1)<<main
	for {
		for count[n] == 0 {
			n++
		}
		sub := n - main
		if p := code & (1<<main - 1); p != prefix {
			// The subtable takes the longest of the codes that begin so. As the code is complete, they fill it.
			prefix = p
			bits, used := sub, count[n]
			for used < 1<<bits {
				bits++
				used = used<<1 + count[main+bits]
			}
			start, end = end, end+1<<bits
			table[prefix] = uint32(start)<<shiftValue | flagExcept | flagSub | uint32(bits)<<8 | uint32(main)
		}
		e := coded(w.sorted[next], sub)
		next++
		for i := start + code>>main; i < end; i += 1 << sub {
			table[i] = e
		}
		size := uint(1) << n
		if code == size-1 {
			return
		}
		code = successor(code, size)
		count[n]--
	}
}

// successor returns the code after code, both reversed, among those below size, a power of two. It is not the last one.
func successor(code, size uint) uint {
	bit := uint(1) << (bits.Len(code^(size-1)) - 1)
	return code&(bit-1) | bit
}
