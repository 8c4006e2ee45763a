package testimages

import "math/rand/v2"

// words is what generated content is made of: a vocabulary whose words are as unequally common as those of a language, phrases of it,
// and byte patterns that stand for machine instructions. It is made once from the seed and only read afterwards.
type words struct {
	word   [3000]string
	phrase [2000]string
	insn   [500][]byte

	// Indexes by frequency: a random 16-bit number chooses, and the n-th entry comes up 1/n as often as the first.
	wordOf, phraseOf, insnOf [1 << 16]uint16
}

func newWords(seed uint64) *words {
	w := new(words)
	r := newRandom(seed, streamWords)
	syllables := []string{
		"a", "al", "an", "ar", "ba", "be", "ca", "ce", "co", "con", "da", "de", "di", "e", "ed", "en", "er", "es", "fi", "for", "ga", "ge",
		"ha", "i", "im", "in", "ing", "is", "it", "ki", "la", "le", "li", "lo", "ma", "me", "mi", "na", "ne", "ni", "no", "o", "on", "or",
		"pa", "per", "po", "pre", "ra", "re", "ri", "ro", "sa", "se", "si", "so", "st", "ta", "te", "ter", "ti", "tion", "to", "u", "un",
		"va", "ve", "vi", "y", "ze",
	}
	seen := map[string]bool{}
	for i := range w.word {
		word := ""
		for word == "" || seen[word] {
			word = ""
			for range 1 + i/200%3 + r.below(3) {
				word += syllables[r.below(len(syllables))]
			}
		}
		seen[word], w.word[i] = true, word
	}
	zipf(&w.wordOf, len(w.word))
	for i := range w.phrase {
		phrase := w.word[w.wordOf[r.next16()]]
		for range 1 + r.below(7) {
			phrase += " " + w.word[w.wordOf[r.next16()]]
		}
		w.phrase[i] = phrase
	}
	zipf(&w.phraseOf, len(w.phrase))
	for i := range w.insn {
		p := make([]byte, 2+r.below(6))
		for k := range p {
			p[k] = byte(r.next16())
		}
		w.insn[i] = p
	}
	zipf(&w.insnOf, len(w.insn))
	return w
}

// zipf fills a table in which i comes up about 1/(i+1) as often as 0, and each i below n at least once.
func zipf(table *[1 << 16]uint16, n int) {
	total := uint64(0)
	for i := range n {
		total += 1 << 32 / uint64(i+1)
	}
	at, sum := 0, uint64(0)
	for i := range n {
		sum += 1 << 32 / uint64(i+1)
		// What is left must do for the rest, one each.
		end := min(max(int(sum*(1<<16)/total), at+1), len(table)-(n-1-i))
		for ; at < end; at++ {
			table[at] = uint16(i)
		}
	}
	for ; at < len(table); at++ {
		table[at] = uint16(n - 1)
	}
}

// Streams keep the random numbers of different purposes apart.
const (
	streamWords = iota + 1
	streamIDs
	streamCatalog
	streamSeeds
)

// random gives random numbers: PCG-DXSM, whose sequence package rand promises to keep, and nothing of rand.Rand, whose ways of
// making ranges it does not.
type random struct {
	pcg  rand.PCG
	bits uint64
	left int // unused bits
}

func newRandom(seed, stream uint64) *random {
	r := new(random)
	r.pcg.Seed(seed, stream)
	return r
}

// next16 returns 16 random bits.
func (r *random) next16() int {
	if r.left == 0 {
		r.bits, r.left = r.pcg.Uint64(), 64
	}
	x := r.bits & 0xffff
	r.bits >>= 16
	r.left -= 16
	return int(x)
}

// below returns a number from 0 to n-1, n being at most 2³².
func (r *random) below(n int) int { return int(r.pcg.Uint64() >> 32 * uint64(n) >> 32) }

// between returns a number from low to high, whose logarithm is evenly distributed: small ones are common.
func (r *random) between(low, high int64) int64 {
	octaves := 0
	for low<<octaves < high {
		octaves++
	}
	if octaves == 0 {
		return low
	}
	base := low << r.below(octaves)
	return min(base+int64(r.below(int(base))), high)
}
