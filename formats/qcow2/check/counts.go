package check

import (
	"maps"
	"slices"
)

const (
	pageBits     = 8
	pageClusters = 1 << pageBits // clusters that a page of counts stands for

	// maxDensePages is up to how many pages are found through an array in place of a map.
	maxDensePages = 1 << 20
)

// A tally is what is known of one cluster: how often it is referred to, and flags. Narrow ones have 12 bits for the count, wide ones 60; the
// flags are the four bits above.
const (
	narrowBits = 12
	wideBits   = 60
	narrowMax  = 1<<narrowBits - 1
	wideMax    = 1<<wideBits - 1
)

// Flags of a tally.
const (
	refCopied uint64 = 1 << iota // an active reference has the COPIED flag
	refPlain                     // an active reference to which the flag belongs does not have it
	refTable                     // it is an L2 table
	refOther                     // it is something else
)

type (
	narrowPage [pageClusters]uint16
	widePage   [pageClusters]uint64
)

// counts holds the tallies of the clusters in a window [lo, hi) of the file. The window begins as everything from lo on, and where its pages
// would need more memory than the budget, hi moves down: what was counted above it is forgotten, to be counted again in a later window.
type counts struct {
	lo, hi int64 // multiples of unit
	unit   int64 // clusters; a multiple of pageClusters
	budget int64 // bytes

	dense  []*narrowPage // by page from lo on; nil where the window has too many pages
	narrow map[int64]*narrowPage
	wide   map[int64]*widePage
	used   int64 // bytes
	added  int64 // references
	// scattered says that the clusters that are referred to lie so far apart that counting stopped: no writer leaves a file so.
	scattered bool
}

const (
	// minDensity is how many references a page has at least on the average, once there are more pages than the budget allows.
	minDensity = 32
	// fewPages may be scattered as they like.
	fewPages = 4096
)

// newCounts returns counts without tallies for the clusters from lo up to end.
func newCounts(lo, end, unit, budget int64) *counts {
	c := &counts{lo: lo, hi: (end + unit - 1) / unit * unit, unit: unit, budget: budget, wide: map[int64]*widePage{}}
	if n := (c.hi - c.lo) >> pageBits; n <= maxDensePages {
		c.dense = make([]*narrowPage, n)
	} else {
		c.narrow = map[int64]*narrowPage{}
	}
	return c
}

// page returns the narrow page with index k, or nil.
func (c *counts) page(k int64) *narrowPage {
	if c.dense != nil {
		return c.dense[k-c.lo>>pageBits]
	}
	return c.narrow[k]
}

func (c *counts) setPage(k int64, p *narrowPage) {
	switch {
	case c.dense != nil:
		c.dense[k-c.lo>>pageBits] = p
	case p == nil:
		delete(c.narrow, k)
	default:
		c.narrow[k] = p
	}
}

// pages returns the indexes of all pages, sorted.
func (c *counts) pages() []int64 {
	keys := slices.Collect(maps.Keys(c.wide))
	for i, p := range c.dense {
		if p != nil {
			keys = append(keys, c.lo>>pageBits+int64(i))
		}
	}
	keys = slices.AppendSeq(keys, maps.Keys(c.narrow))
	slices.Sort(keys)
	return keys
}

// add counts w references to each of the n clusters from first on, as far as they lie in the window.
func (c *counts) add(first, n int64, w uint64, flags uint64) {
	first, end := max(first, c.lo), min(first+n, c.hi)
	c.added += max(0, end-first)
	for first < end && !c.scattered {
		k := first >> pageBits
		next := min(end, (k+1)<<pageBits)
		if wide, found := c.wide[k]; found {
			addWide(wide[first&(pageClusters-1):][:next-first], w, flags)
		} else if !c.addNarrow(k, first, next, w, flags) {
			c.widen(k)
			next = first // once more
		}
		first, end = next, min(end, c.hi) // the window may have become smaller
	}
}

func addWide(tallies []uint64, w, flags uint64) {
	for i, t := range tallies {
		tallies[i] = min(t&wideMax+min(w, wideMax), wideMax) | t&^wideMax | flags<<wideBits
	}
}

// addNarrow adds to the narrow page k, and reports whether it could; else it has changed nothing.
func (c *counts) addNarrow(k, first, next int64, w, flags uint64) bool {
	if w > narrowMax {
		return false
	}
	p := c.page(k)
	if p == nil {
		p = new(narrowPage)
		c.setPage(k, p)
		c.grow(pageClusters * 2)
	}
	tallies := p[first&(pageClusters-1):][:next-first]
	var most uint16
	for _, t := range tallies {
		most = max(most, t&narrowMax)
	}
	if uint64(most)+w > narrowMax {
		return false
	}
	bits := uint16(flags << narrowBits)
	for i, t := range tallies {
		tallies[i] = (t + uint16(w)) | bits
	}
	return true
}

// widen makes page k wide.
func (c *counts) widen(k int64) {
	wide := new(widePage)
	if p := c.page(k); p != nil {
		for i, t := range p {
			wide[i] = uint64(t&narrowMax) | uint64(t>>narrowBits)<<wideBits
		}
	}
	c.setPage(k, nil)
	c.wide[k] = wide
	c.grow(pageClusters * 8)
}

// grow counts n more bytes, and makes the window smaller where they are too many.
func (c *counts) grow(n int64) {
	const overhead = 64 // of a map
	c.used += n + overhead
	if c.used <= c.budget {
		return
	}
	keys := c.pages()
	if len(keys) > fewPages && c.added < minDensity*int64(len(keys)) {
		c.scattered = true
		return
	}
	hi := keys[len(keys)/2] << pageBits
	if hi = hi / c.unit * c.unit; hi <= c.lo {
		hi = c.lo + c.unit
	}
	if hi >= c.hi {
		c.budget *= 2 // a unit is counted whole
		return
	}
	c.hi = hi
	c.used = 0
	for _, k := range keys {
		_, isWide := c.wide[k]
		switch above := k<<pageBits >= hi; {
		case above && isWide:
			delete(c.wide, k)
		case above:
			c.setPage(k, nil)
		case isWide:
			c.used += pageClusters*8 + overhead
		default:
			c.used += pageClusters*2 + overhead
		}
	}
}

// get returns the count and the flags of a cluster in the window.
func (c *counts) get(cluster int64) (n, flags uint64) {
	k, i := cluster>>pageBits, cluster&(pageClusters-1)
	if wide, found := c.wide[k]; found {
		return wide[i] & wideMax, wide[i] >> wideBits
	}
	if p := c.page(k); p != nil {
		return uint64(p[i] & narrowMax), uint64(p[i] >> narrowBits)
	}
	return 0, 0
}

// contains reports whether the cluster lies in the window.
func (c *counts) contains(cluster int64) bool { return cluster >= c.lo && cluster < c.hi }

// set sets the count of a cluster that has been counted, and keeps its flags. n is small.
func (c *counts) set(cluster int64, n uint64) {
	k, i := cluster>>pageBits, cluster&(pageClusters-1)
	if wide, found := c.wide[k]; found {
		wide[i] = wide[i]&^wideMax | n
	} else if p := c.page(k); p != nil {
		p[i] = p[i]&^narrowMax | uint16(n)
	}
}

// has reports whether anything was counted in page k.
func (c *counts) has(k int64) bool {
	if _, found := c.wide[k]; found {
		return true
	}
	return c.page(k) != nil
}
