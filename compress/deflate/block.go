package deflate

import (
	"encoding/binary"
	"slices"
)

const (
	storedBlock = iota // BTYPE, section 3.2.3
	fixedBlock
	dynamicBlock
)

const (
	headerBits   = 3     // BFINAL and BTYPE
	storedHeader = 4     // LEN and NLEN of a stored block, bytes
	maxStored    = 65535 // in one stored block, bytes
)

// histogram counts the symbols of a block: of the literal/length alphabet first, from firstDist on of the distance alphabet.
type histogram [symbols]uint32

const (
	firstDist = literalSymbols
	symbols   = literalSymbols + distSymbols
)

// count adds what the tokens hold, whose literals are taken from src.
func (h *histogram) count(src []byte, tokens []token) {
	for _, t := range tokens {
		n := t.literals()
		for _, b := range src[:n] {
			h[b]++
		}
		if s := t.symbol(); s < distSymbols {
			l := t.lengthIndex()
			h[firstLength+uint(lengths[l].symbol)]++
			h[firstDist+s]++
			n += int(l) + minMatch
		}
		src = src[n:]
	}
}

func (h *histogram) add(o *histogram) {
	for s, n := range o {
		h[s] += n
	}
}

// extraBits returns how many bits of the block are extra bits of lengths and distances.
func (h *histogram) extraBits() int {
	n := 0
	for s := 8; s < 28; s++ { // lengths; 258 has none
		n += int(h[firstLength+s]) * (s/4 - 1)
	}
	for s := 4; s < distSymbols; s++ {
		n += int(h[firstDist+s]) * int(distExtraBits(s))
	}
	return n
}

// codeLens are the code lengths of a block in bits, 0 for what does not occur.
type codeLens struct {
	literal [literalSymbols + 2]uint8 // the fixed code has two more, which never occur
	dist    [distSymbols + 2]uint8
}

// size returns the bits that the block's symbols take, without their extra bits.
func (l *codeLens) size(h *histogram) int {
	n := 0
	for s, f := range h[:firstDist] {
		n += int(f) * int(l.literal[s])
	}
	for s, f := range h[firstDist:] {
		n += int(f) * int(l.dist[s])
	}
	return n
}

// fixedLens are the code lengths of section 3.2.6.
var fixedLens = func() (l codeLens) {
	for s := range l.literal {
		switch {
		case s < 144 || s >= 280:
			l.literal[s] = 8
		case s < 256:
			l.literal[s] = 9
		default:
			l.literal[s] = 7
		}
	}
	for s := range l.dist {
		l.dist[s] = 5
	}
	return l
}()

// blockWriter writes blocks. Its state besides what is written is scratch space.
type blockWriter struct {
	bitWriter
	huffman huffman
	header  header
	lens    codeLens
	codes   symbolCodes
}

// block writes src, of which tokens are the form and h the count of symbols, as one block of the type that takes the fewest bits.
// src may be empty.
func (w *blockWriter) block(src []byte, tokens []token, h *histogram, final bool) {
	h[endOfBlock] = 1
	w.huffman.lengths(w.lens.literal[:literalSymbols], h[:firstDist], maxCodeLen)
	w.huffman.lengths(w.lens.dist[:distSymbols], h[firstDist:], maxDistLen)
	w.header.make(&w.huffman, &w.lens)

	switch w.choose(h, len(src)) {
	case storedBlock:
		w.stored(src, final)
	case fixedBlock:
		w.begin(fixedBlock, final)
		w.codes.make(&fixedLens)
		w.tokens(src, tokens)
	default:
		w.begin(dynamicBlock, final)
		w.header.write(&w.bitWriter)
		w.codes.make(&w.lens)
		w.tokens(src, tokens)
	}
}

// choose returns the BTYPE in which a block takes the fewest bits that covers n bytes, of which h is the count of symbols and w.header and w.lens are
// made, and makes room for it.
func (w *blockWriter) choose(h *histogram, n int) uint64 {
	extra := h.extraBits()
	dynamic := w.header.size + w.lens.size(h) + extra
	fixed := fixedLens.size(h) + extra
	stored := w.storedSize(n) - headerBits
	w.out = slices.Grow(w.out, (min(fixed, dynamic, stored)+headerBits)/8+4*spare)
	switch {
	case stored <= min(fixed, dynamic):
		return storedBlock
	case fixed <= dynamic:
		return fixedBlock
	}
	return dynamicBlock
}

func (w *blockWriter) begin(btype uint64, final bool) {
	if final {
		w.put(1|btype<<1, headerBits)
	} else {
		w.put(btype<<1, headerBits)
	}
}

// storedSize returns the bits that n bytes take as stored blocks after what is written.
func (w *blockWriter) storedSize(n int) int {
	blocks := max(1, (n+maxStored-1)/maxStored)
	first := (int(w.n)+headerBits+7)&^7 - int(w.n)
	return first + (blocks-1)*8 + (blocks*storedHeader+n)*8
}

// stored writes src as stored blocks, an empty one where it is empty.
func (w *blockWriter) stored(src []byte, final bool) {
	for {
		n := min(len(src), maxStored)
		w.begin(storedBlock, final && n == len(src))
		w.align()
		w.out = binary.LittleEndian.AppendUint16(w.out, uint16(n))
		w.out = binary.LittleEndian.AppendUint16(w.out, ^uint16(n))
		w.out = append(w.out, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return
		}
	}
}

// symbolCodes are a block's codes as the loop that writes them needs them.
type symbolCodes struct {
	literal  [256]uint32 // code<<8 | bits
	length   [256]uint32 // at length-3, with the extra bits: code<<8 | bits
	dist     [32]uint32  // code<<16 | bits with the extra bits<<8 | bits of the code
	end      uint32      // as literal
	reversed [literalSymbols + 2]uint16
}

// make sets the codes from their lengths.
func (c *symbolCodes) make(l *codeLens) {
	r := c.reversed[:]
	canonical(r, l.literal[:])
	for s := range c.literal {
		c.literal[s] = uint32(r[s])<<8 | uint32(l.literal[s])
	}
	c.end = uint32(r[endOfBlock])<<8 | uint32(l.literal[endOfBlock])
	for i, x := range &lengths {
		s := firstLength + int(x.symbol)
		n := l.literal[s]
		c.length[i] = (uint32(r[s])|uint32(x.extra)<<n)<<8 | uint32(n+x.extraBits)
	}
	canonical(r[:len(l.dist)], l.dist[:])
	for s, n := range &l.dist {
		c.dist[s] = uint32(r[s])<<16 | (uint32(n)+uint32(distExtraBits(s)))<<8 | uint32(n)
	}
}

// tokens writes the tokens, whose literals are taken from src, and the end of the block. The space for them has been reserved.
// At most 7 bits wait between flushes; four literals are 56 bits at most, a match is 14+5+15+13.
func (w *blockWriter) tokens(src []byte, tokens []token) {
	out, at := w.out[:cap(w.out)], len(w.out)
	acc, n := w.acc, w.n
	c := &w.codes
	for _, t := range tokens {
		k := t.literals()
		run := src[:k]
		for len(run) >= 4 {
			a, b, d, e := c.literal[run[0]], c.literal[run[1]], c.literal[run[2]], c.literal[run[3]]
			acc |= uint64(a>>8) << (n & 63)
			n += uint(a & 0xff)
			acc |= uint64(b>>8) << (n & 63)
			n += uint(b & 0xff)
			acc |= uint64(d>>8) << (n & 63)
			n += uint(d & 0xff)
			acc |= uint64(e>>8) << (n & 63)
			n += uint(e & 0xff)
			binary.LittleEndian.PutUint64(out[at:], acc)
			at += int(n >> 3)
			acc >>= n &^ 7 & 63
			n &= 7
			run = run[4:]
		}
		for _, b := range run {
			a := c.literal[b]
			acc |= uint64(a>>8) << (n & 63)
			n += uint(a & 0xff)
		}
		if len(run) > 0 {
			binary.LittleEndian.PutUint64(out[at:], acc)
			at += int(n >> 3)
			acc >>= n &^ 7 & 63
			n &= 7
		}
		if t.symbol() == noMatch {
			src = src[k:]
			continue
		}
		src = src[k+minMatch+int(t.lengthIndex()):]
		a, d := c.length[t.lengthIndex()], c.dist[t.symbol()]
		acc |= uint64(a>>8) << (n & 63)
		n += uint(a & 0xff)
		acc |= uint64(d>>16) << (n & 63)
		acc |= uint64(t.extra()) << ((n + uint(d&0xff)) & 63)
		n += uint(d >> 8 & 0xff)
		binary.LittleEndian.PutUint64(out[at:], acc)
		at += int(n >> 3)
		acc >>= n &^ 7 & 63
		n &= 7
	}
	w.out, w.acc, w.n = out[:at], acc, n
	w.put(uint64(c.end>>8), uint(c.end&0xff))
}
