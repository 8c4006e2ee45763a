package deflate

import "math/bits"

const (
	maxSegments = 64   // into which a part is divided before those that are alike are joined
	minSegment  = 4096 // of the source, bytes
	headerCost  = 40   // bits that a block takes besides its symbols and the lengths of their codes
	lengthCost  = 4    // bits that a header takes for each symbol that occurs
)

// segment is a piece of a part: a block, or what will be joined into one.
type segment struct {
	tokens int // how many
	bytes  int // of the source that they cover
	histogram
	cost   int64 // of a block of this segment alone, in units of 1/logUnit bit
	joined int64 // what would be saved by joining it with the next
}

// blocks writes src, of which tokens are the form: cut into as many blocks as its statistics ask for.
func (w *blockWriter) blocks(s *splitter, src []byte, tokens []token, final bool) {
	segments := s.split(src, tokens)
	for i := range segments {
		g := segments[i]
		w.block(src[:g.bytes], tokens[:g.tokens], &g.histogram, final && i == len(segments)-1)
		src, tokens = src[g.bytes:], tokens[g.tokens:]
	}
}

// splitter cuts a part of the input into blocks.
type splitter struct {
	segments []*segment
	pool     [maxSegments]segment
	sum      histogram
}

// split divides the tokens into short segments, and joins neighbours for as long as that makes the whole smaller, those first that gain most.
func (s *splitter) split(src []byte, tokens []token) []*segment {
	s.divide(src, tokens)
	g := s.segments
	for i := range g[:len(g)-1] {
		s.compare(g[i], g[i+1])
	}
	for len(g) > 1 {
		most := 0
		for i := range g[:len(g)-1] {
			if g[i].joined > g[most].joined {
				most = i
			}
		}
		if g[most].joined <= 0 {
			break
		}
		a, b := g[most], g[most+1]
		a.cost += b.cost - a.joined
		a.tokens += b.tokens
		a.bytes += b.bytes
		a.add(&b.histogram)
		g = append(g[:most+1], g[most+2:]...)
		if most+1 < len(g) {
			s.compare(a, g[most+1])
		}
		if most > 0 {
			s.compare(g[most-1], a)
		}
	}
	s.segments = g
	return g
}

// divide sets segments to pieces of about the same length.
func (s *splitter) divide(src []byte, tokens []token) {
	least := max(minSegment, (len(src)+maxSegments-1)/maxSegments)
	s.segments = s.segments[:0]
	for {
		g := &s.pool[len(s.segments)]
		g.tokens, g.bytes = 0, 0
		for g.tokens < len(tokens) && g.bytes < least {
			t := tokens[g.tokens]
			g.tokens++
			g.bytes += t.literals() + t.matched()
		}
		g.histogram = histogram{}
		g.count(src[:g.bytes], tokens[:g.tokens])
		g.cost = g.estimate()
		s.segments = append(s.segments, g)
		src, tokens = src[g.bytes:], tokens[g.tokens:]
		if len(tokens) == 0 {
			return
		}
	}
}

// compare sets a.joined to what is saved by joining a with b, which follows it.
func (s *splitter) compare(a, b *segment) {
	s.sum = a.histogram
	s.sum.add(&b.histogram)
	a.joined = a.cost + b.cost - s.sum.estimate()
}

// estimate returns about what a block of these symbols takes, without extra bits, in units of 1/logUnit bit.
func (h *histogram) estimate() int64 {
	n, used := entropy(h.literal[:])
	m, more := entropy(h.dist[:])
	return n + m + int64(headerCost+lengthCost*(used+more))*logUnit
}

// entropy returns the bits that the symbols carry by Shannon's measure, in units of 1/logUnit bit, and how many of them occur.
func entropy(freq []uint32) (cost int64, used int) {
	total := uint32(0)
	for _, f := range freq {
		if f > 0 {
			total += f
			used++
			cost -= int64(f) * log2(f)
		}
	}
	if total > 0 {
		cost += int64(total) * log2(total)
	}
	return cost, used
}

const (
	logUnit      = 1 << 10 // of log2
	mantissaBits = 8
)

// log2 returns the binary logarithm of n > 0 in units of 1/logUnit, from its first mantissaBits+1 bits. It is made of integers, so that
// the output is the same on every machine.
func log2(n uint32) int64 {
	k := uint(bits.Len32(n)) - 1
	return int64(k)*logUnit + int64(logs[n<<(31-k)<<1>>(32-mantissaBits)])
}

// logs holds log2(1 + (i+1/2)/256), found by squaring: each square over 2 is one more bit of the logarithm.
var logs = func() (t [1 << mantissaBits]uint16) {
	for i := range t {
		x := uint64(1<<mantissaBits+i)<<(31-mantissaBits) + 1<<(30-mantissaBits) // 1 is 1<<31
		for bit := uint16(logUnit / 2); bit > 0; bit >>= 1 {
			if x = x * x >> 31; x >= 1<<32 {
				x >>= 1
				t[i] |= bit
			}
		}
	}
	t[0] = 0
	return t
}()
