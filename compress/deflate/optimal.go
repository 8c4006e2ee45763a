package deflate

import "math/bits"

const (
	stretchLen = 1 << 18 // what is parsed at once, bytes
	maxOptions = 1 << 21 // found in a stretch, which ends there
	hugeRun    = 1 << 11 // a run of one byte that ends a stretch, bytes

	priceUnit = 64           // of prices, per bit
	minPrice  = priceUnit    // no code is shorter than a bit
	logPrice  = logUnit / 64 // what turns units of log2 into units of prices
)

// optimal finds the cheapest way through all matches, not only the longest. What a symbol costs depends on how often it occurs, and that on the way
// taken: so a stretch of the input is parsed several times, each time with the prices that the parse before leads to, block by block.
//
// All matches of a stretch are kept in memory, 8 MiB at most.
type optimal struct {
	chains
	options  []option
	first    []uint32 // index of the first option at each place of the stretch, and behind its last the number of options
	cost     []uint32 // of the cheapest way from each place to the end of its block
	choice   []option // the first step of that way, 0 for a literal
	splitter splitter
	prices   prices
}

// option is a match: (distance - 1)<<16 | length. The options of a place are in the order of length and of distance.
type option uint32

func newOption(length, distance int) option { return option((distance-1)<<16 | length) }

func (o option) length() int   { return int(o & 0xffff) }
func (o option) distance() int { return int(o>>16) + 1 }

// match appends the tokens of src[from:].
func (o *optimal) match(tokens []token, src []byte, from int) []token {
	for from < len(src) {
		end, run := o.collect(src, from)
		if end > from {
			tokens = o.stretch(tokens, src[:end], from)
		}
		if run > 0 {
			tokens = appendRun(tokens, 1, run-1)
			o.insert(src, end+run-3, end+run)
		}
		from = end + run
	}
	return tokens
}

// collect finds the options of the places from from on, up to where a huge run begins, whose length it returns too, or the stretch is full.
func (o *optimal) collect(src []byte, from int) (end, run int) {
	o.options, o.first = o.options[:0], o.first[:0]
	stop := min(len(src), from+stretchLen)
	misses, quiet := 0, 0 // quiet is how many places are not searched
	p := from
	for ; p < stop && len(o.options) < maxOptions; p++ {
		o.first = append(o.first, uint32(len(o.options)))
		if p > len(src)-8 {
			continue
		}
		if x := load64(src, p); x == bits.RotateLeft64(x, 8) {
			if n := runLen(src, p); n >= hugeRun {
				o.first = o.first[:len(o.first)-1]
				run = n
				break
			} else if n >= longRun && p > 0 && src[p-1] == src[p] {
				o.options = append(o.options, newOption(min(n, maxMatch), 1))
				continue
			}
		}
		if quiet--; quiet >= 0 {
			if misses < patience {
				o.add(load32(src, p), p)
			}
			continue
		}
		longest := o.all(src, p)
		switch {
		case longest >= o.nice:
			quiet, misses = longest-1, 0
		case longest > 0:
			quiet, misses = 0, max(0, misses-64*longest)
		default:
			misses++
			quiet = min(misses/patience, maxStride)
		}
	}
	o.first = append(o.first, uint32(len(o.options)))
	return p, run
}

// all makes p known and appends its options. It returns the length of the last, 0 where there is none.
func (o *optimal) all(src []byte, p int) int {
	x := load32(src, p)
	far := max(0, p-o.chains.distance)
	most := min(maxMatch, len(src)-p)
	at3 := int(o.head3[hash3(x)]) - 1
	at := o.add(x, p)
	best := 0
	if at3 >= far && (load32(src, at3)^x)<<8 == 0 {
		best = minMatch
		o.options = append(o.options, newOption(best, p-at3))
	}
	for depth := o.depth; at >= far; {
		skip := max(0, best-3)
		at, depth = o.follow(src, at, far, skip, depth, load32(src, p+skip))
		if at < 0 {
			break
		}
		if n := matchLen(src, at, p, most); n > best {
			best = n
			o.options = append(o.options, newOption(n, p-at))
			if n >= o.nice || n == most {
				break
			}
		}
		if depth--; depth <= 0 {
			break
		}
		at -= int(o.back[uint(at)%window])
	}
	return best
}

// stretch appends the tokens of src[from:], whose options have been collected.
func (o *optimal) stretch(tokens []token, src []byte, from int) []token {
	n := len(src) - from
	o.cost = append(o.cost[:0], make([]uint32, n+1)...)
	o.choice = append(o.choice[:0], make([]option, n)...)
	src = src[from:]
	before := len(tokens)
	o.prices.guess(src)
	o.cheapest(src, 0, n)
	tokens = o.walk(tokens, n)
	for range o.passes {
		at := 0
		for _, g := range o.splitter.split(src, tokens[before:]) {
			o.prices.set(&g.histogram)
			o.cheapest(src, at, at+g.bytes)
			at += g.bytes
		}
		tokens = o.walk(tokens[:before], n)
	}
	return tokens
}

// cheapest finds the cheapest way from a to b, from the end on.
func (o *optimal) cheapest(src []byte, a, b int) {
	cost, prices := o.cost, &o.prices
	cost[b] = 0
	for p := b - 1; p >= a; p-- {
		best, choice := cost[p+1]+prices.literal[src[p]], option(0)
		length := minMatch
		for _, m := range o.options[o.first[p]:o.first[p+1]] {
			most := min(m.length(), b-p)
			symbol, _ := distSymbol(m.distance())
			price := prices.dist[symbol]
			if most >= o.nice {
				length = most // shorter ones are not worth the time
			}
			row := cost[p : p+most+1]
			for ; length < len(row); length++ {
				if c := row[length] + price + prices.length[length%len(prices.length)]; c < best {
					best, choice = c, m&^0xffff|option(length)
				}
			}
		}
		cost[p], o.choice[p] = best, choice
	}
}

// walk appends the tokens of the n bytes of the stretch.
func (o *optimal) walk(tokens []token, n int) []token {
	start := 0
	for p := 0; p < n; {
		m := o.choice[p]
		if m == 0 {
			p++
			continue
		}
		tokens = appendMatch(tokens, p-start, m.length(), m.distance())
		p += m.length()
		start = p
	}
	return appendLiterals(tokens, n-start)
}

// prices of the steps of a way, in units of 1/priceUnit bit.
type prices struct {
	literal [256]uint32
	length  [512]uint32 // at the length
	dist    [distSymbols]uint32
}

// guess sets the prices to those of the bytes as they are, and of matches as they are in most files.
func (p *prices) guess(src []byte) {
	var h histogram
	for _, b := range src {
		h[b]++
	}
	p.set(&h)
	const lengthSymbol, symbol = 4 * priceUnit, 6 * priceUnit / 2
	for i, x := range &lengths {
		p.length[minMatch+i] = lengthSymbol + uint32(x.symbol)*priceUnit/8 + uint32(x.extraBits)*priceUnit
	}
	for s := range p.dist {
		p.dist[s] = symbol + uint32(distExtraBits(s))*priceUnit
	}
}

// set sets the prices to what the symbols take where they occur as often as in h.
func (p *prices) set(h *histogram) {
	symbol := priceList(h[:firstDist])
	copy(p.literal[:], symbol[:256])
	for i, x := range &lengths {
		p.length[minMatch+i] = symbol[firstLength+int(x.symbol)] + uint32(x.extraBits)*priceUnit
	}
	symbol = priceList(h[firstDist:])
	for s := range p.dist {
		p.dist[s] = symbol[s] + uint32(distExtraBits(s))*priceUnit
	}
}

// priceList returns the prices of the symbols of an alphabet. One that does not occur costs as much as if it did so half a time.
func priceList(freq []uint32) (list [literalSymbols]uint32) {
	total := uint32(1)
	for _, f := range freq {
		total += f
	}
	whole := log2(total)
	for s, f := range freq {
		bits := whole + logUnit
		if f > 0 {
			bits = whole - log2(f)
		}
		list[s] = max(minPrice, uint32(bits/logPrice))
	}
	return list
}
