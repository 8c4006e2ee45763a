package check

import (
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// What compare leaves in place of counts: 0, 1, or these.
const (
	severalTimes = 2
	notKnown     = 3
)

// compareCounts compares the counts of the image with those of the window, for clusters of one page from first on. With fix, set stores another count for
// the i'th of them.
func (c *checker) compareCounts(first int64, stored []uint64, set func(i int64, v uint64), fix change) {
	if fix == nil && c.matches(first, stored) {
		return
	}
	most := ondisk.MaxRefcount(c.h.RefcountOrder)
	for i, have := range stored {
		cluster := first + int64(i)
		used, flags := c.counts.get(cluster)
		if used|have == 0 {
			continue
		}
		if fix != nil {
			if v := min(fix(have, used), most); v != have {
				set(int64(i), v)
				c.toldFixed(cluster, have, v)
			}
			continue
		}
		c.compareCount(cluster, have, used, flags, most)
	}
}

// matches reports whether there is nothing to say of the counts of clusters from first on, which lie in one page, and something is in use; mostly it is so.
func (c *checker) matches(first int64, stored []uint64) bool {
	k := first >> pageBits
	p := c.counts.page(k)
	if p == nil {
		return false
	}
	last := -1
	for i, t := range p[first&(pageClusters-1):][:len(stored)] {
		have, flags := stored[i], uint64(t>>narrowBits)
		if have != uint64(t&narrowMax) || !plausible(have, flags) {
			return false
		}
		if have > 0 {
			last = i
		}
	}
	if last >= 0 {
		c.seen.highest = max(c.seen.highest, first+int64(last))
	}
	return true
}

// plausible reports whether a cluster with this refcount may be referred to with these flags.
func plausible(have, flags uint64) bool {
	if flags&(refTable|refOther) == refTable|refOther {
		return false
	}
	return have == 1 && flags&refPlain == 0 || have != 1 && flags&refCopied == 0
}

// compareCount counts what is wrong with the count of one cluster.
func (c *checker) compareCount(cluster int64, have, used, flags, most uint64) {
	off := cluster << c.h.ClusterBits
	c.seen.highest = max(c.seen.highest, cluster)
	if used > most {
		c.found(formats.Corruption, int64(min(used-most, 1<<40)), partCluster, off, "it is used %d times, and a refcount is at most %d", used, most)
		used = most
	}
	switch {
	case have > used:
		c.found(formats.Leak, 1, partCluster, off, "its refcount is %d, and it is used %d times", have, used)
	case have < used:
		c.found(formats.Corruption, 1, partCluster, off, "its refcount is %d, and it is used %d times", have, used)
		c.seen.raise++
	}
	if flags&refTable != 0 && flags&refOther != 0 {
		c.seen.shared.add(off)
	}
	if !plausible(have, flags&^refOther) {
		c.copiedHere = true
	}
	if used > 0 {
		c.counts.set(cluster, min(have, severalTimes))
	}
}

// compareUncounted judges the clusters of the window for which there is no refcount block, or none that can be read.
func (c *checker) compareUncounted(per int64) {
	state := map[int64]blockState{}
	for _, b := range c.places.blocks {
		if c.counts.contains(b.index * per) {
			state[b.index] = b.state
		}
	}
	zero := make([]uint64, 1)
	for _, k := range c.counts.pages() {
		for cluster := k << pageBits; cluster < min((k+1)<<pageBits, c.end); cluster++ {
			s, found := state[cluster/per]
			if found && s == blockGood {
				if per >= pageClusters {
					break
				}
				continue
			}
			used, _ := c.counts.get(cluster)
			switch {
			case used == 0:
			case found && s != blockAbsent:
				c.seen.highest = max(c.seen.highest, cluster)
				c.counts.set(cluster, notKnown)
			default:
				c.seen.rebuild = true
				c.compareCounts(cluster, zero, nil, nil)
			}
		}
	}
}

// toldFixed tells that the count of a cluster has been put right.
func (c *checker) toldFixed(cluster int64, have, now uint64) {
	kind := formats.Corruption
	if have > now {
		kind = formats.Leak
	}
	c.say(formats.Problem{Kind: kind, Part: partCluster, Off: cluster << c.h.ClusterBits, Fixed: true}, "its refcount was %d, and is now %d", have, now)
}
