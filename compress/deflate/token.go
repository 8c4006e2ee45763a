package deflate

import "math/bits"

const (
	minMatch    = 3     // the shortest match, bytes
	maxMatch    = 258   // the longest
	maxDistance = 32768 // how far back it may reach, bytes

	endOfBlock     = 256
	firstLength    = 257 // the symbol of length 3
	literalSymbols = 286 // of the literal/length alphabet that may occur
	distSymbols    = 30  // of the distance alphabet
)

// token is a run of literals, which are the bytes of the source, and the match after it:
//
//	bits 0..7    length - 3
//	bits 8..20   extra bits of the distance
//	bits 21..25  distance symbol, or noMatch
//	bits 26..    number of literals
type token uint64

const (
	extraShift   = 8
	symbolShift  = 21
	literalShift = 26
	noMatch      = 31 // in place of a distance symbol: nothing follows the literals
)

// matchToken returns the token of n literals and a match; minMatch <= length <= maxMatch, 1 <= distance <= maxDistance.
func matchToken(n, length, distance int) token {
	symbol, extra := distSymbol(distance)
	return token(n)<<literalShift | token(symbol)<<symbolShift | token(extra)<<extraShift | token(length-minMatch)
}

// literalToken returns the token of n literals and no match.
func literalToken(n int) token { return token(n)<<literalShift | noMatch<<symbolShift }

func (t token) literals() int     { return int(t >> literalShift) }
func (t token) symbol() uint      { return uint(t>>symbolShift) & 31 }
func (t token) extra() uint       { return uint(t>>extraShift) & 0x1fff }
func (t token) lengthIndex() byte { return byte(t) } // length - 3

// matched returns the length of the match, 0 where there is none.
func (t token) matched() int {
	if t.symbol() == noMatch {
		return 0
	}
	return int(byte(t)) + minMatch
}

// distSymbol returns the symbol of a distance and the value of its extra bits (section 3.2.5): two symbols for each power of two.
func distSymbol(distance int) (symbol, extra uint) {
	d := uint(distance - 1)
	if d < 2 {
		return d, 0
	}
	n := uint(bits.Len(d)) - 2 // extra bits
	return 2*n + 2 + d>>(n&31)&1, d & (1<<(n&31) - 1)
}

// distExtraBits returns how many extra bits follow a distance symbol.
func distExtraBits(symbol int) uint { return uint(max(symbol/2-1, 0)) }

// lengths holds what section 3.2.5 says of each length, at length - 3.
var lengths = func() (t [maxMatch - minMatch + 1]struct{ symbol, extraBits, extra uint8 }) {
	n := 0
	for s := 0; s < 28; s++ {
		extraBits := max(s/4-1, 0)
		for e := 0; e < 1<<extraBits && n < len(t); e++ {
			t[n].symbol, t[n].extraBits, t[n].extra = uint8(s), uint8(extraBits), uint8(e)
			n++
		}
	}
	t[len(t)-1].symbol, t[len(t)-1].extraBits, t[len(t)-1].extra = 28, 0, 0 // 258 has a symbol of its own
	return t
}()

// maxLiterals is the most that one token carries, so that a long run of them can be cut into blocks.
const maxLiterals = 1024

// appendMatch appends n literals and a match.
func appendMatch(tokens []token, n, length, distance int) []token {
	if n > maxLiterals {
		tokens = appendLiterals(tokens, n)
		n = 0
	}
	return append(tokens, matchToken(n, length, distance))
}

// appendLiterals appends n literals.
func appendLiterals(tokens []token, n int) []token {
	for ; n > 0; n -= maxLiterals {
		tokens = append(tokens, literalToken(min(n, maxLiterals)))
	}
	return tokens
}

// appendRun appends n literals and the matches of length bytes that are all equal to the one before them.
func appendRun(tokens []token, n, length int) []token {
	for ; length >= minMatch; n = 0 {
		k := min(length, maxMatch)
		tokens = appendMatch(tokens, n, k, 1)
		length -= k
	}
	return appendLiterals(tokens, n+length)
}
