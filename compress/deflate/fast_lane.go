package deflate

import "math/bits"

const (
	tableBits  = 13
	fastMatch  = 4  // the shortest match of level 1, bytes
	fastChoice = 16 // how many bytes are compared to choose between two matches
	tailMargin = 18 // so far before the end of a lane the last literals begin, bytes
	knownEvery = 4  // of the places before a lane, which are known to it
)

// fastTable holds the low bits of the last place with each hash of four bytes.
type fastTable [1 << tableBits]uint16

func fastHash(v uint32) uint32 { return v * 0x9e3779b1 >> (32 - tableBits) }

// lane is a stretch of the input that is matched on its own.
type lane struct {
	table   *fastTable
	next    *step // where the assembly writes
	at      int   // the place where the next step is
	stop    int   // where rounds end
	end     int
	steps   []step // those that have been made; there is room for the others
	noise   []noise
	order   int
	asked   int // the place where it was last asked whether matching pays
	skipped int // how many bytes were not matched then
}

// enter makes places from base to the start of the lane known. No entry of the table is empty: base stands where there is no better, and what
// an entry leads to is compared anyway.
func (l *lane) enter(src []byte, base int) {
	for i := range l.table {
		l.table[i] = uint16(base)
	}
	if base == l.at {
		l.steps = append(l.steps, oneLiteral(src[base]))
		l.at++
	}
	for i := base; i+fastMatch <= l.at; i += knownEvery {
		l.table[fastHash(load32(src, i))] = uint16(i)
	}
	l.asked = l.at
}

// walk makes quota steps, or as many as there are before stop; src ends where the lane does, at least tailMargin after stop.
//
// A step looks at two places. The longer match counts, the first of two that are equally long. What the table says is turned into minus a distance
// by setting the bits above the window: that is within the window whatever the table says, and a place that was shown before.
func (l *lane) walk(src []byte, stop, quota, back int) {
	table, at := l.table, l.at
	n := len(l.steps)
	quota += n
	steps := l.steps[:cap(l.steps)]
	for at < stop && n < quota {
		v := load64(src, at)
		h, g := fastHash(uint32(v)), fastHash(uint32(v>>8))
		here := int(table[h]) - at | back
		table[h] = uint16(at)
		there := int(table[g]) - (at + 1) | back
		table[g] = uint16(at + 1)
		x := v ^ load64(src, at+here)
		y := load64(src, at+1) ^ load64(src, at+1+there)
		if uint32(x) != 0 && uint32(y) != 0 {
			steps[n] = twoLiterals(v)
			n++
			at += 2
			continue
		}
		length, other := bits.TrailingZeros64(x)/8, bits.TrailingZeros64(y)/8
		if x == 0 {
			length += bits.TrailingZeros64(load64(src, at+8)^load64(src, at+8+here)) / 8
		}
		if y == 0 {
			other += bits.TrailingZeros64(load64(src, at+9)^load64(src, at+9+there)) / 8
		}
		lead := 0
		if other > length {
			length, here, lead = other, there, 1
			at++
		}
		if length == fastChoice {
			limit := min(len(src)-at, maxMatch)
			length += matchLen(src, at+length+here, at+length, limit-length)
		}
		steps[n] = matchStep(v, lead, length, here)
		n++
		at += length
		if at+fastMatch <= len(src)+1 {
			table[fastHash(load32(src, at-1))] = uint16(at - 1)
		}
	}
	l.at, l.steps = at, steps[:n]
}

// noise is a stretch of a lane that is stored as it is, without steps.
type noise struct {
	after int // how many steps are before it
	bytes int
}

// skip asks whether matching pays, after a round, and does without where it does not: what follows is made literals, or stored together with
// what the round was about where literals would not pay either.
func (l *lane) skip(src []byte) {
	if l.at >= l.stop {
		return
	}
	if l.at-l.asked > 2*roundSteps+fewMatched {
		l.skipped = 0
		l.asked = l.at
		return
	}
	l.skipped = min(max(2*l.skipped, minSkip), maxSkip)
	end := min(l.at+l.skipped, l.stop)
	if l.skipped == maxSkip && isNoise(src[l.at:end]) {
		l.steps = l.steps[:len(l.steps)-roundSteps]
		l.store(end)
	} else {
		l.literals(src, end)
	}
	l.asked = l.at
}

// store makes noise of what is from the place where it was last asked up to end.
func (l *lane) store(end int) {
	if k := len(l.noise) - 1; k >= 0 && l.noise[k].after == len(l.steps) {
		l.noise[k].bytes += end - l.asked
	} else {
		l.noise = append(l.noise, noise{len(l.steps), end - l.asked})
	}
	l.at = end
}

// isNoise reports whether p looks, by samples, as if codes for its bytes would not make it smaller by more than 1 %: two of them are equal at
// most 1/32 more often than two random bytes are.
func isNoise(p []byte) bool {
	const samples, each = 8, 512
	if len(p) < 2*samples*each {
		return false
	}
	var count [2][256]uint16
	for i := range samples {
		s := p[len(p)/samples*i:][:each]
		for j := 0; j < each; j += 2 {
			count[0][s[j]]++
			count[1][s[j+1]]++
		}
	}
	const n = samples * each
	equal := -n
	for b := range count[0] {
		c := int(count[0][b]) + int(count[1][b])
		equal += c * c
	}
	return equal <= (n*n+n*n/32)/256
}

// literals makes literals of the bytes up to end.
func (l *lane) literals(src []byte, end int) {
	p := src[l.at:end]
	for ; len(p) >= 2; p = p[2:] {
		l.steps = append(l.steps, twoLiterals(uint64(p[0])|uint64(p[1])<<8))
	}
	if len(p) == 1 {
		l.steps = append(l.steps, oneLiteral(p[0]))
	}
	l.at = end
}
