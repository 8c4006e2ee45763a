package deflate

import "math/bits"

const (
	maxSegments = 512  // into which a part is divided before those that are alike are joined
	minSegment  = 2048 // of the source, bytes
	minSymbols  = 256  // in a segment
	headerCost  = 60   // bits that a block takes besides its symbols and the lengths of their codes
	lengthCost  = 4    // bits that a header takes for each symbol that occurs
)

// segment is a piece of a part: a block, or what will be joined into one.
type segment struct {
	tokens int // how many
	bytes  int // of the source that they cover
	histogram
	cost  int64 // of a block of this segment alone, in units of 1/logUnit bit
	saved int64 // by joining it with the next
}

// blocks writes src, of which tokens are the form: cut into as many blocks as its statistics ask for.
func (w *blockWriter) blocks(s *splitter, src []byte, tokens []token, final bool) {
	segments := s.split(src, tokens)
	for i, g := range segments {
		w.block(src[:g.bytes], tokens[:g.tokens], &g.histogram, final && i == len(segments)-1)
		src, tokens = src[g.bytes:], tokens[g.tokens:]
	}
}

// splitter cuts a part of the input into blocks.
type splitter struct {
	segments []*segment
	pool     [maxSegments]segment
}

// split divides the tokens into short segments, and joins neighbours for as long as that makes the whole smaller. A segment is joined with
// that of its neighbours with which more is saved, unless that one has a better choice.
func (s *splitter) split(src []byte, tokens []token) []*segment {
	s.divide(src, tokens)
	g := s.segments
	for i := range g[:len(g)-1] {
		g[i].compare(g[i+1])
	}
	for before := 0; len(g) != before; {
		before = len(g)
		kept := g[:0]
		for i := 0; i < len(g); i++ {
			a := g[i]
			last := i+1 == len(g)
			if !last && a.saved > 0 && (len(kept) == 0 || a.saved >= kept[len(kept)-1].saved) && a.saved > g[i+1].saved {
				i++
				a.join(g[i])
				if last = i+1 == len(g); !last {
					a.compare(g[i+1])
				}
				if n := len(kept); n > 0 {
					kept[n-1].compare(a)
				}
			}
			if last {
				a.saved = 0
			}
			kept = append(kept, a)
		}
		g = kept
	}
	return g
}

// divide sets segments to pieces of about the same length.
func (s *splitter) divide(src []byte, tokens []token) {
	least := max(minSegment, (len(src)+maxSegments-1)/maxSegments)
	s.segments = s.segments[:0]
	for {
		g := &s.pool[len(s.segments)]
		g.tokens, g.bytes = 0, 0
		for n := 0; g.tokens < len(tokens) && (g.bytes < least || n < minSymbols); n++ {
			t := tokens[g.tokens]
			g.tokens++
			g.bytes += t.literals() + t.matched()
			n += t.literals()
		}
		g.histogram = histogram{}
		g.count(src[:g.bytes], tokens[:g.tokens])
		g.cost = sumCost(&g.histogram, &histogram{})
		g.saved = 0
		s.segments = append(s.segments, g)
		src, tokens = src[g.bytes:], tokens[g.tokens:]
		if len(tokens) == 0 {
			return
		}
	}
}

// join adds b, which follows g, to it.
func (g *segment) join(b *segment) {
	g.cost += b.cost - g.saved
	g.tokens += b.tokens
	g.bytes += b.bytes
	g.add(&b.histogram)
}

// compare sets g.saved to what is saved by joining g with b, which follows it.
func (g *segment) compare(b *segment) {
	g.saved = g.cost + b.cost - sumCost(&g.histogram, &b.histogram)
}

// sumCost returns about what a block of the symbols of both takes by Shannon's measure, without extra bits, in units of 1/logUnit bit.
func sumCost(a, b *histogram) int64 {
	bits, used := entropy(a[:firstDist], b[:firstDist])
	more, dists := entropy(a[firstDist:], b[firstDist:])
	return bits + more + int64(headerCost+lengthCost*(used+dists))*logUnit
}

// entropy returns the bits that the symbols of both carry, in units of 1/logUnit bit, and how many of them occur.
func entropy(a, b []uint32) (bits int64, used int) {
	total, unused := uint32(0), 0
	b = b[:len(a)]
	for i, f := range a {
		f += b[i]
		total += f
		if f < uint32(len(nlogs)) {
			bits -= int64(nlogs[f])
			unused += int((f - 1) >> 31)
		} else {
			bits -= int64(f) * log2(f)
		}
	}
	if total > 0 {
		bits += int64(total) * log2(total)
	}
	return bits, len(a) - unused
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

// nlogs holds n*log2(n) for small n, in units of 1/logUnit.
var nlogs = func() (t [1 << 9]uint32) {
	for n := 1; n < len(t); n++ {
		t[n] = uint32(n) * uint32(log2(uint32(n)))
	}
	return t
}()
