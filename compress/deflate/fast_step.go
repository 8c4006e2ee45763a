package deflate

import (
	"encoding/binary"
	"math/bits"
)

// step is what was found at one place: two literals, or a match with perhaps a literal before it, or where nothing else is left one literal. All are
// written alike, by three lookups. A lane makes steps of this form:
//
//	bits 0..15   the bytes at the place
//	bits 16..23  1 where the first of them is a literal before a match
//	bits 24..31  anything
//	bits 32..47  the low bits of minus the distance
//	bits 48..63  how many bytes the step covers: up to 2 they are literals
//
// Counting brings them into the form in which they are written:
//
//	bits 0..15   a literal, or from noFirst on none
//	bits 16..31  a literal, or stepLength and length - 3, or noSecond
//	bits 32..47  a distance symbol, or from noDist on none
//	bits 48..63  the extra bits of the distance
//
// That nothing follows, or precedes, is said in many ways because counting the same again has to wait for memory.
type step uint64

const (
	leadShift  = 16
	backShift  = 32
	coverShift = 48

	noFirst    = 256
	stepLength = 256
	noSecond   = stepLength + maxMatch - minMatch + 1
	noDist     = 32
)

// twoLiterals returns the step of the two low bytes of v.
func twoLiterals(v uint64) step { return step(v&0xffff) | 2<<coverShift }

func oneLiteral(b byte) step { return step(b) | 1<<coverShift }

// matchStep returns the step of a match after lead literals, 0 or 1, which v begins with; back is minus the distance.
func matchStep(v uint64, lead, length, back int) step {
	return step(v&0xffff) | step(lead)<<leadShift | step(uint16(back))<<backShift | step(lead+length)<<coverShift
}

// stepCounts counts what steps hold.
type stepCounts struct {
	first  [512]uint32
	second [1024]uint32
	dist   [64]uint32
}

// countStepsPortable counts steps, by turns in two tables, and brings them into the form in which they are written. It returns how many bytes
// they cover.
func countStepsPortable(c *[2]stepCounts, steps []step) int {
	covered := 0
	for i, s := range steps {
		cover := s >> coverShift
		covered += int(cover)
		first, second, symbol, extra := s&0xff, s>>8&0xff, noDist|s&31, step(0)
		if cover == 1 {
			second = noSecond
		}
		if cover > 2 {
			lead := s >> leadShift & 1
			if lead == 0 {
				first = noFirst | cover&0xff
			}
			second = cover - lead - minMatch + stepLength
			d := uint(^s>>backShift) & (maxDistance - 1) // the distance - 1
			n := uint(bits.Len(d|2)) - 2
			symbol = step(2*n + d>>(n&31))
			extra = step(d & (1<<(n&31) - 1))
		}
		t := &c[i&1]
		t.first[first&511]++
		t.second[second&1023]++
		t.dist[symbol&63]++
		steps[i] = first | second<<16 | symbol<<32 | extra<<48
	}
	return covered
}

// sumTo sets h to what has been counted in both tables, and one end of the block.
func sumTo(h *histogram, c *[2]stepCounts) {
	*h = histogram{endOfBlock: 1}
	for i := range c {
		t := &c[i]
		for s := range endOfBlock {
			h[s] += t.first[s] + t.second[s]
		}
		for i, x := range &lengths {
			h[firstLength+int(x.symbol)] += t.second[stepLength+i]
		}
		for s := range distSymbols {
			h[firstDist+s] += t.dist[s]
		}
	}
}

// stepCodes are the codes of a block, reversed; those of what is nothing have no bits.
type stepCodes struct {
	first  [512]stepCode
	second [1024]stepCode // lengths with their extra bits
	dist   [64]distCode
	end    stepCode
}

type stepCode struct{ code, bits uint32 }

// distCode is the code of a distance symbol; its extra bits count in all.
type distCode struct {
	code      uint32
	bits, all uint16
}

// make sets the codes from their lengths; reversed is scratch space.
func (c *stepCodes) make(l *codeLens, reversed []uint16) {
	r := reversed[:len(l.literal)]
	canonical(r, l.literal[:])
	for s := range endOfBlock {
		c.first[s] = stepCode{uint32(r[s]), uint32(l.literal[s])}
		c.second[s] = c.first[s]
	}
	for i, x := range &lengths {
		s := firstLength + int(x.symbol)
		n := l.literal[s]
		c.second[stepLength+i] = stepCode{uint32(r[s]) | uint32(x.extra)<<n, uint32(n + x.extraBits)}
	}
	c.end = stepCode{uint32(r[endOfBlock]), uint32(l.literal[endOfBlock])}
	r = reversed[:len(l.dist)]
	canonical(r, l.dist[:])
	for s := range distSymbols {
		n := uint16(l.dist[s])
		c.dist[s] = distCode{uint32(r[s]), n, n + uint16(distExtraBits(s))}
	}
}

// writeStepsPortable writes steps, for which space has been reserved. At most 7 bits wait between flushes, and a step has at most fastCodeLen bits
// of a literal, fastCodeLen and 5 of a length, fastDistLen and 13 of a distance: 63.
func writeStepsPortable(w *bitWriter, c *stepCodes, steps []step) {
	out, at := w.out[:cap(w.out)], len(w.out)
	acc, n := w.acc, uint32(w.n)
	for _, s := range steps {
		a, b, d := &c.first[s&511], &c.second[s>>16&1023], &c.dist[s>>32&63]
		acc |= uint64(a.code) << (n & 63)
		n += a.bits
		acc |= uint64(b.code) << (n & 63)
		n += b.bits
		acc |= (uint64(d.code) | uint64(s>>48)<<(d.bits&63)) << (n & 63)
		n += uint32(d.all)
		binary.LittleEndian.PutUint64(out[at:], acc)
		at += int(n >> 3)
		acc >>= n &^ 7 & 63
		n &= 7
	}
	w.out, w.acc, w.n = out[:at], acc, uint(n)
}
