package deflate

import "math/bits"

const (
	hash3Bits = 14
	hash4Bits = 16
	window    = maxDistance
)

// chains finds matches through chains of the places that have the same hash of 4 bytes, the last first. For matches of 3 bytes, which pay only
// when they are near, the last place with each hash of 3 bytes is kept.
//
// Places are indexes of the slice that is compressed. An entry that was never set is 0, like one of the first byte; as every match is
// compared, that is harmless.
type chains struct {
	head3 [1 << hash3Bits]int32
	head4 [1 << hash4Bits]int32
	back  [window]uint16 // for each place modulo window how far back the one before it in its chain lies

	distance int // the greatest there may be
	effort
}

// effort says how hard a level tries.
type effort struct {
	depth  int // how many places of a chain are looked at
	nice   int // length of a match that is good enough to stop looking
	lazy   int // how many of the next places are tried for a better match before one is taken
	passes int // how often the cheapest way is looked for again
}

func hash3(x uint32) uint32 { return x << 8 * 0x9e3779b1 >> (32 - hash3Bits) }
func hash4(x uint32) uint32 { return x * 0x9e3779b1 >> (32 - hash4Bits) }

func (c *chains) reset() {
	clear(c.head3[:])
	clear(c.head4[:])
}

// insert makes the places from p up to end known.
func (c *chains) insert(src []byte, p, end int) {
	for end = min(end, len(src)-4); p < end; p++ {
		c.add(load32(src, p), p)
	}
}

// add makes p, where the four bytes x are, known, and returns the last place with the same hash, -1 where there is none.
func (c *chains) add(x uint32, p int) int {
	h := hash4(x)
	last := int(c.head4[h]) - 1
	c.head4[h] = int32(p + 1)
	c.head3[hash3(x)] = int32(p + 1)
	c.back[uint(p)%window] = uint16(min(p-last, 1<<16-1))
	return last
}

// find makes p known and returns the longest match there that is longer than least; length 0 where there is none.
func (c *chains) find(src []byte, p, least, depth int) (length, distance int) {
	x := load32(src, p)
	far := max(0, p-c.distance)
	most := min(maxMatch, len(src)-p)
	at3 := int(c.head3[hash3(x)]) - 1
	at := c.add(x, p)
	best := max(least, minMatch)
	if best >= most {
		return 0, 0
	}
	for at >= far {
		at, depth = c.follow(src, at, far, best-3, depth, load32(src, p+best-3))
		if at < 0 {
			break
		}
		if n := matchLen(src, at, p, most); n > best {
			best, length, distance = n, n, p-at
			if n >= c.nice || n == most {
				return length, distance
			}
		}
		depth--
		if depth <= 0 {
			break
		}
		at -= int(c.back[uint(at)%window])
	}
	if length == 0 && least < minMatch && at3 >= 0 && p-at3 <= min(4096, c.distance) && (load32(src, at3)^x)<<8 == 0 {
		return minMatch, p - at3
	}
	return length, distance
}

// follow returns the first place of a chain, from at on, that has tail skip bytes behind it, and how many places may be tried from there on;
// -1 where there is none.
//
//go:noinline
func (c *chains) follow(src []byte, at, far, skip, depth int, tail uint32) (int, int) {
	for load32(src, at+skip) != tail {
		at -= int(c.back[uint(at)%window])
		depth--
		if depth <= 0 || at < far {
			return -1, 0
		}
	}
	return at, depth
}

// match appends the tokens of src[from:] to tokens.
func (c *chains) match(tokens []token, src []byte, from int) []token {
	p, start := from, from // start is that of the literals that wait
	misses := 0
	for end := len(src) - 8; p < end; {
		if x := load64(src, p); x == bits.RotateLeft64(x, 8) {
			if n := runLen(src, p); n >= longRun {
				if p == 0 || src[p-1] != src[p] {
					p++
					n--
				}
				tokens = appendRun(tokens, p-start, n)
				p += n
				start = p
				c.insert(src, p-3, p)
				continue
			}
		}
		length, distance := c.find(src, p, 0, c.depth)
		if length == 0 {
			misses++
			p += 1 + min(misses/patience, maxStride)
			continue
		}
		misses = max(0, misses-matchWorth*length)
		var known int
		p, length, distance, known = c.improve(src, p, end, length, distance)
		for p > start && p > distance && src[p-1] == src[p-1-distance] && length < maxMatch {
			p--
			length++
		}
		tokens = appendMatch(tokens, p-start, length, distance)
		p += length
		c.insert(src, known, p)
		start = p
	}
	return appendLiterals(tokens, len(src)-start)
}

// improve looks for a better match one or more places behind the one at p, which is worth the literals before it, and so on from there.
// It returns the match that is to be taken, and the place up to which all are known.
func (c *chains) improve(src []byte, p, end, length, distance int) (place, l, d, known int) {
	known = p + 1
	for length < c.nice {
		better := false
		for step := 1; step <= c.lazy && p+step < end && !better; step++ {
			known = p + step + 1
			n, d := c.find(src, p+step, length-1, c.depth)
			// A byte more is worth four bits, and a distance costs one for each power of two.
			if n >= length && 4*(n-length)+bits.Len(uint(distance))-bits.Len(uint(d)) > 4*step-3 {
				p, length, distance, better = p+step, n, d, true
			}
		}
		if !better {
			break
		}
	}
	return p, length, distance, known
}

const (
	longRun = 64 // the shortest run of one byte that is not searched for anything better

	// Where many literals come together, not every place is searched. A match makes up for as many misses as matchWorth times its length.
	patience   = 512 // misses, after each of which one more place is passed over
	maxStride  = 15
	matchWorth = 64
)
